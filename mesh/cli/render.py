"""Results on stdout: tables for people, JSON with a schema name for scripts, ids for pipes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from attrs import frozen

Facts = Mapping[str, Any]


@frozen
class Column:
    """One column of a table."""

    title: str
    cell: Callable[[Facts], str]
    is_wide: bool = False
    """Only with -o wide."""
    is_right: bool = False


@frozen
class Listing:
    """Many things of one kind. *kind* and *plural* name the schemas: mesh.task/v1, mesh.tasks/v1"""

    kind: str
    plural: str
    key: str
    """Which fact is the id."""
    rows: Sequence[Facts]
    columns: Sequence[Column]
    footer: str = ""
    """To stderr, below a table."""


def show_listing(listing: Listing, form: str) -> None:
    """Print *listing* as *form*, one of options.FORMS."""
    schema = f"mesh.{listing.kind}/v1"
    if form == "json":
        print_json({"schema": f"mesh.{listing.plural}/v1", listing.plural: listing.rows})
    elif form == "jsonl":
        for row in listing.rows:
            click.echo(json.dumps({"schema": schema, **row}, ensure_ascii=False))
    elif form == "id":
        for row in listing.rows:
            click.echo(row[listing.key])
    else:
        if listing.rows:
            print_table(
                listing.rows, [c for c in listing.columns if form == "wide" or not c.is_wide]
            )
        if listing.footer:
            say(listing.footer)


def show_one(
    kind: str, key: str, facts: Facts, lines: Sequence[tuple[str, str]], form: str
) -> None:
    """Print one thing: as *lines* of (label, value) for people, else as *facts*."""
    tagged = {"schema": f"mesh.{kind}/v1", **facts}
    if form == "json":
        print_json(tagged)
    elif form == "jsonl":
        click.echo(json.dumps(tagged, ensure_ascii=False))
    elif form == "id":
        click.echo(facts[key])
    else:
        print_lines(lines)


def print_json(value: object) -> None:
    """Indented, keys in their order, text as it is."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_lines(lines: Sequence[tuple[str, str]]) -> None:
    """Labels in one column, values in another."""
    width = max((len(label) for label, _ in lines), default=0)
    for label, value in lines:
        click.echo(f"{label.ljust(width)}  {value}".rstrip())


def print_table(rows: Sequence[Facts], columns: Sequence[Column]) -> None:
    """A table without rules. Full width where nobody looks at a screen: cut text misleads greps."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.title, justify="right" if column.is_right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(column.cell(row)) for column in columns))
    width = None if sys.stdout.isatty() else 10_000
    Console(file=sys.stdout, width=width, highlight=False).print(table)


def say(text: str) -> None:
    """To stderr: what is not the result."""
    click.echo(text, err=True)


class Story:
    """Progress on stderr. On a terminal the passing line is overwritten; elsewhere it is left out,
    and what happened is a line each."""

    def __init__(self, is_quiet: bool = False) -> None:
        self._is_quiet = is_quiet
        self._is_live = sys.stderr.isatty()
        self._has_passing = False

    def tell(self, text: str) -> None:
        """Something happened."""
        self.clear()
        if not self._is_quiet:
            say(text)

    def pass_by(self, text: str) -> None:
        """How it stands: replaced by the next line."""
        if self._is_live and not self._is_quiet:
            width = shutil.get_terminal_size().columns
            click.echo(f"\r\x1b[2K{text[: width - 1]}", nl=False, err=True)
            self._has_passing = True

    def clear(self) -> None:
        """Take the passing line away."""
        if self._has_passing:
            click.echo("\r\x1b[2K", nl=False, err=True)
            self._has_passing = False
