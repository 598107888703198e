"""Digits of pi, one after the other: digits.py [COUNT [FOLDER]]

A spigot (Gibbons, "Unbounded Spigot Algorithms for the Digits of Pi", 2006): whole numbers alone,
and no digit is ever taken back. Ten to a line, as they come; all of them in FOLDER/pi.txt, /out by
default.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

COUNT = 3_000
A_LINE = 10


def digits() -> Iterator[int]:
    """3, 1, 4, 1, 5, … without end; the state is a fraction that grows."""
    q, r, t, k, n, m = 1, 0, 1, 1, 3, 3
    while True:
        if 4 * q + r - t < n * t:
            yield n
            q, r, n = 10 * q, 10 * (r - n * t), 10 * (3 * q + r) // t - 10 * n
        else:
            q, r, t, n = q * k, (2 * q + r) * m, t * m, (q * (7 * k + 2) + r * m) // (t * m)
            k, m = k + 1, m + 2


def main(argv: list[str]) -> int:
    count = int(argv[0]) if argv else COUNT
    folder = Path(argv[1] if len(argv) > 1 else "/out")
    found = digits()
    done = 0
    with (folder / "pi.txt").open("w") as file:
        while line := "".join(map(str, islice(found, min(A_LINE, count - done)))):
            done += len(line)
            file.write(line + "\n")
            file.flush()
            print(f"{line}  : {done}", flush=True)  # noqa: T201 - a program to run elsewhere
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
