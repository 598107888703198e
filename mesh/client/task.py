"""A task of this node's, held by its id: wait for it, watch it, take what it made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from mesh.client.errors import NotPlaced, TaskFailed, TimedOut, VerificationFailed
from mesh.client.facts import state_word
from mesh.units import show_money
from mesh.v1 import order_pb2, tasks_pb2

if TYPE_CHECKING:
    from mesh.client.connection import Client

FINAL = frozenset(
    (
        order_pb2.TaskState.TASK_STATE_DONE,
        order_pb2.TaskState.TASK_STATE_FAILED,
        order_pb2.TaskState.TASK_STATE_CANCELLED,
    )
)
"""States that never change again."""
_REASONS = 5
"""Different reasons that are told."""


@frozen
class Task:
    """A handle: cheap, and equal for equal ids. The task itself lives on the node."""

    client: Client
    id: str

    @property
    def record(self) -> order_pb2.Task:
        """All that the node knows of it, now."""
        return self.client.record(self.id)

    @property
    def state(self) -> str:
        """`waiting`, `asking`, `awarded`, `running`, `done`, `failed` or `cancelled`, now."""
        return state_word(self.record.state)

    def wait(self, timeout: float | None = None) -> order_pb2.Task:
        """The record once it, with all its copies, has ended. Raises TimedOut after *timeout*
        seconds; it goes on."""
        return self.client.outcome(self.id, timeout)

    def watch(self, timeout: float | None = None) -> Iterator[tasks_pb2.TasksWatchResponse]:
        """Its story from now on, ending with its final record."""
        return self.client.watch(self.id, timeout)

    def result(self, timeout: float | None = None) -> order_pb2.Task:
        """Like `wait`, but raises NotPlaced or TaskFailed unless it was done with exit code 0,
        VerificationFailed where its copies do not all agree."""
        record = self.wait(timeout)
        check(record)
        return record

    def download(self, path: str, to: str | Path) -> list[Path]:
        """Write its output file *path* to *to*; with an empty *path* all of them, into a folder."""
        return self.client.get(output_of(self.record), to, path)

    def migrate(self, to: str = "") -> None:
        """Ask for it to go on at another node; at the peer *to*, if that bids."""
        self.client.migrate(self.id, to)

    def cancel(self) -> None:
        """Take it back."""
        self.client.cancel(self.id)


def output_of(record: order_pb2.Task) -> str:
    """The CID of its output directory. Raises TaskFailed before there is one."""
    if not record.result.output:
        raise TaskFailed(
            f"{record.task_id} has no output: it is {state_word(record.state)}",
            f"mesh inspect {record.task_id}",
        )
    return record.result.output


def check(record: order_pb2.Task) -> None:
    """Raise what went wrong with an ended task: NotPlaced or TaskFailed. Exit code 0 is good.

    Of several copies the first one speaks for all: VerificationFailed unless they agree.
    """
    is_first = record.task_id == record.group
    if is_first and record.agreement.verdict == order_pb2.VERDICT_DISAGREED:
        raise disagreed(record)
    _check_alone(record)
    if is_first and record.agreement.verdict != order_pb2.VERDICT_AGREED:
        missing = [*record.agreement.missing, record.task_id][0]
        count = len(record.copies) - len(record.agreement.missing)
        raise VerificationFailed(
            f"{record.task_id} is not verified: {count} of {len(record.copies)} copies came to an"
            " end that can be compared",
            f"mesh inspect {missing} says why",
        )


def disagreed(record: order_pb2.Task) -> VerificationFailed:
    """That its copies came to different things, and what proves who is wrong."""
    agreement = record.agreement
    suspects = ", ".join(agreement.dissenters)
    whom = f"{suspects} against {len(agreement.majority)}" if agreement.majority else "no majority"
    return VerificationFailed(
        f"the {len(record.copies)} copies of {record.task_id} disagree: {whom}",
        f"mesh audit --task {agreement.dissenters[0]} --rerun --export evidence.jsonl proves it to"
        f" anybody · mesh inspect {record.task_id} shows what is proven already",
    )


def _check_alone(record: order_pb2.Task) -> None:
    state = state_word(record.state)
    if record.state == order_pb2.TaskState.TASK_STATE_DONE:
        result = record.result
        if result.status != "exited":
            raise _broken(record, result.detail or result.status)
        if result.exit_code:
            raise _broken(record, f"exit code {result.exit_code}")
    elif record.state == order_pb2.TaskState.TASK_STATE_FAILED and not record.fence:
        raise not_placed(record)
    elif record.state in FINAL:
        raise _broken(record, record.reason or state)
    else:
        raise TimedOut(f"{record.task_id} is still {state}", f"mesh wait {record.task_id}")


def _broken(record: order_pb2.Task, why: str) -> TaskFailed:
    return TaskFailed(
        f"{record.task_id} failed: {why}",
        f"what it wrote: mesh logs {record.task_id}" if record.result.stderr else "",
        exit_code=record.result.exit_code or 1,
    )


def not_placed(record: order_pb2.Task, goes_on: str = "") -> NotPlaced:
    """Why nobody took it: the candidates' own words, counted, and what would change it."""
    counted = Counter(answer.reason for answer in record.answers if not answer.is_bid)
    reasons = tuple(f"{number} × {reason}" for reason, number in counted.most_common(_REASONS))
    why = " · ".join(reasons) or record.reason or "no peer has an offer that fits"
    hints = ["mesh peers shows what is for sale"]
    if any(reason.startswith("price") for reason in counted):
        hints = [f"raise --max-price (now {show_money(record.max_price)})"]
    if goes_on:
        hints.append(goes_on)
    return NotPlaced(f"{record.task_id} is not placed: {why}", " · ".join(hints), reasons=reasons)
