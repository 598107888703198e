"""What this machine has, and what its owner uses of it: the mesh's own processes are subtracted.

A scheduler that saw its own tasks as load would flee from itself. So this process and all that it
started, workers and their children, are taken out: processor time exactly (a child's time moves to
its parent when it ends), memory by proportional set size where the kernel tells it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import psutil
import trio
from attrs import frozen

from mesh.resources.capacity import Capacity
from mesh.resources.cgroup import ControlGroup
from mesh.sansio import LoadSampled

EVERY_S = 10.0
FIRST_S = 1.0
"""The first sample comes early: without one the node has no outlook."""


@frozen
class Usage:
    """What some set of processes has used and holds: seconds of processor time, bytes of RAM."""

    cpu_s: float
    memory: int


class Machine(Protocol):
    """Where the figures come from: the operating system, or a test's."""

    def cpu_milli(self) -> int:
        """The processor time that there is: thousandths of a core."""

    def memory(self) -> int:
        """The RAM that there is, bytes."""

    def disk_free(self, folder: Path) -> int:
        """Bytes free for us in the file system of *folder*."""

    def everybody(self) -> Usage:
        """Used by all processes, ours included."""

    def ours(self) -> Usage:
        """Used by this process and by those that it started, whether or not they still run."""


class Probe:
    """Measures the owner's load between one sample and the next."""

    def __init__(self, machine: Machine, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._machine = machine
        self._since = self._read(clock())

    def capacity(self, folder: Path) -> Capacity:
        """All that the machine has; disk: what is free where *folder* is, or will be."""
        cpu_milli = self._machine.cpu_milli()
        return Capacity(
            cpu_milli=cpu_milli,
            memory=self._machine.memory(),
            disk=self._machine.disk_free(_nearest(folder)),
            slots=-(-cpu_milli // 1000),
        )

    def sample(self, now: float) -> LoadSampled:
        """The owner's load at *now* (of `clock`): processor time since the last sample, RAM now.
        Looks at every process, which takes milliseconds: for a thread."""
        before, self._since = self._since, self._read(now)
        _, everybody, ours = self._since
        elapsed = max(1e-3, now - before[0])
        theirs = (everybody.cpu_s - before[1].cpu_s) - max(0.0, ours.cpu_s - before[2].cpu_s)
        return LoadSampled(
            cpu_milli=_within(round(1000 * theirs / elapsed), self._machine.cpu_milli()),
            memory=_within(everybody.memory - ours.memory, self._machine.memory()),
        )

    def _read(self, now: float) -> tuple[float, Usage, Usage]:
        return now, self._machine.everybody(), self._machine.ours()


async def watch(
    probe: Probe, post: Callable[[LoadSampled], Awaitable[None]], every_s: float = EVERY_S
) -> None:
    """Post a sample early, and then one *every_s* seconds, until cancelled."""
    await trio.sleep(min(FIRST_S, every_s))
    while True:
        await post(await trio.to_thread.run_sync(probe.sample, probe.clock()))
        await trio.sleep(every_s)


class ThisMachine:
    """The operating system's figures, within our control group's limits if there are any."""

    def __init__(self, group: ControlGroup | None = None) -> None:
        group = group or ControlGroup()
        self._cpus = _own_cpus()
        self._cpu_limit = group.cpu()
        self._memory_limit = group.memory()
        self._self = psutil.Process()

    def cpu_milli(self) -> int:
        """The cores that we may run on, or our group's quota where that is less."""
        cores = 1000 * len(self._cpus)
        return min(cores, self._cpu_limit.cpu_milli) if self._cpu_limit else cores

    def memory(self) -> int:
        """The machine's RAM, or our group's limit where that is less."""
        total = int(psutil.virtual_memory().total)
        return min(total, self._memory_limit.memory) if self._memory_limit else total

    def disk_free(self, folder: Path) -> int:
        """As `df` says to an unprivileged user."""
        return int(psutil.disk_usage(str(folder)).free)

    def everybody(self) -> Usage:
        """Of our group where it is limited, else of the machine (on the cores that we may use)."""
        return Usage(self._cpu_s(), self._memory_used())

    def _cpu_s(self) -> float:
        if self._cpu_limit and self._cpu_limit.cpu_milli < 1000 * len(self._cpus):
            return self._cpu_limit.used_s()
        times = psutil.cpu_times(percpu=True)
        return sum(_busy_s(times[cpu]._asdict()) for cpu in self._cpus if cpu < len(times))

    def _memory_used(self) -> int:
        system = psutil.virtual_memory()
        if self._memory_limit and self._memory_limit.memory < system.total:
            return self._memory_limit.used()
        return int(system.total - system.available)

    def ours(self) -> Usage:
        """This process and its descendants; what has ended counts in whoever waited for it."""
        usages = [_usage(process) for process in (self._self, *_descendants(self._self))]
        return Usage(sum(used.cpu_s for used in usages), sum(used.memory for used in usages))


def _own_cpus() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _busy_s(times: dict[str, float]) -> float:
    """Linux counts a guest's time in the host's user time as well; waiting for a disk is idle."""
    return sum(times.values()) - sum(
        times.get(name, 0.0) for name in ("idle", "iowait", "guest", "guest_nice")
    )


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _usage(process: psutil.Process) -> Usage:
    """Nothing, of a process that has gone while we looked: its parent has its time by now."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return Usage(0.0, 0)
    # An operating system without a children's account has these fields as zero, or not at all.
    ended = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return Usage(times.user + times.system + ended, _memory_of(process))


def _memory_of(process: psutil.Process) -> int:
    try:
        found = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(found, "pss", found.rss))  # what is shared counts once


def _nearest(folder: Path) -> Path:
    """*folder*, or the nearest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _within(value: int, most: int) -> int:
    return max(0, min(value, most))
