"""Moves: a task that is suspended here and goes on there says, leaves and costs the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from runtime_jobs import PATIENCE, ROOT, job_of, tree

from mesh.runtime.course import Kept, Stays
from mesh.runtime.manifest import Job
from mesh.runtime.supervisor import (
    Beginning,
    Held,
    Outcome,
    Supervisor,
    Suspended,
    open_supervisor,
)
from mesh.storage.blocks import MemoryBlocks
from mesh.storage.states import Saving, lay_out

MOVABLE = ROOT / "tests/guests/hostile.movable.wasm"


class Place:
    """One of the machines between which a task moves."""

    def __init__(self, supervisor: Supervisor, folder: Path) -> None:
        self.supervisor, self.folder = supervisor, folder
        self.blocks = MemoryBlocks()
        self.runs = 0

    async def run(
        self,
        key: str,
        job: Job,
        blocks=None,
        last: Suspended | Kept | None = None,
        on_progress=lambda fuel: None,
    ):
        saving = Saving(self.blocks)
        self.runs += 1
        beginning = None
        if last is not None:
            folder = self.folder / f"state-{self.runs}"
            state = lay_out(blocks, last.state, folder, memory=job.memory, disk=job.disk)
            beginning = Beginning(state.snapshot, state.out, state.tmp, last.fuel)

        async def keep(held: Held):
            return await trio.to_thread.run_sync(saving.save, held)

        return await self.supervisor.run(
            key, job, MOVABLE, {}, on_progress=on_progress, beginning=beginning, keep=keep
        )


@pytest.fixture
async def places(tmp_path: Path) -> AsyncIterator[list[Place]]:
    with trio.fail_after(PATIENCE):
        async with AsyncExitStack() as stack:
            found = []
            for name in ("one", "other"):
                supervisor = await stack.enter_async_context(
                    open_supervisor(tmp_path / name, workers_max=2)
                )
                found.append(Place(supervisor, tmp_path / name))
            yield found


async def test_five(places: list[Place]) -> None:
    job = job_of(MOVABLE, "spin", "2000", fuel=1 << 40)
    plain = await places[0].run("plain", job)
    last = None
    moves = 0
    blocks = None
    outcome = None
    t = trio.current_time()
    while not isinstance(outcome, Outcome):
        place = places[moves % 2]
        began = trio.Event()

        async def go():
            nonlocal outcome
            outcome = await place.run("moving", job, blocks, last, lambda f: began.set())
            began.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go)
            await began.wait()
            if moves < 5:
                t = trio.current_time()
                stays = await place.supervisor.suspend("moving")
                print(stays, trio.current_time() - t)
                assert stays is None
        if isinstance(outcome, Suspended):
            last, blocks = outcome, place.blocks
            print(outcome)
            moves += 1
    assert moves == 5
    assert (outcome.status, outcome.fuel, outcome.stdout) == (
        plain.status,
        plain.fuel,
        plain.stdout,
    )
