"""What can go wrong for a client. Every error carries a hint: the way out, where there is one."""

from __future__ import annotations

from mesh.errors import MeshError


class ClientError(MeshError):
    """Root of the client's errors: *why*, and *hint* to mend it."""

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.hint = hint


class BadRequest(ClientError):
    """The request cannot be right, whatever the state of the node."""


class Declined(ClientError):
    """The node refuses the request as it stands, and says what is wrong with it."""


class TaskFailed(ClientError):
    """The task ran and failed, broke a limit or was cancelled. *exit_code* is its own, if any."""

    def __init__(self, why: str, hint: str = "", *, exit_code: int = 1) -> None:
        super().__init__(why, hint)
        self.exit_code = exit_code


class NotPlaced(ClientError):
    """Nobody took the task; *reasons* are the candidates' own words, counted."""

    def __init__(self, why: str, hint: str = "", *, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(why, hint)
        self.reasons = reasons


class Unreachable(ClientError):
    """No node answers at that address."""


class NotAuthorised(ClientError):
    """The node knows who asks, or does not, and says no."""


class VerificationFailed(ClientError):
    """Something is not what its hash or its signature says."""


class NotFound(ClientError):
    """The node has no such thing."""


class Ambiguous(BadRequest):
    """A prefix names several things."""


class OverQuota(ClientError):
    """A quota, a rate or a balance is used up."""


class TimedOut(ClientError):
    """It did not happen in the time allowed; nothing was cancelled by that."""


class NodeFailed(ClientError):
    """The node met a fault of its own."""
