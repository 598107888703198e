"""Nodes under T2: work goes on with a quorum of witnesses, waits while none is there, and is done
once it is back."""

from __future__ import annotations

import json

import pytest
from process_ledgers import counter, kinds_in
from process_nodes import SMALL, WITNESS, Mesh, Node, eventually, wait_for_end

from ledger.model import Kind
from mesh.identity.keys import load_or_create
from mesh.ids import format_peer
from mesh.paths import find_home
from mesh.v1 import order_pb2

COUNT = 4
"""Witnesses, of which three must vote."""
PATIENCE_S = 150.0
"""A task that has waited for witnesses asks again after a minute at most."""


def start(mesh: Mesh) -> tuple[Node, list[Node]]:
    """A buyer, and sellers that are its witnesses: all ask for certificates of the same quorum."""
    keys = []
    for number in range(1, COUNT + 2):
        folder = mesh.folder / f"node-{number}"
        path = find_home({"MESH_HOME": str(folder)}).key_file
        folder.mkdir()
        keys.append(load_or_create(path))
    witnesses = ",".join(format_peer(key.peer) for key in keys[1:])
    settings = {
        "MESH_LEDGER__TIER": "T2",
        "MESH_LEDGER__WITNESSES": witnesses,
        "MESH_LEDGER__WITNESS": "true",
        "MESH_LEDGER__REPAIR_S": "3",
    }
    buyer, *judges = mesh.start(COUNT + 1, buyers=1, **settings)
    mesh.meet()
    return buyer, judges


def submit(node: Node) -> str:
    return node.client.submit(WITNESS, [], limits=SMALL).id


def is_done(node: Node, task: str) -> bool:
    return wait_for_end(node, task).state == order_pb2.TASK_STATE_DONE


@pytest.mark.long
def test_work_goes_on_with_a_quorum_and_waits_while_none_is_there(mesh: Mesh) -> None:
    buyer, judges = start(mesh)
    assert is_done(buyer, submit(buyer))
    assert counter(buyer, "certificates") >= 1
    for words in (("status",), ("ledger", "status")):
        shown = buyer.command(*words)
        assert "T2: a witness quorum of 4, 3 of them" in shown.stdout, shown

    judges[0].kill()
    assert is_done(buyer, submit(buyer))

    judges[1].kill()
    task = submit(buyer)

    def told_why() -> bool:
        shown = json.loads(buyer.command("inspect", task, "--output", "json").stdout)
        return "no certificate: 2 of 4 witnesses gave no vote, 3 must" in json.dumps(shown)

    eventually(told_why, "the owner is told why it waits")
    assert counter(buyer, "certificates_missing") >= 1

    judges[1].restart()
    eventually(lambda: is_done(buyer, task), "it is done once three are there", PATIENCE_S)
    for judge in judges[1:]:
        assert judge.complaints() == []
        assert counter(judge, "witness_voted") >= 1
    eventually(
        lambda: buyer.client.status().pending == 0, "what came to nothing is void", PATIENCE_S
    )
    assert Kind.VOID in kinds_in(buyer)
