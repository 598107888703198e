"""Run the simulator for its two figures: seeds without a violation, and bugs on purpose caught.

    python tools/bench_sim.py [--quick] [--json] [--seeds N] [--jobs J]

The product must break no promise in any seed; each canary (tests/sim/canaries) must break one
within 300 seeds. Exit 1 when either does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mesh.sim.jobs import play_all

ROOT = Path(__file__).resolve().parents[1]
CANARIES = ROOT / "tests" / "sim" / "canaries"
WITHIN = 300


def main() -> int:
    """Print the figures."""
    options = read_arguments()
    seeds = options.seeds or (60 if options.quick else 1000)
    figures: dict[str, float] = measure_seeds(seeds, options.jobs)
    figures |= measure_canaries(WITHIN)
    if options.json:
        context = {"seeds_per_canary": WITHIN, "jobs": options.jobs, "quick": options.quick}
        print(json.dumps({"figures": figures, "context": context}))
    else:
        for name, value in figures.items():
            print(f"{name:24} {value:g}")
    is_clean = figures["sim_violations"] == 0
    return 0 if is_clean and figures["canaries_caught"] == figures["canaries"] else 1


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--quick", action="store_true", help="60 seeds instead of 1000")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--seeds", type=int, help="seeds without a mutation")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    return parser.parse_args()


def measure_seeds(count: int, jobs: int) -> dict[str, float]:
    """The product as it is."""
    start = time.monotonic()
    violations, hours, events = 0, 0.0, 0
    for number, outcome in enumerate(play_all(range(count), jobs), 1):
        violations += bool(outcome.promise)
        hours += outcome.virtual_s / 3600
        events += outcome.events
        if outcome.promise:
            tell(f"seed {number - 1}: {outcome.promise} {outcome.detail}")
        elif number % 50 == 0:
            tell(f"{number} of {count} seeds, {violations} violations, {hours:.1f} h simulated")
    took = time.monotonic() - start
    return {
        "sim_seeds": count,
        "sim_violations": violations,
        "sim_hours": round(hours, 1),
        "sim_events": events,
        "sim_seeds_per_s": round(count / took, 2),
    }


def measure_canaries(within: int) -> dict[str, float]:
    """Each bug on purpose: the first seed that catches it."""
    names = hunt("names")
    caught, worst = 0, 0
    for number, name in enumerate(names):
        report = hunt(str(number), "0", str(within))
        if report["first"] is None:
            tell(f"NOT caught in {within} seeds: {name}")
            continue
        caught += 1
        worst = max(worst, report["first"] + 1)
        tell(f"caught by seed {report['first']:3}  {', '.join(report['caught'])}  {name}")
    return {"canaries": len(names), "canaries_caught": caught, "canary_seeds_worst": worst}


def hunt(*arguments: str) -> Any:  # noqa: ANN401  (whatever JSON says)
    """What the hunt, a process of its own since it mutates what it imports, says."""
    command = [sys.executable, str(CANARIES / "hunt.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def tell(line: str) -> None:
    """Progress goes to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
