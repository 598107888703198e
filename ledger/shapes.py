"""The shapes of entries, of bodies that two sign, and of terms: one pass tells whether bytes fit.

A shape accepts exactly what the strict decoder (model.py) accepts of its kind, and gives the same
values, at a fifth of the cost. It never says why not: whoever gets None asks the strict decoder,
which knows the reason, and the rarer kinds too. What a shape reads is packed again and compared,
so the bytes are the only encoding of values that keep every rule below.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, TypeVar

from msgspec import Meta, MsgspecError, Struct
from msgspec.msgpack import Decoder, Encoder

from ledger.codec import BODY_MAX, ENTRY_MAX, UINT_MAX
from ledger.fields import CID_LENGTH, CID_PREFIXES, NAME_MAX
from ledger.vocabulary import (
    ESCALATIONS_MAX,
    EXIT_MAX,
    INPUTS_MAX,
    MIGRATIONS_MAX,
    OUTPUTS_MAX,
    TERMS_MAX,
    UNIT,
    VERSION,
    Kind,
)

_Uint: TypeAlias = Annotated[int, Meta(ge=0, le=UINT_MAX)]
_Exit: TypeAlias = Annotated[int, Meta(ge=0, le=EXIT_MAX)]
_Net: TypeAlias = Annotated[bytes, Meta(min_length=8, max_length=8)]
_Nonce: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
_Key: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
_KeyOrNone: TypeAlias = Annotated[bytes, Meta(max_length=32)]
_Signature: TypeAlias = Annotated[bytes, Meta(min_length=64, max_length=64)]
_Cid: TypeAlias = Annotated[bytes, Meta(min_length=CID_LENGTH, max_length=CID_LENGTH)]
_Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=NAME_MAX)]
_Escalation: TypeAlias = tuple[_Uint, _Uint, _Uint, _Uint]
_Migration: TypeAlias = tuple[_Uint, _Key, _Key, _Cid]
_TWO_SIGN = frozenset((Kind.ALLOC, Kind.USE, Kind.SETTLE, Kind.VOID))


class EntryShape(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """An entry, whatever its body."""

    body: bytes
    sig: _Signature


class BodyShape(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """The body of an ALLOC, USE, SETTLE or VOID."""

    version: Literal[1]
    net: _Net
    kind: Kind
    author: _Key
    seq: _Uint
    prev: _Key
    hlc: _Uint
    posted: _Uint
    pending: _Uint
    peer: _Key
    terms: bytes
    peer_sig: _Signature
    ext: tuple[()]


class TermsShape(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Terms, of any kind of entry that has some."""

    version: Literal[1]
    nonce: _Nonce
    fence: _Uint
    seller: _Key
    buyer: _Key
    job: _Cid
    module: _Cid
    inputs: Annotated[tuple[_Cid, ...], Meta(max_length=INPUTS_MAX)]
    outputs: Annotated[tuple[_Cid, ...], Meta(max_length=OUTPUTS_MAX)]
    meter: _Name
    unit: Literal["uC/Gfuel"]
    price: _Uint
    fee: _Uint
    reserve: _Uint
    fuel: _Uint
    amount: _Uint
    exit: _Exit
    escalations: Annotated[tuple[_Escalation, ...], Meta(max_length=ESCALATIONS_MAX)]
    migrations: Annotated[tuple[_Migration, ...], Meta(max_length=MIGRATIONS_MAX)]
    start_ms: _Uint
    end_ms: _Uint
    deadline_ms: _Uint
    grace_ms: _Uint
    arbiter: _KeyOrNone
    ref: _KeyOrNone


def entry_shape(data: bytes) -> EntryShape | None:
    """The entry that *data* encodes, if so."""
    return _read(_ENTRY, data) if len(data) <= ENTRY_MAX else None


def body_shape(data: bytes) -> BodyShape | None:
    """The body that *data* encodes, if so; its terms stay bytes."""
    body = _read(_BODY, data) if len(data) <= BODY_MAX else None
    if body is None or body.kind not in _TWO_SIGN or len(body.terms) > TERMS_MAX:
        return None
    return body


def terms_shape(data: bytes) -> TermsShape | None:
    """The terms that *data* encodes, if so."""
    terms = _read(_TERMS, data) if len(data) <= TERMS_MAX else None
    return terms if terms is not None and _keeps_the_rest(terms) else None


def _keeps_the_rest(terms: TermsShape) -> bool:
    """The rules that no type of msgspec's tells."""
    for cid in (terms.job, terms.module, *terms.inputs, *terms.outputs):
        if cid[:4] not in CID_PREFIXES:
            return False
    return (
        terms.meter.isascii()
        and terms.meter.isprintable()
        and len(terms.arbiter) in (0, 32)
        and len(terms.ref) in (0, 32)
        and all(state[:4] in CID_PREFIXES for _, _, _, state in terms.migrations)
    )


T = TypeVar("T")

_ENTRY, _BODY, _TERMS = Decoder(EntryShape), Decoder(BodyShape), Decoder(TermsShape)
_pack = Encoder().encode
assert (VERSION, UNIT) == (1, "uC/Gfuel")  # of which a type takes the values only


def _read(decoder: Decoder[T], data: bytes) -> T | None:
    try:
        shape = decoder.decode(data)
    except (MsgspecError, UnicodeDecodeError):
        return None
    return shape if _pack(shape) == data else None
