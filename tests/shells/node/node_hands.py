"""A performer with all that it works with, real: network, sandbox, blocks, journal and ledger.

The kernel is left out: a test decides, and sees the events that a kernel would get.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random

import trio
from attrs import define, field, frozen

from ledger.store import Store
from mesh.broadcast import Broadcast
from mesh.driver import Driver
from mesh.ids import RAW, Cid, PeerId, TaskId, cid_of
from mesh.market.order import TaskRecord
from mesh.messages import Work
from mesh.network.network import BLOCKS, Network, NetworkConfig, open_network
from mesh.performer import Performer
from mesh.resources.capacity import Capacity
from mesh.runtime import manifest
from mesh.runtime.execution import Workshop
from mesh.runtime.manifest import Job
from mesh.runtime.supervisor import open_supervisor
from mesh.sansio import Action, Event, Run
from mesh.storage.blocks import Blocks
from mesh.storage.disk import DiskBlocks
from mesh.storage.files import add_bytes
from mesh.storage.journal import Journal, open_journal
from mesh.storage.transfer import serve

WITNESS = Path(__file__).parents[2] / "guests" / "witness.wasm"
PATIENCE_S = 60
"""Far more than anything here takes; tests wait for events, not for time."""
TASK = TaskId(bytes(range(16)))
QUOTA = 256 << 20


@frozen
class Deaf:
    """A core that only remembers."""

    heard: list[Event] = field(factory=list)

    def handle(self, event: Event, now: float) -> list[Action]:
        self.heard.append(event)
        return []


@define(eq=False)
class Hands:
    """One performer and its surroundings."""

    performer: Performer
    core: Deaf
    network: Network
    workshop: Workshop
    blocks: DiskBlocks
    journal: Journal
    ledger: Store
    records: dict[TaskId, TaskRecord]
    nursery: trio.Nursery

    def runs(self) -> int:
        """Tasks of the performer that have not ended."""
        return len(self.nursery.child_tasks)


async def nobody_serves(peer: PeerId, request: bytes) -> bytes:
    raise AssertionError("nobody asks here")


@asynccontextmanager
async def open_hands(folder: Path, *, quota: int = QUOTA) -> AsyncIterator[Hands]:
    async with AsyncExitStack() as stack:
        core = Deaf()
        driver = Driver(core)
        network = await stack.enter_async_context(open_peer(1, nobody_serves))
        supervisor = await stack.enter_async_context(
            open_supervisor(folder / "runtime", workers_max=2)
        )
        blocks = stack.enter_context(DiskBlocks(folder / "blocks", quota))
        journal = stack.enter_context(open_journal(folder / "node.sqlite"))
        ledger = stack.enter_context(Store.open(folder / "ledger.sqlite"))
        (folder / "scratch").mkdir()
        driving = await stack.enter_async_context(trio.open_nursery())
        nursery = await stack.enter_async_context(trio.open_nursery())
        records: dict[TaskId, TaskRecord] = {}
        performer = Performer(
            driver=driver,
            network=network,
            blocks=blocks,
            journal=journal,
            ledger=ledger,
            records=records,
            broadcast=Broadcast(),
            nursery=nursery,
        )
        workshop = Workshop(blocks, supervisor, performer.bring, folder / "scratch")
        performer.workshop = workshop

        async def drive() -> None:
            await driver.drive(persist=performer.persist, perform=performer.perform)

        driving.start_soon(drive)
        yield Hands(performer, core, network, workshop, blocks, journal, ledger, records, nursery)
        nursery.cancel_scope.cancel()
        driving.cancel_scope.cancel()


@asynccontextmanager
async def open_peer(
    index: int, serving: Callable[[PeerId, bytes], Awaitable[bytes]]
) -> AsyncIterator[Network]:
    """A node's network on loopback that answers requests for blocks by *serving*."""
    async with open_network(
        NetworkConfig(seed=bytes([index]) * 32),
        rng=Random(index),
        on_frame=lambda peer, frame: None,
        on_offer=lambda peer, data: None,
        serve={BLOCKS: serving},
    ) as network:
        yield network


@define(eq=False)
class Library:
    """What a buyer serves; it can be made to wait."""

    blocks: Blocks
    asked: trio.Event = field(factory=trio.Event)
    is_open: trio.Event = field(factory=trio.Event)

    async def serve(self, peer: PeerId, request: bytes) -> bytes:
        self.asked.set()
        await self.is_open.wait()
        return await trio.to_thread.run_sync(serve, self.blocks, request)


def work_in(blocks: Blocks, module: bytes, **changes: object) -> Work:
    """A job with that module, put into *blocks*, as a buyer would ask for it."""
    values: dict[str, object] = {
        "module": add_bytes(blocks, module).cid,
        "args": (),
        "env": (),
        "inputs": (),
        "fuel": 10**9,
        "memory": 8 << 20,
        "disk": 1 << 20,
        "wall_ms": 60_000,
        "seed": bytes(16),
        "t0_ns": 1,
        "stdout_max": 1 << 16,
    }
    job = Job(**(values | changes))  # type: ignore[arg-type]
    data = manifest.encode(job)
    cid = cid_of(RAW, data)
    blocks.put(cid, data)
    return Work(
        job=cid,
        module=job.module,
        inputs=tuple(root for _, root in job.inputs),
        needs=Capacity(1_000, job.memory, job.disk, 1),
        fuel=job.fuel,
        wall_ms=job.wall_ms,
        features=("wasm",),
    )


def run_of(work: Work, buyer: PeerId, fence: int = 1) -> Run:
    return Run(TASK, fence, buyer, work)


async def until(holds: Callable[[], object]) -> None:
    """Wait until *holds* does, without a clock."""
    with trio.fail_after(PATIENCE_S):
        while not holds():
            await trio.lowlevel.checkpoint()


def cids_of(*names: str) -> tuple[Cid, ...]:
    return tuple(cid_of(RAW, name.encode()) for name in names)
