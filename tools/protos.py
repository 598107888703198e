"""Generate mesh/v1 from protos/mesh/v1; with --check, say whether what is committed is fresh.

    python tools/protos.py [--check]

The compiler is grpcio-tools at the version of the lock file: its output must never be newer than
the oldest protobuf runtime that libp2p allows.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GENERATED = ROOT / "mesh" / "v1"

PACKAGE = '"""Generated from protos/mesh/v1 by tools/protos.py: do not edit."""\n'


def compile_protos(out: Path) -> None:
    """Write the whole generated package to *out*/mesh/v1."""
    plugins = Path(sys.executable).parent
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--proto_path={PROTOS}",
        f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *sorted(str(path) for path in PROTOS.glob("mesh/v1/*.proto")),
    ]
    subprocess.run(command, check=True)
    package = out / "mesh" / "v1"
    (package / "__init__.py").write_text(PACKAGE, encoding="utf-8")
    for path in package.glob("*_pb2_grpc.py*"):
        if not _has_service(path):
            path.unlink()


def _has_service(path: Path) -> bool:
    """Whether a generated *_pb2_grpc file stands for a proto file with a service in it."""
    proto = PROTOS / "mesh" / "v1" / (path.name.split("_pb2_grpc")[0] + ".proto")
    return "\nservice " in proto.read_text(encoding="utf-8")


def stale_files(fresh: Path, committed: Path) -> list[str]:
    """Names that are missing, superfluous or different in *committed*."""
    names = {
        path.name
        for folder in (fresh, committed)
        for path in folder.iterdir()
        if path.suffix in (".py", ".pyi")
    }
    _, different, missing = filecmp.cmpfiles(fresh, committed, sorted(names), shallow=False)
    return sorted(different + missing)


def main() -> int:
    """0 when fresh or written, 1 when stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when stale")
    check: bool = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        compile_protos(out)
        fresh = out / "mesh" / "v1"
        stale = stale_files(fresh, GENERATED) if GENERATED.is_dir() else ["mesh/v1"]
        if check:
            for name in stale:
                print(f"stale: mesh/v1/{name}; run python tools/protos.py", file=sys.stderr)
            return 1 if stale else 0
        shutil.rmtree(GENERATED, ignore_errors=True)
        shutil.copytree(fresh, GENERATED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
