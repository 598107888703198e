"""Pruning: what is over for good goes, all that anybody may still ask for stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from ledger_deals import ALICE, BOB, CAROL, DAVE, NET, WALL_MS, Chain, Party
from ledger_replicas import BOTH, close_all, held, ids, in_memory, replica, synced

from ledger.chain import Head
from ledger.errors import BrokenChain, Corruption, LedgerError
from ledger.fsck import examine
from ledger.merge import Merged, Merger
from ledger.model import Entry, Kind
from ledger.proof import Tree, is_included
from ledger.state import Accounts, Stage
from ledger.statements import Checkpoint, Op
from ledger.store import Store
from ledger.turns import Scope
from ledger.validity import prove_fork


def settled(bob: Chain, deals: int, seller: Party = ALICE) -> list[Entry]:
    entries = []
    for _ in range(deals):
        alloc = bob.alloc(seller)
        entries += [alloc, bob.use(seller, alloc), bob.settle(seller, alloc)]
    return entries


def headed(bob: Chain, entries: list[Entry]) -> tuple[list[Entry], Entry]:
    """The entries of one chain and a HEAD over them."""
    head = bob.checkpoint(entries)
    return [*entries, head], head


def accounts_of(store: Store) -> Accounts:
    accounts = Accounts(NET, store)
    for entry in store.entries():
        accounts.add(entry)
    return accounts


@pytest.fixture
def store() -> Iterator[Store]:
    yield in_memory()
    close_all()


def test_what_is_over_below_the_head_goes_and_counts_as_held(store: Store) -> None:
    bob = Chain(BOB)
    entries, head = headed(bob, settled(bob, 3))
    later = settled(bob, 1)
    store.add(entries + later)
    holding, total, listed = store.holding(BOB.key, NET), store.total(), store.ids()
    before = accounts_of(store)
    assert store.prune(head.id) == 9
    assert list(store.entries()) == [head, *later]
    assert store.holding(BOB.key, NET).mark() == holding.mark()
    assert (store.total(), store.ids()) == (total, listed)
    assert store.holding(BOB.key, NET).low == head.content.seq
    assert store.which([entry.id for entry in entries]) == {entry.id for entry in entries}
    assert store.head(BOB.key, NET) == Head.after(later[-1])
    assert list(store.glances(BOB.key, NET, 0, 99)) == [*store.glances(BOB.key, NET, 9, 99)]
    assert (store.entry(entries[0].id), store.glance(entries[0].id)) == (None, None)
    assert store.newest(99, entries[0].content.nonce) == tuple(later[::-1])
    assert store.resolutions(entries[0].id) == ()
    assert accounts_of(store).all() == before.all()
    assert store.scan() == 13


def test_a_long_chain_is_pruned_in_steps_each_sound(store: Store) -> None:
    bob = Chain(BOB)
    entries, head = headed(bob, settled(bob, 5))
    store.add(entries)
    before = accounts_of(store)
    steps = []
    while gone := store.prune(head.id, 4):
        steps.append(gone)
        assert store.scan() == len(entries)
        assert store.pruned() == sum(steps)
        assert accounts_of(store).all() == before.all()
    assert steps == [6, 6, 3], "a deal goes whole"
    assert list(store.entries()) == [head]


def test_the_last_entry_of_a_kind_and_all_of_it_are_found(store: Store) -> None:
    bob, carol = Chain(BOB), Chain(CAROL)
    entries, first = headed(bob, settled(bob, 1))
    entries, second = headed(bob, entries)
    store.add([*entries, carol.line(BOB, 5)])
    assert store.last_of(Kind.HEAD, BOB.key, NET, below=99) == second
    assert store.last_of(Kind.HEAD, BOB.key, NET, below=second.content.seq) == first
    assert store.last_of(Kind.HEAD, BOB.key, NET, below=0) is None
    assert store.last_of(Kind.HEAD, CAROL.key, NET, below=99) is None
    assert list(store.all_of(Kind.HEAD)) == [first, second]


def test_what_was_pruned_is_had_already_when_it_comes_again(store: Store) -> None:
    bob = Chain(BOB)
    entries, head = headed(bob, settled(bob, 2))
    merger = Merger(store, spread=map)
    wires = [entry.encode() for entry in entries]
    merger.merge(wires, WALL_MS)
    store.prune(head.id)
    assert merger.merge(wires, WALL_MS) == Merged(known=len(entries))
    assert merger.merge_cold(wires, WALL_MS) == Merged(known=len(entries))
    smaller = Entry(entries[0].body, bytes(64))
    assert store.add([smaller, *entries]) == 0
    assert list(store.entries()) == [head]
    assert store.scan() == len(entries)


def test_an_audit_path_outlives_the_entry(store: Store) -> None:
    bob = Chain(BOB)
    entries, head = headed(bob, settled(bob, 3))
    store.add(entries)
    store.prune(head.id)
    tree = Tree(entry_id for _, entry_id in store.ids())
    root, size = Checkpoint.decode(head.content.terms).root, head.content.seq
    for index, entry in enumerate(entries[:size]):
        assert is_included(entry.id, index, size, tree.inclusion(index, size), root)


KEPT: dict[str, Callable[[Chain], list[Entry]]] = {
    "an open ALLOC": lambda bob: [bob.alloc(ALICE), bob.alloc(ALICE)],
    "a USE of an open ALLOC": lambda bob: [alloc := bob.alloc(ALICE), bob.use(ALICE, alloc)],
    "a deal with an arbiter": lambda bob: [
        alloc := bob.alloc(ALICE, arbiter=CAROL.key),
        bob.settle(ALICE, alloc),
    ],
    "a deal that was claimed": lambda bob: [
        alloc := bob.alloc(ALICE),
        bob.settle(ALICE, alloc),
        Chain(ALICE).claim(alloc),
    ],
    "a deal that is disputed": lambda bob: [
        alloc := bob.alloc(ALICE),
        bob.settle(ALICE, alloc),
        bob.dispute(alloc, ALICE),
    ],
    "a LINE and a KEYOP": lambda bob: [bob.line(CAROL, 5), bob.keyop(Op.DELEGATE, DAVE)],
    "another HEAD": lambda bob: [first := bob.line(CAROL, 5), bob.checkpoint([first])],
    "a REFUND of an open deal": lambda bob: [bob.refund(Chain(ALICE).alloc(BOB), 7)],
}


@pytest.mark.parametrize("kept", KEPT)
def test_what_may_be_asked_for_stays(store: Store, kept: str) -> None:
    bob = Chain(BOB)
    entries = KEPT[kept](bob)
    own = [entry for entry in entries if entry.content.author == BOB.key]
    own += settled(bob, 1)
    _, head = headed(bob, own)
    store.add([*entries, *own, head])
    assert store.prune(head.id) == 3
    assert set(store.entries()) == {*entries, head}


def test_a_deal_that_ends_above_the_head_stays(store: Store) -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    head = bob.checkpoint([alloc])
    entries = [alloc, head, bob.settle(ALICE, alloc)]
    store.add(entries)
    assert store.prune(head.id) == 0
    assert list(store.entries()) == entries
    assert store.holding(BOB.key, NET).low == 0


def test_a_chain_that_forked_stays_whole(store: Store) -> None:
    bob = Chain(BOB)
    twin = bob.fork()
    entries, head = headed(bob, settled(bob, 1))
    arm = twin.alloc(CAROL)
    proof = prove_fork(entries[0], arm)
    assert proof is not None
    store.add([*entries, arm, proof])
    assert store.prune(head.id) == 0
    assert set(store.entries()) == {*entries, arm, proof}


def test_refunds_go_after_their_deals(store: Store) -> None:
    bob, alice = Chain(BOB), Chain(ALICE)
    entries, head = headed(bob, settled(bob, 1))
    refund = alice.refund(entries[0], 99)
    back, other = headed(alice, [refund])
    store.add(entries + back)
    before = accounts_of(store)
    assert store.prune(other.id) == 0
    assert store.prune(head.id) == 3
    assert store.prune(other.id) == 1
    after = accounts_of(store)
    assert after.all() == before.all()
    assert after.between(BOB.key, ALICE.key).refunded == 99
    assert after.exposure(BOB.key, ALICE.key) == before.exposure(BOB.key, ALICE.key)
    assert set(store.entries()) == {head, other}
    assert store.scan() == 6


def test_only_a_head_that_all_is_held_of_is_pruned_below(store: Store) -> None:
    bob = Chain(BOB)
    entries, head = headed(bob, settled(bob, 1))
    lie = bob.checkpoint(entries[:2])
    with pytest.raises(LedgerError, match="is no HEAD that is held"):
        store.prune(head.id)
    store.add([entries[0], *entries[2:]])
    with pytest.raises(LedgerError, match="is no HEAD that is held"):
        store.prune(entries[0].id)
    with pytest.raises(LedgerError, match="entry 1 is missing"):
        store.prune(head.id)
    store.add([*entries, lie])
    with pytest.raises(LedgerError, match="over other entries"):
        store.prune(lie.id)
    assert len([*store.entries()]) == 5


def test_pruning_goes_on_from_head_to_head(store: Store) -> None:
    bob = Chain(BOB)
    entries, first = headed(bob, settled(bob, 1))
    more = settled(bob, 2)
    second = bob.checkpoint(entries + more)
    store.add([*entries, *more, second])
    before = accounts_of(store).all()
    assert [store.prune(head.id) for head in (first, first, second, first)] == [3, 0, 6, 0]
    assert store.holding(BOB.key, NET).low == second.content.seq
    assert accounts_of(store).all() == before
    assert store.scan() == 11


def test_a_later_word_on_a_deal_that_went_finds_how_it_ended(store: Store) -> None:
    bob = Chain(BOB)
    alloc, waiting = bob.alloc(ALICE), bob.alloc(ALICE)
    entries, head = headed(bob, [alloc, waiting, bob.settle(ALICE, alloc, fuel=10**9)])
    store.add(entries)
    whole = accounts_of(store)
    store.prune(head.id)
    left = accounts_of(store)
    later = [
        bob.settle(ALICE, alloc, fuel=9 * 10**9),
        Chain(ALICE).claim(alloc),
        bob.dispute(alloc, ALICE),
    ]
    for entry in later:
        for accounts in (whole, left):
            accounts.add(entry)
        store.add([entry])
        assert left.all() == whole.all() == accounts_of(store).all()
        assert left.standing((alloc.id, BOB.key, ALICE.key)).stage is Stage.SETTLED
    assert left.resolution(alloc) == whole.resolution(alloc)


def test_a_fork_below_is_still_a_fork(store: Store) -> None:
    bob = Chain(BOB)
    twin = bob.fork()
    entries, head = headed(bob, settled(bob, 1))
    store.add(entries)
    store.prune(head.id)
    accounts = accounts_of(store)
    accounts.add(entries[0])
    assert not accounts.account(BOB.key).forked
    arm = twin.alloc(CAROL)
    store.add([arm])
    accounts.add(arm)
    assert accounts.account(BOB.key).forked
    assert store.holding(BOB.key, NET).forked
    assert accounts_of(store).all() == accounts.all()
    assert store.scan() == 5


def test_we_never_resolve_again_what_we_pruned(store: Store) -> None:
    bob = Chain(BOB)
    alloc, waiting = bob.alloc(ALICE), bob.alloc(ALICE)
    entries, head = headed(bob, [alloc, waiting, bob.settle(ALICE, alloc)])
    store.append_own(entries)
    store.prune(head.id)
    with pytest.raises(BrokenChain):
        store.append_own([bob.void(ALICE, alloc)])
    store.append_own(entries)
    assert list(store.entries()) == [waiting, head]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE entry SET raw = CAST(x'00' || substr(raw, 2) AS BLOB) WHERE n = -2",
        "UPDATE entry SET start = start + 1 WHERE n = -2",
        "UPDATE entry SET seq = 0 WHERE n = -2",
        "UPDATE entry SET ref = 1 WHERE n = -2",
        "UPDATE entry SET raw = substr(raw, 1, 32) WHERE n = -1",
        "UPDATE entry SET raw = CAST(raw || x'00' AS BLOB) WHERE n = -2",
        "UPDATE entry SET state = 2 WHERE n = 5",
        "UPDATE carried SET owed = x'00000000000000000000000000000001'",
        "UPDATE chain SET low = low - 1",
        "DELETE FROM carried",
    ],
)
def test_damage_to_what_is_left_is_found(tmp_path: Path, damage: str) -> None:
    bob = Chain(BOB)
    entries, head = headed(bob, settled(bob, 1))
    with Store.open(tmp_path / "ledger.sqlite") as store:
        store.add([*entries, bob.alloc(ALICE)])
        store.prune(head.id)
        assert store.scan() == 5
        store._db.execute(damage)
        with pytest.raises(Corruption):
            store.scan()


def test_it_is_still_pruned_after_opening_again(tmp_path: Path) -> None:
    bob = Chain(BOB)
    entries, head = headed(bob, settled(bob, 150))
    path = tmp_path / "ledger.sqlite"
    with Store.open(path) as store:
        store.add(entries)
        before = accounts_of(store).all()
        pages = "SELECT page_count - freelist_count FROM pragma_page_count, pragma_freelist_count"
        (used,) = store._db.execute(pages).fetchone()
        store.prune(head.id)
        (left,) = store._db.execute(pages).fetchone()
        assert left < used / 2.5
    with Store.open(path) as store:
        assert list(store.entries()) == [head]
        assert accounts_of(store).all() == before
        assert store.scan() == len(entries)


def test_fsck_finds_a_pruned_chain_whole_and_goes_on_from_its_head(tmp_path: Path) -> None:
    bob = Chain(BOB)
    waiting = bob.alloc(ALICE)
    entries, head = headed(bob, [waiting, *settled(bob, 2)])
    refund = Chain(ALICE).refund(entries[1], 9)
    later = [bob.settle(ALICE, waiting), *settled(bob, 1)]
    with Store.open(tmp_path / "ledger.sqlite") as store:
        store.append_own([*entries, *later])
        store.add([refund])
        assert store.prune(head.id) == 6
        assert list(examine(store, [BOB.key])) == []
        store._db.execute("UPDATE entry SET seq = seq + 1 WHERE n < 0")
        assert [problem.what for problem in examine(store, [BOB.key])] != []


async def test_a_newcomer_gets_from_an_archive_what_a_pruned_replica_withholds() -> None:
    bob, carol = Chain(BOB), Chain(CAROL)
    entries, head = headed(bob, settled(bob, 4))
    entries += [bob.alloc(ALICE), *settled(carol, 1)]
    archive, pruned = replica(entries), replica(entries)
    assert pruned.merger.store.prune(head.id) == 12
    for cold in (False, True):
        newcomer = replica()
        for _ in range(2):
            first, _ = await synced(newcomer, pruned, BOTH, cold=cold)
            assert (first.is_equal, first.refused) == (False, 0)
            assert first.withheld == 12
            newcomer.merger.check(100)
            assert held(newcomer) == held(pruned)
        last, _ = await synced(newcomer, archive, BOTH, cold=cold)
        assert last.withheld == 0
        newcomer.merger.check(100)
        assert held(newcomer) == set(entries)
        assert ids(newcomer) == ids(pruned) == ids(archive)
        again, _ = await synced(newcomer, pruned, BOTH)
        assert again.is_equal
    close_all()


async def test_a_replica_that_pruned_more_than_one_exchange_tells_is_not_at_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bob = Chain(BOB)
    entries, head = headed(bob, settled(bob, 60))
    pruned = replica(entries)
    while pruned.merger.store.prune(head.id):
        pass
    monkeypatch.setattr("ledger.exchange.NOTES_MAX", 16)
    newcomer = replica()
    for _ in range(3):
        for one, other in ((newcomer, pruned), (pruned, newcomer)):
            await synced(one, other, BOTH)
    assert held(newcomer) == {head}
    archive = replica(entries)
    for _ in range(30):
        await synced(newcomer, archive, BOTH)
    assert held(newcomer) == set(entries)
    close_all()


async def test_a_chain_that_comes_with_holes_is_told_whoever_calls() -> None:
    bob = Chain(BOB)
    entries, head = headed(bob, settled(bob, 4))
    pruned = replica(entries)
    pruned.merger.store.prune(head.id)
    newcomer = replica()
    _, theirs = await synced(pruned, newcomer, (Scope.HEADS,))
    assert (theirs.new, theirs.withheld) == (1, 1)
    _, theirs = await synced(replica(entries), newcomer, (Scope.HEADS,))
    assert (theirs.new, theirs.withheld) == (12, 0)
    close_all()


async def test_a_pruned_replica_and_an_archive_are_equal() -> None:
    bob = Chain(BOB)
    entries, head = headed(bob, settled(bob, 4))
    archive, pruned = replica(entries), replica(entries)
    pruned.merger.store.prune(head.id)
    for one, other in ((archive, pruned), (pruned, archive)):
        told, _ = await synced(one, other, (Scope.HEADS, Scope.IDS))
        assert (told.is_equal, told.new, told.sent) == (True, 0, 0)
    close_all()


def test_a_pruned_replica_learns_more_of_the_chain_from_anybody() -> None:
    bob = Chain(BOB)
    entries, head = headed(bob, settled(bob, 2))
    pruned = replica(entries)
    pruned.merger.store.prune(head.id)
    more = settled(bob, 2)
    archive = replica(entries + more)

    async def talk() -> None:
        told, _ = await synced(pruned, archive)
        assert (told.new, told.withheld) == (len(more), 0)

    trio.run(talk)
    assert held(pruned) == {head, *more}
    assert pruned.merger.store.total() == archive.merger.store.total()
    assert all(entry.content.kind in Kind for entry in held(pruned))
    close_all()
