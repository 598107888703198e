"""Eight nodes, one bootstrap address: everybody finds everybody, and all work gets done."""

from __future__ import annotations

import threading
import time

import pytest
from process_nodes import PATIENCE_S, SMALL, WITNESS, Mesh, Node, eventually

NODES = 8
TASKS = 50
MEET_S = 20.0
"""What is asked for: all see the offers of all. On a loaded machine three times that will do."""


@pytest.mark.long
def test_eight_nodes_find_one_another_and_do_fifty_tasks(mesh: Mesh) -> None:
    began = time.monotonic()
    nodes = mesh.start(NODES)
    up = time.monotonic()
    eventually(
        lambda: all(len(node.offers()) == NODES - 1 for node in nodes),
        "all see the offers of all",
        seconds=3 * MEET_S,
    )
    met = time.monotonic()
    tasks: list[list[str]] = [[] for _ in nodes]

    def submit(node: Node, place: int) -> None:
        for number in range(place, TASKS, NODES):
            task = node.client.submit(WITNESS, [f"task {number}"], limits=SMALL)
            tasks[place].append(task.id)

    clients = [
        threading.Thread(target=submit, args=(node, place)) for place, node in enumerate(nodes)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(PATIENCE_S)
    assert sum(map(len, tasks)) == TASKS
    for place, node in enumerate(nodes):
        for number, task in zip(range(place, TASKS, NODES), tasks[place], strict=True):
            record = node.client.task(task).result(PATIENCE_S)
            assert record.executor != node.peer
            stdout = b"".join(node.client.read(record.result.stdout))
            assert f"arg task {number}\n".encode() in stdout
    done = time.monotonic()
    print(f"up in {up - began:.1f} s, met in {met - up:.1f} s, {TASKS} tasks in {done - met:.1f} s")
    for node in nodes:
        assert node.complaints() == []
        assert node.client.status().pending == 0
    earned = sum(node.client.status().earned for node in nodes)
    assert earned == sum(node.client.status().posted for node in nodes)
