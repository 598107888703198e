"""Forks: authors that signed two entries for one place, noticed as entries are merged, and proven.

Every method blocks as the store does. Who was noticed is not noticed again until the next start.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from attrs import define, field, frozen

from ledger.merge import Merger
from ledger.model import Entry, Kind
from ledger.validity import fork_of, prove_fork
from mesh.ids import PeerId

FORKED_MAX = 65_536
"""Authors that are remembered as noticed."""


@frozen
class Fork:
    """An author that signed two entries for one place."""

    author: PeerId
    proof: tuple[bytes, ...] = ()
    """What convinces others, encoded: a FORKPROOF, or both arms; empty if others told us."""


@define(eq=False)
class Forks:
    """Those on one network."""

    merger: Merger
    net: bytes
    now_ms: Callable[[], int]
    _forked: OrderedDict[PeerId, None] = field(factory=OrderedDict, init=False)
    _noticed: list[Fork] = field(factory=list, init=False)

    def __bool__(self) -> bool:
        return bool(self._forked)

    def take(self) -> list[Fork]:
        """Those noticed since the last time."""
        noticed, self._noticed = self._noticed, []
        return noticed

    def recall(self) -> list[Entry]:
        """Notice once more what was proven before this start: whoever decides has forgotten."""
        for holding in self.merger.store.holdings():
            if holding.forked and holding.net == self.net:
                self._notice(Fork(PeerId(holding.author)))
        return self.look_at(self.merger.store.chain(b""))

    def look_at(self, entries: Iterable[Entry]) -> list[Entry]:
        """Notice what durable *entries* prove; the proofs that were made of it, and are durable."""
        made: list[Entry] = []
        for entry in entries:
            body = entry.content
            if body.net != self.net:
                continue  # the same key elsewhere is another chain
            if body.kind is Kind.FORKPROOF:
                self._notice(Fork(PeerId(fork_of(body)[0].content.author)))
            elif body.author not in self._forked and self._holds_fork(body.author):
                made += self._prove(entry)
        return made

    def _holds_fork(self, author: bytes) -> bool:
        return self.merger.store.holding(author, self.net).forked

    def _notice(self, fork: Fork) -> None:
        if fork.author in self._forked:
            return
        self._forked[fork.author] = None
        if len(self._forked) > FORKED_MAX:
            self._forked.popitem(last=False)
        self._noticed.append(fork)

    def _prove(self, entry: Entry) -> tuple[Entry, ...]:
        """Notice the fork of the author of *entry*; the FORKPROOF, if one was made and stored."""
        author = PeerId(entry.content.author)
        other = self._rival(entry)
        proof = None if other is None else prove_fork(entry, other)
        if proof is not None:
            self._notice(Fork(author, (proof.encode(),)))
            return self.merger.merge([proof.encode()], self.now_ms()).entries
        self._notice(Fork(author, (entry.encode(), other.encode()) if other else ()))
        return ()

    def _rival(self, entry: Entry) -> Entry | None:
        """Another entry for the same place."""
        place = entry.content
        for other in self.merger.store.chain(place.author, place.seq - 1):
            if other.content.seq != place.seq:
                return None
            if other.content.net == place.net and other.id != entry.id:
                return other
        return None
