"""Messages as plain values with stable names: what `-o json` prints and scripts rely on.

Every field is there, absent messages are null, integers stay integers (protobuf's own JSON makes
int64 a string), states are words, bytes are hex. The schema name says which message it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from mesh.v1 import order_pb2

Facts = dict[str, Any]


def state_word(state: order_pb2.TaskState.ValueType) -> str:
    """`running` for TASK_STATE_RUNNING."""
    return order_pb2.TaskState.Name(state).removeprefix("TASK_STATE_").lower()


def facts_of(message: Message) -> Facts:
    """All fields of *message* by name, nested messages as mappings."""
    fields: Iterable[Any] = message.DESCRIPTOR.fields
    return {field.name: _field(message, field) for field in fields}


def tagged(schema: str, facts: Mapping[str, object]) -> Facts:
    """*facts* under the name of their schema, `mesh.task/v1`."""
    return {"schema": schema, **facts}


def _field(message: Message, field: FieldDescriptor) -> object:
    value = getattr(message, field.name)
    if _is_map(field):
        return {key: value[key] for key in sorted(value)}
    if field.is_repeated:
        return [_value(field, item) for item in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _value(field, value)


def _word(kind: EnumDescriptor, value: int) -> str:
    """`agreed` for VERDICT_AGREED: without the name of its kind, which the first value shows."""
    prefix = kind.values[0].name.removesuffix("UNSPECIFIED")
    return kind.values_by_number[value].name.removeprefix(prefix).lower()


def _is_map(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and kind.GetOptions().map_entry


def _value(field: FieldDescriptor, value: Any) -> object:  # noqa: ANN401  (protobuf's own)
    if field.message_type is not None:
        return facts_of(value)
    if field.enum_type is not None:
        return _word(field.enum_type, value)
    return value.hex() if isinstance(value, bytes) else value
