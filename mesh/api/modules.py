"""The service of modules: made movable, and described. Nothing here knows gRPC."""

from __future__ import annotations

from mesh import ids
from mesh.api import convert
from mesh.api.door import Door, ModuleView
from mesh.api.faults import FieldError
from mesh.runtime.rewrite import Policy
from mesh.v1 import modules_pb2

_POLICIES = {
    modules_pb2.MODULE_POLICY_UNSPECIFIED: Policy.OUTER,
    modules_pb2.MODULE_POLICY_OUTER: Policy.OUTER,
    modules_pb2.MODULE_POLICY_ALL: Policy.ALL,
}


async def instrument(
    door: Door, request: modules_pb2.ModulesInstrumentRequest
) -> modules_pb2.ModulesInstrumentResponse:
    """A module made movable; it may take minutes."""
    if request.policy not in _POLICIES:
        raise FieldError("policy", "is none", "MODULE_POLICY_OUTER, or leave it out")
    view = await door.instrument(
        convert.read_cid(request.module, "module"),
        _POLICIES[request.policy],
        or_as_it_is=request.or_as_it_is,
    )
    return modules_pb2.ModulesInstrumentResponse(module=_module(view))


async def describe(
    door: Door, request: modules_pb2.ModulesDescribeRequest
) -> modules_pb2.ModulesDescribeResponse:
    """What is known of a module."""
    view = await door.describe_module(convert.read_cid(request.module, "module"))
    return modules_pb2.ModulesDescribeResponse(module=_module(view))


def _module(view: ModuleView) -> modules_pb2.Module:
    origin = view.origin
    return modules_pb2.Module(
        module=ids.format_cid(view.module),
        is_movable=view.is_movable,
        source=ids.format_cid(origin.source) if origin else "",
        instrumenter=origin.instrumenter if origin else "",
        policy=origin.policy.value if origin else "",
        reason=view.reason,
    )
