"""A series: many short tasks of one module, in workers that keep it from one task to the next.

Each task is a job as any other, and ends as it would have ended alone: that is what makes its bill
one that anybody can run again. What is shared is named beforehand, in a pattern: the module, the
inputs, the most memory and disk. What is a task's own travels in its job, as arguments,
variables and seed. A task counts as begun when the one before it came back.
"""

from __future__ import annotations

import math
import signal
import stat
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio
from attrs import define, field, frozen

from mesh.errors import PeerError, Refused, Unavailable
from mesh.runtime.frames import (
    FRESH,
    HEADER,
    Ended,
    Failed,
    Progress,
    Ready,
    StartedRunning,
    encode_run,
)
from mesh.runtime.manifest import Job, encode
from mesh.runtime.pace import CORE_MILLI
from mesh.runtime.stopwatch import Stopwatch
from mesh.runtime.supervisor import (
    COMPILE_S,
    COMPILER_ENDS,
    Outcome,
    Supervisor,
    WorkerLost,
    check_fuel,
    how_lost,
    keep_compiled,
    make_private,
    order_of,
    refused,
    remove,
)
from mesh.runtime.workers import Worker, WorkerDied

DEPTH = 8
"""Tasks that a worker has at a time, so that it never waits for the next."""
SHORT_S = 0.05
"""A worker whose last task took longer has two: others shall not wait behind a long one."""
WAITING_PER_WORKER = 64
"""Tasks that may wait for a worker; more are turned away."""
DESK, LEFT_IN_TMP = "desk", ".tmp"
"""As series_worker.py names them, which loads wasmtime."""


@frozen
class SeriesStatistics:
    """Counts since the start, and what is there now."""

    ended: int
    lost: int
    """Tasks that ran when their worker died; those behind them went to the next."""
    late: int
    turned_away: int
    abandoned: int
    """Tasks that nobody waited for any more."""
    waiting: int
    running: int
    """Tasks that workers have."""
    lives: int
    """Workers there have been."""
    kept: int


@define(eq=False)
class _Task:
    job: Job
    frame: bytes
    on_progress: Callable[[int], None]
    done: trio.Event
    result: Outcome | WorkerLost | None = None
    fuel: int = 0
    is_abandoned: bool = False


@define(eq=False)
class _Life:
    """One worker, from its birth to its end."""

    worker: Worker
    scratch: Path
    watch: Stopwatch
    """How long the first of `tasks` has run."""
    tasks: deque[_Task]
    """What it has, in the order it runs them."""
    frames: bytearray
    """Not sent yet."""
    has_frames: trio.Event
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    """Of the waiting for its next report; its deadline is that of the task that runs."""
    has_started: bool = False
    ended: int = 0
    last_s: float = 0.0

    @property
    def room(self) -> int:
        return (DEPTH if self.last_s < SHORT_S else 2) - len(self.tasks)


class Series:
    """Made by `open_series`."""

    def __init__(
        self,
        supervisor: Supervisor,
        pattern: Job,
        module: Path,
        inputs: Mapping[str, Path],
        workers: int,
        cpu_milli: int,
    ) -> None:
        self._supervisor = supervisor
        self._pattern, self._module, self._inputs = pattern, module, inputs
        self._cpu_milli = cpu_milli
        self._place = supervisor.place_of(pattern.module)
        self._scratch = supervisor.next_scratch()
        self._nothing = self._scratch / "nothing"
        make_private(self._scratch, self._nothing, self._scratch / "kept")
        self._waiting_max = workers * WAITING_PER_WORKER
        self._waiting: deque[_Task] = deque()
        self._has_waiting = trio.Event()
        self._lives: list[_Life] = []
        self._kept: set[Path] = set()
        self._refusal: Ended | None = None
        self._is_paused = False
        self._ended = self._lost = self._late = self._turned_away = self._abandoned = 0
        self._births = self._outputs = 0

    async def run(
        self, job: Job, *, on_progress: Callable[[int], None] = lambda _: None
    ) -> Outcome:
        """Run *job*, one of the pattern, to its end. As Supervisor.run; the outcome is kept until
        `discard`. Raises Refused where it is not of the pattern, WorkerLost, Unavailable.
        """
        self._check(job)
        if len(self._waiting) >= self._waiting_max:
            self._turned_away += 1
            raise Unavailable(f"{self._waiting_max} tasks are waiting for a worker already")
        data = encode(job)
        task = _Task(job, len(data).to_bytes(HEADER, "big") + data, on_progress, trio.Event())
        self._queue(task)
        try:
            await task.done.wait()
        except trio.Cancelled:
            self._abandon(task)
            raise
        if isinstance(task.result, WorkerLost):
            raise task.result
        assert task.result is not None
        return task.result

    def pause(self) -> None:
        """Stop the clocks and the processes."""
        self._is_paused = True
        for life in self._lives:
            life.watch.pause()
            life.scope.deadline = math.inf
            life.worker.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        self._is_paused = False
        for life in self._lives:
            life.watch.go_on()
            life.scope.deadline = _deadline(life)
            life.worker.signal(signal.SIGCONT)

    async def discard(self, outcome: Outcome) -> None:
        """Remove what a task left, if it left anything."""
        if outcome.out in self._kept:
            self._kept.remove(outcome.out)
            await remove(outcome.out)

    def statistics(self) -> SeriesStatistics:
        return SeriesStatistics(
            ended=self._ended,
            lost=self._lost,
            late=self._late,
            turned_away=self._turned_away,
            abandoned=self._abandoned,
            waiting=len(self._waiting),
            running=sum(len(life.tasks) for life in self._lives),
            lives=self._births,
            kept=len(self._kept),
        )

    # --- tasks --------------------------------------------------------------------------------

    def _check(self, job: Job) -> None:
        pattern = self._pattern
        if job.module != pattern.module or not set(job.inputs) <= set(pattern.inputs):
            raise Refused("the job has another module or other inputs than its series")
        if job.memory > pattern.memory or job.disk > pattern.disk:
            raise Refused("the job asks for more memory or disk than its series has")

    def _queue(self, task: _Task) -> None:
        """To the worker that has least to do, where one has room."""
        life = max(self._lives, key=lambda life: life.room, default=None)
        if life is not None and life.room > 0 and not self._waiting:
            _hand(life, task)
        else:
            self._waiting.append(task)
            self._has_waiting.set()

    def _refill(self, life: _Life) -> None:
        while self._waiting and life.room > 0:
            _hand(life, self._waiting.popleft())

    def _abandon(self, task: _Task) -> None:
        """Nobody waits for it: it is forgotten, or its worker killed if it runs."""
        task.is_abandoned = True
        self._abandoned += 1
        if task in self._waiting:
            self._waiting.remove(task)
        for life in self._lives:
            _kill_if_in_vain(life)

    def _tell(self, task: _Task, result: Outcome | WorkerLost) -> None:
        if isinstance(result, WorkerLost):
            self._lost += not task.is_abandoned
        else:
            self._ended += not task.is_abandoned
        task.result = result
        task.done.set()

    # --- workers ------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Be one of its workers, again and again."""
        while True:
            await self._wait_for_tasks()
            try:
                async with self._supervisor.lend() as worker:
                    life = self._begin(worker)
                    try:
                        result = await self._live(life)
                        await self._end(life, result, await worker.end())
                    finally:
                        self._close_all(life.tasks)
                        self._lives.remove(life)
                        await remove(life.scratch)
            except WorkerLost as lost:  # none is to be had
                if self._waiting:
                    self._tell(self._waiting.popleft(), lost)

    async def _wait_for_tasks(self) -> None:
        while not self._waiting or self._refusal is not None:
            while self._waiting:
                assert self._refusal is not None
                task = self._waiting.popleft()
                self._tell(task, _outcome(self._refusal, self._nothing, 0.0))
            if self._has_waiting.is_set():
                self._has_waiting = trio.Event()
            await self._has_waiting.wait()

    def _begin(self, worker: Worker) -> _Life:
        self._births += 1
        scratch = self._scratch / str(self._births)
        make_private(scratch, *(scratch / DESK / name for name in ("out", "tmp")))
        order = order_of(
            self._pattern, self._module, self._inputs, scratch, self._place, self._cpu_milli
        )
        frames = bytearray(encode_run(order))
        life = _Life(worker, scratch, self._new_watch(), deque(), frames, trio.Event())
        self._lives.append(life)
        if self._is_paused:
            worker.signal(signal.SIGSTOP)
        self._refill(life)
        return life

    async def _live(self, life: _Life) -> Ended | WorkerLost | None:
        """Until it is over: what the task that ran is told; None where the worker died."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_feed, life)
            try:
                return await self._listen(life)
            except WorkerDied:
                return None
            except WorkerLost as lost:
                return lost
            except PeerError as error:
                return WorkerLost(f"the worker broke the protocol: {error}")
            finally:
                nursery.cancel_scope.cancel()

    async def _listen(self, life: _Life) -> Ended:
        """Until the task that runs is late; how it ended."""
        while True:
            with trio.CancelScope(deadline=_deadline(life)) as life.scope:
                report = await life.worker.report()
            if life.scope.cancelled_caught:
                return self._end_late(life)
            match report:
                case Ready():
                    pass
                case StartedRunning():
                    life.has_started = True
                    await keep_compiled(life.scratch / FRESH, self._place)
                    life.watch = self._new_watch()
                case Progress(fuel=fuel):
                    task = _first(life)
                    check_fuel(task.fuel <= fuel <= task.job.fuel)
                    task.fuel = fuel
                    task.on_progress(fuel)
                case Ended() as ended:
                    await self._take_back(life, ended)
                case Failed(reason=reason):
                    raise WorkerLost(reason)

    async def _take_back(self, life: _Life, ended: Ended) -> None:
        """The first task of *life* has ended; the next one runs."""
        task = _first(life)
        check_fuel(task.fuel <= ended.fuel <= task.job.fuel)
        number = str(life.ended + 1)
        out = self._keep(life.scratch / DESK / number)
        left = life.scratch / DESK / (number + LEFT_IN_TMP)
        if left.exists():
            await remove(left)
        life.ended += 1
        life.last_s = life.watch.elapsed
        life.tasks.popleft()
        outcome = _outcome(ended, out, life.last_s if life.has_started else 0.0)
        self._tell(task, outcome)
        if task.is_abandoned:
            await self.discard(outcome)
        life.watch = self._new_watch()
        self._refill(life)
        _kill_if_in_vain(life)

    def _end_late(self, life: _Life) -> Ended:
        self._late += 1
        if not life.has_started:
            self._refusal = refused(f"compiling it takes over {COMPILE_S:.0f} s")
            return self._refusal
        task = _first(life)
        return Ended("wall-limit", 0, f"it ran for {task.job.wall_ms} ms", task.fuel, b"", b"")

    async def _end(self, life: _Life, result: Ended | WorkerLost | None, how: str) -> None:
        """Tell the task that ran, and give those behind it to whoever has room."""
        if result is None and how in COMPILER_ENDS and not life.has_started:
            result = self._refusal = refused(COMPILER_ENDS[how])
        elif result is None:
            result = WorkerLost(how_lost(life.has_started, how))
        if life.tasks:
            task = life.tasks.popleft()
            self._tell(task, self._last_of(life, result))
        self._waiting.extendleft(task for task in reversed(life.tasks) if not task.is_abandoned)
        life.tasks.clear()
        for other in self._lives:
            if other is not life:
                self._refill(other)
        self._has_waiting.set()

    def _last_of(self, life: _Life, result: Ended | WorkerLost) -> Outcome | WorkerLost:
        """What the task that ran last is told."""
        if isinstance(result, WorkerLost):
            return result
        try:
            out = self._keep(life.scratch / DESK / "out")
        except PeerError as error:
            return WorkerLost(f"the worker broke the protocol: {error}")
        except WorkerLost as lost:
            return lost
        return _outcome(result, out, life.watch.elapsed if life.has_started else 0.0)

    def _keep(self, out: Path) -> Path:
        """Take what a task left from where its worker may write; the same folder for all who left
        nothing.

        Raises PeerError, WorkerLost.
        """
        try:
            if not stat.S_ISDIR(out.lstat().st_mode):
                raise PeerError("a worker that leaves something else than a folder")
            if not any(out.iterdir()):
                return self._nothing
            self._outputs += 1
            kept = self._scratch / "kept" / str(self._outputs)
            out.rename(kept)
        except FileNotFoundError:
            return self._nothing
        except OSError as error:
            raise WorkerLost(f"cannot keep what a task left: {error.strerror}") from error
        self._kept.add(kept)
        return kept

    def _new_watch(self) -> Stopwatch:
        return Stopwatch(is_paused=self._is_paused)

    async def aclose(self) -> None:
        """Whoever still waits is told so."""
        self._close_all(self._waiting)
        await remove(self._scratch)

    def _close_all(self, tasks: deque[_Task]) -> None:
        while tasks:
            self._tell(tasks.popleft(), WorkerLost("the series was closed"))


@asynccontextmanager
async def open_series(
    supervisor: Supervisor,
    pattern: Job,
    module: Path,
    inputs: Mapping[str, Path],
    *,
    workers: int,
    cpu_milli: int = CORE_MILLI,
) -> AsyncIterator[Series]:
    """A series of tasks of *pattern* on up to *workers* of the supervisor's, which it holds from
    the first task on. *inputs* says where each input of the pattern lies. Each worker takes
    *cpu_milli* thousandths of a core at most.
    """
    assert workers > 0
    assert {name for name, _ in pattern.inputs} == set(inputs)
    series = Series(supervisor, pattern, module, inputs, workers, cpu_milli)
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(workers):
                nursery.start_soon(series.serve)
            yield series
            nursery.cancel_scope.cancel()
    finally:
        await series.aclose()


async def _feed(life: _Life) -> None:
    """Send what there is, as much at once as has gathered."""
    with suppress(WorkerDied):  # who listens will notice
        while True:
            if not life.frames:
                life.has_frames = trio.Event()
                await life.has_frames.wait()
            frames, life.frames = bytes(life.frames), bytearray()
            await life.worker.send_frames(frames)


def _hand(life: _Life, task: _Task) -> None:
    life.tasks.append(task)
    life.frames += task.frame
    life.has_frames.set()
    if len(life.tasks) == 1:
        life.watch = Stopwatch(is_paused=life.watch.is_paused)
        life.scope.deadline = _deadline(life)


def _first(life: _Life) -> _Task:
    if not life.tasks:
        raise PeerError("a worker that speaks of a task it does not have")
    return life.tasks[0]


def _deadline(life: _Life) -> float:
    """When the task that runs is late; before the first one it is the compiler."""
    if life.watch.is_paused or not life.tasks:
        return math.inf
    longest = life.tasks[0].job.wall_ms / 1000 if life.has_started else COMPILE_S
    return trio.current_time() + longest - life.watch.elapsed


def _kill_if_in_vain(life: _Life) -> None:
    if life.tasks and life.tasks[0].is_abandoned:
        life.worker.signal(signal.SIGKILL)


def _outcome(ended: Ended, out: Path, ran_s: float) -> Outcome:
    return Outcome(
        status=ended.status,
        exit_code=ended.exit_code,
        detail=ended.detail,
        fuel=ended.fuel,
        run_ms=round(ran_s * 1000),
        out=out,
        stdout=ended.stdout,
        stderr=ended.stderr,
    )
