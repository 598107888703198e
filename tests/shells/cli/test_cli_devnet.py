"""Real nodes, real processes: the demo's whole story, and that nothing outlives the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import mesh
from mesh.cli.devnet import Devnet, DevnetFailed, Member, _pause
from mesh.cli.exits import exit_of

SOURCE = str(Path(mesh.__file__ or "").parents[1])
PATIENCE_S = 240


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    # A short TMPDIR: sockets lie below it.
    return kept | {"PYTHONPATH": SOURCE, "TMPDIR": str(folder), "HOME": str(folder)}


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def ended(pid: int) -> int:
    """A file that becomes readable when the process ends; its child or not."""
    return os.pidfd_open(pid)


@asynccontextmanager
async def kept_devnet(folder: Path) -> AsyncIterator[tuple[trio.Process, list[dict[str, Any]]]]:
    """`mesh devnet --keep`, up: its process and what it says of its nodes."""
    command = [sys.executable, "-m", "mesh", "devnet", "--nodes", "2", "--keep", "-o", "jsonl"]
    process = await trio.lowlevel.open_process(
        command, env=environment(folder), stdout=subprocess.PIPE
    )
    said = b""
    assert process.stdout is not None
    async for chunk in process.stdout:
        said += chunk
        if said.count(b"\n") == 2:
            break
    try:
        assert said.count(b"\n") == 2, "it did not come up: see stderr"
        yield process, [json.loads(line) for line in said.splitlines()]
    finally:
        if process.returncode is None:
            process.terminate()
            with trio.CancelScope(shield=True):
                await process.wait()


@pytest.mark.slow
async def test_the_demo_tells_the_whole_story_and_all_of_it_holds(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE_S):
        done = await trio.run_process(
            [sys.executable, "-m", "mesh", "demo", "--json"],
            env=environment(tmp_path),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    facts = json.loads(done.stdout)
    assert facts["schema"] == "mesh.demo/v1"
    assert len(facts["nodes"]) == 3
    assert facts["peers_seen"] == 2
    bids = facts["auction"]["bids"]
    assert len(bids) >= 2
    assert all(bid["price"] > 0 and bid["reason"] and bid["verdict"] for bid in bids)
    assert facts["auction"]["winner"] in {bid["node"] for bid in bids}
    assert facts["task"]["exit_code"] == 0
    assert facts["task"]["fuel"] > 0
    assert facts["output"]["cid"].startswith("bafy")
    assert facts["receipt"]["signatures"] == 2
    assert facts["receipt"]["fuel"] == facts["task"]["fuel"]
    assert facts["receipt"]["amount"] == facts["task"]["cost"]
    assert facts["audit"]["rerun_equal"] is True
    assert facts["audit"]["good"] == facts["audit"]["checks"]
    assert left_in(tmp_path) == []


@pytest.mark.slow
async def test_a_devnet_that_is_told_to_stop_leaves_neither_process_nor_folder(
    tmp_path: Path,
) -> None:
    with trio.fail_after(PATIENCE_S):
        async with kept_devnet(tmp_path) as (process, nodes):
            assert len({node["peer"] for node in nodes}) == 2
            watched = [ended(node["pid"]) for node in nodes]
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0
        for number in watched:
            await trio.lowlevel.wait_readable(number)
            os.close(number)
    assert left_in(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
async def test_no_node_outlives_a_devnet_that_was_killed(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE_S):
        async with kept_devnet(tmp_path) as (process, nodes):
            watched = [ended(node["pid"]) for node in nodes]
            process.kill()
            for number in watched:
                await trio.lowlevel.wait_readable(number)
                os.close(number)


def member(folder: Path, program: str) -> Member:
    process = subprocess.Popen([sys.executable, "-c", program])
    (folder / "node.log").write_text("Traceback\nit broke\n")
    return Member("node-1", folder, process)


def test_a_node_that_ends_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    dead = member(tmp_path, "raise SystemExit(3)")
    dead.process.wait()
    with pytest.raises(DevnetFailed, match=r"node-1 ended with exit code 3") as caught:
        _pause([dead], time.monotonic() + 60, "nodes did not come up")
    assert caught.value.log == "Traceback\nit broke"


def test_nodes_that_do_not_come_up_in_time_are_named_with_their_logs(tmp_path: Path) -> None:
    slow = member(tmp_path, "input()")
    try:
        with pytest.raises(DevnetFailed, match="did not come up in time") as caught:
            _pause([slow], time.monotonic() - 1, "nodes did not come up")
    finally:
        slow.process.kill()
        slow.process.wait()
    assert "--timeout" in caught.value.hint
    assert exit_of(caught.value) == 1


def test_peers_of_a_devnet_have_names(tmp_path: Path) -> None:
    first = member(tmp_path, "")
    first.process.wait()
    devnet = Devnet((first,), ({"peer": "12D3KooWabc"},), ())
    assert devnet.name_of("12D3KooWabc") == "node-1"
    assert devnet.name_of("12D3KooWother0") == "…other0"
