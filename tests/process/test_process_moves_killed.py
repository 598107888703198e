"""kill -9 of whoever takes part in a move, in each of its phases: the bytes and fuel of an unmoved
run, each unit of it paid once, and every account closed.

Twenty minutes a round on a busy machine; MESH_MOVE_KILLS is a number of rounds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from attrs import frozen
from process_nodes import (
    GUESTS,
    PATIENCE_S,
    Mesh,
    Node,
    eventually,
    open_mesh,
    wait_for_end,
)

from mesh.client import Limits
from mesh.v1 import order_pb2

HEAP, ARGS = GUESTS / "heap.movable.wasm", ["48", "8000"]
"""48 MiB, half of them chance: laying out, collecting and fetching them takes a while."""
LIMITS = Limits(memory=96 << 20, disk=16 << 20, fuel=10**12, max_price=10**9, deadline_ms=3_600_000)
NOWHERE = Limits(memory=96 << 20, disk=1 << 40, fuel=10**9, max_price=10**6)
"""Nobody sells so much."""
LONG, USUAL, SHORT = "60", "15", "4"
"""Leases, in seconds: outliving any restart, a node's own, and soon over."""
CLOSES = ("settle", "void")
BEGUN = 1 << 20
"""Bytes of a state after which it is certainly on its way, and not there yet."""


@frozen
class Move:
    """A task that is on its way from *source* to *target*."""

    task: str
    fence: int
    buyer: Node
    source: Node
    target: Node


def hosted(node: Node, task: str, what: str, beyond: int = 0) -> Iterator[None]:
    """Wait until *node* tells *what* it did as an executor of *task*, after the fence *beyond*."""
    for event in node.client.watch(timeout=PATIENCE_S):
        if event.WhichOneof("event") != "notice":
            yield  # its records: from here on it is watched
            continue
        told = event.notice.hosted
        if (told.task_id, told.what) == (task, what) and told.fence > beyond:
            return


def grown(node: Node) -> Iterator[None]:
    """Wait until *node* has part of a state that it had not."""

    def stored() -> int:
        return node.client.status().counters["blocks_bytes"]

    least = stored()
    yield

    def has_begun() -> bool:
        nonlocal least
        now = stored()
        least = min(least, now)
        return now >= least + BEGUN

    eventually(has_begun, f"{node.name} stores a state", tick_s=0.001)


def computing(node: Node) -> Iterator[None]:
    """Wait until *node* computes: it takes the state up, or has."""
    yield
    eventually(node.is_computing, f"it goes on at {node.name}")


PHASES: dict[str, Callable[[Move], Iterator[None]]] = {
    "asked": lambda move: hosted(move.source, move.task, "leaving"),
    "laid into blocks": lambda move: grown(move.source),
    "given back": lambda move: hosted(move.source, move.task, "left"),
    "collected": lambda move: grown(move.buyer),
    "awarded": lambda move: hosted(move.target, move.task, "held", move.fence),
    "fetched": lambda move: grown(move.target),
    "resumed": lambda move: computing(move.target),
}
"""Each yields once it is looked at closely, and ends when the phase has begun."""


@frozen
class Scenario:
    """Who is killed when, and when it is started again."""

    phase: str
    victim: str
    is_back_at_once: bool = True

    def __str__(self) -> str:
        back = "back at once" if self.is_back_at_once else "back when all is over"
        return f"{self.victim} killed when {self.phase}, {back}"

    @property
    def lease_s(self) -> str:
        """Whoever is awaited is awaited for long enough, and who is not, not for long."""
        if not self.is_back_at_once:
            return SHORT
        return LONG if self.victim == "source" else USUAL

    @property
    def states_safe(self) -> int:
        """From how many states it goes on at least: nothing that was safe is done again. A quick
        machine may have made one safe before the blow falls."""
        if self.victim != "source":
            return 1
        return int(self.is_back_at_once and self.phase in ("given back", "collected"))


ENDINGS = [True, False]
SCENARIOS = [
    *(
        Scenario(phase, "source", back)
        for phase in ("asked", "laid into blocks", "given back", "collected")
        for back in ENDINGS
    ),
    *(
        Scenario(phase, "target", back)
        for phase in ("awarded", "fetched", "resumed")
        for back in ENDINGS
    ),
    *(Scenario(phase, "buyer") for phase in PHASES),
]
ROUNDS = int(os.environ.get("MESH_MOVE_KILLS", "1"))
"""How often each of them is played."""


def start(mesh: Mesh, lease_s: str) -> Node:
    """A buyer and two sellers, of whom every one has a record that a watch of it begins with; and
    one that they all find again, at whatever port they are."""
    _, buyer, *sellers = mesh.start(4, buyers=2, MESH_MARKET__LEASE_TTL_S=lease_s)
    for node in sellers:
        node.client.cancel(node.client.submit(HEAP, limits=NOWHERE).id)
    mesh.meet()
    return buyer


def left_by(node: Node, record: order_pb2.Task) -> tuple[bytes, bytes, list[str]]:
    """All that a task left."""
    result = record.result
    stdout, stderr = (b"".join(node.client.read(cid)) for cid in (result.stdout, result.stderr))
    return stdout, stderr, [file.path for file in node.client.files(result.output)]


@pytest.fixture(scope="module")
def unmoved() -> Iterator[tuple[int, tuple[bytes, bytes, list[str]]]]:
    """What a run burns and leaves that nothing happens to."""
    with open_mesh() as mesh:
        buyer, _ = mesh.start(2, buyers=1)
        mesh.meet()
        record = buyer.client.submit(HEAP, ARGS, limits=LIMITS).result(PATIENCE_S)
        yield record.fuel, left_by(buyer, record)


def begin(mesh: Mesh, buyer: Node) -> Move:
    """A task that runs, and is to be moved."""
    task = buyer.client.submit(HEAP, ARGS, limits=LIMITS).id
    source = mesh.executor_of(buyer, task)
    (target,) = [node for node in mesh.nodes[2:] if node is not source]
    return Move(task, buyer.client.record(task).fence, buyer, source, target)


def sound(node: Node) -> bool:
    return node.complaints() == []


def check_bill(move: Move, record: order_pb2.Task) -> None:
    """What was burnt is paid once, and nothing is left open."""
    buyer = move.buyer.client

    def all_closed() -> bool:
        """By status and by receipts: those tell of what is on disk, and are a moment later."""
        receipts = buyer.receipts(move.task)
        closed = sorted(receipt.fence for receipt in receipts if receipt.kind.lower() in CLOSES)
        return buyer.status().pending == 0 and closed == sorted({r.fence for r in receipts})

    eventually(all_closed, "every award is closed, once")
    settles = [r for r in buyer.receipts(move.task) if r.kind.lower() == "settle"]
    assert sum(receipt.fuel for receipt in settles) == record.fuel
    assert sum(receipt.amount for receipt in settles) == record.amount
    sellers = [move.source, move.target]
    eventually(
        lambda: sum(node.client.status().earned for node in sellers) == record.amount,
        "the sellers know of what they are paid",
    )
    for node in (move.buyer, *sellers):
        # Who was away heard of the last payment and not yet of its award: repair brings that.
        eventually(partial(sound, node), f"{node.name} finds nothing wrong")


@pytest.mark.long
@pytest.mark.parametrize("scenario", SCENARIOS * ROUNDS, ids=str)
def test_whoever_is_killed_in_a_move_costs_nothing_but_time(
    mesh: Mesh, unmoved: tuple[int, tuple[bytes, bytes, list[str]]], scenario: Scenario
) -> None:
    move = begin(mesh, start(mesh, scenario.lease_s))
    victim: Node = getattr(move, scenario.victim)
    phase = PHASES[scenario.phase](move)
    next(phase)
    move.buyer.client.migrate(move.task)
    for _ in phase:
        pass
    victim.kill()
    if scenario.is_back_at_once:
        victim.restart()
    record = wait_for_end(move.buyer, move.task)
    if not scenario.is_back_at_once:
        victim.restart()
    assert record.result.status == "exited", record
    assert (record.fuel, left_by(move.buyer, record)) == unmoved
    assert scenario.states_safe <= len(record.path) <= 1, record
    check_bill(move, record)
