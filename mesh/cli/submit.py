"""`mesh submit`: one task from the command line to its receipt."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mesh import units
from mesh.cli.exits import Exit
from mesh.cli.options import CORES, COUNT, DURATION, MONEY, SIZE, with_client, with_output
from mesh.cli.render import Story, say, show_one
from mesh.cli.words import (
    Naming,
    clean,
    short_peer,
    short_task,
    show_answer,
    show_fuel,
    show_movable,
    task_lines,
)
from mesh.client.limits import Limits
from mesh.runtime.manifest import STDIN

if TYPE_CHECKING:
    from mesh.client import Client, Task
    from mesh.v1 import modules_pb2, notice_pb2, order_pb2

_DEFAULT = Limits()


def _pairs(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """`name=value` options as a mapping."""
    pairs: dict[str, str] = {}
    for value in values:
        name, separator, rest = value.partition("=")
        if not (name and separator and rest):
            raise click.BadParameter(f"{value!r} is not NAME=VALUE", ctx, param)
        if name in pairs:
            raise click.BadParameter(f"{name!r} is given twice", ctx, param)
        pairs[name] = rest
    return pairs


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("module")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "-i",
    "--input",
    "inputs",
    multiple=True,
    callback=_pairs,
    metavar="NAME=PATH",
    help="A file for /in/NAME; PATH may be cid:…",
)
@click.option(
    "--stdin",
    metavar="PATH",
    help="What it reads as its standard input: a file, cid:…, or - for our own.",
)
@click.option(
    "-O", "--out", "outs", multiple=True, metavar="NAME[=TO]", help="Download /out/NAME at the end."
)
@click.option("-e", "--env", multiple=True, callback=_pairs, metavar="NAME=VALUE")
@click.option("--runtime", default="", metavar="NAME", help="MODULE is a program for it: python.")
@click.option("--name", default="", help="What people call the task.")
@click.option("--cpus", type=CORES, default=_DEFAULT.cpu_milli, show_default="1")
@click.option("--memory", type=SIZE, default=_DEFAULT.memory, show_default="256MiB")
@click.option("--disk", type=SIZE, default=_DEFAULT.disk, show_default="64MiB")
@click.option(
    "--fuel", type=COUNT, default=_DEFAULT.fuel, show_default="10G", help="The most it may burn."
)
@click.option(
    "--wall",
    type=DURATION,
    default=_DEFAULT.wall_ms,
    show_default="10m",
    help="The longest it may run.",
)
@click.option(
    "--deadline", type=DURATION, default=_DEFAULT.deadline_ms, show_default="1h", help="From now."
)
@click.option(
    "--max-price",
    type=MONEY,
    default=_DEFAULT.max_price,
    show_default="1.0000",
    help="The ceiling of the whole bill, in credits.",
)
@click.option(
    "--fee",
    type=MONEY,
    default=0,
    show_default="0.0000",
    help="Paid on top, on success, for going first.",
)
@click.option("--priority", type=click.IntRange(-100, 100), default=0, show_default=True)
@click.option("--feature", "features", multiple=True, help="What the executor must offer.")
@click.option(
    "--redundancy",
    type=click.IntRange(1, 8),
    default=1,
    show_default=True,
    metavar="N",
    help="Run it on N different nodes, for --max-price altogether, and compare.",
)
@click.option(
    "--movable",
    type=click.Choice(("auto", "yes", "no")),
    default="auto",
    show_default=True,
    help="Make the module able to go on elsewhere: where possible, or it is an error, or not.",
)
@click.option("--key", default="", help="Idempotency key: the same key, the same task.")
@click.option("--detach", is_flag=True, help="Do not wait; print the id.")
@click.option("--timeout", type=DURATION, help="Wait no longer; the task goes on.")
@with_output
@with_client
def submit(
    *,
    client: Client,
    form: str,
    module: str,
    args: tuple[str, ...],
    inputs: dict[str, str],
    stdin: str | None,
    outs: tuple[str, ...],
    env: dict[str, str],
    runtime: str,
    name: str,
    cpus: int,
    memory: int,
    disk: int,
    fuel: int,
    wall: int,
    deadline: int,
    max_price: int,
    fee: int,
    priority: int,
    features: tuple[str, ...],
    redundancy: int,
    movable: str,
    key: str,
    detach: bool,
    timeout: int | None,
) -> None:
    """Bid for compute: run MODULE with ARGS wherever it is best.

    \b
    mesh submit -i book=book.txt -O counts.txt -- wordcount.wasm book
    mesh submit --detach -o id --max-price 0.05 -- job.wasm
    mesh submit --runtime python -O plot.csv -- prog.py 1000
    sort names | mesh submit --runtime python --stdin - -- count.py
    """
    if stdin is not None:
        inputs |= _redirected(client, stdin, inputs)
    limits = Limits(cpus, memory, disk, fuel, wall, deadline, max_price, fee, priority, features)
    task = client.submit(
        module,
        args,
        inputs=inputs,
        env=env,
        limits=limits,
        name=name or shlex.join([Path(module).stem, *args])[:64],
        key=key.encode(),
        redundancy=redundancy,
        runtime=runtime,
        movable=movable,
        on_module=tell_module,
    )
    if detach:
        show_task(task.record, form)
        return
    finish(task, Story(), form, None if timeout is None else timeout / 1000, outs)


def _redirected(client: Client, stdin: str, inputs: Mapping[str, str]) -> dict[str, str]:
    if STDIN in inputs:
        raise click.UsageError(f"--stdin and --input {STDIN}=… exclude one another")
    ours = stdin == "-"
    return {STDIN: client.put_stream(STDIN, sys.stdin.buffer) if ours else stdin}


def tell_module(module: modules_pb2.Module) -> None:
    """Whether what is submitted can be moved, or why not."""
    from mesh.client.facts import facts_of

    say(f"the module {show_movable(facts_of(module))}")


def finish(
    task: Task, story: Story, form: str, timeout: float | None, outs: Sequence[str] = ()
) -> None:
    """Follow *task* to its end, fetch *outs*, print the result; raise what went wrong with it."""
    from mesh.client.task import check
    from mesh.v1 import order_pb2

    try:
        story.tell(f"following {task.id}")
        record = follow(task, story, timeout)
    except KeyboardInterrupt:
        story.clear()
        say(f"detached: {short_task(task.id)} goes on")
        say(f"hint: mesh wait {task.id} follows it again, mesh cancel {task.id} takes it back")
        click.get_current_context().exit(Exit.INTERRUPTED)
    story.clear()
    is_doubtful = record.agreement.verdict == order_pb2.VERDICT_DISAGREED
    if record.result.output and not is_doubtful:
        for out in outs:
            name, _, to = out.partition("=")
            for path in task.client.get(record.result.output, to or Path(name).name, name):
                story.tell(f"wrote {path} ({units.show_size(path.stat().st_size)})")
    show_task(record, form)
    check(record)


def show_task(record: order_pb2.Task, form: str) -> None:
    """The task on stdout."""
    from mesh.client.facts import facts_of

    facts = facts_of(record)
    show_one("task", "task_id", facts, task_lines(facts), form)


def follow(
    task: Task, story: Story, timeout: float | None, name: Naming = short_peer
) -> order_pb2.Task:
    """Tell the task's story until its final record. Raises TimedOut or NotPlaced after *timeout*
    seconds: NotPlaced where nobody had taken it by then."""
    from mesh.client.errors import OverQuota, TimedOut
    from mesh.client.task import FINAL, not_placed

    try:
        try:
            for event in task.watch(timeout):
                if event.WhichOneof("event") == "notice":
                    tell(event.notice, story, name)
                elif event.task.state in FINAL and not event.task.copies:
                    return event.task
        except OverQuota:  # the story came faster than this terminal takes it
            story.tell("too much to tell: waiting for the end")
        return task.wait(timeout)
    except TimedOut:
        story.clear()
        record = task.record
        goes_on = f"it goes on: mesh wait {task.id}, or mesh cancel {task.id}"
        if not record.fence:
            raise not_placed(record, goes_on) from None
        raise TimedOut(f"{task.id} has not ended in {timeout:g} s", goes_on) from None


def tell(notice: notice_pb2.Notice, story: Story, name: Naming = short_peer) -> None:
    """One line of the market's story; *name* says what to call a peer."""
    from mesh.client.facts import facts_of, state_word

    match notice.WhichOneof("kind"):
        case "asked":
            number = len(notice.asked.candidates)
            story.tell(f"auction {notice.asked.round}: asked {number} node{'s' * (number != 1)}")
        case "answered" if not notice.answered.answer.verdict:
            answer = facts_of(notice.answered.answer)
            story.tell(f"  {'bid' if answer['is_bid'] else 'no '} {show_answer(answer, name)}")
        case "awarded":
            won = notice.awarded
            price = units.show_money(won.price)
            story.tell(f"  won {name(won.winner)}  at most {price}  ({clean(won.reason)})")
        case "progressed":
            story.pass_by(f"running · {show_fuel(notice.progressed.fuel)}")
        case "moved":
            moved = notice.moved
            where = f" on {name(moved.executor)}" if moved.executor else ""
            why = f": {clean(moved.reason)}" if moved.reason else ""
            story.tell(f"{state_word(moved.state)}{where}{why}")
        case _:
            return
