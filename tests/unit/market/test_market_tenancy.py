"""The executor's side: holds end by themselves, leases end before the grantor thinks so, and every
run is answered for until its account is closed."""

from __future__ import annotations

import pytest
from attrs import evolve
from market_players import (
    NEEDS,
    POLICY,
    RESULT,
    SHOP,
    WORK,
    Buyer,
    G,
    Player,
    ask,
    cid,
    one,
    some,
)

from ledger import chain
from ledger.keys import entry_message, terms_message
from ledger.model import Entry, Kind, Terms
from mesh.ids import TaskId, task_id
from mesh.market.terms import CANCELLED, settle_terms
from mesh.messages import (
    Accepted,
    Award,
    Bid,
    Declined,
    Done,
    Lost,
    Refusal,
    Release,
    Renew,
    Renewed,
    Revoked,
    Settled,
)
from mesh.notices import Hosted
from mesh.resources.capacity import NOTHING, Capacity
from mesh.sansio import (
    Action,
    AppendEntry,
    ContinueRun,
    ForgetTenancy,
    LoadSampled,
    PauseRun,
    Penalize,
    PersistTenancy,
    Run,
    RunEnded,
    RunLost,
    RunProgressed,
    Send,
    Started,
    StopRun,
    WakeAt,
    Woken,
)
from mesh.sim.keyring import Keyring

TTL_S = POLICY.ttl_ms / 1000


class Stall:
    """One seller under test, and buyers played by hand. Bids at 0 s, awards at 1 s."""

    def __init__(self, **changes: object) -> None:
        self.keyring = Keyring(7)
        self.seller = Player(self.keyring, 0, shop=evolve(SHOP, **changes))  # type: ignore[arg-type]
        self.buyer, self.other = (Buyer(self.keyring.create(index)) for index in (1, 2))
        self.task = task_id(self.buyer.peer, b"key")
        self.seller.told(Started(), 0.0)

    def got(self, message: object, now: float, buyer: Buyer | None = None) -> list[Action]:
        return self.seller.got((buyer or self.buyer).peer, message, now)  # type: ignore[arg-type]

    def bid(self, now: float = 0.0, **changes: object) -> Bid:
        return one(self.got(ask(self.task, **changes), now), Bid)

    def win(self, now: float = 1.0) -> Award:
        """Bid and be awarded."""
        award = self.buyer.award(self.bid(now - 1.0))
        one(self.got(award, now), Accepted)
        return award

    def renewals(self, actions: list[Action]) -> list[float]:
        return [
            action.when
            for action in some(actions, WakeAt)
            if isinstance(action.event, Woken) and action.event.timer == "renew"
        ]

    def renew(self, now: float) -> Renew:
        return one(self.seller.woken("renew", self.task, 1, now), Renew)

    @property
    def is_held(self) -> bool:
        return (self.task, 1) in self.seller.kernel.leases()


@pytest.fixture
def stall() -> Stall:
    return Stall()


# --- holds ----------------------------------------------------------------------------------------


def test_a_bid_holds_the_capacity_and_the_hold_ends_by_itself(stall: Stall) -> None:
    actions = stall.got(ask(stall.task), 5.0)
    assert WakeAt(5.0 + POLICY.hold_ms / 1000, Woken("hold", stall.task, 1)) in actions
    assert stall.seller.kernel.reserved() == NEEDS
    stall.seller.woken("hold", stall.task, 1, 7.0)
    assert stall.seller.kernel.reserved() == NOTHING
    assert stall.seller.kernel.statistics()["holds_lapsed"] == 1


def test_an_ask_repeated_gets_the_same_bid(stall: Stall) -> None:
    assert stall.bid(0.0) == stall.bid(0.5)
    assert stall.seller.kernel.reserved() == NEEDS


def test_an_ask_changed_gets_a_bid_of_its_own(stall: Stall) -> None:
    # A restarted auctioneer asks the same round again, with less time left.
    first, second = stall.bid(0.0), stall.bid(0.5, deadline_ms=500_000)
    assert first.terms != second.terms
    assert Terms.decode(second.terms).deadline_ms - Terms.decode(second.terms).start_ms == 500_000
    assert stall.seller.kernel.reserved() == NEEDS


def test_a_later_round_may_use_what_the_earlier_one_held() -> None:
    stall = Stall(sold=NEEDS)
    stall.bid(0.0)
    assert stall.bid(1.2, round=2).round == 2
    assert stall.seller.kernel.reserved() == NEEDS


def test_an_earlier_round_is_refused_once_a_later_one_is_held(stall: Stall) -> None:
    stall.bid(0.0, round=2)
    assert one(stall.got(ask(stall.task), 0.1), Refusal).may_change


def test_the_hold_of_an_earlier_round_does_not_end_the_later_one(stall: Stall) -> None:
    stall.bid(0.0)
    stall.bid(1.0, round=2)
    stall.seller.woken("hold", stall.task, 1, 2.0)
    assert stall.seller.kernel.reserved() == NEEDS


def test_losing_frees_the_capacity_but_only_for_whom_it_was_held(stall: Stall) -> None:
    stall.bid(0.0)
    stall.got(Release(stall.task, 1, "lost"), 0.1, stall.other)
    stall.got(Release(stall.task, 2, "lost"), 0.1)
    assert stall.seller.kernel.reserved() == NEEDS
    stall.got(Release(stall.task, 1, "lost"), 0.2)
    assert stall.seller.kernel.reserved() == NOTHING


def test_no_more_is_held_than_is_sold(stall: Stall) -> None:
    bids = [
        some(stall.got(ask(TaskId(bytes([number] * 16))), 0.0), Bid | Refusal)  # type: ignore[arg-type]
        for number in range(3)
    ]
    assert [type(answer) for (answer,) in bids] == [Bid, Bid, Refusal]
    assert bids[2][0].may_change  # type: ignore[attr-defined]


def test_what_the_owner_needs_is_not_for_sale(stall: Stall) -> None:
    stall.seller.told(LoadSampled(cpu_milli=3_500, memory=0), 0.0)  # 2,000 are his own
    assert "cpu" in one(stall.got(ask(stall.task), 0.1), Refusal).reason


def test_what_one_hold_frees_does_not_count_against_the_owner(stall: Stall) -> None:
    stall.bid(0.0)
    stall.seller.told(LoadSampled(cpu_milli=3_500, memory=0), 0.5)
    assert "cpu" in one(stall.got(ask(stall.task, round=2), 1.0), Refusal).reason


@pytest.mark.parametrize(
    "changes",
    [
        {"ttl_ms": 0},
        {"ttl_ms": 999},
        {"ttl_ms": 2**40},
        {"deadline_ms": 2**50},
        {"fee": 20_001},
        {"work": evolve(WORK, fuel=2**62 + 1)},
        {"work": evolve(WORK, wall_ms=2**50)},
        {"work": evolve(WORK, needs=evolve(NEEDS, slots=0))},
        {"work": evolve(WORK, needs=evolve(NEEDS, cpu_milli=0))},
        {"work": evolve(WORK, inputs=tuple(cid(str(number)) for number in range(49)))},
    ],
)
def test_an_ask_that_nobody_could_mean_is_its_senders_fault(
    stall: Stall, changes: dict[str, object]
) -> None:
    actions = stall.got(ask(stall.task, **changes), 0.0)
    assert one(actions, Penalize).peer == stall.buyer.peer
    assert stall.seller.kernel.reserved() == NOTHING


def test_too_many_open_bids_are_refused() -> None:
    stall = Stall(sold=Capacity(10**9, 10**18, 10**18, 10**6), machine=Capacity(10**9, 10**18))
    answers = [
        one(stall.got(ask(task_id(stall.buyer.peer, str(number).encode())), 0.0), Send).message
        for number in range(POLICY.holds_max + 1)
    ]
    assert [type(answer) for answer in answers[-2:]] == [Bid, Refusal]
    assert answers[-1].reason == "too many open bids"  # type: ignore[union-attr]


# --- awards ---------------------------------------------------------------------------------------


def test_an_award_within_the_hold_is_run(stall: Stall) -> None:
    award = stall.buyer.award(stall.bid(0.0))
    actions = stall.got(award, 1.0)
    kinds = [type(action) for action in actions]
    assert kinds.index(AppendEntry) < kinds.index(Send), "durable before it is said"
    assert kinds.index(PersistTenancy) < kinds.index(Send)
    assert one(actions, Run) == Run(stall.task, 1, stall.buyer.peer, WORK)
    assert stall.is_held
    assert stall.seller.kernel.hosted() == 1
    assert stall.seller.kernel.reserved() == NEEDS


def test_a_late_award_is_declined_whatever_is_free(stall: Stall) -> None:
    award = stall.buyer.award(stall.bid(0.0))
    stall.seller.woken("hold", stall.task, 1, 2.0)
    actions = stall.got(award, 2.1)
    declined = one(actions, Declined)
    assert not some(actions, Run)
    body = Entry.decode(stall.buyer.void(declined).entry).content
    assert (body.kind, body.deal.amount) == (Kind.VOID, 0)


def test_a_declined_fence_is_never_accepted_afterwards(stall: Stall) -> None:
    award = stall.buyer.award(stall.bid(0.0))
    stall.seller.woken("hold", stall.task, 1, 2.0)
    one(stall.got(award, 2.1), Declined)
    stall.bid(2.2)  # the ask, come again by a slow road
    one(stall.got(award, 2.3), Declined)


def test_a_duplicate_award_is_accepted_once_more_and_run_once(stall: Stall) -> None:
    award = stall.win()
    actions = stall.got(award, 2.0)
    assert [type(action.message) for action in some(actions, Send)] == [Accepted]
    assert not some(actions, Run)
    assert len(stall.seller.received) == 1


def test_an_award_come_again_after_the_end_brings_nothing_back(stall: Stall) -> None:
    award = stall.win()
    lost = one(stall.seller.told(RunLost(stall.task, 1, "killed"), 3.0), Lost)
    assert one(stall.got(award, 3.5), Lost) == lost, "its buyer may have restarted, and asks"
    stall.got(stall.buyer.void(lost), 4.0)
    one(stall.got(award, 5.0), Declined)


def test_the_lease_counts_from_the_bid(stall: Stall) -> None:
    award = stall.buyer.award(stall.bid(0.0))
    actions = stall.got(award, 1.5)
    assert WakeAt(TTL_S, Woken("expire", stall.task, 1)) in actions
    assert stall.renewals(actions) == [1.5 + TTL_S / 3]


@pytest.mark.parametrize("ttl_ms", [0, 1, 999])
def test_an_award_for_no_time_at_all_is_its_senders_fault(stall: Stall, ttl_ms: int) -> None:
    # It would be renewed without a pause for ever.
    actions = stall.got(stall.buyer.award(stall.bid(0.0), ttl_ms=ttl_ms), 1.0)
    assert some(actions, Penalize)
    assert not some(actions, Run)


def test_an_award_grants_no_longer_than_was_asked(stall: Stall) -> None:
    actions = stall.got(stall.buyer.award(stall.bid(0.0), ttl_ms=10**9), 1.0)
    assert WakeAt(TTL_S, Woken("expire", stall.task, 1)) in actions


def test_an_award_on_a_chain_of_another_network_is_no_award(stall: Stall) -> None:
    abroad = Buyer(stall.buyer.identity, b"abroad!!")
    assert some(stall.got(abroad.award(stall.bid(0.0)), 0.5), Penalize)
    assert not stall.is_held


def test_an_award_must_be_the_buyers_for_our_bid(stall: Stall) -> None:
    bid = stall.bid(0.0)
    good = stall.buyer.award(bid)
    entry = Entry.decode(good.entry)
    forged = evolve(good, entry=evolve(entry, sig=bytes(64)).encode())
    for bad in (forged, evolve(good, entry=b"\xc1"), evolve(good, fence=2)):
        assert some(stall.got(bad, 0.5), Penalize)
    assert one(stall.got(good, 0.5, stall.other), Penalize).peer == stall.other.peer
    one(stall.got(good, 1.0), Accepted)


def test_a_bid_altered_is_declined(stall: Stall) -> None:
    bid = stall.bid(0.0)
    # An older bid of ours for the same fence, at other terms, is none that we hold.
    cheaper = evolve(Terms.decode(bid.terms), start_ms=1).encode()
    sign = stall.seller.identity.sign
    other = evolve(bid, terms=cheaper, signature=sign(terms_message(cheaper)))
    one(stall.got(stall.buyer.award(other), 1.0), Declined)


# --- the lease ------------------------------------------------------------------------------------


def test_a_renewal_extends_from_the_moment_it_was_asked_for(stall: Stall) -> None:
    stall.win()
    renew = stall.renew(6.0)
    actions = stall.got(Renewed(stall.task, 1, renew.seq, POLICY.ttl_ms), 9.0)
    assert WakeAt(6.0 + TTL_S, Woken("expire", stall.task, 1)) in actions
    stall.seller.woken("expire", stall.task, 1, TTL_S)
    assert stall.is_held, "the first expiry has moved on"


def test_a_renewal_says_how_far_it_is(stall: Stall) -> None:
    stall.win()
    stall.seller.told(RunProgressed(stall.task, 1, 3 * G), 2.0)
    stall.seller.told(RunProgressed(stall.task, 1, 2 * G), 2.1)
    assert stall.renew(6.0).fuel == 3 * G
    stall.seller.told(RunProgressed(stall.task, 1, 99 * G), 7.0)
    assert stall.renew(11.0).fuel == WORK.fuel


def test_only_an_answer_to_a_question_extends(stall: Stall) -> None:
    stall.win()
    renew = stall.renew(6.0)
    answer = Renewed(stall.task, 1, renew.seq, POLICY.ttl_ms)
    for wrong in (evolve(answer, seq=99), evolve(answer, fence=2)):
        assert stall.got(wrong, 6.1) == []
    assert stall.got(answer, 6.1, stall.other) == []
    assert stall.got(answer, 6.2) != []
    assert stall.got(answer, 6.3) == [], "the same answer twice"


def test_at_expiry_the_run_is_paused_and_it_still_asks(stall: Stall) -> None:
    stall.win()
    actions = stall.seller.woken("expire", stall.task, 1, TTL_S)
    one(actions, PauseRun)
    assert not stall.is_held
    assert stall.seller.kernel.reserved() == NEEDS
    renew = stall.renew(16.0)
    actions = stall.got(Renewed(stall.task, 1, renew.seq, POLICY.ttl_ms), 16.1)
    one(actions, ContinueRun)
    assert stall.is_held


def test_an_answer_that_comes_after_the_time_it_grants_extends_nothing(stall: Stall) -> None:
    stall.win()
    renew = stall.renew(6.0)
    stall.seller.woken("expire", stall.task, 1, TTL_S)
    assert stall.got(Renewed(stall.task, 1, renew.seq, POLICY.ttl_ms), 6.0 + TTL_S) == []
    assert not stall.is_held


def test_questions_without_answers_are_bounded(stall: Stall) -> None:
    stall.win()
    first = stall.renew(6.0)
    for number in range(8):
        stall.renew(6.1 + number / 10)
    assert stall.got(Renewed(stall.task, 1, first.seq, POLICY.ttl_ms), 7.0) == []


def test_an_orphan_is_finished_without_its_grantor(stall: Stall) -> None:
    stall.win()
    actions = stall.seller.woken("expire", stall.task, 1, TTL_S)
    due = TTL_S + POLICY.orphan_ms / 1000
    assert WakeAt(due, Woken("orphan", stall.task, 1)) in actions
    actions = stall.seller.woken("orphan", stall.task, 1, due)
    one(actions, ContinueRun)
    assert one(actions, Hosted).what == "orphaned"
    assert not stall.is_held
    done = one(stall.seller.told(RunEnded(stall.task, 1, RESULT), 60.0), Done)
    settled = stall.buyer.settle(done)
    stall.got(settled, 99.0)
    assert Entry.decode(settled.entry) in stall.seller.received


def test_an_old_orphan_timer_does_not_shorten_a_new_silence(stall: Stall) -> None:
    stall.win()
    stall.seller.woken("expire", stall.task, 1, TTL_S)  # orphaned at 45 s, were it not renewed
    renew = stall.renew(20.0)
    stall.got(Renewed(stall.task, 1, renew.seq, POLICY.ttl_ms), 20.1)
    again = stall.seller.woken("expire", stall.task, 1, 35.0)
    one(again, PauseRun)
    assert stall.seller.woken("orphan", stall.task, 1, 45.0) == [], "silent for ten seconds only"
    one(stall.seller.woken("orphan", stall.task, 1, 65.0), ContinueRun)


# --- revoked --------------------------------------------------------------------------------------


def test_revoked_and_not_owed_claims_nothing(stall: Stall) -> None:
    stall.win()
    actions = stall.got(Revoked(stall.task, 1, "superseded", is_owed=False), 5.0)
    one(actions, StopRun)
    lost = one(actions, Lost)
    assert Terms.decode(lost.void_terms).amount == 0
    assert stall.seller.kernel.reserved() == NOTHING
    assert not stall.is_held
    assert stall.seller.tenancies[stall.task, 1].answer, "durable until it is closed"
    stall.got(stall.buyer.void(lost), 6.0)
    assert stall.seller.tenancies == {}


def test_revoked_and_owed_bills_what_was_burnt(stall: Stall) -> None:
    stall.win()
    stall.seller.told(RunProgressed(stall.task, 1, 3 * G), 4.0)
    actions = stall.got(Revoked(stall.task, 1, "the task is cancelled", is_owed=True), 5.0)
    one(actions, StopRun)
    done = one(actions, Done)
    assert (done.result.status, done.result.fuel) == (CANCELLED, 3 * G)
    assert Terms.decode(done.terms).amount == 3_000, "without the fee: it did not succeed"
    stall.got(stall.buyer.settle(done), 6.0)
    assert stall.seller.tenancies == {}


def test_revoked_after_the_end_and_owed_bills_the_fuel_without_the_fee(stall: Stall) -> None:
    stall.win()
    done = one(stall.seller.told(RunEnded(stall.task, 1, RESULT), 5.0), Done)
    bill = one(stall.got(Revoked(stall.task, 1, "cancelled", is_owed=True), 6.0), Done)
    assert (bill.result.status, bill.result.fuel) == ("cancelled", done.result.fuel)
    assert Terms.decode(bill.terms).amount == 7_000
    again = stall.got(Revoked(stall.task, 1, "cancelled", is_owed=True), 7.0)
    assert one(again, Done) == bill


def test_revoked_by_another_is_nothing(stall: Stall) -> None:
    stall.win()
    assert stall.got(Revoked(stall.task, 1, "stop", is_owed=False), 5.0, stall.other) == []
    assert stall.is_held


# --- the end --------------------------------------------------------------------------------------


def test_a_run_that_ended_is_billed_and_its_capacity_is_free(stall: Stall) -> None:
    stall.win()
    actions = stall.seller.told(RunEnded(stall.task, 1, RESULT), 10.0)
    kinds = [type(action) for action in actions]
    assert kinds.index(PersistTenancy) < kinds.index(Send), "durable before it is said"
    done = one(actions, Done)
    assert Terms.decode(done.terms).amount == 7_000 + 100
    assert stall.seller.kernel.reserved() == NOTHING
    assert stall.seller.kernel.hosted() == 0
    assert stall.seller.woken("renew", stall.task, 1, 11.0) == []


def test_a_bill_is_never_above_what_was_awarded(stall: Stall) -> None:
    stall.win()
    much = evolve(RESULT, fuel=99 * G)
    done = one(stall.seller.told(RunEnded(stall.task, 1, much), 10.0), Done)
    assert done.result.fuel == WORK.fuel
    stall.buyer.settle(done)


def test_an_end_is_told_once(stall: Stall) -> None:
    stall.win()
    stall.seller.told(RunEnded(stall.task, 1, RESULT), 10.0)
    assert stall.seller.told(RunEnded(stall.task, 1, RESULT), 11.0) == []
    assert stall.seller.told(RunLost(stall.task, 1, "killed"), 11.0) == []
    assert stall.seller.told(RunEnded(stall.task, 9, RESULT), 11.0) == []


def test_an_answer_is_repeated_ever_more_slowly_until_it_is_settled(stall: Stall) -> None:
    stall.win()
    actions = stall.seller.told(RunEnded(stall.task, 1, RESULT), 10.0)
    done, waits, now = one(actions, Done), [], 10.0
    for _ in range(8):
        (when,) = [
            action.when
            for action in some(actions, WakeAt)
            if isinstance(action.event, Woken) and action.event.timer == "answer"
        ]
        waits.append(when - now)
        now = when
        actions = stall.seller.woken("answer", stall.task, 1, now)
        assert one(actions, Done) == done
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert stall.seller.woken("answer", stall.task, 1, now + 0.1) == [], "not before it is due"
    stall.got(stall.buyer.settle(done), now + 1)
    assert stall.seller.woken("answer", stall.task, 1, now + 60) == []


def test_what_settles_is_kept_and_the_tenancy_forgotten(stall: Stall) -> None:
    stall.win()
    done = one(stall.seller.told(RunEnded(stall.task, 1, RESULT), 10.0), Done)
    settled = stall.buyer.settle(done)
    actions = stall.got(settled, 11.0)
    assert one(actions, AppendEntry) == AppendEntry(settled.entry, is_own=False)
    assert one(actions, ForgetTenancy) == ForgetTenancy(stall.task, 1)
    assert stall.got(settled, 12.0) == []
    assert not stall.is_held


def test_a_closing_before_any_answer_of_ours_closes_nothing(stall: Stall) -> None:
    award = stall.win()
    entry = Entry.decode(award.entry)
    assert stall.got(Settled(stall.task, 1, entry.encode()), 5.0) == []
    assert stall.is_held


def test_a_closing_must_be_signed_by_the_buyer_for_our_award(stall: Stall) -> None:
    stall.win()
    done = one(stall.seller.told(RunEnded(stall.task, 1, RESULT), 10.0), Done)
    good = stall.buyer.settle(done)
    entry = Entry.decode(good.entry)
    alloc = next(iter(stall.buyer.allocs.values()))
    for bad in (b"", alloc.encode(), evolve(entry, sig=bytes(64)).encode()):
        assert some(stall.got(evolve(good, entry=bad), 11.0), Penalize)
    assert stall.seller.tenancies, "still waiting"
    stall.got(good, 12.0)
    assert not stall.seller.tenancies


def test_a_closing_that_somebody_else_signed_for_us_closes_nothing(stall: Stall) -> None:
    # A buyer and its accomplice settle our award between themselves, for nothing.
    stall.win()
    done = one(stall.seller.told(RunEnded(stall.task, 1, RESULT), 10.0), Done)
    (alloc,) = stall.buyer.allocs.values()
    accomplice = stall.keyring.create(3)
    cheap = evolve(
        settle_terms(alloc.content.deal, alloc.id, evolve(RESULT, fuel=0, exit_code=1), 0),  # type: ignore[arg-type]
        seller=accomplice.peer,
    ).encode()
    body = evolve(
        Entry.decode(stall.buyer.settle(done).entry).content,
        peer=accomplice.peer,
        terms=cheap,
        peer_sig=accomplice.sign(terms_message(cheap)),
    )
    data = body.encode()
    entry = Entry(data, stall.buyer.identity.sign(entry_message(body.id)))
    chain.check_entry(entry, stall.keyring.verify)
    actions = stall.got(Settled(stall.task, 1, entry.encode()), 11.0)
    assert some(actions, Penalize)
    assert stall.seller.tenancies, "not paid yet"


# --- restarts -------------------------------------------------------------------------------------


def test_a_restart_gives_up_what_ran(stall: Stall) -> None:
    stall.win()
    stall.seller.boot()
    assert stall.seller.kernel.reserved() == NOTHING
    assert stall.seller.kernel.leases() == ()
    lost = one(stall.seller.told(Started(), 20.0), Lost)
    assert lost.reason == "the node restarted"
    stall.got(stall.buyer.void(lost), 21.0)
    assert not stall.seller.tenancies


def test_a_restart_answers_what_had_ended_with_the_stored_bill(stall: Stall) -> None:
    stall.win()
    done = one(stall.seller.told(RunEnded(stall.task, 1, RESULT), 10.0), Done)
    stall.seller.boot()
    assert one(stall.seller.told(Started(), 20.0), Done) == done
    stall.got(stall.buyer.settle(done), 21.0)
    assert not stall.seller.tenancies


def test_a_task_unsettled_is_not_bid_for_again(stall: Stall) -> None:
    stall.win()
    stall.seller.told(RunLost(stall.task, 1, "killed"), 3.0)
    refusal = one(stall.got(ask(stall.task, round=2), 4.0), Refusal)
    assert refusal.may_change


# --- what it learns -------------------------------------------------------------------------------


def test_a_long_run_corrects_the_measured_speed(stall: Stall) -> None:
    first = stall.bid(0.0).finish_ms.q90
    stall.got(stall.buyer.award(stall.bid(0.0)), 1.0)
    slow = evolve(RESULT, fuel=G, run_ms=10_000)  # a fifth of what was claimed
    done = one(stall.seller.told(RunEnded(stall.task, 1, slow), 11.0), Done)
    stall.got(stall.buyer.settle(done), 11.5)
    assert stall.bid(12.0, round=2).finish_ms.q90 > first


def test_a_module_that_ran_here_starts_sooner(stall: Stall) -> None:
    stall.win()
    done = one(stall.seller.told(RunEnded(stall.task, 1, evolve(RESULT, run_ms=1)), 11.0), Done)
    stall.got(stall.buyer.settle(done), 11.5)
    bid = stall.bid(12.0, round=2)
    assert bid.cached == 1


def test_modules_remembered_are_bounded() -> None:
    stall = Stall(sold=Capacity(10**6, 10**15, 10**15, 1_000), machine=Capacity(10**6, 10**15))
    for number in range(70):
        stall.task = task_id(stall.buyer.peer, str(number).encode())
        work = evolve(WORK, module=cid(f"module {number}"))
        stall.got(stall.buyer.award(stall.bid(0.0, work=work)), 1.0)
        done = one(stall.seller.told(RunEnded(stall.task, 1, RESULT), 1.0), Done)
        stall.got(stall.buyer.settle(done), 1.0)
    assert stall.seller.kernel.sizes()["modules"] == (64, 64)


def test_buyers_who_never_settle_fill_a_bounded_table() -> None:
    sold = Capacity(10**6, 10**15, 10**15, 1_000)
    stall = Stall(sold=sold, machine=sold)
    for number in range(POLICY.tenancies_max):
        stall.task = task_id(stall.buyer.peer, str(number).encode())
        stall.win()
        stall.seller.told(RunEnded(stall.task, 1, RESULT), 1.0)
    refusal = one(stall.got(ask(task_id(stall.buyer.peer, b"one more")), 2.0), Refusal)
    assert refusal.reason == "too many unsettled tasks"
