"""A program in Python that is moved from node to node in the middle of what it writes.

It needs CPython made movable: MESH_PYTHON_MOVABLE names the module. Making it takes two to five
minutes of processor (`mesh module instrument`), each node compiles it for half a minute or more,
and this test takes three on two idle cores.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from process_nodes import Mesh, Node, eventually

from mesh.client import Limits
from mesh.runtime.interpreters import PROGRAM, arguments
from mesh.v1 import order_pb2

MODULE = os.environ.get("MESH_PYTHON_MOVABLE", "")
pytestmark = pytest.mark.skipif(not MODULE, reason="MESH_PYTHON_MOVABLE names no module of CPython")
DIGITS = Path(__file__).parents[2] / "mesh" / "examples" / "digits.py"
COUNT = 12_000
LIMITS = Limits(memory=128 << 20, disk=8 << 20, fuel=10**12, max_price=10**9, deadline_ms=3_600_000)
PATIENCE_S = 1_800.0
"""A module of 19 MB is compiled by every node that runs it."""
MOVES = 5


def goes_on(node: Node, task: str, beyond: int) -> None:
    """Wait until it has burnt more than *beyond*, wherever it is by now."""

    def is_further() -> bool:
        record = node.client.record(task)
        assert not record.HasField("result"), f"it ended too soon: {record}"
        return bool(record.executor) and record.fuel > beyond

    eventually(is_further, f"{task} burns more than {beyond}", PATIENCE_S)


def move(node: Node, task: str) -> int:
    """Have it moved, and ask again where the moment was a bad one; the fuel burnt by then."""
    before = len(node.client.record(task).path)
    node.client.migrate(task)

    def has_moved() -> bool:
        record = node.client.record(task)
        assert not record.HasField("result"), f"it ended too soon: {record}"
        if record.reason.startswith("it stays"):
            node.client.migrate(task)
        return len(record.path) > before

    eventually(has_moved, f"{task} is moved", PATIENCE_S)
    return node.client.record(task).path[-1].fuel


def check_rerun(node: Node, record: order_pb2.Task) -> None:
    """An unmoved run burns as much as all parts together, and leaves the same bytes."""
    settles = [r for r in node.client.receipts(record.task_id) if r.kind.lower() == "settle"]
    assert len(settles) == MOVES + 1
    assert sum(receipt.fuel for receipt in settles) == record.fuel
    assert sum(receipt.amount for receipt in settles) == record.amount
    findings = list(node.client.audit(rerun=True, newest=1, timeout=PATIENCE_S))
    (again,) = [finding for finding in findings if finding.check == "rerun"]
    assert (again.is_good, again.is_skipped) == (True, False), again
    assert f"{record.fuel} fuel" in again.detail


@pytest.mark.long
def test_a_program_moved_five_times_writes_what_it_would_have_written(mesh: Mesh) -> None:
    buyer, *_ = mesh.start(3, buyers=1, MESH_MARKET__LEASE_TTL_S="6")
    mesh.meet()
    task = buyer.client.submit(
        MODULE, arguments((str(COUNT),)), inputs={PROGRAM: DIGITS}, limits=LIMITS
    ).id
    burnt, hosts = 0, []
    for _ in range(MOVES):
        goes_on(buyer, task, burnt)
        hosts.append(buyer.client.record(task).executor)
        burnt = move(buyer, task)
    record = buyer.client.task(task).result(PATIENCE_S)
    assert (record.moves, [step.source for step in record.path]) == (MOVES, hosts)
    assert len(set(hosts)) == 2
    check_rerun(buyer, record)
    lines = b"".join(buyer.client.read(record.result.output, "pi.txt")).decode().splitlines()
    assert lines[0] == "3141592653"
    assert len("".join(lines)) == COUNT
    shown = b"".join(buyer.client.read(record.result.stdout)).decode().splitlines()
    assert [line.partition(" ")[0] for line in shown] == lines
    assert [int(line.rpartition(" ")[2]) for line in shown] == list(range(10, COUNT + 1, 10))
