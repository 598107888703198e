"""The supervisor: what it runs, it can measure, stop, lose and forget."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import wasmtime
from runtime_jobs import (
    HOSTILE,
    PATIENCE,
    ROOT,
    WITNESS,
    WORDCOUNT,
    ignore,
    is_gone,
    job_of,
    parent_of,
    run,
    state_of,
    tree,
    until,
)

from mesh.errors import Unavailable
from mesh.runtime.supervisor import Outcome, Supervisor, WorkerLost, open_supervisor

ENDLESS = {"fuel": 1 << 62}
LONG = {"fuel": 1 << 40}
SPIN = ("spin", "2000")
"""About 3e9 fuel: long enough for a report or two of progress, wherever it runs."""


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    with trio.fail_after(PATIENCE):
        async with open_supervisor(tmp_path / "node", workers_max=2) as opened:
            yield opened


def facts(outcome: Outcome) -> tuple[object, ...]:
    """What every run of the same job must agree on."""
    return (
        outcome.status,
        outcome.exit_code,
        outcome.detail,
        outcome.fuel,
        outcome.stdout,
        outcome.stderr,
        tree(outcome.out),
    )


async def test_words_are_counted(supervisor: Supervisor, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("The mesh, the MESH; the end\n")
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "more").write_text("end of")
    outcome = await run(supervisor, "a", WORDCOUNT, inputs={"text": text, "folder": folder})
    assert (outcome.status, outcome.exit_code, outcome.detail) == ("exited", 0, "")
    assert outcome.stdout == b"2 files, 8 words, 4 different; most frequent: the (3)\n"
    assert tree(outcome.out) == {"counts.txt": b"3\tthe\n2\tend\n2\tmesh\n1\tof\n"}
    only = await run(supervisor, "b", WORDCOUNT, "text", inputs={"text": text, "folder": folder})
    assert only.stdout == b"1 files, 6 words, 3 different; most frequent: the (3)\n"


async def test_the_example_costs_what_it_costs_everywhere(supervisor: Supervisor) -> None:
    """Pinned: this number is what an auditor on another machine will find."""
    book = {"book.txt": ROOT / "mesh/examples/book.txt"}
    outcome = await run(supervisor, "a", WORDCOUNT, "/in/book.txt", inputs=book)
    assert outcome.stdout == b"1 files, 1206 words, 343 different; most frequent: the (110)\n"
    assert outcome.fuel == 4252095
    assert (outcome.out / "counts.txt").read_text().startswith("110\tthe\n56\tit\n")


async def test_a_job_gives_the_same_bytes_and_fuel_wherever_it_runs(tmp_path: Path) -> None:
    """In two supervisors, with different hosts' files: nothing of a machine shows."""
    seen = []
    for name in ("one", "another"):
        folder = tmp_path / name / "data"
        folder.mkdir(parents=True)
        for part in reversed("abc") if name == "one" else "abc":
            (folder / part).write_text(part)
        os.utime(folder / "a", (len(name), len(name)))
        async with open_supervisor(tmp_path / name / "node", workers_max=1) as supervisor:
            for key in ("first", "second"):
                outcome = await run(supervisor, key, WITNESS, "x", inputs={"data": folder})
                assert outcome.exit_code == 0
                seen.append(facts(outcome))
    assert len(seen) == 4
    assert seen.count(seen[0]) == 4
    assert b"chance" in outcome.stdout


CAT = """(module
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_start")
        (loop $more
            (i32.store (i32.const 0) (i32.const 64))
            (i32.store (i32.const 4) (i32.const 7))
            (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
            (if (i32.load (i32.const 8)) (then
                (i32.store (i32.const 4) (i32.load (i32.const 8)))
                (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
                (br $more))))))"""


async def test_the_input_named_stdin_is_the_standard_input(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    cat, lines = tmp_path / "cat.wasm", tmp_path / "lines"
    cat.write_bytes(wasmtime.wat2wasm(CAT))
    lines.write_bytes(b"first line\nsecond line\n")
    for key, name, said in (("a", "stdin", lines.read_bytes()), ("b", "other", b"")):
        outcome = await run(supervisor, key, cat, inputs={name: lines})
        assert (outcome.status, outcome.stdout) == ("exited", said)


async def test_another_seed_is_another_run(supervisor: Supervisor) -> None:
    one = await run(supervisor, "a", WITNESS)
    other = await run(supervisor, "b", WITNESS, seed=bytes(16))
    assert one.stdout != other.stdout


async def test_progress_is_exact_fuel_that_only_rises(supervisor: Supervisor) -> None:
    heard: list[int] = []
    outcome = await run(supervisor, "a", HOSTILE, *SPIN, **LONG, on_progress=heard.append)
    assert outcome.status == "exited"
    assert heard
    assert heard == sorted(heard)
    assert 0 < heard[0] < outcome.fuel


async def test_a_paused_run_stands_still_and_ends_the_same(supervisor: Supervisor) -> None:
    plain = await run(supervisor, "plain", HOSTILE, *SPIN, **LONG)
    began = trio.Event()
    outcomes = []

    async def go() -> None:
        outcome = await run(
            supervisor, "paused", HOSTILE, *SPIN, **LONG, on_progress=lambda _: began.set()
        )
        outcomes.append(outcome)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go)
        await began.wait()
        for _ in range(3):
            supervisor.pause("paused")
            assert supervisor.statistics().paused == 1
            for pid in supervisor.statistics().pids:
                await until(lambda pid=pid: state_of(pid) in ("T", "Z"))
            supervisor.resume("paused")
    assert facts(outcomes[0]) == facts(plain)
    assert supervisor.statistics().paused == 0


async def test_a_run_that_bought_part_of_a_core_rests_and_ends_the_same(
    supervisor: Supervisor,
) -> None:
    job = job_of(HOSTILE, *SPIN, **LONG)
    plain = await supervisor.run("plain", job, HOSTILE, {}, on_progress=ignore)
    began = trio.Event()
    outcomes = []

    async def go() -> None:
        outcome = await supervisor.run(
            "part", job, HOSTILE, {}, on_progress=lambda _: began.set(), cpu_milli=200
        )
        outcomes.append(outcome)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go)
        await began.wait()
        (pid,) = supervisor.statistics().pids
        await until(lambda: state_of(pid) == "S")  # a guest that spins sleeps only when told to
    assert facts(outcomes[0]) == facts(plain)


async def test_a_run_paused_before_its_worker_is_up_waits_to_be_resumed(
    supervisor: Supervisor,
) -> None:
    outcomes = []

    async def go() -> None:
        outcomes.append(await run(supervisor, "a", HOSTILE, "exit", "0"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go)
        await until(lambda: supervisor.statistics().template_starts == 1)
        supervisor.pause("a")
        supervisor.pause("a")
        supervisor.pause("nobody")
        supervisor.resume("nobody")
        await until(lambda: supervisor.statistics().running == 1)
        (pid,) = supervisor.statistics().pids
        await until(lambda: state_of(pid) == "T")
        assert outcomes == []
        supervisor.resume("a")
    assert outcomes[0].status == "exited"


@pytest.mark.parametrize(
    ("end", "why"),
    [(signal.SIGABRT, "compiler gave up"), (signal.SIGXCPU, "takes over 120 s of processor")],
)
async def test_a_compiler_that_does_not_cope_refuses_the_module(
    supervisor: Supervisor, end: signal.Signals, why: str
) -> None:
    """It would not elsewhere either: no reason to call the worker lost and try again."""
    outcomes = []

    async def go() -> None:
        outcomes.append(await run(supervisor, "a", HOSTILE, "exit", "0"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go)
        await until(lambda: supervisor.statistics().template_starts == 1)
        supervisor.pause("a")
        await until(lambda: supervisor.statistics().running == 1)
        (pid,) = supervisor.statistics().pids
        await until(lambda: state_of(pid) == "T")
        os.kill(pid, end)
        supervisor.resume("a")
    assert (outcomes[0].status, outcomes[0].fuel) == ("refused", 0)
    assert why in outcomes[0].detail


async def test_a_start_that_was_cancelled_half_way_leaves_nothing_behind(
    supervisor: Supervisor,
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, supervisor, "a", HOSTILE, "exit", "0")
        await until(lambda: supervisor.statistics().template_starts == 1)
        nursery.cancel_scope.cancel()
    assert supervisor.statistics().running == 0
    assert (await run(supervisor, "a", HOSTILE, "exit", "3")).exit_code == 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_worker_has_given_up_all_it_does_not_need(supervisor: Supervisor) -> None:
    seen: dict[str, str] = {}

    def look(_: int) -> None:
        (pid,) = supervisor.statistics().pids
        for name in ("status", "limits", "environ", "stat"):
            seen[name] = Path(f"/proc/{pid}/{name}").read_text()
        seen["cwd"] = os.readlink(f"/proc/{pid}/cwd")
        seen["session"] = str(os.getsid(pid) == pid)

    await run(supervisor, "a", HOSTILE, *SPIN, **LONG, disk=5 << 20, on_progress=look)
    assert "NoNewPrivs:\t1" in seen["status"]
    limits = {line[:26].strip(): line[26:].split()[:2] for line in seen["limits"].splitlines()}
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max file size"] == [str(5 << 20)] * 2
    assert limits["Max processes"] == ["0", "0"]
    assert limits["Max open files"] == ["320", "320"]
    assert limits["Max data size"] == [str(2 * (8 << 20) + (1 << 30))] * 2
    assert limits["Max cpu time"][0] != "unlimited"
    assert {line.split("=")[0] for line in seen["environ"].split("\0")} <= {
        "",
        "PYTHONPATH",
        "LC_ALL",
    }
    assert seen["stat"].rsplit(")", 1)[1].split()[16] == "19"
    assert seen["session"] == "True"
    assert "/tasks/" in seen["cwd"]


async def test_a_run_beyond_its_wall_limit_is_killed_and_bills_what_was_known(
    supervisor: Supervisor,
) -> None:
    heard: list[int] = []
    outcome = await run(
        supervisor, "a", HOSTILE, "loop", **ENDLESS, wall_ms=700, on_progress=heard.append
    )
    assert (outcome.status, outcome.detail) == ("wall-limit", "it ran for 700 ms")
    assert outcome.run_ms >= 700
    assert outcome.fuel >= max(heard, default=0)
    assert supervisor.statistics().late == 1
    assert supervisor.statistics().pids == ()


async def test_cancelling_kills_the_worker_and_removes_its_files(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    pids: list[int] = []
    with trio.CancelScope() as scope:

        def stop(_: int) -> None:
            pids.extend(supervisor.statistics().pids)
            scope.cancel()

        await run(supervisor, "a", HOSTILE, "loop", **ENDLESS, on_progress=stop)
    assert len(pids) == 1
    assert is_gone(pids[0])
    assert list((tmp_path / "node" / "tasks").iterdir()) == []
    statistics = supervisor.statistics()
    assert (statistics.cancelled, statistics.running, statistics.kept) == (1, 0, 0)
    assert (await run(supervisor, "a", HOSTILE, "exit", "0")).status == "exited"


async def test_a_worker_killed_from_outside_is_lost_and_not_the_tasks_fault(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    def kill(_: int) -> None:
        for pid in supervisor.statistics().pids:
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(WorkerLost, match="SIGKILL"):
        await run(supervisor, "a", HOSTILE, "loop", **ENDLESS, on_progress=kill)
    assert issubclass(WorkerLost, Unavailable)
    assert supervisor.statistics().lost == 1
    assert list((tmp_path / "node" / "tasks").iterdir()) == []
    assert (await run(supervisor, "a", HOSTILE, "exit", "0")).status == "exited"


async def test_a_dead_template_loses_its_workers_and_is_replaced(supervisor: Supervisor) -> None:
    pids: list[int] = []

    def kill(_: int) -> None:
        pids.extend(supervisor.statistics().pids)
        os.kill(parent_of(pids[0]), signal.SIGKILL)

    with pytest.raises(WorkerLost, match="template"):
        await run(supervisor, "a", HOSTILE, "loop", **ENDLESS, on_progress=kill)
    assert is_gone(pids[0])
    assert (await run(supervisor, "a", HOSTILE, "exit", "4")).exit_code == 4
    assert supervisor.statistics().template_starts == 2


SUICIDE = """
import os, signal, sys, trio
from pathlib import Path
from runtime_jobs import HOSTILE, run
from mesh.runtime.supervisor import open_supervisor

async def main():
    async with open_supervisor(Path(sys.argv[1]), workers_max=1) as supervisor:
        def stop(_):
            print(*supervisor.statistics().pids, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        await run(supervisor, "a", HOSTILE, "loop", fuel=1 << 62, on_progress=stop)

trio.run(main)
"""


async def test_no_worker_outlives_its_supervisor(tmp_path: Path) -> None:
    found = await trio.run_process(
        [sys.executable, "-c", SUICIDE, str(tmp_path / "node")],
        capture_stdout=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"},
    )
    assert found.returncode == -signal.SIGKILL
    pid = int(found.stdout)
    await until(lambda: is_gone(pid))


async def test_more_runs_than_workers_wait_their_turn_and_too_many_are_turned_away(
    tmp_path: Path,
) -> None:
    outcomes: list[str] = []
    async with open_supervisor(tmp_path / "node", workers_max=1) as supervisor:

        async def go(key: str) -> None:
            try:
                outcomes.append((await run(supervisor, key, HOSTILE, "exit", "0")).status)
            except Unavailable as error:
                outcomes.append(str(error))

        async with trio.open_nursery() as nursery:
            for number in range(7):
                nursery.start_soon(go, str(number))
        assert supervisor.statistics().turned_away == 2
        assert supervisor.statistics().running == 0
    assert sorted(outcomes) == ["4 runs are waiting for a worker already"] * 2 + ["exited"] * 5


async def test_outcomes_are_kept_until_they_are_discarded(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    outcome = await run(supervisor, "a", WITNESS)
    assert (outcome.out / "a").exists()
    assert supervisor.statistics().kept == 1
    await supervisor.discard("a")
    await supervisor.discard("a")
    assert not outcome.out.exists()
    assert list((tmp_path / "node" / "tasks").iterdir()) == []


async def test_what_a_dead_node_left_behind_is_removed(tmp_path: Path) -> None:
    old = tmp_path / "node" / "tasks" / "7" / "out"
    old.mkdir(parents=True)
    (old / "file").write_text("x")
    async with open_supervisor(tmp_path / "node", workers_max=1):
        assert not old.exists()
    assert (tmp_path / "node").stat().st_mode & 0o777 == 0o700


async def test_missing_files_of_this_machine_are_not_the_tasks_fault(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    job = job_of(HOSTILE, "exit", "0")
    with pytest.raises(WorkerLost, match="cannot read the module"):
        await supervisor.run("a", job, tmp_path / "none", {}, on_progress=ignore)
    with pytest.raises(WorkerLost, match="not those of its CID"):
        await supervisor.run("b", job, WITNESS, {}, on_progress=ignore)


def test_the_supervisor_never_imports_wasmtime() -> None:
    code = "import sys, mesh.runtime.supervisor; sys.exit('wasmtime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
