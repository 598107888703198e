"""How a node's process ends when it is told to: by whom, how often, and what it leaves behind."""

from __future__ import annotations

import signal

import pytest
from process_nodes import PATIENCE_S, Mesh, Node, eventually


def start(mesh: Mesh) -> Node:
    (node,) = mesh.start(1)
    return node


@pytest.mark.slow
@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_a_node_that_is_told_to_stop_ends_well_and_leaves_no_door(
    mesh: Mesh, told: signal.Signals
) -> None:
    node = start(mesh)
    node.member.process.send_signal(told)
    assert node.member.process.wait(PATIENCE_S) == 0
    assert node.member.facts() is None
    assert not node.member.home.socket.exists()
    assert "Traceback" not in node.member.tail()


@pytest.mark.slow
def test_told_twice_a_node_that_hosts_a_task_stops_at_once(mesh: Mesh) -> None:
    """The second signal ends the waiting for messages that nobody may take any more."""
    buyer, _ = mesh.start(2, buyers=1)
    mesh.meet()
    seller = mesh.executor_of(buyer, buyer.spin())
    buyer.kill()
    seller.member.process.send_signal(signal.SIGINT)
    seller.member.process.send_signal(signal.SIGTERM)
    assert seller.member.process.wait(PATIENCE_S) == 0
    assert "Traceback" not in seller.member.tail()


@pytest.mark.slow
def test_a_second_node_at_one_home_is_exit_code_2_and_harms_nobody(mesh: Mesh) -> None:
    node = start(mesh)
    second = node.command("join", "--port", "0", "--grpc-port", "0", "--websocket-port", "0")
    assert second.returncode == 2
    error, hint = second.stderr.splitlines()[-2:]
    assert error.startswith("error: MESH_HOME: ")
    assert hint.startswith("hint: ")
    assert "Traceback" not in second.stderr
    eventually(lambda: node.client.status().peer, "the first goes on")
