"""The simulated workers of one node: a run takes time, and ends as planned or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from attrs import define, evolve

from mesh.ids import TaskId
from mesh.sansio import (
    Checkpointed,
    Run,
    RunEnded,
    RunLost,
    RunProgressed,
    Suspended,
    Unmoved,
)
from mesh.sim.options import Options
from mesh.sim.workload import Plan, state_of

PROGRESS_S = 5.0
_FETCH_TRIES = 10
_FETCH_S = 1.0

Schedule = Callable[[float, Callable[[], None]], None]
"""(seconds from now, what) -> it happens then, unless the node has crashed meanwhile."""
Post = Callable[[RunProgressed | RunEnded | RunLost | Checkpointed | Suspended | Unmoved], None]


@define
class _Worker:
    """One run. *stage* rises with every change of course and makes older plans void."""

    run: Run
    plan: Plan
    speed: float
    """Fuel per second."""
    before: int
    """Fuel that others burnt before us."""
    burnt: float
    """By all together."""
    since: float = 0.0
    spent_s: float = 0.0
    stage: int = 0
    is_burning: bool = False
    is_paused: bool = False
    dies_at: float | None = None
    """The fuel at which the run is lost by no fault of the task."""

    @property
    def ours(self) -> int:
        """Fuel burnt here."""
        return int(self.burnt) - self.before


class Runtime:
    """The workers of one boot of one node."""

    def __init__(
        self,
        options: Options,
        plans: Mapping[TaskId, Plan],
        rng: Random,
        *,
        speed: int,
        clock: Callable[[], float],
        schedule: Schedule,
        post: Post,
        can_fetch: Callable[[Run], bool],
    ) -> None:
        self._options = options
        self._plans = plans
        self._rng = rng
        self._speed = speed
        self._clock = clock
        self._schedule = schedule
        self._post = post
        self._can_fetch = can_fetch
        self._workers: dict[tuple[TaskId, int], _Worker] = {}

    @property
    def workers(self) -> tuple[tuple[TaskId, int], ...]:
        """(task, fence) of every run, paused or not."""
        return tuple(self._workers)

    def start(self, run: Run) -> None:
        """Fetch and run. One run per (task, fence)."""
        key = (run.task, run.fence)
        assert key not in self._workers, "the kernel started a run twice"
        plan = self._plans.get(run.task)
        if plan is None or not is_of(run, plan):  # a liar's task: nothing to fetch
            self._schedule(_FETCH_S, lambda: self._post(_lost(run, "the job is not there")))
            return
        cores = min(1.0, run.work.needs.cpu_milli / 1000)
        before = run.work.moves[-1].fuel if run.work.moves else 0
        speed = max(1.0, self._speed * 1000 * max(cores, 0.001))
        worker = _Worker(run, plan, speed, before, burnt=before)
        if self._rng.random() < self._options.runs_lost:
            worker.dies_at = before + (plan.fuel - before) * self._rng.random()
        self._workers[key] = worker
        self._schedule(self._rng.uniform(0.01, 0.3), lambda: self._fetch(worker, 1))

    def pause(self, task: TaskId, fence: int) -> None:
        worker = self._workers.get((task, fence))
        if worker is not None and not worker.is_paused:
            self._account(worker)
            worker.is_paused = True
            report = RunProgressed(task, fence, worker.ours)
            self._schedule(0.0, lambda: self._post(report))

    def go_on(self, task: TaskId, fence: int) -> None:
        worker = self._workers.get((task, fence))
        if worker is not None and worker.is_paused:
            worker.is_paused = False
            if worker.is_burning:
                self._burn(worker)

    def keep(self, task: TaskId, fence: int, *, is_over: bool) -> None:
        """Keep a run's state at its next check; take it out, where it *is over* with that."""
        worker = self._workers.get((task, fence))
        if worker is None:
            return
        wait = self._rng.choice((0.001, 0.1, 3.0)) * self._rng.uniform(0.5, 2.0)
        self._schedule(wait, lambda: self._keep(worker, is_over=is_over))

    def _keep(self, worker: _Worker, *, is_over: bool) -> None:
        task, fence = worker.run.task, worker.run.fence
        if not self._is_alive(worker):
            return
        is_movable, rng = worker.plan.is_movable, self._rng
        if not is_movable or worker.is_paused or not worker.is_burning or rng.random() < 0.1:
            self._post(Unmoved(task, fence, "it does not reach its check", not is_movable))
            return
        self._account(worker)
        if not is_over:
            self._burn(worker)
            kept = Checkpointed(task, fence, state_of(task, int(worker.burnt)), worker.ours)
            self._post(RunProgressed(task, fence, worker.ours))
            self._schedule(rng.uniform(0.01, 1.0), lambda: self._post(kept))
            return
        del self._workers[task, fence]
        spent_ms = int(worker.spent_s * 1000)
        state = state_of(task, int(worker.burnt))
        self._post(Suspended(task, fence, state, worker.ours, spent_ms))

    def stop(self, task: TaskId, fence: int) -> None:
        """Kill a run. No event follows."""
        worker = self._workers.pop((task, fence), None)
        if worker is not None:
            worker.stage += 1

    def stop_all(self) -> None:
        """The machine went down."""
        for task, fence in list(self._workers):
            self.stop(task, fence)

    def _is_alive(self, worker: _Worker) -> bool:
        return self._workers.get((worker.run.task, worker.run.fence)) is worker

    def _fetch(self, worker: _Worker, attempt: int) -> None:
        if not self._is_alive(worker):
            return
        if self._can_fetch(worker.run):
            worker.is_burning = True
            if not worker.is_paused:
                self._burn(worker)
        elif attempt == _FETCH_TRIES:
            self._lose(worker, "inputs unreachable")
        else:
            self._schedule(_FETCH_S, lambda: self._fetch(worker, attempt + 1))

    def _burn(self, worker: _Worker) -> None:
        worker.since = self._clock()
        worker.stage += 1
        stage = worker.stage
        wait = min(PROGRESS_S, max(0.0, (self._goal(worker) - worker.burnt) / worker.speed))
        self._schedule(wait, lambda: self._tick(worker, stage))

    def _goal(self, worker: _Worker) -> float:
        return worker.plan.fuel if worker.dies_at is None else worker.dies_at

    def _account(self, worker: _Worker) -> None:
        """Book what was burnt since the clock was last started, and stop the clock."""
        if worker.is_burning and not worker.is_paused:
            passed = self._clock() - worker.since
            worker.spent_s += passed
            worker.burnt = min(self._goal(worker), worker.burnt + passed * worker.speed)
            worker.since = self._clock()
        worker.stage += 1

    def _tick(self, worker: _Worker, stage: int) -> None:
        if not self._is_alive(worker) or worker.stage != stage:
            return
        self._account(worker)
        if worker.burnt < self._goal(worker) - 1.0:
            run = worker.run
            self._burn(worker)
            self._post(RunProgressed(run.task, run.fence, worker.ours))
        elif worker.dies_at is None:
            self._finish(worker)
        else:
            self._lose(worker, "the worker was killed")

    def _finish(self, worker: _Worker) -> None:
        run = worker.run
        del self._workers[run.task, run.fence]
        result = worker.plan.result(int(worker.spent_s * 1000), worker.before)
        self._post(RunEnded(run.task, run.fence, result))

    def _lose(self, worker: _Worker, reason: str) -> None:
        del self._workers[worker.run.task, worker.run.fence]
        self._post(_lost(worker.run, reason))


def is_of(run: Run, plan: Plan) -> bool:
    """Whether *run* is the whole of *plan*, or what is left of it from a true state on."""
    work, moves = plan.order.work, run.work.moves
    if not moves:
        return run.work == work
    left = evolve(run.work, moves=(), fuel=run.work.fuel + moves[-1].fuel)
    return left == work and moves[-1].state == state_of(run.task, moves[-1].fuel)


def _lost(run: Run, reason: str) -> RunLost:
    return RunLost(run.task, run.fence, reason)
