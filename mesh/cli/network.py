"""`mesh status` and `mesh peers`: this node, and those it knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mesh import units
from mesh.cli.options import with_client, with_output
from mesh.cli.render import Column, Listing, show_listing, show_one
from mesh.cli.words import Facts, Lines, clean, credit_tier, short_peer, show_capacity
from mesh.tier import STATISTIC

if TYPE_CHECKING:
    from mesh.client import Client


@click.command()
@with_output
@with_client
def status(*, client: Client, form: str) -> None:
    """This node, now: what it sells, what it does, what it has paid and earned."""
    from mesh.client.facts import facts_of

    facts = facts_of(client.status())
    show_one("status", "peer", facts, status_lines(facts, is_wide=form == "wide"), form)


def status_lines(node: Facts, *, is_wide: bool) -> Lines:
    """A node for people; never an amount without its unit and the tier of the ledger."""
    offer = node["offer"]
    price = f"  at {units.show_money(offer['price'])} for 10^9 fuel" if offer else ""
    lines = [
        ("node", f"{node['peer']}  {clean(node['agent'])}"),
        ("up", units.show_duration(node["uptime_ms"])),
        ("sold", show_capacity(node["sold"]) + price),
        ("free", show_capacity(node["free"])),
        (
            "tasks",
            f"{node['tasks_waiting']} waiting, {node['tasks_running']} running"
            f", {node['tasks_hosted']} of others here",
        ),
        ("peers", str(node["peers"])),
        ("paid", units.show_money(node["posted"])),
        ("pending", units.show_money(node["pending"])),
        ("earned", units.show_money(node["earned"])),
        ("credit", credit_tier(node["tier"])),
        ("note", f"paid, pending and earned are {STATISTIC}"),
        ("storage", clean(node["storage"])),
        *(("address", clean(address)) for address in node["addresses"]),
    ]
    if is_wide:  # every bound that was reached, every fault that was met
        lines += [("counter", f"{name} {count}") for name, count in node["counters"].items()]
    return lines


_PEERS = (
    Column("PEER", lambda peer: short_peer(peer["peer"])),
    Column("LINK", lambda peer: "direct" if peer["connected"] else "-"),
    Column("SOLD", lambda peer: show_capacity(_offer(peer, "sold"))),
    Column("FREE", lambda peer: show_capacity(_offer(peer, "free")), is_wide=True),
    Column("cr / 10^9 fuel", lambda peer: _price(peer), is_right=True),
    Column("OFFER AGE", lambda peer: _age(peer), is_right=True),
    Column("FEATURES", lambda peer: clean(" ".join(_offer(peer, "features") or ())), is_wide=True),
    Column("AGENT", lambda peer: clean(_offer(peer, "agent") or "-"), is_wide=True),
    Column("PEER ID", lambda peer: peer["peer"], is_wide=True),
    Column("ADDRESS", lambda peer: clean((peer["addresses"] or ["-"])[0]), is_wide=True),
)


def _offer(peer: Facts, key: str) -> Any:  # noqa: ANN401  (a fact of any kind)
    return peer["offer"][key] if peer["offer"] else None


def _price(peer: Facts) -> str:
    return units.format_money(peer["offer"]["price"]) if peer["offer"] else "-"


def _age(peer: Facts) -> str:
    return units.show_duration(peer["offer_age_ms"]) if peer["offer_age_ms"] >= 0 else "-"


@click.command()
@with_output
@with_client
def peers(*, client: Client, form: str) -> None:
    """The peers of this node, and what they sell."""
    from mesh.client.facts import facts_of

    rows = [facts_of(peer) for peer in client.peers()]
    selling = sum(row["offer"] is not None for row in rows)
    footer = f"{len(rows)} peer{'s' * (len(rows) != 1)}, {selling} with an offer"
    show_listing(Listing("peer", "peers", "peer", rows, _PEERS, footer), form)
