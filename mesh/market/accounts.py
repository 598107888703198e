"""Accounts: the buyer's own chain of entries, and the awards on it that are not yet closed. Pure.

An ALLOC stays open until the seller has signed for closing it: SETTLE for what it did, VOID for
nothing. A closing entry is kept for a while, so that a seller who missed it gets it again. While a
long task runs, each slice of it is signed for: USE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from ledger import chain
from ledger.chain import Head
from ledger.keys import terms_message, use_message
from ledger.model import Entry, Kind, Terms
from mesh.errors import PeerError
from mesh.ids import EntryId, PeerId, TaskId
from mesh.market import terms as contract
from mesh.market.own_chain import CLOSINGS_MAX, OwnChain, Past
from mesh.market.policy import Policy
from mesh.messages import Award, Bid, Declined, Done, Lost, Result, Saved, Settled, Slice, Sliced
from mesh.sansio import Action, Identity, Send, WakeAt, Woken

REMINDERS_MAX = 64
"""Sellers reminded at a time."""

Key = tuple[TaskId, int]
"""A task and the fence of one award of it."""
Bill: TypeAlias = Done | Saved
"""What a seller asks to be paid for: all that it did, or all up to a state that it gave us."""


class Accounts:
    """What this node, as a buyer, has promised and paid."""

    def __init__(self, identity: Identity, policy: Policy, own: OwnChain, past: Past) -> None:
        self._identity = identity
        self._policy = policy
        self._own = own
        self._allocs: dict[Key, Entry] = {}
        self._uses: dict[Key, Entry] = {}
        """The last USE of each open award that has one."""
        self._closings: dict[Key, tuple[PeerId, bytes]] = {}
        for data in (*past.allocs, *past.uses, *past.closings):
            self._take_up(Entry.decode(data))

    def why_full(self) -> str:
        """Why there is no room for another award, or the empty string."""
        if len(self._allocs) >= self._policy.allocs_max:
            return f"{self._policy.allocs_max} awards are unsettled already"
        return ""

    def why_not(self, reserve: int) -> str:
        """Why no award of *reserve* µcr can be signed now, or the empty string."""
        return self.why_full() or self._own.why_not(reserve)

    @property
    def is_writable(self) -> bool:
        """Whether anything can be signed at all: else whoever waits for us asks again."""
        return not self._own.why_not()

    def take_up(self, entry: Entry) -> bool:
        """An entry of ours that others held and we had lost; whether it follows our end."""
        follows = self._own.take_up(entry)
        if follows:
            self._take_up(entry)
        return follows

    def sizes(self) -> dict[str, tuple[int, int]]:
        return {
            "allocs_open": (len(self._allocs), self._policy.allocs_max),
            "closings": (len(self._closings), CLOSINGS_MAX),
        }

    def reminders(self, held: Mapping[Key, PeerId]) -> list[Action]:
        """Awards once more, of which nothing came: who is not among the *held* declines it."""
        idle = [key for key, entry in self._allocs.items() if held.get(key) != _seller(entry)]
        return [
            action
            for key in idle[:REMINDERS_MAX]
            for action in self.reminder(_seller(self._allocs[key]), key)
        ]

    def reminder(self, peer: PeerId, key: Key) -> list[Action]:
        """An open award once more: *peer* tells what became of it."""
        if not self.is_open(peer, key):
            return []
        return [Send(peer, Award(*key, self._allocs[key].encode(), self._policy.ttl_ms))]

    def paid(self) -> dict[TaskId, tuple[EntryId, Terms]]:
        """The receipt of each task that was paid to its end, of those not yet forgotten."""
        entries = [Entry.decode(data) for _, data in self._closings.values()]
        settled = [
            entry
            for entry in entries
            if entry.content.kind is Kind.SETTLE and entry.content.deal.exit != contract.MOVED_EXIT
        ]
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

    def alloc(self, key: Key, bid: Bid, wall_ms: int) -> tuple[Entry, list[Action]]:
        """Sign the award of *bid*: its reserve is pending from now on."""
        assert key not in self._allocs, key
        entry, actions = self._sign(chain.alloc, bid.terms, bid.signature, wall_ms)
        self._take_up(entry)
        return entry, actions

    def check(self, peer: PeerId, bill: Bill) -> Terms:
        """The SETTLE terms of an open award. Raises PeerError when they do not follow from it."""
        alloc = self._allocs[bill.task, bill.fence]
        terms = contract.check_settle(
            bill.terms, Terms.decode(alloc.content.terms), EntryId(alloc.id), bill.result
        )
        if not self._identity.verify(peer, terms_message(bill.terms), bill.signature):
            raise PeerError("settle terms with a bad signature")
        return terms

    def bill_of(self, key: Key, result: Result) -> int:
        """What an open award comes to with that *result*, µcr."""
        alloc = self._allocs[key]
        terms = Terms.decode(alloc.content.terms)
        return contract.settle_terms(terms, EntryId(alloc.id), result, 0).amount

    def settle(self, peer: PeerId, bill: Bill, wall_ms: int) -> tuple[Entry, list[Action]]:
        """Pay a *bill* that `check` has passed. The chain must be writable."""
        key = (bill.task, bill.fence)
        return self._close(chain.settle, key, peer, bill.terms, bill.signature, wall_ms)

    def void(self, peer: PeerId, given_up: Declined | Lost, wall_ms: int) -> list[Action]:
        """Free what was pending; nothing, when there is no such award. Raises PeerError."""
        key = (given_up.task, given_up.fence)
        alloc = self._allocs.get(key)
        if alloc is None or alloc.content.peer != peer or not self.is_writable:
            return []
        data = given_up.void_terms
        contract.check_void(data, Terms.decode(alloc.content.terms), EntryId(alloc.id))
        if not self._identity.verify(peer, terms_message(data), given_up.signature):
            raise PeerError("void terms with a bad signature")
        _, actions = self._close(chain.void, key, peer, data, given_up.signature, wall_ms)
        return actions

    def use(self, peer: PeerId, asked: Slice, wall_ms: int) -> list[Action]:
        """Sign for a slice of an open award; once more, if it was signed for. Raises PeerError."""
        key = (asked.task, asked.fence)
        alloc = self._allocs[key]
        terms = contract.check_use(
            asked.terms, Terms.decode(alloc.content.terms), EntryId(alloc.id)
        )
        if not self._identity.verify(peer, use_message(asked.terms), asked.signature):
            raise PeerError("use terms with a bad signature")
        if not self.is_writable:
            return []
        last = self._uses.get(key)
        if last is not None and terms.fuel <= last.content.deal.fuel:
            return [Send(peer, Sliced(*key, last.encode()))]
        write = partial(chain.use, alloc=alloc)
        entry, actions = self._sign(write, asked.terms, asked.signature, wall_ms)
        self._uses[key] = entry
        return [*actions, Send(peer, Sliced(*key, entry.encode()))]

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
        write = partial(close, alloc=self._allocs[key])
        entry, actions = self._sign(write, terms, signature, wall_ms)
        self._take_up(entry)
        return entry, [*actions, Send(peer, Settled(*key, entry.encode()))]

    def _sign(
        self,
        write: Callable[..., tuple[Head, Entry]],
        terms: bytes,
        signature: bytes,
        wall_ms: int,
    ) -> tuple[Entry, list[Action]]:
        return self._own.append(
            lambda head, at: write(head, terms, signature, wall_ms=at, sign=self._identity.sign),
            wall_ms,
        )

    def _take_up(self, entry: Entry) -> None:
        """What an entry of our chain, in its order, makes open or closed."""
        match entry.content.kind:
            case Kind.ALLOC:
                self._allocs[_key(entry)] = entry
                self._closings.pop(_key(entry), None)  # of the winner before, who declined
            case Kind.USE:
                self._uses[_key(entry)] = entry
            case Kind.SETTLE | Kind.VOID:
                self._close_key(entry)
            case _:
                pass  # not about an award of ours

    def _close_key(self, entry: Entry) -> None:
        key = _key(entry)
        alloc = self._allocs.get(key)
        if alloc is not None and alloc.id != entry.content.ref:
            return  # the same task and fence once more, awarded to another
        self._allocs.pop(key, None)
        self._uses.pop(key, None)
        self._closings[key] = (_seller(entry), entry.encode())
        if len(self._closings) > CLOSINGS_MAX:
            del self._closings[next(iter(self._closings))]


def _seller(entry: Entry) -> PeerId:
    return PeerId(entry.content.peer)


def _key(entry: Entry) -> Key:
    deal = entry.content.deal
    return TaskId(deal.nonce), deal.fence
