"""Our own chain: its end, whether we may write on it, and what a restart must know of it. Pure.

A node has one chain: as a buyer it awards and pays there, as a seller it claims and sets lines.
After a start nothing is signed until peers have confirmed where the chain ends: a restored backup
would fork us. Every so many entries we sign all before them, with a HEAD (ledger/proof.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from attrs import frozen

from ledger import chain
from ledger.chain import Head
from ledger.codec import UINT_MAX
from ledger.keys import Sign
from ledger.model import Entry, Kind
from ledger.proof import Frontier
from ledger.statements import Line
from mesh.ids import PeerId, TaskId
from mesh.sansio import Action, AppendEntry

CLOSINGS_MAX = 1_024
"""The last SETTLEs and VOIDs that are kept: sellers may not have got them before a restart."""
CLAIMS_MAX = 4_096
LINES_MAX = 4_096
UNCONFIRMED = "peers have not confirmed yet where our chain ends"

Write = Callable[[Head, int], tuple[Head, Entry]]
"""(head, wall ms) -> the head after the new entry, and the entry."""


@frozen
class Past:
    """What an own chain says that its node must know; entries are encoded, in order."""

    head: Head
    frontier: Frontier
    allocs: tuple[bytes, ...] = ()
    """The ALLOCs that nothing has closed."""
    uses: tuple[bytes, ...] = ()
    """The last USE of each of them."""
    closings: tuple[bytes, ...] = ()
    """The last SETTLEs and VOIDs."""
    claims: tuple[bytes, ...] = ()
    """The ids of the ALLOCs that we claim on our word alone; the last ones."""
    lines: tuple[tuple[bytes, int], ...] = ()
    """(buyer, limit in µcr)"""

    def awarded(self) -> frozenset[TaskId]:
        """The tasks of the ALLOCs that nothing has closed."""
        return frozenset(TaskId(Entry.decode(data).content.deal.nonce) for data in self.allocs)


def read_past(author: PeerId, net: bytes, entries: Iterable[Entry]) -> Past:
    """The past of *author*'s own chain, read once from its start."""
    head, frontier = Head.start(author, net), Frontier()
    allocs: dict[bytes, Entry] = {}
    uses: dict[bytes, Entry] = {}
    closings: deque[Entry] = deque(maxlen=CLOSINGS_MAX)
    claims: deque[bytes] = deque(maxlen=CLAIMS_MAX)
    lines: dict[bytes, int] = {}
    for entry in entries:
        head, frontier = Head.after(entry), frontier.plus(entry.id)
        body = entry.content
        match body.kind:
            case Kind.ALLOC:
                allocs[entry.id] = entry
            case Kind.USE:
                uses[body.ref] = entry
            case Kind.SETTLE | Kind.VOID:
                allocs.pop(body.ref, None)
                uses.pop(body.ref, None)
                closings.append(entry)
            case Kind.CLAIM:
                claims.append(body.ref)
            case Kind.LINE:
                lines[body.peer] = Line.decode(body.terms).limit
            case _:
                pass  # what it states is not the market's
    return Past(
        head=head,
        frontier=frontier,
        allocs=tuple(entry.encode() for entry in allocs.values()),
        uses=tuple(entry.encode() for entry in uses.values()),
        closings=tuple(entry.encode() for entry in closings),
        claims=tuple(claims),
        lines=tuple(lines.items()),
    )


class OwnChain:
    """The end of our chain; the one place where it grows."""

    def __init__(self, past: Past, sign: Sign, *, head_every: int, is_confirmed: bool) -> None:
        self.head = past.head
        self.is_confirmed = is_confirmed
        self._frontier = past.frontier
        self._sign = sign
        self._head_every = head_every

    def why_not(self, reserve: int = 0) -> str:
        """Why nothing that reserves so much may be signed now, or the empty string."""
        if not self.is_confirmed:
            return UNCONFIRMED
        if self.head.posted + self.head.pending + reserve > UINT_MAX:
            return "the ledger cannot hold larger totals"
        return ""

    def append(self, write: Write, wall_ms: int) -> tuple[Entry, list[Action]]:
        """Sign the next entry, and a HEAD after it where one is due."""
        assert self.is_confirmed, UNCONFIRMED
        self.head, entry = write(self.head, wall_ms)
        self._frontier = self._frontier.plus(entry.id)
        actions: list[Action] = [AppendEntry(entry.encode(), is_own=True)]
        if self.head.seq % self._head_every == 0:
            self.head, signed = chain.checkpoint(
                self.head, self._frontier.root(), wall_ms=wall_ms, sign=self._sign
            )
            self._frontier = self._frontier.plus(signed.id)
            actions.append(AppendEntry(signed.encode(), is_own=True))
        return entry, actions

    def take_up(self, entry: Entry) -> bool:
        """An entry of ours that others held and we had lost; whether it follows our end."""
        body = entry.content
        if (body.seq, body.prev) != (self.head.seq, self.head.prev):
            return False
        self.head = Head.after(entry)
        self._frontier = self._frontier.plus(entry.id)
        return True
