"""Who calls whom in a program, by name and by pointer. Pure.

A pointer leads to a function of its type in a table, and tables do not change in programs that are
moved. So what is found here of what may be called leaves nothing out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

from mesh.runtime.binary import Cursor, Parts
from mesh.runtime.instructions import Body


@frozen
class Calls:
    """A graph: a node for each function of the module itself, and behind these one for each type,
    which calls what a pointer of that type may lead to."""

    first: int
    """The number of the first function that is not imported: its node is 0."""
    types: tuple[int, ...]
    """The node of each type: the same one for types that are the same."""
    graph: list[list[int]]

    def nodes(self, names: Iterable[int], pointers: Iterable[int]) -> list[int]:
        """Of functions that are called by name, imported ones left out, and by a pointer of some
        types; numbers that are none, which no compiler will pass, are left out too."""
        last = self.first + len(self.graph) - len(self.types)
        found = [name - self.first for name in names if self.first <= name < last]
        return found + [self.types[number] for number in pointers if number < len(self.types)]

    def callers(self, called: Iterable[int]) -> set[int]:
        """Those *called*, and all that may come to call one of them."""
        back: list[list[int]] = [[] for _ in self.graph]
        for caller, some in enumerate(self.graph):
            for one in some:
                back[one].append(caller)
        found = set(called)
        ahead = list(found)
        while ahead:
            new = {caller for caller in back[ahead.pop()] if caller not in found}
            found |= new
            ahead += new
        return found


def calls_of(parts: Parts, bodies: Sequence[Body], in_tables: set[int]) -> Calls:
    """Those of the module *parts*, whose functions are *bodies*."""
    first, count, types = len(parts.imports()), len(bodies), parts.types()
    same: dict[bytes, int] = {}
    for raw in types:
        same.setdefault(raw, count + len(same))
    nodes = tuple(same[raw] for raw in types)
    graph: list[list[int]] = [[] for _ in range(count + len(types))]
    calls = Calls(first, nodes, graph)
    for n, body in enumerate(bodies):
        graph[n] = calls.nodes(sorted(body.calls), sorted(body.pointers))
    for n, raw in enumerate(parts.functions()):
        if first + n in in_tables:
            for node in calls.nodes((), (Cursor(raw).u32(),)):
                graph[node].append(n)
    return calls
