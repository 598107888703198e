"""Which functions of a program may come to call themselves. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def recursive(calls: Sequence[Sequence[int]]) -> set[int]:
    """The nodes on a cycle of the graph in which node n calls those of calls[n].

    Tarjan's algorithm for strongly connected components, without recursion of its own: a stranger's
    call graph is as deep as it likes.
    """
    walk = _Walk(calls)
    for node in range(len(calls)):
        if node not in walk.order:
            walk.visit(node)
    return walk.found


class _Walk:
    def __init__(self, calls: Sequence[Sequence[int]]) -> None:
        self.calls = calls
        self.order: dict[int, int] = {}
        self.low: dict[int, int] = {}
        self.open: list[int] = []
        self.is_open: set[int] = set()
        self.found: set[int] = set()

    def visit(self, root: int) -> None:
        path = [(root, self._enter(root))]
        while path:
            node, following = path[-1]
            for called in following:
                if called not in self.order:
                    path.append((called, self._enter(called)))
                    break
                if called in self.is_open:
                    self.low[node] = min(self.low[node], self.order[called])
            else:
                path.pop()
                if path:
                    parent = path[-1][0]
                    self.low[parent] = min(self.low[parent], self.low[node])
                if self.low[node] == self.order[node]:
                    self._close(node)

    def _enter(self, node: int) -> Iterator[int]:
        self.order[node] = self.low[node] = len(self.order)
        self.open.append(node)
        self.is_open.add(node)
        return iter(self.calls[node])

    def _close(self, root: int) -> None:
        """*root* is the first of its component that was met: the rest lie above it."""
        component = [self.open.pop()]
        while component[-1] != root:
            component.append(self.open.pop())
        self.is_open.difference_update(component)
        if len(component) > 1 or root in self.calls[root]:
            self.found.update(component)
