"""Measure the embedded store: adding, reading, and moving content between two stores.

    python tools/bench_storage.py [--quick] [--json] [--folder FOLDER]

`transfer_mb_s` is a whole transfer between two disk stores in one process, every block synced by
the receiver and checked at both ends, without a network between them. Megabytes are 10^6 bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import trio

from mesh.ids import Cid
from mesh.storage.disk import DiskBlocks
from mesh.storage.files import add_path, read_file
from mesh.storage.transfer import fetch, serve

QUOTA = 4_000_000_000


def measure(folder: Path, content: Path) -> dict[str, float]:
    """One run with fresh stores: MB/s of each step."""
    size = content.stat().st_size / 1e6
    with (
        DiskBlocks(folder / "seller", QUOTA) as seller,
        DiskBlocks(folder / "buyer", QUOTA) as buyer,
    ):
        start = time.perf_counter()
        root = add_path(seller, content).cid
        added = time.perf_counter()
        trio.run(move, seller, buyer, root)
        moved = time.perf_counter()
        read = sum(map(len, read_file(buyer, root)))
        ended = time.perf_counter()
    assert read == content.stat().st_size
    return {
        "transfer_mb_s": size / (moved - added),
        "add_mb_s": size / (added - start),
        "cat_mb_s": size / (ended - moved),
    }


async def move(seller: DiskBlocks, buyer: DiskBlocks, root: Cid) -> None:
    """Fetch *root* from *seller* into *buyer*."""

    async def request(data: bytes) -> bytes:
        return await trio.to_thread.run_sync(partial(serve, seller, data))

    await fetch(root, buyer, request, bytes_max=QUOTA, blocks_max=1_000_000)


def main() -> None:
    """Print medians over the runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 runs of 64 MB instead of 7 of 512")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--folder", type=Path, help="on which disk (default: the temporary one)")
    options = parser.parse_args()
    runs, size = (3, 64_000_000) if options.quick else (7, 512_000_000)
    results = []
    for run in range(runs):
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-storage-") as folder:
            content = Path(folder) / "content"
            with content.open("wb") as file:
                for _ in range(size // 1_000_000):
                    file.write(os.urandom(1_000_000))
            results.append(measure(Path(folder), content))
        print(f"run {run + 1} of {runs}: {results[-1]}", file=sys.stderr)
    figures = {name: round(statistics.median(r[name] for r in results), 1) for name in results[0]}
    context = {"runs": runs, "bytes": size, "cores": os.cpu_count(), "network": "none, in process"}
    if options.json:
        print(json.dumps({"figures": figures, "context": context}))
    else:
        for name, value in figures.items():
            print(f"{name:16} {value}")


if __name__ == "__main__":
    main()
