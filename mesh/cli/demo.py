"""`mesh demo`: three real nodes, one task, from the first offer to the audit of its bill."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import click

from mesh import units
from mesh.cli.devnet import NODES_MAX, Devnet, keep, run_devnet
from mesh.cli.options import DURATION
from mesh.cli.render import Story, print_json, print_lines
from mesh.cli.submit import follow
from mesh.cli.words import Lines, clean, show_chance, show_cores, show_fuel
from mesh.client.limits import Limits

if TYPE_CHECKING:
    from mesh.client import Client
    from mesh.v1 import ledger_pb2, node_pb2, order_pb2

MODULE, INPUT = "wordcount.wasm", "book.txt"
"""In mesh/examples: the module counts the words of its own source."""
_LIMITS = Limits(fuel=2_000_000_000, wall_ms=60_000, deadline_ms=300_000)
_SHOWN = 400
"""Bytes of the output that are shown."""


@click.command()
@click.option("--nodes", type=click.IntRange(3, NODES_MAX), default=3, show_default=True)
@click.option("--keep", "is_kept", is_flag=True, help="Leave it running until Ctrl-C.")
@click.option("--timeout", type=DURATION, default="180s", show_default=True, help="For each step.")
@click.option("--json", "as_json", is_flag=True, help="The facts as one object on stdout.")
def demo(*, nodes: int, is_kept: bool, timeout: int, as_json: bool) -> None:
    """Three real nodes, one task: offers, bids, award, metered run, receipt, audit."""
    story = Story()
    story.tell(f"1  {nodes} nodes start on this machine: libp2p, gossip, WASM, receipts, all real")
    with run_devnet(nodes, story, timeout / 1000) as devnet:
        facts = play(devnet, story, timeout / 1000)
        if as_json:
            print_json(facts)
        else:
            print_lines(summary(facts))
        _insist(facts)
        if is_kept:
            sys.stdout.flush()
            keep(devnet, story)


def play(devnet: Devnet, story: Story, timeout: float) -> dict[str, Any]:
    """The whole story; what a script may want to know of it."""
    client = devnet.clients[0]
    peers_seen = _meet(devnet, client, story)
    story.tell(f"3  a client bids for compute at node-1: {MODULE} over {INPUT}")
    record = _run(devnet, client, story, timeout)
    facts: dict[str, Any] = {
        "schema": "mesh.demo/v1",
        "nodes": [
            {"name": member.name, "peer": facts["peer"], "grpc": facts["grpc"]}
            for member, facts in zip(devnet.members, devnet.facts, strict=True)
        ],
        "peers_seen": peers_seen,
        "auction": _auction(devnet, record),
        "task": {
            "id": record.task_id,
            "exit_code": record.result.exit_code,
            "fuel": record.result.fuel,
            "run_ms": record.result.run_ms,
            "cost": record.amount,
        },
        "output": _output(client, record, story),
        "receipt": _receipt(client, record, story),
        "audit": _audit(client, record, story, timeout),
    }
    story.clear()
    return facts


def _meet(devnet: Devnet, client: Client, story: Story) -> int:
    """Tell what is for sale. The number of offers that node-1 has heard."""
    story.tell("2  they find one another, and each gossips a signed offer")
    offering = [peer for peer in client.peers() if peer.HasField("offer")]
    for peer in offering:
        story.tell(f"     {_offer_line(devnet, peer)}")
    return len(offering)


def _offer_line(devnet: Devnet, peer: node_pb2.Peer) -> str:
    sold, price = peer.offer.sold, units.show_money(peer.offer.price)
    size = f"{show_cores(sold.cpu_milli)}, {units.show_size(sold.memory)}"
    return f"{devnet.name_of(peer.peer)} sells {size} at {price} for 10^9 fuel"


def _run(devnet: Devnet, client: Client, story: Story, timeout: float) -> order_pb2.Task:
    """Submit the example and follow it to its end. Raises TaskFailed or NotPlaced."""
    from mesh.client.task import check

    with resources.as_file(resources.files("mesh.examples")) as examples:
        book = {INPUT: examples / INPUT}
        task = client.submit(examples / MODULE, [INPUT], inputs=book, limits=_LIMITS, movable="no")
    record = follow(task, story, timeout, devnet.name_of)
    story.clear()
    check(record)
    result = record.result
    run = units.show_duration(result.run_ms)
    story.tell(f"4  it ran metered: {show_fuel(result.fuel)} in {run}, exit code 0")
    return record


def _auction(devnet: Devnet, record: order_pb2.Task) -> dict[str, Any]:
    return {
        "bids": [
            {
                "node": devnet.name_of(answer.peer),
                "peer": answer.peer,
                "price": answer.price,
                "p_on_time": answer.p_on_time,
                "reason": answer.reason,
                "verdict": answer.verdict,
            }
            for answer in record.answers
            if answer.is_bid
        ],
        "winner": devnet.name_of(record.executor),
        "max_price": record.max_price,
    }


def _output(client: Client, record: order_pb2.Task, story: Story) -> dict[str, Any]:
    """What the task left in /out, by content id; the head of its first file."""
    cid = record.result.output
    files = [{"path": file.path, "size": file.size, "cid": file.cid} for file in client.files(cid)]
    story.tell(f"5  its output: {cid}")
    head = b""
    if files:
        for chunk in client.read(cid, str(files[0]["path"])):
            head += chunk
            if len(head) >= _SHOWN:
                break
    return {"cid": cid, "files": files, "head": head[:_SHOWN].decode(errors="replace")}


def _receipt(client: Client, record: order_pb2.Task, story: Story) -> dict[str, Any]:
    """The entry that settles the task. Raises VerificationFailed where there is none."""
    from mesh.client.errors import VerificationFailed

    found = [
        receipt
        for receipt in client.receipts(record.task_id)
        if receipt.receipt_id == record.settle
    ]
    if not found:
        raise VerificationFailed(f"{record.task_id} has no receipt {record.settle}")
    receipt = found[0]
    price = units.show_money(receipt.amount)
    story.tell(f"6  paid {price}, signed by both: {receipt.receipt_id}")
    return {
        "id": receipt.receipt_id,
        "signatures": receipt.signatures_good,
        "amount": receipt.amount,
        "fuel": receipt.fuel,
        "meter": receipt.meter,
    }


def _audit(client: Client, record: order_pb2.Task, story: Story, timeout: float) -> dict[str, Any]:
    """Check everything and run the bill again."""
    story.pass_by("7  the audit runs the bill again")
    findings = list(client.audit(rerun=True, task=record.task_id, timeout=timeout))
    for finding in findings:
        verdict = "ok  " if finding.is_good else "FAIL"
        story.tell(f"     {verdict} {finding.check}: {clean(finding.detail)}")
    good = sum(finding.is_good for finding in findings)
    equal = _rerun_equal(findings)
    story.tell(f"7  audit: {good} of {len(findings)} checks good; the re-run agrees: {equal}")
    return {"checks": len(findings), "good": good, "rerun_equal": equal}


def _rerun_equal(findings: Sequence[ledger_pb2.LedgerAuditResponse]) -> bool:
    reruns = [finding.is_good for finding in findings if finding.check == "rerun"]
    return bool(reruns) and all(reruns)


def _insist(facts: dict[str, Any]) -> None:
    """Raise VerificationFailed unless it all holds."""
    from mesh.client.errors import VerificationFailed

    audit = facts["audit"]
    if not audit["rerun_equal"] or audit["good"] != audit["checks"]:
        raise VerificationFailed("the audit found something that does not hold")
    if facts["receipt"]["signatures"] != 2:
        raise VerificationFailed(f"the receipt {facts['receipt']['id']} is not signed by both")


def summary(facts: dict[str, Any]) -> Lines:
    """The facts for people."""
    auction, task, audit = facts["auction"], facts["task"], facts["audit"]
    lines = [("nodes", f"{len(facts['nodes'])}, each heard all offers")]
    for bid in auction["bids"]:
        price, chance = units.show_money(bid["price"]), show_chance(bid["p_on_time"])
        why = f"{clean(bid['reason'])}) {clean(bid['verdict'])}"
        lines.append(("bid", f"{bid['node']}  at most {price}  {chance} on time  ({why}"))
    lines += [
        ("winner", auction["winner"]),
        ("task", f"{task['id']}  exit code {task['exit_code']}  {show_fuel(task['fuel'])}"),
        ("output", facts["output"]["cid"]),
        ("cost", units.show_money(task["cost"])),
        ("receipt", f"{facts['receipt']['id']}  {facts['receipt']['signatures']} signatures"),
        ("audit", f"{audit['good']} of {audit['checks']} good, re-run equal to the last fuel"),
    ]
    head = facts["output"]["head"].splitlines()[:8]
    return lines + [("", clean(line.expandtabs())) for line in head]
