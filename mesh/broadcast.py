"""The broadcast of notices: numbered, to many watchers, none of whom can stall the node."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from mesh.api.door import Numbered
from mesh.errors import Exhausted
from mesh.ids import TaskId
from mesh.notices import Forked, Notice, OfferAged, OfferHeard

WATCHERS_MAX = 1_024
WAITING_MAX = 256
"""Notices kept for a watcher that does not read; the numbers of what follows show the gap."""


class Broadcast:
    """Fan-out of the kernel's notices."""

    def __init__(self) -> None:
        self.seq = 0
        self.tally: Counter[str] = Counter()
        self._watchers: dict[trio.MemorySendChannel[Numbered], TaskId | None] = {}

    def publish(self, notice: Notice) -> None:
        """Tell everybody concerned; never waits."""
        self.seq += 1
        numbered = Numbered(self.seq, notice)
        task = None if isinstance(notice, OfferHeard | OfferAged | Forked) else notice.task
        for watcher, wanted in self._watchers.items():
            if wanted is not None and wanted != task:
                continue
            try:
                watcher.send_nowait(numbered)
            except (trio.WouldBlock, trio.BrokenResourceError):  # full, or closed at its other end
                self.tally["notices_missed"] += 1

    def close(self) -> None:
        """End every watch: the node stops. What is published from now on reaches nobody."""
        watchers, self._watchers = self._watchers, {}
        for watcher in watchers:
            watcher.close()

    @asynccontextmanager
    async def follow(
        self, task: TaskId | None
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Numbered]]:
        """Notices from now on, of *task* or of everything. Raises Exhausted at the bound."""
        if len(self._watchers) >= WATCHERS_MAX:
            self.tally["watchers_refused"] += 1
            raise Exhausted(f"{WATCHERS_MAX} watchers at most", "close one, or watch elsewhere")
        send, receive = trio.open_memory_channel[Numbered](WAITING_MAX)
        self._watchers[send] = task
        try:
            yield receive
        finally:
            self._watchers.pop(send, None)
            send.close()
            receive.close()
