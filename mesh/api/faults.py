"""What a client is told when something goes wrong: google.rpc.Status with a reason and a way out.

Every status carries a google.rpc.ErrorInfo whose reason is one of the words below and whose
metadata may hold "hint" and "field"; a wrong field also comes as google.rpc.BadRequest, and what
may go better later as google.rpc.RetryInfo.
"""

from __future__ import annotations

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from mesh.errors import ConfigError, Exhausted, MeshError, NotFound, PeerError, Refused, Unavailable

DOMAIN = "mesh.v1"
RETRY_S = 1
"""When to try again what is not available now."""


class FieldError(MeshError):
    """A field of a request cannot be right: which one, why, and how to mend it."""

    def __init__(self, field: str, why: str, hint: str = "") -> None:
        super().__init__(f"{field}: {why}")
        self.field = field
        self.why = why
        self.hint = hint


class Closed(Unavailable):
    """The node is stopping."""

    def __init__(self) -> None:
        super().__init__("the node is stopping")


class Crashed(MeshError):
    """This call met a bug of the node, which stops because of it."""

    def __init__(self) -> None:
        super().__init__("the node met a bug of its own and stops; its log says which")


class TooSlow(Exhausted):
    """A watcher did not keep up."""

    def __init__(self) -> None:
        super().__init__("too slow: notices came faster than you took them", "watch again")


class TooMany(Exhausted):
    """All places for calls are taken."""

    def __init__(self, calls_max: int) -> None:
        super().__init__(f"{calls_max} calls are in flight already", "try again soon")


def status_of(error: MeshError) -> Status:
    """The status that says *error*."""
    match error:
        case FieldError() | ConfigError():
            field = error.field if isinstance(error, FieldError) else error.key
            violation = BadRequest.FieldViolation(field=field, description=error.why)
            bad = BadRequest(field_violations=[violation])
            return _status(Code.INVALID_ARGUMENT, error, "FIELD", bad, hint=error.hint, field=field)
        case NotFound():
            return _status(Code.NOT_FOUND, error, "NOT_FOUND", hint=error.hint)
        case TooSlow():
            return _status(Code.RESOURCE_EXHAUSTED, error, "TOO_SLOW", hint=error.hint)
        case TooMany():
            return _status(Code.RESOURCE_EXHAUSTED, error, "TOO_MANY", _retry(), hint=error.hint)
        case Exhausted():
            return _status(Code.RESOURCE_EXHAUSTED, error, "EXHAUSTED", hint=error.hint)
        case Refused():
            return _status(Code.FAILED_PRECONDITION, error, "REFUSED", hint=error.hint)
        case Closed():
            return _status(Code.UNAVAILABLE, error, "STOPPING", _retry())
        case Unavailable():
            return _status(Code.UNAVAILABLE, error, "UNAVAILABLE", _retry())
        case PeerError():
            return _status(Code.UNAVAILABLE, error, "PEER", _retry())
        case _:
            return _status(Code.INTERNAL, error, "BUG")


def _status(code: int, error: MeshError, reason: str, *details: Message, **facts: str) -> Status:
    info = ErrorInfo(
        reason=reason, domain=DOMAIN, metadata={key: text for key, text in facts.items() if text}
    )
    return Status(code=code, message=str(error), details=[_pack(each) for each in (info, *details)])


def _retry() -> RetryInfo:
    return RetryInfo(retry_delay=Duration(seconds=RETRY_S))


def _pack(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
