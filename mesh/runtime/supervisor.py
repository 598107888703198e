"""The supervisor: runs jobs in worker processes of their own, and outlives whatever they do.

It never imports wasmtime. What a run may cost is bounded here a second time, from outside: its
wall time by a clock that pauses with it, its process by SIGKILL, its files by removal.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import define, frozen

from mesh.errors import PeerError, Unavailable
from mesh.ids import Cid
from mesh.runtime.compiled import place_of, take
from mesh.runtime.frames import (
    FRESH,
    Ended,
    Failed,
    Progress,
    Ready,
    Report,
    RunJob,
    StartedRunning,
)
from mesh.runtime.manifest import Job, encode
from mesh.runtime.pace import CORE_MILLI
from mesh.runtime.sandbox import walls
from mesh.runtime.stopwatch import Stopwatch
from mesh.runtime.template_wire import FORK_SERIES
from mesh.runtime.workers import Template, Worker, WorkerDied, WorkerLost, open_template

__all__ = ["Outcome", "Statistics", "Supervisor", "WorkerLost", "open_supervisor", "walls"]

COMPILE_S = 120.0
"""The longest that getting ready and compiling may take; then the module is refused."""
COMPILER_GAVE_UP = "the compiler gave up, for want of memory or a flaw of its own"
PROGRESS_S = 0.1
"""Progress that comes faster is not passed on."""
WAITING_PER_WORKER = 4
"""Runs that may wait for a worker; more are turned away."""
_PAUSED_TICK_S = 0.25


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


@define(eq=False)
class _Run:
    """A run that has not ended."""

    scratch: Path
    watch: Stopwatch
    worker: Worker | None = None
    has_started: bool = False
    fuel: int = 0
    memory: int = 0

    def pause(self) -> None:
        self.watch.pause()
        if self.worker is not None:
            self.worker.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.watch.go_on()
        if self.worker is not None:
            self.worker.signal(signal.SIGCONT)


class Supervisor:
    """Made by `open_supervisor`. A key names one run, until its outcome is discarded."""

    def __init__(self, folder: Path, workers_max: int, template: Template) -> None:
        self._folder = folder
        self._template = template
        self._limiter = trio.CapacityLimiter(workers_max)
        self._waiting_max = workers_max * WAITING_PER_WORKER
        self._runs: dict[str, _Run] = {}
        self._kept: dict[str, Path] = {}
        self._numbers = 0
        self._lent: set[Worker] = set()
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
    ) -> Outcome:
        """Run *job* to its end. *inputs* says where each of its inputs lies, by name; of a core it
        takes *cpu_milli* thousandths at most, and its wall limit counts the rests too.

        *on_progress* hears of the fuel burnt. Cancelling kills the worker and removes its files.
        Raises WorkerLost where the run failed by no fault of the task, Unavailable where too many
        are waiting.
        """
        assert key not in self._runs, key
        assert key not in self._kept, key
        assert {name for name, _ in job.inputs} == set(inputs)
        if self._limiter.statistics().tasks_waiting >= self._waiting_max:
            self._turned_away += 1
            raise Unavailable(f"{self._waiting_max} runs are waiting for a worker already")
        run = _Run(self.new_scratch(), Stopwatch(is_paused=False))
        self._runs[key] = run
        has_ended = False
        try:
            async with self._limiter:
                outcome = await self._run(run, job, module, inputs, on_progress, cpu_milli)
            has_ended = True
        except WorkerLost:
            self._lost += 1
            raise
        except trio.Cancelled:
            self._cancelled += 1
            raise
        finally:
            del self._runs[key]
            if not has_ended:
                await remove(run.scratch)
        self._ended += 1
        self._kept[key] = run.scratch
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

    def new_scratch(self) -> Path:
        """A folder of its own for a series; it is removed with the supervisor at the latest."""
        self._numbers += 1
        scratch = self._folder / "tasks" / str(self._numbers)
        make_private(scratch)
        return scratch

    def place_of(self, module: Cid) -> Path:
        """Where *module* is kept compiled."""
        return place_of(self._folder / "compiled", module)

    # --- one run ------------------------------------------------------------------------------

    async def _run(
        self,
        run: _Run,
        job: Job,
        module: Path,
        inputs: Mapping[str, Path],
        on_progress: Callable[[int], None],
        cpu_milli: int,
    ) -> Outcome:
        make_private(run.scratch / "out", run.scratch / "tmp")
        kept = self.place_of(job.module)
        order = order_of(job, module, inputs, run.scratch, kept, cpu_milli)
        run.worker = await self._template.fork()
        self._started += 1
        try:
            if run.watch.is_paused:
                run.pause()
            await run.worker.send(order)
            ended = await self._follow(run, job, kept, on_progress)
        except WorkerDied:
            how = await run.worker.end()
            if run.has_started or how != "SIGABRT":
                raise WorkerLost(how_lost(run.has_started, how)) from None
            ended = refused(COMPILER_GAVE_UP)
        except PeerError as error:
            raise WorkerLost(f"the worker broke the protocol: {error}") from None
        finally:
            await run.worker.end()
            run.worker = None
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
        self, run: _Run, job: Job, kept: Path, on_progress: Callable[[int], None]
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
                case StartedRunning():
                    run.has_started = True
                    run.watch = Stopwatch(is_paused=run.watch.is_paused)
                    await keep_compiled(run.scratch / FRESH, kept)
                case Progress(fuel=fuel, rss=rss):
                    check_fuel(run.fuel <= fuel <= job.fuel)
                    run.fuel, run.memory = fuel, rss
                    if trio.current_time() - told >= PROGRESS_S:
                        told = trio.current_time()
                        on_progress(fuel)
                case Ended() as ended:
                    check_fuel(run.fuel <= ended.fuel <= job.fuel)
                    return ended
                case Failed(reason=reason):
                    raise WorkerLost(reason)

    async def _next_report(self, run: _Run, job: Job) -> Report | None:
        """None when the time is over."""
        assert run.worker is not None
        while True:
            left = (job.wall_ms / 1000 if run.has_started else COMPILE_S) - run.watch.elapsed
            if left <= 0:
                return None
            with trio.move_on_after(max(left, _PAUSED_TICK_S) if run.watch.is_paused else left):
                return await run.worker.report()

    def _end_late(self, run: _Run, job: Job) -> Ended:
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
    """What a worker is told."""
    named = tuple((name, str(_absolute(path))) for name, path in sorted(inputs.items()))
    return RunJob(encode(job), str(_absolute(module)), named, str(scratch), str(kept), cpu_milli)


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


async def remove(path: Path) -> None:
    """A stranger's files may be many: not on the event loop. What resists is left for later."""
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(lambda: shutil.rmtree(path, ignore_errors=True))
