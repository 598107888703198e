"""The second wall: a guest that got out of wasmtime reads, sends, starts and signals nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from runtime_jobs import HOSTILE, PATIENCE, ROOT, run

from mesh.runtime import landlock, sandbox
from mesh.runtime.landlock import Reach
from mesh.runtime.supervisor import open_supervisor

needs_landlock = pytest.mark.skipif(
    sandbox.LANDLOCK not in sandbox.walls(), reason="this kernel lends no Landlock"
)
needs_seccomp = pytest.mark.skipif(
    sandbox.SECCOMP not in sandbox.walls(), reason="this kernel lends no seccomp"
)

OWN = {
    "read its input": "done",
    "write its output": "done",
    "rename between its folders": "done",
    "abort": "SIGABRT",
}
BY_LANDLOCK = dict.fromkeys(
    (
        "read the key",
        "write the key",
        "list a folder",
        "make a file outside",
        "remove a file outside",
        "write its input",
        "read what was compiled",
        "write what was compiled",
        "read the parent's environment",
        "write its own memory by file",
    ),
    "EACCES",
)
"""Whatever seccomp does: these are calls that a worker needs."""
BY_SECCOMP = {
    **dict.fromkeys(
        (
            "connect to loopback",
            "bind a port",
            "kill its parent",
            "open a TCP socket",
            "open a UDP socket",
            "open a Unix socket",
            "send to loopback",
            "change modes",
            "link",
            "truncate by name",
            "fork",
            "limit its parent",
            "be told of files",
            "type into a terminal",
            "change the filter",
        ),
        "EPERM",
    ),
    **dict.fromkeys(
        (
            "run a program",
            "ptrace its parent",
            "mount",
            "io_uring_setup",
            "bpf",
            "unshare",
            "userfaultfd",
        ),
        "SIGSYS",
    ),
    "make a call of tomorrow": "ENOSYS",
    "make a call of x32": "ENOSYS",
}


def try_all(folder: Path, how: str) -> dict[str, str]:
    program = [sys.executable, str(Path(__file__).parent / "breakout.py"), str(folder), how]
    found = subprocess.run(
        program,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    answers: dict[str, str] = json.loads(found.stdout)
    return answers


@needs_landlock
@needs_seccomp
def test_whoever_breaks_out_of_wasmtime_meets_a_wall_whatever_it_tries(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    found = try_all(folder, "confine")
    assert found.pop("move a file out") in ("EACCES", "EXDEV")  # which of them, kernels differ
    assert found == OWN | BY_LANDLOCK | BY_SECCOMP
    for name in ("node.key", "input", "kept"):
        assert (folder / name).read_bytes() == b"content"
        assert (folder / name).stat().st_mode & 0o777 != 0o777


@needs_landlock
def test_landlock_alone_keeps_files_ports_and_processes_from_it(tmp_path: Path) -> None:
    found = try_all(tmp_path / "node", "landlock")
    expected = OWN | BY_LANDLOCK | {"ptrace its parent": "EPERM"}
    if landlock.version() >= 4:
        expected |= dict.fromkeys(("connect to loopback", "bind a port"), "EACCES")
    if landlock.version() >= 6:
        expected |= {"kill its parent": "EPERM"}
    assert {name: found[name] for name in expected} == expected


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_worker_runs_behind_every_wall_that_there_is(tmp_path: Path) -> None:
    """And keeps of the node one socket, its log, and its own size to look at."""
    status: dict[str, str] = {}
    files: set[str] = set()

    def look(_: int) -> None:
        (pid,) = supervisor.statistics().pids
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status.update(line.split(":\t", 1) for line in lines if ":\t" in line)
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            files.add(os.readlink(handle).split(":")[0].rsplit("/", 1)[-1])

    with trio.fail_after(PATIENCE):
        async with open_supervisor(tmp_path / "node", workers_max=1) as supervisor:
            for key in "ab":  # compiled by itself, and by the other
                outcome = await run(
                    supervisor, key, HOSTILE, "spin", "2000", fuel=1 << 40, on_progress=look
                )
                assert outcome.status == "exited"
    assert status["Seccomp"] == ("2" if sandbox.SECCOMP in sandbox.walls() else "0")
    assert int(status["CapEff"], 16) & ~2 == 0
    assert int(status["CapPrm"], 16) & ~2 == 0
    assert files - {"memfd"} <= {"null", "template.log", "socket", "statm", compiled(tmp_path)}


def compiled(folder: Path) -> str:
    (kept,) = (folder / "node" / "compiled").iterdir()
    return kept.name


async def test_a_task_changes_nothing_of_what_was_compiled(tmp_path: Path) -> None:
    """What was compiled once stays as it is, whatever tasks run from it."""
    async with open_supervisor(tmp_path / "node", workers_max=1) as supervisor:
        await run(supervisor, "a", HOSTILE, "exit", "0")
        kept = tmp_path / "node" / "compiled" / compiled(tmp_path)
        before = (kept.read_bytes(), kept.stat().st_ino)
        outcome = await run(supervisor, "b", HOSTILE, "disk")
        assert outcome.status == "disk-limit"
        assert not (outcome.out.parent / "compiled").exists()
        assert (kept.read_bytes(), kept.stat().st_ino) == before


@needs_landlock
@needs_seccomp
def test_what_the_offer_promises_holds_when_it_is_tried() -> None:
    code = "from mesh.runtime import sandbox; print(*sandbox.tried())"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert tuple(found.stdout.split()) == sandbox.walls()


def test_a_kernel_without_walls_confines_nothing_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 1)
    monkeypatch.setattr(sandbox.seccomp, "is_available", lambda: False)
    assert sandbox.walls() == ()
    sandbox.narrow(Reach((), ()))
    assert os.listdir("/")
