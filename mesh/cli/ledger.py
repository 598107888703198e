"""`mesh ledger` and `mesh line`: what the node holds, who forked, what is taken in, who may owe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mesh import units
from mesh.cli.exits import Exit
from mesh.cli.options import Quantity, with_client, with_output
from mesh.cli.render import Column, Listing, say, show_listing, show_one
from mesh.cli.words import Facts, Lines, clean, short_peer
from mesh.tier import STATISTIC

if TYPE_CHECKING:
    from mesh.client import Client

NO_LIMIT = 2**63 - 1
NONE = "none"


def show_limit(limit: int) -> str:
    """`0.5000 cr`, or `no limit`."""
    return "no limit" if limit == NO_LIMIT else units.show_money(limit)


def parse_limit(text: str) -> int:
    """A credit line in µcr; `none` is no limit. Raises ValueError."""
    return NO_LIMIT if text == NONE else units.parse_money(text)


LIMIT = Quantity("credits|none", parse_limit)

_LINES = (
    Column("BUYER", lambda line: short_peer(line["buyer"])),
    Column("OWES cr", lambda line: units.format_money(line["owed"]), is_right=True),
    Column("RESERVED cr", lambda line: units.format_money(line["reserved"]), is_right=True),
    Column("LINE", lambda line: show_limit(line["limit"]), is_right=True),
    Column("", lambda line: "frozen" if line["is_frozen"] else ""),
    Column("BUYER ID", lambda line: line["buyer"], is_wide=True),
)


@click.group()
def ledger() -> None:
    """The ledger of this node: its state, forks, and entries from elsewhere."""


@ledger.command("status")
@with_output
@with_client
def status(*, client: Client, form: str) -> None:
    """What the node holds, by what promise, and what each buyer owes it."""
    from mesh.client.facts import facts_of

    facts = dict(facts_of(client.ledger()))
    facts["lines"] = [facts_of(line) for line in client.lines()]
    show_one("ledger", "digest", facts, _status_lines(facts), form)


def _kept(facts: Facts) -> str:
    """Whether every entry is kept, and how many are not."""
    pruned = f"{facts['pruned']:,} entries pruned"
    if facts["is_archive"]:
        return "yes" + f", but {pruned} before" * bool(facts["pruned"])
    return f"no: {pruned}"


def _status_lines(facts: Facts) -> Lines:
    lines = [
        ("tier", clean(facts["promise"])),
        ("digest", facts["digest"]),
        ("entries", f"{facts['entries']:,} in {facts['chains']:,} chains"),
        ("archive", _kept(facts)),
        ("forked", ", ".join(facts["forked"]) or "nobody"),
        ("frozen", ", ".join(facts["frozen"]) or "nobody"),
        ("paid", units.show_money(facts["posted"])),
        ("pending", units.show_money(facts["pending"])),
        ("earned", units.show_money(facts["earned"])),
        ("note", f"paid, pending and earned are {STATISTIC}"),
    ]
    for line in facts["lines"]:
        owes = (
            f"owes {units.show_money(line['owed'])}, reserved {units.show_money(line['reserved'])}"
        )
        frozen = ", frozen" * line["is_frozen"]
        lines.append(
            ("line", f"{line['buyer']}  {owes}, of at most {show_limit(line['limit'])}{frozen}")
        )
    return lines + [("counter", f"{name} {count}") for name, count in facts["counters"].items()]


@ledger.command("forks")
@with_output
@with_client
def forks(*, client: Client, form: str) -> Exit:
    """Whoever signed two entries for one place, with lines that prove it to anybody.

    The lines go to stdout, for a file: `python -m ledger verify FILE`. Exit code 6 if any forked.
    """
    from mesh.client.facts import facts_of

    rows = [facts_of(fork) for fork in client.forks()]
    if form in ("table", "wide"):
        for row in rows:
            for line in row["lines"]:
                click.echo(line)
            say(f"{row['peer']} signed seq {row['seq']} twice")
        say(f"{len(rows)} fork{'s' * (len(rows) != 1)}")
    else:
        show_listing(Listing("fork", "forks", "peer", rows, ()), form)
    return Exit.NOT_VERIFIED if rows else Exit.OK


@ledger.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@with_output
@with_client
def import_(*, client: Client, form: str, file: Path) -> Exit:
    """Hand the node the entries in FILE, a bundle: it checks each, keeps it, and passes it on.

    Exit code 6 when some of the file was no good. What is new on this node's own chain is refused.
    """
    from ledger.evidence import Finding
    from ledger.model import Entry
    from mesh.client.facts import facts_of
    from mesh.client.files import open_file, read_bundle

    open_file(file).close()  # a name that is wrong is told before the node is asked
    misread: list[Finding] = []

    def entries() -> Iterator[bytes]:
        for item in read_bundle(file):
            if isinstance(item, Entry):
                yield item.encode()
            elif isinstance(item, Finding):
                misread.append(item)

    facts = {**facts_of(client.import_entries(entries())), "misread": len(misread)}
    lines = [(name.replace("_", " "), str(count)) for name, count in facts.items() if count]
    show_one("import", "added", facts, lines or [("added", "0")], form)
    for finding in misread[:10]:
        say(f"error: {clean(finding.detail)}")
    return Exit.NOT_VERIFIED if misread or facts["refused"] else Exit.OK


@click.command()
@click.argument("peer", required=False)
@click.argument("amount", type=LIMIT, required=False)
@with_output
@with_client
def line(*, client: Client, form: str, peer: str | None, amount: int | None) -> None:
    """How much a buyer may owe and reserve with this node: mesh line PEER 0.50, or PEER none.

    PEER is an id, or the last four characters of one or more. Without arguments: all lines, and
    what is owed. The line is signed and published; it bounds what this node can lose by that buyer.
    """
    from mesh.client.facts import facts_of

    if peer is not None:
        if amount is None:
            raise click.UsageError("AMOUNT is missing: credits, or none for no limit")
        buyer = client.peer_id(peer)
        client.set_line(buyer, amount)
        facts = {"buyer": buyer, "limit": amount}
        shown = [("buyer", buyer), ("line", show_limit(amount))]
        show_one("line", "buyer", facts, shown, form)
        return
    rows = [facts_of(each) for each in client.lines()]
    owed = sum(row["owed"] for row in rows)
    footer = f"{len(rows)} buyer{'s' * (len(rows) != 1)}, {units.show_money(owed)} owed"
    show_listing(Listing("line", "lines", "buyer", rows, _LINES, footer), form)
