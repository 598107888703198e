"""A worker: the process in which one stranger's task runs, and which ends with it.

It is forked from the template, takes one job from its socket, gives up what that does not need
(sandbox.py), compiles, gives up more, runs, reports, ends. It may be stopped, continued or killed
at any moment.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

from wasmtime import MemoryType, Module, Trap, TrapCode

from mesh.errors import Refused
from mesh.ids import RAW, cid_of
from mesh.runtime.arrival import Arrival
from mesh.runtime.compiled import COMPILE_CPU_S
from mesh.runtime.engine import Guest, GuestMemory, load_module, open_engine
from mesh.runtime.files import DESCRIPTORS_MAX, Files
from mesh.runtime.frames import (
    FRESH,
    HEADER,
    IMAGE,
    REST,
    Ended,
    Failed,
    Progress,
    Ready,
    Report,
    RunJob,
    StartedRunning,
    decode_run,
    encode_report,
    frame_length,
)
from mesh.runtime.landlock import Reach
from mesh.runtime.manifest import STDIN, Job, decode
from mesh.runtime.module import PAGE, YIELD
from mesh.runtime.pace import Pace
from mesh.runtime.pages import Kept
from mesh.runtime.sandbox import confine, narrow, renounce
from mesh.runtime.stops import Stops
from mesh.runtime.suspension import MovableGuest
from mesh.runtime.trees import HostFailure, Tree
from mesh.runtime.wasi import Exit, Wasi

REPORT_S = 0.25
"""Between two reports of progress."""
NICE = 19
HOST_ROOM = 1 << 30
"""Bytes of private memory beyond the guest's: Python, wasmtime, the compiler."""
_PR_SET_PDEATHSIG = 1

_RULES = {
    TrapCode.STACK_OVERFLOW: "stack overflow",
    TrapCode.MEMORY_OUT_OF_BOUNDS: "memory access out of bounds",
    TrapCode.HEAP_MISALIGNED: "misaligned atomic access",
    TrapCode.TABLE_OUT_OF_BOUNDS: "table access out of bounds",
    TrapCode.INDIRECT_CALL_TO_NULL: "call through a null pointer",
    TrapCode.BAD_SIGNATURE: "call through a pointer of another type",
    TrapCode.INTEGER_OVERFLOW: "integer overflow",
    TrapCode.INTEGER_DIVISION_BY_ZERO: "integer division by zero",
    TrapCode.BAD_CONVERSION_TO_INTEGER: "conversion of a number that is no integer",
    TrapCode.UNREACHABLE: "unreachable code reached (abort)",
}
_STARVED = (TrapCode.UNREACHABLE, TrapCode.MEMORY_OUT_OF_BOUNDS)
"""How a program falls that did not look at what malloc gave it."""


def serve(connection: socket.socket, parent: int) -> NoReturn:
    """Be the worker at the other end of *connection*; the process ends here."""
    leave(parent)
    try:
        send(connection, Ready())
        run = decode_run(receive(connection))
        try:
            report: Report = _perform(connection, run)
        except HostFailure as failure:
            report = Failed(str(failure))
        send(connection, report)
    except (BrokenPipeError, ConnectionResetError, EOFError):
        os._exit(1)  # nobody is there to be told
    os._exit(0)


# --- confinement ------------------------------------------------------------------------------


def leave(parent: int) -> None:
    """A session of its own, the lowest priority, nothing to gain by exec, death with its parent."""
    renounce()
    os.setsid()
    os.nice(NICE)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
    limit(resource.RLIMIT_CORE, 0)


def _wall_in(run: RunJob) -> None:
    """Before any byte of a stranger's is looked at. Raises HostFailure."""
    inputs = [path for _, path in run.inputs]
    try:
        os.chdir(run.scratch)
        confine(Reach((run.module, run.kept, *inputs), (run.scratch,)))
    except OSError as error:
        raise HostFailure(f"the sandbox does not stand: {error.strerror}") from error


def _wall_in_closer(run: RunJob) -> None:
    """Before the guest runs: what was compiled is out of its reach from now on."""
    inputs = [path for _, path in run.inputs]
    states = (str(Path(run.scratch, REST).parent),) if run.is_moved else ()
    try:
        narrow(Reach((*inputs, *states), (f"{run.scratch}/out", f"{run.scratch}/tmp")))  # noqa: S108 - the guest's, not this machine's
    except OSError as error:
        raise HostFailure(f"the sandbox does not stand: {error.strerror}") from error


def limit_compiling() -> None:
    """SIGXCPU ends a compiler that takes too long, however busy the machine; see `_limit_all`."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    most = int(time.process_time()) + COMPILE_CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard < 0 else min(most, hard), hard))


def _limit_all(job: Job, *, can_move: bool) -> None:
    """The limits that stand behind our own, should those be got round.

    Not before instantiating: wasmtime keeps the module's data in a memory file of any size. What
    can move writes its memory to a file as well.
    """
    seconds = job.wall_ms // 1000 + int(time.process_time())
    limit(resource.RLIMIT_CPU, seconds + 60)
    limit(resource.RLIMIT_FSIZE, max(job.disk, job.memory if can_move else 0))
    limit(resource.RLIMIT_NOFILE, DESCRIPTORS_MAX + 64)
    limit(resource.RLIMIT_NPROC, 0)


def limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(what, (most, most))


# --- the run ----------------------------------------------------------------------------------


def _perform(connection: socket.socket, run: RunJob) -> Report:
    job = decode(run.job)
    scratch = Path(run.scratch)
    if sys.platform == "linux":
        # Twice: what can move is compared with a fresh instance of it.
        limit(resource.RLIMIT_DATA, 2 * job.memory + HOST_ROOM)
    limit_compiling()
    engine = open_engine()
    statm = open_statm()
    _wall_in(run)
    try:
        module = load_module(engine, job.module, Path(run.module), Path(run.kept), scratch / FRESH)
    except Refused as refusal:
        return refused("refused", refusal.reason)
    least = initial_memory(module)
    if least > job.memory:
        return refused("out-of-memory", f"it starts with {least} bytes of {job.memory}")
    can_move = is_movable(module)
    kept = _open_kept(scratch / IMAGE, job) if can_move else None
    if run.is_moved and not can_move:
        raise HostFailure("there is a state to go on from, of a module that cannot be moved")
    _wall_in_closer(run)
    trees = trees_of({name: Path(path) for name, path in run.inputs}, scratch)
    wasi = system_calls(job, trees, lambda: guest.fuel_used)

    def call(name: str, memory: GuestMemory, args: tuple[int, ...]) -> int:
        return wasi.call(name, memory, args)

    make = MovableGuest if can_move else Guest
    try:
        guest = make(engine, module, fuel=job.fuel, memory=job.memory, call=call)
    except Refused as refusal:
        return refused("refused", refusal.reason)
    cpu_milli = run.cpu_milli
    if run.is_moved:
        assert isinstance(guest, MovableGuest)
        hear = partial(receive, connection)
        arrival = Arrival(run, job, guest, wasi, trees)
        cpu_milli = arrival.wait(hear, partial(send, connection))
    _limit_all(job, can_move=can_move)
    send(connection, StartedRunning(can_move))
    if kept is None:
        advance = guest.run
    else:
        assert isinstance(guest, MovableGuest)
        names = job.module, cid_of(RAW, run.job)
        advance = Stops(connection, guest, wasi, kept, names).run
    pace = start_pace(cpu_milli)
    return run_guest(connection, job, guest, wasi, statm, pace, advance)


def _open_kept(path: Path, job: Job) -> Kept:
    try:
        return Kept(path, job.memory)
    except OSError as error:
        raise HostFailure(f"no room for the image of a memory: {error.strerror}") from error


def is_movable(module: Module) -> bool:
    return any((found.module, found.name) == YIELD for found in module.imports)


def trees_of(inputs: Mapping[str, Path], scratch: Path) -> tuple[Tree, Tree, Tree]:
    """Of a guest whose /out and /tmp lie in *scratch*."""
    return (
        Tree("/in", None, inputs),
        Tree("/out", scratch / "out"),
        Tree("/tmp", scratch / "tmp"),  # noqa: S108 - the guest's, not this machine's
    )


def system_calls(job: Job, trees: tuple[Tree, Tree, Tree], fuel_used: Callable[[], int]) -> Wasi:
    files = Files(trees, job.disk)
    files.redirect(0, trees[0], (STDIN,))
    return Wasi(
        ("task", *job.args),
        job.env,
        files,
        seed=job.seed,
        t0_ns=job.t0_ns,
        stdout_max=job.stdout_max,
        fuel_used=fuel_used,
    )


def initial_memory(module: Module) -> int:
    """Bytes; check_module has made sure that there is one memory and that it is exported."""
    kind = next(export.type for export in module.exports if export.name == "memory")
    assert isinstance(kind, MemoryType)
    return kind.limits.min * PAGE


def run_guest(
    connection: socket.socket,
    job: Job,
    guest: Guest,
    wasi: Wasi,
    statm: int | None,
    pace: Pace,
    advance: Callable[[Callable[[], None]], None],
) -> Ended:
    last = -REPORT_S

    def report_progress() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_S:
            last = now
            send(connection, Progress(guest.fuel_used, _resident(statm)))

    def between_slices() -> None:
        report_progress()
        keep_pace(pace, report_progress)

    code, trap = 0, None
    try:
        advance(between_slices)
    except Exit as end:
        code = end.code
    except Trap as end:
        trap = end
    except Refused as refusal:  # of a stop: somewhere else it may end in peace
        raise HostFailure(refusal.reason) from refusal
    status, detail = _verdict(job, guest, wasi, code, trap)
    fuel = guest.fuel_used
    wasi.files.close_all()
    return Ended(status, code, detail, fuel, bytes(wasi.stdout.data), bytes(wasi.stderr.data))


def start_pace(cpu_milli: int) -> Pace:
    return Pace(cpu_milli, time.monotonic(), time.process_time())


def keep_pace(pace: Pace, report: Callable[[], None]) -> None:
    """Rest for as long as is due, and let be known meanwhile that all is well."""
    while (rest := pace.rest(time.monotonic(), time.process_time())) > 0:
        time.sleep(min(rest, REPORT_S))
        report()


def _verdict(job: Job, guest: Guest, wasi: Wasi, code: int, trap: Trap | None) -> tuple[str, str]:
    """Status and detail. A limit is the reason where the guest met it and failed afterwards."""
    kind = trap.trap_code if trap else None
    if kind is TrapCode.OUT_OF_FUEL:
        return "out-of-fuel", f"it burnt all of {job.fuel}"
    if trap is None and code == 0:
        return "exited", ""
    how = f"exit code {code}" if trap is None else _describe(trap)
    if wasi.files.was_refused_space:
        return "disk-limit", f"no room beyond {job.disk} bytes of disk, then {how}"
    if wasi.stdout.was_cut or wasi.stderr.was_cut:
        return "output-limit", f"no room beyond {job.stdout_max} bytes of output, then {how}"
    if trap is None:
        return "exited", how
    size = guest.memory.size
    if kind in _STARVED and size > guest.initial_memory and _is_nearly_full(size, job.memory):
        return "out-of-memory", f"{size} bytes of {job.memory} in use, then {how}"
    return "trapped", how


def _is_nearly_full(size: int, limit: int) -> bool:
    """wasmtime does not say that it denied a growth; allocators ask in steps up to an eighth."""
    return limit - size < max(limit // 8, 1 << 20)


def _describe(trap: Trap) -> str:
    code = trap.trap_code
    rule = _RULES.get(code, code.name.lower()) if code else trap.message[:200]
    frames = trap.frames
    return f"{rule}, in function {frames[0].func_index}" if frames else rule


def refused(status: str, why: str) -> Ended:
    return Ended(status, 0, why, 0, b"", b"")


# --- the socket -------------------------------------------------------------------------------


def send(connection: socket.socket, report: Report) -> None:
    connection.sendall(encode_report(report))


def receive(connection: socket.socket) -> bytes:
    return _read(connection, frame_length(_read(connection, HEADER)))


def _read(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = connection.recv(length - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def open_statm() -> int | None:
    """Where the kernel says how large this process is: opened while it may still open that."""
    try:
        return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _resident(statm: int | None) -> int:
    """Bytes of this process in RAM."""
    pages = 0 if statm is None else int(os.pread(statm, 256, 0).split()[1])
    return pages * resource.getpagesize()
