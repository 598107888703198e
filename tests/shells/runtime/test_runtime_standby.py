"""Standbys: a task that comes where an earlier state of it waits says and costs the same."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import define, evolve, field
from runtime_jobs import PATIENCE, is_gone, job_of
from runtime_places import HEAP, HOSTILE, TRAVELLER, Place

from mesh.errors import MeshError, Unavailable
from mesh.ids import RAW, Cid, PeerId, cid_of
from mesh.messages import Move, Result, Work
from mesh.resources.capacity import Capacity
from mesh.runtime import manifest
from mesh.runtime.course import Kept, Suspended
from mesh.runtime.execution import Prepared, Workshop, differences
from mesh.runtime.manifest import Job
from mesh.runtime.supervisor import WorkerLost, open_supervisor
from mesh.storage.blocks import Blocks
from mesh.storage.files import add_bytes
from mesh.storage.transfer import fetch, serve

LONG = 1 << 40
ANYBODY = PeerId(b"anybody")
JOBS = [
    (TRAVELLER, job_of(TRAVELLER, "80", "4000", fuel=LONG)),
    (HOSTILE, job_of(HOSTILE, "spin", "3000", fuel=LONG)),
    (HEAP, job_of(HEAP, "4", "2000", fuel=LONG)),
]


@define(eq=False)
class Hall:
    """A place with a workshop, that gets from the other one what it lacks."""

    place: Place
    others: list[Hall]
    runs: int = 0
    workshop: Workshop = field(init=False)

    def __attrs_post_init__(self) -> None:
        scratch = self.place.folder / "scratch"
        scratch.mkdir()
        self.workshop = Workshop(self.place.blocks, self.place.supervisor, self.bring, scratch)

    async def bring(self, peer: PeerId, root: Cid, most: int, blocks: Blocks) -> None:
        async def request(data: bytes) -> bytes:
            (source,) = (hall.place.blocks for hall in self.others if hall is not self)
            return await trio.to_thread.run_sync(partial(serve, source, data))

        await fetch(root, blocks, request, bytes_max=most, blocks_max=1 << 16)

    def work(self, module: Path, job: Job) -> Work:
        add_bytes(self.place.blocks, module.read_bytes())
        data = manifest.encode(job)
        cid = cid_of(RAW, data)
        self.place.blocks.put(cid, data)
        needs = Capacity(1000, job.memory, job.disk, slots=1)
        return Work(cid, job.module, (), needs, job.fuel, job.wall_ms, ())

    def prepared(
        self, state: Cid, has_room: Callable[[Job], bool] = lambda job: True
    ) -> AbstractAsyncContextManager[Prepared]:
        self.runs += 1
        name = f"ahead-{self.runs}"
        return self.workshop.prepared(ANYBODY, state, name, bytes_max=1 << 30, has_room=has_room)


@define(eq=False)
class Part:
    """One run of a task that moves, in one of the halls."""

    hall: Hall
    key: str
    work: Work
    prepared: Prepared | None = None
    end: list[Result | Suspended | MeshError] = field(factory=list)
    is_going: trio.Event = field(factory=trio.Event)
    is_over: trio.Event = field(factory=trio.Event)

    async def run(self) -> None:
        def see(fuel: int) -> None:
            if fuel > 0:
                self.is_going.set()

        try:
            self.end.append(
                await self.hall.workshop.execute(
                    self.work, ANYBODY, self.key, see, prepared=self.prepared
                )
            )
        except MeshError as error:
            self.end.append(error)
        self.is_going.set()
        self.is_over.set()

    async def kept(self) -> Kept:
        kept = await self.hall.place.supervisor.checkpoint(self.key)
        assert isinstance(kept, Kept), kept
        return kept

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Short tasks would be over before all is in place."""
        self.hall.place.supervisor.pause(self.key)
        yield
        self.hall.place.supervisor.resume(self.key)

    async def suspended(self) -> Work:
        """What is left to do."""
        end = await self.hall.place.supervisor.suspend(self.key)
        assert isinstance(end, Suspended), end
        await self.is_over.wait()
        before = self.work.moves[-1].fuel if self.work.moves else 0
        burnt = end.fuel - before
        return evolve(
            self.work, fuel=self.work.fuel - burnt, moves=(Move(end.fuel, ANYBODY, end.state),)
        )

    async def result(self) -> Result:
        """As if it had run in one place."""
        await self.is_over.wait()
        (end,) = self.end
        assert isinstance(end, Result), end
        return evolve(end, fuel=end.fuel + (self.work.moves[-1].fuel if self.work.moves else 0))


@pytest.fixture
async def halls(tmp_path: Path) -> AsyncIterator[list[Hall]]:
    with trio.fail_after(PATIENCE):
        async with AsyncExitStack() as stack:
            found: list[Hall] = []
            for name in ("one", "other"):
                opening = open_supervisor(tmp_path / name, workers_max=2)
                supervisor = await stack.enter_async_context(opening)
                found.append(Hall(Place(supervisor, tmp_path / name), found))
            yield found


async def begin(
    nursery: trio.Nursery, hall: Hall, work: Work, prepared: Prepared | None = None
) -> Part:
    hall.runs += 1
    part = Part(hall, f"part-{hall.runs}", work, prepared)
    nursery.start_soon(part.run)
    await part.is_going.wait()
    return part


async def unmoved(hall: Hall, work: Work) -> Result:
    result = await hall.workshop.execute(work, None, "plain", lambda fuel: None)
    assert isinstance(result, Result)
    assert result.status == "exited"
    return result


@pytest.mark.long
@pytest.mark.parametrize(("module", "job"), JOBS, ids=["traveller", "spin", "heap"])
async def test_a_task_moved_five_times_onto_standbys_is_the_task(
    halls: list[Hall], module: Path, job: Job
) -> None:
    """Each has an earlier state, takes in a later one, and then the last."""
    work = halls[0].work(module, job)
    plain = await unmoved(halls[0], work)
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        part = await begin(nursery, halls[0], work)
        for number in range(1, 6):
            hall = halls[number % 2]
            first = await part.kept()
            with part.paused():
                prepared = await stack.enter_async_context(hall.prepared(first.state))
            later = await part.kept()
            with part.paused():
                await hall.workshop.advance(prepared, ANYBODY, later.state)
            part = await begin(nursery, hall, await part.suspended(), prepared)
            assert prepared.standby.is_taken
        assert differences(plain, await part.result()) == []
    for hall in halls:
        assert hall.place.supervisor.statistics().lost == 0
        assert list((hall.place.folder / "scratch").iterdir()) == []


@pytest.mark.long
async def test_only_what_changed_since_is_brought_and_laid_out(halls: list[Hall]) -> None:
    one, other = halls
    job = job_of(HEAP, "8", "1000000", memory=16 << 20, fuel=LONG)
    work = one.work(HEAP, job)
    async with trio.open_nursery() as nursery:
        part = await begin(nursery, one, work)
        while (kept := await part.kept()).fuel < 200_000_000:
            pass  # its memory is full, and one of its mebibytes changes from here on
        async with other.prepared(kept.state) as prepared:
            left = await part.suspended()
            part = await begin(nursery, other, left, prepared)
            rest = prepared.folder / "last"
            assert rest.is_dir()
            assert not list(rest.glob("snapshot"))
            used = os.stat(prepared.standby.scratch / "state/snapshot")
            assert used.st_blocks * 512 < used.st_size / 2
            nursery.cancel_scope.cancel()


@pytest.mark.long
async def test_a_standby_that_dies_is_done_without(halls: list[Hall]) -> None:
    one, other = halls
    work = one.work(*JOBS[0])
    plain = await unmoved(one, work)
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        part = await begin(nursery, one, work)
        first = await part.kept()
        with part.paused():
            prepared = await stack.enter_async_context(other.prepared(first.state))
        os.kill(prepared.standby.worker.pid, signal.SIGKILL)
        part = await begin(nursery, other, await part.suspended(), prepared)
        assert differences(plain, await part.result()) == []
    statistics = other.place.supervisor.statistics()
    assert (statistics.lost, statistics.ended) == (1, 1)


@pytest.mark.long
async def test_a_standby_that_is_not_used_leaves_nothing(halls: list[Hall]) -> None:
    one, other = halls
    work = one.work(*JOBS[0])
    async with trio.open_nursery() as nursery:
        part = await begin(nursery, one, work)
        state = (await part.kept()).state
        nursery.cancel_scope.cancel()
    async with other.prepared(state), other.prepared(state) as prepared:
        pid = prepared.standby.worker.pid
        with pytest.raises(Unavailable, match="as many"):
            async with other.prepared(state):
                pass
        with pytest.raises(Unavailable, match="no room"):
            async with other.prepared(state, lambda job: job.memory < 1):
                pass
    assert is_gone(pid)
    assert list((other.place.folder / "tasks").iterdir()) == []
    assert list((other.place.folder / "scratch").iterdir()) == []
    async with other.prepared(state):
        pass


@pytest.mark.long
async def test_a_state_that_lies_takes_a_standby_along_and_nothing_else(
    halls: list[Hall],
) -> None:
    """Of another fuel than was told: neither the standby nor a new worker goes on from it."""
    one, other = halls
    work = one.work(*JOBS[0])
    async with trio.open_nursery() as nursery:
        part = await begin(nursery, one, work)
        first = await part.kept()
        left = await part.suspended()
    lie = evolve(
        left, fuel=left.fuel - 1, moves=(evolve(left.moves[0], fuel=left.moves[0].fuel + 1),)
    )
    async with trio.open_nursery() as nursery, other.prepared(first.state) as prepared:
        part = await begin(nursery, other, lie, prepared)
        assert isinstance(part.end[0], WorkerLost)
        assert "other fuel" in str(part.end[0])
        part = await begin(nursery, other, left)
        assert (await part.result()).status == "exited"
    other_job = evolve(JOBS[0][1], args=("24", "4001"))
    stranger = one.work(TRAVELLER, other_job)
    async with trio.open_nursery() as nursery:
        part = await begin(nursery, one, stranger)
        strange = (await part.kept()).state
        nursery.cancel_scope.cancel()
    async with other.prepared(first.state) as prepared:
        with pytest.raises(MeshError, match="another task"):
            await other.workshop.advance(prepared, ANYBODY, strange)
