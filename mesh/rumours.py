"""Rumours: entries of the ledger that come by gossip, and what is looked at before they go on.

A message is one encoded entry. libp2p knows messages by who published them, so the same entry may
come in several: it is known here by its own id, before anything is verified. What is checked here
is what makes an entry valid; what is merged is checked again, with the verdicts remembered.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from functools import lru_cache

import trio

from ledger import keys
from ledger.codec import BODY_MAX, unpack
from ledger.errors import BadEntry, LedgerError
from ledger.glance import opened
from ledger.model import KINDS_KNOWN, VERSION, Entry
from ledger.store import Store
from ledger.validity import check_entry
from mesh.ids import PeerId
from mesh.network.gossip import ENTRIES, ENTRY_MAX, Topic

CPU_MS = 1.7
"""Of ours that an entry takes until it is stored and passed on: 0.14 for its bytes and signatures,
which a hop to a thread would double, the rest is libp2p's. With the guard's budgets: 118 entries a
second of one forwarder, 290 of all, half a core."""
RECENT_MAX = 16_384
"""Entries that are known without asking the disk."""
WAITING_MAX = 4_096
"""Entries that wait to be merged; a repair brings what is dropped."""

verify = lru_cache(maxsize=4_096)(keys.verify)
"""One verdict for the one who passes on and the one who merges."""


class Rumours:
    """What was heard lately, and what waits to be merged."""

    def __init__(self, reader: Store, tally: Counter[str]) -> None:
        """*reader*: a connection of its own, for look-ups within the event loop (0.01 ms)."""
        self.topic = Topic(ENTRIES, ENTRY_MAX, self._hear, self._is_new, self._accepts, CPU_MS)
        self._reader = reader
        self._tally = tally
        self._recent: OrderedDict[bytes, None] = OrderedDict()
        self._waiting: deque[bytes] = deque()
        self._arrived = trio.Event()

    def note(self, entry_ids: Iterable[bytes]) -> None:
        """These are known: nobody needs to tell us of them."""
        for entry_id in entry_ids:
            self._recent[entry_id] = None
            self._recent.move_to_end(entry_id)
        while len(self._recent) > RECENT_MAX:
            self._recent.popitem(last=False)

    async def take(self, most: int, gather_s: float) -> list[bytes]:
        """Up to *most* encoded entries: those that came within *gather_s* seconds of the first."""
        await self._arrived.wait()
        await trio.sleep(gather_s)
        taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        if not self._waiting:
            self._arrived = trio.Event()
        return taken

    def _is_new(self, data: bytes) -> bool:
        try:
            entry = opened(data)
            if not _is_readable(entry):
                self._tally["ledger_unreadable"] += 1
                return False
        except BadEntry:
            return True  # for `_accepts` to refuse
        if entry.id in self._recent:
            return False
        try:
            is_new = not self._reader.which([entry.id])
        except LedgerError:
            return True  # whoever merges it says what is wrong with the disk
        if not is_new:
            self.note([entry.id])
        return is_new

    def _accepts(self, _author: PeerId, data: bytes) -> bool:
        try:
            entry = opened(data)
            check_entry(entry, verify, KINDS_KNOWN)
        except BadEntry:
            return False
        self.note([entry.id])
        return True

    def _hear(self, _author: PeerId, data: bytes) -> None:
        if len(self._waiting) >= WAITING_MAX:
            self._tally["ledger_dropped"] += 1
            return
        self._tally["ledger_heard"] += 1
        self._waiting.append(data)
        self._arrived.set()


def _is_readable(entry: Entry) -> bool:
    """Of a version and kind of ours. What a newer program sends is no fault of who passes it on.

    Raises BadEntry.
    """
    match unpack(entry.body, BODY_MAX):
        case (int(version), bytes(), int(kind), *_):
            return version == VERSION and kind in KINDS_KNOWN
        case _:
            raise BadEntry("body: not what a body begins with")
