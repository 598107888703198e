"""What the ledgers of running nodes hold, read from their files."""

from __future__ import annotations

from collections.abc import Sequence

from process_nodes import Node

from ledger.holdings import Holding, Total
from ledger.model import Kind
from ledger.state import fold
from ledger.store import Store
from mesh.ids import parse_peer
from mesh.node import NET


def open_ledger(node: Node) -> Store:
    """A connection of its own: the node goes on."""
    return Store.open(node.member.home.state / "ledger.sqlite")


def digest(node: Node) -> Total:
    with open_ledger(node) as store:
        return store.total()


def are_equal(nodes: Sequence[Node], at_least: int = 1) -> bool:
    """Whether all hold the same, and as many entries as that."""
    totals = {digest(node) for node in nodes}
    return len(totals) == 1 and min(total.count for total in totals) >= at_least


def balances(node: Node) -> object:
    with open_ledger(node) as store:
        return fold(store.entries(), NET)


def chain_of(node: Node, author: str) -> Holding:
    with open_ledger(node) as store:
        return store.holding(parse_peer(author), NET)


def counter(node: Node, name: str) -> int:
    """A statistic of the node; 0 if it never happened."""
    return int(node.client.status().counters.get(name, 0))


def kinds_in(node: Node) -> set[Kind]:
    with open_ledger(node) as store:
        return {entry.content.kind for entry in store.entries()}
