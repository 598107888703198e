"""Canonical bytes: a subset of msgpack in which every value has exactly one encoding.

Unsigned integers up to 2^63-1, byte strings, NFC text and arrays; never maps, floats, nil, bools,
negatives or extensions, and each in its shortest form (https://github.com/msgpack/msgpack/
blob/master/spec.md). A decoder that only packs again and compares is not enough: a float or a nil
survives that. So: size, then unpack under limits, then walk the types, then pack and compare.
"""

from __future__ import annotations

from typing import TypeAlias, cast
from unicodedata import is_normalized

import msgpack
from msgspec.msgpack import Encoder

from ledger.errors import BadEntry

Value: TypeAlias = int | str | bytes | tuple["Value", ...]

ENTRY_MAX = 8192
"""Bytes of one encoded entry."""
BODY_MAX = 4096
"""Bytes of its body."""
UINT_MAX = 2**63 - 1
ARRAY_MAX = 256
TEXT_MAX = 256
"""Bytes of UTF-8."""
DEPTH_MAX = 8
"""Arrays within arrays, the outermost counted."""


def pack(value: Value) -> bytes:
    """The one encoding of *value*, which must lie within the subset."""
    assert _flaw(value, DEPTH_MAX) == "", value
    return _pack(value)


def unpack(data: bytes, limit: int) -> Value:
    """The value that *data*, at most *limit* bytes, encodes canonically. Raises BadEntry."""
    if len(data) > limit:
        raise BadEntry(f"{len(data)} bytes where {limit} are allowed")
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            use_list=False,
            max_str_len=TEXT_MAX,
            max_bin_len=limit,
            max_array_len=ARRAY_MAX,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise BadEntry(f"not msgpack within the limits: {error or type(error).__name__}") from None
    if flaw := _flaw(value, DEPTH_MAX):
        raise BadEntry(flaw)
    if _pack(value) != data:
        raise BadEntry("not the shortest encoding")
    return cast(Value, value)


_pack = Encoder().encode


def _flaw(value: object, depth: int) -> str:
    """Why *value* is outside the subset; empty if it is inside. A bool is an int: compare types."""
    if type(value) is not tuple:
        return _flaw((value,), 1)
    if depth == 0:
        return f"more than {DEPTH_MAX} arrays deep"
    if len(value) > ARRAY_MAX:
        return f"an array of more than {ARRAY_MAX}"
    for item in value:  # one loop and few calls: every entry that ever comes passes here
        kind = type(item)
        if kind is bytes:
            continue
        if kind is int:
            if not 0 <= item <= UINT_MAX:
                return "an integer outside 0..2^63-1"
        elif kind is tuple:
            if flaw := _flaw(item, depth - 1):
                return flaw
        elif kind is not str:
            return f"{kind.__name__} is not in the subset"
        elif not is_normalized("NFC", item):
            return "text that is not NFC"
    return ""
