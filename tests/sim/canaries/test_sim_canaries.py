"""A simulator that finds nothing proves nothing: each bug on purpose must be caught."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mutations import MUTATIONS, Mutation

HUNT = Path(__file__).with_name("hunt.py")
ROOT = Path(__file__).parents[3]
FULL = "MESH_SIM_FULL"
"""Set to hunt every canary through all 300 seeds."""
TRIES = 40
"""Seeds after the known one: the draw may change a little."""
SEEDS = 300


def hunt(number: int, first: int, count: int, *extra: str) -> dict[str, Any]:
    command = [sys.executable, str(HUNT), str(number), str(first), str(count), *extra]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    report: dict[str, Any] = json.loads(run.stdout)
    return report


@pytest.mark.long
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_bug_on_purpose_is_caught(mutation: Mutation) -> None:
    report = hunt(MUTATIONS.index(mutation), mutation.seed, TRIES)
    assert set(report["caught"]) & set(mutation.caught_by), report


@pytest.mark.long
@pytest.mark.skipif(FULL not in os.environ, reason=f"minutes of work; set {FULL}=1")
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_bug_on_purpose_is_caught_within_three_hundred_seeds(mutation: Mutation) -> None:
    report = hunt(MUTATIONS.index(mutation), 0, SEEDS, "all")
    assert set(report["caught"]) & set(mutation.caught_by), report


@pytest.mark.long
def test_without_a_bug_nothing_is_caught() -> None:
    assert hunt(-1, 0, 20)["caught"] == {}
