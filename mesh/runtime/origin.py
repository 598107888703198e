"""What an instrumented module says of itself: of which module it was made, by what and how. Pure.

It is a custom section, so the module's CID covers it, and neither a job nor a bill needs a word for
it. It is a claim: whoever has the source and the instrumenter makes the module again and compares
the bytes. Until then nothing rests on it.
"""

from __future__ import annotations

import re

import msgpack
from attrs import frozen

from mesh.errors import PeerError, Refused
from mesh.ids import Cid, check_cid
from mesh.runtime import binary
from mesh.runtime.binary import CUSTOM, Cursor
from mesh.runtime.rewrite import Policy

SECTION = "mesh.origin"
BYTES_MAX = 256
"""Of what the section holds."""
SECTIONS_MAX = 10_000
"""Sections of a module that are looked through."""
TESTED = ("mesh-5/binaryen-116",)
"""What makes modules that cost the same moved and unmoved (suspension.DETOUR)."""
_NAME = re.compile(r"[!-~]{1,64}")
_VERSION = 1
_KIND = "origin"
_MARK = binary.text(SECTION)


@frozen
class Origin:
    """Where a module comes from."""

    source: Cid
    """The module before."""
    instrumenter: str
    """Our rewriting and the Binaryen, each with its version."""
    policy: Policy


def add_origin(wasm: bytes, origin: Origin) -> bytes:
    """*wasm*, which says that it comes from there."""
    return wasm + binary.section(CUSTOM, _MARK + _encode(origin)).raw


def read_origin(wasm: bytes) -> Origin | None:
    """What *wasm* says of itself; None where it says nothing. Raises PeerError, and nothing else,
    for any bytes."""
    try:
        found = _find(wasm)
    except Refused as refusal:
        raise PeerError(refusal.reason) from None
    if len(found) > 1:
        raise PeerError("a module that says twice where it comes from")
    return _decode(found[0]) if found else None


def why_fixed(wasm: bytes) -> str:
    """Why *wasm* is not moved here, though it could be; the empty string where it may be.

    One made by who knows what may cost another number of units for each move, or look whether it
    was moved and do something else: its honest seller's bill would be wrong. What one claims that
    it was made by, whoever doubts the bill makes again.
    """
    try:
        origin = read_origin(wasm)
    except PeerError as error:
        return str(error)
    if origin is None:
        return "its module does not say what made it able to be moved"
    if origin.instrumenter not in TESTED:
        return f"its module was made by {origin.instrumenter}, which is not tested here"
    return ""


def _find(wasm: bytes) -> list[bytes]:
    cursor = Cursor(wasm, len(binary.HEADER))
    found: list[bytes] = []
    for _ in range(SECTIONS_MAX):
        if cursor.at >= cursor.end:
            return found
        number, size = cursor.byte(), cursor.u32()
        start, cursor.at = cursor.at, cursor.at + size
        if number == CUSTOM and size >= len(_MARK) and wasm.startswith(_MARK, start):
            start += len(_MARK)
            found.append(Cursor(wasm, start).take(cursor.at - start))
    binary.refuse(f"it has more than {SECTIONS_MAX} sections")


def _encode(origin: Origin) -> bytes:
    values = (_VERSION, _KIND, origin.source, origin.instrumenter, origin.policy.value)
    data: bytes = msgpack.packb(values, use_bin_type=True)
    return data


def _decode(data: bytes) -> Origin:
    if len(data) > BYTES_MAX:
        raise PeerError("an origin that is too long")
    try:
        value = msgpack.unpackb(data, use_list=False, max_map_len=0, max_ext_len=0)
    except (ValueError, msgpack.UnpackException):
        raise PeerError("an origin that is not msgpack") from None
    match value:
        case (1, "origin", bytes(source), str(instrumenter), str(policy)):
            pass
        case _:
            raise PeerError("an origin of another version or shape")
    if not _NAME.fullmatch(instrumenter):
        raise PeerError("an origin whose instrumenter has no proper name")
    try:
        origin = Origin(check_cid(source), instrumenter, Policy(policy))
    except ValueError as error:
        raise PeerError(f"an origin with {error}") from None
    if _encode(origin) != data:
        raise PeerError("an origin in another form than the canonical one")
    return origin
