"""Accounts: the buyer's own chain of entries, and the awards on it that are not yet closed. Pure.

An ALLOC stays open until the seller has signed for closing it: SETTLE for what it did, VOID for
nothing. A closing entry is kept for a while, so that a seller who missed it gets it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from ledger import chain
from ledger.chain import Head
from ledger.codec import UINT_MAX
from ledger.keys import terms_message
from ledger.model import Entry, Kind, Terms
from mesh.errors import PeerError
from mesh.ids import EntryId, PeerId, TaskId
from mesh.market import terms as contract
from mesh.market.policy import Policy
from mesh.messages import Award, Bid, Declined, Done, Lost, Settled
from mesh.sansio import Action, AppendEntry, Identity, Send, WakeAt, Woken

CLOSINGS_MAX = 1_024
REMINDERS_MAX = 64
"""Sellers reminded at a time."""

Key = tuple[TaskId, int]
"""A task and the fence of one award of it."""


class Accounts:
    """What this node, as a buyer, has promised and paid."""

    def __init__(
        self,
        identity: Identity,
        policy: Policy,
        head: Head,
        allocs: Mapping[Key, Entry],
        closings: Sequence[Entry],
    ) -> None:
        self.head = head
        self._identity = identity
        self._policy = policy
        self._allocs: dict[Key, Entry] = dict(allocs)
        self._closings = {
            _key(entry): (_seller(entry), entry.encode())
            for entry in closings[-CLOSINGS_MAX:]
            if _key(entry) not in allocs
        }

    def why_not(self, reserve: int) -> str:
        """Why no award of *reserve* µcr can be signed, or the empty string."""
        if len(self._allocs) >= self._policy.allocs_max:
            return f"{self._policy.allocs_max} awards are unsettled already"
        if self.head.posted + self.head.pending + reserve > UINT_MAX:
            return "the ledger cannot hold larger totals"
        return ""

    def sizes(self) -> dict[str, tuple[int, int]]:
        return {
            "allocs_open": (len(self._allocs), self._policy.allocs_max),
            "closings": (len(self._closings), CLOSINGS_MAX),
        }

    def reminders(self, held: Mapping[Key, PeerId]) -> list[Action]:
        """Awards once more, of which nothing came: who is not among the *held* declines it."""
        idle = [
            (key, entry) for key, entry in self._allocs.items() if held.get(key) != _seller(entry)
        ]
        return [
            Send(_seller(entry), Award(*key, entry.encode(), self._policy.ttl_ms))
            for key, entry in idle[:REMINDERS_MAX]
        ]

    def paid(self) -> dict[TaskId, tuple[EntryId, Terms]]:
        """The receipt of each task that was paid, of those not yet forgotten."""
        entries = [Entry.decode(data) for _, data in self._closings.values()]
        settled = [entry for entry in entries if entry.content.kind is Kind.SETTLE]
        return {
            TaskId(entry.content.deal.nonce): (EntryId(entry.id), entry.content.deal)
            for entry in settled
        }

    def timer(self, now: float) -> Action:
        """When to remind. Never soon after a start: an award that only the ledger knows may find
        its hold still standing, and its task with somebody else."""
        return WakeAt(now + self._policy.resend_max_ms / 1000, Woken("accounts", None, 0))

    def newest_fences(self) -> dict[TaskId, int]:
        """The highest fence of each task with an open award."""
        return dict(sorted(self._allocs))

    def is_open(self, peer: PeerId, key: Key) -> bool:
        """Whether *peer* has an award that nothing has closed."""
        return key in self._allocs and _seller(self._allocs[key]) == peer

    def alloc(self, key: Key, bid: Bid, wall_ms: int) -> tuple[Entry, Action]:
        """Sign the award of *bid*: its reserve is pending from now on."""
        assert key not in self._allocs, key
        self.head, entry = chain.alloc(
            self.head, bid.terms, bid.signature, wall_ms=wall_ms, sign=self._identity.sign
        )
        self._allocs[key] = entry
        self._closings.pop(key, None)  # of the winner before, who declined
        return entry, AppendEntry(entry.encode(), is_own=True)

    def check(self, peer: PeerId, done: Done) -> Terms:
        """The SETTLE terms of an open award. Raises PeerError when they do not follow from it."""
        alloc = self._allocs[done.task, done.fence]
        terms = contract.check_settle(
            done.terms, Terms.decode(alloc.content.terms), EntryId(alloc.id), done.result
        )
        if not self._identity.verify(peer, terms_message(done.terms), done.signature):
            raise PeerError("settle terms with a bad signature")
        return terms

    def settle(self, peer: PeerId, done: Done, wall_ms: int) -> tuple[Terms, Entry, list[Action]]:
        """Pay for a run whose bill `check` has passed."""
        key = (done.task, done.fence)
        terms = Terms.decode(done.terms)
        entry, actions = self._close(chain.settle, key, peer, done.terms, done.signature, wall_ms)
        return terms, entry, actions

    def void(self, peer: PeerId, given_up: Declined | Lost, wall_ms: int) -> list[Action]:
        """Free what was pending; nothing, when there is no such award. Raises PeerError."""
        key = (given_up.task, given_up.fence)
        alloc = self._allocs.get(key)
        if alloc is None or alloc.content.peer != peer:
            return []
        data = given_up.void_terms
        contract.check_void(data, Terms.decode(alloc.content.terms), EntryId(alloc.id))
        if not self._identity.verify(peer, terms_message(data), given_up.signature):
            raise PeerError("void terms with a bad signature")
        _, actions = self._close(chain.void, key, peer, data, given_up.signature, wall_ms)
        return actions

    def closing(self, peer: PeerId, key: Key) -> Settled | None:
        """The entry that closed *key* with *peer*, for a seller who missed it."""
        seller, data = self._closings.get(key, (None, b""))
        return Settled(*key, data) if seller == peer else None

    def _close(
        self,
        close: Callable[..., tuple[Head, Entry]],
        key: Key,
        peer: PeerId,
        terms: bytes,
        signature: bytes,
        wall_ms: int,
    ) -> tuple[Entry, list[Action]]:
        alloc = self._allocs.pop(key)
        self.head, entry = close(
            self.head, terms, signature, alloc=alloc, wall_ms=wall_ms, sign=self._identity.sign
        )
        data = entry.encode()
        self._closings[key] = (peer, data)
        if len(self._closings) > CLOSINGS_MAX:
            del self._closings[next(iter(self._closings))]
        return entry, [AppendEntry(data, is_own=True), Send(peer, Settled(*key, data))]


def open_allocs(entries: Iterable[Entry]) -> dict[Key, Entry]:
    """The awards of a chain, in order, that nothing has closed: what a restart takes up again."""
    allocs: dict[bytes, Entry] = {}
    for entry in entries:
        if entry.content.kind is Kind.ALLOC:
            allocs[entry.id] = entry
        else:
            allocs.pop(entry.content.deal.ref, None)
    return {_key(entry): entry for entry in allocs.values()}


def recent_closings(entries: Iterable[Entry]) -> list[Entry]:
    """The last SETTLEs and VOIDs of a chain: sellers may not have got them before a restart."""
    closings = (entry for entry in entries if entry.content.kind is not Kind.ALLOC)
    return list(deque(closings, maxlen=CLOSINGS_MAX))


def _seller(entry: Entry) -> PeerId:
    return PeerId(entry.content.peer)


def _key(entry: Entry) -> Key:
    deal = entry.content.deal
    return TaskId(deal.nonce), deal.fence
