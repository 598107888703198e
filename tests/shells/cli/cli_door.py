"""A node in memory: a whole implementation of the door, whose tasks do as their module says.

The first word of a module's bytes decides: `ok`, `fail`, `nobody`, `wait`, `refuse`, `full`; of
several copies, `dissent` and `short` are as good as `ok` but for the second.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from attrs import evolve

from mesh import ids
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
from mesh.ids import RAW, Cid, EntryId, PeerId, TaskId, cid_of
from mesh.market.agreement import compare
from mesh.market.copies import copies_of
from mesh.market.order import Answer, Group, Order, State, TaskRecord
from mesh.messages import Offer, Result, Work
from mesh.notices import Answered, Asked, Awarded, Moved, Notice, Progressed
from mesh.resources.capacity import Capacity
from mesh.runtime.origin import Origin
from mesh.runtime.rewrite import Policy

ME, ANN, BOB = (PeerId(bytes([number]) * 32) for number in (1, 2, 3))
ALLOC, SETTLE = EntryId(b"\xaa" * 32), EntryId(b"\xbb" * 32)
SOLD = Capacity(1500, 4 << 30, 20 << 30, 2)
HOSTILE = "cheap\x1b[2J"
"""A bidder's words that try to clear the reader's screen."""

MOVES = b" moves"
"""The end of a module that can be moved."""

LOW = Answer(1, ANN, 40_000, 989, 1200, 5, True, HOSTILE, "")
HIGH = Answer(1, BOB, 50_000, 950, 1500, 3, True, "warm", "")
NO = Answer(1, ANN, 0, 0, 0, 0, False, "price: the floor is 40000 µcr, the ceiling 1 µcr", "")


class MemoryDoor:
    """Implements mesh.api.door.Door."""

    def __init__(self) -> None:
        self.records: dict[TaskId, TaskRecord] = {}
        self.blocks: dict[Cid, bytes] = {}
        self.folders: dict[Cid, dict[str, bytes]] = {}
        self.output = {"counts.txt": b"the 7\n", "more/deep.txt": b"deep"}
        """What every task leaves in /out."""
        self.requests: list[BidRequest] = []
        self.cancelled: list[TaskId] = []
        self.bad_findings = 0
        self.notes = 0
        self.audits: list[AuditRequest] = []
        self.length = 1
        """Entries that an audit says it looks at."""
        self.evidence = ""
        self.forked: list[ForkView] = []
        self.file: list[bytes] = []
        """The lines of an export."""
        self.left_out = 0
        self.taken_in: list[bytes] = []
        self.refuses = 0
        self.limits = {BOB: 50_000}
        self.has_binaryen = False
        self.origins: dict[Cid, Origin] = {}
        self._seq = 0

    async def bid(self, request: BidRequest) -> TaskId:
        task = ids.task_id(ME, request.idempotency_key)
        if task in self.records:
            return task
        self.requests.append(request)
        does = self.blocks[request.module].split()[0]
        if does == b"refuse":
            raise Refused("module: it imports wasi_threads", "build it without threads")
        if does == b"full":
            raise Exhausted("1024 tasks are open here", "wait for some to end")
        work = Work(
            job=request.module,
            module=request.module,
            inputs=tuple(cid for _, cid in request.inputs),
            needs=Capacity(request.cpu_milli, request.memory, request.disk, 1),
            fuel=request.fuel,
            wall_ms=request.wall_ms,
            features=request.features,
        )
        order = Order(
            task=task,
            name=request.name,
            work=work,
            max_price=request.max_price,
            fee=request.fee,
            priority=request.priority,
            deadline_ms=request.deadline_ms,
        )
        group = Group(task, request.redundancy) if request.redundancy > 1 else None
        answers = (NO, evolve(NO, peer=BOB)) if does in (b"nobody", b"wait") else ()
        for copy in copies_of(evolve(order, group=group)):
            record = TaskRecord(copy, State.ASKING, 1_700_000_000_000, 1, answers=answers)
            self.records[copy.task] = record
        return task

    def comparison(self, group: Group) -> Comparison:
        agreement = compare(group, self.records)
        doubted = agreement.dissenters
        return Comparison(
            agreement,
            tuple(Proof(task, SETTLE, BOB, False, "differs in fuel") for task in doubted),
        )

    def _ending(self, record: TaskRecord) -> tuple[tuple[Notice, ...], TaskRecord]:
        """The rest of a task's story, and its final record."""
        task = record.order.task
        does = self.blocks[record.order.work.module].split()[0]
        asked = Asked(task, 1, (ANN, BOB))
        group = record.order.group
        is_second = group is not None and task == group.members[1]
        if does == b"nobody" or (does == b"short" and is_second):
            moved = Moved(task, State.FAILED, 0, None, "the deadline has passed", None, None)
            final = evolve(record, state=State.FAILED, reason="the deadline has passed")
            return (asked, Answered(task, NO), moved), final
        code = 3 if does == b"fail" else 0
        out = self._folder(self.output)
        stdout = self._block(b"counted 7 words\n")
        stderr = self._block(b"one odd byte\n")
        fuel = 12_345_679 if does == b"dissent" and is_second else 12_345_678
        result = Result("exited", code, "", fuel, 840, out, stdout, stderr)
        won = (evolve(LOW, verdict="won"), evolve(HIGH, verdict="dearer by 10000 µcr"))
        final = evolve(
            record,
            state=State.DONE,
            fence=1,
            executor=ANN,
            answers=won,
            fuel=result.fuel,
            alloc=ALLOC,
            settle=SETTLE,
            amount=494,
            result=result,
        )
        notices: tuple[Notice, ...] = (
            asked,
            Answered(task, LOW),
            Answered(task, HIGH),
            Awarded(task, 1, ANN, 40_000, "best score: 989 of 1000 on time", ALLOC),
            *(Answered(task, answer) for answer in won),
            Moved(task, State.RUNNING, 1, ANN, "", None, None),
            Progressed(task, 1, 6_000_000),
            Moved(task, State.DONE, 1, ANN, "", result, SETTLE),
        )
        return notices, final

    def task(self, task: TaskId) -> TaskRecord:
        if task not in self.records:
            raise NotFound(f"{ids.format_task(task)} is no task of this node", "mesh ps lists them")
        return self.records[task]

    def tasks(self) -> Sequence[TaskRecord]:
        return tuple(self.records.values())

    async def cancel(self, task: TaskId) -> None:
        self.cancelled.append(task)
        if not self.task(task).state.is_final:
            self.records[task] = evolve(self.records[task], state=State.CANCELLED)

    @asynccontextmanager
    async def follow(
        self, task: TaskId | None
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Numbered]]:
        send, receive = trio.open_memory_channel[Numbered](64)
        async with trio.open_nursery() as nursery:
            if task is not None and not self.task(task).state.is_final:
                nursery.start_soon(self._tell, self.records[task], send)
            yield receive
            nursery.cancel_scope.cancel()

    async def _tell(self, record: TaskRecord, send: trio.MemorySendChannel[Numbered]) -> None:
        if self.blocks[record.order.work.module].startswith(b"wait"):
            await trio.sleep_forever()
        notices, final = self._ending(record)
        for notice in notices:
            if isinstance(notice, Moved) and notice.state.is_final:
                self.records[record.order.task] = final
            self._seq += 1
            await send.send(Numbered(self._seq, notice))

    def status(self) -> NodeView:
        return NodeView(
            peer=ME,
            agent="mesh/test",
            addresses=("/ip4/127.0.0.1/tcp/4001",),
            uptime_ms=90_000,
            sold=SOLD,
            free=SOLD,
            offer=self._offer(ME),
            tasks_waiting=1,
            tasks_running=2,
            tasks_hosted=3,
            peers=2,
            posted=494,
            pending=40_000,
            earned=0,
            tier="T0: no seller is owed more than the line it set",
            storage="embedded",
            counters=(("frames_dropped", 4), ("quiet", 0)),
        )

    def _offer(self, peer: PeerId) -> Offer:
        return Offer(peer, 1, 1, SOLD, SOLD, (), 40_000, 500_000, ("wasm",), (), "mesh/test")

    def peers(self) -> Sequence[PeerView]:
        return (
            PeerView(ANN, ("/ip4/127.0.0.1/tcp/1",), True, self._offer(ANN), 900),
            PeerView(BOB, (), False, None, -1),
        )

    async def receipts(self, task: TaskId | None, limit: int) -> Sequence[ReceiptView]:
        views = [
            ReceiptView(
                entry=SETTLE,
                kind="SETTLE",
                author=ME,
                task=record.order.task,
                fence=record.fence,
                buyer=ME,
                seller=ANN,
                amount=record.amount,
                reserve=40_000,
                fuel=record.fuel,
                price=40_000,
                fee=0,
                exit_code=0,
                meter="wasmtime-50.0.1/fuel/unrolled-1",
                module=record.order.work.module,
                outputs=(),
                seq=2,
                wall_ms=1_700_000_001_000,
                signatures_good=2,
                signatures_needed=2,
                says="owes 0.000494 cr",
                raw=b"\x01\x02",
            )
            for record in self.records.values()
            if record.settle and task in (None, record.order.task)
        ]
        return views[:limit]

    async def audit(self, request: AuditRequest) -> AsyncIterator[Finding]:
        self.audits.append(request)
        yield Finding(SETTLE, None, "signatures", True, "both good", done=1, total=self.length)
        yield Finding(None, None, "totals", True, "credits sum to 0")
        if request.rerun:
            good = not self.bad_findings
            detail = "12345678 fuel again" if good else "differs in fuel"
            yield Finding(
                SETTLE, request.task, "rerun", good, detail, evidence=self.evidence, done=1, total=1
            )
            for _ in range(self.notes):
                yield Finding(SETTLE, None, "module", False, "not what it says", is_note=True)
            yield Finding(ALLOC, None, "rerun", False, "its blocks are gone", is_skipped=True)

    async def ledger(self) -> LedgerView:
        return LedgerView(
            tier="T1",
            promise="T1: lines, and forks are detected",
            digest=b"\xd1" * 32,
            entries=7,
            pruned=2,
            is_archive=False,
            chains=2,
            forked=tuple(fork.peer for fork in self.forked),
            frozen=(BOB,),
            posted=494,
            pending=40_000,
            earned=12,
            counters=(("sync_talks", 3),),
        )

    async def forks(self) -> AsyncIterator[ForkView]:
        for fork in self.forked:
            yield fork

    async def export(self, task: TaskId | None, form: Form) -> AsyncIterator[Piece]:
        if form is Form.CSV:
            yield Piece(b"id\r\n", 0, 0)
        for number, line in enumerate(self.file, 1):
            yield Piece(line, number, self.left_out)

    async def take_in(self, entries: Sequence[bytes]) -> Intake:
        self.taken_in += entries
        return Intake(len(entries), 0, self.refuses, 0, 0)

    def lines(self) -> Sequence[LineView]:
        return [
            LineView(buyer, 494, 40_000, limit, buyer == BOB)
            for buyer, limit in sorted(self.limits.items())
        ]

    async def set_line(self, buyer: PeerId, limit: int) -> None:
        if buyer == ME:
            raise Refused("buyer: that is this node itself", "name a peer")
        self.limits[buyer] = limit

    def _block(self, data: bytes) -> Cid:
        cid = cid_of(RAW, data)
        self.blocks[cid] = data
        return cid

    def _folder(self, files: dict[str, bytes]) -> Cid:
        cid = cid_of(ids.DAG_PB, repr(sorted(files)).encode())
        self.folders[cid] = files
        return cid

    async def instrument(self, module: Cid, policy: Policy, *, or_as_it_is: bool) -> ModuleView:
        view = await self.describe_module(module)
        if view.is_movable:
            return view
        if self.has_binaryen:
            made = self._block(self.blocks[module] + MOVES)
            self.origins[made] = Origin(module, "mesh-5/binaryen-116", policy)
            return await self.describe_module(made)
        if or_as_it_is:
            return view
        raise Refused(view.reason, "install wasm-opt")

    async def describe_module(self, module: Cid) -> ModuleView:
        if module not in self.blocks:
            raise NotFound(f"{ids.format_cid(module)} is not here")
        if self.blocks[module].endswith(MOVES):
            return ModuleView(module, is_movable=True, origin=self.origins.get(module))
        return ModuleView(module, is_movable=False, reason=f"no Binaryen is here {HOSTILE}")

    async def put_file(self, name: str, chunks: AsyncIterator[bytes]) -> Cid:
        data = b""
        async for chunk in chunks:
            data += chunk
        return self._block(data)

    async def get_file(self, cid: Cid, path: str) -> AsyncIterator[bytes]:
        try:
            yield self.folders[cid][path] if path else self.blocks[cid]
        except KeyError:
            raise NotFound(f"no {path!r} in {ids.format_cid(cid)}", "list the folder") from None

    async def list_files(self, cid: Cid) -> Sequence[tuple[str, int, Cid]]:
        if cid not in self.folders:
            raise NotFound(f"{ids.format_cid(cid)} is not here")
        return [
            (path, len(data), ids.cid_of(ids.RAW, data))
            for path, data in sorted(self.folders[cid].items())
        ]
