"""Measure the runtime: what metering and being movable cost, how soon tasks start and stop.

    python tools/bench_runtime.py [--quick] [--json]

`metered_over_plain` and `migratable_over_plain` are medians over the programs of tools/kernels, of
ratios of processor time: to the module as it is, on the same engine without fuel, from the module
as it is metered, and from the one that can be moved, as it is metered; in turns, in one process.
CPython is among them in a full run where MESH_PYTHON and MESH_PYTHON_MOVABLE name it.
`suspend_p99_ms` is from a request at a random moment, heard between two slices as a worker hears
it, until the guest stands still. `warm_start_ms` is from the call of a supervisor until the guest
runs, its module compiled before; `short_tasks_per_s` the rate of a series on two workers, every
task a fresh instance of a program that reads its arguments. Downtimes are those of
tools/downtime.py, two processes on loopback; those of 512 MB and CPython in full runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import attrs
import psutil
import trio
import wasmtime
from attrs import frozen
from downtime import move

from mesh.ids import RAW, cid_of
from mesh.runtime.engine import Guest, GuestMemory, compile_wasm, configuration
from mesh.runtime.files import Files
from mesh.runtime.linkage import Linkage
from mesh.runtime.manifest import Job
from mesh.runtime.series import Series, open_series
from mesh.runtime.supervisor import Supervisor, open_supervisor
from mesh.runtime.suspension import MovableGuest
from mesh.runtime.wasi import Exit, Wasi

KERNELS = Path(__file__).parent / "kernels"
HEAP = Path(__file__).parents[1] / "tests/guests/heap.movable.wasm"
SIZES = {
    "nbody": "1200000",
    "sha256": "16000",
    "matmul": "500",
    "sieve": "24000000",
    "sort": "800000",
    "words": "1200000",
}
"""What makes each of them run for a quarter of a second or so."""
SCRIPT = """
import hashlib, json
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
words = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(3000)]
table = {word: len(word) * n for n, word in enumerate(words)}
print(fib(20), sum(json.loads(json.dumps(table)).values()), sorted(words)[7])
"""
FUEL = 1 << 50
MEMORY = 1 << 30
WORKERS = 2
AT_A_TIME = 48
"""Tasks of a series that are waited for at once."""


@frozen
class Kernel:
    """A program, plain and movable, and its arguments."""

    name: str
    plain: Path
    movable: Path
    args: tuple[str, ...]


def kernels(*, is_quick: bool) -> list[Kernel]:
    found = [
        Kernel(name, KERNELS / f"{name}.wasm", KERNELS / f"{name}.movable.wasm", (size,))
        for name, size in SIZES.items()
    ]
    python, movable = os.environ.get("MESH_PYTHON"), os.environ.get("MESH_PYTHON_MOVABLE")
    if python and movable and not is_quick:  # two minutes of compiling
        found.append(Kernel("python", Path(python), Path(movable), ("-c", SCRIPT)))
    return found


# --- what the meter and the checks cost -----------------------------------------------------------


class Run:
    """One guest and its system calls, as a worker makes them."""

    def __init__(self, args: tuple[str, ...]) -> None:
        self.wasi = Wasi(
            ("task", *args),
            (),
            Files((), 0),
            seed=bytes(16),
            t0_ns=0,
            stdout_max=1 << 16,
            fuel_used=lambda: 0,
        )

    def call(self, name: str, memory: GuestMemory, args: tuple[int, ...]) -> int:
        return self.wasi.call(name, memory, args)


class PlainGuest:
    """A guest without a meter: all else is that of engine.Guest."""

    def __init__(self, module: wasmtime.Module, run: Run) -> None:
        linkage = Linkage(engine_of("plain"), module)
        linkage.guest = self
        self._linkage, self._run = linkage, run
        self._store = wasmtime.Store(linkage.engine)
        self._exports = linkage.instantiate(self._store).exports(self._store)
        memory = self._exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        self._memory = GuestMemory(self._store, memory)

    def perform(self, name: str, args: tuple[int, ...]) -> int:
        return self._run.call(name, self._memory, args)

    def run(self, on_slice: Callable[[], None]) -> None:
        start = self._exports["_start"]
        assert isinstance(start, wasmtime.Func)
        try:
            start(self._store)
        except wasmtime.WasmtimeError:
            assert self._linkage.failure is not None
            raise self._linkage.failure from None


def seconds_of(kernel: Kernel, module: wasmtime.Module, kind: str) -> tuple[float, bytes]:
    """Processor time of one run, and its output."""
    run = Run(kernel.args)
    guest: Guest | PlainGuest
    if kind == "plain":
        guest = PlainGuest(module, run)
    else:
        make = MovableGuest if kind == "movable" else Guest
        guest = make(engine_of(kind), module, fuel=FUEL, memory=MEMORY, call=run.call)
    start = time.process_time()
    with suppress(Exit):  # what it wrote is compared
        guest.run(lambda: None)
    return time.process_time() - start, bytes(run.wasi.stdout.data)


_engines: dict[str, wasmtime.Engine] = {}


def engine_of(kind: str) -> wasmtime.Engine:
    if kind not in _engines:
        config = configuration()
        if kind == "plain":
            config.consume_fuel = False
        _engines[kind] = wasmtime.Engine(config)
    return _engines[kind]


def measure_overheads(found: list[Kernel], rounds: int) -> dict[str, dict[str, float]]:
    """For each kernel the median of each ratio, and milliseconds of the plain run."""
    result = {}
    for kernel in found:
        plain, movable = kernel.plain.read_bytes(), kernel.movable.read_bytes()
        modules = {
            "plain": wasmtime.Module(engine_of("plain"), plain),
            "metered": compile_wasm(engine_of("metered"), plain),
            "movable": compile_wasm(engine_of("movable"), movable),
        }
        seen: dict[str, list[float]] = {kind: [] for kind in modules}
        for _ in range(rounds):
            outputs = set()
            for kind, module in modules.items():
                seconds, output = seconds_of(kernel, module, kind)
                seen[kind].append(seconds)
                outputs.add(output)
            assert len(outputs) == 1, kernel.name
        result[kernel.name] = {
            "metered": median_ratio(seen["metered"], seen["plain"]),
            "migratable": median_ratio(seen["movable"], seen["plain"]),
            "plain_ms": 1000 * statistics.median(seen["plain"]),
        }
        say(f"{kernel.name}: {rounded(result[kernel.name])}")
    return result


def median_ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


# --- how soon a guest stands still ----------------------------------------------------------------


def measure_suspension(found: list[Kernel], times: int) -> list[float]:
    """Milliseconds from a request at a random moment, for about *times* suspensions of each."""
    latencies: list[float] = []
    for kernel in found:
        module = compile_wasm(engine_of("movable"), kernel.movable.read_bytes())
        mine: list[float] = []
        while len(mine) < times:
            mine += suspend_along(kernel, module)
        say(f"{kernel.name}: suspended in {statistics.median(mine):.1f} ms, {len(mine)} times")
        latencies += mine[:times]
    return latencies


def suspend_along(kernel: Kernel, module: wasmtime.Module) -> Iterator[float]:
    """One run of *kernel* from its beginning to its end, suspended now and then."""
    run, chance = Run(kernel.args), random.Random(1)
    guest = MovableGuest(engine_of("movable"), module, fuel=FUEL, memory=MEMORY, call=run.call)
    while True:
        asked = Request(guest, chance.randrange(1, 6), chance.random())
        try:
            if not guest.advance(asked.on_slice):
                return
        except Exit:
            return
        yield 1000 * (time.perf_counter() - asked.at)
        guest.wake()


class Request:
    """Asks a guest to stop after some slices, as if it had been asked in the middle of the last."""

    def __init__(self, guest: MovableGuest, slices: int, part: float) -> None:
        self._guest, self._left, self._part = guest, slices, part
        self._since = time.perf_counter()
        self.at = 0.0

    def on_slice(self) -> None:
        now = time.perf_counter()
        self._left -= 1
        if self._left == 0:
            self.at = now - (now - self._since) * self._part
            self._guest.request()
        self._since = now


# --- how soon a task runs, and how many of them ---------------------------------------------------


def job_of(module: Path, *args: str) -> Job:
    return Job(
        module=cid_of(RAW, module.read_bytes()),
        args=args,
        env=(),
        inputs=(),
        fuel=10**9,
        memory=8 << 20,
        disk=1 << 20,
        wall_ms=60_000,
        seed=bytes(16),
        t0_ns=0,
        stdout_max=1 << 16,
    )


async def measure_starts(folder: Path, runs: int) -> list[float]:
    """Milliseconds from the call until the guest runs, of runs after the first."""
    module = KERNELS / "blank.wasm"
    job, found = job_of(module), []
    async with open_supervisor(folder, workers_max=1) as supervisor:
        for number in range(runs + 1):
            began = trio.current_time()
            outcome = await supervisor.run("a", job, module, {}, on_progress=lambda _: None)
            took = 1000 * (trio.current_time() - began) - outcome.run_ms
            await supervisor.discard("a")
            if number:
                found.append(took)
    return found


async def measure_series(folder: Path, tasks: int) -> tuple[float, float]:
    """Tasks a second, and milliseconds of processor time a task, this process and workers."""
    module = KERNELS / "blank.wasm"
    pattern = job_of(module, "0")
    async with (
        open_supervisor(folder, workers_max=WORKERS) as supervisor,
        open_series(supervisor, pattern, module, {}, workers=WORKERS) as series,
    ):
        await run_tasks(series, pattern, 4 * AT_A_TIME)  # until the workers are there
        before, began = used_s(supervisor), trio.current_time()
        await run_tasks(series, pattern, tasks)
        took, used = trio.current_time() - began, used_s(supervisor) - before
    return tasks / took, 1000 * used / tasks


async def run_tasks(series: Series, pattern: Job, tasks: int) -> None:
    left = iter(range(tasks))

    async def go() -> None:
        for number in left:
            job = attrs.evolve(pattern, args=(str(number),), seed=number.to_bytes(16, "big"))
            outcome = await series.run(job)
            assert outcome.status == "exited"

    async with trio.open_nursery() as nursery:
        for _ in range(AT_A_TIME):
            nursery.start_soon(go)


def used_s(supervisor: Supervisor) -> float:
    """Processor time of this process and the workers so far."""
    times = (sum(psutil.Process(pid).cpu_times()[:2]) for pid in supervisor.statistics().pids)
    return time.process_time() + sum(times)


# --- how long a task stands still when it moves ---------------------------------------------------


@frozen
class Traveller:
    """A program that is still at work when it has burnt *after*, and what memory it may have."""

    module: Path
    args: tuple[str, ...]
    memory: int
    after: int


def travellers(*, is_quick: bool) -> dict[str, Traveller]:
    """By the name of their figure."""
    found = {"downtime_64mb_ms": heap_of(64, 5 * 10**8)}
    movable = os.environ.get("MESH_PYTHON_MOVABLE")
    if not is_quick:
        found["downtime_512mb_ms"] = heap_of(512, 4 * 10**9)
    if movable and not is_quick:
        args = ("-c", "words = [str(n) for n in range(20000)]\nwhile True: words.sort()")
        found["downtime_python_ms"] = Traveller(Path(movable), args, 64 << 20, 2 * 10**9)
    return found


def heap_of(megabytes: int, after: int) -> Traveller:
    return Traveller(HEAP, (str(megabytes), "1000000000"), (megabytes + 32) << 20, after)


def measure_downtime(folder: Path, one: Traveller) -> float:
    """Milliseconds of one move, its state copied ahead twice."""
    compiled = folder.with_name("compiled")
    how = partial(move, memory=one.memory, after=one.after, copies=2, compiled=compiled)
    moved = trio.run(how, one.module, one.args, folder)
    return moved.downtime_ms


# --- all of it ------------------------------------------------------------------------------------


def measure(*, is_quick: bool) -> tuple[dict[str, float], dict[str, object]]:
    """Figures, and what stands behind them."""
    found = kernels(is_quick=is_quick)
    overheads = measure_overheads(found, 5 if is_quick else 15)
    stops = sorted(measure_suspension(found, 15 if is_quick else 100))
    with tempfile.TemporaryDirectory(prefix="bench-runtime-") as folder:
        starts = trio.run(measure_starts, Path(folder) / "starts", 20 if is_quick else 100)
        say(f"starts: {statistics.median(starts):.1f} ms")
        rates = []
        for number in range(3 if is_quick else 7):
            path = Path(folder) / f"series{number}"
            rates.append(trio.run(measure_series, path, 2000 if is_quick else 10000))
            say(f"series: {rates[-1][0]:.0f} tasks/s, {rates[-1][1]:.2f} ms of processor each")
        downtimes = {}
        for name, one in travellers(is_quick=is_quick).items():
            paths = (Path(folder) / f"{name}{number}" for number in range(1 if is_quick else 5))
            downtimes[name] = statistics.median(measure_downtime(path, one) for path in paths)
            say(f"{name}: {downtimes[name]:.0f}")
    figures = {
        "metered_over_plain": statistics.median(k["metered"] for k in overheads.values()),
        "migratable_over_plain": statistics.median(k["migratable"] for k in overheads.values()),
        "warm_start_ms": statistics.median(starts),
        "short_tasks_per_s": statistics.median(rate for rate, _ in rates),
        **downtimes,
        "suspend_p50_ms": statistics.median(stops),
        "suspend_p99_ms": stops[len(stops) * 99 // 100],
    }
    context: dict[str, object] = {
        "kernels": {name: rounded(values) for name, values in overheads.items()},
        "short_task_cpu_ms": round(statistics.median(cpu for _, cpu in rates), 3),
        "suspensions": len(stops),
        "suspend_max_ms": round(stops[-1], 1),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    return rounded(figures), context


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.3g}") for name, value in values.items()}


def say(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and without CPython")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    options = parser.parse_args()
    figures, context = measure(is_quick=options.quick)
    if options.json:
        print(json.dumps({"figures": figures, "context": context}))
    else:
        for name, value in figures.items():
            print(f"{name:>22} {value}")


if __name__ == "__main__":
    main()
