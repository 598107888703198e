"""The simulated workers of one node: a run takes time, and ends as planned or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from attrs import define

from mesh.ids import TaskId
from mesh.sansio import Run, RunEnded, RunLost, RunProgressed
from mesh.sim.options import Options
from mesh.sim.workload import Plan

PROGRESS_S = 5.0
_FETCH_TRIES = 10
_FETCH_S = 1.0

Schedule = Callable[[float, Callable[[], None]], None]
"""(seconds from now, what) -> it happens then, unless the node has crashed meanwhile."""
Post = Callable[[RunProgressed | RunEnded | RunLost], None]


@define
class _Worker:
    """One run. *stage* rises with every change of course and makes older plans void."""

    run: Run
    plan: Plan
    speed: float
    """Fuel per second."""
    burnt: float = 0.0
    since: float = 0.0
    spent_s: float = 0.0
    stage: int = 0
    is_burning: bool = False
    is_paused: bool = False
    dies_at: float | None = None
    """The fuel at which the run is lost by no fault of the task."""


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
        if plan is None or plan.order.work != run.work:  # a liar's task: nothing to fetch
            self._schedule(_FETCH_S, lambda: self._post(_lost(run, "the job is not there")))
            return
        cores = min(1.0, run.work.needs.cpu_milli / 1000)
        worker = _Worker(run, plan, max(1.0, self._speed * 1000 * max(cores, 0.001)))
        if self._rng.random() < self._options.runs_lost:
            worker.dies_at = plan.fuel * self._rng.random()
        self._workers[key] = worker
        self._schedule(self._rng.uniform(0.01, 0.3), lambda: self._fetch(worker, 1))

    def pause(self, task: TaskId, fence: int) -> None:
        worker = self._workers.get((task, fence))
        if worker is not None and not worker.is_paused:
            self._account(worker)
            worker.is_paused = True
            report = RunProgressed(task, fence, int(worker.burnt))
            self._schedule(0.0, lambda: self._post(report))

    def go_on(self, task: TaskId, fence: int) -> None:
        worker = self._workers.get((task, fence))
        if worker is not None and worker.is_paused:
            worker.is_paused = False
            if worker.is_burning:
                self._burn(worker)

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
            self._post(RunProgressed(run.task, run.fence, int(worker.burnt)))
        elif worker.dies_at is None:
            self._finish(worker)
        else:
            self._lose(worker, "the worker was killed")

    def _finish(self, worker: _Worker) -> None:
        run = worker.run
        del self._workers[run.task, run.fence]
        result = worker.plan.result(int(worker.spent_s * 1000))
        self._post(RunEnded(run.task, run.fence, result))

    def _lose(self, worker: _Worker, reason: str) -> None:
        del self._workers[worker.run.task, worker.run.fence]
        self._post(_lost(worker.run, reason))


def _lost(run: Run, reason: str) -> RunLost:
    return RunLost(run.task, run.fence, reason)
