"""The supervisor: runs jobs in worker processes of their own, and outlives whatever they do.

It never imports wasmtime. What a run may cost is bounded here a second time, from outside: its
wall time by a clock that pauses with it, its process by SIGKILL, its files by removal.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import evolve, frozen

from mesh.errors import PeerError, Unavailable
from mesh.ids import Cid
from mesh.runtime.compiled import COMPILE_CPU_S, place_of, take
from mesh.runtime.course import Beginning, Course, Held, Keep, Kept, Stays, Suspended
from mesh.runtime.frames import (
    FRESH,
    Begin,
    Ended,
    Failed,
    Progress,
    Ready,
    Report,
    RunJob,
    StartedRunning,
    Still,
    Unmoved,
    encode_order,
)
from mesh.runtime.manifest import Job, encode
from mesh.runtime.pace import CORE_MILLI
from mesh.runtime.sandbox import walls
from mesh.runtime.standby import Standby, put_files, put_rest
from mesh.runtime.stopwatch import Stopwatch
from mesh.runtime.template_wire import FORK_SERIES
from mesh.runtime.workers import Template, Worker, WorkerDied, WorkerLost, open_template

__all__ = [
    "Beginning",
    "Held",
    "Kept",
    "Outcome",
    "Standby",
    "Statistics",
    "Stays",
    "Supervisor",
    "Suspended",
    "Unprepared",
    "WorkerLost",
    "open_supervisor",
    "walls",
]

COMPILE_S = 600.0
"""The longest that getting ready and compiling may take, on a machine however busy; then the module
is refused. What bounds a compiler as a rule is its processor time (compiled.COMPILE_CPU_S)."""
PROGRESS_S = 0.1
"""Progress that comes faster is not passed on."""
WAITING_PER_WORKER = 4
"""Runs that may wait for a worker; more are turned away."""
_PAUSED_TICK_S = 0.25
COMPILER_ENDS = {
    "SIGABRT": "the compiler gave up, for want of memory or a flaw of its own",
    "SIGXCPU": f"compiling it takes over {COMPILE_CPU_S} s of processor",
}
"""Why a worker dies before its task runs and would die elsewhere too."""
_GONE = Stays("it does not run here", is_for_good=False)


class Unprepared(WorkerLost):
    """A standby did not come to run its task: it may be run without."""


@frozen
class Outcome:
    """How a run ended, and what it left behind."""

    status: str
    """One of manifest.STATUSES."""
    exit_code: int
    detail: str
    """Why, for people; the same wherever the job runs, but for wall-limit."""
    fuel: int
    """What it burnt; for wall-limit what was last known, at most a moment too little."""
    run_ms: int
    """How long the guest ran, pauses apart."""
    out: Path
    """What is left in /out. It is the supervisor's until `discard`."""
    stdout: bytes
    stderr: bytes


@frozen
class Statistics:
    """Counts since the start, and what is running now."""

    started: int
    ended: int
    cancelled: int
    lost: int
    late: int
    """Runs killed at their wall limit or compile limit."""
    turned_away: int
    """Runs refused because too many were waiting."""
    template_starts: int
    running: int
    paused: int
    kept: int
    """Outcomes not discarded yet."""
    memory: int
    """Bytes resident in workers, as last reported."""
    pids: tuple[int, ...]
    """The workers' processes, for whoever measures the owner's own load."""


class Supervisor:
    """Made by `open_supervisor`. A key names one run, until its outcome is discarded."""

    def __init__(self, folder: Path, workers_max: int, template: Template) -> None:
        self._folder = folder
        self._template = template
        self._limiter = trio.CapacityLimiter(workers_max)
        self._waiting_max = workers_max * WAITING_PER_WORKER
        self._runs: dict[str, Course] = {}
        self._kept: dict[str, Path] = {}
        self._numbers = 0
        self._lent: set[Worker] = set()
        self._standbys = trio.Semaphore(workers_max)
        self._started = self._ended = self._cancelled = 0
        self._lost = self._late = self._turned_away = 0

    async def run(
        self,
        key: str,
        job: Job,
        module: Path,
        inputs: Mapping[str, Path],
        *,
        on_progress: Callable[[int], None],
        cpu_milli: int = CORE_MILLI,
        beginning: Beginning | None = None,
        keep: Keep | None = None,
        standby: Standby | None = None,
    ) -> Outcome | Suspended:
        """Run *job* to its end, or until it is suspended. *inputs* says where each of its inputs
        lies, by name; *beginning* what to go on from, whose files are moved from where they lie.
        Of a core it takes *cpu_milli* thousandths at most; its wall limit counts the rests too.
        A *standby* for the same job and inputs is made its worker; Unprepared where that fails.

        *on_progress* hears of the fuel burnt, the beginning's included. *keep* makes a state of it
        where one is asked for. Cancelling kills the worker and removes its files.
        Raises WorkerLost where the run failed by no fault of the task, Unavailable where too many
        are waiting.
        """
        assert key not in self._runs, key
        assert key not in self._kept, key
        assert {name for name, _ in job.inputs} == set(inputs)
        if self._limiter.statistics().tasks_waiting >= self._waiting_max:
            self._turned_away += 1
            raise Unavailable(f"{self._waiting_max} runs are waiting for a worker already")
        scratch = standby.scratch if standby else self.next_scratch()
        run = Course(scratch, Stopwatch(is_paused=False), keep)
        self._runs[key] = run
        has_ended = False
        try:
            async with self._limiter:
                order = standby.order if standby else self._order(job, module, inputs, scratch)
                order = evolve(order, cpu_milli=cpu_milli, is_moved=beginning is not None)
                if beginning is not None:
                    await trio.to_thread.run_sync(_put_in_place, beginning, scratch)
                outcome = await self._run(run, job, order, beginning, standby, on_progress)
            has_ended = isinstance(outcome, Outcome)
        except WorkerLost as lost:
            self._lost += 1
            if standby is not None and not run.has_started:
                raise Unprepared(str(lost)) from lost
            raise
        except trio.Cancelled:
            self._cancelled += 1
            raise
        finally:
            del self._runs[key]
            if not has_ended:
                await remove(run.scratch)
        self._ended += 1
        if has_ended:
            self._kept[key] = scratch
        return outcome

    def pause(self, key: str) -> None:
        """Stop the clock and the process of a run. Nothing happens where there is no such run."""
        run = self._runs.get(key)
        if run is not None:
            run.pause()

    def resume(self, key: str) -> None:
        """Undo `pause`."""
        run = self._runs.get(key)
        if run is not None:
            run.go_on()

    async def checkpoint(self, key: str) -> Kept | Stays:
        """Make a state of a run, which goes on."""
        run = self._runs.get(key)
        return await run.checkpoint() if run is not None else _GONE

    async def suspend(self, key: str) -> Suspended | Stays:
        """Make a state of a run, and end it: how it ends, as soon as that is certain."""
        run = self._runs.get(key)
        return await run.suspend() if run is not None else _GONE

    async def discard(self, key: str) -> None:
        """Remove what an outcome left behind, if there is one of that name."""
        scratch = self._kept.pop(key, None)
        if scratch is not None:
            await remove(scratch)

    def statistics(self) -> Statistics:
        runs = self._runs.values()
        return Statistics(
            started=self._started,
            ended=self._ended,
            cancelled=self._cancelled,
            lost=self._lost,
            late=self._late,
            turned_away=self._turned_away,
            template_starts=self._template.starts,
            running=sum(run.worker is not None for run in runs) + len(self._lent),
            paused=sum(run.watch.is_paused for run in runs),
            kept=len(self._kept),
            memory=sum(run.memory for run in runs),
            pids=tuple(
                worker.pid
                for worker in (*(run.worker for run in runs), *self._lent)
                if worker is not None
            ),
        )

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Worker]:
        """A worker for a series, one of those there may be at a time; it ends with the block.

        Raises WorkerLost.
        """
        async with self._limiter:
            worker = await self._template.fork(FORK_SERIES)
            self._lent.add(worker)
            try:
                yield worker
            finally:
                self._lent.remove(worker)
                await worker.end()

    @asynccontextmanager
    async def stand_by(
        self, job: Job, module: Path, inputs: Mapping[str, Path], snapshot: Path
    ) -> AsyncIterator[Standby]:
        """A worker with a state of *job* in its memory, as many as may run; it ends with the block,
        unless `run` has taken it. The state's file is moved from where it lies.

        Raises Unavailable where there are too many, WorkerLost where it cannot.
        """
        try:
            self._standbys.acquire_nowait()
        except trio.WouldBlock:
            raise Unavailable("as many workers stand by as may run") from None
        scratch = self.next_scratch()
        standby: Standby | None = None
        try:
            order = evolve(self._order(job, module, inputs, scratch), is_moved=True)
            worker = await self._template.fork()
            standby = Standby(order, worker, on_taken=self._standbys.release)
            await standby.start(snapshot)
            await keep_compiled(scratch / FRESH, Path(order.kept))
            yield standby
        finally:
            if standby is None or not standby.is_taken:
                if standby is not None:
                    await standby.worker.end()
                await remove(scratch)
                self._standbys.release()

    def next_scratch(self) -> Path:
        """Where a run or a series may have its files; with the supervisor they go at the latest."""
        self._numbers += 1
        return self._folder / "tasks" / str(self._numbers)

    def place_of(self, module: Cid) -> Path:
        """Where *module* is kept compiled."""
        return place_of(self._folder / "compiled", module)

    # --- one run ------------------------------------------------------------------------------

    def _order(self, job: Job, module: Path, inputs: Mapping[str, Path], scratch: Path) -> RunJob:
        make_private(scratch, scratch / "out", scratch / "tmp")
        return order_of(job, module, inputs, scratch, self.place_of(job.module), CORE_MILLI)

    async def _run(
        self,
        run: Course,
        job: Job,
        order: RunJob,
        beginning: Beginning | None,
        standby: Standby | None,
        on_progress: Callable[[int], None],
    ) -> Outcome | Suspended:
        run.worker = standby.taken() if standby else await self._template.fork()
        self._started += 1
        try:
            if run.watch.is_paused:
                run.pause()
            if standby is None:
                await run.worker.send(order)
            if beginning is not None:
                begin = Begin(beginning.shared, beginning.fuel, order.cpu_milli)
                await run.worker.send_frames(encode_order(begin))
            ended = await self._follow(run, job, Path(order.kept), on_progress)
        except WorkerDied:
            await run.settled()
            how = await run.worker.end()
            if run.suspended is not None:
                return run.suspended
            if run.has_started or how not in COMPILER_ENDS:
                raise WorkerLost(how_lost(run.has_started, how)) from None
            ended = refused(COMPILER_ENDS[how])
        except PeerError as error:
            raise WorkerLost(f"the worker broke the protocol: {error}") from None
        finally:
            run.close()
            await run.worker.end()
            run.worker = None
        if standby is not None and not run.has_started:
            raise WorkerLost(ended.detail)
        await remove(run.scratch / "tmp")
        return Outcome(
            status=ended.status,
            exit_code=ended.exit_code,
            detail=ended.detail,
            fuel=ended.fuel,
            run_ms=round(run.watch.elapsed * 1000) if run.has_started else 0,
            out=run.scratch / "out",
            stdout=ended.stdout,
            stderr=ended.stderr,
        )

    async def _follow(
        self, run: Course, job: Job, kept: Path, on_progress: Callable[[int], None]
    ) -> Ended:
        """Listen to the worker until it has ended, or is late."""
        told = -math.inf
        while True:
            report = await self._next_report(run, job)
            match report:
                case None:
                    return self._end_late(run, job)
                case Ready():
                    pass
                case StartedRunning(can_move=can_move):
                    run.has_started, run.can_move = True, can_move
                    run.watch = Stopwatch(is_paused=run.watch.is_paused)
                    await keep_compiled(run.scratch / FRESH, kept)
                case Progress(fuel=fuel, rss=rss):
                    check_fuel(run.fuel <= fuel <= job.fuel)
                    run.fuel, run.memory = fuel, rss
                    if trio.current_time() - told >= PROGRESS_S:
                        told = trio.current_time()
                        on_progress(fuel)
                case Still() | Unmoved():
                    await run.answer(report, job)
                case Ended() as ended:
                    check_fuel(run.fuel <= ended.fuel <= job.fuel)
                    return ended
                case Failed(reason=reason):
                    raise WorkerLost(reason)

    async def _next_report(self, run: Course, job: Job) -> Report | None:
        """None when the time is over."""
        assert run.worker is not None
        while True:
            left = (job.wall_ms / 1000 if run.has_started else COMPILE_S) - run.watch.elapsed
            if left <= 0:
                return None
            with trio.move_on_after(max(left, _PAUSED_TICK_S) if run.watch.is_paused else left):
                return await run.worker.report()

    def _end_late(self, run: Course, job: Job) -> Ended:
        self._late += 1
        if not run.has_started:
            return refused(f"compiling it takes over {COMPILE_S:.0f} s")
        return Ended("wall-limit", 0, f"it ran for {job.wall_ms} ms", run.fuel, b"", b"")


@asynccontextmanager
async def open_supervisor(folder: Path, *, workers_max: int) -> AsyncIterator[Supervisor]:
    """A supervisor with its files in *folder*: compiled modules stay, the rest goes in the end."""
    assert workers_max > 0
    folder = _absolute(folder)
    await remove(folder / "tasks")
    make_private(folder, folder / "tasks", folder / "compiled")
    async with open_template(folder) as template:
        try:
            yield Supervisor(folder, workers_max, template)
        finally:
            await remove(folder / "tasks")


def order_of(
    job: Job,
    module: Path,
    inputs: Mapping[str, Path],
    scratch: Path,
    kept: Path,
    cpu_milli: int,
) -> RunJob:
    """What a worker is told that begins anew."""
    return RunJob(
        encode(job),
        str(_absolute(module)),
        tuple((name, str(_absolute(path))) for name, path in sorted(inputs.items())),
        str(scratch),
        kept=str(kept),
        cpu_milli=cpu_milli,
        is_moved=False,
    )


async def keep_compiled(fresh: Path, kept: Path) -> None:
    try:
        await trio.to_thread.run_sync(take, fresh, kept)
    except OSError as error:
        raise WorkerLost(f"cannot keep a compiled module: {error}") from error


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def make_private(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)


def refused(why: str) -> Ended:
    return Ended("refused", 0, f"the module cannot run here: {why}", 0, b"", b"")


def how_lost(has_started: bool, how: str) -> str:
    """Why a worker is lost that ended so."""
    when = "while its task ran" if has_started else "before its task ran"
    why = ": a system call that none makes, as code does that escaped" if how == "SIGSYS" else ""
    return f"the worker died {when} ({how}{why})"


def check_fuel(is_sane: bool) -> None:
    if not is_sane:
        raise PeerError("a worker whose fuel runs backwards or beyond its limit")


def _put_in_place(beginning: Beginning, scratch: Path) -> None:
    put_rest(beginning.snapshot, scratch)
    put_files(beginning.out, scratch / "out")
    put_files(beginning.tmp, scratch / "tmp")


async def remove(path: Path) -> None:
    """A stranger's files may be many: not on the event loop. What resists is left for later."""
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(lambda: shutil.rmtree(path, ignore_errors=True))
