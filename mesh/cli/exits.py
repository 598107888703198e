"""Exit codes: what a script may rely on. README.md shows this table; a test keeps them equal."""

from __future__ import annotations

from enum import IntEnum

from mesh.client import errors
from mesh.errors import ConfigError, MeshError, Refused


class Exit(IntEnum):
    """One meaning each."""

    OK = 0
    TASK_FAILED = 1
    USAGE = 2
    NOT_PLACED = 3
    UNREACHABLE = 4
    NOT_AUTHORISED = 5
    NOT_VERIFIED = 6
    NOT_FOUND = 7
    OVER_QUOTA = 8
    TIMED_OUT = 124
    INTERRUPTED = 130


MEANINGS = {
    Exit.OK: "all is well",
    Exit.TASK_FAILED: "the task itself failed, a check of `doctor` failed, or mesh broke",
    Exit.USAGE: "the command, the task or the configuration cannot be right",
    Exit.NOT_PLACED: "nobody took the task: no offer fits, or the price is too low",
    Exit.UNREACHABLE: "no node answers",
    Exit.NOT_AUTHORISED: "not authorised",
    Exit.NOT_VERIFIED: "a receipt, a content id or an audit does not verify, or a task's copies",
    Exit.NOT_FOUND: "there is no such thing",
    Exit.OVER_QUOTA: "a quota, a rate or a balance is used up",
    Exit.TIMED_OUT: "it did not happen in the time allowed; nothing was cancelled by that",
    Exit.INTERRUPTED: "Ctrl-C; a task that was being watched goes on",
}

_BY_ERROR: tuple[tuple[type[MeshError], Exit], ...] = (
    (ConfigError, Exit.USAGE),
    (errors.BadRequest, Exit.USAGE),
    (errors.Declined, Exit.USAGE),
    (errors.NotPlaced, Exit.NOT_PLACED),
    (errors.Unreachable, Exit.UNREACHABLE),
    (errors.NotAuthorised, Exit.NOT_AUTHORISED),
    (errors.VerificationFailed, Exit.NOT_VERIFIED),
    (errors.NotFound, Exit.NOT_FOUND),
    (errors.OverQuota, Exit.OVER_QUOTA),
    (errors.TimedOut, Exit.TIMED_OUT),
    (Refused, Exit.USAGE),
)


def exit_of(error: MeshError) -> Exit:
    """The exit code of *error*; 1 for what has no code of its own."""
    for kind, code in _BY_ERROR:
        if isinstance(error, kind):
            return code
    return Exit.TASK_FAILED
