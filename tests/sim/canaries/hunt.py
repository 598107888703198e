"""Play seeds with one mutation in force: `hunt.py NUMBER FIRST COUNT [all]`.

Prints one line of JSON: how many of the seeds broke a promise, by promise, and the first that did.
Without `all` it stops there. `hunt.py names` prints the names of the mutations instead.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import islice

from mutations import MUTATIONS, apply


def main(number: int, first: int, count: int, *, all_seeds: bool) -> None:
    if number >= 0:
        apply(MUTATIONS[number])
    from mesh.sim.jobs import play

    broken = (
        (seed, outcome)
        for seed, outcome in ((seed, play(seed)) for seed in range(first, first + count))
        if outcome.promise
    )
    caught = list(broken if all_seeds else islice(broken, 1))
    report = {
        "first": caught[0][0] if caught else None,
        "detail": caught[0][1].detail if caught else "",
        "caught": dict(Counter(outcome.promise for _, outcome in caught)),
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["names"]:
        sys.stdout.write(json.dumps([mutation.name for mutation in MUTATIONS]) + "\n")
        sys.exit()
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), all_seeds="all" in sys.argv[4:])
