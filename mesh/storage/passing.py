"""Blocks that pass through: of a task that is to go on now, and not when a disk has written them.

They stay in memory, in front of the store, and are gone with the block of code that needs them:
whoever asks for them later fetches them again.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

from mesh.ids import Cid
from mesh.storage.blocks import Blocks

HELD_MAX = 64 << 20
"""Bytes in memory; what comes beyond is stored."""


class Passing:
    """Blocks in front of *store*. Of *spared* nobody needs the bytes: they count as here."""

    def __init__(self, store: Blocks, spared: Container[Cid]) -> None:
        self._store, self._spared = store, spared
        self._held: dict[Cid, bytes] = {}
        self._bytes = 0

    def get(self, cid: Cid) -> bytes:
        """See `Blocks`."""
        held = self._held.get(cid)
        return self._store.get(cid) if held is None else held

    def put(self, cid: Cid, data: bytes) -> None:
        """See `Blocks`; not durable."""
        self.put_many([(cid, data)])

    def put_many(self, blocks: Iterable[tuple[Cid, bytes]]) -> None:
        """See `Blocks`; not durable."""
        rest = []
        for cid, data in blocks:
            if self._bytes + len(data) > HELD_MAX:
                rest.append((cid, data))
            else:
                self._held[cid] = data
                self._bytes += len(data)
        if rest:
            self._store.put_many(rest)

    def has(self, cid: Cid) -> bool:
        """See `Blocks`."""
        return cid in self._spared or cid in self._held or self._store.has(cid)

    def delete(self, cid: Cid) -> bool:
        """See `Blocks`: of those that pass through."""
        return self._held.pop(cid, None) is not None

    def cids(self) -> Iterator[Cid]:
        """See `Blocks`: those that pass through."""
        return iter(list(self._held))

    def statistics(self) -> dict[str, int]:
        """See `Blocks`."""
        return {"blocks": len(self._held), "bytes": self._bytes}
