"""tools/check.py: a line a step, and after a failure all that the step said."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def check(tool: Callable[[str], ModuleType]) -> ModuleType:
    return tool("check")


def run(check: ModuleType, program: str) -> bool:
    passed: bool = check.passes(check.Step("stage", (sys.executable, "-c", program)))
    return passed


def test_a_step_that_passes_is_one_line(
    check: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(check, "print('much to say')")
    assert capfd.readouterr().out.startswith("ok   stage")


def test_a_step_that_fails_shows_what_it_said(
    check: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    program = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)"
    assert not run(check, program)
    line, *said = capfd.readouterr().out.splitlines()
    assert line.startswith("FAIL stage")
    assert sorted(said) == ["one", "two"]


def test_a_silent_failure_tells_its_status(
    check: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not run(check, "raise SystemExit(7)")
    assert "exit status 7" in capfd.readouterr().out


def test_fast_leaves_only_the_tests_out(check: ModuleType) -> None:
    fast = [step.name for step in check.steps(with_tests=False)]
    assert [step.name for step in check.steps(with_tests=True)] == [*fast, "tests"]
    assert {"format", "lint", "tidy", "imports", "types"} <= set(fast)
