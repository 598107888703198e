"""Whether a task's module is to be able to go on elsewhere, as people choose it."""

from __future__ import annotations

from mesh.client.errors import BadRequest
from mesh.v1 import modules_pb2

AUTO, YES, NO = CHOICES = ("auto", "yes", "no")
"""Where possible; or not at all; as it is."""
OUTER, ALL = POLICIES = ("outer", "all")
"""Where a guest looks whether it should stop: not in the innermost loops, or in every loop."""
NOT_ASKED = "nobody asked for it"

_POLICY = {OUTER: modules_pb2.MODULE_POLICY_OUTER, ALL: modules_pb2.MODULE_POLICY_ALL}


def request(
    module: str, movable: str, policy: str = OUTER
) -> modules_pb2.ModulesInstrumentRequest | None:
    """What to ask the node for; None where the module is to stay as it is. Raises BadRequest."""
    if movable not in CHOICES or policy not in POLICIES:
        raise BadRequest(
            f"{movable!r} and {policy!r} are no choice",
            f"{', '.join(CHOICES)}; {', '.join(POLICIES)}",
        )
    if movable == NO:
        return None
    return modules_pb2.ModulesInstrumentRequest(
        module=module, policy=_POLICY[policy], or_as_it_is=movable == AUTO
    )
