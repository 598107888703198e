"""kill -9 of any node: no running task is lost, none is settled twice, every award ends."""

from __future__ import annotations

import pytest
from process_nodes import (
    PATIENCE_S,
    Mesh,
    eventually,
    kinds_of,
    settles_on_disk,
    wait_for,
    wait_for_end,
)

SHORT_LEASE = {"MESH_MARKET__LEASE_TTL_S": "3"}
"""The shortest that may be set, so that a lost executor is noticed soon."""


@pytest.mark.long
def test_bystanders_and_the_bootstrap_node_may_die(mesh: Mesh) -> None:
    bootstrap, buyer, *_ = mesh.start(4, buyers=2, **SHORT_LEASE)
    mesh.meet()
    task = buyer.spin()
    executor = mesh.executor_of(buyer, task)
    bootstrap.kill()
    for node in mesh.nodes:
        if node not in (bootstrap, buyer, executor):
            node.kill()
    record = buyer.client.task(task).result(PATIENCE_S)
    assert (record.moves, record.fence, record.executor) == (0, 1, executor.peer)
    assert kinds_of(buyer.client.receipts(task)) == [("alloc", 1), ("settle", 1)]


@pytest.mark.long
@pytest.mark.parametrize("moment", ["before it was sent the inputs", "while it ran"])
def test_the_auctioneer_may_die_and_come_back(mesh: Mesh, moment: str) -> None:
    """Its task goes on where it was; whoever comes back with the id finds it."""
    _, buyer, *_ = mesh.start(3, buyers=2)  # the usual lease: longer than a start on any machine
    mesh.meet()
    task = buyer.spin(key=b"mine")
    executor = mesh.node_of(wait_for(buyer.client, task, "running").executor)
    if moment == "while it ran":
        eventually(executor.is_computing, "it runs")
    buyer.kill()
    buyer.restart()
    assert buyer.spin(key=b"mine") == task, "the same key is the same task"
    record = buyer.client.task(task).result(PATIENCE_S)
    assert (record.moves, record.fence, record.executor) == (0, 1, executor.peer)
    assert kinds_of(buyer.client.receipts(task)) == [("alloc", 1), ("settle", 1)]
    eventually(lambda: executor.client.status().earned == record.amount, "the seller is paid once")


@pytest.mark.long
def test_an_executor_that_dies_is_replaced_and_answers_when_it_is_back(mesh: Mesh) -> None:
    buyer, *_ = mesh.start(3, buyers=1, **SHORT_LEASE)
    mesh.meet()
    task = buyer.spin()
    first = mesh.executor_of(buyer, task)
    first.kill()
    record = buyer.client.task(task).result(PATIENCE_S)
    assert record.moves == 1
    assert record.executor != first.peer
    stdout = b"".join(buyer.client.read(record.result.stdout))
    assert stdout.startswith(b"spun to ")
    receipts = buyer.client.receipts(task)
    assert kinds_of(receipts) == [("alloc", 1), ("alloc", record.fence), ("settle", record.fence)]
    assert buyer.client.status().pending > 0, "the lost award is still accounted for"
    first.restart()
    eventually(lambda: ("void", 1) in kinds_of(buyer.client.receipts(task)), "its award is void")
    eventually(lambda: buyer.client.status().pending == 0, "nothing is set aside any more")
    assert buyer.complaints() == []
    buyer.kill()
    assert settles_on_disk(buyer, task) == 1


@pytest.mark.long
def test_an_executor_that_leaves_hands_its_task_over_at_once(mesh: Mesh) -> None:
    """Long before its lease would have run out."""
    buyer, *_ = mesh.start(3, buyers=1, MESH_MARKET__LEASE_TTL_S="600")
    mesh.meet()
    task = buyer.spin()
    executor = mesh.executor_of(buyer, task)
    assert executor.leave() == 0
    record = wait_for_end(buyer, task)
    assert record.moves == 1
    assert record.executor != executor.peer
    assert record.result.exit_code == 0
    assert ("void", 1) in kinds_of(buyer.client.receipts(task))
