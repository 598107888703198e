"""What a replica holds of a chain, in few bytes: what heads are compared by. Pure.

A head id alone vouches for the entries below it, but says nothing of gaps and of the arms of a
fork. So a holding also counts its entries and sums their ids: equal marks, equal entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import TypeAlias

from attrs import evolve, frozen

_MOD = 1 << 256

ChainKey: TypeAlias = tuple[bytes, bytes]
"""(author, net); of what has no author, like a FORKPROOF, the author is empty."""


@frozen
class Total:
    """A set of entries: their count, and the sum of their ids mod 2^256."""

    count: int = 0
    sum: int = 0

    def plus(self, entry_ids: Iterable[bytes]) -> Total:
        """With these, which were not in it."""
        return self._moved(entry_ids, 1)

    def minus(self, entry_ids: Iterable[bytes]) -> Total:
        """Without these, which were in it."""
        return self._moved(entry_ids, -1)

    def fingerprint(self) -> bytes:
        """32 bytes: equal for equal sets."""
        return sha256(self.sum.to_bytes(32, "big") + self.count.to_bytes(8, "big")).digest()

    def _moved(self, entry_ids: Iterable[bytes], sign: int) -> Total:
        values = [int.from_bytes(entry_id, "big") for entry_id in entry_ids]
        return Total(self.count + sign * len(values), (self.sum + sign * sum(values)) % _MOD)


@frozen
class Holding:
    """What is held of one author's chain on one network."""

    author: bytes
    net: bytes
    height: int = 0
    """How many entries are there from the start without a gap: the first seq that is missing."""
    top: int = 0
    """The seq after the highest."""
    top_id: bytes = b""
    """Of the highest; the smallest of several. Empty if there is none."""
    total: Total = Total()
    forked: bool = False
    """Two entries for one place were seen: proven, and for ever."""
    low: int = 0
    """The seq below which only ids may be left (remains.py); no part of the mark."""

    @property
    def key(self) -> ChainKey:
        return (self.author, self.net)

    def mark(self) -> bytes:
        """32 bytes: equal for equal entries."""
        return sha256(
            self.author.ljust(32, b"\0")
            + self.net
            + b"".join(number.to_bytes(8, "big") for number in (self.height, self.top))
            + self.top_id
            + self.total.fingerprint()
        ).digest()

    def topped(self, seq: int, entry_id: bytes) -> Holding:
        """With an entry that may be the highest: everything but height and total."""
        if (-seq, entry_id) < (1 - self.top, self.top_id) or self.top_id == b"":
            return evolve(self, top=seq + 1, top_id=entry_id)
        return self
