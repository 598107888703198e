"""The door: all that a client may ask of a node, as values. gRPC, WebSocket and tests come in here.

node.py implements it on the trio side; nothing in api/ knows the kernel.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import Protocol

import trio
from attrs import frozen

from mesh.ids import Cid, EntryId, PeerId, TaskId
from mesh.market.agreement import Agreement
from mesh.market.order import Group, TaskRecord
from mesh.messages import Offer
from mesh.notices import Notice
from mesh.resources.capacity import Capacity
from mesh.runtime.origin import Origin
from mesh.runtime.rewrite import Policy


@frozen
class BidRequest:
    """What a client asks to have done. Sizes in bytes, money in µcr, durations in milliseconds."""

    idempotency_key: bytes
    name: str
    module: Cid
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    inputs: tuple[tuple[str, Cid], ...]
    """Names under /in, and what lies there."""
    cpu_milli: int
    memory: int
    disk: int
    fuel: int
    wall_ms: int
    deadline_ms: int
    max_price: int
    fee: int
    priority: int
    features: tuple[str, ...]
    redundancy: int = 1
    """By how many nodes it is to be run. The price is that of all together."""


@frozen
class Proof:
    """A bill, and what running its job again shows of it."""

    task: TaskId
    settle: EntryId
    seller: PeerId
    is_good: bool
    detail: str


@frozen
class Comparison:
    """What the copies of a task came to, and what is proven of those that disagree."""

    agreement: Agreement
    proofs: tuple[Proof, ...] = ()
    note: str = ""
    """Why there are none, where they are to be expected."""


@frozen
class Numbered:
    """A notice and its place in this node's sequence; a gap means that the watcher was too slow."""

    seq: int
    notice: Notice


@frozen
class NodeView:
    """This node, now."""

    peer: PeerId
    agent: str
    addresses: tuple[str, ...]
    uptime_ms: int
    sold: Capacity
    free: Capacity
    offer: Offer | None
    tasks_waiting: int
    tasks_running: int
    tasks_hosted: int
    peers: int
    posted: int
    """What this node has paid, µcr, by the ledger."""
    pending: int
    """What is set aside for tasks not yet settled, µcr."""
    earned: int
    tier: str
    """The overspend tier of the ledger: "T0" and what it promises."""
    storage: str
    counters: tuple[tuple[str, int], ...]
    """Every bound that was reached and every fault that was met, by name."""
    draining: bool = False
    """Whether its owner wants it empty."""


@frozen
class PeerView:
    """A peer, as seen from here."""

    peer: PeerId
    addresses: tuple[str, ...]
    connected: bool
    offer: Offer | None
    offer_age_ms: int
    """-1 when no offer is known."""


@frozen
class ReceiptView:
    """A ledger entry, readable; *raw* are the exact bytes. What its kind has not is empty."""

    entry: EntryId
    kind: str
    author: PeerId | None
    """Whose chain it is on; None for a FORKPROOF."""
    task: TaskId | None
    fence: int
    buyer: PeerId | None
    seller: PeerId | None
    amount: int
    reserve: int
    fuel: int
    price: int
    fee: int
    exit_code: int
    meter: str
    module: Cid | None
    outputs: tuple[Cid, ...]
    seq: int
    wall_ms: int
    signatures_good: int
    """Of those needed."""
    signatures_needed: int
    says: str
    """In words."""
    raw: bytes


@frozen
class AuditRequest:
    """What to look at, and what to run again."""

    task: TaskId | None = None
    """None for all."""
    rerun: bool = False
    newest: int = 0
    """Run only so many bills again, the newest; 0 for all."""
    others: bool = False
    """Also those of deals that this node had no part in."""


@frozen
class Finding:
    """One thing an audit looked at."""

    entry: EntryId | None
    task: TaskId | None
    check: str
    """ "signatures", "chain", "amount", "totals", "rerun", "module" """
    is_good: bool
    detail: str
    is_skipped: bool = False
    """It could not be looked at: neither good nor bad."""
    evidence: str = ""
    """A line for a file that others can verify."""
    done: int = 0
    total: int = 0
    """How far the audit is: entries, or runs, of so many."""
    is_note: bool = False
    """Worth knowing, but no bill is wrong by it: neither good nor bad."""


@frozen
class LedgerView:
    """What this node holds, and by what promise."""

    tier: str
    promise: str
    digest: bytes
    """Equal for equal ledgers."""
    entries: int
    pruned: int
    """Of them, those of which only the id is left."""
    is_archive: bool
    """Whether it prunes nothing."""
    chains: int
    forked: tuple[PeerId, ...]
    frozen: tuple[PeerId, ...]
    """Whom this node sells to no more."""
    posted: int
    pending: int
    earned: int
    counters: tuple[tuple[str, int], ...]


@frozen
class ForkView:
    """One who forked, with the lines that prove it to anybody."""

    peer: PeerId
    seq: int
    lines: tuple[str, ...]


@frozen
class LineView:
    """A buyer, as a debtor of this node: µcr."""

    buyer: PeerId
    owed: int
    reserved: int
    limit: int
    """2^63-1 is none."""
    is_frozen: bool


@frozen
class ModuleView:
    """What is known of a module."""

    module: Cid
    is_movable: bool
    origin: Origin | None = None
    """What it says it was made of."""
    reason: str = ""
    """Why it cannot be moved, or why its origin is not known."""


class Form(StrEnum):
    """How the ledger is written down."""

    BUNDLE = "bundle"
    """Whole chains, exact bytes: verifies offline, alone."""
    JSONL = "jsonl"
    """Every entry that is here."""
    CSV = "csv"
    """A table for people."""


@frozen
class Piece:
    """Of a file, and how far it is."""

    data: bytes
    entries: int
    left_out: int
    """Entries of chains that are not whole here."""


@frozen
class Intake:
    """What became of entries from elsewhere."""

    added: int
    known: int
    refused: int
    early: int
    over_budget: int


class Door(Protocol):
    """Raises only the tree of mesh.errors. All methods run on the trio thread."""

    async def bid(self, request: BidRequest) -> TaskId:
        """Admit a task. The same idempotency key gives the same task. Raises Refused,
        Exhausted where a bound of the node is the reason."""
        ...

    def task(self, task: TaskId) -> TaskRecord:
        """Raises NotFound."""
        ...

    def tasks(self) -> Sequence[TaskRecord]: ...

    def comparison(self, group: Group) -> Comparison:
        """What the copies of one task came to, as far as they have."""
        ...

    async def cancel(self, task: TaskId) -> None:
        """Raises NotFound. Cancelling an ended task changes nothing, the first copy cancels all."""
        ...

    async def migrate(self, task: TaskId, to: PeerId | None) -> None:
        """Ask for a running task to go on elsewhere, at *to* if that will have it.

        Raises NotFound, Refused.
        """
        ...

    def follow(
        self, task: TaskId | None
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Numbered]]:
        """Notices from now on, of one task or of everything. Bounded: a slow reader sees gaps.

        Followers of everything see every number; the channel ends when the node stops.
        """
        ...

    def status(self) -> NodeView: ...

    def peers(self) -> Sequence[PeerView]: ...

    async def drain(self, *, is_on: bool) -> None:
        """Take nothing new on and move what runs here elsewhere; or be open again."""
        ...

    async def receipts(self, task: TaskId | None, limit: int) -> Sequence[ReceiptView]:
        """Newest first."""
        ...

    def audit(self, request: AuditRequest) -> AsyncIterator[Finding]:
        """Check signatures, chain, amounts and totals; where asked, run the tasks again."""
        ...

    async def ledger(self) -> LedgerView: ...

    def forks(self) -> AsyncIterator[ForkView]:
        """Whoever signed two entries for one place."""
        ...

    def export(self, task: TaskId | None, form: Form) -> AsyncIterator[Piece]:
        """The ledger as a file. Raises NotFound where nothing of *task* is here."""
        ...

    async def take_in(self, entries: Sequence[bytes]) -> Intake:
        """Merge entries from elsewhere, each one checked in full."""
        ...

    def lines(self) -> Sequence[LineView]: ...

    async def set_line(self, buyer: PeerId, limit: int) -> None:
        """Let *buyer* owe and reserve up to *limit* µcr from now on. Raises Refused."""
        ...

    async def put_file(self, name: str, chunks: AsyncIterator[bytes]) -> Cid:
        """Import a file (UnixFS, as `ipfs add --cid-version=1`). Raises Refused."""
        ...

    def get_file(self, cid: Cid, path: str) -> AsyncIterator[bytes]:
        """The bytes of the file at *path* ("" for the CID itself). Raises NotFound."""
        ...

    async def instrument(self, module: Cid, policy: Policy, *, or_as_it_is: bool) -> ModuleView:
        """*module* made movable; with *or_as_it_is*, where that cannot be, itself and the reason.

        Raises NotFound, Refused.
        """
        ...

    async def describe_module(self, module: Cid) -> ModuleView:
        """Raises NotFound, Refused where it is no module that runs."""
        ...

    async def list_files(self, cid: Cid) -> Sequence[tuple[str, int, Cid]]:
        """(path, bytes, CID) of every file below a directory CID. Raises NotFound."""
        ...
