"""Hostile guests: each is contained, for a reason of its own, and the next task is unaffected."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from runtime_jobs import HOSTILE, PATIENCE, is_gone, job_of, run, tree

from mesh.ids import RAW, cid_of
from mesh.runtime.manifest import STATUSES
from mesh.runtime.supervisor import Outcome, Supervisor, open_supervisor

CASES = {
    "exit 0": ("exited", 0, ""),
    "exit 7": ("exited", 7, "exit code 7"),
    "exit 300": ("exited", 300, "exit code 300"),
    "loop": ("out-of-fuel", 0, "it burnt all of 1000000000"),
    "memory": ("exited", 3, "exit code 3"),
    "memory-abort": ("out-of-memory", 0, "8388608 bytes of 8388608 in use"),
    "output": ("output-limit", 4, "no room beyond 65536 bytes of output"),
    "disk": ("disk-limit", 5, "no room beyond 1048576 bytes of disk"),
    "sparse": ("disk-limit", 6, "no room beyond 1048576 bytes of disk"),
    "files": ("disk-limit", 7, "no room beyond 1048576 bytes of disk"),
    "folders": ("disk-limit", 7, "no room beyond 1048576 bytes of disk"),
    "descriptors": ("exited", 8, "exit code 8"),
    "sleep": ("exited", 0, ""),
    "block": ("exited", 0, ""),
    "stack": ("trapped", 0, "memory access out of bounds"),
    "recurse": ("trapped", 0, "stack overflow"),
    "abort": ("trapped", 0, "unreachable code reached (abort)"),
    "divide": ("trapped", 0, "integer division by zero"),
    "bounds": ("trapped", 0, "memory access out of bounds"),
    "wrong-call": ("trapped", 0, "call through a pointer of another type"),
}


async def run_all(folder: Path) -> dict[str, tuple[Outcome, dict[str, bytes]]]:
    """Every mode, in one supervisor, one after another."""
    found = {}
    async with open_supervisor(folder, workers_max=1) as supervisor:
        for mode in CASES:
            outcome = await run(supervisor, mode, HOSTILE, *mode.split())
            found[mode] = outcome, tree(outcome.out)
            await supervisor.discard(mode)
        assert supervisor.statistics().lost == 0
        assert supervisor.statistics().template_starts == 1
    return found


async def test_every_misbehaviour_is_contained_for_its_own_reason_and_twice_the_same(
    tmp_path: Path,
) -> None:
    with trio.fail_after(PATIENCE):
        first, second = await run_all(tmp_path / "a"), await run_all(tmp_path / "b")
    for mode, (status, code, detail) in CASES.items():
        outcome, files = first[mode]
        assert (outcome.status, outcome.exit_code) == (status, code), mode
        assert detail in outcome.detail, mode
        again, files_again = second[mode]
        assert outcome.fuel == again.fuel, mode
        assert outcome.stdout == again.stdout, mode
        assert files == files_again, mode
    assert len(first["output"][0].stdout) == 1 << 16
    assert len(first["disk"][1]["big"]) == (1 << 20) - 4096
    assert first["sleep"][0].stdout == b"slept 101000 s\n"
    assert {outcome.status for outcome, _ in first.values()} < set(STATUSES)


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    with trio.fail_after(PATIENCE):
        async with open_supervisor(tmp_path / "node", workers_max=1) as opened:
            yield opened


async def test_no_path_leads_out(supervisor: Supervisor, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to("/etc")
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    inputs = {name: tmp_path / name for name in ("file", "folder", "link", "fifo")}
    outcome = await run(supervisor, "a", HOSTILE, "escape", inputs=inputs)
    lines = outcome.stdout.decode().splitlines()
    assert len(lines) == 18
    assert all(line.endswith(("closed unseen", " -1")) for line in lines), lines
    assert tree(outcome.out) == {}
    assert (tmp_path / "file").read_text() == "content"


async def test_memory_that_does_not_fit_at_the_start_is_said_so(supervisor: Supervisor) -> None:
    outcome = await run(supervisor, "a", HOSTILE, "exit", "0", memory=1 << 16)
    assert (outcome.status, outcome.fuel) == ("out-of-memory", 0)
    assert "it starts with" in outcome.detail


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda wasm: wasm[:1000], "cut short"),
        (lambda wasm: b"no module at all", "magic"),
        (lambda wasm: wasm[:9000] + bytes(200) + wasm[9200:], "the module cannot run here"),
    ],
)
async def test_a_module_that_cannot_run_is_refused_with_the_reason(
    supervisor: Supervisor, tmp_path: Path, change: object, reason: str
) -> None:
    assert callable(change)
    path = tmp_path / "module"
    path.write_bytes(change(HOSTILE.read_bytes()))
    outcome = await run(supervisor, "a", path)
    assert (outcome.status, outcome.fuel) == ("refused", 0)
    assert reason in outcome.detail


async def test_bulk_memory_cannot_stretch_time_beyond_the_wall_limit(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    """One instruction that fills all memory costs little fuel; the clock outside counts."""
    # (loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 0x40000000)) (br 0))
    body = bytes.fromhex("00 0340 4100 4101 418080808004 fc0b00 0c00 0b 0b")
    wasm = b"".join(
        (
            b"\0asm\x01\0\0\0",
            b"\x01\x04\x01\x60\0\0",
            b"\x03\x02\x01\0",
            b"\x05\x05\x01\0\x80\x80\x01",
            b"\x07\x13\x02\x06_start\0\0\x06memory\x02\0",
            bytes((10, len(body) + 2, 1, len(body))) + body,
        )
    )
    path = tmp_path / "bulk.wasm"
    path.write_bytes(wasm)
    pids: list[int] = []
    outcome = await run(
        supervisor,
        "a",
        path,
        fuel=1 << 62,
        memory=1 << 30,
        wall_ms=300,
        on_progress=lambda _: pids.extend(supervisor.statistics().pids),
    )
    assert outcome.status == "wall-limit", outcome
    assert all(is_gone(pid) for pid in pids)


async def test_a_job_without_output_or_disk_still_runs(supervisor: Supervisor) -> None:
    outcome = await run(supervisor, "a", HOSTILE, "exit", "5", disk=0, stdout_max=0)
    assert (outcome.status, outcome.exit_code) == ("exited", 5)
    outcome = await run(supervisor, "b", HOSTILE, "disk", disk=0, stdout_max=0)
    assert outcome.status == "disk-limit"
    assert job_of(HOSTILE).module == cid_of(RAW, HOSTILE.read_bytes())
