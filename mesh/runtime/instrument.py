"""Modules made able to be moved, where this machine has Binaryen: found, and never required.

    python -m mesh.runtime.instrument SOURCE TARGET [outer | all]

A node without Binaryen runs, suspends and wakes modules that another one has instrumented.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from attrs import frozen

from mesh.errors import Refused
from mesh.runtime.binaryen import options
from mesh.runtime.rewrite import Policy, add_checks, finish

MEMORY_MAX = 4 << 30
"""Bytes that Binaryen may take."""
SECONDS_MAX = 600
VARIABLE = "MESH_BINARYEN"
"""Names a wasm-opt or a library of Binaryen, where these are in no usual place."""
_HINT = f"install wasm-opt, or name one, or a library of Binaryen, by {VARIABLE}"


@frozen
class Binaryen:
    """Binaryen as it was found here."""

    is_library: bool
    path: str


def find_binaryen(kept: Path) -> Binaryen:
    """What VARIABLE names, wasm-opt on the PATH, or the package binaryen.py, whose library is made
    loadable in the folder *kept*, once. Raises Refused where there is none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_file():
            raise Refused(f"{VARIABLE} names {named}, which is no file", _HINT)
        return Binaryen(Path(named).suffix in (".so", ".dylib"), named)
    program = shutil.which("wasm-opt")
    if program:
        return Binaryen(False, program)
    library = _link_package(kept / "libbinaryen.so")
    if library is None:
        raise Refused("this machine has no Binaryen to make modules movable", _HINT)
    return Binaryen(True, str(library))


def _link_package(target: Path) -> Path | None:
    """The package has an archive and not a library: a C++ compiler makes one of it."""
    if target.exists():
        return target
    package = importlib.util.find_spec("binaryen")
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    folders = package.submodule_search_locations if package else None
    if not folders or not compiler:
        return None
    archive = Path(folders[0]) / "libbinaryen/x86_64-linux/libbinaryen.a"
    if not archive.is_file():
        return None
    partial = target.with_suffix(f".{os.getpid()}")
    whole = ("-Wl,--whole-archive", str(archive), "-Wl,--no-whole-archive", "-lpthread")
    done = subprocess.run(  # noqa: S603 - a compiler of this machine, on a package of its owner
        [compiler, "-shared", "-o", str(partial), *whole], capture_output=True, check=False
    )
    if done.returncode:
        return None
    partial.rename(target)
    return target


def instrument(binaryen: Binaryen, wasm: bytes, policy: Policy = Policy.OUTER) -> bytes:
    """*wasm*, able to be moved. Blocks: seconds, minutes for an interpreter. Raises Refused."""
    checked, _ = add_checks(wasm, policy)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "checked.wasm", Path(folder) / "unwinding.wasm"
        source.write_bytes(checked)
        _run(_command(binaryen, str(source), str(target)), folder)
        if not target.is_file():
            raise Refused("Binaryen made nothing of the module")
        return finish(target.read_bytes())


def _command(binaryen: Binaryen, source: str, target: str) -> list[str]:
    limits = [str(MEMORY_MAX), str(SECONDS_MAX)]
    start = [sys.executable, "-m", "mesh.runtime.binaryen", *limits]
    if binaryen.is_library:
        return [*start, "library", binaryen.path, source, target]
    return [*start, "exec", binaryen.path, *options(source, target)]


def _run(command: list[str], folder: str) -> None:
    """To its end or SECONDS_MAX; it and all it started are gone then."""
    messages = Path(folder) / "messages"
    with messages.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 - ourselves, and what find_binaryen found
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
        try:
            code = process.wait(SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise Refused(f"Binaryen took more than {SECONDS_MAX} s for the module") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code:
        last = messages.read_bytes()[-200:].decode(errors="replace").strip()
        raise Refused(f"Binaryen failed on the module ({code}): {last}")


def main(argv: list[str]) -> int:
    source, target, *policy = argv
    with tempfile.TemporaryDirectory() as kept:
        made = instrument(
            find_binaryen(Path(kept)), Path(source).read_bytes(), Policy((policy or ["outer"])[0])
        )
    Path(target).write_bytes(made)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
