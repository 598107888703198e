"""A long run is signed for on the way; what nobody signs for stops, and is claimed."""

from __future__ import annotations

import pytest
from attrs import evolve
from market_players import POLICY, RESULT, SHOP, Buyer, G, Hall, Player, ask, one, some

from ledger.chain import check_entry
from ledger.keys import use_message
from ledger.model import KINDS_KNOWN, Entry, Kind, Terms
from mesh.ids import EntryId, TaskId, task_id
from mesh.market.slicing import slice_fuel
from mesh.market.terms import use_terms
from mesh.messages import Accepted, Award, Bid, Done, Revoked, Slice, Sliced
from mesh.notices import Hosted
from mesh.sansio import (
    Action,
    AppendEntry,
    CancelRequested,
    ContinueRun,
    PauseRun,
    Penalize,
    RunEnded,
    RunProgressed,
    Send,
    Started,
    StopRun,
    WakeAt,
    Woken,
)
from mesh.sim.keyring import Keyring

SLICED = evolve(POLICY, slice_at_least=2_000, slices=8)
"""Ten Gfuel at 1,000 µcr: a slice is two Gfuel."""
CLAIM_S = SLICED.claim_ms / 1000


class Stall:
    """One seller under test with a run of ten Gfuel, and its buyer, played by hand."""

    def __init__(self) -> None:
        keyring = Keyring(7)
        self.seller = Player(keyring, 0, SLICED, SHOP)
        self.buyer = Buyer(keyring.create(1))
        self.task: TaskId = task_id(self.buyer.peer, b"key")
        self.seller.told(Started(), 0.0)
        bid = one(self.got(ask(self.task), 0.0), Bid)
        self.award: Award = self.buyer.award(bid)
        one(self.got(self.award, 1.0), Accepted)

    def got(self, message: object, now: float) -> list[Action]:
        return self.seller.got(self.buyer.peer, message, now)  # type: ignore[arg-type]

    def burns(self, fuel: int, now: float) -> list[Action]:
        return self.seller.told(RunProgressed(self.task, 1, fuel), now)

    def signed(self, asked: Slice) -> Sliced:
        return self.buyer.use(asked)


@pytest.fixture
def stall() -> Stall:
    return Stall()


def test_a_slice_is_worth_enough_and_there_are_only_so_many() -> None:
    terms = Stall().award
    deal = Entry.decode(terms.entry).content.deal
    assert slice_fuel(deal, SLICED) == 2 * G
    assert slice_fuel(deal, evolve(SLICED, slices=2)) == 5 * G
    assert slice_fuel(evolve(deal, price=0), SLICED) > deal.fuel, "nothing is owed, nothing asked"


def test_half_a_slice_is_put_to_the_buyer_and_a_whole_one_stops_the_run(stall: Stall) -> None:
    assert some(stall.burns(G - 1, 2.0), Slice) == []
    asked = one(stall.burns(G, 3.0), Slice)
    assert Terms.decode(asked.terms).amount == 1_000, "without the fee: nobody knows of success"
    assert some(stall.burns(2 * G - 1, 4.0), PauseRun) == []
    actions = stall.burns(2 * G, 5.0)
    assert PauseRun(stall.task, 1) in actions
    assert one(actions, Hosted).what == "unsigned"
    assert some(stall.burns(2 * G, 6.0), PauseRun) == [], "once"


def test_a_signature_lets_it_go_on_and_is_kept(stall: Stall) -> None:
    asked = one(stall.burns(G, 2.0), Slice)
    stall.burns(2 * G, 3.0)
    actions = stall.got(stall.signed(asked), 4.0)
    assert ContinueRun(stall.task, 1) in actions
    assert one(actions, AppendEntry).is_own is False
    next_one = one(actions, Slice)
    assert Terms.decode(next_one.terms).fuel == 2 * G, "what came meanwhile is asked for at once"
    assert stall.got(stall.signed(asked), 5.0) == [], "the same signature once more"


def test_an_unanswered_slice_is_asked_for_with_every_renewal(stall: Stall) -> None:
    asked = one(stall.burns(G, 2.0), Slice)
    assert one(stall.seller.woken("renew", stall.task, 1, 6.0), Slice) == asked


def test_a_run_whose_lease_has_gone_does_not_go_on_for_a_signature(stall: Stall) -> None:
    asked = one(stall.burns(G, 2.0), Slice)
    stall.burns(2 * G, 3.0)
    stall.seller.woken("expire", stall.task, 1, 16.0)
    actions = stall.got(stall.signed(asked), 17.0)
    assert some(actions, ContinueRun) == []


def test_an_orphan_stops_at_its_slice_like_everybody(stall: Stall) -> None:
    stall.seller.woken("expire", stall.task, 1, 16.0)
    assert some(stall.seller.woken("orphan", stall.task, 1, 46.0), ContinueRun)
    assert PauseRun(stall.task, 1) in stall.burns(2 * G, 50.0)


def test_what_stays_unsigned_is_given_up_billed_and_claimed_once(stall: Stall) -> None:
    stall.burns(2 * G, 2.0)
    actions = stall.seller.woken("claim", stall.task, 1, 2.0 + CLAIM_S)
    assert StopRun(stall.task, 1) in actions
    assert one(actions, Done).result.fuel == 2 * G
    claim = Entry.decode(next(a.entry for a in some(actions, AppendEntry) if a.is_own)).content
    assert (claim.kind, claim.author, claim.peer) == (
        Kind.CLAIM, stall.seller.peer, stall.buyer.peer,
    )  # fmt: skip
    assert claim.deal.amount == 2_000
    assert some(stall.seller.woken("claim", stall.task, 1, 9_999.0), AppendEntry) == []
    assert stall.seller.kernel.reserved().cpu_milli == 0


def test_a_bill_that_nobody_pays_is_claimed_and_not_again_after_a_restart(stall: Stall) -> None:
    stall.seller.told(RunEnded(stall.task, 1, RESULT), 2.0)
    assert stall.seller.woken("claim", stall.task, 1, 3.0) == [], "too early"
    one(stall.seller.woken("claim", stall.task, 1, 2.0 + CLAIM_S), AppendEntry)
    stall.seller.boot()
    restarted = stall.seller.told(Started(), 700.0)
    timers = [a.event for a in some(restarted, WakeAt) if a.event.timer == "claim"]
    assert timers == [Woken("claim", stall.task, 1)]
    assert stall.seller.woken("claim", stall.task, 1, 9_999.0) == []


def test_a_claim_waits_for_a_chain_that_is_not_confirmed(stall: Stall) -> None:
    stall.seller.told(RunEnded(stall.task, 1, RESULT), 2.0)
    stall.seller.boot(is_confirmed=False)
    stall.seller.told(Started(), 3.0)
    actions = stall.seller.woken("claim", stall.task, 1, 3.0 + CLAIM_S)
    assert some(actions, AppendEntry) == []
    assert some(actions, WakeAt), "later"


def test_a_payment_goes_before_a_claim(stall: Stall) -> None:
    done = one(stall.seller.told(RunEnded(stall.task, 1, RESULT), 2.0), Done)
    stall.seller.woken("claim", stall.task, 1, 2.0 + CLAIM_S)
    stall.got(stall.buyer.settle(done), 700.0)
    assert stall.seller.kernel.credit.exposure(stall.buyer.peer) == 7_100


@pytest.mark.parametrize("what", ["another seller's", "not a USE", "garbage"])
def test_what_is_no_signature_for_this_run_is_the_buyers_fault(stall: Stall, what: str) -> None:
    asked = one(stall.burns(G, 2.0), Slice)
    entry = {
        "garbage": b"\xc1",
        "not a USE": stall.award.entry,
        "another seller's": Stall().signed(asked).entry[:-1] + b"\0",
    }[what]
    assert some(stall.got(Sliced(stall.task, 1, entry), 3.0), Penalize)


# --- the buyer's side -----------------------------------------------------------------------------


def hall() -> tuple[Hall, Award]:
    """A buyer under test whose task runs at a seller that is played by hand."""
    table = Hall(1, SLICED)
    return table, table.running()


def test_a_buyer_signs_for_a_slice_and_gives_the_same_signature_again() -> None:
    table, award = hall()
    (seller,) = table.sellers
    actions = table.got(seller, seller.slice(award, G), 1.0)
    sliced = one(actions, Sliced)
    entry = Entry.decode(sliced.entry)
    body = check_entry(entry, table.buyer.identity.verify, KINDS_KNOWN)
    assert (body.kind, body.deal.fuel, body.posted) == (Kind.USE, G, 0)
    again = table.got(seller, seller.slice(award, G), 2.0)
    assert again == [Send(seller.peer, sliced)]
    late = table.got(seller, seller.slice(award, G - 1), 3.0)
    assert late == [Send(seller.peer, sliced)], "an older one, overtaken: nobody's fault"


def test_a_buyer_that_restarts_does_not_sign_for_less_than_before() -> None:
    table, award = hall()
    (seller,) = table.sellers
    sliced = one(table.got(seller, seller.slice(award, 2 * G), 1.0), Sliced)
    table.buyer.boot()
    table.buyer.told(Started(), 2.0)
    assert table.got(seller, seller.slice(award, G), 3.0) == [Send(seller.peer, sliced)]


def test_a_slice_of_what_is_not_running_is_revoked() -> None:
    table, award = hall()
    (seller,) = table.sellers
    table.buyer.told(CancelRequested(table.task), 1.0)
    assert one(table.got(seller, seller.slice(award, G), 2.0), Revoked).is_owed


@pytest.mark.parametrize("change", [{"amount": 1}, {"fee": 7}, {"exit": 1}, {"fuel": 11 * G}])
def test_a_slice_on_other_terms_is_the_sellers_fault(change: dict[str, int]) -> None:
    table, award = hall()
    (seller,) = table.sellers
    entry = Entry.decode(award.entry)
    terms = evolve(use_terms(entry.content.deal, EntryId(entry.id), G, 0), **change)
    data = terms.encode()
    asked = Slice(award.task, 1, data, seller.identity.sign(use_message(data)))
    assert some(table.got(seller, asked, 1.0), Penalize)


def test_a_slice_that_the_seller_did_not_sign_is_its_fault() -> None:
    table, award = hall()
    (seller,) = table.sellers
    asked = evolve(seller.slice(award, G), signature=bytes(64))
    assert some(table.got(seller, asked, 1.0), Penalize)


def test_while_the_chain_is_unconfirmed_nothing_is_signed_and_nothing_is_revoked() -> None:
    table, award = hall()
    (seller,) = table.sellers
    table.buyer.boot(is_confirmed=False)
    table.buyer.told(Started(), 1.0)
    assert table.got(seller, seller.slice(award, G), 2.0) == []
    assert some(table.got(seller, seller.done(award), 3.0), Send) == []
