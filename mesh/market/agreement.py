"""Agreement: what the copies of a task came to, beside each other. Pure.

A deterministic job leaves the same bytes and burns the same fuel wherever it runs; so a copy that
differs is wrong, or the others are. Which of them is not for a majority to say: majorities collude.
It only says whom to doubt first; the job run once more says who lied (mesh/prosecutor.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from attrs import frozen

from mesh.ids import Cid, TaskId
from mesh.market.order import Group, State, TaskRecord
from mesh.market.terms import CANCELLED

WALL_LIMIT = "wall-limit"
"""How a run ends that is a matter of the machine."""
_ACCIDENTS = (WALL_LIMIT, CANCELLED)
"""Endings that are to be compared with nothing."""


class Verdict(StrEnum):
    """What can be said of the copies together."""

    OPEN = "open"
    """Some have not ended."""
    AGREED = "agreed"
    """All of them came to the same."""
    DISAGREED = "disagreed"
    """At least two differ."""
    SHORT = "short"
    """Nobody differs, but not all of them came to an end that can be compared."""
    FORGOTTEN = "forgotten"
    """The records of some are in files alone: nothing is said."""


@frozen
class Outcome:
    """All in which an honest copy equals every other."""

    status: str
    exit_code: int
    output: Cid
    stdout: Cid
    stderr: Cid
    fuel: int
    """Of all executors together."""


@frozen
class Agreement:
    """The copies, each under what it came to."""

    verdict: Verdict
    majority: tuple[TaskId, ...] = ()
    """Those that came to the same, where they are more than half of all that came to anything."""
    dissenters: tuple[TaskId, ...] = ()
    """Those that came to something else; without a majority all."""
    missing: tuple[TaskId, ...] = ()
    """Those that came to nothing, or not yet."""


def outcome_of(record: TaskRecord) -> Outcome | None:
    """What *record* came to; None where it is to be compared with nothing."""
    result = record.result
    if record.state not in (State.DONE, State.FAILED) or result is None:
        return None
    if result.status in _ACCIDENTS:
        return None
    files = (result.output, result.stdout, result.stderr)
    return Outcome(result.status, result.exit_code, *files, fuel=record.fuel)


def compare(group: Group, records: Mapping[TaskId, TaskRecord]) -> Agreement:
    """What the copies of *group* came to. *records* may hold others too."""
    if any(task not in records for task in group.members):
        return Agreement(Verdict.FORGOTTEN)
    outcomes = {task: outcome_of(records[task]) for task in group.members}
    told = tuple(task for task, outcome in outcomes.items() if outcome)
    missing = tuple(task for task, outcome in outcomes.items() if not outcome)
    if not all(records[task].state.is_final for task in group.members):
        return Agreement(Verdict.OPEN, missing=missing)
    majority = _majority(told, outcomes)
    dissenters = tuple(task for task in told if task not in majority)
    verdict = Verdict.DISAGREED if dissenters else Verdict.SHORT if missing else Verdict.AGREED
    return Agreement(verdict, majority, dissenters, missing)


def _majority(
    told: Sequence[TaskId], outcomes: Mapping[TaskId, Outcome | None]
) -> tuple[TaskId, ...]:
    for task in told:
        same = tuple(other for other in told if outcomes[other] == outcomes[task])
        if 2 * len(same) > len(told):
            return same
    return ()
