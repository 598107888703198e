"""The Python SDK: one node, as its user sees it.

    from mesh.client import connect

    with connect() as node:
        task = node.submit("wc.wasm", ["/in/book"], inputs={"book": "book.txt"})
        print(task.result(timeout=60).amount)
        task.download("counts.txt", "counts.txt")

Synchronous, over gRPC. Everything that can go wrong is in mesh.client.errors, with a hint.
"""

from mesh.client.connection import Client, connect
from mesh.client.errors import (
    Ambiguous,
    BadRequest,
    ClientError,
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
from mesh.client.task import Task

__all__ = [
    "Ambiguous",
    "BadRequest",
    "Client",
    "ClientError",
    "Limits",
    "NodeFailed",
    "NotAuthorised",
    "NotFound",
    "NotPlaced",
    "OverQuota",
    "Task",
    "TaskFailed",
    "TimedOut",
    "Unreachable",
    "VerificationFailed",
    "connect",
]
