"""gRPC's errors as the client's: the code says which kind, the rich details say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped,unused-ignore]  # it has no types
from grpc_status import rpc_status

from mesh.client.errors import (
    BadRequest,
    ClientError,
    Declined,
    NodeFailed,
    NotAuthorised,
    NotFound,
    OverQuota,
    TimedOut,
    Unreachable,
    VerificationFailed,
)

_KINDS: dict[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: BadRequest,
    grpc.StatusCode.OUT_OF_RANGE: BadRequest,
    grpc.StatusCode.UNIMPLEMENTED: BadRequest,
    grpc.StatusCode.FAILED_PRECONDITION: Declined,
    grpc.StatusCode.UNAVAILABLE: Unreachable,
    grpc.StatusCode.CANCELLED: Unreachable,
    grpc.StatusCode.UNAUTHENTICATED: NotAuthorised,
    grpc.StatusCode.PERMISSION_DENIED: NotAuthorised,
    grpc.StatusCode.DATA_LOSS: VerificationFailed,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverQuota,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
}
_START_ONE = "start a node: mesh join · or name one: --node HOST:PORT, MESH_ADDR"


@contextmanager
def told_plainly(target: str) -> Iterator[None]:
    """Turn a gRPC error about *target* into one of mesh.client.errors."""
    try:
        yield
    except grpc.RpcError as error:
        raise plain(error, target) from None


def plain(error: grpc.RpcError, target: str) -> ClientError:
    """The client's error for *error*, its hint taken from the node's own details."""
    assert isinstance(error, grpc.Call)
    kind = _KINDS.get(error.code(), NodeFailed)
    why, hint = error.details() or error.code().name.lower(), _hint(error)
    if kind is Unreachable and not hint:  # the transport's words say nothing to people
        return Unreachable(f"no node answers at {target}", _START_ONE)
    if kind is TimedOut and not hint:
        hint = "the node is slow or gone: mesh status"
    return kind(why, hint)


def _hint(error: grpc.Call) -> str:
    status = rpc_status.from_call(error)  # type: ignore[no-untyped-call,unused-ignore]  # it has no types
    if status is None:
        return ""
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.metadata.get("hint"):
            return str(info.metadata["hint"])
        wait = error_details_pb2.RetryInfo()
        if detail.Unpack(wait):
            return f"try again in {max(1, wait.retry_delay.ToMilliseconds() // 1000)} s"
    return ""
