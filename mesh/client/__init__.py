"""The Python SDK: one node, as its user sees it.

    from mesh.client import connect

    with connect() as node:
        task = node.submit("wc.wasm", ["/in/book"], inputs={"book": "book.txt"})
        print(task.result(timeout=60).amount)
        task.download("counts.txt", "counts.txt")

Synchronous, over gRPC. Everything that can go wrong is in mesh.client.errors, with a hint.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mesh.client.errors import (
    Ambiguous,
    BadRequest,
    ClientError,
    Declined,
    NodeFailed,
    NotAuthorised,
    NotFound,
    NotPlaced,
    OverQuota,
    TaskFailed,
    TimedOut,
    Unreachable,
    VerificationFailed,
)
from mesh.client.limits import Limits

if TYPE_CHECKING:
    from mesh.client.connection import Client, connect
    from mesh.client.programs import Reply
    from mesh.client.task import Task

__all__ = [
    "Ambiguous",
    "BadRequest",
    "Client",
    "ClientError",
    "Declined",
    "Limits",
    "NodeFailed",
    "NotAuthorised",
    "NotFound",
    "NotPlaced",
    "OverQuota",
    "Reply",
    "Task",
    "TaskFailed",
    "TimedOut",
    "Unreachable",
    "VerificationFailed",
    "connect",
]

_HEAVY = {
    "Client": "connection",
    "Reply": "programs",
    "Task": "task",
    "connect": "connection",
}


def __getattr__(name: str) -> object:
    """grpc is loaded only by those who talk to a node, so that `mesh --help` stays quick."""
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"mesh.client.{_HEAVY[name]}"), name)
