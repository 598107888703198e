"""Terms: what a peer signs is what it should have signed, in every field."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from attrs import evolve
from market_players import NET, POLICY, RESULT, WALL_MS, WORK, Buyer, G, Seller, ask, cid

from ledger.keys import terms_message
from ledger.model import Entry, Kind, Terms
from mesh.errors import PeerError
from mesh.ids import EntryId, TaskId, task_id
from mesh.market.accounts import Accounts
from mesh.market.own_chain import OwnChain, Past, read_past
from mesh.market.policy import Policy
from mesh.market.terms import (
    CANCELLED,
    alloc_terms,
    check_bid,
    check_settle,
    check_void,
    settle_terms,
    void_terms,
)
from mesh.messages import Bid, Lost
from mesh.sim.keyring import Keyring

KEYRING = Keyring(5)
SELLER, BUYER = Seller(KEYRING.create(1)), Buyer(KEYRING.create(2))
TASK = task_id(BUYER.peer, b"key")
ASK = ask(TASK)
ALLOC = alloc_terms(
    ASK, seller=SELLER.peer, buyer=BUYER.peer, price=1_000, wall_ms=WALL_MS, grace_ms=30_000
)
ALLOC_ID = EntryId(bytes(31) + b"\1")
OTHER: dict[str, Any] = {
    "version": 2,
    "nonce": bytes(16),
    "fence": 2,
    "seller": bytes(32),
    "buyer": bytes(32),
    "job": cid("another job"),
    "module": cid("another module"),
    "inputs": (),
    "outputs": (cid("output"),),
    "meter": "clock",
    "unit": "uC/s",
    "price": 999,
    "fee": 101,
    "reserve": 10_101,
    "fuel": 9 * G,
    "amount": 1,
    "exit": 7,
    "escalations": ((1, 2, 3, 4),),
    "migrations": ((1, bytes(32), bytes(32), cid("state")),),
    "start_ms": WALL_MS - 1,
    "end_ms": WALL_MS + 99,
    "deadline_ms": WALL_MS,
    "grace_ms": 1,
    "arbiter": bytes(32),
    "ref": bytes(32),
}
"""Another value of each field of the terms."""


def signed(terms: Terms) -> Bid:
    data = terms.encode()
    bid = SELLER.bid(BUYER.peer, ASK)
    return evolve(bid, terms=data, signature=SELLER.identity.sign(terms_message(data)))


def check(bid: Bid) -> Terms:
    return check_bid(bid, ASK, seller=SELLER.peer, buyer=BUYER.peer, verify=KEYRING.verify)


def test_every_field_is_tried() -> None:
    assert list(OTHER) == [field.name for field in attrs.fields(Terms)]


def test_the_terms_of_a_bid_are_those_of_the_ask() -> None:
    assert check(signed(ALLOC)) == ALLOC
    assert ALLOC.reserve == 10_100
    dearer = evolve(ALLOC, price=1_990, reserve=20_000)
    assert check(signed(dearer)).price == 1_990, "the price is the bidder's"
    later = evolve(
        ALLOC, start_ms=WALL_MS + 5, end_ms=WALL_MS + 5, deadline_ms=ALLOC.deadline_ms + 5
    )
    assert check(signed(later)), "and so is its clock"


@pytest.mark.parametrize("field", OTHER)
def test_a_bid_with_another_field_is_refused(field: str) -> None:
    tampered = signed(evolve(ALLOC, **{field: OTHER[field]}))
    if field == "grace_ms":
        check(tampered)  # the bidder's own promise
        return
    with pytest.raises(PeerError):
        check(tampered)


def test_a_bid_above_the_ceiling_is_refused() -> None:
    with pytest.raises(PeerError, match="above the ceiling"):
        check(signed(evolve(ALLOC, price=1_991, reserve=20_010)))


def test_a_bid_of_another_is_refused() -> None:
    bid = signed(ALLOC)
    with pytest.raises(PeerError):
        check_bid(bid, ASK, seller=BUYER.peer, buyer=BUYER.peer, verify=KEYRING.verify)
    with pytest.raises(PeerError, match="signature"):
        check(evolve(bid, signature=BUYER.identity.sign(terms_message(bid.terms))))


# --- settle ---------------------------------------------------------------------------------------

SETTLE = settle_terms(ALLOC, ALLOC_ID, RESULT, WALL_MS + 20_000)


def test_what_is_settled_follows_from_the_award_and_the_result() -> None:
    assert check_settle(SETTLE.encode(), ALLOC, ALLOC_ID, RESULT) == SETTLE
    assert (SETTLE.amount, SETTLE.exit, SETTLE.fuel) == (7_100, 0, 7 * G)
    assert SETTLE.outputs == (RESULT.output, RESULT.stdout, RESULT.stderr)


@pytest.mark.parametrize("field", OTHER)
def test_a_bill_with_another_field_is_refused(field: str) -> None:
    tampered = evolve(SETTLE, **{field: OTHER[field]})
    if field == "end_ms":
        check_settle(tampered.encode(), ALLOC, ALLOC_ID, RESULT)
        return
    with pytest.raises(PeerError):
        check_settle(tampered.encode(), ALLOC, ALLOC_ID, RESULT)


def test_a_bill_for_more_than_was_awarded_is_refused() -> None:
    much = evolve(RESULT, fuel=WORK.fuel + 1)
    terms = settle_terms(ALLOC, ALLOC_ID, much, WALL_MS)
    assert terms.fuel == WORK.fuel
    with pytest.raises(PeerError, match="more fuel"):
        check_settle(terms.encode(), ALLOC, ALLOC_ID, much)


def test_a_result_of_unknown_status_is_refused() -> None:
    with pytest.raises(PeerError, match="status"):
        check_settle(SETTLE.encode(), ALLOC, ALLOC_ID, evolve(RESULT, status="splendid"))


@pytest.mark.parametrize(
    ("status", "code", "exit_"), [("exited", 0, 0), ("exited", 300, 127), (CANCELLED, 0, 254)]
)
def test_only_success_is_zero(status: str, code: int, exit_: int) -> None:
    result = evolve(RESULT, status=status, exit_code=code)
    terms = settle_terms(ALLOC, ALLOC_ID, result, WALL_MS)
    assert terms.exit == exit_
    assert terms.amount == 7_000 + (100 if exit_ == 0 else 0)
    assert check_settle(terms.encode(), ALLOC, ALLOC_ID, result)


def test_a_clock_that_went_back_does_not_end_before_the_start() -> None:
    assert settle_terms(ALLOC, ALLOC_ID, RESULT, 0).end_ms == ALLOC.start_ms


# --- void -----------------------------------------------------------------------------------------

VOID = void_terms(ALLOC, ALLOC_ID)


def test_void_claims_nothing() -> None:
    assert check_void(VOID.encode(), ALLOC, ALLOC_ID) == VOID
    assert (VOID.amount, VOID.fuel, VOID.exit) == (0, 0, 255)


@pytest.mark.parametrize("field", OTHER)
def test_a_waiver_with_another_field_is_refused(field: str) -> None:
    with pytest.raises(PeerError):
        check_void(evolve(VOID, **{field: OTHER[field]}).encode(), ALLOC, ALLOC_ID)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x90", bytes(4_000)])
def test_no_bytes_are_terms_by_accident(data: bytes) -> None:
    with pytest.raises(PeerError):
        check_void(data, ALLOC, ALLOC_ID)
    with pytest.raises(PeerError):
        check_settle(data, ALLOC, ALLOC_ID, RESULT)
    with pytest.raises(PeerError):
        check(evolve(signed(ALLOC), terms=data))


# --- accounts -------------------------------------------------------------------------------------


class Books:
    """The accounts of one buyer, and all that it appended."""

    def __init__(self, policy: Policy = POLICY) -> None:
        self.entries: list[Entry] = []
        self.policy = policy
        self.open()

    def open(self) -> None:
        """As after a start."""
        past = self.past()
        self.own = OwnChain(past, BUYER.identity.sign, head_every=1_024, is_confirmed=True)
        self.accounts = Accounts(BUYER.identity, self.policy, self.own, past)

    def past(self) -> Past:
        return read_past(BUYER.peer, NET, self.entries)

    def open_keys(self) -> set[tuple[TaskId, int]]:
        deals = [Entry.decode(data).content.deal for data in self.past().allocs]
        return {(TaskId(deal.nonce), deal.fence) for deal in deals}

    def alloc(self, fence: int = 1, seller: Seller = SELLER, key: bytes = b"key") -> Entry:
        task = task_id(BUYER.peer, key)
        bid = seller.bid(BUYER.peer, ask(task, round=fence))
        entry, _ = self.accounts.alloc((task, fence), bid, WALL_MS)
        self.entries.append(entry)
        return entry

    def void(self, entry: Entry, seller: Seller = SELLER) -> bool:
        deal = entry.content.deal
        data, signature = seller.signed(void_terms(deal, EntryId(entry.id)))
        lost = Lost(TaskId(deal.nonce), deal.fence, "lost", data, signature)
        actions = self.accounts.void(seller.peer, lost, WALL_MS)
        if actions:
            self.entries.append(Entry.decode(actions[0].entry))  # type: ignore[union-attr]
        return bool(actions)


def test_what_is_awarded_is_pending_until_it_is_closed() -> None:
    books = Books()
    first, second = books.alloc(1), books.alloc(2)
    assert books.own.head.pending == 20_200
    assert books.void(first)
    assert not books.void(first), "only once"
    assert (books.own.head.pending, books.own.head.posted) == (10_100, 0)
    assert books.accounts.is_open(SELLER.peer, (TASK, 2))
    assert not books.accounts.is_open(SELLER.peer, (TASK, 1))
    assert not books.accounts.is_open(BUYER.peer, (TASK, 2))
    assert books.past().allocs == (second.encode(),)
    closings = [Entry.decode(data) for data in books.past().closings]
    assert [entry.content.kind for entry in closings] == [Kind.VOID]


def test_a_closing_is_for_its_own_seller_only() -> None:
    books, other = Books(), Seller(KEYRING.create(3))
    books.void(books.alloc())
    assert books.accounts.closing(SELLER.peer, (TASK, 1))
    assert books.accounts.closing(other.peer, (TASK, 1)) is None
    books.alloc(1, other)  # the next winner of the same round
    assert books.accounts.closing(SELLER.peer, (TASK, 1)) is None


def test_a_restart_finds_what_was_open_and_what_was_closed() -> None:
    books = Books()
    books.void(books.alloc(1))
    books.alloc(2)
    before = books.accounts
    books.open()
    again = books.accounts
    assert again.sizes() == before.sizes()
    assert again.closing(SELLER.peer, (TASK, 1)) == before.closing(SELLER.peer, (TASK, 1))
    assert again.newest_fences() == {TASK: 2}


def test_only_idle_awards_are_reminded_of_and_only_so_many() -> None:
    books = Books()
    for number in range(70):
        books.alloc(1, key=str(number).encode())
    held = {(task_id(BUYER.peer, b"0"), 1): SELLER.peer}
    reminders = books.accounts.reminders(held)
    assert len(reminders) == 64
    everything = dict.fromkeys(books.open_keys(), SELLER.peer)
    assert books.accounts.reminders(everything) == []


def test_closings_kept_are_bounded() -> None:
    books = Books()
    for number in range(1_030):
        books.void(books.alloc(1, key=str(number).encode()))
    assert books.accounts.sizes()["closings"] == (1_024, 1_024)
    assert len(books.past().closings) == 1_024
    assert books.accounts.closing(SELLER.peer, (task_id(BUYER.peer, b"0"), 1)) is None


def test_unsettled_awards_are_bounded() -> None:
    books = Books(evolve(POLICY, allocs_max=2))
    assert books.accounts.why_not(0) == ""
    books.alloc(1)
    books.alloc(2)
    assert books.accounts.why_not(0) == "2 awards are unsettled already"
