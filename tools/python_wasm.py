"""Fetch CPython's module, for the tests that run it.

    python tools/python_wasm.py TARGET      then: MESH_PYTHON=TARGET python -m pytest …

Nothing is fetched where TARGET is it already. Ends with 3 where no registry can be reached.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mesh.cli.packages import check_bytes, fetch
from mesh.errors import Refused
from mesh.runtime.interpreters import PYTHON

UNREACHED = 3


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    target = Path(argv[0])
    if not target.exists():
        try:
            fetch(PYTHON, target, lambda line: print(line, file=sys.stderr))
        except Refused as refusal:
            print(refusal.reason, file=sys.stderr)
            return UNREACHED
    try:
        check_bytes(PYTHON, target)
    except Refused as refusal:
        print(f"{refusal.reason}; remove it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
