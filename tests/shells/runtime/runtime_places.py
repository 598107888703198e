"""Places between which a task moves: supervisors of their own, and states as blocks."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import define, field
from runtime_jobs import ROOT, tree

from mesh.errors import MeshError
from mesh.ids import Cid
from mesh.runtime.course import Beginning, Held, Kept, Stays, Suspended
from mesh.runtime.manifest import Job
from mesh.runtime.supervisor import Outcome, Supervisor
from mesh.storage.blocks import MemoryBlocks
from mesh.storage.states import Saving, lay_out, state_bytes_max
from mesh.storage.transfer import fetch, serve

HOSTILE = ROOT / "tests/guests/hostile.movable.wasm"
TRAVELLER = ROOT / "tests/guests/traveller.movable.wasm"
HEAP = ROOT / "tests/guests/heap.movable.wasm"


@define(eq=False)
class Place:
    """A machine, as far as a task that moves knows it."""

    supervisor: Supervisor
    folder: Path
    blocks: MemoryBlocks = field(factory=lambda: MemoryBlocks(1 << 16))
    runs: int = 0

    async def begin(self, job: Job, source: Place, state: Cid, fuel: int) -> Beginning:
        """Fetch a state and lay it out."""
        most = state_bytes_max(job.memory, job.disk)
        await self.fetch(source, state, most)
        self.runs += 1
        folder = self.folder / f"state-{self.runs}"
        found = lay_out(self.blocks, state, folder, memory=job.memory, disk=job.disk)
        return Beginning(found.snapshot, found.out, found.tmp, fuel)

    async def fetch(self, source: Place, state: Cid, bytes_max: int) -> int:
        """Bytes received."""

        async def request(data: bytes) -> bytes:
            return await trio.to_thread.run_sync(partial(serve, source.blocks, data))

        return await fetch(state, self.blocks, request, bytes_max=bytes_max, blocks_max=1 << 16)

    async def keep(self, saving: Saving, held: Held) -> Cid:
        return await trio.to_thread.run_sync(saving.save, held)

    async def run(
        self,
        key: str,
        job: Job,
        module: Path,
        beginning: Beginning | None = None,
        on_progress: Callable[[int], None] = lambda fuel: None,
        keep: Callable[[Held], Awaitable[Cid]] | None = None,
    ) -> Outcome | Suspended:
        return await self.supervisor.run(
            key,
            job,
            module,
            {},
            on_progress=on_progress,
            beginning=beginning,
            keep=keep or partial(self.keep, Saving(self.blocks)),
        )

    def kill(self) -> None:
        """Every worker that there is."""
        for pid in self.supervisor.statistics().pids:
            os.kill(pid, signal.SIGKILL)


@define(eq=False)
class Going:
    """A run that was begun."""

    place: Place
    key: str
    end: list[Outcome | Suspended | BaseException] = field(factory=list)
    is_going: trio.Event = field(factory=trio.Event)
    """It runs, or is over."""
    is_over: trio.Event = field(factory=trio.Event)

    async def run(self, job: Job, module: Path, *, began: int = 0, **how: object) -> None:
        def see(fuel: int) -> None:
            if fuel > began:
                self.is_going.set()

        try:
            place: Any = self.place
            self.end.append(await place.run(self.key, job, module, on_progress=see, **how))
        except MeshError as error:
            self.end.append(error)
        finally:
            self.is_going.set()
            self.is_over.set()

    async def suspended(self) -> Suspended:
        told = await self.place.supervisor.suspend(self.key)
        await self.is_over.wait()
        (end,) = self.end
        assert isinstance(end, Suspended), end
        assert told == end
        return end

    async def checkpointed(self) -> Kept:
        kept = await self.place.supervisor.checkpoint(self.key)
        assert isinstance(kept, Kept), kept
        return kept

    async def outcome(self) -> Outcome:
        await self.is_over.wait()
        (end,) = self.end
        assert isinstance(end, Outcome), end
        return end


async def begin(
    nursery: trio.Nursery, place: Place, job: Job, module: Path, **how: object
) -> Going:
    """Begin a run, and see it run."""
    place.runs += 1
    going = Going(place, f"run-{place.runs}")
    nursery.start_soon(partial(going.run, job, module, **how))
    await going.is_going.wait()
    return going


async def suspend(place: Place, job: Job, module: Path) -> Suspended:
    """The state of a run that has just begun."""
    async with trio.open_nursery() as nursery:
        return await (await begin(nursery, place, job, module)).suspended()


async def move(places: list[Place], job: Job, module: Path, times: int) -> Outcome:
    """Run *job* to its end, moved *times* between the places on its way."""
    async with trio.open_nursery() as nursery:
        going = await begin(nursery, places[0], job, module)
        for number in range(1, times + 1):
            end = await going.suspended()
            place = places[number % len(places)]
            beginning = await place.begin(job, going.place, end.state, end.fuel)
            how = {"beginning": beginning, "began": end.fuel}
            going = await begin(nursery, place, job, module, **how)
        return await going.outcome()


def facts(outcome: Outcome) -> tuple[object, ...]:
    """What every run of one job agrees on."""
    named = (outcome.status, outcome.exit_code, outcome.detail, outcome.fuel)
    return (*named, outcome.stdout, outcome.stderr, tree(outcome.out))


def reason_of(stays: Kept | Suspended | Stays) -> str:
    assert isinstance(stays, Stays), stays
    return stays.reason
