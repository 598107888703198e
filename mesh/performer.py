"""The performer: does what the kernel decided. Nothing here decides, and `perform` never waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import assert_never

import trio
from attrs import define, field

from ledger.model import Entry
from ledger.quorum import Certificate
from ledger.store import Store
from mesh import codec
from mesh.broadcast import Broadcast
from mesh.driver import Driver, Durable
from mesh.errors import Corruption, MeshError, PeerError, Unavailable
from mesh.ids import Cid, EntryId, PeerId, TaskId, format_peer, format_task, short_peer
from mesh.market.order import TaskRecord
from mesh.network.network import BLOCKS, Network
from mesh.notices import Hosted
from mesh.resources.capacity import Capacity
from mesh.runtime.course import Kept, Stays
from mesh.runtime.course import Suspended as Suspension
from mesh.runtime.execution import Gate, Workshop
from mesh.sansio import (
    Action,
    AppendEntry,
    Certified,
    Certify,
    Checkpoint,
    Checkpointed,
    Collect,
    Collected,
    ContinueRun,
    DropState,
    ForgetTenancy,
    Gossip,
    KeepState,
    Notify,
    PauseRun,
    Penalize,
    PersistTask,
    PersistTenancy,
    Run,
    RunEnded,
    RunLost,
    RunProgressed,
    Send,
    StopRun,
    Suspend,
    Suspended,
    Unmoved,
    WakeAt,
)
from mesh.standbys import Standbys
from mesh.storage.blocks import Blocks
from mesh.storage.disk import DiskBlocks
from mesh.storage.journal import Journal, Write
from mesh.storage.states import state_bytes_max
from mesh.storage.transfer import Tally, fetch

REQUEST_S = 20.0
AWAY_S = 30.0
"""A buyer that cannot be reached for so long has no inputs for us."""
AGAIN_S = 0.5
BLOCKS_MAX = 1 << 20
FETCH_S = 60.0
RATE_MIN = 64 << 10
"""Bytes/s, after `FETCH_S`: who sends slower would hold our capacity for nothing."""
STREAMS_MAX = 8 << 20
"""Bytes of a task's stdout or stderr with room to spare."""


@define(eq=False)
class Hosting:
    """A run of ours that has not ended."""

    before: int = 0
    """Fuel that its task burnt elsewhere."""
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    gate: Gate = field(factory=Gate)


class Performer:
    """The hands of one node."""

    def __init__(
        self,
        *,
        driver: Driver,
        network: Network,
        blocks: DiskBlocks,
        journal: Journal,
        ledger: Store,
        records: Mapping[TaskId, TaskRecord],
        broadcast: Broadcast,
        nursery: trio.Nursery,
    ) -> None:
        self.workshop: Workshop | None = None
        self.room: Callable[[], int] = lambda: 0
        """Bytes of memory that are nobody's, for tasks that may come."""
        self.tally: Counter[str] = Counter()
        self.transfers = Tally()
        self.said: Callable[[Sequence[Entry]], None] = lambda _: None
        """Hears of our own entries once they are durable."""
        self.certify: Callable[[Entry], Awaitable[Certificate]] | None = None
        """Asks the witnesses, where there are any. Raises Unavailable."""
        self.received: Callable[[Sequence[Entry]], None] = lambda _: None
        """Hears of others' entries that a deal brought, once they are durable."""
        self.hostings: dict[tuple[TaskId, int], Hosting] = {}
        """As many as the kernel sold room for."""
        self.states_kept: set[str] = set()
        """Why states of tasks that run elsewhere are kept here: as many as the kernel allows."""
        self._driver = driver
        self._network = network
        self._blocks = blocks
        self._journal = journal
        self._ledger = ledger
        self._records = records
        self._disk = trio.CapacityLimiter(1)  # its own: no reader or peer may hold up a commit
        self.broadcast = broadcast
        self._nursery = nursery
        self.standbys = Standbys(nursery, lambda: self._workshop, lambda: self.room())
        self._offers, self._offers_out = trio.open_memory_channel[bytes](1)

    async def persist(self, writes: Sequence[Durable]) -> None:
        """Make *writes* durable, in the order that a crash between two of our files can do least.

        Others' entries first: an account is forgotten only when its receipt is here. Our own last:
        where a record says "paid" and the chain does not yet, the seller asks again and is paid;
        the reverse would be a task that is run, and paid, once more.
        """
        entries = [write for write in writes if isinstance(write, AppendEntry)]
        others = [Entry.decode(write.entry) for write in entries if not write.is_own]
        own = [Entry.decode(write.entry) for write in entries if write.is_own]
        records = [write for write in writes if not isinstance(write, AppendEntry)]
        await trio.to_thread.run_sync(self._write, others, records, own, limiter=self._disk)
        if others:
            self.received(others)
        if own:
            self.said(own)

    def _write(
        self, others: Sequence[Entry], records: Sequence[Write], own: Sequence[Entry]
    ) -> None:
        if others:
            self._ledger.add(others)
        if records:
            self._journal.commit(records)
        if own:
            self._ledger.append_own(own)

    async def recall(self, task: TaskId) -> TaskRecord | None:
        """A task of any age, from the journal."""
        return await trio.to_thread.run_sync(self._journal.task, task, limiter=self._disk)

    def perform(self, action: Action) -> None:
        match action:
            case Send(peer, message):
                if not self._network.send_nowait(peer, codec.encode(message)):
                    self.tally["sends_dropped"] += 1
            case Gossip(signed):
                self._gossip(codec.encode_signed_offer(signed))
            case Run(task, fence):
                assert (task, fence) not in self.hostings, action
                hosting = Hosting(before=action.work.moves[-1].fuel if action.work.moves else 0)
                self.hostings[task, fence] = hosting  # now: a StopRun may come next
                self._nursery.start_soon(self._run, action, hosting)
            case PauseRun(task, fence):
                self._pause(task, fence)
            case ContinueRun(task, fence):
                self._continue(task, fence)
            case StopRun(task, fence):
                if hosted := self.hostings.get((task, fence)):
                    hosted.scope.cancel()
            case Checkpoint(task, fence):
                self._nursery.start_soon(self._checkpoint, task, fence)
            case Suspend(task, fence):
                self._nursery.start_soon(self._suspend, task, fence)
            case Collect():
                self._nursery.start_soon(self._collect, action)
            case KeepState(task, buyer):
                self.states_kept.add(kept_state_pin(buyer, task))
                self._nursery.start_soon(self._keep_state, action)
            case DropState(task, buyer):
                self.states_kept.discard(kept_state_pin(buyer, task))
                self.standbys.drop(buyer, task)
                self._nursery.start_soon(self._drop_state, kept_state_pin(buyer, task))
            case Certify():
                self._nursery.start_soon(self._certify, action)
            case Penalize(peer, reason):
                self._network.penalize(peer, reason)
            case Notify(notice):
                self.broadcast.publish(notice)
                if isinstance(notice, Hosted) and notice.what == "orphaned":
                    self._nursery.start_soon(self._provide, f"task:{notice.task.hex()}")
            case PersistTask() | PersistTenancy() | ForgetTenancy() | AppendEntry() | WakeAt():
                raise AssertionError("the driver's own")
            case _:
                assert_never(action)

    async def gossip(self) -> None:
        """Publish offers as they come; only the newest waits."""
        async for data in self._offers_out:
            try:
                await self._network.publish_offer(data)
            except MeshError:
                self.tally["offers_unsaid"] += 1

    async def fetch(
        self,
        peer: PeerId,
        root: Cid,
        bytes_max: int,
        blocks: Blocks | None = None,
        tally: Tally | None = None,
    ) -> None:
        """Bring a DAG from *peer*, into our blocks unless others are named. Raises MeshError."""

        async def request(payload: bytes) -> bytes:
            return await self._network.request(peer, BLOCKS, payload, REQUEST_S)

        await fetch(
            root,
            blocks or self._blocks,
            request,
            bytes_max=bytes_max,
            blocks_max=BLOCKS_MAX,
            tally=tally or self.transfers,
        )

    async def bring(
        self, buyer: PeerId, root: Cid, bytes_max: int, blocks: Blocks | None = None
    ) -> None:
        """Like `fetch`, for a run that was awarded: a buyer that restarts meanwhile loses nothing.

        Raises MeshError.
        """
        until = trio.current_time() + AWAY_S
        with _in_time(buyer, bytes_max):
            while True:
                tally = Tally()
                try:
                    return await self.fetch(buyer, root, bytes_max, blocks, tally)
                except (Unavailable, PeerError):  # who is killed leaves half an answer
                    if tally.blocks:
                        until = trio.current_time() + AWAY_S
                    if trio.current_time() >= until:
                        raise
                finally:
                    _add(self.transfers, tally)
                self.tally["fetches_repeated"] += 1
                await trio.sleep(AGAIN_S)

    async def give_up(self, reason: str) -> int:
        """Stop every run here by no fault of its task; how many there were."""
        runs = list(self.hostings.items())
        for (task, fence), hosting in runs:
            hosting.scope.cancel()
            await self._driver.post(RunLost(task, fence, reason))
        return len(runs)

    @property
    def _workshop(self) -> Workshop:
        assert self.workshop is not None
        return self.workshop

    def _gossip(self, data: bytes) -> None:
        try:
            self._offers.send_nowait(data)
        except trio.WouldBlock:
            self._offers_out.receive_nowait()
            self._offers.send_nowait(data)

    def _pause(self, task: TaskId, fence: int) -> None:
        """Wherever the run is: before its start it is held back, after it it is stopped."""
        if hosting := self.hostings.get((task, fence)):
            hosting.gate.close()
        self._workshop.supervisor.pause(_key(task, fence))

    def _continue(self, task: TaskId, fence: int) -> None:
        if hosting := self.hostings.get((task, fence)):
            hosting.gate.open()
        self._workshop.supervisor.resume(_key(task, fence))

    async def _run(self, run: Run, hosting: Hosting) -> None:
        key = (run.task, run.fence)

        def progress(fuel: int) -> None:
            self._driver.post_nowait(RunProgressed(run.task, run.fence, fuel))

        with hosting.scope, self.standbys.lent(run.work) as prepared:
            try:
                result = await self._workshop.execute(
                    run.work, run.buyer, _key(*key), progress, hosting.gate, prepared
                )
                if not isinstance(result, Suspension):  # that was told when its state was safe
                    roots = (result.output, result.stdout, result.stderr)
                    await self._pin(roots, hosted_pin(run.task))
                    await self._driver.post(RunEnded(*key, result))
            except Corruption:
                raise  # our own store lies: better no node than a wrong one
            except MeshError as error:
                await self._driver.post(RunLost(run.task, run.fence, str(error)[:512]))
            finally:
                del self.hostings[key]

    async def _checkpoint(self, task: TaskId, fence: int) -> None:
        hosting = self.hostings.get((task, fence))
        if hosting is None:
            return  # it ended, and that was told
        kept = await self._workshop.supervisor.checkpoint(_key(task, fence))
        match kept:
            case Kept(state=state, fuel=fuel):
                await self._pin_state(task, state, hosted_state_pin(task))
                await self._driver.post(Checkpointed(task, fence, state, fuel - hosting.before))
            case Stays():
                await self._tell_unmoved(task, fence, kept)

    async def _suspend(self, task: TaskId, fence: int) -> None:
        hosting = self.hostings.get((task, fence))
        if hosting is None:
            return  # it ended, and that was told
        end = await self._workshop.supervisor.suspend(_key(task, fence))
        if hosting.scope.cancel_called:
            return  # nobody wants it any more
        match end:
            case Suspension(state=state, fuel=fuel, run_ms=run_ms):
                await self._pin_state(task, state, hosted_state_pin(task))
                fuel -= hosting.before
                await self._driver.post(Suspended(task, fence, state, fuel, run_ms))
            case Stays():
                await self._tell_unmoved(task, fence, end)

    async def _tell_unmoved(self, task: TaskId, fence: int, stays: Stays) -> None:
        """Of a run that is over, the end was told, and nothing more is."""
        if (task, fence) in self.hostings:
            reason, is_for_good = stays.reason[:512], stays.is_for_good
            await self._driver.post(Unmoved(task, fence, reason, is_for_good))

    async def _certify(self, asked: Certify) -> None:
        assert self.certify is not None, "there are no witnesses to ask"
        entry, certificate, reason = Entry.decode(asked.entry), b"", ""
        try:
            certificate = (await self.certify(entry)).encode()
        except Unavailable as error:
            reason = str(error)[:512]
        alloc = EntryId(entry.id)
        await self._driver.post(Certified(asked.task, asked.fence, alloc, certificate, reason))

    async def _collect(self, collect: Collect) -> None:
        reason = ""
        try:
            bytes_max = self._left_at_most(collect)
            roots = collect.roots[:1] if collect.is_state else collect.roots
            with _in_time(collect.executor, bytes_max):
                for root in roots:
                    await self.fetch(collect.executor, root, bytes_max)
            if collect.is_state:
                await self._pin_state(collect.task, collect.roots[0], state_pin(collect.task))
            else:
                await self._pin(collect.roots, task_pin(collect.task))
        except Corruption:
            raise
        except MeshError as error:
            reason = str(error)[:512]
            self.tally["collects_failed"] += 1
        root = collect.roots[0]
        await self._driver.post(Collected(collect.task, collect.fence, root, reason))

    async def _keep_state(self, asked: KeepState) -> None:
        reason = kept_state_pin(asked.buyer, asked.task)
        try:
            with _in_time(asked.buyer, asked.bytes_max):
                await self.fetch(asked.buyer, asked.state, asked.bytes_max)
            if reason in self.states_kept:
                await trio.to_thread.run_sync(pin_alone, self._blocks, asked.state, reason)
                await self.standbys.keep(asked)
        except Corruption:
            raise
        except MeshError:
            self.tally["states_not_kept"] += 1

    async def _drop_state(self, reason: str) -> None:
        await trio.to_thread.run_sync(unpin_all, self._blocks, reason)

    def _left_at_most(self, collect: Collect) -> int:
        """Bytes of blocks that one of a task's results can have: what it asked for, as UnixFS."""
        record = self._records.get(collect.task)
        needs = record.order.work.needs if record else Capacity()
        if collect.is_state:
            return state_bytes_max(needs.memory, needs.disk)
        return STREAMS_MAX + needs.disk * 9 // 8

    async def _pin(self, roots: Sequence[Cid], reason: str) -> None:
        await trio.to_thread.run_sync(self._blocks.pin_all, roots, reason)

    async def _pin_state(self, task: TaskId, root: Cid, reason: str) -> None:
        """Keep a state in the place of the one before, unless the task runs on from that."""
        record = self._records.get(task)
        kept = record.path[-1].state if record and record.path else None
        await trio.to_thread.run_sync(pin_alone, self._blocks, root, reason, kept)

    async def _provide(self, key: str) -> None:
        try:
            await self._network.provide(key)
        except MeshError:
            self.tally["provides_failed"] += 1


@contextmanager
def _in_time(peer: PeerId, bytes_max: int) -> Iterator[None]:
    """For a transfer of *bytes_max* at most. Raises Unavailable where it crawls."""
    try:
        with trio.fail_after(FETCH_S + bytes_max / RATE_MIN):
            yield
    except trio.TooSlowError:
        raise Unavailable(f"{short_peer(peer)} sends less than {RATE_MIN >> 10} KiB/s") from None


def _add(total: Tally, part: Tally) -> None:
    for name, count in part.statistics().items():
        setattr(total, name, getattr(total, name) + count)


def task_pin(task: TaskId) -> str:
    """Why a buyer keeps a task's blocks."""
    return f"task {format_task(task)}"


def hosted_pin(task: TaskId) -> str:
    """Why an executor keeps them."""
    return f"hosted {format_task(task)}"


def state_pin(task: TaskId) -> str:
    """Why a buyer keeps the state of a task that runs."""
    return f"state of task {format_task(task)}"


def hosted_state_pin(task: TaskId) -> str:
    """Why an executor keeps it."""
    return f"state of hosted {format_task(task)}"


def kept_state_pin(buyer: PeerId, task: TaskId) -> str:
    """Why a node keeps it that would go on from it."""
    return f"state kept for {format_peer(buyer)} {format_task(task)}"


def unpin_all(blocks: DiskBlocks, reason: str) -> None:
    """Keep nothing for *reason* any longer."""
    for pin in blocks.pins():
        if pin.reason == reason:
            blocks.unpin(pin.root, reason)


def pin_alone(blocks: DiskBlocks, root: Cid, reason: str, kept: Cid | None = None) -> None:
    """Pin *root* for *reason*, and of what was pinned for it before nothing but *kept*."""
    before = [pin for pin in blocks.pins() if pin.reason == reason]
    if all(pin.root != root for pin in before):
        blocks.pin(root, reason)
    for pin in before:
        if pin.root not in (root, kept):
            blocks.unpin(pin.root, reason)


def _key(task: TaskId, fence: int) -> str:
    return f"{task.hex()}-{fence}"
