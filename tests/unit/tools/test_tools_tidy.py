"""tools/tidy.py: each rule of the house finds its breach, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

Source = Callable[[str], Iterator[str]]


@pytest.fixture(scope="module")
def source(tool: Callable[[str], ModuleType]) -> Source:
    found: Source = tool("tidy").source
    return found


def long_function(lines: int) -> str:
    return "def wander():\n" + "    x = 1\n" * (lines - 1)


def test_a_function_may_have_sixty_lines(source: Source) -> None:
    assert list(source(long_function(60))) == []
    assert list(source(long_function(61))) == ["1: wander has 61 lines (at most 60)"]


def test_a_file_may_have_five_hundred_lines(source: Source) -> None:
    assert list(source("x = 1\n" * 500)) == []
    assert "over 500 lines" in next(source("x = 1\n" * 501))


@pytest.mark.parametrize("name", ["TaskManager", "PathHelper", "TimeUtil", "NetUtils"])
def test_a_vague_class_name_is_refused(source: Source, name: str) -> None:
    assert list(source(f"class {name}: ...")) == [f"1: {name}: name it by what it is"]


def test_a_thing_of_the_field_may_be_named(source: Source) -> None:
    assert list(source("class Utilisation: ...\nclass Management: ...")) == []


@pytest.mark.parametrize("silent", ["noqa", "noqa: S104", "type: ignore", "type: ignore[arg-type]"])
def test_silencing_a_tool_needs_a_reason(source: Source, silent: str) -> None:
    assert list(source(f"x = 1  # {silent}\n")) == ["1: say after it why the tool is wrong here"]
    assert list(source(f"x = 1  # {silent}  # peers must reach us\n")) == []
    assert list(source(f"x = 1  # {silent}  (peers must reach us)\n")) == []
