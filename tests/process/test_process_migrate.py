"""Real nodes, and a task that computes at one, then at another: one result, one bill in parts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_nodes import PATIENCE_S, Mesh, Node, eventually, kinds_of, open_mesh, wait_for_end

import mesh.examples
from mesh.client import Limits
from mesh.v1 import order_pb2

MANDELBROT = Path(str(mesh.examples.__path__[0])) / "mandelbrot.movable.wasm"
SIZE = ("200", "20000")
"""Some seconds of work, so that there is a middle to be moved in."""
FUEL = 7_547_914_746
END = b"area 1.507812500, 9650 members of 40000 points"
LAST_ROW = b"row 200 of 200: 0 members, b4ce0aca980d7ac3"
"""As numpy has it, point by point: a checksum over all counts of steps."""
LIMITS = Limits(memory=32 << 20, disk=1 << 20, fuel=10**11, max_price=10**8)


@pytest.fixture(scope="module")
def three() -> Iterator[Mesh]:
    """A buyer and two sellers; the tests take them as the one before left them."""
    with open_mesh() as mesh:
        mesh.start(3, buyers=1)
        mesh.meet()
        yield mesh


def start(mesh: Mesh, module: Path) -> tuple[str, Node]:
    """A task that computes, and who computes it."""
    buyer = mesh.nodes[0]
    task = buyer.client.submit(module, SIZE, limits=LIMITS, movable="no").id
    return task, mesh.executor_of(buyer, task)


def earned(mesh: Mesh) -> list[int]:
    """What each has earned so far."""
    return [node.client.status().earned for node in mesh.nodes]


def check_end(mesh: Mesh, task: str, left: Node, before: list[int]) -> order_pb2.Task:
    """It went on from where it was, ended well elsewhere, and everybody got their part."""
    buyer = mesh.nodes[0]
    record = wait_for_end(buyer, task)
    assert (record.result.status, record.result.exit_code) == ("exited", 0), record
    assert record.executor not in ("", left.peer)
    (move,) = record.path
    assert (record.moves, move.source) == (1, left.peer)
    assert min(move.fuel, record.result.fuel) > 0, "in the middle of its work"
    assert move.fuel + record.result.fuel == FUEL, "to the unit what it burns in one place"
    assert b"".join(buyer.client.read(record.result.output, "area.txt")) == b"1.507812500\n"
    told = b"".join(buyer.client.read(record.result.stdout)).splitlines()
    assert told[-2:] == [LAST_ROW, END]
    assert len(told) == int(SIZE[0]) + 1, "what it said before it moved is there, and once"
    eventually(
        lambda: sum(earned(mesh)) == sum(before) + record.amount,
        "what they earn is what it costs",
    )
    assert all(now > was for now, was in zip(earned(mesh)[1:], before[1:], strict=True))
    kinds = [kind for kind, _ in kinds_of(buyer.client.receipts(task))]
    assert (kinds.count("alloc"), kinds.count("settle")) == (2, 2)
    return record


@pytest.mark.slow
def test_a_task_moves_to_another_node_in_the_middle_of_its_work(three: Mesh) -> None:
    buyer, before = three.nodes[0], earned(three)
    task, left = start(three, MANDELBROT)
    moved = buyer.command("migrate", task)
    assert moved.returncode == 0, moved.stderr
    record = check_end(three, task, left, before)
    assert f"goes on at …{record.executor[-6:]}" in moved.stderr
    audit = buyer.command("audit", "--rerun", "--task", task, "--json")
    assert audit.returncode == 0, audit.stdout
    reruns = [f for f in json.loads(audit.stdout)["findings"] if f["check"] == "rerun"]
    assert any(each["is_good"] for each in reruns), "run again from its start, it burns as much"
    assert not any(node.complaints() for node in three.nodes)


@pytest.mark.slow
def test_who_drains_its_node_gives_the_task_away_alive(three: Mesh) -> None:
    before = earned(three)
    task, left = start(three, MANDELBROT)
    drained = left.command("drain")
    assert drained.returncode == 0, drained.stderr
    check_end(three, task, left, before)
    opened = left.command("activate")
    assert opened.returncode == 0, opened.stderr


@pytest.mark.slow
def test_a_task_that_was_not_made_for_it_stays_and_the_reason_is_told(three: Mesh) -> None:
    buyer = three.nodes[0]
    task, executor = start(three, MANDELBROT.with_name("mandelbrot.wasm"))
    stays = buyer.command("migrate", task)
    assert stays.returncode == 3, stays.stderr
    assert "was not moved" in stays.stderr
    record = buyer.client.task(task).wait(PATIENCE_S)
    assert (record.moves, record.executor, record.result.exit_code) == (0, executor.peer, 0)
