#!/usr/bin/env python3
"""How well the owner's load is forecast: the hedge beside the simple models that it is made of.

    python tools/bench_forecast.py [--quick] [--json] [--bitbrains FOLDER]

On the extract of real server load in tests/data (CPU, ten machines, a week; --quick: three days),
and, where its folder is given, on the held-out machines and weeks of the Bitbrains trace (CPU and
RAM; --quick: every fifth machine). Pinball loss is the mean over the three quantiles and the three
horizons, in percentage points. "Best simple" is chosen in hindsight, once for the whole set.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from attrs import define, frozen

from mesh.forecast.baseline import Band, Model, Recent, Smoothed
from mesh.forecast.forecaster import DAY, HORIZONS, RATES, RECENT, simple_hedge

EXTRACT = Path(__file__).resolve().parents[1] / "tests" / "data" / "nab_aws_cpu" / "load.csv"
HEDGE = "hedge"
WARM = 2 * HORIZONS[-1]
"""Steps after which every model says something."""

Series: TypeAlias = Sequence[float | None]
"""Even steps; None: not seen."""


@define
class Score:
    """What the forecasts of one model cost at one horizon, and how often the band held."""

    cost: float = 0.0
    held: int = 0
    count: int = 0

    def add(self, band: Band, value: float) -> None:
        self.cost += band.pinball(value)
        self.held += band.q10 <= value <= band.q90
        self.count += 1


@frozen
class Trial:
    """Every model's mean pinball loss and coverage over one set of series."""

    pinball: Mapping[str, float]
    coverage: Mapping[str, float]

    @property
    def best_simple(self) -> str:
        return min((name for name in self.pinball if name != HEDGE), key=self.pinball.__getitem__)

    @property
    def over_best_simple(self) -> float:
        return self.pinball[HEDGE] / self.pinball[self.best_simple]


def main() -> int:
    parser = argparse.ArgumentParser(description="How well the owner's load is forecast.")
    parser.add_argument("--quick", action="store_true", help="under a minute, coarser")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--bitbrains", type=Path, help="folder of the npz and splits.json")
    options = parser.parse_args()
    trials = {"extract_cpu": trial("extract, CPU", extract(3 * DAY if options.quick else None))}
    if options.bitbrains:
        every = 5 if options.quick else 1
        for channel in ("cpu", "mem"):
            series = bitbrains(options.bitbrains, channel, every)
            trials[f"bitbrains_{channel}"] = trial(f"Bitbrains test, {channel}", series)
    if options.json:
        print(json.dumps(report(trials, quick=options.quick)))
    else:
        print("\n".join(table(trials)))
    return 0


def report(trials: Mapping[str, Trial], *, quick: bool) -> dict[str, object]:
    """The figures, and what they were measured on."""
    figures = {"step_us": step_us()}
    for name, done in trials.items():
        figures[f"{name}_hedge_over_best_simple"] = done.over_best_simple
        figures[f"{name}_coverage80"] = done.coverage[HEDGE]
    if "bitbrains_cpu" in trials and not quick:  # the name that the targets give it
        held = [trials[f"bitbrains_{channel}"].coverage[HEDGE] for channel in ("cpu", "mem")]
        figures["coverage80"] = statistics.mean(held)
    context = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "quick": quick,
        "pinball": {name: dict(done.pinball) for name, done in trials.items()},
        "best_simple": {name: done.best_simple for name, done in trials.items()},
    }
    return {
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "context": context,
    }


def table(trials: Mapping[str, Trial]) -> Iterator[str]:
    for name, done in trials.items():
        yield f"{name}: pinball loss (less is better), coverage of the 80 % band"
        for model in sorted(done.pinball, key=done.pinball.__getitem__):
            yield f"  {model:16} {done.pinball[model]:8.4f} {done.coverage[model]:6.2f}"
        yield f"  hedge over the best simple one ({done.best_simple}): {done.over_best_simple:.3f}"
    yield f"one step of one series: {step_us():.0f} µs"


def trial(what: str, many: Iterable[Series]) -> Trial:
    """Every model on every one of *many* series; each series and horizon counts alike."""
    pinball: dict[str, list[float]] = {}
    coverage: dict[str, list[float]] = {}
    for number, series in enumerate(many, 1):
        print(f"{what}: series {number}", file=sys.stderr)
        for (name, _), score in replay(contestants(), series).items():
            pinball.setdefault(name, []).append(score.cost / score.count)
            coverage.setdefault(name, []).append(score.held / score.count)
    return Trial(
        {name: statistics.mean(values) for name, values in pinball.items()},
        {name: statistics.mean(values) for name, values in coverage.items()},
    )


def contestants() -> dict[str, Model]:
    """The hedge, and each simple model alone."""
    simple: dict[str, Model] = {
        "persistence" if rate == 1 else f"ewma {rate}": Smoothed(rate, HORIZONS, DAY)
        for rate in RATES
    }
    return simple | {f"window {size}": Recent(size) for size in RECENT} | {HEDGE: simple_hedge()}


def replay(models: Mapping[str, Model], series: Series) -> dict[tuple[str, int], Score]:
    """What each model's forecasts at each horizon were worth on *series*, once all speak."""
    said: dict[int, deque[dict[str, Band | None]]] = {h: deque(maxlen=h) for h in HORIZONS}
    scores = {(name, ahead): Score() for name in models for ahead in HORIZONS}
    for step, value in enumerate(series):
        for ahead, waiting in said.items():
            due = waiting[0] if len(waiting) == ahead else {}
            if value is not None and step >= WARM + ahead and None not in due.values():
                for name, band in due.items():
                    assert band is not None
                    scores[name, ahead].add(band, value)
        for model in models.values():
            model.miss() if value is None else model.observe(value)
        for ahead, waiting in said.items():
            waiting.append({name: model.band(ahead) for name, model in models.items()})
    return {key: score for key, score in scores.items() if score.count}


def extract(steps: int | None = None) -> Iterator[Series]:
    """The machines of the extract, their first *steps*."""
    with EXTRACT.open(newline="") as file:
        _names, *rows = csv.reader(file)
    for column in zip(*rows[:steps], strict=True):
        yield [float(cell) if cell else None for cell in column]


def bitbrains(folder: Path, channel: str, every: int) -> Iterator[Series]:
    """Machines and weeks that nothing was ever tuned on, with two days before them to warm up."""
    splits = json.loads((folder / "splits.json").read_text())
    start = splits["time_index"]["val_end"] - 2 * DAY
    end = splits["time_index"]["test_end"]
    with np.load(folder / "bitbrains_rnd_active202_5min.npz") as file:
        machines, load = list(file["vm"]), file[channel]
    for machine in splits["test"][::every]:
        hundredths = load[machines.index(machine), start:end]
        yield [None if cell == 0xFFFF else float(cell) / 100 for cell in hundredths]


def step_us() -> float:
    """Microseconds that one step of one series takes, with a day behind it."""
    hedge = simple_hedge()
    series = [value for value in next(iter(extract())) if value is not None]
    for value in series[:DAY]:
        hedge.observe(value)
    timed = series[DAY : 2 * DAY]
    began = time.perf_counter()
    for value in timed:
        hedge.observe(value)
    return (time.perf_counter() - began) / len(timed) * 1e6


if __name__ == "__main__":
    sys.exit(main())
