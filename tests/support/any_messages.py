"""Strategies: any value that the wire can carry, made from the types of its fields."""

from __future__ import annotations

import types
from enum import StrEnum
from typing import Any, Union, get_args, get_origin, get_type_hints

import attrs
from hypothesis import strategies as st

from mesh import codec, messages
from mesh.errors import PeerError
from mesh.ids import DAG_PB, RAW, Cid, EntryId, PeerId, TaskId, cid_of
from mesh.messages import Message

WHOLE = st.one_of(
    st.integers(0, 3),
    st.integers(0, 2**63 - 1),
    st.sampled_from([999, 1_000, 15_000, 2**31, 2**53, 2**62, 2**63 - 1]),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
CIDS = st.builds(cid_of, st.sampled_from([RAW, DAG_PB]), st.binary(max_size=2))
SIMPLE: dict[object, st.SearchStrategy[Any]] = {
    int: WHOLE,
    bool: st.booleans(),
    bytes: st.binary(max_size=64),
    str: TEXT,
    PeerId: st.binary(min_size=32, max_size=32),
    TaskId: st.binary(min_size=16, max_size=16),
    EntryId: st.binary(min_size=32, max_size=32),
    Cid: CIDS,
}


def any_value(kind: Any) -> st.SearchStrategy[Any]:
    """Whatever a field of that type may hold."""
    if kind in SIMPLE:
        return SIMPLE[kind]
    if get_origin(kind) is tuple:
        return st.lists(any_value(get_args(kind)[0]), max_size=4).map(tuple)
    if get_origin(kind) in (types.UnionType, Union):
        return st.one_of(*(any_value(part) for part in get_args(kind)))
    if kind is type(None):
        return st.none()
    if issubclass(kind, StrEnum):
        return st.sampled_from(list(kind))
    assert attrs.has(kind), kind
    hints = get_type_hints(kind)
    return st.builds(kind, **{field.name: any_value(hints[field.name]) for field in fields(kind)})


def fields(kind: Any) -> tuple[Any, ...]:
    return tuple(attrs.fields(kind))


KINDS: tuple[Any, ...] = get_args(messages.Message)
MESSAGES: st.SearchStrategy[Message] = st.one_of(*(any_value(kind) for kind in KINDS))


@st.composite
def altered(draw: st.DrawFn, message: Message) -> Message:
    """The message with one field that is another, if the wire can carry it; else as it was."""
    kind = type(message)
    name = draw(st.sampled_from([field.name for field in fields(kind)]))
    value = draw(any_value(get_type_hints(kind)[name]))
    other = attrs.evolve(message, **{name: value})
    try:
        return codec.decode(codec.encode(other))
    except PeerError:
        return message
