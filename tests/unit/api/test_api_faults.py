"""Every error has a status with a reason, and a way out where there is one."""

from __future__ import annotations

import pytest
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

from mesh.api.faults import Closed, Crashed, FieldError, TooMany, TooSlow, status_of
from mesh.errors import ConfigError, Exhausted, MeshError, NotFound, PeerError, Refused, Unavailable


@pytest.mark.parametrize(
    ("error", "code", "reason", "hint", "retries"),
    [
        (Refused("no"), "FAILED_PRECONDITION", "REFUSED", "", False),
        (Refused("no", "pay"), "FAILED_PRECONDITION", "REFUSED", "pay", False),
        (Exhausted("full", "wait"), "RESOURCE_EXHAUSTED", "EXHAUSTED", "wait", False),
        (TooSlow(), "RESOURCE_EXHAUSTED", "TOO_SLOW", "watch again", False),
        (TooMany(3), "RESOURCE_EXHAUSTED", "TOO_MANY", "try again soon", True),
        (NotFound("gone", "look"), "NOT_FOUND", "NOT_FOUND", "look", False),
        (Unavailable("later"), "UNAVAILABLE", "UNAVAILABLE", "", True),
        (Closed(), "UNAVAILABLE", "STOPPING", "", True),
        (PeerError("lied"), "UNAVAILABLE", "PEER", "", True),
        (FieldError("fuel", "is 0", "more"), "INVALID_ARGUMENT", "FIELD", "more", False),
        (ConfigError("a.b", "is 0", "1"), "INVALID_ARGUMENT", "FIELD", "1", False),
        (Crashed(), "INTERNAL", "BUG", "", False),
    ],
    ids=lambda it: type(it).__name__ if isinstance(it, MeshError) else None,
)
def test_an_error_becomes_a_status(
    error: MeshError, code: str, reason: str, hint: str, retries: bool
) -> None:
    status = status_of(error)
    assert status.code == Code.Value(code)
    assert status.message == str(error)
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, info.metadata["hint"]) == (reason, "mesh.v1", hint)
    retry = RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details) == retries


def test_a_wrong_field_is_named_for_programs_too() -> None:
    bad = BadRequest()
    assert status_of(FieldError("fuel", "is 0")).details[1].Unpack(bad)
    assert [(it.field, it.description) for it in bad.field_violations] == [("fuel", "is 0")]
