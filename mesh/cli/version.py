"""`mesh version`."""

from __future__ import annotations

import platform
from importlib import metadata

import click

import mesh
from mesh.cli.options import with_output
from mesh.cli.render import show_one

_STANDS_ON = ("libp2p", "wasmtime", "grpcio", "trio")
UNKNOWN = "not installed"


@click.command()
@with_output
def version(*, form: str) -> None:
    """The version of mesh and what it stands on."""
    facts = {"mesh": mesh.__version__, "python": platform.python_version()}
    facts |= {name: installed(name) for name in _STANDS_ON}
    show_one("version", "mesh", facts, [(name, facts[name]) for name in facts], form)


def installed(name: str) -> str:
    """The version of a distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return UNKNOWN
