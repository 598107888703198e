"""Options that many verbs share: quantities with units, the form of the output, the node to ask."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from mesh import units

if TYPE_CHECKING:
    from mesh.client import Client

FORMS = ("table", "wide", "json", "jsonl", "id")
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Quantity(click.ParamType[int]):
    """A number with a unit, read exactly."""

    def __init__(self, name: str, parse: Callable[[str], int]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE = Quantity("size", units.parse_size)
DURATION = Quantity("duration", units.parse_duration)
MONEY = Quantity("credits", units.parse_money)
CORES = Quantity("cores", units.parse_cores)
COUNT = Quantity("number", units.parse_count)


def with_output(function: _Function) -> _Function:
    """Give the command `-o` and `--json`; it receives *form*, one of FORMS."""

    @click.option("-o", "--output", type=click.Choice(FORMS), help="How to print the result.")
    @click.option("--json", "as_json", is_flag=True, help="Short for -o json.")
    @functools.wraps(function)
    def wrapped(*args: object, output: str | None, as_json: bool, **rest: object) -> object:
        if as_json and output not in (None, "json"):
            raise click.UsageError(f"--json and -o {output} exclude one another")
        return function(*args, form="json" if as_json else output or "table", **rest)

    return cast(_Function, wrapped)


def with_client(function: _Function) -> _Function:
    """Give the command `--node`; it receives *client*, connected for its time."""

    @click.option("--node", metavar="ADDRESS", help="The node to ask; default: the one here.")
    @functools.wraps(function)
    def wrapped(*args: object, node: str | None, **rest: object) -> object:
        with open_client(node or click.get_current_context().obj) as client:
            return function(*args, client=client, **rest)

    return cast(_Function, wrapped)


def open_client(node: str | None) -> Client:
    """A client of *node*, or of the node that runs here."""
    from mesh.client import connect

    return connect(node)
