"""The verbs of the ledger against real nodes: a bill is audited, written down, and checked."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from process_nodes import PATIENCE_S, SMALL, SOURCE, WITNESS, Mesh, Node, eventually

from mesh.client import Unreachable


def facts(node: Node, *words: str, code: int = 0) -> dict[str, object]:
    done = node.command(*words, "--json")
    assert done.returncode == code, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


@pytest.mark.long
def test_a_bill_is_audited_written_down_and_checked_without_a_node(mesh: Mesh) -> None:
    buyer, seller = mesh.start(2, buyers=1)
    mesh.meet()
    for number in range(2):
        buyer.client.submit(WITNESS, [f"task {number}"], limits=SMALL).result(PATIENCE_S)
    eventually(lambda: seller.client.status().earned, "the seller is paid")
    for node in (buyer, seller):  # the seller fetches nothing: it ran the job itself
        audit = facts(node, "audit", "--rerun", "1", "--export", "bundle")
        findings = audit["findings"]
        assert isinstance(findings, list)
        (again,) = [each for each in findings if each["check"] == "rerun"]
        assert (again["is_good"], bool(again["evidence"])) == (True, True), again
    bundle = buyer.folder / "bundle"
    assert '"rerun"' in bundle.read_text()
    assert buyer.command("audit", "--verify", str(bundle)).returncode == 0
    alone = subprocess.run(
        [sys.executable, "-m", "ledger", "verify", str(bundle)],
        cwd=SOURCE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (alone.returncode, " 0 not good" in alone.stdout) == (0, True), alone.stdout
    told = facts(seller, "ledger", "status")
    assert str(told["promise"]).startswith(f"{told['tier']}: ")
    (line,) = told["lines"]  # type: ignore[misc]
    assert (line["buyer"], line["owed"]) == (buyer.peer, told["earned"])


@pytest.mark.long
def test_a_third_node_runs_a_bill_of_two_others_again(mesh: Mesh) -> None:
    """It had no part in the deal: the receipt came by gossip, the job comes from its parties."""
    buyer, auditor, _seller = mesh.start(3, buyers=2)
    mesh.meet()
    record = buyer.client.submit(WITNESS, ["a task"], limits=SMALL).result(PATIENCE_S)
    eventually(
        lambda: record.settle in {receipt.receipt_id for receipt in auditor.client.receipts()},
        "the receipt is known to all",
    )
    told = facts(auditor, "audit", "--rerun", "all", "--others", "--export", "bundle")
    findings = told["findings"]
    assert isinstance(findings, list)
    (again,) = [each for each in findings if each["check"] == "rerun"]
    assert (again["receipt_id"], again["is_good"]) == (record.settle, True), again
    assert auditor.command("audit", "--verify", "bundle").returncode == 0


@pytest.mark.long
def test_a_line_that_is_set_is_signed_and_holds_after_a_restart(mesh: Mesh) -> None:
    buyer, seller = mesh.start(2, buyers=1)
    mesh.meet()
    facts(seller, "line", buyer.peer[-8:], "0.25")

    def limit() -> int:
        return next((each.limit for each in seller.client.lines()), 0)

    eventually(lambda: limit() == 250_000, "the line is set")
    eventually(lambda: "LINE" in _kinds(seller), "the line is signed")
    seller.leave()
    seller.restart()
    assert limit() == 250_000
    receipt = next(each for each in seller.client.receipts() if each.kind == "LINE")
    assert (receipt.says, receipt.signatures_good) == ("line of 0.2500 cr", 1)
    assert seller.command("fsck").returncode == 0


@pytest.mark.long
def test_an_owners_word_is_brought_to_one_node_and_known_to_all(mesh: Mesh) -> None:
    buyer, seller = mesh.start(2, buyers=1)
    mesh.meet()
    owner = facts(buyer, "key", "new-owner", "owner.key")
    agreed = buyer.command("key", "consent", "--owner", str(owner["public"])).stdout.strip()
    words = ("--owner-key=owner.key", f"--node={buyer.peer}", f"--consent={agreed}")
    facts(buyer, "key", "delegate", *words)
    assert facts(buyer, "ledger", "import", "owner.key.chain")["added"] == 1
    assert facts(buyer, "key", "show")["owners"] == [owner["peer"]]
    eventually(lambda: _keyops(seller) == 1, "the other node knows")
    facts(buyer, "key", "revoke", "--owner-key=owner.key", f"--node={buyer.peer}", "--yes")
    taken = facts(buyer, "ledger", "import", "owner.key.chain")
    assert (taken["added"], taken["known"]) == (1, 1)
    assert facts(buyer, "key", "show")["is_retired"] is True

    eventually(lambda: _keyops(seller) == 2, "the other node knows that too")
    task = buyer.client.submit(WITNESS, ["no"], limits=SMALL)
    eventually(
        lambda: any("retired" in answer.reason for answer in task.record.answers),
        "nobody sells to a retired key",
    )


def _keyops(node: Node) -> int:
    return sum(receipt.kind == "KEYOP" for receipt in node.client.receipts())


def _kinds(node: Node) -> set[str]:
    try:
        return {receipt.kind for receipt in node.client.receipts()}
    except Unreachable:
        return set()


@pytest.mark.long
def test_a_node_with_a_rotated_key_goes_on_and_its_old_key_is_turned_away(mesh: Mesh) -> None:
    buyer, seller = mesh.start(2, buyers=1)
    mesh.meet()
    buyer.client.submit(WITNESS, ["before"], limits=SMALL).result(PATIENCE_S)
    eventually(lambda: seller.client.status().earned, "the seller is paid")
    assert facts(seller, "fsck")["is_good"] is True, "beside the running node"
    assert seller.command("key", "rotate").returncode == 2, "it runs"
    old = seller.peer
    seller.leave()
    assert facts(seller, "key", "recovery", "recovery.key")
    fresh = facts(seller, "key", "rotate")["peer"]
    keys = seller.member.home.keys
    (kept,) = keys.glob("node.key.old-*")
    seller.restart()
    assert seller.peer == fresh != old
    mesh.meet()
    record = buyer.client.submit(WITNESS, ["after"], limits=SMALL).result(PATIENCE_S)
    assert record.executor == fresh
    eventually(
        lambda: seller.command("line", buyer.peer, "1").returncode == 0,
        "peers have confirmed where the chain begins",
    )
    eventually(lambda: "LINE" in _kinds(seller), "the new key has a chain")
    assert seller.complaints() == []
    assert facts(seller, "fsck")["is_good"] is True
    seller.leave()
    kept.replace(keys / "node.key")
    done = seller.command("join", "--port", "0", "--grpc-port", "0", "--websocket-port", "0")
    assert done.returncode == 2
    assert "was rotated to" in done.stderr
