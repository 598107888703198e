"""A door onto values: what tests of the api stand on instead of a node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from mesh.api.door import (
    AuditRequest,
    BidRequest,
    Comparison,
    Finding,
    ForkView,
    Form,
    Intake,
    LedgerView,
    LineView,
    ModuleView,
    NodeView,
    Numbered,
    PeerView,
    Piece,
    Proof,
    ReceiptView,
)
from mesh.errors import Exhausted, NotFound, Refused
from mesh.ids import RAW, Cid, EntryId, PeerId, TaskId, cid_of, format_cid, format_task, task_id
from mesh.market.agreement import compare
from mesh.market.order import Answer, Group, Order, State, TaskRecord
from mesh.messages import Offer, Work
from mesh.notices import Moved, Notice
from mesh.resources.capacity import Capacity
from mesh.runtime.origin import Origin
from mesh.runtime.rewrite import Policy

OWN = PeerId(b"\x01" * 32)
OTHER = PeerId(b"\x02" * 32)
MODULE = cid_of(RAW, b"\0asm")
MOVABLE = cid_of(RAW, b"\0asm that moves")
MAKER = "mesh-5/binaryen-116"
ENTRY = EntryId(b"\x0e" * 32)
TASK = task_id(OWN, b"the first")

OFFER = Offer(
    peer=OTHER,
    epoch=1,
    seq=2,
    sold=Capacity(4000, 1 << 30, 1 << 30, 4),
    free=Capacity(2000, 1 << 29, 1 << 29, 2),
    outlook=(),
    price=700,
    speed=100_000,
    features=("simd",),
    cached=(),
    agent="mesh/0.1.0",
)
RECEIPT = ReceiptView(
    entry=ENTRY,
    kind="settle",
    author=OWN,
    task=TASK,
    fence=1,
    buyer=OWN,
    seller=OTHER,
    amount=40,
    reserve=90,
    fuel=1000,
    price=700,
    fee=1,
    exit_code=0,
    meter="fuel/1",
    module=MODULE,
    outputs=(MODULE,),
    seq=4,
    wall_ms=1_700_000_000_000,
    signatures_good=2,
    signatures_needed=2,
    says="owes 40",
    raw=b"signed",
)
LEDGER = LedgerView(
    tier="T0",
    promise="T0: trust",
    digest=b"\x0d" * 32,
    entries=3,
    pruned=1,
    is_archive=False,
    chains=2,
    forked=(OTHER,),
    frozen=(OTHER,),
    posted=50,
    pending=60,
    earned=70,
    counters=(("sync_talks", 2),),
)
STATUS = NodeView(
    peer=OWN,
    agent="mesh/0.1.0",
    addresses=("/ip4/127.0.0.1/tcp/4001",),
    uptime_ms=5,
    sold=Capacity(4000, 1 << 30, 1 << 30, 4),
    free=Capacity(2000, 1 << 29, 1 << 29, 2),
    offer=None,
    tasks_waiting=1,
    tasks_running=2,
    tasks_hosted=3,
    peers=4,
    posted=50,
    pending=60,
    earned=70,
    tier="T0: trust",
    storage="embedded",
    counters=(("frames_dropped", 7),),
)


def record(task: TaskId = TASK, name: str = "wc", reason: str = "") -> TaskRecord:
    """A task that waits."""
    work = Work(MODULE, MODULE, (), Capacity(1000, 1 << 20, 0, 1), 1000, 1000, ())
    order = Order(task, name, work, 100, 1, 0, 60_000)
    return TaskRecord(order, State.WAITING, submitted_ms=1_700_000_000_000, reason=reason)


def moved(task: TaskId, state: State, reason: str = "") -> Moved:
    """A notice of *state*."""
    return Moved(task, state, 1, OTHER, reason, None, None)


ANSWER = Answer(1, OTHER, 90, 950, 1000, 12, True, "idle", "won")


class MemoryDoor:
    """The seam, with everything in memory; `tell` and `finish` are the node's own life."""

    def __init__(self) -> None:
        self.records: dict[TaskId, TaskRecord] = {}
        self.bids: list[BidRequest] = []
        self.files: dict[Cid, bytes] = {}
        self.listed: dict[Cid, Sequence[tuple[str, int, Cid]]] = {}
        self.peer_views: list[PeerView] = [PeerView(OTHER, ("/ip4/1.2.3.4",), True, OFFER, 12)]
        self.receipt_views: list[ReceiptView] = [RECEIPT]
        self.findings: list[Finding] = []
        self.audits: list[AuditRequest] = []
        self.taken_in: list[bytes] = []
        self.buyers = range(2, 5)
        self.lines_set: list[tuple[PeerId, int]] = []
        self.migrated: list[tuple[TaskId, PeerId | None]] = []
        self.draining = False
        self.instrumented: list[tuple[Cid, Policy, bool]] = []
        self.raises: Exception | None = None
        self.slots_max = 1000
        self.upload_max = 1 << 30
        self.uploading: list[int] = []
        self.upload_gate: trio.Event | None = None
        self.cancelled: list[str] = []
        self.is_hanging = False
        self.followers = 0
        self.changed = trio.Event()
        self._channels: list[tuple[TaskId | None, trio.MemorySendChannel[Numbered]]] = []
        self._seq = 0

    def _change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def until_followed(self, followers: int) -> None:
        """Wait until so many follow, or until nobody does."""
        while self.followers != followers:
            await self.changed.wait()

    async def until_cancelled(self) -> None:
        """Wait until a call that hung was cancelled."""
        while not self.cancelled:
            await self.changed.wait()

    def tell(self, notice: Notice) -> None:
        """The node says *notice* to those who follow; who is behind misses it."""
        self._seq += 1
        for task, channel in self._channels:
            if task is None or getattr(notice, "task", None) == task:
                try:
                    channel.send_nowait(Numbered(self._seq, notice))
                except trio.WouldBlock:
                    continue

    def finish(self, task: TaskId, state: State = State.DONE) -> None:
        """The task ends."""
        self.records[task] = attrs.evolve(self.records[task], state=state, reason="it ended")
        self.tell(moved(task, state, "it ended"))

    def stop_telling(self) -> None:
        """The node stops: every follower's channel ends."""
        for _, channel in self._channels:
            channel.close()

    async def _hang(self, what: str) -> None:
        if not self.is_hanging:
            return
        try:
            self._change()
            await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled.append(what)
            self._change()
            raise

    async def bid(self, request: BidRequest) -> TaskId:
        await self._hang("bid")
        if self.raises is not None:
            raise self.raises
        if len(self.records) >= self.slots_max:
            raise Exhausted("too many tasks wait here", "try later")
        self.bids.append(request)
        task = task_id(OWN, request.idempotency_key)
        self.records.setdefault(task, record(task, request.name))
        return task

    def task(self, task: TaskId) -> TaskRecord:
        try:
            return self.records[task]
        except KeyError:
            raise NotFound(f"no task {format_task(task)} here", "mesh ps") from None

    def tasks(self) -> Sequence[TaskRecord]:
        return list(self.records.values())

    def comparison(self, group: Group) -> Comparison:
        proof = Proof(group.members[1], ENTRY, OTHER, False, "differs in fuel")
        return Comparison(compare(group, self.records), (proof,))

    async def cancel(self, task: TaskId) -> None:
        if not self.task(task).state.is_final:
            self.finish(task, State.CANCELLED)

    async def migrate(self, task: TaskId, to: PeerId | None) -> None:
        if self.task(task).state is not State.RUNNING:
            raise Refused("only what runs can be moved", "mesh inspect")
        self.migrated.append((task, to))

    async def drain(self, *, is_on: bool) -> None:
        self.draining = is_on

    @asynccontextmanager
    async def follow(
        self, task: TaskId | None
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Numbered]]:
        tx, rx = trio.open_memory_channel[Numbered](256)
        follower = (task, tx)
        self._channels.append(follower)
        self.followers += 1
        self._change()
        try:
            with tx, rx:
                yield rx
        finally:
            self._channels.remove(follower)
            self.followers -= 1
            self._change()

    def status(self) -> NodeView:
        return STATUS

    def peers(self) -> Sequence[PeerView]:
        return self.peer_views

    async def receipts(self, task: TaskId | None, limit: int) -> Sequence[ReceiptView]:
        await trio.lowlevel.checkpoint()
        return [view for view in self.receipt_views if task in (None, view.task)][:limit]

    async def audit(self, request: AuditRequest) -> AsyncIterator[Finding]:
        self.audits.append(request)
        for finding in self.findings:
            await trio.lowlevel.checkpoint()
            yield finding

    async def ledger(self) -> LedgerView:
        await trio.lowlevel.checkpoint()
        return LEDGER

    async def forks(self) -> AsyncIterator[ForkView]:
        await trio.lowlevel.checkpoint()
        yield ForkView(OTHER, 3, ("one", "other"))

    async def export(self, task: TaskId | None, form: Form) -> AsyncIterator[Piece]:
        await trio.lowlevel.checkpoint()
        yield Piece(f"{form} {task}\n".encode(), 1, 0)
        yield Piece(bytes(600_000), 2, 4)

    async def take_in(self, entries: Sequence[bytes]) -> Intake:
        await trio.lowlevel.checkpoint()
        self.taken_in += entries
        return Intake(len(entries), 1, 2, 3, 4)

    def lines(self) -> Sequence[LineView]:
        return [LineView(PeerId(bytes([n]) * 32), n, 2, 3, n == 4) for n in self.buyers]

    async def set_line(self, buyer: PeerId, limit: int) -> None:
        await trio.lowlevel.checkpoint()
        if buyer == OWN:
            raise Refused("buyer: that is this node itself")
        self.lines_set.append((buyer, limit))

    async def instrument(self, module: Cid, policy: Policy, *, or_as_it_is: bool) -> ModuleView:
        self.instrumented.append((module, policy, or_as_it_is))
        if module != MODULE:
            raise NotFound(f"{format_cid(module)} is not here")
        return ModuleView(MOVABLE, is_movable=True, origin=Origin(module, MAKER, policy))

    async def describe_module(self, module: Cid) -> ModuleView:
        return ModuleView(module, is_movable=False, reason="it has a start function")

    async def put_file(self, name: str, chunks: AsyncIterator[bytes]) -> Cid:
        data = b""
        async for chunk in chunks:
            data += chunk
            self.uploading.append(len(chunk))
            if len(data) > self.upload_max:
                raise Refused(f"{name} is larger than {self.upload_max} bytes", "split it")
            if self.upload_gate is not None:
                await self.upload_gate.wait()
        cid = cid_of(RAW, data)
        self.files[cid] = data
        return cid

    async def get_file(self, cid: Cid, path: str) -> AsyncIterator[bytes]:
        if cid not in self.files:
            raise NotFound(f"no {format_cid(cid)} here")
        data = self.files[cid]
        for start in range(0, len(data), 600_000):
            await trio.lowlevel.checkpoint()
            yield data[start : start + 600_000]

    async def list_files(self, cid: Cid) -> Sequence[tuple[str, int, Cid]]:
        await trio.lowlevel.checkpoint()
        if cid not in self.listed:
            raise NotFound(f"no {format_cid(cid)} here")
        return self.listed[cid]
