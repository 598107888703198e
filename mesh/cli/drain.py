"""`mesh drain` and `mesh activate`: empty this node, and open it again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from mesh.cli.options import DURATION, with_client
from mesh.cli.render import Story, say

if TYPE_CHECKING:
    from mesh.client import Client

_LOOK_S = 0.5


@click.command()
@click.option("--timeout", type=DURATION, default="10m", help="Wait so long for it to be empty.")
@click.option("--no-wait", is_flag=True, help="Do not wait for it to be empty.")
@with_client
def drain(*, client: Client, timeout: int, no_wait: bool) -> None:
    """Take nothing new on, and move what runs here to other nodes, where it goes on.

    What cannot be moved runs to its end. A node that is started again is open.
    """
    from mesh.client.errors import TimedOut

    client.drain()
    until = time.monotonic() + timeout / 1000
    story = Story()
    hosted, told = client.status().tasks_hosted, -1
    while hosted and not no_wait:
        if hosted != told:
            story.tell(f"{hosted} tasks are still here")
            told = hosted
        if time.monotonic() >= until:
            raise TimedOut(
                f"{hosted} tasks are still here after {timeout // 1000} s",
                "it takes nothing new on; mesh status shows how many are left",
            )
        time.sleep(_LOOK_S)
        hosted = client.status().tasks_hosted
    say("empty, and closed: mesh activate opens it" if not hosted else "closed to new work")


@click.command()
@with_client
def activate(*, client: Client) -> None:
    """Take on work again."""
    client.drain(is_on=False)
    say("open")
