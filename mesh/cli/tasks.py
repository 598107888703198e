"""Verbs for tasks that were submitted: ps, inspect, wait, logs, get, cancel, migrate."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from mesh import units
from mesh.cli.modules import describe, show_module
from mesh.cli.options import DURATION, with_client, with_output
from mesh.cli.render import Column, Facts, Listing, Story, say, show_listing, show_one
from mesh.cli.submit import finish
from mesh.cli.words import (
    clean,
    short_peer,
    short_task,
    show_copies,
    show_cost,
    task_lines,
    totals,
)

if TYPE_CHECKING:
    from mesh.client import Client, Task
    from mesh.v1 import order_pb2

STAYS = "it stays"
"""How the reason begins of a task that was asked to move and does not (migration/migrator.py)."""

_COLUMNS = (
    Column("ID", lambda task: short_task(task["task_id"])),
    Column("NAME", lambda task: clean(task["name"])[:32]),
    Column("STATE", lambda task: _state(task)),
    Column("NODE", lambda task: short_peer(task["executor"])),
    Column("CPU·RAM", lambda task: _needs(task["work"]["needs"])),
    Column("COST cr", show_cost, is_right=True),
    Column("AGE", lambda task: _age(task["submitted_ms"]), is_right=True),
    Column("ROUND", lambda task: str(task["round"]), is_wide=True, is_right=True),
    Column("MOVES", lambda task: str(task["moves"]), is_wide=True, is_right=True),
    Column("FUEL", lambda task: f"{task['fuel']:,}", is_wide=True, is_right=True),
    Column("REASON", lambda task: clean(task["reason"]), is_wide=True),
)


def _needs(needs: dict[str, int]) -> str:
    return f"{units.format_cores(needs['cpu_milli'])}·{units.show_size(needs['memory'])}"


def _state(task: Facts) -> str:
    copies = show_copies(task)
    return f"{task['state']}, {copies}" if copies else str(task["state"])


def _age(submitted_ms: int) -> str:
    return units.show_duration(max(0, time.time_ns() // 1_000_000 - submitted_ms))


@click.command()
@with_output
@with_client
def ps(*, client: Client, form: str) -> None:
    """The tasks of this node, newest first."""
    from mesh.client.facts import facts_of

    rows = [facts_of(task) for task in client.tasks()]
    rows.sort(key=lambda task: -task["submitted_ms"])
    show_listing(Listing("task", "tasks", "task_id", rows, _COLUMNS, totals(rows)), form)


@click.command()
@click.argument("task")
@with_output
@with_client
def inspect(*, client: Client, form: str, task: str) -> None:
    """All that is known of TASK: an id, a prefix of one (four digits), or @last."""
    from mesh.client.facts import facts_of

    facts = facts_of(client.task(task).record)
    facts["module"] = describe(client, facts["work"]["module"])
    lines = [*task_lines(facts), ("module", show_module(facts["module"]))]
    show_one("task", "task_id", facts, lines, form)


@click.command()
@click.argument("task")
@click.option("--timeout", type=DURATION, help="Wait no longer; the task goes on.")
@click.option(
    "-O", "--out", "outs", multiple=True, metavar="NAME[=TO]", help="Download /out/NAME at the end."
)
@with_output
@with_client
def wait(
    *, client: Client, form: str, task: str, timeout: int | None, outs: tuple[str, ...]
) -> None:
    """Wait until TASK ends; the exit code is that of its submit."""
    seconds = None if timeout is None else timeout / 1000
    finish(client.task(task), Story(), form, seconds, outs)


@click.command()
@click.argument("task")
@with_client
def logs(*, client: Client, task: str) -> None:
    """What TASK wrote: its stdout to stdout, its stderr to stderr, byte for byte."""
    from mesh.client.errors import NotFound
    from mesh.client.facts import state_word

    record = client.task(task).record
    if not record.HasField("result"):
        raise NotFound(
            f"{record.task_id} is {state_word(record.state)}: its output comes with its end",
            f"mesh wait {record.task_id}",
        )
    for cid, stream in ((record.result.stdout, sys.stdout), (record.result.stderr, sys.stderr)):
        if cid:
            for chunk in client.read(cid):
                stream.buffer.write(chunk)
            stream.buffer.flush()


@click.command()
@click.argument("task")
@click.argument("path", default="")
@click.option("--to", type=click.Path(), help="Where to; default: ./PATH, or the task's id.")
@with_client
def get(*, client: Client, task: str, path: str, to: str | None) -> None:
    """Download PATH of TASK's output, or all of it into a folder; prints what was written.

    TASK may be a content id too.
    """
    from pathlib import Path

    if task.startswith("baf"):
        written = client.get(task, to or Path(path).name or task, path)
    else:
        handle = client.task(task)
        written = handle.download(path, to or Path(path).name or short_task(handle.id))
    for file in written:
        click.echo(clean(str(file)))


@click.command()
@click.argument("task")
@with_client
def cancel(*, client: Client, task: str) -> None:
    """Take TASK back. What it has burnt so far is paid; nothing happens to one that has ended."""
    handle = client.task(task)
    handle.cancel()
    say(f"{handle.id} is {handle.state}")


@click.command()
@click.argument("task")
@click.option("--to", metavar="PEER", default="", help="Where to: an id, or the end of one.")
@click.option("--timeout", type=DURATION, default="60s", help="Wait so long for it to go on there.")
@with_client
def migrate(*, client: Client, task: str, to: str, timeout: int) -> None:
    """Move TASK, which runs, to another node: to PEER if that bids for it, else to the best bid.

    It goes on where it was. What it burnt so far is paid to the node that it leaves.
    """
    handle = client.task(task)
    before = handle.record
    handle.migrate(client.peer_id(to) if to else "")
    after = _moved(handle, before, timeout / 1000)
    say(f"{handle.id} goes on at {short_peer(after.executor)} from {after.fuel:,} fuel on")


def _moved(task: Task, before: order_pb2.Task, timeout: float) -> order_pb2.Task:
    """Its record once it runs again. Raises NotPlaced with the reason where it stays or ends."""
    from mesh.client.errors import NotPlaced
    from mesh.client.facts import state_word
    from mesh.client.task import FINAL
    from mesh.v1 import order_pb2

    running = order_pb2.TaskState.TASK_STATE_RUNNING
    for _ in task.watch(timeout):
        record = task.record
        if record.fence > before.fence and record.state == running:
            return record
        if record.state in FINAL:
            raise NotPlaced(f"{task.id} is {state_word(record.state)} already", "")
        if record.fence == before.fence and record.reason.startswith(STAYS):
            raise NotPlaced(f"{task.id} was not moved: {record.reason}", "it runs on")
    raise NotPlaced(f"{task.id} was not moved", f"mesh inspect {task.id}")
