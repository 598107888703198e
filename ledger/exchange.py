"""One exchange between two replicas, in turns: what a side says next, after what it has heard.

Both compare what they hold by `recon`. Whoever learns of a difference tells the other what that
lacks, as rows, and wants what itself lacks, by name; the other sends at once what is wanted, and
fetches what it was told of. A turn that says nothing after a turn that said nothing is the end.

The peer may be anybody: it is believed in nothing, and each of its words is bounded. What does not
fit into an exchange is found again by the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias, TypeVar

from attrs import evolve, mutable

from ledger.errors import BadEntry
from ledger.glance import Glance
from ledger.merge import Merged, Merger
from ledger.recon import RecError
from ledger.store import Store
from ledger.subjects import Heads, Ids, Subject
from ledger.turns import Piece, Scope, SyncError

ENTRIES_PER_PIECE = 200
"""Of 600 bytes as a rule: well below the longest piece, even if each is as long as can be."""
TURN_ENTRIES_MAX = 2000
"""Entries in one turn: what is left comes with the next."""
NOTES_PER_PIECE = 1000
"""Rows, names and fetches, of each, in one piece."""
NOTES_MAX = 65_536
"""Rows, names and fetches that one exchange hears."""
REFUSED_MAX = 256
"""Entries that may turn out bad: a newer program may send kinds that we cannot read yet."""

Heard: TypeAlias = Callable[[Merged], None]
"""Told of each batch that was merged, in the thread that merged it."""
T = TypeVar("T")
_Source: TypeAlias = Callable[[bytes], Iterator[Glance]]


@mutable
class Outcome:
    """What an exchange did."""

    new: int = 0
    """Entries that we had not, the vouched ones counted."""
    sent: int = 0
    refused: int = 0
    withheld: int = 0
    """Chains or entries that the peer told of and did not deliver."""


class Exchange:
    """One side of an exchange. Every method blocks as the store and the merger do.

    Raises SyncError for what the peer did, LedgerError for what our disk did.
    """

    def __init__(
        self,
        merger: Merger,
        scope: Scope,
        salt: bytes,
        now_ms: int,
        *,
        cold: bool,
        heard: Heard = lambda _: None,
    ) -> None:
        self._merger = merger
        self._heard = heard
        self._now_ms = now_ms
        self._cold = cold and scope is Scope.HEADS
        self._subject: Subject = _SUBJECTS[scope](merger.store, salt)
        self._rows: deque[bytes] = deque()
        self._wants: deque[bytes] = deque()
        self._fetches: deque[bytes] = deque()
        self._asked: deque[tuple[_Source, bytes]] = deque()
        self._arrived: list[Glance] = []
        self._serving: Iterator[Glance] = iter(())
        self._notes = self._noted = 0
        self.outcome = Outcome()

    def open(self) -> None:
        """Have the first word about what differs."""
        self._subject.recon.open()

    def hear(self, piece: Piece) -> None:
        """Take in a piece of the peer's turn."""
        self._notes += len(piece.rows) + len(piece.wants) + len(piece.fetches)
        if self._notes > NOTES_MAX:
            raise SyncError(f"more than {NOTES_MAX} notes")
        try:
            self._subject.recon.hear(piece.ranges)
        except RecError as error:
            raise SyncError(error.reason) from None
        fetches = map(self._subject.fetch_for, piece.rows)
        self._fetches += self._fitting([fetch for fetch in fetches if fetch is not None])
        self._asked += [(self._subject.wanted, name) for name in piece.wants]
        self._asked += [(self._subject.fetched, fetch) for fetch in piece.fetches]
        self._arrived += self._expected(piece.entries)
        if self._arrived and (piece.is_last or len(self._arrived) >= TURN_ENTRIES_MAX):
            self._merge()

    def speak(self) -> list[Piece]:
        """Our next turn: at least one piece, the last one marked."""
        ranges = self._subject.recon.speak()
        self._find()
        pieces = [Piece(False, ranges, *self._next_notes())]
        while self._rows or self._wants or self._fetches:
            pieces.append(Piece(False, b"", *self._next_notes()))
        served = self._serve(TURN_ENTRIES_MAX)
        for at in range(0, len(served), ENTRIES_PER_PIECE):
            part = tuple(served[at : at + ENTRIES_PER_PIECE])
            pieces.append(Piece(False, entries=part))
        if len(pieces) > 1 and pieces[0].is_idle:
            del pieces[0]
        return [*pieces[:-1], evolve(pieces[-1], is_last=True)]

    def close(self) -> Outcome:
        """What it all came to."""
        self.outcome.withheld = self._subject.withheld()
        return self.outcome

    def _find(self) -> None:
        """Note what the comparison has found since the last time."""
        found = self._subject.recon.found
        self._rows += map(self._subject.row, self._fitting(found.lacked))
        wanted = self._fitting(found.wanted)
        self._wants += wanted
        self._subject.wants.update(wanted)
        found.lacked, found.wanted = [], []

    def _fitting(self, notes: list[T]) -> list[T]:
        """Those that the peer may still hear; of pruned entries there may be any number."""
        fit = notes[: NOTES_MAX - self._noted]
        self._noted += len(fit)
        return fit

    def _next_notes(self) -> tuple[tuple[bytes, ...], ...]:
        return tuple(
            tuple(notes.popleft() for _ in range(min(len(notes), NOTES_PER_PIECE)))
            for notes in (self._rows, self._wants, self._fetches)
        )

    def _expected(self, wires: Sequence[bytes]) -> list[Glance]:
        try:
            glances = [Glance.decode(wire) for wire in wires]
        except BadEntry as error:
            raise SyncError(f"no entry: {error.reason}") from None
        if not all(map(self._subject.is_expected, glances)):
            raise SyncError("entries that nobody asked for")
        return glances

    def _merge(self) -> None:
        """Take in what has arrived, a turn at a time: each time costs a commit."""
        merged = self._merger.merge_glances(self._arrived, self._now_ms, cold=self._cold)
        self._heard(merged)
        self._arrived = []
        self.outcome.new += len(merged.entries) + merged.vouched
        self.outcome.refused += merged.refused
        if self.outcome.refused > REFUSED_MAX:
            raise SyncError(f"more than {REFUSED_MAX} entries that are no good")

    def _serve(self, most: int) -> list[bytes]:
        """The next entries that the peer asked for, in the order it asked."""
        glances: list[Glance] = []
        while len(glances) < most:
            more = list(islice(self._serving, most - len(glances)))
            glances += more
            if not more:
                if not self._asked:
                    break
                source, note = self._asked.popleft()
                self._serving = source(note)
        good = self._checked(glances)
        self.outcome.sent += len(good)
        return [glance.entry().encode() for glance in good]

    def _checked(self, glances: Sequence[Glance]) -> Sequence[Glance]:
        """Without what was only vouched for and turns out bad: we answer for what we send."""
        unchecked = self._merger.store.which_vouched([glance.id for glance in glances])
        if not unchecked:
            return glances
        looked_at = [glance for glance in glances if glance.id in unchecked]
        merged = self._merger.check_these(looked_at)
        self._heard(merged)
        good = {entry.id for entry in merged.entries}
        return [g for g in glances if g.id not in unchecked or g.id in good]


_SUBJECTS: dict[Scope, Callable[[Store, bytes], Subject]] = {Scope.HEADS: Heads, Scope.IDS: Ids}
