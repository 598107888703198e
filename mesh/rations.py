"""Rations: how much a witness's book may grow, so that strangers cannot fill its disk.

A vote costs its author nothing, and a new key costs nobody anything. So there is so much an hour
for each author, for new authors and for all together, and the last of the disk is for nobody.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

from attrs import define, field, frozen

from ledger.model import Entry
from ledger.votes import VoteBook
from ledger.witness import AUTHORS_KEPT_MAX, Ballot

HOUR_S = 3600.0


@frozen
class RationsConfig:
    """What the book takes in an hour; as much may come at once."""

    entries: int = 36_000
    """Of one author."""
    entries_all: int = 360_000
    """Of all authors: some 300 MB."""
    authors: int = 60
    """That it never voted for before."""
    room: int = 1 << 30
    """Bytes of the disk that stay free."""


@define
class Ration:
    """What is left of so much an hour. A core: time is an argument (seconds)."""

    per_hour: int
    left: float
    at: float

    def is_spent(self, now: float) -> bool:
        """Whether nothing is left now."""
        self.left += self.per_hour * max(0.0, now - self.at) / HOUR_S
        self.left, self.at = min(self.left, float(self.per_hour)), max(now, self.at)
        return self.left < 1


@define(eq=False)
class RationedBook:
    """A `ledger.witness.Book` that knows what it has taken in. In one thread at a time."""

    book: VoteBook
    owner: bytes
    """Whose own chain is never refused: the witness's."""
    clock: Callable[[], float]
    """Seconds."""
    room: Callable[[], int]
    """Bytes that are free on its disk. May raise OSError."""
    config: RationsConfig = field(factory=RationsConfig)
    tally: Counter[str] = field(factory=Counter)
    """Questions that were refused, by what had run out."""
    _of: OrderedDict[bytes, Ration] = field(factory=OrderedDict, init=False)
    _all: Ration = field(init=False)
    _authors: Ration = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._all = self._full(self.config.entries_all)
        self._authors = self._full(self.config.authors)

    def refusal(self, author: bytes, net: bytes) -> str:
        """Why *author* gets no vote now, or the empty string. Raises LedgerError."""
        now = self.clock()
        if author == self.owner:
            return ""
        if self._ration(author).is_spent(now):
            return self._refuse("author", f"{self.config.entries} entries of one author an hour")
        if self._all.is_spent(now):
            return self._refuse("all", f"{self.config.entries_all} entries an hour")
        if self._authors.is_spent(now) and self.book.ballot(author, net) is None:
            return self._refuse("authors", f"{self.config.authors} new authors an hour")
        if not self._has_room():
            return self._refuse("room", f"it keeps {self.config.room} bytes of its disk free")
        return ""

    def ballot(self, author: bytes, net: bytes) -> Ballot | None:
        return self.book.ballot(author, net)

    def voted(self, author: bytes, net: bytes, seq: int) -> Entry | None:
        return self.book.voted(author, net, seq)

    def entry(self, entry_id: bytes) -> Entry | None:
        return self.book.entry(entry_id)

    def is_closed(self, alloc_id: bytes) -> bool:
        return self.book.is_closed(alloc_id)

    def record(self, ballot: Ballot, entries: Sequence[Entry]) -> None:
        self.book.record(ballot, entries)
        self._ration(ballot.author).left -= len(entries)
        self._all.left -= len(entries)
        self._authors.left -= bool(entries) and len(entries) == ballot.seq

    def _refuse(self, what: str, limit: str) -> str:
        self.tally[f"unrationed_{what}"] += 1
        return f"this witness has its fill for now: {limit}"

    def _has_room(self) -> bool:
        try:
            return self.room() >= self.config.room
        except OSError:
            return False

    def _full(self, per_hour: int) -> Ration:
        return Ration(per_hour, float(per_hour), self.clock())

    def _ration(self, author: bytes) -> Ration:
        """Of who is forgotten, a full one: that of all together holds it."""
        found = self._of[author] = self._of.get(author) or self._full(self.config.entries)
        self._of.move_to_end(author)
        if len(self._of) > AUTHORS_KEPT_MAX:
            self._of.popitem(last=False)
        return found
