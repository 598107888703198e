"""The door: all that a client may ask of a node, as values. gRPC, WebSocket and tests come in here.

node.py implements it on the trio side; nothing in api/ knows the kernel.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio
from attrs import frozen

from mesh.ids import Cid, EntryId, PeerId, TaskId
from mesh.market.order import TaskRecord
from mesh.messages import Offer
from mesh.notices import Notice
from mesh.resources.capacity import Capacity


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
    """A ledger entry of this node's, readable; *raw* are the exact bytes."""

    entry: EntryId
    kind: str
    task: TaskId
    fence: int
    buyer: PeerId
    seller: PeerId
    amount: int
    reserve: int
    fuel: int
    price: int
    fee: int
    exit_code: int
    meter: str
    module: Cid
    outputs: tuple[Cid, ...]
    seq: int
    wall_ms: int
    signatures_good: int
    """Of the two."""
    raw: bytes


@frozen
class Finding:
    """One thing an audit looked at."""

    entry: EntryId | None
    task: TaskId | None
    check: str
    """ "signatures", "chain", "amount", "totals", "rerun" """
    is_good: bool
    detail: str


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

    async def cancel(self, task: TaskId) -> None:
        """Raises NotFound. Cancelling an ended task changes nothing."""
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

    async def receipts(self, task: TaskId | None, limit: int) -> Sequence[ReceiptView]:
        """Newest first."""
        ...

    def audit(self, task: TaskId | None, rerun: bool) -> AsyncIterator[Finding]:
        """Check signatures, chain, amounts and totals; with *rerun* run the tasks again."""
        ...

    async def put_file(self, name: str, chunks: AsyncIterator[bytes]) -> Cid:
        """Import a file (UnixFS, as `ipfs add --cid-version=1`). Raises Refused."""
        ...

    def get_file(self, cid: Cid, path: str) -> AsyncIterator[bytes]:
        """The bytes of the file at *path* ("" for the CID itself). Raises NotFound."""
        ...

    async def list_files(self, cid: Cid) -> Sequence[tuple[str, int, Cid]]:
        """(path, bytes, CID) of every file below a directory CID. Raises NotFound."""
        ...
