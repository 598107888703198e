"""Measure a node that has nothing to do: what it costs, and how soon it is there.

    python tools/bench_node.py [--quick] [--json]

Three real nodes on loopback know one another and wait. `cold_start_s` is from the start of a
process, on a home of its own that is new, until it serves clients; `idle_cpu_percent` is the time
of one core that the middle node and its children use, `rss_mb_baseline` what is resident of it
then. Medians over the nodes and rounds; megabytes are 10^6 bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

NODES = 3
START_S = 120.0
"""The longest a node may take to be there."""
SETTLE_S = 5.0
"""After which first offers and samples are over."""
_FLAGS = (
    *("--host", "127.0.0.1", "--port", "0", "--grpc-port", "0", "--websocket-port", "0"),
    *("--no-mdns", "--cpus", "1", "--memory", "256MiB", "--disk", "64MiB", "--quota", "256MiB"),
)
_SOURCE = Path(__file__).parents[1]


@contextmanager
def open_node(home: Path, bootstrap: str) -> Iterator[tuple[psutil.Process, dict[str, Any], float]]:
    """A node: its process, what it says of itself, and the seconds until it said so."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    began = time.perf_counter()
    with (home / "node.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mesh", "join", *_FLAGS]
            + (["--bootstrap", bootstrap] if bootstrap else []),
            env=kept | {"MESH_HOME": str(home), "PYTHONPATH": str(_SOURCE)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        facts = home / "run" / "node.json"
        while not facts.exists():
            if process.poll() is not None or time.perf_counter() - began > START_S:
                sys.exit((home / "node.log").read_text())
            time.sleep(0.005)
        took = time.perf_counter() - began
        yield psutil.Process(process.pid), json.loads(facts.read_text()), took
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()


def measure(folder: Path, idle_s: float) -> dict[str, list[float]]:
    """One round of *NODES* nodes."""
    starts: list[float] = []

    def deepen(nodes: list[psutil.Process], bootstrap: str) -> dict[str, list[float]]:
        if len(nodes) == NODES:
            return watch(nodes, idle_s)
        with open_node(folder / str(len(nodes)), bootstrap) as (process, facts, took):
            starts.append(took)
            return deepen([*nodes, process], bootstrap or facts["addresses"][0])

    return {"cold_start_s": starts, **deepen([], "")}


def watch(nodes: list[psutil.Process], idle_s: float) -> dict[str, list[float]]:
    """What each of *nodes* uses, once it has settled."""
    time.sleep(SETTLE_S)
    before = [used_s(node) for node in nodes]
    began = time.perf_counter()
    time.sleep(idle_s)
    elapsed = time.perf_counter() - began
    used = [used_s(node) - start for node, start in zip(nodes, before, strict=True)]
    return {
        "idle_cpu_percent": [100 * seconds / elapsed for seconds in used],
        "rss_mb_baseline": [resident(node) / 1e6 for node in nodes],
    }


def used_s(node: psutil.Process) -> float:
    """Processor time of a node and its children."""
    return sum(sum(process.cpu_times()[:2]) for process in (node, *node.children(recursive=True)))


def resident(node: psutil.Process) -> int:
    """Bytes of a node and its children."""
    return sum(process.memory_info().rss for process in (node, *node.children(recursive=True)))


def main() -> None:
    """Print medians over nodes and rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 round of 15 s instead of 3 of 60")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    options = parser.parse_args()
    rounds, idle_s = (1, 15.0) if options.quick else (3, 60.0)
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        folder = Path(tempfile.mkdtemp(prefix="mesh-"))  # short: sockets have short paths
        try:
            for name, values in measure(folder, idle_s).items():
                found.setdefault(name, []).extend(values)
        finally:
            shutil.rmtree(folder)
        print(f"round {number + 1} of {rounds}: {found}", file=sys.stderr)
    figures = {name: round(statistics.median(values), 2) for name, values in found.items()}
    context = {
        "nodes": NODES,
        "rounds": rounds,
        "idle_s": idle_s,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    if options.json:
        print(json.dumps({"figures": figures, "context": context}))
    else:
        for name, value in figures.items():
            print(f"{name:>18} {value}")


if __name__ == "__main__":
    main()
