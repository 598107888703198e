"""Build the WebAssembly programs that are committed here, from their C, the same bytes every time.

    python tools/guests.py            build all of them and write their checksums
    python tools/guests.py --check    build them elsewhere and compare with what is committed

The compiler is zig, from PyPI: in a throw-away environment, or that of the Python interpreter which
the variable MESH_ZIG names.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ZIG = "ziglang==0.17.1"
FOLDERS = ("mesh/examples", "tests/guests", "tools/kernels")
KERNELS = ("nbody", "sha256", "matmul", "sieve", "sort", "words")
CHECKSUMS = ROOT / "tests/guests/SHA256SUMS"
MOVABLE = (
    *(ROOT / f"tests/guests/{name}.wasm" for name in ("heap", "hostile", "traveller")),
    *(ROOT / f"tools/kernels/{name}.wasm" for name in KERNELS),
)
"""Guests of which one that can be suspended is committed too, so that this is tested and measured
without Binaryen."""
STACK = 256 << 10
FLAGS = (
    "--target=wasm32-wasi",
    "-std=gnu11",
    "-Wall",
    "-O2",
    "-s",
    f"-Wl,-z,stack-size={STACK}",
    # Misbehaviour must reach the runtime and not be folded away.
    "-fno-sanitize=all",
    "-Wno-infinite-recursion",
)


def sources() -> list[Path]:
    """The C files, in a fixed order."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.c"))]


def compiler(folder: Path) -> Path:
    """A Python interpreter that has zig; one made in *folder* unless MESH_ZIG names it."""
    named = os.environ.get("MESH_ZIG")
    if named:
        return Path(named)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", ZIG], check=True)
    return python


def build(python: Path, source: Path, target: Path) -> None:
    """Compile one file, by a name that says nothing of this machine."""
    relative = source.relative_to(ROOT)
    command = [str(python), "-m", "ziglang", "cc", *FLAGS, "-o", str(target), str(relative)]
    subprocess.run(command, check=True, cwd=ROOT)
    target.chmod(0o644)


def checksum_line(source: Path, wasm: Path) -> str:
    """In the form of sha256sum, with the path of the committed file."""
    return _line(wasm, source.with_suffix(".wasm"))


def make_movable(source: Path, target: Path) -> None:
    """Instrument for suspension; needs Binaryen, which MESH_BINARYEN names (version 116)."""
    command = [sys.executable, "-m", "mesh.runtime.instrument", str(source), str(target)]
    subprocess.run(command, check=True, cwd=ROOT)


def movable(source: Path) -> Path:
    """Where the movable one lies that is made of *source*."""
    return source.with_suffix(".movable.wasm")


def movable_line(source: Path, made: Path) -> str:
    """The line of a movable guest; what is committed stays where there is no Binaryen."""
    if os.environ.get("MESH_BINARYEN"):
        make_movable(source, made)
    else:
        made.write_bytes(movable(source).read_bytes())
    return _line(made, movable(source))


def _line(content: Path, name: Path) -> str:
    return f"{sha256(content.read_bytes()).hexdigest()}  {name.relative_to(ROOT)}\n"


def main() -> int:
    """0 when all is built, or when what was built is what is committed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, change nothing")
    is_check = parser.parse_args().check
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        python = compiler(Path(scratch) / "zig")
        for source in sources():
            wasm = Path(scratch) / (source.stem + ".wasm")
            build(python, source, wasm)
            lines.append(checksum_line(source, wasm))
            if not is_check:
                source.with_suffix(".wasm").write_bytes(wasm.read_bytes())
        made = Path(scratch) / "movable.wasm"
        for source in MOVABLE:
            lines.append(movable_line(source, made))
            if not is_check:
                movable(source).write_bytes(made.read_bytes())
    if not is_check:
        CHECKSUMS.write_text("".join(lines))
        return 0
    committed = [checksum_line(s, s.with_suffix(".wasm")) for s in sources()]
    committed += [_line(movable(source), movable(source)) for source in MOVABLE]
    if lines == committed and CHECKSUMS.read_text() == "".join(lines):
        print(f"{len(lines)} programs are what their sources say")
        return 0
    print("these differ from their sources; run tools/guests.py:", file=sys.stderr)
    print("".join(sorted(set(lines) - set(committed))), end="", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
