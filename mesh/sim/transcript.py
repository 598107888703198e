"""Values as JSON and back, lossless: what a failed seed and a node's black box are written in.

An attrs value is an object with its class's name under "$"; bytes are {"hex": …}; an enum is its
class's name and its value; tuples are arrays. The registry is closed: nothing else is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import Enum
from typing import Any, TypeAlias, cast

import attrs

from ledger import chain, proof
from mesh import messages, sansio
from mesh.errors import PeerError
from mesh.market import bidding, credit, order, own_chain, policy
from mesh.resources import capacity
from mesh.sim import options

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


def _values(*modules: object) -> dict[str, type]:
    return {
        kind.__name__: kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and attrs.has(kind)
    }


_KINDS = _values(
    chain, proof, messages, sansio, bidding, credit, order, own_chain, policy, capacity, options
)
_ENUMS: dict[str, type[Enum]] = {"State": order.State}


def dump(value: object) -> Json:
    """*value* as JSON. Anything outside the registry is a broken invariant of ours."""
    if isinstance(value, Enum):
        assert type(value).__name__ in _ENUMS, value
        return {"enum": type(value).__name__, "value": value.value}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, tuple):
        return [dump(item) for item in value]
    kind = type(value)
    assert _KINDS.get(kind.__name__) is kind, kind
    names = [field.name for field in attrs.fields(cast(Any, kind))]
    return {"$": kind.__name__, **{name: dump(getattr(value, name)) for name in names}}


def load(data: Json) -> object:
    """The inverse of `dump`. Raises PeerError: a file may come from anybody."""
    if isinstance(data, list):
        return tuple(load(item) for item in data)
    if not isinstance(data, dict):
        return data
    try:
        if "hex" in data:
            return bytes.fromhex(cast(str, data["hex"]))
        if "enum" in data:
            return _ENUMS[cast(str, data["enum"])](data["value"])
        kind = _KINDS[cast(str, data["$"])]
        return kind(**{name: load(item) for name, item in data.items() if name != "$"})
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise PeerError(f"not a value of ours: {error!r:.80}") from None


def dump_event(event: sansio.Event) -> str:
    """One event as one line of JSON."""
    return write_line(dump(event))


def load_event(line: str) -> sansio.Event:
    """The inverse of `dump_event`. Raises PeerError."""
    return as_event(load(read_line(line)))


def as_event(value: object) -> sansio.Event:
    """*value*, if it is an event. Raises PeerError."""
    if not isinstance(value, sansio.Event):
        raise PeerError(f"{type(value).__name__} is not an event")
    return value


def write_line(data: Json) -> str:
    """Compact JSON without a line break."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def read_line(line: str) -> Json:
    """The inverse of `write_line`. Raises PeerError."""
    try:
        return cast(Json, json.loads(line))
    except ValueError:
        raise PeerError(f"not JSON: {line[:40]!r}") from None


def write_lines(values: Iterable[Json]) -> str:
    """A file of lines."""
    return "".join(write_line(value) + "\n" for value in values)
