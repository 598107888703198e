"""Compiled modules, kept on disk by the supervisor: no task can change what the next one runs.

A worker may read the one that is made of its own module. What it compiles it leaves in its own
folder, before anything of the guest runs; the supervisor then takes it, while the worker has lost
the right to write it. So a module's code comes of its bytes and of nothing that a task does.
"""

from __future__ import annotations

import os
import platform
import stat
from contextlib import suppress
from pathlib import Path

from mesh.ids import Cid, format_cid
from mesh.runtime.manifest import WASMTIME

CONFIGURATION = 3
"""Counts the changes of `engine.open_engine` and of the rules of modules: part of every name."""
COMPILE_CPU_S = 120
"""Seconds of processor that compiling may take; an interpreter takes 15 to 40."""
FILES_MAX = 256
BYTES_MAX = 2 << 30


def place_of(folder: Path, cid: Cid) -> Path:
    """Where the compiled module *cid* lies in *folder*, if it does; it now counts as used."""
    name = f"{format_cid(cid)}-{WASMTIME}-{CONFIGURATION}-{platform.machine()}.cwasm"
    with suppress(OSError):
        os.utime(folder / name)
    return folder / name


def take(fresh: Path, place: Path) -> None:
    """Keep what a worker compiled, if it did; the oldest make room. Raises OSError."""
    try:
        is_file = stat.S_ISREG(fresh.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_file:
        raise OSError(f"{fresh} is no file")
    fresh.rename(place)
    _make_room(place.parent)


def _make_room(folder: Path) -> None:
    found = sorted(((p.stat(), p) for p in folder.glob("*.cwasm")), key=lambda f: -f[0].st_mtime_ns)
    total = 0
    for count, (status, path) in enumerate(found, 1):
        total += status.st_size
        if count > 1 and (count > FILES_MAX or total > BYTES_MAX):
            path.unlink(missing_ok=True)
