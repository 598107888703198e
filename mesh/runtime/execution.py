"""An execution: from an award to a result, and from a receipt to the same result again.

Everything that a run is made of comes from blocks that were checked against their CIDs, and
everything it leaves becomes such blocks; so that whoever has the blocks can run it once more.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import define, evolve, field, frozen

from mesh.errors import NotFound, PeerError, Refused, Unavailable
from mesh.ids import Cid, PeerId
from mesh.market.terms import EMPTY_DIR, EMPTY_FILE
from mesh.messages import Result, Work
from mesh.runtime import manifest
from mesh.runtime.manifest import Job, check_module
from mesh.runtime.origin import why_fixed
from mesh.runtime.supervisor import (
    Beginning,
    Held,
    Outcome,
    Standby,
    Supervisor,
    Suspended,
    Unprepared,
)
from mesh.storage import files
from mesh.storage.blocks import Blocks
from mesh.storage.disk import room_under
from mesh.storage.passing import Passing
from mesh.storage.states import (
    Known,
    Remains,
    Saving,
    known_of,
    lay_out,
    lay_out_snapshot,
    state_bytes_max,
)

MODULE_MAX = 64 << 20
"""Bytes of a module."""

Fetch = Callable[[PeerId, Cid, int, Blocks], Awaitable[None]]
"""(from whom, root, bytes at most, to where): bring a DAG. Raises MeshError."""


class Gate:
    """Holds a run back, while it is closed, that has not reached its worker yet."""

    def __init__(self) -> None:
        self._opened = trio.Event()
        self._opened.set()

    def close(self) -> None:
        if self._opened.is_set():
            self._opened = trio.Event()

    def open(self) -> None:
        self._opened.set()

    @property
    def held(self) -> int:
        """Runs that wait in front of it."""
        return self._opened.statistics().tasks_waiting

    async def passed(self) -> None:
        """Wait until it is open; from then on to the next checkpoint it stays so."""
        while not self._opened.is_set():
            await self._opened.wait()


@frozen
class LaidOut:
    """What a job runs on, as files."""

    module: Path
    inputs: dict[str, Path]
    may_move: bool


@define(eq=False)
class Prepared:
    """A task that may come here: the memory of one of its states lies in a worker already."""

    cid: Cid
    """Of its job."""
    job: Job
    folder: Path
    laid: LaidOut
    standby: Standby
    known: Known
    """What it has in its memory."""
    turn: trio.Lock = field(factory=trio.Lock)
    """Who tells it of a state."""


@frozen
class Workshop:
    """What executing needs."""

    blocks: Blocks
    supervisor: Supervisor
    fetch: Fetch
    scratch: Path

    async def execute(
        self,
        work: Work,
        source: PeerId | None,
        key: str,
        on_progress: Callable[[int], None],
        gate: Gate | None = None,
        prepared: Prepared | None = None,
    ) -> Result | Suspended:
        """Run *work*, fetching what is not here from *source*; start it when *gate* is open, in
        the worker that is *prepared* for it, if that can be.

        Where it was moved, it goes on from its last state; the fuel that *on_progress* hears of,
        and that of the result, is what is burnt here. Raises MeshError where it is not the task's
        doing: blocks out of reach, a worker killed, no room for what it left, a state that lies.
        """
        await self._bring(source, work.job, manifest.JOB_BYTES_MAX)
        try:
            job = manifest.decode(await trio.to_thread.run_sync(self.blocks.get, work.job))
            check_agrees(work, job)
        except PeerError as error:
            return _refused(f"its manifest is not what was asked for: {error}")
        if prepared is not None and work.moves and prepared.cid == work.job:
            try:
                return await self._go_on(work, prepared, source, key, on_progress, gate)
            except Unprepared:
                pass  # as if nobody had
        await self._bring_parts(source, job, work.needs.disk)
        if work.moves:
            most = state_bytes_max(job.memory, job.disk)
            await self._bring(source, work.moves[-1].state, most)
        folder = self.scratch / key
        try:
            with room_under(self.scratch):
                try:
                    laid = await trio.to_thread.run_sync(self._lay_out, job, folder)
                except NotFound:
                    raise  # a block went missing here
                except Refused as error:
                    return _refused(str(error))
                beginning = await self._begin(work, job, folder / "state", self.blocks)
                if gate is not None:
                    await gate.passed()
                milli = work.needs.cpu_milli
                return await self._run(job, laid, key, on_progress, milli, beginning)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))

    @asynccontextmanager
    async def prepared(
        self,
        source: PeerId | None,
        state: Cid,
        key: str,
        *,
        bytes_max: int,
        has_room: Callable[[Job], bool],
    ) -> AsyncIterator[Prepared]:
        """Have a worker ready that goes on from a later state than *state* with what changes until
        then. It is there for as long as the block, unless a run has taken it.

        Raises MeshError where that cannot be; Unavailable where there is no room for it.
        """
        folder = self.scratch / key
        try:
            with room_under(self.scratch):
                await self._bring(source, state, bytes_max)
                remains, known = await trio.to_thread.run_sync(
                    self._lay_out_known, state, folder, bytes_max
                )
                await self._bring(source, known.job, manifest.JOB_BYTES_MAX)
                job = manifest.decode(await trio.to_thread.run_sync(self.blocks.get, known.job))
                if not has_room(job):
                    raise Unavailable("there is no room for a task that may not come")
                await self._bring_parts(source, job, min(job.disk, bytes_max))
                laid = await trio.to_thread.run_sync(self._lay_out, job, folder)
            standing = self.supervisor.stand_by(job, laid.module, laid.inputs, remains.path)
            async with standing as standby:
                yield Prepared(known.job, job, folder, laid, standby, known)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))

    async def advance(self, prepared: Prepared, source: PeerId | None, state: Cid) -> None:
        """Let what is *prepared* take in a later *state*, so that less is left to come.

        Raises MeshError; it is then to be given up.
        """
        p = prepared
        async with p.turn:
            with room_under(self.scratch):
                most = state_bytes_max(p.job.memory, p.job.disk)
                await self._bring(source, state, most)
                remains, known = await trio.to_thread.run_sync(
                    self._lay_out_known, state, p.folder, most, p.known
                )
            if known.job != p.cid:
                raise PeerError("a state of another task than it was kept for")
            await p.standby.lay(remains.path, remains.shared)
            p.known = known

    def _lay_out_known(
        self, state: Cid, folder: Path, bytes_max: int, known: Known | None = None
    ) -> tuple[Remains, Known]:
        folder.mkdir(parents=True, exist_ok=True)
        remains = lay_out_snapshot(self.blocks, state, folder / "known", bytes_max, known)
        return remains, known_of(remains)

    async def _go_on(
        self,
        work: Work,
        prepared: Prepared,
        source: PeerId | None,
        key: str,
        on_progress: Callable[[int], None],
        gate: Gate | None,
    ) -> Result | Suspended:
        """As `execute`, where all but the last state is in place. Raises Unprepared."""
        p = prepared
        async with p.turn:
            pass  # nobody begins to tell it more of those that do not run it
        most = state_bytes_max(p.job.memory, p.job.disk)
        blocks = Passing(self.blocks, p.known.blocks)
        await self._bring(source, work.moves[-1].state, most, blocks)
        with room_under(self.scratch):
            beginning = await self._begin(work, p.job, p.folder / "last", blocks, p.known)
            if gate is not None:
                await gate.passed()
            milli = work.needs.cpu_milli
            return await self._run(p.job, p.laid, key, on_progress, milli, beginning, p.standby)

    async def _bring_parts(self, source: PeerId | None, job: Job, bytes_max: int) -> None:
        """The module, and inputs of *bytes_max* each."""
        await self._bring(source, job.module, MODULE_MAX)
        for _, root in job.inputs:
            await self._bring(source, root, bytes_max)

    async def _bring(
        self, source: PeerId | None, root: Cid, bytes_max: int, blocks: Blocks | None = None
    ) -> None:
        if source is not None:
            await self.fetch(source, root, bytes_max, blocks or self.blocks)

    async def _begin(
        self, work: Work, job: Job, folder: Path, blocks: Blocks, known: Known | None = None
    ) -> Beginning | None:
        """What to go on from. Raises MeshError: a state that lies is not the task's doing."""
        if not work.moves:
            return None
        last = work.moves[-1]
        try:
            state = await trio.to_thread.run_sync(
                lambda: lay_out(
                    blocks,
                    last.state,
                    folder,
                    memory=job.memory,
                    disk=job.disk,
                    known=known,
                )
            )
        except NotFound:
            raise
        except (PeerError, Refused) as error:
            raise Unavailable(f"the state to go on from is none: {error}") from error
        return Beginning(state.snapshot, state.out, state.tmp, last.fuel, state.shared)

    async def _run(
        self,
        job: Job,
        laid: LaidOut,
        key: str,
        on_progress: Callable[[int], None],
        cpu_milli: int,
        beginning: Beginning | None,
        standby: Standby | None = None,
    ) -> Result | Suspended:
        before = beginning.fuel if beginning else 0
        saving = Saving(self.blocks)

        async def keep(held: Held) -> Cid:
            return await trio.to_thread.run_sync(saving.save, held)

        outcome = await self.supervisor.run(
            key,
            job,
            laid.module,
            laid.inputs,
            on_progress=lambda fuel: on_progress(fuel - before),
            cpu_milli=cpu_milli,
            beginning=beginning,
            keep=keep if laid.may_move else None,
            standby=standby,
        )
        if isinstance(outcome, Suspended):
            return evolve(outcome, fuel=outcome.fuel - before)
        try:
            return await trio.to_thread.run_sync(self._keep, outcome, before)
        finally:
            with trio.CancelScope(shield=True):
                await self.supervisor.discard(key)

    def _lay_out(self, job: Job, folder: Path) -> LaidOut:
        """The module and the inputs as files. Raises Refused where they are not what may run."""
        (folder / "in").mkdir(parents=True)
        module = folder / "module.wasm"
        files.write_path(self.blocks, job.module, module, bytes_max=MODULE_MAX)
        wasm = module.read_bytes()
        may_move = check_module(wasm) and not why_fixed(wasm)
        inputs = {name: folder / "in" / name for name, _ in job.inputs}
        left = job.disk
        for name, root in job.inputs:
            left -= files.write_path(self.blocks, root, inputs[name], bytes_max=left)
        return LaidOut(module, inputs, may_move)

    def _keep(self, outcome: Outcome, before: int) -> Result:
        """What the run left, as blocks."""
        return Result(
            status=outcome.status,
            exit_code=outcome.exit_code,
            detail=outcome.detail[:512],
            fuel=max(0, outcome.fuel - before),
            run_ms=outcome.run_ms,
            output=files.add_path(self.blocks, outcome.out).cid,
            stdout=files.add_bytes(self.blocks, outcome.stdout).cid,
            stderr=files.add_bytes(self.blocks, outcome.stderr).cid,
        )


def check_agrees(work: Work, job: Job) -> None:
    """That *job* is what was bid for. Raises PeerError."""
    before = work.moves[-1].fuel if work.moves else 0
    asked = (work.module, work.inputs, work.fuel + before, work.wall_ms)
    if asked != (job.module, tuple(root for _, root in job.inputs), job.fuel, job.wall_ms):
        raise PeerError("module, inputs, fuel or time differ")
    if job.memory > work.needs.memory or job.disk > work.needs.disk:
        raise PeerError("it needs more memory or disk")


def differences(first: Result, second: Result) -> list[str]:
    """In what two runs of one job differ, of all that a bill rests on."""
    names = ("status", "exit_code", "fuel", "output", "stdout", "stderr")
    return [name for name in names if getattr(first, name) != getattr(second, name)]


def _refused(reason: str) -> Result:
    return Result(
        status="refused",
        exit_code=0,
        detail=reason[:512],
        fuel=0,
        run_ms=0,
        output=EMPTY_DIR,
        stdout=EMPTY_FILE,
        stderr=EMPTY_FILE,
    )
