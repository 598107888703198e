#!/usr/bin/env python3
"""House rules that no linter has: short files and functions, plain class names, reasons given.

python tools/tidy.py        prints one line per breach; the exit status says whether there is any
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOP_FILES = {"pyproject.toml", "README.md", "LICENSE"}
TOP = TOP_FILES | {"mesh", "ledger", "protos", "tests", "tools", "config"}
FILE_LINES, FUNCTION_LINES = 500, 60
TEST_FILE_LINES, TEST_FUNCTION_LINES = 900, 80
"""Tests of one core stay together; what silences a tool there needs no reason."""
REASON_WORDS = 2
VAGUE = re.compile(r"Manager|Helper|Util(?!i)")
"""Words that name no thing of the field. (A utilisation is one.)"""
SILENCED = re.compile(r"#\s*(?:noqa|type:\s*ignore)(?:\[[^]]*]|:[A-Z0-9, ]*)?(?P<reason>.*)$")
"""A comment that silences a tool: the codes it silences, and after them the reason."""


def main() -> int:
    names = listed()
    breaches = [*layout(names)]
    for name in names:
        if name.endswith(".py") and not name.startswith("mesh/v1/") and (ROOT / name).is_file():
            text, is_test = (ROOT / name).read_text(), name.startswith("tests/")
            breaches += [f"{name}:{what}" for what in source(text, is_test=is_test)]
    print("\n".join(breaches) or f"{len(names)} files are tidy")
    return 1 if breaches else 0


def listed() -> list[str]:
    """Every file that is, or is about to be, part of the repository."""
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(set(done.stdout.splitlines()))


def layout(names: list[str]) -> Iterator[str]:
    """The top level is fixed; names that begin with a dot are free."""
    there = {name.split("/")[0] for name in names if not name.startswith(".")}
    for name in sorted(there - TOP):
        yield f"{name}: does not belong to the top level"
    for name in sorted(TOP - there):
        yield f"{name}: missing from the top level"


def source(text: str, *, is_test: bool = False) -> Iterator[str]:
    """What is untidy in one Python file, as `line: what`."""
    lines = text.splitlines()
    longest = TEST_FILE_LINES if is_test else FILE_LINES
    if len(lines) > longest:
        yield f"{len(lines)}: a file of over {longest} lines: cut it along a natural seam"
    longest = TEST_FUNCTION_LINES if is_test else FUNCTION_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > longest:
                yield f"{node.lineno}: {node.name} has {length} lines (at most {longest})"
        if isinstance(node, ast.ClassDef) and VAGUE.search(node.name):
            yield f"{node.lineno}: {node.name}: name it by what it is"
    for number, line in enumerate(lines, 1):
        silenced = SILENCED.search(line)
        if silenced and not is_test and len(silenced["reason"].split()) < REASON_WORDS:
            yield f"{number}: say after it why the tool is wrong here"


if __name__ == "__main__":
    sys.exit(main())
