"""`mesh config`: every setting, its value, and where it comes from."""

from __future__ import annotations

from pathlib import Path

import attrs
import click

from mesh.cli import settings as sources
from mesh.cli.options import with_output
from mesh.cli.render import Column, Listing, print_lines, show_listing, show_one
from mesh.config import find_setting, settings


@click.group()
def config() -> None:
    """Settings: flags > MESH_SECTION__KEY > ./mesh.toml > your file > /etc/mesh > defaults."""


@config.command("list")
@click.option("--origin", is_flag=True, help="Show where each value comes from.")
@with_output
def list_(*, form: str, origin: bool) -> None:
    """Every key with its value."""
    loaded, _ = sources.load()
    rows = [attrs.asdict(setting) for setting in settings(loaded)]
    columns = (
        Column("KEY", lambda row: row["key"]),
        Column("VALUE", lambda row: row["value"]),
        Column("ORIGIN", lambda row: row["origin"], is_wide=not origin),
        Column("MEANING", lambda row: row["doc"], is_wide=True),
    )
    show_listing(Listing("setting", "settings", "key", rows, columns), form)


@config.command("get")
@click.argument("key")
@with_output
def get(*, form: str, key: str) -> None:
    """One value, as TOML."""
    loaded, _ = sources.load()
    setting = find_setting(loaded, key)
    if form == "table":
        click.echo(setting.value)
        return
    lines = [
        ("value", setting.value),
        ("origin", setting.origin),
        ("allowed", setting.allowed),
        ("meaning", setting.doc),
    ]
    show_one("setting", "key", attrs.asdict(setting), lines, form)


@config.command("path")
@with_output
def path(*, form: str) -> None:
    """Where files lie, and which configuration files exist."""
    _, home = sources.load()
    places = {
        **{f"config {rank}": file for rank, file in enumerate(home.config_files, 1)},
        "state": home.state,
        "data": home.data,
        "keys": home.keys,
        "socket": home.socket,
    }
    if form in ("table", "wide"):
        print_lines([(name, f"{place}{_presence(place)}") for name, place in places.items()])
        return
    facts = {
        "config_files": [str(file) for file in home.config_files],
        **{name: str(place) for name, place in places.items() if not name.startswith("config")},
    }
    show_one("paths", "state", facts, [], form)


def _presence(place: Path) -> str:
    return "" if place.exists() else "  (not there)"
