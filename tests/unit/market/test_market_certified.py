"""Under T2 an award counts once the witnesses have voted for it, for the buyer and the seller."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from attrs import evolve
from market_players import POLICY, Buyer, Hall, Player, Table, ask, one, some

from ledger.chain import check_entry
from ledger.model import Entry, Kind
from ledger.quorum import Certificate, Position, sign_vote
from mesh.ids import EntryId, task_id
from mesh.market.order import State
from mesh.market.policy import Policy
from mesh.messages import Accepted, Ask, Award, Bid, Declined, Release, Settled
from mesh.notices import Awarded, Moved
from mesh.resources.capacity import NOTHING
from mesh.sansio import (
    Action,
    AppendEntry,
    CancelRequested,
    Certified,
    Certify,
    Identity,
    Penalize,
    PersistTask,
    Run,
    Send,
    Started,
    WakeAt,
)
from mesh.sim.keyring import Keyring

WITNESSES = [Keyring(8).create(100 + number) for number in range(4)]
QUORUM = [witness.peer for witness in WITNESSES]
STRICT = evolve(POLICY, witnesses=tuple(QUORUM))
NEEDED = 3


def certificate(data: bytes, witnesses: Sequence[Identity] = WITNESSES[:NEEDED]) -> bytes:
    """That those *witnesses* voted for an encoded entry."""
    position = Position.of(Entry.decode(data))
    votes = [sign_vote(position, witness.peer, witness.sign) for witness in witnesses]
    return Certificate(position, tuple(sorted((v.witness, v.sig) for v in votes))).encode()


def keyring() -> Keyring:
    """One that knows the witnesses too."""
    made = Keyring(8)
    for number in range(len(WITNESSES)):
        made.create(100 + number)
    return made


def answer(asked: Certify, reason: str = "") -> Certified:
    """What the shell answers: a certificate, or a *reason* why there is none."""
    entry = Entry.decode(asked.entry)
    found = b"" if reason else certificate(asked.entry)
    return Certified(asked.task, asked.fence, EntryId(entry.id), found, reason)


# --- the buyer's side -----------------------------------------------------------------------------


class Court(Hall):
    """A hall whose buyer needs certificates."""

    def __init__(self, policy: Policy = STRICT, **changes: object) -> None:
        super().__init__(policy=policy, **changes)  # type: ignore[arg-type]

    def close(self, now: float = 0.0, winner: int = 0) -> list[Action]:
        """What the buyer does once every seller has bid, the *winner* lowest."""
        asked = self.submit(now)
        actions: list[Action] = []
        for place, seller in enumerate(self.sellers):
            price = 1_000 + 100 * (place != winner)
            actions = self.bids(seller, asked, now, price=price)
        return actions

    def trust(self) -> list[float]:
        """How far the buyer believes each seller."""
        calibration = self.buyer.kernel._auctioneer.calibration
        return [calibration.factor(seller.peer) for seller in self.sellers]

    def told(self, event: Certified, now: float) -> list[Action]:
        return self.buyer.told(event, now)


@pytest.fixture
def court() -> Court:
    return Court()


def test_an_award_is_shown_to_the_witnesses_once_it_is_durable_and_to_nobody_else(
    court: Court,
) -> None:
    actions = court.close()
    kinds = [type(action) for action in actions]
    assert not some(actions, Award)
    asked = one(actions, Certify)
    assert Entry.decode(asked.entry) == court.buyer.entries[-1]
    assert kinds.index(PersistTask) < kinds.index(AppendEntry) < kinds.index(Certify)
    assert one(actions, Awarded).winner == court.sellers[0].peer


def test_an_award_is_sent_with_its_certificate(court: Court) -> None:
    asked = one(court.close(), Certify)
    actions = court.told(answer(asked), 0.1)
    award = one(actions, Award)
    assert [action.peer for action in some(actions, Send)] == [court.sellers[0].peer]
    assert (award.entry, award.certificate) == (asked.entry, certificate(asked.entry))
    court.got(court.sellers[0], Accepted(court.task, 1), 0.2)
    assert court.record.state is State.RUNNING


def test_a_repeated_award_carries_its_certificate_and_none_is_repeated_without(
    court: Court,
) -> None:
    asked = one(court.close(), Certify)
    actions = court.buyer.woken("award", court.task, 1, 0.3)
    assert not some(actions, Award)
    assert some(actions, WakeAt), "it looks again"
    court.told(answer(asked), 0.4)
    award = one(court.buyer.woken("award", court.task, 1, 0.6), Award)
    assert award.certificate == certificate(asked.entry)


def test_a_certificate_that_does_not_come_opens_another_round_and_blames_nobody(
    court: Court,
) -> None:
    asked = one(court.close(), Certify)
    before = court.trust()
    actions = court.told(answer(asked, "too few witnesses"), 1.5)
    assert not some(actions, Penalize)
    assert one(actions, Moved).reason == "no certificate: too few witnesses"
    freed = {action.peer for action in some(actions, Send) if isinstance(action.message, Release)}
    assert freed == {seller.peer for seller in court.sellers}, "they hold nothing for it any more"
    assert (court.record.state, court.record.executor) == (State.WAITING, None)
    again = some(court.buyer.woken("ask", court.task, 1, 2.5), Ask)[0]
    assert again.round == 2
    assert court.trust() == before
    actions = [a for s in court.sellers for a in court.bids(s, again, 2.6)]
    asked = one(actions, Certify)
    assert one(court.told(answer(asked), 2.7), Award).fence == 2


def test_without_witnesses_the_pause_doubles_up_to_the_usual_one(court: Court) -> None:
    now, pauses = 0.0, []
    asked = one(court.close(now), Certify)
    for round_ in range(1, 9):
        wake = one(court.told(answer(asked, "nobody answers"), now), WakeAt)
        pauses.append(wake.when - now)
        now = wake.when
        for seller in court.sellers:
            court.offers(seller, now)
        again = some(court.buyer.woken("ask", court.task, round_, now), Ask)[0]
        asked = one([a for s in court.sellers for a in court.bids(s, again, now)], Certify)
    assert pauses == pytest.approx([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0])


def test_a_late_certificate_is_ignored(court: Court) -> None:
    asked = one(court.close(), Certify)
    court.told(answer(asked, "no answer"), 1.5)
    assert court.told(answer(asked), 1.6) == [], "the task waits"
    again = some(court.buyer.woken("ask", court.task, 1, 2.5), Ask)[0]
    assert court.told(answer(asked), 2.6) == [], "the task is being asked about"
    actions = [a for s in court.sellers for a in court.bids(s, again, 2.7)]
    assert court.told(answer(asked), 2.8) == [], "that of a round before"
    assert some(court.told(answer(one(actions, Certify)), 2.9), Award)
    court.got(court.sellers[0], Accepted(court.task, 2), 3.0)


def test_a_certificate_of_a_winner_before_is_not_pinned_to_the_next_ones_award(
    court: Court,
) -> None:
    """The ledger is public: a winner can decline before it is told, and share the fence."""
    first = one(court.close(), Certify)
    entry = Award(court.task, 1, first.entry, POLICY.ttl_ms)
    second = one(court.got(court.sellers[0], court.sellers[0].declined(entry), 0.1), Certify)
    assert second.fence == first.fence
    assert court.told(answer(first), 0.2) == []
    assert court.told(answer(first, "too few"), 0.2) == []
    award = one(court.told(answer(second), 0.3), Award)
    assert (award.entry, award.certificate) == (second.entry, certificate(second.entry))


def test_a_task_that_ended_meanwhile_needs_no_certificate(court: Court) -> None:
    asked = one(court.close(), Certify)
    court.buyer.told(CancelRequested(court.task), 0.1)
    assert court.record.state is State.CANCELLED
    assert court.told(answer(asked), 0.2) == []
    assert court.told(answer(asked, "too few"), 0.2) == []


def test_the_seller_of_an_uncertified_award_is_reminded_and_frees_its_money(court: Court) -> None:
    asked = one(court.close(), Certify)
    court.told(answer(asked, "no answer"), 1.5)
    assert court.buyer.kernel.head.pending > 0
    (reminder,) = some(court.buyer.woken("accounts", None, 0, 61.0), Award)
    assert (reminder.entry, reminder.certificate) == (asked.entry, b"")
    actions = court.got(court.sellers[0], court.sellers[0].declined(reminder), 61.1)
    assert some(actions, Settled)
    assert court.kinds == [Kind.ALLOC, Kind.VOID]
    assert court.buyer.kernel.head.pending == 0


# --- the seller's side ----------------------------------------------------------------------------


class Stall:
    """A seller that asks for certificates, and a buyer played by hand. Bids at 0 s."""

    def __init__(self, policy: Policy = STRICT) -> None:
        known = keyring()
        self.seller = Player(known, 0, policy)
        self.buyer = Buyer(known.create(1))
        self.strangers = [known.create(200 + number) for number in range(len(WITNESSES))]
        self.task = task_id(self.buyer.peer, b"key")
        self.seller.told(Started(), 0.0)
        self.offered = self.bid(0.0)

    def bid(self, now: float, **changes: object) -> Bid:
        return one(self.got(ask(self.task, **changes), now), Bid)

    def got(self, message: object, now: float) -> list[Action]:
        return self.seller.got(self.buyer.peer, message, now)  # type: ignore[arg-type]

    def declines(self, award: Award, now: float, reason: str) -> Declined:
        """That it takes nothing on, and lets the buyer free its money."""
        actions = self.got(award, now)
        assert not some(actions, Run)
        assert not some(actions, AppendEntry)
        assert not some(actions, Penalize)
        declined = one(actions, Declined)
        assert declined.reason.startswith(reason)
        settled = self.buyer.void(declined)
        check_entry(Entry.decode(settled.entry), self.seller.identity.verify)
        return declined


@pytest.fixture
def stall() -> Stall:
    return Stall()


def test_an_award_with_its_certificate_is_taken_on(stall: Stall) -> None:
    award = stall.buyer.award(stall.offered)
    actions = stall.got(evolve(award, certificate=certificate(award.entry)), 0.5)
    assert one(actions, Accepted).fence == 1
    assert one(actions, Run).buyer == stall.buyer.peer


def test_more_votes_than_are_needed_are_as_good(stall: Stall) -> None:
    award = stall.buyer.award(stall.offered)
    signed = evolve(award, certificate=certificate(award.entry, WITNESSES))
    assert some(stall.got(signed, 0.5), Accepted)


def test_an_award_without_a_certificate_is_declined(stall: Stall) -> None:
    stall.declines(stall.buyer.award(stall.offered), 0.5, "no certificate of this node's witnesses")


@pytest.mark.parametrize("garbage", [b"\x00", b"certificate", bytes(500)])
def test_an_award_with_garbage_for_a_certificate_is_declined(stall: Stall, garbage: bytes) -> None:
    award = evolve(stall.buyer.award(stall.offered), certificate=garbage)
    stall.declines(award, 0.5, "a bad certificate: ")


def test_a_certificate_with_too_few_votes_is_declined(stall: Stall) -> None:
    award = stall.buyer.award(stall.offered)
    few = certificate(award.entry, WITNESSES[: NEEDED - 1])
    stall.declines(evolve(award, certificate=few), 0.5, "a bad certificate: 2 votes where 3")


def test_a_certificate_with_a_forged_vote_is_declined(stall: Stall) -> None:
    award = stall.buyer.award(stall.offered)
    good = Certificate.decode(certificate(award.entry))
    (last, _), rest = good.votes[-1], good.votes[:-1]
    bad = evolve(good, votes=(*rest, (last, bytes(64)))).encode()
    stall.declines(evolve(award, certificate=bad), 0.5, "a bad certificate: a witness's signature")


def test_a_certificate_of_strangers_is_declined(stall: Stall) -> None:
    award = stall.buyer.award(stall.offered)
    theirs = certificate(award.entry, stall.strangers)
    stall.declines(evolve(award, certificate=theirs), 0.5, "a bad certificate: a witness that is")


def test_another_entrys_certificate_is_declined(stall: Stall) -> None:
    other = stall.buyer.award(stall.offered)
    award = stall.buyer.award(stall.offered)
    theirs = certificate(other.entry)
    stall.declines(evolve(award, certificate=theirs), 0.5, "a certificate of something else")


def test_who_was_declined_for_its_certificate_may_come_again_with_a_good_one(stall: Stall) -> None:
    award = stall.buyer.award(stall.offered)
    assert some(stall.got(award, 0.5), Declined)
    assert some(stall.got(evolve(award, certificate=certificate(award.entry)), 0.6), Accepted)


def test_a_hold_ends_however_good_the_certificate(stall: Stall) -> None:
    award = stall.buyer.award(stall.offered)
    stall.seller.woken("hold", stall.task, 1, 2.0)
    signed = evolve(award, certificate=certificate(award.entry))
    stall.declines(signed, 2.5, "the hold had ended")
    assert stall.seller.kernel.reserved() == NOTHING


def test_who_asks_for_no_certificate_takes_an_award_with_any() -> None:
    stall = Stall(POLICY)
    award = evolve(stall.buyer.award(stall.offered), certificate=b"of whomever they trust")
    assert some(stall.got(award, 0.5), Accepted)


# --- both -----------------------------------------------------------------------------------------


def test_what_a_buyer_gets_certified_its_seller_takes_on() -> None:
    court = [Keyring(1).create(100 + number) for number in range(4)]
    table = Table(2, policy=evolve(POLICY, witnesses=tuple(each.peer for each in court)))
    for number in range(4):
        table.keyring.create(100 + number)
    buyer, seller = table.players
    task = table.submit(buyer)
    (asked,) = [found for *_, actions in table.log for found in some(actions, Certify)]
    assert not table.runs, "nothing runs before the vote"
    found = certificate(asked.entry, court[:NEEDED])
    alloc = EntryId(Entry.decode(asked.entry).id)
    table.tell(buyer, Certified(task, 1, alloc, found, ""))
    table.run(0.1)
    assert table.executor(task) is seller
    table.finish(seller, task)
    assert buyer.task(task).state is State.DONE
