"""What a store of blocks is, and the one that lives in memory.

The methods block and may be called from several threads at once. A block is named by its hash, so
it never changes: putting it twice is putting it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from mesh.errors import NotFound, Refused
from mesh.ids import Cid, cid_codec, cid_of, format_cid

BLOCK_BYTES_MAX = 524_288
"""No block is longer, ours (256 KiB and a little) or a peer's."""


class Blocks(Protocol):
    """A store of blocks by CID."""

    def get(self, cid: Cid) -> bytes:
        """The block. Raises NotFound, or Corruption where what is stored fails its hash."""
        ...

    def put(self, cid: Cid, data: bytes) -> None:
        """Make a block durable. Raises Refused above the quota, Unavailable if the disk is full."""
        ...

    def put_many(self, blocks: Iterable[tuple[Cid, bytes]]) -> None:
        """`put` of several at the price of fewer waits for the disk; after an error, of some."""
        ...

    def has(self, cid: Cid) -> bool:
        """Whether the block is here."""
        ...

    def delete(self, cid: Cid) -> bool:
        """Forget a block, whoever needs it; whether it was here."""
        ...

    def cids(self) -> Iterator[Cid]:
        """Every block that was here when asked, in no particular order."""
        ...

    def statistics(self) -> dict[str, int]:
        """Counts and bytes by name."""
        ...


def not_here(cid: Cid) -> NotFound:
    """The error of a store that lacks a block."""
    return NotFound(f"block {format_cid(cid)} is not in this store", "fetch it from a peer first")


def check_block(cid: Cid, data: bytes) -> None:
    """Our own invariant: a block is put under its own name."""
    assert len(data) <= BLOCK_BYTES_MAX, len(data)
    assert matches(cid, data), format_cid(cid)


def matches(cid: Cid, data: bytes) -> bool:
    """Whether *data* is the block that *cid* names."""
    return cid_of(cid_codec(cid), data) == cid


class MemoryBlocks:
    """Blocks in memory, at most *blocks_max*: for tests and the simulator."""

    def __init__(self, blocks_max: int = 4_096) -> None:
        self._blocks: dict[Cid, bytes] = {}
        self._blocks_max = blocks_max
        self._refused = 0

    def get(self, cid: Cid) -> bytes:
        """See `Blocks`."""
        try:
            return self._blocks[cid]
        except KeyError:
            raise not_here(cid) from None

    def put(self, cid: Cid, data: bytes) -> None:
        """See `Blocks`."""
        check_block(cid, data)
        if cid not in self._blocks and len(self._blocks) >= self._blocks_max:
            self._refused += 1
            raise Refused(
                f"the store is full: it holds {len(self._blocks)} blocks of {self._blocks_max}",
                "delete blocks, or give it more room",
            )
        self._blocks[cid] = bytes(data)

    def put_many(self, blocks: Iterable[tuple[Cid, bytes]]) -> None:
        """See `Blocks`."""
        for cid, data in blocks:
            self.put(cid, data)

    def has(self, cid: Cid) -> bool:
        """See `Blocks`."""
        return cid in self._blocks

    def delete(self, cid: Cid) -> bool:
        """See `Blocks`."""
        return self._blocks.pop(cid, None) is not None

    def cids(self) -> Iterator[Cid]:
        """See `Blocks`."""
        return iter(list(self._blocks))

    def statistics(self) -> dict[str, int]:
        """See `Blocks`."""
        held = list(self._blocks.values())
        return {"blocks": len(held), "bytes": sum(map(len, held)), "refused": self._refused}
