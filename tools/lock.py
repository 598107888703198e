#!/usr/bin/env python3
"""Re-make config/requirements.lock from pyproject.toml, the one place where packages are named.

    python tools/lock.py [--upgrade]      needs uv on PATH

Without --upgrade every version that still fits is kept. The lock holds for every supported Python
and platform, with the hash of every file; `tools/dev.py` and plain pip install it alike.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ROOT / "pyproject.toml"
LOCK = ROOT / "config" / "requirements.lock"
HEADER = """\
# Every package of mesh, pinned by hash, for every Python and platform that pyproject.toml names.
# Made by tools/lock.py from pyproject.toml; do not edit.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Re-make config/requirements.lock.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    options = parser.parse_args()
    if shutil.which("uv") is None:
        print("lock: uv is not on PATH (pip install uv)", file=sys.stderr)
        return 1
    project = tomllib.loads(PROJECT.read_text())
    with tempfile.TemporaryDirectory() as folder:
        made = resolve(project, Path(folder), upgrade=options.upgrade)
    if made is None:
        return 1
    fresh = HEADER + made
    changed = fresh != LOCK.read_text()
    LOCK.write_text(fresh)
    print("changed" if changed else "unchanged", LOCK.relative_to(ROOT), file=sys.stderr)
    return 0


def resolve(project: dict[str, Any], folder: Path, *, upgrade: bool) -> str | None:
    """What `uv pip compile` makes of *project*, or None when it failed and has said why."""
    wanted, pinned = folder / "pyproject", folder / "lock"
    overrides, constraints = folder / "overrides", folder / "constraints"
    wanted.write_text(lines(requirements(project)))
    overrides.write_text(lines(project["tool"]["uv"]["override-dependencies"]))
    constraints.write_text(lines(project["tool"]["uv"].get("constraint-dependencies", [])))
    if not upgrade:  # uv keeps what its output file already pins
        shutil.copyfile(LOCK, pinned)
    oldest = project["project"]["requires-python"].split(",")[0].removeprefix(">=")
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    command += ["--python-version", oldest, "--override", str(overrides)]
    command += ["--constraint", str(constraints), "--output-file", str(pinned)]
    done = subprocess.run([*command, "-"], input=wanted.read_text(), text=True, check=False)
    return pinned.read_text() if done.returncode == 0 else None


def requirements(project: dict[str, Any]) -> list[str]:
    """Run-time and development packages, and what an installer without network isolation needs."""
    build = project["build-system"]["requires"]
    return [*project["project"]["dependencies"], *project["dependency-groups"]["dev"], *build]


def lines(names: list[str]) -> str:
    return "".join(f"{name}\n" for name in names)


if __name__ == "__main__":
    sys.exit(main())
