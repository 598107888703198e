"""`python -m ledger verify FILE`: check a file of entries offline, with no node and no mesh.

Exit 0: all good. 6: something is not as it should be. 2: wrong usage, or nothing to check.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TextIO

from ledger.audit import LINE_MAX, Finding, findings, read
from ledger.model import Entry

GOOD, USAGE, BAD = 0, 2, 6


def main(arguments: Sequence[str], out: TextIO, err: TextIO) -> int:
    """Verify the file that *arguments* name; the exit code."""
    match arguments:
        case ["verify", name]:
            return _verify(Path(name), out, err)
        case _:
            err.write("usage: python -m ledger verify FILE\n")
            return USAGE


def _verify(path: Path, out: TextIO, err: TextIO) -> int:
    try:
        found = list(read(_lines(path)))
    except OSError as error:
        err.write(f"{path}: {error.strerror}\n")
        return USAGE
    entries = [item for item in found if isinstance(item, Entry)]
    misread = [item for item in found if isinstance(item, Finding)]
    if not found:
        err.write(f"{path}: no entries in it\n")
        return USAGE
    checks = bad = 0
    for finding in chain(misread, findings(entries)):
        checks += 1
        bad += not finding.is_good
        out.write(_told(finding))
    out.write(f"{len(entries)} entries, {checks} findings, {bad} not good\n")
    return BAD if bad else GOOD


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of the file, none of them longer than one byte above what is allowed."""
    with path.open("rb") as file:
        while line := file.readline(LINE_MAX + 1):
            yield line


def _told(finding: Finding) -> str:
    verdict = "good" if finding.is_good else "BAD "
    name = f"r-{finding.entry_id.hex()}" if finding.entry_id else "-"
    return f"{verdict} {finding.check:<10} {name} {finding.detail}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdout, sys.stderr))
