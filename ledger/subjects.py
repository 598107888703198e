"""What two replicas may compare: the chains they hold, or the entries one by one.

Comparing chains costs the same whatever their length. Comparing entries also finds the arms of
forks, what lies above a gap, and what has no author.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from ledger.codec import UINT_MAX
from ledger.glance import Glance
from ledger.holdings import ChainKey, Holding
from ledger.recon import Reconciliation, Rows
from ledger.store import Store
from ledger.turns import SyncError


class Subject(ABC):
    """What an exchange compares: its rows, and what they stand for."""

    def __init__(self, store: Store, rows: Rows, salt: bytes) -> None:
        self.store = store
        self.rows = rows
        self.recon = Reconciliation(rows, salt)
        self.wants: set[bytes] = set()
        """The names of what we asked for."""

    @abstractmethod
    def row(self, index: int) -> bytes:
        """What is told of our row."""

    @abstractmethod
    def fetch_for(self, row: bytes) -> bytes | None:
        """What to ask for, having heard of the peer's *row*; None if we have it all."""

    @abstractmethod
    def wanted(self, name: bytes) -> Iterator[Glance]:
        """What the peer wants by that name."""

    @abstractmethod
    def fetched(self, fetch: bytes) -> Iterator[Glance]:
        """What the peer asks for. Raises SyncError."""

    @abstractmethod
    def is_expected(self, glance: Glance) -> bool:
        """Whether we wanted or fetched it."""

    @abstractmethod
    def withheld(self) -> int:
        """How many rows that we heard of never came in full."""


class Heads(Subject):
    """Chains, by author and network."""

    def __init__(self, store: Store, salt: bytes) -> None:
        self._holdings = {
            _place(holding.key): holding for holding in store.holdings() if holding.author
        }
        places = sorted(self._holdings)
        super().__init__(store, Rows([(p, self._holdings[p].mark()) for p in places]), salt)
        self._named: dict[bytes, Holding] | None = None
        self._their_height: dict[ChainKey, int] = {}
        self._promised: dict[ChainKey, tuple[int, int]] = {}
        self._surprises: set[ChainKey] = set()

    def row(self, index: int) -> bytes:
        holding = self._holdings[self.rows.places[index]]
        return _chain_note(holding.key, holding.height, holding.top)

    def fetch_for(self, row: bytes) -> bytes | None:
        key, height, top = _read_chain_note(row)
        self._their_height[key] = height
        ours = self._holdings.get(_place(key), Holding(*key)).height
        if top <= ours:
            return None
        self._promised[key] = (height, top)
        return _chain_note(key, ours, top)

    def wanted(self, name: bytes) -> Iterator[Glance]:
        if self._named is None:
            self._named = {self.recon.name(h.mark()): h for h in self._holdings.values()}
        if (holding := self._named.get(name)) is not None:
            start = self._their_height.get(holding.key, 0)
            yield from self.store.glances(*holding.key, start, holding.top)

    def fetched(self, fetch: bytes) -> Iterator[Glance]:
        key, start, stop = _read_chain_note(fetch)
        return self.store.glances(*key, start, stop)

    def is_expected(self, glance: Glance) -> bool:
        # A chain that we know by its name only is a surprise: there are as many as names.
        if glance.key not in self._promised:
            self._surprises.add(glance.key)
        return len(self._surprises) <= len(self.wants)

    def withheld(self) -> int:
        # Who pruned tells how far its ids go, and sends what is left of the entries.
        ours = ((self.store.holding(*key), told) for key, told in self._promised.items())
        return sum(held.height < height or held.top < top for held, (height, top) in ours)


def _place(key: ChainKey) -> bytes:
    author, net = key
    return author + net


def _chain_note(key: ChainKey, low: int, high: int) -> bytes:
    return _place(key) + low.to_bytes(8, "big") + high.to_bytes(8, "big")


def _read_chain_note(note: bytes) -> tuple[ChainKey, int, int]:
    """Raises SyncError."""
    low, high = (int.from_bytes(part, "big") for part in (note[40:48], note[48:]))
    if not low <= high <= UINT_MAX:
        raise SyncError(f"a chain from {low} to {high}")
    return (note[:32], note[32:40]), low, high


class Ids(Subject):
    """Entries, by clock and id."""

    def __init__(self, store: Store, salt: bytes) -> None:
        rows = [(hlc.to_bytes(8, "big") + entry_id, entry_id) for hlc, entry_id in store.ids()]
        super().__init__(store, Rows(rows), salt)
        self._named: dict[bytes, bytes] | None = None
        self._fetched: set[bytes] = set()
        self._came: set[bytes] = set()
        """Names of what we asked for and got."""

    def row(self, index: int) -> bytes:
        return self.rows.places[index]

    def fetch_for(self, row: bytes) -> bytes | None:
        entry_id = row[8:]
        if self.store.which([entry_id]):
            return None
        self._fetched.add(entry_id)
        return entry_id

    def wanted(self, name: bytes) -> Iterator[Glance]:
        if self._named is None:
            self._named = {self.recon.name(entry_id): entry_id for entry_id in self.rows.marks}
        if (entry_id := self._named.get(name)) is not None:
            yield from self.fetched(entry_id)

    def fetched(self, fetch: bytes) -> Iterator[Glance]:
        if (glance := self.store.glance(fetch)) is not None:
            yield glance

    def is_expected(self, glance: Glance) -> bool:
        name = self.recon.name(glance.id)
        self._came |= {name} & self.wants
        return glance.id in self._fetched or name in self.wants

    def withheld(self) -> int:
        unfetched = self._fetched - self.store.which(list(self._fetched))
        return len(unfetched) + len(self.wants - self._came)
