"""The forecast on real load: what is promised of the hedge holds on the extract, every time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[3] / "tools" / "bench_forecast.py"


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """What one quick run prints: three days of ten real machines."""
    done = subprocess.run(
        [sys.executable, str(BENCH), "--quick", "--json"],
        cwd=BENCH.parents[1],
        env={"PYTHONPATH": str(BENCH.parents[1])},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_on_real_load_the_hedge_is_no_worse_than_the_best_simple_model(
    measured: dict[str, Any],
) -> None:
    assert measured["figures"]["extract_cpu_hedge_over_best_simple"] <= 1.05
    assert measured["context"]["best_simple"]["extract_cpu"] != "hedge"


@pytest.mark.slow
def test_on_real_load_the_80_percent_band_holds_about_that_often(measured: dict[str, Any]) -> None:
    assert 0.70 <= measured["figures"]["extract_cpu_coverage80"] <= 0.90


@pytest.mark.slow
def test_a_figure_that_was_not_measured_is_absent(measured: dict[str, Any]) -> None:
    names = set(measured["figures"])
    assert names == {"step_us", "extract_cpu_hedge_over_best_simple", "extract_cpu_coverage80"}
