"""No buyer gets more credit than its line, however entries come, and nobody who forked gets any."""

from __future__ import annotations

from random import Random

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as some
from ledger_deals import ALICE, BOB, CAROL, DAVE, NET, Chain, Party
from market_players import POLICY, RESULT, Buyer, G, Player, ask, one
from market_players import some as found

from ledger.model import Entry, Kind
from ledger.state import Accounts
from ledger.statements import Line, Op
from mesh.ids import PeerId, task_id
from mesh.market import credit as module
from mesh.market.credit import Books, Credit, read_books
from mesh.messages import Accepted, Ask, Bid, Done, Refusal
from mesh.notices import Forked
from mesh.sansio import Learned, LineSet, RunEnded, Started
from mesh.sim.keyring import Keyring

RESERVE = 10_100
"""µcr, of an ordinary ask at the idle price."""


class Stall:
    """One seller whose buyers may owe it *line* µcr, and two buyers played by hand."""

    def __init__(self, line: int) -> None:
        keyring = Keyring(7)
        self.seller = Player(keyring, 0, evolve(POLICY, credit_line=line))
        self.buyer, self.other = (Buyer(keyring.create(index)) for index in (1, 2))
        self.seller.told(Started(), 0.0)

    def ask(self, key: bytes, buyer: Buyer | None = None, now: float = 0.0) -> Bid | str:
        """The bid that the ask gets, or why it gets none."""
        buyer = buyer or self.buyer
        wanted: Ask = ask(task_id(buyer.peer, key))
        actions = self.seller.got(buyer.peer, wanted, now)
        bids = found(actions, Bid)
        return bids[0] if bids else one(actions, Refusal).reason

    def bid(self, key: bytes, buyer: Buyer | None = None, now: float = 0.0) -> Bid:
        answer = self.ask(key, buyer, now)
        assert isinstance(answer, Bid), answer
        return answer

    @property
    def exposure(self) -> int:
        return self.seller.kernel.credit.exposure(self.buyer.peer)


def test_a_bid_that_would_exceed_the_line_is_refused_with_the_sums() -> None:
    stall = Stall(line=RESERVE - 1)
    assert (
        stall.ask(b"a")
        == f"credit: 0 µcr are open, {RESERVE} more exceed your line of {RESERVE - 1}"
    )
    assert stall.seller.kernel.reserved().cpu_milli == 0
    assert stall.seller.kernel.statistics()["credit_refused"] == 1


def test_open_bids_count_against_the_line_as_if_all_of_them_won() -> None:
    stall = Stall(line=2 * RESERVE + 1)
    stall.bid(b"a")
    assert "more exceed your line" in str(stall.ask(b"b")), "the second one asks more: half is sold"
    stall.bid(b"c", stall.other)


def test_a_reserve_that_is_settled_stays_owed_and_what_is_left_of_it_is_free() -> None:
    stall = Stall(line=2 * RESERVE)
    award = stall.buyer.award(stall.bid(b"a"))
    assert found(stall.seller.got(stall.buyer.peer, award, 1.0), Accepted)
    assert stall.exposure == RESERVE
    result = evolve(RESULT, fuel=5 * G)
    done = one(stall.seller.told(RunEnded(award.task, 1, result), 2.0), Done)
    settled = stall.buyer.settle(done)
    stall.seller.got(stall.buyer.peer, settled, 3.0)
    assert stall.exposure == 5_100
    assert stall.seller.kernel.credit.earned == 5_100
    stall.seller.told(Learned((settled.entry,), ()), 4.0)
    assert stall.exposure == 5_100, "a receipt that comes again counts once"


def test_a_buyer_gets_the_line_that_the_owner_set_it_and_nobody_else_does() -> None:
    stall = Stall(line=0)
    assert isinstance(stall.ask(b"a"), str)
    stall.seller.told(LineSet(stall.buyer.peer, RESERVE), 1.0)
    stall.bid(b"a", now=2.0)
    assert isinstance(stall.ask(b"a", stall.other, 2.0), str)
    assert [entry.content.kind.name for entry in stall.seller.entries] == ["LINE"]
    stall.seller.boot()
    assert stall.seller.kernel.credit.limit(stall.buyer.peer) == RESERVE, "it is in the ledger"


def test_no_limit_is_none() -> None:
    stall = Stall(line=Line.NO_LIMIT)
    stall.bid(b"a")


def test_whoever_forked_gets_nothing_and_is_told_why() -> None:
    stall = Stall(line=10**9)
    actions = stall.seller.told(Learned((), (stall.buyer.peer,)), 1.0)
    assert found(actions, Forked) == [Forked(stall.buyer.peer)]
    assert stall.ask(b"a") == "your key forked its chain"
    assert stall.seller.told(Learned((), (stall.buyer.peer,)), 2.0) == [], "told once"


def test_a_retired_key_gets_nothing() -> None:
    owner = Chain(ALICE)
    entry = owner.keyop(Op.REVOKE, ALICE)
    credit = Credit(PeerId(BOB.key), Books(), {}, net=NET, default_line=10**9)
    assert credit.refusal(PeerId(ALICE.key), 1) == ""
    credit.see(entry)
    assert credit.refusal(PeerId(ALICE.key), 1) == "your key is retired"
    assert credit.is_frozen(PeerId(ALICE.key))


def test_an_heir_does_not_shed_what_its_old_key_owes() -> None:
    old = Chain(ALICE)
    alloc = old.alloc(BOB)
    credit = Credit(PeerId(BOB.key), Books(), {}, net=NET, default_line=alloc.content.deal.reserve)
    credit.see(alloc)
    assert credit.refusal(PeerId(CAROL.key), 1) == ""
    credit.see(old.keyop(Op.ROTATE, CAROL))
    assert "exceed your line" in credit.refusal(PeerId(CAROL.key), 1)


def test_a_full_table_of_buyers_lets_nobody_new_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUYERS_MAX", 1)
    credit = Credit(PeerId(BOB.key), Books(), {}, net=NET, default_line=10**9)
    credit.see(Chain(ALICE).alloc(BOB))
    assert credit.refusal(PeerId(CAROL.key), 1) == "1 buyers have accounts here already"
    assert credit.refusal(PeerId(ALICE.key), 1) == ""
    credit.see(Chain(CAROL).alloc(BOB))
    assert credit.sizes()["buyers"] == (1, 1)


def test_tables_that_strangers_can_fill_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPEN_MAX", "CLOSED_MAX", "FROZEN_MAX", "KEYOPS_MAX"):
        monkeypatch.setattr(module, name, 3)
    credit = Credit(PeerId(BOB.key), Books(), {}, net=NET, default_line=10**9)
    buyer, owner = Chain(ALICE), Chain(CAROL)
    for number in range(5):
        credit.see(buyer.alloc(BOB, nonce=bytes([number]) * 16))
        credit.see(owner.keyop(Op.REVOKE, CAROL))
        credit.freeze([PeerId(bytes([number]) * 32)])
    for number in range(5, 10):
        alloc = buyer.alloc(BOB, nonce=bytes([number]) * 16)
        credit.see(alloc)
        credit.see(buyer.settle(BOB, alloc))
    assert all(size <= bound for size, bound in credit.sizes().values()), credit.sizes()
    assert {"deals_dropped", "keyops_dropped", "forked_forgotten"} <= set(credit.tally)


# --- the same sums as the ledger's own fold -------------------------------------------------------

PARTIES = (ALICE, BOB, CAROL)


def history(rng: Random, deals: int) -> list[Entry]:
    """Deals among three, some of them open, settled, void, refunded, claimed or used."""
    chains = {party.key: Chain(party) for party in PARTIES}
    entries: list[Entry] = []
    for number in range(deals):
        buyer, seller = rng.sample(PARTIES, 2)
        own = chains[buyer.key]
        alloc = own.alloc(seller, nonce=number.to_bytes(16, "big"))
        entries.append(alloc)
        entries += _fate(rng, own, chains[seller.key], seller, alloc)
    return entries


def _fate(rng: Random, own: Chain, theirs: Chain, seller: Party, alloc: Entry) -> list[Entry]:
    match rng.randrange(7):
        case 6:
            heirs = [party for party in (ALICE, CAROL, DAVE) if party.key != own.buyer.key]
            return [own.keyop(Op.ROTATE, rng.choice(heirs))]
        case 0:
            return [own.use(seller, alloc), own.settle(seller, alloc)]
        case 1:
            return [own.void(seller, alloc)]
        case 2:
            return [own.settle(seller, alloc), theirs.refund(alloc, rng.randint(1, 900))]
        case 3:
            return [theirs.claim(alloc)]
        case 4:
            return [own.settle(seller, alloc)]
        case _:
            return []


@settings(max_examples=60, deadline=None)
@given(some.integers(0, 2**32), some.integers(0, 12), some.integers(0, 12))
def test_credit_is_what_the_fold_says_in_any_order_and_after_any_restart(
    seed: int, before: int, after: int
) -> None:
    rng = Random(seed)
    entries = history(rng, before + after)
    us = PeerId(BOB.key)
    ours = [
        e
        for e in entries
        if us in (e.content.author, e.content.peer) or e.content.kind is Kind.KEYOP
    ]
    cut = min(before, len(entries))
    books = read_books(us, Accounts(NET), entries[:cut])
    credit = Credit(us, books, {}, net=NET, default_line=0)
    again = [e for e in ours if e not in entries[:cut]]
    rng.shuffle(again)
    for entry in again:
        credit.see(entry)
    accounts = Accounts(NET)
    for entry in entries:
        accounts.add(entry)
    for party in (ALICE, CAROL, DAVE):
        assert credit.exposure(PeerId(party.key)) == accounts.exposure(party.key, us)


def test_a_closing_that_overtakes_its_award_leaves_nothing_reserved() -> None:
    buyer = Chain(ALICE)
    alloc = buyer.alloc(BOB)
    settle = buyer.settle(BOB, alloc)
    credit = Credit(PeerId(BOB.key), Books(), {}, net=NET, default_line=0)
    credit.see(settle)
    credit.see(alloc)
    assert credit.exposure(PeerId(ALICE.key)) == settle.content.deal.amount


def test_entries_of_another_network_bind_nobody() -> None:
    credit = Credit(PeerId(BOB.key), Books(), {}, net=NET, default_line=0)
    credit.see(Chain(ALICE, net=b"elsewher").alloc(BOB))
    assert credit.exposure(PeerId(ALICE.key)) == 0
