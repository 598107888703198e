"""`mesh receipts` and `mesh audit`: what was signed, and whether it holds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from mesh import units
from mesh.cli.exits import Exit
from mesh.cli.options import DURATION, with_client, with_output
from mesh.cli.render import Column, Listing, print_json, say, show_listing
from mesh.cli.words import Facts, clean, credit_tier, short_peer, short_task

if TYPE_CHECKING:
    from mesh.client import Client

_COLUMNS = (
    Column("RECEIPT", lambda receipt: receipt["receipt_id"][:10]),
    Column("KIND", lambda receipt: receipt["kind"]),
    Column("TASK", lambda receipt: short_task(receipt["task_id"])),
    Column("BUYER", lambda receipt: short_peer(receipt["buyer"])),
    Column("SELLER", lambda receipt: short_peer(receipt["seller"])),
    Column("AMOUNT cr", lambda r: units.format_money(r["amount"]), is_right=True),
    Column("RESERVE cr", lambda r: units.format_money(r["reserve"]), is_wide=True, is_right=True),
    Column("FUEL", lambda receipt: f"{receipt['fuel']:,}", is_right=True),
    Column("SIGNED", lambda receipt: f"{receipt['signatures_good']} of 2", is_right=True),
    Column("SEQ", lambda receipt: str(receipt["seq"]), is_wide=True, is_right=True),
    Column("CLAIMED TIME", lambda receipt: _moment(receipt["wall_ms"]), is_wide=True),
    Column("METER", lambda receipt: clean(receipt["meter"]), is_wide=True),
    Column("RECEIPT ID", lambda receipt: receipt["receipt_id"], is_wide=True),
)


def _moment(wall_ms: int) -> str:
    """UTC, RFC 3339; a claim of the one who signed."""
    try:
        moment = datetime.fromtimestamp(wall_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return "-"
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@click.command()
@click.option("--task", default="", help="Of one task: an id, a prefix, or @last.")
@click.option("--limit", type=click.IntRange(1, 256), default=100, show_default=True)
@with_output
@with_client
def receipts(*, client: Client, form: str, task: str, limit: int) -> None:
    """Signed receipts of this node, newest first."""
    from mesh.client.facts import facts_of

    task_id = client.task_id(task) if task else ""
    rows = [facts_of(receipt) for receipt in client.receipts(task_id, limit)]
    tier = credit_tier(client.status().tier)
    footer = f"{len(rows)} receipt{'s' * (len(rows) != 1)}; credit {tier}"
    show_listing(Listing("receipt", "receipts", "receipt_id", rows, _COLUMNS, footer), form)


@click.command()
@click.option("--task", default="", help="Of one task: an id, a prefix, or @last.")
@click.option("--rerun", is_flag=True, help="Run the tasks again; compare outputs and fuel.")
@click.option("--timeout", type=DURATION, help="Give up after this long.")
@with_output
@with_client
def audit(*, client: Client, form: str, task: str, rerun: bool, timeout: int | None) -> Exit:
    """Check signatures, chain, amounts and totals; with --rerun run the bill again.

    Exit code 6 when anything does not hold.
    """
    from mesh.client.facts import facts_of

    task_id = client.task_id(task) if task else ""
    seconds = None if timeout is None else timeout / 1000
    findings: list[Facts] = []
    for finding in client.audit(rerun, task_id, seconds):
        facts = facts_of(finding)
        findings.append(facts)
        if form in ("table", "wide"):
            click.echo(finding_line(facts))
    bad = [finding for finding in findings if not finding["is_good"]]
    if form == "json":
        verdict = {"schema": "mesh.audit/v1", "is_good": not bad, "findings": findings}
        print_json(verdict)
    elif form in ("jsonl", "id"):
        show_listing(Listing("finding", "findings", "receipt_id", findings, ()), form)
    say(f"{len(findings)} checks, {len(findings) - len(bad)} good, {len(bad)} bad")
    if bad:
        say(f"error: {bad[0]['check']}: {clean(bad[0]['detail'])}")
        say("hint: mesh receipts -o json has the signed bytes: they are the evidence")
    return Exit.NOT_VERIFIED if bad else Exit.OK


def finding_line(finding: Facts) -> str:
    """One check on one line."""
    about = finding["receipt_id"][:10] or finding["task_id"][:10]
    verdict = "ok  " if finding["is_good"] else "FAIL"
    return f"{verdict} {finding['check']:<10} {about:<10}  {clean(finding['detail'])}".rstrip()
