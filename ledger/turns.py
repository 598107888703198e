"""What two replicas say to each other: a hello, then turns, each of one or more pieces. Pure.

    hello = [version, scope, fingerprint]
    piece = [is last, ranges, rows, wants, fetches, [entry, ...]]

Canonical bytes like the ledger's own. Rows, names and fetches are of one length each, strung
together.
"""

from __future__ import annotations

from enum import IntEnum

from attrs import frozen

from ledger.codec import pack, unpack
from ledger.errors import BadEntry, LedgerError
from ledger.recon import NAME_LENGTH

VERSION = 1
PIECE_MAX = 512 * 1024
"""Bytes of one encoded piece of a turn."""


class SyncError(LedgerError):
    """What no honest peer does: end the stream. Nothing wrong was kept."""


class HungUp(SyncError):
    """The stream ended in the middle: by malice, or because its owner ended. What came stays."""


class OtherVersion(SyncError):
    """The peer speaks another version of this: newer or older, and no worse for it."""


class Scope(IntEnum):
    """What is compared."""

    HEADS = 1
    IDS = 2


@frozen
class Hello:
    """The first word of an exchange."""

    scope: Scope
    fingerprint: bytes
    """Of everything held: 32 bytes. Also the salt of the names."""

    def encode(self) -> bytes:
        """37 bytes."""
        return pack((VERSION, int(self.scope), self.fingerprint))

    @staticmethod
    def decode(data: bytes) -> Hello:
        """The hello in *data*. Raises SyncError: also for any other version than ours."""
        match _unpacked(data, 64):
            case (int(version), *_) if version != VERSION:
                raise OtherVersion(f"version {version} where {VERSION} is spoken")
            case (_, int(scope), bytes(fingerprint)) if scope in (1, 2) and len(fingerprint) == 32:
                return Hello(Scope(scope), fingerprint)
            case _:
                raise SyncError("not a hello")


@frozen
class Piece:
    """A part of a turn."""

    is_last: bool = True
    """Of its turn."""
    ranges: bytes = b""
    """A message of `recon`."""
    rows: tuple[bytes, ...] = ()
    """What the speaker has and the hearer lacks."""
    wants: tuple[bytes, ...] = ()
    """Names of what the speaker lacks."""
    fetches: tuple[bytes, ...] = ()
    """What the speaker was told of and has not."""
    entries: tuple[bytes, ...] = ()

    @property
    def is_idle(self) -> bool:
        return not (self.ranges or self.rows or self.wants or self.fetches or self.entries)

    def encode(self) -> bytes:
        """At most `PIECE_MAX` bytes."""
        notes = (b"".join(self.rows), b"".join(self.wants), b"".join(self.fetches))
        return pack((int(self.is_last), self.ranges, *notes, self.entries))

    @staticmethod
    def decode(data: bytes, scope: Scope) -> Piece:
        """The piece in *data*. Raises SyncError."""
        match _unpacked(data, PIECE_MAX):
            case (
                int(last),
                bytes(ranges),
                bytes(rows),
                bytes(wants),
                bytes(fetches),
                tuple(entries),
            ) if last in (0, 1):
                row, fetch = _LENGTHS[scope]
                if not all(type(entry) is bytes for entry in entries):
                    raise SyncError("entries that are no bytes")
                return Piece(
                    bool(last),
                    ranges,
                    _cut(rows, row),
                    _cut(wants, NAME_LENGTH),
                    _cut(fetches, fetch),
                    entries,
                )
            case _:
                raise SyncError("not a piece of a turn")


_LENGTHS = {Scope.HEADS: (56, 56), Scope.IDS: (40, 32)}
"""Bytes of a row, bytes of a fetch."""


def _unpacked(data: bytes, limit: int) -> object:
    try:
        return unpack(data, limit)
    except BadEntry as error:
        raise SyncError(f"not a message: {error.reason}") from None


def _cut(data: bytes, length: int) -> tuple[bytes, ...]:
    if len(data) % length:
        raise SyncError(f"{len(data)} bytes are not notes of {length}")
    return tuple(data[at : at + length] for at in range(0, len(data), length))
