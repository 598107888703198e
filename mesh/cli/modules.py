"""`mesh module`: modules made able to go on elsewhere, and what they say of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mesh.cli.options import with_client, with_output
from mesh.cli.render import Story, show_one
from mesh.cli.words import Facts, Lines, clean, show_movable

if TYPE_CHECKING:
    from mesh.client import Client


@click.group()
def module() -> None:
    """WASM modules: made movable, and what they are made of."""


@module.command("instrument")
@click.argument("module")
@click.option(
    "--policy",
    type=click.Choice(("outer", "all")),
    default="outer",
    show_default=True,
    help="Where it looks whether it should stop: all is slower and stops sooner.",
)
@with_output
@with_client
def instrument(*, client: Client, form: str, module: str, policy: str) -> None:
    """Make MODULE, a file or cid:…, able to be moved; the new module's CID is named.

    The node does it, if it has Binaryen. Any node runs and moves what comes out: submit it as
    cid:…, or download it with mesh get. It says in itself what it was made of, and an auditor that
    has Binaryen makes it again.
    """
    from mesh.client.facts import facts_of

    story = Story()
    story.pass_by("making the module movable")
    made = client.make_movable(client.content(module), "yes", policy)
    story.clear()
    _show(facts_of(made), form)


@module.command("show")
@click.argument("module")
@with_output
@with_client
def show(*, client: Client, form: str, module: str) -> None:
    """Whether MODULE, a file or cid:…, can be moved, why not, and what it says it was made of."""
    from mesh.client.facts import facts_of

    _show(facts_of(client.module(client.content(module))), form)


def describe(client: Client, cid: str) -> Facts | None:
    """What the node knows of a task's module; None where that is no longer there."""
    from mesh.client import ClientError
    from mesh.client.facts import facts_of

    try:
        return facts_of(client.module(cid))
    except ClientError:
        return None


def show_module(facts: Facts | None) -> str:
    """What `describe` gave, on one line."""
    return "is no longer at this node" if facts is None else show_movable(facts)


def _show(facts: Facts, form: str) -> None:
    lines: Lines = [("module", facts["module"]), ("moving", show_movable(facts))]
    if facts["source"]:
        lines += [("source", facts["source"]), ("made by", clean(facts["instrumenter"]))]
    show_one("module", "module", facts, lines, form)
