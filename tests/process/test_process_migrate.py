"""Running tasks moved between real nodes: bytes and fuel of an unmoved run, and one bill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from process_nodes import PATIENCE_S, Mesh, Node, eventually, kinds_of, wait_for

from mesh.client import Limits
from mesh.v1 import order_pb2

EXAMPLES = Path(__file__).parents[2] / "mesh" / "examples"
MANDELBROT = EXAMPLES / "mandelbrot.movable.wasm"
COLLATZ = EXAMPLES / "collatz.movable.wasm"
OFTEN = {"MESH_MARKET__LEASE_TTL_S": "3"}
"""The shortest lease: its holder tells every second how far it is."""
LIMITS = Limits(
    memory=256 << 20, disk=16 << 20, fuel=10**12, max_price=10**9, deadline_ms=3_600_000
)
PROGRAMS = {"c": (MANDELBROT, ["2000", "1600"]), "rust": (COLLATZ, ["6000000"])}
"""Half a minute or so each, on an idle core."""


def submit(node: Node, program: str) -> str:
    module, args = PROGRAMS[program]
    return node.client.submit(module, args, limits=LIMITS).id


def left_by(node: Node, record: order_pb2.Task) -> dict[str, bytes]:
    """Every byte that a task left."""
    result = record.result
    files = {file.path: file.cid for file in node.client.files(result.output)}
    return {
        "stdout": b"".join(node.client.read(result.stdout)),
        "stderr": b"".join(node.client.read(result.stderr)),
        **{path: b"".join(node.client.read(cid)) for path, cid in files.items()},
    }


def runs_on(node: Node, task: str, beyond: int) -> order_pb2.Task:
    """The record once it runs and has burnt more than *beyond*."""

    def is_further() -> order_pb2.Task | None:
        record = node.client.record(task)
        assert not record.HasField("result"), f"it ended too soon: {record}"
        return record if record.executor and record.fuel > beyond else None

    record = eventually(is_further, f"{task} burns more than {beyond}")
    assert record is not None
    return record


def moved(node: Node, task: str) -> int:
    """Have it moved; the fuel that it had burnt by then."""
    before = len(node.client.record(task).path)
    node.client.migrate(task)

    def has_moved() -> bool:
        record = node.client.record(task)
        assert not record.HasField("result"), f"it ended too soon: {record}"
        return len(record.path) > before

    eventually(has_moved, f"{task} is moved")
    return node.client.record(task).path[-1].fuel


def check_one_bill(node: Node, record: order_pb2.Task) -> None:
    """Its parts add up to what an unmoved run burns, which leaves the same: it is run again."""
    settles = [r for r in node.client.receipts(record.task_id) if r.kind.lower() == "settle"]
    assert sum(receipt.fuel for receipt in settles) == record.fuel
    assert sum(receipt.amount for receipt in settles) == record.amount
    audit = json.loads(node.command("audit", "--rerun", "1", "--json").stdout)
    (again,) = [each for each in audit["findings"] if each["check"] == "rerun"]
    assert (again["is_good"], again["is_skipped"]) == (True, False), again
    assert f"{record.fuel} fuel" in again["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("program", ["c", pytest.param("rust", marks=pytest.mark.long)])
def test_a_task_moved_five_times_leaves_what_an_unmoved_one_does(mesh: Mesh, program: str) -> None:
    buyer, *_ = mesh.start(3, buyers=1, **OFTEN)
    mesh.meet()
    task = submit(buyer, program)
    wait_for(buyer.client, task, "running")
    burnt, hosts = 0, []
    for _ in range(5):
        record = runs_on(buyer, task, burnt)
        hosts.append(record.executor)
        burnt = moved(buyer, task)
    record = buyer.client.task(task).result(PATIENCE_S)
    assert record.moves == 5
    assert [step.source for step in record.path] == hosts
    assert len(set(hosts)) == 2
    check_one_bill(buyer, record)
    kinds = [kind for kind in kinds_of(buyer.client.receipts(task)) if kind[0] != "use"]
    assert kinds == [(kind, fence) for fence in range(1, 7) for kind in ("alloc", "settle")]


@pytest.mark.long
def test_a_drained_node_is_empty_and_its_task_goes_on_elsewhere(mesh: Mesh) -> None:
    buyer, *_ = mesh.start(3, buyers=1, **OFTEN)
    mesh.meet()
    task = submit(buyer, "c")
    record = runs_on(buyer, task, 0)
    moved_by_hand = buyer.command("migrate", task)
    assert moved_by_hand.returncode == 0, moved_by_hand.stderr
    first = mesh.node_of(buyer.client.record(task).executor)
    drained = first.command("drain")
    assert drained.returncode == 0, drained.stderr
    assert first.client.status().tasks_hosted == 0
    assert first.client.status().draining
    record = buyer.client.task(task).result(PATIENCE_S)
    assert (record.moves, record.executor != first.peer) == (2, True)
    assert len(record.path) == 2, "nothing of it was lost"
    assert first.command("activate").returncode == 0
    eventually(lambda: first.client.status().free.slots > 0, "it sells again")


@pytest.mark.long
def test_an_executor_that_leaves_takes_its_task_out_alive(mesh: Mesh) -> None:
    """Nothing that it did is lost, and its buyer waits for no lease to end."""
    buyer, *_ = mesh.start(3, buyers=1, MESH_MARKET__LEASE_TTL_S="600")
    mesh.meet()
    task = submit(buyer, "c")
    executor = mesh.executor_of(buyer, task)
    assert executor.leave() == 0
    assert "Traceback" not in executor.member.tail()
    record = buyer.client.task(task).result(PATIENCE_S)
    assert [step.source for step in record.path] == [executor.peer]
    assert record.path[0].fuel > 0
    assert kinds_of(buyer.client.receipts(task)) == [
        (kind, fence) for fence in (1, record.fence) for kind in ("alloc", "settle")
    ]


@pytest.mark.long
def test_a_task_whose_executor_is_killed_goes_on_from_its_last_checkpoint(mesh: Mesh) -> None:
    buyer, *_ = mesh.start(3, buyers=1, **OFTEN, MESH_SELL__CHECKPOINT_S="2")
    mesh.meet()
    unmoved = buyer.client.task(submit(buyer, "c")).result(PATIENCE_S)
    task = submit(buyer, "c")
    record = runs_on(buyer, task, 0)
    first = mesh.node_of(record.executor)
    eventually(lambda: buyer.client.record(task).saved_fuel, "its state is kept")
    first.kill()
    record = buyer.client.task(task).result(PATIENCE_S)
    assert record.executor != first.peer
    assert record.path[0].fuel > 0
    assert left_by(buyer, record) == left_by(buyer, unmoved)
    assert record.fuel == unmoved.fuel
    check_one_bill(buyer, record)
    first.restart()
    eventually(lambda: buyer.client.status().pending == 0, "its account is closed")
    eventually(lambda: first.client.status().earned, "it is paid for what it did")
