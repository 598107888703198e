"""Values as bytes: positional msgpack arrays, version and kind first, decoded strictly.

Only `PeerError` escapes from decoding: wrong version, unknown kind, wrong shape, a number out of
range, a length over its cap. The schema is the attrs class itself; a class's place in `_KINDS` is
its number on the wire for ever: append, never reorder.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import attrs
import msgpack

from mesh import messages
from mesh.errors import PeerError
from mesh.ids import Cid, EntryId, PeerId, TaskId, check_cid
from mesh.messages import Message, Offer, SignedOffer

VERSION = 1
FRAME_MAX = 32 * 1024
"""Bytes of one encoded message; msgpack's nesting is bounded by the schema."""
OFFER_MAX = 4 * 1024
"""Bytes of one gossiped offer, signature included."""
RECORD_MAX = 256 * 1024
"""Bytes of one value in our own files."""

_BYTES_MAX = 8 * 1024
_TEXT_MAX = 512
_ITEMS_MAX = 256
_INT_MAX = 2**63 - 1

_KINDS: tuple[type, ...] = (
    messages.Ask,
    messages.Bid,
    messages.Refusal,
    messages.Award,
    messages.Accepted,
    messages.Declined,
    messages.Release,
    messages.Renew,
    messages.Renewed,
    messages.Revoked,
    messages.Done,
    messages.Lost,
    messages.Settled,
    messages.Slice,
    messages.Sliced,
    messages.Saved,
    messages.Handover,
    messages.Stays,
    messages.Keep,
)
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}

Reader = Callable[[object], Any]
T = TypeVar("T")


def encode(message: Message) -> bytes:
    """One frame of the message stream."""
    frame = _pack([VERSION, _NUMBERS[type(message)], *_fields(message)])
    assert len(frame) <= FRAME_MAX, type(message)
    return frame


def decode(frame: bytes) -> Message:
    """The message in *frame*. Raises PeerError and nothing else."""
    number, *fields = _versioned(frame, FRAME_MAX, "message") or [None]
    if type(number) is not int or not 0 <= number < len(_KINDS):
        raise PeerError("unknown kind of message")
    return cast(Message, _reader(_KINDS[number])(fields))


def encode_offer(offer: Offer) -> bytes:
    """The bytes that are signed (`offer_message`)."""
    return _pack([VERSION, *_fields(offer)])


def decode_offer(data: bytes) -> Offer:
    """The inverse of `encode_offer`. Raises PeerError."""
    return cast(Offer, _reader(Offer)(_versioned(data, OFFER_MAX, "offer")))


def offer_message(offer: bytes) -> bytes:
    """What an offer's author signs."""
    return b"mesh/1/offer\0" + offer


def encode_signed_offer(signed: SignedOffer) -> bytes:
    """A gossip message."""
    return _pack([VERSION, *_fields(signed)])


def decode_signed_offer(data: bytes) -> SignedOffer:
    """The inverse of `encode_signed_offer`. Raises PeerError."""
    return cast(SignedOffer, _reader(SignedOffer)(_versioned(data, OFFER_MAX, "signed offer")))


def dump(value: object) -> bytes:
    """Any attrs value made of our field types, for our own files."""
    data = _pack([VERSION, *_fields(value)])
    assert len(data) <= RECORD_MAX, type(value)
    return data


def load(kind: type[T], data: bytes) -> T:
    """The inverse of `dump`. Raises PeerError: the caller knows whose bytes they are."""
    return cast(T, _reader(kind)(_versioned(data, RECORD_MAX, kind.__name__)))


def _pack(value: object) -> bytes:
    return cast(bytes, msgpack.packb(value, use_bin_type=True))


def _versioned(data: bytes, limit: int, what: str) -> list[object]:
    """The fields after the version. Raises PeerError."""
    parts = _unpack(data, limit)
    if type(parts) is not list or not parts or type(parts[0]) is not int or parts[0] != VERSION:
        raise PeerError(f"not a {what} of version {VERSION}")
    return parts[1:]


def _unpack(data: bytes, limit: int) -> object:
    if len(data) > limit:
        raise PeerError(f"{len(data)} bytes where at most {limit} are allowed")
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            max_str_len=4 * _TEXT_MAX,
            max_bin_len=_BYTES_MAX,
            max_array_len=_ITEMS_MAX,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise PeerError(f"not msgpack within limits: {error!s:.80}") from None


def _fields(value: object) -> list[object]:
    return [_plain(getattr(value, name)) for name in _names(type(value))]


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if attrs.has(type(value)):
        return _fields(value)
    if isinstance(value, StrEnum):
        return value.value
    return value


_names_of: dict[type, tuple[str, ...]] = {}
_readers: dict[object, Reader] = {}


def _names(kind: type) -> tuple[str, ...]:
    names = _names_of.get(kind)
    if names is None:
        names = tuple(field.name for field in attrs.fields(cast(Any, kind)))
        _names_of[kind] = names
    return names


def _reader(kind: object) -> Reader:
    """The strict reader of one field type, built once."""
    reader = _readers.get(kind)
    if reader is None:
        reader = _build_reader(kind)
        _readers[kind] = reader
    return reader


def _build_reader(kind: object) -> Reader:
    simple = _SIMPLE.get(kind)
    if simple is not None:
        return simple
    if get_origin(kind) is tuple:
        arguments = get_args(kind)
        assert len(arguments) == 2, kind
        assert arguments[1] is Ellipsis, kind
        return _tuple_reader(_reader(arguments[0]))
    if get_origin(kind) in (types.UnionType, Union):
        present = [part for part in get_args(kind) if part is not type(None)]
        assert len(present) == 1, kind
        return _optional_reader(_reader(present[0]))
    assert isinstance(kind, type), kind
    if issubclass(kind, StrEnum):
        return _enum_reader(kind)
    return _value_reader(kind)


def _tuple_reader(item: Reader) -> Reader:
    def read(value: object) -> tuple[object, ...]:
        if type(value) is not list:
            raise PeerError("an array was expected")
        return tuple([item(part) for part in value])

    return read


def _optional_reader(present: Reader) -> Reader:
    def read(value: object) -> object:
        return None if value is None else present(value)

    return read


def _enum_reader(kind: type[StrEnum]) -> Reader:
    def read(value: object) -> StrEnum:
        try:
            return kind(_read_text(value))
        except ValueError:
            raise PeerError(f"{value!r:.40} is not a {kind.__name__}") from None

    return read


def _value_reader(kind: type) -> Reader:
    assert attrs.has(kind), kind
    hints = get_type_hints(kind)
    readers = [_reader(hints[name]) for name in _names(kind)]

    def read(value: object) -> object:
        if type(value) is not list or len(value) != len(readers):
            raise PeerError(f"{kind.__name__} has {len(readers)} fields")
        return kind(*[reader(part) for reader, part in zip(readers, value, strict=True)])

    return read


def _read_int(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _INT_MAX:
        raise PeerError("a whole number from 0 to 2^63-1 was expected")
    return value


def _read_bool(value: object) -> bool:
    if type(value) is not bool:
        raise PeerError("a truth value was expected")
    return value


def _read_bytes(value: object) -> bytes:
    if type(value) is not bytes:
        raise PeerError("bytes were expected")
    return value


def _read_text(value: object) -> str:
    if type(value) is not str or len(value) > _TEXT_MAX:
        raise PeerError(f"text of at most {_TEXT_MAX} characters was expected")
    return value


def _exactly(length: int) -> Reader:
    def read(value: object) -> bytes:
        data = _read_bytes(value)
        if len(data) != length:
            raise PeerError(f"{length} bytes were expected")
        return data

    return read


def _read_cid(value: object) -> Cid:
    try:
        return check_cid(_read_bytes(value))
    except ValueError as error:
        raise PeerError(str(error)) from None


_SIMPLE: dict[object, Reader] = {
    int: _read_int,
    bool: _read_bool,
    bytes: _read_bytes,
    str: _read_text,
    PeerId: _exactly(32),
    TaskId: _exactly(16),
    EntryId: _exactly(32),
    Cid: _read_cid,
}
