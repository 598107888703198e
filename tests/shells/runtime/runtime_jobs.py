"""Jobs for the committed guests, and how a test waits for a process without sleeping."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import trio

from mesh.ids import RAW, cid_of
from mesh.runtime.manifest import Job
from mesh.runtime.supervisor import Outcome, Supervisor

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = ROOT / "tests/guests/hostile.wasm"
WITNESS = ROOT / "tests/guests/witness.wasm"
WORDCOUNT = ROOT / "mesh/examples/wordcount.wasm"
PATIENCE = 120
"""Seconds after which a test gives up, on a machine however busy."""


def job_of(module: Path, *args: str, **fields: object) -> Job:
    """A job with limits that suit small guests."""
    values: dict[str, object] = {
        "module": cid_of(RAW, module.read_bytes()),
        "args": args,
        "env": (("A", "b"),),
        "inputs": (),
        "fuel": 10**9,
        "memory": 8 << 20,
        "disk": 1 << 20,
        "wall_ms": PATIENCE * 1000,
        "seed": bytes(range(16)),
        "t0_ns": 1_700_000_000_000_000_000,
        "stdout_max": 1 << 16,
    }
    return Job(**(values | fields))  # type: ignore[arg-type]


def ignore(_: int) -> None:
    """For runs whose progress nobody watches."""


async def run(
    supervisor: Supervisor,
    key: str,
    module: Path,
    *args: str,
    inputs: dict[str, Path] | None = None,
    on_progress: Callable[[int], None] = ignore,
    **fields: object,
) -> Outcome:
    inputs = inputs or {}
    named = tuple((name, cid_of(RAW, name.encode())) for name in inputs)
    job = job_of(module, *args, inputs=named, **fields)
    return await supervisor.run(key, job, module, inputs, on_progress=on_progress)


def tree(folder: Path) -> dict[str, bytes]:
    """All files under *folder* and what is in them."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def state_of(pid: int) -> str:
    """R, S, T, Z … or the empty string for a process that is gone."""
    found = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return found.stdout.strip()[:1]


def parent_of(pid: int) -> int:
    found = subprocess.run(
        ["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True, check=True
    )
    return int(found.stdout)


async def until(holds: Callable[[], bool]) -> None:
    """Wait until *holds* does."""
    with trio.fail_after(PATIENCE):
        while not holds():
            await trio.lowlevel.checkpoint()


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return state_of(pid) in ("", "Z")
