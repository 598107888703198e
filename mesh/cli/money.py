"""`mesh receipts`: what was signed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from mesh import units
from mesh.cli.options import with_client, with_output
from mesh.cli.render import Column, Listing, show_listing
from mesh.cli.words import Facts, clean, credit_tier, short_peer, short_task

if TYPE_CHECKING:
    from mesh.client import Client

_COLUMNS = (
    Column("RECEIPT", lambda receipt: receipt["receipt_id"][:10]),
    Column("KIND", lambda receipt: receipt["kind"]),
    Column("TASK", lambda receipt: short_task(receipt["task_id"]) or "-"),
    Column("BUYER", lambda receipt: short_peer(receipt["buyer"])),
    Column("SELLER", lambda receipt: short_peer(receipt["seller"])),
    Column("AMOUNT cr", lambda r: units.format_money(r["amount"]), is_right=True),
    Column("RESERVE cr", lambda r: units.format_money(r["reserve"]), is_wide=True, is_right=True),
    Column("FUEL", lambda receipt: f"{receipt['fuel']:,}", is_right=True),
    Column("SIGNED", lambda receipt: signed(receipt), is_right=True),
    Column("SAYS", lambda receipt: clean(receipt["says"]), is_wide=True),
    Column("AUTHOR", lambda receipt: short_peer(receipt["author"]), is_wide=True),
    Column("SEQ", lambda receipt: str(receipt["seq"]), is_wide=True, is_right=True),
    Column("CLAIMED TIME", lambda receipt: _moment(receipt["wall_ms"]), is_wide=True),
    Column("METER", lambda receipt: clean(receipt["meter"]), is_wide=True),
    Column("RECEIPT ID", lambda receipt: receipt["receipt_id"], is_wide=True),
)


def signed(receipt: Facts) -> str:
    """`2 of 2`: of the signatures that an entry of its kind needs, those that are good."""
    return f"{receipt['signatures_good']} of {receipt['signatures_needed']}"


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
