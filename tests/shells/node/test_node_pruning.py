"""Pruning: only what a quorum certifies goes, never of our own chain; archives have it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from attrs import frozen
from ledger_deals import ALICE, BOB, CAROL, NET, WALL_MS, Chain, Party
from ledger_witnesses import ask, close_books, witness_of
from node_replicas import NEVER, Node, eventually, open_node, party

from ledger.model import Entry
from ledger.quorum import Quorum
from ledger.state import Account, Accounts
from ledger.store import Store
from ledger.validity import prove_fork
from ledger.votes import VoteBook
from ledger.witness import RUN_MAX, Witness
from mesh.certifying import Certifying, Witnessing, quorum_of
from mesh.config import Ledger
from mesh.errors import ConfigError
from mesh.ids import PeerId, format_peer
from mesh.network.network import WITNESS
from mesh.pruning import Pruning, PruningConfig
from mesh.rations import RationedBook

COUNCIL = range(10, 14)
"""The nodes that are witnesses: one of them may be silent."""
AT_ONCE = PruningConfig(worth=5, batch=4, rest_s=0.0)


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.replication._now_ms", lambda: WALL_MS)


def settled(buyer: Chain, deals: int, seller: Party = ALICE) -> list[Entry]:
    """Deals that are over, a HEAD over them all, and one deal above it."""
    entries: list[Entry] = []
    for _ in range(deals):
        alloc = buyer.alloc(seller)
        entries += [alloc, buyer.settle(seller, alloc)]
    return [*entries, buyer.checkpoint(entries), buyer.alloc(seller)]


@frozen
class Pruner:
    """A node that is no archive, and the witnesses that it asks."""

    node: Node
    pruning: Pruning
    witnesses: Sequence[Witness]

    def count(self, name: str) -> int:
        return self.pruning.tally[f"pruning_{name}"]

    def kept(self) -> list[Entry]:
        return list(self.node.store.entries())

    def accounts(self) -> dict[bytes, Account]:
        accounts = Accounts(NET, self.node.store)
        for entry in self.kept():
            accounts.add(entry)
        return dict(accounts.all())


def room() -> int:
    return 1 << 40


async def kept_to_itself(_: Sequence[bytes]) -> None:
    """Evidence of a fork: these witnesses replicate nothing."""


@asynccontextmanager
async def open_pruner(
    folder: Path,
    entries: Sequence[Entry],
    *,
    answering: int = 4,
    shown: bool = True,
    config: PruningConfig = AT_ONCE,
) -> AsyncIterator[Pruner]:
    """Node 1, which holds *entries*, beside a council of which so many answer.

    It was *shown* the entries by their authors, before they were replicated.
    """
    async with AsyncExitStack() as stack:
        witnesses, nodes = [], []
        for index in COUNCIL:
            witness = witness_of(party(index))
            for entry in entries if shown else ():
                ask(witness, entry)
            witnesses.append(witness)
            votes = VoteBook.open(folder / f"votes-{index}.sqlite", party(index).key)
            book = RationedBook(stack.enter_context(votes), party(index).key, lambda: 0.0, room)
            serve = {WITNESS: Witnessing(witness, book, never, kept_to_itself).answer}
            if index - COUNCIL.start < answering:
                opened = open_node(folder, index, config=NEVER, serve=serve)
                nodes.append(await stack.enter_async_context(opened))
        node = await stack.enter_async_context(
            open_node(folder, 1, entries, meets=nodes, config=NEVER)
        )
        await eventually(lambda: len(node.network.connected()) == answering)
        petition = stack.enter_context(Store.open(folder / "1.sqlite"))
        replication = node.replication
        quorum = Quorum.of(party(index).key for index in COUNCIL)
        certifying = Certifying(quorum, petition, replication.learn_from, None, node.network)
        pruning = Pruning(
            peer=node.network.peer,
            store=replication.merger.store,
            in_turn=replication.in_turn,
            certify=certifying.certify,
            blame_disk=replication.blame_disk,
            rng=Random(1),
            net=NET,
            config=config,
        )
        yield Pruner(node, pruning, witnesses)
    close_books()


def never(error: Exception) -> None:
    """No book fails here."""
    raise error


async def test_what_witnesses_have_sealed_goes_and_no_account_changes(tmp_path: Path) -> None:
    bob, carol = settled(Chain(BOB), 5), settled(Chain(CAROL), 4)
    async with open_pruner(tmp_path, bob + carol) as pruner:
        before, total = pruner.accounts(), pruner.node.store.total()
        await pruner.pruning.prune_some()
        assert (pruner.count("heads_asked"), pruner.count("heads_certified")) == (2, 2)
        assert pruner.count("entries") == 10 + 8
        assert pruner.kept() == [*bob[-2:], *carol[-2:]]
        assert pruner.accounts() == before
        assert pruner.node.store.total() == total
        assert pruner.node.store.scan() == len(bob + carol)
        await pruner.pruning.prune_some()
        assert pruner.count("heads_asked") == 2, "nothing is new below them"


async def test_a_witness_that_lacks_the_chain_is_led_along_it(tmp_path: Path) -> None:
    bob = settled(Chain(BOB), RUN_MAX)
    async with open_pruner(tmp_path, bob, shown=False) as pruner:
        await pruner.pruning.prune_some()
        assert pruner.kept() == bob[-2:]
        assert sum(w.statistics().get("behind", 0) for w in pruner.witnesses) >= 3


async def test_without_a_quorum_every_entry_stays(tmp_path: Path) -> None:
    bob = settled(Chain(BOB), 5)
    async with open_pruner(tmp_path, bob, answering=2) as pruner:
        await pruner.pruning.prune_some()
        assert (pruner.count("heads_refused"), pruner.count("entries")) == (1, 0)
        assert pruner.kept() == bob


async def test_a_head_over_another_arm_than_the_witnesses_saw_is_not_pruned_below(
    tmp_path: Path,
) -> None:
    """And two entries for one place, which the witnesses hand out, are learned."""
    arm = Chain(BOB)
    bob, other = settled(arm.fork(), 5), arm.alloc(CAROL)
    async with open_pruner(tmp_path, bob, shown=False) as pruner:
        for witness in pruner.witnesses:
            ask(witness, other)
        await pruner.pruning.prune_some()
        assert (pruner.count("heads_refused"), pruner.count("entries")) == (1, 0)
        assert set(bob) < set(pruner.kept())
        await eventually(lambda: pruner.node.forked == [BOB.key])
        await pruner.pruning.prune_some()
        assert pruner.count("heads_asked") == 1, "a chain that forked stays whole"


async def test_our_own_chain_and_short_ones_stay_whole(tmp_path: Path) -> None:
    ours, short = settled(Chain(party(1)), 9), settled(Chain(BOB), 2)
    forker = Chain(CAROL)
    proof = prove_fork(forker.fork().alloc(ALICE), forker.alloc(ALICE, price=7))
    assert proof is not None
    entries = [*ours, *short]
    async with open_pruner(tmp_path, entries) as pruner:
        pruner.node.store.add([proof])
        await pruner.pruning.prune_some()
        assert pruner.pruning.tally == {}
        assert pruner.kept() == [*entries, proof]


async def test_what_has_no_head_or_a_gap_below_it_is_not_asked_for(tmp_path: Path) -> None:
    headless, carol = settled(Chain(BOB), 5)[:10], settled(Chain(CAROL), 5)
    del carol[3]
    async with open_pruner(tmp_path, [*headless, *carol], shown=False) as pruner:
        await pruner.pruning.prune_some()
        assert pruner.pruning.tally == {}


async def test_a_turn_is_bounded_and_the_next_goes_on_where_it_ended(tmp_path: Path) -> None:
    chains = [settled(Chain(who), 5) for who in (BOB, CAROL, party(7))]
    config = PruningConfig(worth=5, batch=4, heads=2, steps=2, rest_s=0.0)
    entries = [entry for chain in chains for entry in chain]
    async with open_pruner(tmp_path, entries, config=config) as pruner:
        await pruner.pruning.prune_some()
        assert (pruner.count("heads_asked"), pruner.count("entries")) == (2, 2 * 8)
        for _ in range(4):
            await pruner.pruning.prune_some()
        assert pruner.count("entries") == 3 * 10
        assert set(pruner.kept()) == {entry for chain in chains for entry in chain[-2:]}


async def test_a_node_that_starts_again_finishes_what_it_had_begun(tmp_path: Path) -> None:
    bob = settled(Chain(BOB), 5)
    with Store.open(tmp_path / "1.sqlite") as store:
        store.add(bob)
        assert store.prune(bob[-2].id, 2) == 2
    async with open_pruner(tmp_path, [], shown=False) as pruner:
        for witness in pruner.witnesses:
            for entry in bob:
                ask(witness, entry)
        await pruner.pruning.prune_some()
        assert pruner.kept() == bob[-2:]


async def test_what_is_new_below_the_next_head_goes_with_that(tmp_path: Path) -> None:
    chain = Chain(BOB)
    bob = settled(chain, 5)
    async with open_pruner(tmp_path, bob) as pruner:
        await pruner.pruning.prune_some()
        more = [chain.settle(ALICE, bob[-1])]
        for _ in range(4):
            more += [alloc := chain.alloc(ALICE), chain.settle(ALICE, alloc)]
        more.append(chain.checkpoint([*bob, *more]))
        pruner.node.store.add(more)
        for witness in pruner.witnesses:
            for entry in more:
                ask(witness, entry)
        await pruner.pruning.prune_some()
        assert pruner.count("heads_certified") == 2
        assert pruner.kept() == [bob[-2], more[-1]]


async def test_while_it_is_pruned_others_are_merged(tmp_path: Path) -> None:
    bob, carol = settled(Chain(BOB), 40), settled(Chain(CAROL), 20)
    async with open_pruner(tmp_path, bob) as pruner, trio.open_nursery() as nursery:
        nursery.start_soon(pruner.pruning.prune_some)
        for entry in carol:
            await pruner.node.replication.learn_from([entry.encode()])
        await eventually(lambda: pruner.count("entries") == 80)
        assert pruner.node.holds(*carol)
        assert pruner.node.store.scan() == len(bob + carol)


async def test_a_disk_that_fails_is_counted_and_the_next_turn_comes(tmp_path: Path) -> None:
    bob = settled(Chain(BOB), 5)
    config = PruningConfig(every_s=0.01, worth=5, rest_s=0.0)
    async with open_pruner(tmp_path, bob, config=config) as pruner, trio.open_nursery() as nursery:
        with ExitStack() as stack:
            other = stack.enter_context(Store.open(tmp_path / "1.sqlite"))
            pruner.pruning.store._db.execute("PRAGMA busy_timeout = 1")
            other._db.execute("BEGIN IMMEDIATE")
            nursery.start_soon(pruner.pruning.run)
            await eventually(lambda: pruner.node.count("ledger_disk_failures") >= 2)
            assert pruner.node.alarms == []
            other._db.execute("ROLLBACK")
        await eventually(lambda: pruner.kept() == bob[-2:])
        nursery.cancel_scope.cancel()


# --- beside others ----------------------------------------------------------------------------


async def test_a_newcomer_gets_everything_with_an_archive_beside_a_pruned_node(
    tmp_path: Path,
) -> None:
    bob, carol = settled(Chain(BOB), 30), settled(Chain(CAROL), 20)
    with Store.open(tmp_path / "2.sqlite") as store:
        store.add(bob + carol)
        assert store.prune(bob[-2].id) + store.prune(carol[-2].id) == 100
    async with (
        open_node(tmp_path, 2, config=NEVER) as pruned,
        open_node(tmp_path, 4, meets=[pruned]) as newcomer,
    ):
        await eventually(lambda: newcomer.holds(*bob[-2:], *carol[-2:]))
        await eventually(lambda: newcomer.count("ledger_withheld") > 0)
        assert newcomer.store.total() != pruned.store.total()
        async with open_node(tmp_path, 3, bob + carol, meets=[pruned]) as archive:
            await newcomer.network.connect(archive.where)
            await eventually(lambda: newcomer.holds(*bob, *carol))
            await eventually(
                lambda: len({n.store.total() for n in (newcomer, archive, pruned)}) == 1
            )
            assert newcomer.store.holding(BOB.key, NET).low == 0
            assert not pruned.holds(bob[0])
            equal = newcomer.count("ledger_rounds_equal")
            await eventually(lambda: newcomer.count("ledger_rounds_equal") > equal)


# --- what may not be set ----------------------------------------------------------------------


@pytest.mark.parametrize("tier", ["T0", "T1"])
def test_who_asks_no_witnesses_prunes_nothing(tier: str) -> None:
    with pytest.raises(ConfigError, match=f"ledger.archive: .*sealed.*{tier}") as caught:
        quorum_of(Ledger(tier=tier, archive=False))
    assert 'ledger.tier = "T2"' in caught.value.hint
    assert quorum_of(Ledger(tier=tier)) is None


def test_who_asks_witnesses_may_prune() -> None:
    witnesses = tuple(format_peer(PeerId(party(index).key)) for index in COUNCIL)
    quorum = quorum_of(Ledger(tier="T2", witnesses=witnesses, archive=False))
    assert quorum is not None
    assert quorum.needed == 3
