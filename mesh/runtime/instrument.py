"""Modules made able to be moved, where this machine has Binaryen: found, and never required.

    python -m mesh.runtime.instrument SOURCE TARGET [outer | all]

A node without Binaryen runs, suspends and wakes modules that another one has instrumented.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from attrs import frozen

from mesh.errors import Refused
from mesh.runtime.binaryen import limit, options
from mesh.runtime.origin import Origin, add_origin
from mesh.runtime.rewrite import REWRITING, Policy, add_checks, finish
from mesh.storage.unixfs import import_file

MEMORY_MAX = 4 << 30
"""Bytes that Binaryen may take."""
SECONDS_MAX = 600
"""Of a processor."""
WAIT_SECONDS_MAX = 3 * SECONDS_MAX
"""By the clock: it runs at the lowest priority."""
VARIABLE = "MESH_BINARYEN"
"""Names a wasm-opt or a library of Binaryen, where these are in no usual place."""
TESTED = ("116",)
"""Binaryens whose modules cost the same moved and unmoved. Those of 132 do not: a suspension costs
13 units there and not 6, and the bill of a task that was moved would be wrong."""
_HINT = f"install wasm-opt {TESTED[-1]}, or name it, or a library of Binaryen, by {VARIABLE}"
_VERSION_S = 60
_IN_LIBRARY = re.compile(rb"\(version_(\d{1,6})\)")
_IN_ANSWER = re.compile(r"version (\d{1,6})")


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


def version_of(binaryen: Binaryen) -> str:
    """The version that it says it is. Raises Refused where it says none."""
    try:
        if binaryen.is_library:
            found = _IN_LIBRARY.search(Path(binaryen.path).read_bytes())
            said = found[1].decode() if found else ""
        else:
            answer = subprocess.run(  # noqa: S603 - what find_binaryen found
                [binaryen.path, "--version"], capture_output=True, timeout=_VERSION_S, check=True
            )
            match = _IN_ANSWER.search(answer.stdout[:200].decode(errors="replace"))
            said = match[1] if match else ""
    except (OSError, subprocess.SubprocessError) as error:
        raise Refused(f"Binaryen does not say its version: {error}", _HINT) from None
    if not said:
        raise Refused(f"the Binaryen at {binaryen.path} does not say its version", _HINT)
    return said


def name_of(version: str) -> str:
    """What makes modules movable here: with that Binaryen, equal names give equal bytes."""
    return f"mesh-{REWRITING}/binaryen-{version}"


def check_tested(version: str) -> None:
    """Raises Refused where modules of that Binaryen are not to be trusted to be billed right."""
    if version not in TESTED:
        raise Refused(
            f"modules of Binaryen {version} may cost more when they are moved:"
            f" tested is {', '.join(TESTED)}",
            _HINT,
        )


def instrument(binaryen: Binaryen, wasm: bytes, policy: Policy = Policy.OUTER) -> bytes:
    """*wasm*, able to be moved, and saying what it was made of.

    Blocks: seconds, minutes for an interpreter. Raises Refused.
    """
    checked, _ = add_checks(wasm, policy)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "checked.wasm", Path(folder) / "unwinding.wasm"
        source.write_bytes(checked)
        _run(_command(binaryen, str(source), str(target)), folder)
        if not target.is_file():
            raise Refused("Binaryen made nothing of the module")
        made = finish(target.read_bytes())
    source_cid = import_file([wasm], lambda cid, data: None).cid
    return add_origin(made, Origin(source_cid, name_of(version_of(binaryen)), policy))


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
            code = process.wait(WAIT_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise Refused(f"Binaryen took more than {WAIT_SECONDS_MAX} s for the module") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code:
        last = messages.read_bytes()[-200:].decode(errors="replace").strip()
        raise Refused(f"Binaryen failed on the module ({code}): {last}")


def main(argv: list[str]) -> int:
    source, target, *policy = argv
    signal.signal(signal.SIGTERM, _end)
    limit(MEMORY_MAX, SECONDS_MAX)
    try:
        with tempfile.TemporaryDirectory() as kept:
            binaryen = find_binaryen(Path(kept))
            check_tested(version_of(binaryen))
            wasm = Path(source).read_bytes()
            made = instrument(binaryen, wasm, Policy((policy or ["outer"])[0]))
    except Refused as refusal:
        print(f"error: {refusal.reason}\nhint: {refusal.hint}", file=sys.stderr)  # noqa: T201 - its only words
        return 1
    Path(target).write_bytes(made)
    return 0


def _end(*_: object) -> NoReturn:
    """Not at once: Binaryen, in a session of its own, is to end as well."""
    sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
