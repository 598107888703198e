"""Interpreters: names that resolve to pinned modules."""

import pytest

from mesh.errors import NotFound
from mesh.ids import DAG_PB, RAW, cid_codec, cid_of
from mesh.runtime.execution import MODULE_MAX
from mesh.runtime.interpreters import (
    INTERPRETERS,
    PYTHON,
    arguments,
    find_interpreter,
    interpreter_of,
)


def test_a_name_resolves_to_one_module_and_back() -> None:
    assert find_interpreter("python") is PYTHON
    assert interpreter_of(PYTHON.module) is PYTHON
    assert interpreter_of(cid_of(RAW, b"another")) is None
    assert len({interpreter.name for interpreter in INTERPRETERS}) == len(INTERPRETERS)


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(NotFound, match="'ruby'") as caught:
        find_interpreter("ruby")
    assert "python" in caught.value.hint


def test_every_module_is_one_that_a_node_would_run() -> None:
    for interpreter in INTERPRETERS:
        assert interpreter.size <= MODULE_MAX
        assert cid_codec(interpreter.module) == DAG_PB  # more than one block


def test_the_program_is_the_first_argument() -> None:
    assert arguments(("-x", "")) == ("/in/main.py", "-x", "")
