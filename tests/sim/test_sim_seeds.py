"""The simulator's daily work: many seeds, old failures, and the same trace every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.sim.jobs import play, play_all
from mesh.sim.options import draw
from mesh.sim.run import main, summarize

FEW, MANY = 60, 200
REGRESSIONS = Path(__file__).with_name("regressions.txt")


def _regressions() -> list[int]:
    lines = REGRESSIONS.read_text(encoding="utf-8").splitlines()
    return [int(line.split()[0]) for line in lines if line and not line.startswith("#")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "seeds", [range(FEW), pytest.param(range(FEW, MANY), marks=pytest.mark.long)], ids=str
)
def test_every_promise_holds_in_every_seed(seeds: range) -> None:
    summary = summarize(list(play_all(seeds, os.cpu_count() or 1)))
    assert summary["broken"] == []
    assert summary["done"] > summary["tasks"] / 3, "a mesh that does no work breaks no promise"


@pytest.mark.long
@pytest.mark.parametrize("seed", _regressions())
def test_what_once_failed_fails_no_more(seed: int) -> None:
    outcome = play(seed)
    assert (outcome.promise, outcome.detail) == ("", "")


@pytest.mark.slow
def test_the_same_seeds_leave_the_same_trace_whatever_the_hash_seed() -> None:
    reports = set()
    for hash_seed in ("0", "1", "2"):
        command = [sys.executable, "-m", "mesh.sim.run", "--first", "7", "--seeds", "4", "--json"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run(command, env=environment, capture_output=True, check=True)
        reports.add(json.dumps(json.loads(run.stdout), sort_keys=True))
    assert len(reports) == 1


@pytest.mark.slow
def test_processes_change_nothing() -> None:
    seeds = range(6)
    alone = summarize(list(play_all(seeds, 1)))
    assert summarize(list(play_all(seeds, 2))) == alone


def test_different_seeds_are_different_worlds() -> None:
    drawn = [draw(seed) for seed in range(100)]
    assert len({options.loss for options in drawn}) > 30
    assert {options.byzantine > 0 for options in drawn} == {True, False}
    assert any(options.is_calm for options in drawn)
    assert all(options.nodes > 3 * options.byzantine for options in drawn if options.byzantine)


def test_the_command_says_what_it_played(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--first", "7", "--seeds", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["seeds"], report["violations"]) == (2, 0)
    assert main(["--first", "7", "--seeds", "1"]) == 0
    assert "1 seeds, 0 violations" in capsys.readouterr().out
