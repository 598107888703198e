"""A worker that keeps one module and runs many short tasks of it, each as if it were the only one.

What every task gets anew: memory, tables and variables (a store of its own), descriptors, clock,
chance, arguments, meter. What it leaves in /out and /tmp is set aside under its number before the
next one runs; folders that stayed empty are used again. The walls stand before the first task, so
what any task may read has been named by then.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NoReturn

from attrs import frozen

from mesh.errors import Refused
from mesh.runtime.engine import Guest, GuestMemory, SystemCall, load_module, open_engine
from mesh.runtime.files import DESCRIPTORS_MAX
from mesh.runtime.frames import (
    FRESH,
    Ended,
    Failed,
    Ready,
    RunJob,
    StartedRunning,
    decode_run,
)
from mesh.runtime.landlock import Reach
from mesh.runtime.linkage import Linkage
from mesh.runtime.manifest import Job, decode
from mesh.runtime.pace import Pace
from mesh.runtime.sandbox import confine, narrow
from mesh.runtime.suspension import MovableGuest
from mesh.runtime.trees import HostFailure
from mesh.runtime.worker import (
    HOST_ROOM,
    initial_memory,
    is_movable,
    keep_pace,
    leave,
    limit,
    limit_compiling,
    open_statm,
    receive,
    refused,
    run_guest,
    send,
    start_pace,
    system_calls,
    trees_of,
)

DESK = "desk"
"""The folder in `scratch` that holds out and tmp, and what was set aside."""
LEFT_IN_TMP = ".tmp"
"""Behind the number of a task: what it left in /tmp."""


def serve_series(connection: socket.socket, parent: int) -> NoReturn:
    """Be the worker at the other end of *connection*; the process ends here."""
    leave(parent)
    try:
        send(connection, Ready())
        run = decode_run(receive(connection))
        try:
            for ended in _perform_all(connection, run):
                send(connection, ended)
        except HostFailure as failure:
            send(connection, Failed(str(failure)))
    except (BrokenPipeError, ConnectionResetError, EOFError):
        os._exit(1)  # nobody is there to be told
    os._exit(0)


def _perform_all(connection: socket.socket, run: RunJob) -> Iterator[Ended]:
    """The end of each task, in the order they come. Raises HostFailure, and EOFError at last."""
    pattern, scratch = decode(run.job), Path(run.scratch)
    if sys.platform == "linux":
        limit(resource.RLIMIT_DATA, 2 * pattern.memory + HOST_ROOM)
    limit_compiling()
    engine = open_engine()
    statm = open_statm()
    desk = scratch / DESK
    _confine(run, desk)
    try:
        kept, fresh = Path(run.kept), scratch / FRESH
        module = load_module(engine, pattern.module, Path(run.module), kept, fresh)
        linkage = Linkage(engine, module)
    except Refused as refusal:
        while True:
            receive(connection)
            yield refused("refused", refusal.reason)
    least, can_move = initial_memory(module), is_movable(module)
    inputs, pace = dict(run.inputs), start_pace(run.cpu_milli)
    bench = Bench(connection, linkage, can_move, least, inputs, desk, statm, pace)
    _narrow(run, desk)
    bench.try_out(pattern)
    _limit_all(pattern)
    send(connection, StartedRunning(can_move))
    for number in count(1):
        ended = bench.perform(decode(receive(connection)))
        set_aside(str(desk), number)
        keep_pace(pace, lambda: None)
        yield ended


@frozen
class Bench:
    """What the tasks of a series share, and where they run one after another."""

    connection: socket.socket
    linkage: Linkage
    can_move: bool
    """Whether it could: tasks of a series are too short to."""
    least_memory: int
    inputs: dict[str, str]
    desk: Path
    statm: int | None
    pace: Pace
    """One for all of them: each alone would be over before it had to rest."""

    def try_out(self, pattern: Job) -> None:
        """With the first instance wasmtime makes a memory file of any size, before the limits."""
        with suppress(Refused):
            self._make(1, pattern.memory, _no_call).close()

    def perform(self, job: Job) -> Ended:
        """Run one task, as worker.py runs a task of its own."""
        if self.least_memory > job.memory:
            why = f"it starts with {self.least_memory} bytes of {job.memory}"
            return refused("out-of-memory", why)
        inputs = {name: Path(self.inputs[name]) for name, _ in job.inputs}
        wasi = system_calls(job, trees_of(inputs, self.desk), lambda: guest.fuel_used)

        def call(name: str, memory: GuestMemory, args: tuple[int, ...]) -> int:
            return wasi.call(name, memory, args)

        try:
            guest = self._make(job.fuel, job.memory, call)
        except Refused as refusal:
            return refused("refused", refusal.reason)
        _limit_time(job)
        try:
            return run_guest(self.connection, job, guest, wasi, self.statm, self.pace, guest.run)
        finally:
            guest.close()

    def _make(self, fuel: int, memory: int, call: SystemCall) -> Guest:
        link = self.linkage
        make = MovableGuest if self.can_move else Guest
        return make(link.engine, link.module, fuel=fuel, memory=memory, call=call, linkage=link)


def set_aside(desk: str, number: int) -> None:
    """Leave out and tmp empty in *desk*; what was in them lies beside them. Raises HostFailure."""
    try:
        for name, aside in (("out", str(number)), ("tmp", f"{number}{LEFT_IN_TMP}")):
            folder = f"{desk}/{name}"
            with os.scandir(folder) as found:
                is_empty = next(found, None) is None
            if not is_empty:
                os.rename(folder, f"{desk}/{aside}")
                os.mkdir(folder, 0o700)
    except OSError as error:
        raise HostFailure(f"cannot set a task's files aside: {error.strerror}") from error


def _no_call(name: str, memory: GuestMemory, args: tuple[int, ...]) -> int:
    raise HostFailure("an instance that is tried does not run")


# --- confinement ------------------------------------------------------------------------------


def _confine(run: RunJob, desk: Path) -> None:
    """As worker.py does. Raises HostFailure."""
    inputs = [path for _, path in run.inputs]
    try:
        os.chdir(desk)
        confine(Reach((run.module, run.kept, *inputs), (run.scratch,)))
    except OSError as error:
        raise HostFailure(f"the sandbox does not stand: {error.strerror}") from error


def _narrow(run: RunJob, desk: Path) -> None:
    """Before the first guest runs: what was compiled is out of reach from now on."""
    try:
        narrow(Reach(tuple(path for _, path in run.inputs), (str(desk),)))
    except OSError as error:
        raise HostFailure(f"the sandbox does not stand: {error.strerror}") from error


def _limit_all(pattern: Job) -> None:
    """What stands behind our own limits; of the processor's time each task gets its own."""
    limit(resource.RLIMIT_FSIZE, pattern.disk)
    limit(resource.RLIMIT_NOFILE, DESCRIPTORS_MAX + 64)
    limit(resource.RLIMIT_NPROC, 0)


def _limit_time(job: Job) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    seconds = job.wall_ms // 1000 + int(time.process_time()) + 60
    if hard != resource.RLIM_INFINITY:
        seconds = min(seconds, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))
