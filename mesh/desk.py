"""The desk: the node's side of the door. Checks what clients ask, tells what the node knows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import count
from pathlib import Path
from time import time_ns

import trio
from attrs import define, field, frozen

from ledger.chain import Head
from ledger.model import INPUTS_MAX
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
    ReceiptView,
)
from mesh.api.faults import Closed
from mesh.auditor import Auditor
from mesh.bookkeeper import Bookkeeper
from mesh.broadcast import Broadcast
from mesh.driver import Driver
from mesh.errors import Exhausted, NotFound, Refused, Unavailable
from mesh.ids import (
    RAW,
    Cid,
    PeerId,
    TaskId,
    cid_of,
    format_cid,
    format_task,
    task_id,
)
from mesh.kernel import Kernel
from mesh.market.order import Group, Order, State, TaskRecord
from mesh.market.own_chain import UNCONFIRMED
from mesh.messages import Work
from mesh.network.network import Network
from mesh.performer import Performer, task_pin
from mesh.prosecutor import Prosecutor
from mesh.publishing import Publishing, source_here
from mesh.resources.capacity import Capacity
from mesh.runtime import manifest
from mesh.runtime.interpreters import interpreter_of, pin_of
from mesh.runtime.manifest import Job, check_module
from mesh.runtime.rewrite import Policy
from mesh.sansio import CancelRequested, DrainSet, MoveRequested, Submitted
from mesh.storage import files
from mesh.storage.disk import DiskBlocks, room_under

PRICE_MAX = 2**53
STDOUT_MAX = 1 << 20
DEADLINE_MS_MAX = 10 * 366 * 86_400_000
FEATURE_MAX = 64
"""Characters: sixteen of the longest still leave room in an ask (codec.FRAME_MAX)."""
"""Characters of a text that peers and our own journal read back."""
ADMISSION_S = 10.0
PREPARATIONS_MAX = 2
"""Modules, of up to 64 MiB each, that are looked at in memory at a time."""


@define(eq=False)
class _Uploads:
    """Files on their way into the blocks: where they lie meanwhile, and how much they are."""

    bytes_max: int
    bytes: int = 0
    names: Iterator[int] = field(factory=count)


@frozen
class Desk:
    """Implements api.door.Door for one running node."""

    kernel: Kernel
    driver: Driver
    broadcast: Broadcast
    performer: Performer
    network: Network
    blocks: DiskBlocks
    quota: int
    bookkeeper: Bookkeeper
    auditor: Auditor
    prosecutor: Prosecutor
    publishing: Publishing
    scratch: Path
    agent: str
    started_at: float
    doors: list[Callable[[], Mapping[str, int]]]
    """Where the doors, opened later than this desk, tell their counters."""
    _uploads: _Uploads = field(init=False)
    _preparing: trio.CapacityLimiter = field(
        factory=lambda: trio.CapacityLimiter(PREPARATIONS_MAX), init=False
    )

    @_uploads.default
    def _no_uploads(self) -> _Uploads:
        return _Uploads(self.quota)

    # --- tasks ----------------------------------------------------------------------------------

    async def bid(self, request: BidRequest) -> TaskId:
        """Admit a task. The same idempotency key gives the same task. Raises Refused."""
        task = task_id(self.kernel.identity.peer, request.idempotency_key)
        if task in self.kernel.records or await self.performer.recall(task):
            return task
        why_full = self.kernel.why_full(request.redundancy)
        if why_full:
            raise Exhausted(why_full, "wait for some to end, or use another node")
        check_request(request)
        group = Group(task, request.redundancy)
        work = await trio.to_thread.run_sync(self._prepare, group, request, limiter=self._preparing)
        order = Order(
            task=task,
            name=request.name,
            work=work,
            max_price=request.max_price,
            fee=request.fee,
            priority=request.priority,
            deadline_ms=request.deadline_ms,
            group=group if group.copies > 1 else None,
        )
        async with self.broadcast.follow(task) as notices:
            if task in self.kernel.records:  # its client asked twice at once
                return task
            await self.driver.post(Submitted(order))
            with trio.move_on_after(ADMISSION_S) as waiting:
                try:
                    await notices.receive()
                except trio.EndOfChannel:
                    raise Closed from None
        if waiting.cancelled_caught:
            raise Unavailable("the node is too busy to admit a task; ask again")
        return task

    def task(self, task: TaskId) -> TaskRecord:
        """Raises NotFound."""
        record = self.kernel.records.get(task)
        if record is None:
            raise NotFound(f"{format_task(task)} is no task of this node", "mesh ps lists them")
        return record

    def tasks(self) -> Sequence[TaskRecord]:
        return tuple(self.kernel.records.values())

    def comparison(self, group: Group) -> Comparison:
        """What the copies of one task came to, as far as they have."""
        return self.prosecutor.comparison(group)

    async def cancel(self, task: TaskId) -> None:
        """Raises NotFound. Cancelling an ended task changes nothing, the first copy cancels all."""
        self.task(task)
        await self.driver.post(CancelRequested(task))

    async def migrate(self, task: TaskId, to: PeerId | None) -> None:
        """Raises NotFound; Refused where it does not run, or runs there already."""
        self.task(task)
        if why_not := self.kernel.migrator.why_not(task, to):
            raise Refused(why_not, f"mesh inspect {format_task(task)}")
        await self.driver.post(MoveRequested(task, to))

    def follow(
        self, task: TaskId | None
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Numbered]]:
        """Notices from now on. Bounded: a slow reader sees gaps in the numbers."""
        return self.broadcast.follow(task)

    def _prepare(self, group: Group, request: BidRequest) -> Work:
        """Check the module, keep the inputs, write the manifest: one for all copies."""
        for what, root in (("module", request.module), *request.inputs):
            if not self.blocks.has(root):
                raise _missing(what, root)
        wasm = self.publishing.read(request.module)
        check_module(wasm)
        job = Job(
            module=request.module,
            args=request.args,
            env=request.env,
            inputs=request.inputs,
            fuel=request.fuel,
            memory=request.memory,
            disk=request.disk,
            wall_ms=request.wall_ms,
            seed=group.first,
            t0_ns=time_ns(),
            stdout_max=STDOUT_MAX,
        )
        data = manifest.encode(job)
        cid = cid_of(RAW, data)
        self.blocks.put(cid, data)
        roots = tuple(root for _, root in request.inputs)
        kept = (cid, request.module, *roots, *source_here(self.blocks, wasm))
        for task in group.members:
            self.blocks.pin_all(kept, task_pin(task))
        return Work(
            job=cid,
            module=request.module,
            inputs=roots,
            needs=Capacity(request.cpu_milli, request.memory, request.disk, slots=1),
            fuel=request.fuel,
            wall_ms=request.wall_ms,
            features=request.features,
        )

    # --- modules --------------------------------------------------------------------------------

    async def instrument(self, module: Cid, policy: Policy, *, or_as_it_is: bool) -> ModuleView:
        """Raises NotFound, Refused."""
        return await self.publishing.instrument(module, policy, or_as_it_is=or_as_it_is)

    async def describe_module(self, module: Cid) -> ModuleView:
        """Raises NotFound, Refused."""
        return await self.publishing.describe(module)

    # --- the node -------------------------------------------------------------------------------

    def status(self) -> NodeView:
        """This node, now."""
        kernel = self.kernel
        states = [record.state for record in kernel.records.values()]
        head: Head = kernel.head
        return NodeView(
            peer=kernel.identity.peer,
            agent=self.agent,
            addresses=self.network.addresses(),
            uptime_ms=int((trio.current_time() - self.started_at) * 1000),
            sold=kernel.sold(),
            free=kernel.free(),
            offer=kernel.offer,
            tasks_waiting=sum(state in (State.WAITING, State.ASKING) for state in states),
            tasks_running=sum(state in (State.AWARDED, State.RUNNING) for state in states),
            tasks_hosted=kernel.hosted(),
            peers=len(self.network.connected()),
            posted=head.posted,
            pending=head.pending,
            earned=self.kernel.credit.earned,
            tier=self.bookkeeper.tier.promise(),
            storage="embedded",
            counters=tuple(sorted(self._counters().items())),
            draining=kernel.is_closed,
        )

    def peers(self) -> Sequence[PeerView]:
        """Everybody connected or on offer."""
        now = self.driver.now()
        connected = set(self.network.connected())
        listings = self.kernel.book.listings
        views = []
        for peer in sorted(connected | set(listings)):
            listing = listings.get(peer)
            views.append(
                PeerView(
                    peer=peer,
                    addresses=self.network.addresses_of(peer),
                    connected=peer in connected,
                    offer=listing.offer if listing else None,
                    offer_age_ms=int((now - listing.heard_at) * 1000) if listing else -1,
                )
            )
        return views

    async def drain(self, *, is_on: bool) -> None:
        """Until it is open again, or started again."""
        await self.driver.post(DrainSet(is_on))

    def _counters(self) -> dict[str, int]:
        transfers = self.performer.transfers.statistics()
        counters = {
            **self.kernel.statistics(),
            **{f"size_{name}": size for name, (size, _) in self.kernel.sizes().items()},
            **{f"network_{name}": count for name, count in self.network.statistics().items()},
            **{f"blocks_{name}": count for name, count in self.blocks.statistics().items()},
            **{f"transfer_{name}": count for name, count in transfers.items()},
            **{name: count for tell in self.doors for name, count in tell().items()},
            **self.performer.tally,
            **self.broadcast.tally,
            "inbox_dropped": self.driver.dropped,
        }
        return {name: count for name, count in counters.items() if count}

    # --- money ----------------------------------------------------------------------------------

    async def receipts(self, task: TaskId | None, limit: int) -> Sequence[ReceiptView]:
        """Newest first."""
        return await self.bookkeeper.receipts(task, limit)

    def audit(self, request: AuditRequest) -> AsyncIterator[Finding]:
        """Check signatures, chain, amounts and totals; where asked, run the tasks again."""
        return self.auditor.audit(request)

    async def ledger(self) -> LedgerView:
        """What is held, and by what promise."""
        head = self.kernel.head
        return await self.bookkeeper.status(head.posted, head.pending, self._counters())

    def forks(self) -> AsyncIterator[ForkView]:
        """One proof for each who forked."""
        return self.bookkeeper.forks()

    def export(self, task: TaskId | None, form: Form) -> AsyncIterator[Piece]:
        """The ledger as a file. Raises NotFound."""
        return self.bookkeeper.export(task, form)

    async def take_in(self, entries: Sequence[bytes]) -> Intake:
        """Merge entries from elsewhere."""
        return await self.bookkeeper.take_in(entries)

    def lines(self) -> Sequence[LineView]:
        """Every buyer with a line or a debt here."""
        return self.bookkeeper.lines()

    async def set_line(self, buyer: PeerId, limit: int) -> None:
        """Raises Refused, Unavailable."""
        if not self.kernel.is_confirmed:
            raise Unavailable(UNCONFIRMED)
        await self.bookkeeper.set_line(buyer, limit)

    # --- files ----------------------------------------------------------------------------------

    async def put_file(self, name: str, chunks: AsyncIterator[bytes]) -> Cid:
        """Import a file. It stays for an hour, or for as long as a task uses it; an interpreter's
        module stays.

        Raises Refused above the quota, Unavailable where the disk is full.
        """
        path = self.scratch / f"upload-{next(self._uploads.names)}"
        length = 0
        try:
            with room_under(self.scratch):
                async with await trio.open_file(path, "wb") as file:
                    async for chunk in chunks:
                        length += len(chunk)
                        self._count_upload(len(chunk))
                        await file.write(chunk)
                link = await trio.to_thread.run_sync(files.add_path, self.blocks, path)
            await trio.to_thread.run_sync(_keep_interpreter, self.blocks, link.cid)
        finally:
            self._uploads.bytes -= length
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lambda: path.unlink(missing_ok=True))
        return link.cid

    def _count_upload(self, length: int) -> None:
        """All uploads together lie beside the store, and never exceed what it may hold."""
        self._uploads.bytes += length
        if self._uploads.bytes > self._uploads.bytes_max:
            raise Exhausted(
                f"uploads exceed the store's quota of {self.quota:,} bytes",
                "raise storage.quota, or send less at a time",
            )

    async def get_file(self, cid: Cid, path: str) -> AsyncIterator[bytes]:
        """The bytes of the file at *path* ("" for the CID itself). Raises NotFound."""
        target = await trio.to_thread.run_sync(files.resolve, self.blocks, cid, path)
        chunks: Iterator[bytes] = files.read_file(self.blocks, target)
        while True:
            chunk = await trio.to_thread.run_sync(next, chunks, None)
            if chunk is None:
                return
            yield chunk

    async def list_files(self, cid: Cid) -> Sequence[tuple[str, int, Cid]]:
        """(path, bytes, CID) of every file below a directory CID. Raises NotFound."""
        items = await trio.to_thread.run_sync(files.list_dir, self.blocks, cid)
        return [(item.path, item.size, item.cid) for item in items if not item.is_folder]


def check_request(request: BidRequest) -> None:
    """What the market needs of a bid, beyond what a job needs. Raises Refused: which and why."""
    if not 1 <= request.max_price <= PRICE_MAX:
        raise Refused("max_price: must be above 0", "mesh submit --max-price 0.50")
    if request.max_price < request.redundancy:
        raise Refused(
            f"max_price: {request.max_price} µcr is shared by {request.redundancy} copies",
            "raise max_price",
        )
    if not 0 <= request.fee <= request.max_price:
        raise Refused(
            f"fee: {request.fee} µcr is above max_price, which includes it", "lower the fee"
        )
    if request.deadline_ms < 100:
        raise Refused("deadline: is less than 0.1 s away", "mesh submit --deadline 10m")
    if request.deadline_ms > DEADLINE_MS_MAX:
        raise Refused("deadline: is more than ten years away", "mesh submit --deadline 10m")
    if not 10 <= request.cpu_milli <= 1_000_000:
        raise Refused("cpus: must be between 0.01 and 1000")
    if len(request.inputs) > INPUTS_MAX:
        raise Refused(f"inputs: at most {INPUTS_MAX}", "put them into one folder")
    if len(request.name) > 128 or len(request.features) > 16:
        raise Refused("name or features: too long")
    if any(len(feature) > FEATURE_MAX for feature in request.features):
        raise Refused(f"features: at most {FEATURE_MAX} characters each")


def _missing(what: str, root: Cid) -> NotFound:
    interpreter = interpreter_of(root) if what == "module" else None
    if interpreter is None:
        return NotFound(f"{what}: {format_cid(root)} is not at this node", "put the file first")
    return NotFound(
        f"{interpreter.version} is not at this node yet", f"mesh runtime add {interpreter.name}"
    )


def _keep_interpreter(blocks: DiskBlocks, root: Cid) -> None:
    """Pin *root*, once, where it is an interpreter's module: many tasks of the future need it."""
    interpreter = interpreter_of(root)
    if interpreter is None:
        return
    reason = pin_of(interpreter)
    if not any((pin.root, pin.reason) == (root, reason) for pin in blocks.pins()):
        blocks.pin(root, reason)
