"""Build the WebAssembly programs that are committed here, from their sources, the same bytes again.

    python tools/guests.py            build all of them and write their checksums
    python tools/guests.py --check    build them elsewhere and compare with what is committed

C is compiled by zig, from PyPI: in a throw-away environment, or that of the Python interpreter
which MESH_ZIG names. Rust is compiled where MESH_RUSTC names a rustc, and modules are made movable
where MESH_BINARYEN names a Binaryen; elsewhere what is committed of these stays. Which
versions, and where to have them: mesh/examples/README.md.
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
    "tests/guests/heap.wasm",
    "tests/guests/hostile.wasm",
    "tests/guests/traveller.wasm",
    "mesh/examples/mandelbrot.wasm",
    "mesh/examples/collatz.wasm",
    *(f"tools/kernels/{name}.wasm" for name in KERNELS),
)
"""Of these there is one that can be moved too: that is tested and measured without Binaryen."""
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


RUST_FLAGS = (
    "--target=wasm32-wasi",
    "--edition=2021",
    "-Copt-level=3",
    "-Clto",
    "-Cpanic=abort",
    "-Cstrip=symbols",
)


def sources(suffix: str) -> list[Path]:
    """The files in that language, in a fixed order."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).glob(f"*{suffix}"))]


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


def build_rust(rustc: str, source: Path, target: Path) -> None:
    """Likewise."""
    relative = source.relative_to(ROOT)
    subprocess.run([rustc, *RUST_FLAGS, "-o", str(target), str(relative)], check=True, cwd=ROOT)
    target.chmod(0o644)


def make_movable(source: Path, target: Path) -> None:
    """Instrument for suspension, by the Binaryen that MESH_BINARYEN names."""
    command = [sys.executable, "-m", "mesh.runtime.instrument", str(source), str(target)]
    subprocess.run(command, check=True, cwd=ROOT)


def build_all(scratch: Path) -> dict[str, Path]:
    """Every program by the name it is committed under: as built now, or as it lies here."""
    programs: dict[str, Path] = {}
    python = compiler(scratch / "zig")
    for source in sources(".c"):
        target = scratch / (source.stem + ".wasm")
        build(python, source, target)
        programs[str(source.with_suffix(".wasm").relative_to(ROOT))] = target
    rustc = os.environ.get("MESH_RUSTC")
    for source in sources(".rs"):
        target = source.with_suffix(".wasm")
        if rustc:
            target = scratch / target.name
            build_rust(rustc, source, target)
        programs[str(source.with_suffix(".wasm").relative_to(ROOT))] = target
    for name in MOVABLE:
        movable = Path(name).with_suffix(".movable.wasm")
        target = ROOT / movable
        if os.environ.get("MESH_BINARYEN"):
            target = scratch / movable.name
            make_movable(programs[name], target)
        programs[str(movable)] = target
    return programs


def checksums(programs: dict[str, Path]) -> list[str]:
    """In the form of sha256sum."""
    return [f"{sha256(path.read_bytes()).hexdigest()}  {name}\n" for name, path in programs.items()]


def main() -> int:
    """0 when all is built, or when what was built is what is committed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, change nothing")
    is_check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        programs = build_all(Path(scratch))
        lines = checksums(programs)
        if not is_check:
            for name, path in programs.items():
                (ROOT / name).write_bytes(path.read_bytes())
            CHECKSUMS.write_text("".join(lines))
            return 0
    committed = checksums({name: ROOT / name for name in programs})
    if lines == committed and CHECKSUMS.read_text() == "".join(lines):
        print(f"{len(lines)} programs are what their sources say")
        return 0
    print("these differ from their sources; run tools/guests.py:", file=sys.stderr)
    print("".join(sorted(set(lines) - set(committed))), end="", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
