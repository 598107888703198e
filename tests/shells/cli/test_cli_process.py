"""The command as a process of its own: Ctrl-C, broken pipes, the last resort."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import trio
from cli_door import MemoryDoor

import mesh
from mesh.api.server import open_api
from mesh.paths import find_home

SOURCE = str(Path(mesh.__file__ or "").parents[1])


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return kept | {"MESH_HOME": str(folder / "home"), "PYTHONPATH": SOURCE}


async def test_ctrl_c_leaves_the_task_alone_and_says_how_to_come_back(tmp_path: Path) -> None:
    door = MemoryDoor()
    home = find_home({"MESH_HOME": str(tmp_path / "home")})
    module = tmp_path / "wait.wasm"
    module.write_text("wait it")
    command = [sys.executable, "-m", "mesh", "submit", "--", str(module)]
    told, is_sent = b"", False
    with trio.fail_after(60):
        async with open_api(door, address="127.0.0.1:0", socket=home.socket):
            process = await trio.lowlevel.open_process(
                command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            assert process.stderr is not None
            async for chunk in process.stderr:
                told += chunk
                if not is_sent and b"following" in told:
                    is_sent = True
                    process.send_signal(signal.SIGINT)
            code = await process.wait()
    assert code == 130, told.decode()
    (task,) = door.records
    lines = told.decode().splitlines()
    assert lines[-2].startswith("detached: t-")
    assert lines[-1] == (
        f"hint: mesh wait t-{task.hex()} follows it again, mesh cancel t-{task.hex()} takes it back"
    )
    assert not door.cancelled


def test_a_reader_that_goes_away_is_told_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mesh", "config", "list", "-o", "wide"],
            env=environment(tmp_path),
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.stderr == b""


def test_python_m_mesh_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mesh", "ps"],
        env=environment(tmp_path),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 4
    assert done.stderr.startswith(b"error: no node runs here")
