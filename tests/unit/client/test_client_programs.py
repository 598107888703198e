"""Functions as programs: what can travel does what it does at home, what cannot is told."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from mesh.client.errors import BadRequest
from mesh.client.programs import ANSWER, QUESTION, ask, for_interpreter
from mesh.runtime.interpreters import PYTHON

SCALE = 3


def play(folder: Path, function: Callable[..., object], *args: object, **named: object) -> object:
    """Run what would travel here, with folders of ours for the guest's."""
    program, question = ask(function, args, named)
    (folder / QUESTION).write_bytes(question)
    text = program.decode().replace("/in/", f"{folder}/").replace("/out/", f"{folder}/")
    subprocess.run([sys.executable, "-c", text], check=True, timeout=60)
    value: object = json.loads((folder / ANSWER).read_bytes())
    return value


def mean(numbers: list[float], *, digits: int = 2) -> dict[str, float]:
    """With an import, a helper, a comprehension and recursion of its own."""
    import statistics as s

    def rounded(value: float, left: int = 2) -> float:
        return round(value, digits) if left == 0 else rounded(value, left - 1)

    class Kept:
        found = s.mean(numbers)

    return {"mean": rounded(Kept.found), "most": max(n for n in numbers if n)}


def json_of(value: object) -> object:
    return {"value": value, "text": f"{value}"}


def test_a_function_gives_what_it_gives_at_home(tmp_path: Path) -> None:
    def indented(a: int, b: int = 4, *rest: int, **named: int) -> list[object]:
        return [a, b, rest, named]

    assert play(tmp_path, mean, [1, 2, 4.005], digits=1) == mean([1, 2, 4.005], digits=1)
    assert play(tmp_path, json_of, {"ä": [None, True]}) == json_of({"ä": [None, True]})
    assert play(tmp_path, indented, 1, c=3) == [1, 4, [], {"c": 3}]


def uses_a_module(x: float) -> float:
    return math.sqrt(x)


def uses_a_global() -> int:
    def inside() -> int:
        return SCALE

    return inside()


def has_a_default_from_outside(x: int = SCALE) -> int:
    return x


@cache
def is_decorated(x: int) -> int:
    return x


def test_what_cannot_travel_is_told_before_anything_is_asked() -> None:
    hidden = 5

    def closes_over() -> int:
        return hidden

    async def waits() -> None:
        """Nobody would run it."""

    for function, why in (
        (uses_a_module, "outside: math"),
        (uses_a_global, "outside: SCALE"),
        (has_a_default_from_outside, "outside: SCALE"),
        (closes_over, "outside: hidden"),
        (is_decorated, "not a Python function"),
        (lambda: 1, "one plain def"),
        (waits, "one plain def"),
        (len, "not a Python function"),
        (mean.__get__(1), "not a Python function"),
    ):
        with pytest.raises(BadRequest, match=why):
            ask(function, (), {})


def test_arguments_are_plain_values() -> None:
    endless: list[object] = []
    endless.append(endless)
    for value in ({1, 2}, b"bytes", object(), endless):
        with pytest.raises(BadRequest, match="not JSON"):
            ask(json_of, (value,), {})


def test_a_program_is_an_input_of_the_interpreters_module() -> None:
    module, args, inputs = for_interpreter("python", "prog.py", ["1"], {"a": "a.txt"})
    assert module.startswith("cid:bafy")
    assert args == ("/in/main.py", "1")
    assert inputs == {"main.py": "prog.py", "a": "a.txt"}
    with pytest.raises(BadRequest, match="the program itself"):
        for_interpreter("python", "prog.py", [], {"main.py": "other.py"})
    with pytest.raises(BadRequest, match="no runtime 'ruby'") as caught:
        for_interpreter("ruby", "prog.rb", [], {})
    assert PYTHON.name in caught.value.hint
