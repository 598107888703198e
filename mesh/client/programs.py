"""Programs for an interpreter, and calls of Python functions somewhere else.

A function travels as its source, its arguments and its value as JSON: what comes back was made by
a stranger's machine, and reading JSON runs nothing.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import symtable
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING

from attrs import frozen

from mesh.client.errors import BadRequest, VerificationFailed
from mesh.errors import NotFound
from mesh.ids import format_cid
from mesh.runtime.interpreters import PROGRAM, arguments, find_interpreter

if TYPE_CHECKING:
    from mesh.client.task import Task

QUESTION = "call.json"
"""The arguments, under /in."""
ANSWER = "value.json"
"""The value, under /out."""
ANSWER_MAX = 64 << 20
"""Bytes of a value that are read."""
_HINT = "what a function uses must be its own: import inside of it, and pass the rest as arguments"
_PROGRAM = f"""\
from __future__ import annotations

{{source}}

if __name__ == "__main__":
    import json as _json

    with open("/in/{QUESTION}", encoding="utf-8") as _file:
        _question = _json.load(_file)
    _value = {{name}}(*_question["args"], **_question["named"])
    with open("/out/{ANSWER}", "w", encoding="utf-8") as _file:
        _json.dump(_value, _file)
"""


def for_interpreter(
    runtime: str, program: str | Path, args: Sequence[str], inputs: Mapping[str, str | Path]
) -> tuple[str, tuple[str, ...], Mapping[str, str | Path]]:
    """The module, arguments and inputs of a task that is *program* in *runtime*."""
    try:
        interpreter = find_interpreter(runtime)
    except NotFound as error:
        raise BadRequest(error.reason, error.hint) from None
    if PROGRAM in inputs:
        raise BadRequest(f"the program itself is /in/{PROGRAM}", "give the input another name")
    module = f"cid:{format_cid(interpreter.module)}"
    return module, arguments(tuple(args)), {PROGRAM: program, **inputs}


@frozen
class Reply:
    """What a function that is called somewhere will return."""

    task: Task

    def value(self, timeout: float | None = None) -> object:
        """What it returned, once it has. Raises TaskFailed where it raised (its traceback:
        `mesh logs`), NotPlaced, TimedOut, and VerificationFailed for what is not JSON.
        """
        record = self.task.result(timeout)
        data = bytearray()
        for chunk in self.task.client.read(record.result.output, ANSWER):
            data += chunk
            if len(data) > ANSWER_MAX:
                raise VerificationFailed(f"the value has more than {ANSWER_MAX >> 20} MiB")
        try:
            value: object = json.loads(data)
        except (ValueError, RecursionError):
            raise VerificationFailed("the value is not JSON", "audit its receipt") from None
        return value


def ask(
    function: Callable[..., object], args: Sequence[object], named: Mapping[str, object]
) -> tuple[bytes, bytes]:
    """The program that calls *function*, and what it asks it. Raises BadRequest."""
    try:
        question = json.dumps({"args": args, "named": named})
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest(f"the arguments are not JSON: {error}", "pass plain values") from None
    program = _PROGRAM.format(source=_source_of(function), name=function.__name__)
    return program.encode(), question.encode()


def _source_of(function: Callable[..., object]) -> str:
    """The text of *function*, if it says all that it needs."""
    if not isinstance(function, FunctionType):
        raise BadRequest(f"{function!r} is not a Python function", "pass one that def made")
    name = function.__name__
    try:
        source = textwrap.dedent(inspect.getsource(function))
        (statement,) = ast.parse(source).body
    except (OSError, SyntaxError, ValueError):
        raise BadRequest(f"the source of {name} is nowhere to be read", _HINT) from None
    if not isinstance(statement, ast.FunctionDef) or statement.name != name:
        raise BadRequest(f"{name} is not one plain def", _HINT)
    if statement.decorator_list:
        raise BadRequest(f"{name} is decorated: its decorators cannot travel", _HINT)
    missing = sorted(_names_from_outside(source) - {name} - set(dir(builtins)))
    if missing:
        raise BadRequest(f"{name} uses names from outside: {', '.join(missing[:8])}", _HINT)
    return source


def _names_from_outside(source: str) -> set[str]:
    """Names that *source* reads and does not define; annotations, never evaluated, apart."""
    whole = symtable.symtable(f"from __future__ import annotations\n{source}", "<function>", "exec")
    found = {s.get_name() for s in whole.get_symbols() if s.is_referenced()}
    tables = whole.get_children()
    while tables:
        table = tables.pop()
        found |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
        tables += table.get_children()
    return found
