"""Replicas of real nodes: cut apart they go on, healed they become equal; who forks is found out;
a node that was restored from a backup goes on where it had been."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from statistics import mean

import pytest
import trio
import trio.testing
from ledger_deals import ALICE, Chain, Party
from nacl.signing import SigningKey
from process_ledgers import are_equal, balances, chain_of, counter, digest, kinds_in
from process_nodes import SMALL, WITNESS, Mesh, Node, eventually, open_mesh, wait_for_end
from process_proxy import Switchboard, open_switchboard, start_behind_proxies

from ledger.model import Kind
from mesh.ids import PeerId, format_peer
from mesh.network.gossip import ENTRIES, ENTRY_MAX, Topic
from mesh.network.network import Network, NetworkConfig, open_network
from mesh.node import NET

NODES = 8
PERIODS_MAX = 3
"""Promise L2: so many repair periods after the network has healed, all ledgers are equal."""
SETTINGS = {"MESH_LEDGER__REPAIR_S": "3"}
FORKER = Party(SigningKey(bytes([77]) * 32))


@pytest.fixture(scope="module")
def replicas() -> Iterator[tuple[Sequence[Node], Switchboard]]:
    """Eight nodes that know one another, through a network that can be cut."""
    with open_mesh() as mesh, open_switchboard() as switchboard:
        nodes = start_behind_proxies(mesh, switchboard, NODES, **SETTINGS)
        mesh.meet()
        yield nodes, switchboard


def work(node: Node, count: int) -> None:
    """Have so many small tasks done for *node*."""
    tasks = [node.client.submit(WITNESS, [], limits=SMALL).id for _ in range(count)]
    for task in tasks:
        wait_for_end(node, task)


def periods(nodes: Sequence[Node]) -> list[int]:
    return [counter(node, "ledger_periods") for node in nodes]


def passed_since(before: Sequence[int], nodes: Sequence[Node]) -> list[int]:
    return [now - then for now, then in zip(periods(nodes), before, strict=True)]


@pytest.mark.long
def test_a_partition_heals_within_three_repair_periods(
    replicas: tuple[Sequence[Node], Switchboard],
) -> None:
    nodes, switchboard = replicas
    here, there = nodes[: NODES // 2], nodes[NODES // 2 :]
    switchboard.cut(here, there)
    eventually(lambda: switchboard.crossing(here, there) == 0, "the sides are apart")
    work(here[0], 3)
    work(there[0], 3)
    eventually(lambda: are_equal(here, 6) and are_equal(there, 6), "each side is equal")
    assert digest(here[0]) != digest(there[0])
    switchboard.heal()
    eventually(lambda: switchboard.crossing(here, there) > 0, "the sides have met again")
    before = periods(nodes)
    eventually(lambda: are_equal(nodes, 12), "all ledgers are equal")
    assert mean(passed_since(before, nodes)) <= PERIODS_MAX
    first = balances(nodes[0])
    assert all(balances(node) == first for node in nodes)
    assert [node.complaints() for node in nodes] == [[]] * NODES


@pytest.mark.long
async def test_a_fork_told_to_different_nodes_is_found_out_by_all(
    replicas: tuple[Sequence[Node], Switchboard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By gossip, which takes a heartbeat or two: long before repairs would have spread it."""
    nodes, _ = replicas
    monkeypatch.setattr("ledger_deals.WALL_MS", time.time_ns() // 10**6)
    chain = Chain(FORKER, net=NET)
    arms = [chain.fork().alloc(ALICE), chain.alloc(ALICE, price=7)]
    forked = await trio.to_thread.run_sync(partial(forks, nodes))
    async with AsyncExitStack() as stack:
        ways = [
            await stack.enter_async_context(liar(81 + at, node))
            for at, node in enumerate((nodes[1], nodes[-1]))
        ]
        before = await trio.to_thread.run_sync(periods, nodes)
        for way, arm in zip(ways, arms, strict=True):
            await way.publish(ENTRIES, arm.encode())
        await trio.to_thread.run_sync(
            eventually, lambda: forks(nodes) == [n + 1 for n in forked], "all have found it out"
        )
    assert max(await trio.to_thread.run_sync(passed_since, before, nodes)) <= 2
    peer = format_peer(PeerId(FORKER.key))
    assert all(chain_of(node, peer).forked for node in nodes)
    await trio.to_thread.run_sync(
        eventually, lambda: are_equal(nodes, 3) and Kind.FORKPROOF in kinds_in(nodes[0]), "equal"
    )


def forks(nodes: Sequence[Node]) -> list[int]:
    return [counter(node, "ledger_forks") for node in nodes]


@asynccontextmanager
async def liar(index: int, target: Node) -> AsyncIterator[Network]:
    """A host that speaks to *target* alone, and is heard by it."""
    topic = Topic(ENTRIES, ENTRY_MAX, lambda _author, _data: None)
    async with open_network(
        NetworkConfig(seed=bytes([index]) * 32),
        rng=Random(index),
        on_frame=lambda _peer, _frame: None,
        on_offer=lambda _peer, _data: None,
        serve={},
        topics=[topic],
    ) as network:
        await network.connect(target.known["addresses"][0])
        router = network._gossip.router
        while not router.mesh.get(ENTRIES):
            await trio.testing.wait_all_tasks_blocked(0.05)
        yield network


@pytest.mark.long
def test_a_node_restored_from_an_old_backup_does_not_fork_itself(mesh: Mesh) -> None:
    nodes = mesh.start(3, **SETTINGS)
    mesh.meet()
    buyer = nodes[-1]
    work(buyer, 1)
    assert buyer.leave() == 0
    backup = mesh.folder / "backup"
    copy_home(buyer.folder, backup)
    buyer.restart()
    work(buyer, 2)
    height = chain_of(buyer, buyer.peer).height
    eventually(lambda: are_equal(nodes, height), "all have the buyer's entries")
    assert buyer.leave() == 0
    shutil.rmtree(buyer.folder)
    copy_home(backup, buyer.folder)
    assert chain_of(buyer, buyer.peer).height < height
    buyer.restart()
    eventually(lambda: chain_of(buyer, buyer.peer).height >= height, "what was lost is back")
    work(buyer, 1)
    eventually(lambda: are_equal(nodes, height + 2), "all have what came after")
    assert [chain_of(node, buyer.peer).forked for node in nodes] == [False] * 3
    assert chain_of(buyer, buyer.peer).top == chain_of(buyer, buyer.peer).height >= height + 2
    assert counter(buyer, "ledger_lost") >= 4
    assert [node.complaints() for node in nodes] == [[]] * 3


def copy_home(source: Path, target: Path) -> None:
    """All but what only a running node has."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("run"))
