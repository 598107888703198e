"""The performer: does what the kernel decided. Nothing here decides, and `perform` never waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import assert_never

import trio

from ledger.model import Entry, Kind
from ledger.store import Store
from mesh import codec
from mesh.broadcast import Broadcast
from mesh.driver import Driver, Durable
from mesh.errors import Corruption, MeshError, Unavailable
from mesh.ids import Cid, PeerId, TaskId, format_task
from mesh.network.network import BLOCKS, Network
from mesh.notices import Hosted
from mesh.runtime.execution import Workshop
from mesh.sansio import (
    Action,
    AppendEntry,
    Collect,
    Collected,
    ContinueRun,
    ForgetTenancy,
    Gossip,
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
    WakeAt,
)
from mesh.storage.disk import DiskBlocks
from mesh.storage.journal import Journal
from mesh.storage.transfer import Tally, fetch

REQUEST_S = 20.0
AWAY_S = 30.0
"""A buyer that cannot be reached for so long has no inputs for us."""
AGAIN_S = 0.5
BLOCKS_MAX = 1 << 20


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
        ledger_limiter: trio.CapacityLimiter,
        broadcast: Broadcast,
        nursery: trio.Nursery,
    ) -> None:
        self.workshop: Workshop | None = None
        self.tally: Counter[str] = Counter()
        self.transfers = Tally()
        self.earned = 0
        """µcr settled in our favour, by the entries we hold."""
        self._driver = driver
        self._network = network
        self._blocks = blocks
        self._journal = journal
        self._ledger = ledger
        self._ledger_limiter = ledger_limiter
        self._broadcast = broadcast
        self._nursery = nursery
        self._runs: dict[tuple[TaskId, int], trio.CancelScope] = {}
        self._offers, self._offers_out = trio.open_memory_channel[bytes](1)

    async def persist(self, writes: Sequence[Durable]) -> None:
        """Make *writes* durable: money first, so that no task is settled without its receipt."""
        entries = [write for write in writes if isinstance(write, AppendEntry)]
        records = [write for write in writes if not isinstance(write, AppendEntry)]
        if entries:
            await trio.to_thread.run_sync(self._append, entries, limiter=self._ledger_limiter)
        if records:
            await trio.to_thread.run_sync(self._journal.commit, records)

    def _append(self, writes: Sequence[AppendEntry]) -> None:
        own = [Entry.decode(write.entry) for write in writes if write.is_own]
        others = [Entry.decode(write.entry) for write in writes if not write.is_own]
        if own:
            self._ledger.append_own(own)
        if others:
            self._ledger.add(others)
        for entry in others:
            if entry.content.kind is Kind.SETTLE:
                self.earned += entry.content.deal.amount

    def perform(self, action: Action) -> None:
        match action:
            case Send(peer, message):
                if not self._network.send_nowait(peer, codec.encode(message)):
                    self.tally["sends_dropped"] += 1
            case Gossip(signed):
                self._gossip(codec.encode_signed_offer(signed))
            case Run():
                self._nursery.start_soon(self._run, action)
            case PauseRun(task, fence):
                self._workshop.supervisor.pause(_key(task, fence))
            case ContinueRun(task, fence):
                self._workshop.supervisor.resume(_key(task, fence))
            case StopRun(task, fence):
                scope = self._runs.get((task, fence))
                if scope:
                    scope.cancel()
            case Collect():
                self._nursery.start_soon(self._collect, action)
            case Penalize(peer, reason):
                self._network.penalize(peer, reason)
            case Notify(notice):
                self._broadcast.publish(notice)
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

    async def fetch(self, peer: PeerId, root: Cid, bytes_max: int) -> None:
        """Bring a DAG from *peer* into our blocks. Raises MeshError."""

        async def request(payload: bytes) -> bytes:
            return await self._network.request(peer, BLOCKS, payload, REQUEST_S)

        await fetch(
            root,
            self._blocks,
            request,
            bytes_max=bytes_max,
            blocks_max=BLOCKS_MAX,
            tally=self.transfers,
        )

    async def bring(self, buyer: PeerId, root: Cid, bytes_max: int) -> None:
        """Like `fetch`, for a run that was awarded: a buyer that restarts meanwhile loses nothing.

        Raises MeshError.
        """
        until = trio.current_time() + AWAY_S
        while True:
            try:
                return await self.fetch(buyer, root, bytes_max)
            except Unavailable:
                if trio.current_time() >= until:
                    raise
            self.tally["fetches_repeated"] += 1
            await trio.sleep(AGAIN_S)

    async def give_up(self, reason: str) -> int:
        """Stop every run here by no fault of its task; how many there were."""
        runs = list(self._runs.items())
        for (task, fence), scope in runs:
            scope.cancel()
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

    async def _run(self, run: Run) -> None:
        key = (run.task, run.fence)

        def progress(fuel: int) -> None:
            self._driver.post_nowait(RunProgressed(run.task, run.fence, fuel))

        with trio.CancelScope() as scope:
            self._runs[key] = scope
            try:
                result = await self._workshop.execute(run.work, run.buyer, _key(*key), progress)
                roots = (result.output, result.stdout, result.stderr)
                await self._pin(roots, hosted_pin(run.task))
                await self._driver.post(RunEnded(run.task, run.fence, result))
            except Corruption:
                raise  # our own store lies: better no node than a wrong one
            except MeshError as error:
                await self._driver.post(RunLost(run.task, run.fence, str(error)[:512]))
            finally:
                del self._runs[key]

    async def _collect(self, collect: Collect) -> None:
        reason = ""
        try:
            for root in collect.roots:
                await self.fetch(collect.executor, root, OUTPUT_MAX)
            await self._pin(collect.roots, task_pin(collect.task))
        except Corruption:
            raise
        except MeshError as error:
            reason = str(error)[:512]
            self.tally["collects_failed"] += 1
        await self._driver.post(Collected(collect.task, collect.fence, reason))

    async def _pin(self, roots: Sequence[Cid], reason: str) -> None:
        for root in roots:
            await trio.to_thread.run_sync(self._blocks.pin, root, reason)

    async def _provide(self, key: str) -> None:
        try:
            await self._network.provide(key)
        except MeshError:
            self.tally["provides_failed"] += 1


OUTPUT_MAX = 1 << 34
"""Bytes of one output that a buyer collects; its own quota is the nearer bound."""


def task_pin(task: TaskId) -> str:
    """Why a buyer keeps a task's blocks."""
    return f"task {format_task(task)}"


def hosted_pin(task: TaskId) -> str:
    """Why an executor keeps them."""
    return f"hosted {format_task(task)}"


def _key(task: TaskId, fence: int) -> str:
    return f"{task.hex()}-{fence}"
