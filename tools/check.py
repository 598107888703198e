#!/usr/bin/env python3
"""Everything a change must pass, one line a step: python3 tools/dev.py check [--fast]

--fast leaves the tests out. The first step that fails shows its output, and is the last.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sys.executable).parent


@frozen
class Step:
    """One check: what it is called and how it is run (from the repository's root)."""

    name: str
    command: tuple[str, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description="Everything a change must pass.")
    parser.add_argument("--fast", action="store_true", help="leave the tests out")
    parser.add_argument("--all", action="store_true", help="go on after a failure")
    options = parser.parse_args()
    failed = False
    for step in steps(with_tests=not options.fast):
        failed |= not passes(step)
        if failed and not options.all:
            break
    return 1 if failed else 0


def steps(with_tests: bool) -> Iterator[Step]:
    """The checks, quickest first."""
    yield Step("format", module("ruff", "format", "--check", "--quiet", "."))
    yield Step("lint", module("ruff", "check", "--quiet", "."))
    yield Step("tidy", script("tidy.py"))
    if (ROOT / "tools" / "protos.py").exists():
        yield Step("protos", script("protos.py", "--check"))
    yield Step("imports", (str(SCRIPTS / "lint-imports"), "--no-logo"))
    yield Step("types", module("mypy"))
    if with_tests:
        yield Step("tests", module("pytest"))


def module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *arguments)


def script(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, str(ROOT / "tools" / name), *arguments)


def passes(step: Step) -> bool:
    """Run *step*; print its line, and after a failure all that it said."""
    began = time.monotonic()
    done = subprocess.run(
        step.command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    good = done.returncode == 0
    took = time.monotonic() - began
    print(f"{'ok' if good else 'FAIL':4} {step.name:8} {took:6.1f} s", flush=True)
    if not good:
        print(done.stdout.rstrip() or f"(exit status {done.returncode}, no output)", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main())
