"""A fold over what pruning left comes to what a fold over everything comes to."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as some
from ledger_deals import ALICE, BOB, CAROL, DAVE, NET, WALL_MS, Chain, Party
from ledger_replicas import close_all, in_memory

from ledger.errors import LedgerError
from ledger.merge import Merged, Merger
from ledger.model import Entry, Kind
from ledger.state import Accounts, deal_of
from ledger.store import Store
from mesh.ids import PeerId
from mesh.market.credit import Credit, read_books

PARTIES = (ALICE, BOB, CAROL, DAVE)
VERBS = (
    *("alloc", "alloc", "settle", "settle", "settle", "again", "void", "use", "head", "head"),
    *("claim", "dispute", "rule", "refund", "line", "fork"),
)


class Arm:
    """A chain or an arm of it: what it wrote, and its deals."""

    def __init__(self, chain: Chain, before: Arm | None = None) -> None:
        self.chain = chain
        self.wrote: list[Entry] = list(before.wrote) if before else []
        self.open: list[tuple[Entry, Party]] = list(before.open) if before else []
        self.ended: list[tuple[Entry, Party]] = list(before.ended) if before else []

    def does(self, draw: some.DrawFn, verb: str, arms: list[Arm]) -> Entry | None:
        """The next entry; None where the verb finds nothing to be about."""
        chain, me = self.chain, self.chain.buyer
        peer = draw(some.sampled_from([party for party in PARTIES[:3] if party != me]))
        sold = [(a, o) for arm in arms for a, o in arm.open + arm.ended if a.content.peer == me.key]
        match verb:
            case "alloc":
                arbiter = draw(some.sampled_from((b"", b"", b"", DAVE.key)))
                price = draw(some.integers(0, 9))
                self.open.append((chain.alloc(peer, price=price, arbiter=arbiter), peer))
                return self.open[-1][0]
            case "settle" | "void" | "use" if self.open:
                at = draw(some.integers(0, len(self.open) - 1))
                alloc, seller = self.open[at]
                if verb == "use":
                    return chain.use(seller, alloc)
                if chain.head.pending < alloc.content.deal.reserve:
                    return None  # freed already, by what was settled again
                self.ended.append(self.open.pop(at))
                if verb == "void":
                    return chain.void(seller, alloc)
                return chain.settle(seller, alloc, fuel=draw(some.integers(0, 10**10)))
            case "again" if self.ended:  # what no honest buyer writes, and its seller signs
                alloc, seller = draw(some.sampled_from(self.ended))
                if chain.head.pending < alloc.content.deal.reserve:
                    return None
                return chain.settle(seller, alloc, fuel=draw(some.integers(0, 10**10)))
            case "dispute" if self.open or self.ended:
                alloc, seller = draw(some.sampled_from(self.open + self.ended))
                return chain.dispute(alloc, seller)
            case "claim" | "refund" if sold:
                alloc, _ = draw(some.sampled_from(sold))
                return chain.claim(alloc) if verb == "claim" else chain.refund(alloc, 7)
            case "line":
                return chain.line(peer, draw(some.integers(0, 99)))
            case "head" if self.wrote:
                return chain.checkpoint(self.wrote)
        return None


@some.composite
def lives(draw: some.DrawFn) -> list[Entry]:
    """Entries in the order in which they were written, with HEADs and forks."""
    arms = [Arm(Chain(party)) for party in PARTIES[:3]]
    dave, entries = Chain(DAVE), []
    for _ in range(draw(some.integers(4, 30))):
        arm, verb = draw(some.sampled_from(arms)), draw(some.sampled_from(VERBS))
        if verb == "fork" and len(arms) < 5:
            arms.append(Arm(arm.chain.fork(), arm))
        elif verb == "rule":
            ruled = [a for one in arms for a, _ in one.open + one.ended if a.content.deal.arbiter]
            if ruled:
                entries.append(dave.rule(draw(some.sampled_from(ruled)), 0))
        elif (entry := arm.does(draw, verb, arms)) is not None:
            arm.wrote.append(entry)
            entries.append(entry)
    return entries


def folded(entries: Iterable[Entry], store: Store | None = None) -> Accounts:
    accounts = Accounts(NET, store)
    for entry in entries:
        accounts.add(entry)
    return accounts


def assert_same(one: Accounts, other: Accounts, entries: list[Entry]) -> None:
    accounts = one.all()
    assert accounts == other.all()
    assert sum(a.posted_debit - a.posted_credit for a in accounts.values()) == 0
    for buyer, seller in permutations((party.key for party in PARTIES), 2):
        assert one.between(buyer, seller) == other.between(buyer, seller)
        assert one.exposure(buyer, seller) == other.exposure(buyer, seller)
        assert one.refusal(buyer, seller, 1) == other.refusal(buyer, seller, 1)
    for alloc in (entry for entry in entries if entry.content.kind is Kind.ALLOC):
        ours, theirs = one.standing(deal_of(alloc)), other.standing(deal_of(alloc))
        assert (ours.stage, ours.resolution) == (theirs.stage, theirs.resolution)
        assert ours.disputed == theirs.disputed


def prune_some(store: Store, heads: list[Entry], dice: random.Random) -> int:
    if not heads or dice.random() < 0.5:
        return 0
    try:
        return store.prune(dice.choice(heads).id)
    except LedgerError:  # the HEAD of an arm of which we have not all, or of another arm
        return 0


@settings(max_examples=300, deadline=None)
@given(lives(), some.randoms(use_true_random=False))
def test_pruning_at_any_time_changes_no_account(entries: list[Entry], dice: random.Random) -> None:
    store, archive = in_memory(), in_memory(entries)
    arrival = list(entries)
    if dice.random() < 0.3:
        dice.shuffle(arrival)
    heads: list[Entry] = []
    living, born = Accounts(NET, store), dice.randrange(len(arrival) + 1)
    for at, entry in enumerate(arrival):
        if at == born:
            living = folded(store.entries(), store)
        store.add([entry])
        living.add(entry)
        heads += [entry] if entry.content.kind is Kind.HEAD else []
        prune_some(store, heads, dice)
    whole = folded(entries)
    kept = list(store.entries())
    dice.shuffle(kept)
    left = folded(kept, store)
    assert_same(left, whole, entries)
    assert_same(living, whole, entries)
    for entry in entries:
        left.add(entry)
    assert_same(left, whole, entries)
    assert store.scan() == archive.scan() == len(set(entries))
    assert (store.total(), store.ids()) == (archive.total(), archive.ids())
    assert [h.mark() for h in store.holdings()] == [
        archive.holding(*h.key).mark() for h in store.holdings()
    ]
    assert Merger(store, spread=map).merge([e.encode() for e in entries], WALL_MS) == Merged(
        known=len(entries)
    )
    close_all()


@settings(max_examples=150, deadline=None)
@given(lives(), some.randoms(use_true_random=False))
def test_a_seller_that_starts_on_a_pruned_ledger_has_the_same_books(
    entries: list[Entry], dice: random.Random
) -> None:
    store = in_memory()
    heads: list[Entry] = []
    for entry in entries:
        store.add([entry])
        heads += [entry] if entry.content.kind is Kind.HEAD else []
        prune_some(store, heads, dice)
    for seller in (PeerId(party.key) for party in PARTIES):
        whole, left = (
            Credit(seller, books, {}, net=NET, default_line=100)
            for books in (
                read_books(seller, Accounts(NET), entries),
                read_books(seller, Accounts(NET, store), store.entries()),
            )
        )
        assert left.exposures() == whole.exposures()
        assert left.earned == whole.earned
        assert left.frozen == whole.frozen
    close_all()


def test_these_lives_are_pruned_often_enough() -> None:
    """The law above says nothing of lives in which nothing goes."""
    gone = []

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(lives())
    def live(entries: list[Entry]) -> None:
        store = in_memory(entries)
        heads = [entry for entry in entries if entry.content.kind is Kind.HEAD]
        gone.append(sum(prune_some(store, heads[at:], random.Random(at)) for at in range(9)))
        close_all()

    live()
    assert sum(map(bool, gone)) >= 6
