"""What is left of entries that were pruned: their ids, and what their deals amounted to.

A deal may go once nothing more will be asked of it: settled or void on its buyer's own chain, all
of it below a HEAD that witnesses signed, with no arbiter, no claim, no dispute and no ruling. Its
ALLOC leaves how the deal ended, for a later entry about it must still find that; a REFUND of such
a deal leaves its amount. Everything else stays whole: LINEs, KEYOPs, HEADs, proofs, open deals.

Sums per pair are kept beside it, so that a fold need not read what is left of each deal.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeAlias, assert_never

from attrs import frozen

from ledger.codec import ENTRY_MAX, pack, unpack
from ledger.errors import BadEntry
from ledger.filed import number
from ledger.model import Entry, Kind
from ledger.proof import Tree
from ledger.state import Carried, Resolution, deal_of, resolution_of

PRUNED = 2
"""The state of an entry of which only this is left."""

_ID = 32
_SUM = 16  # bytes of a sum of up to 2^64 amounts
_GOES_WITH_IT = frozenset((Kind.USE, Kind.SETTLE, Kind.VOID))
_ENDS = frozenset((Kind.SETTLE, Kind.VOID))


@frozen
class Closed:
    """Of an ALLOC: with whom, and how it ended."""

    seller: bytes
    end: Resolution


@frozen
class Returned:
    """Of a REFUND: to whom, and how many µcr."""

    buyer: bytes
    amount: int


Left: TypeAlias = Closed | Returned | None
"""None of what went with its ALLOC."""
Sums: TypeAlias = Mapping[bytes, tuple[int, int]]
"""(owed, refunded) to each peer of one author, µcr."""


def end_of(alloc: Entry, about: Collection[Entry], below: int) -> Resolution | None:
    """How the deal ended, if nothing more will be asked of it; *about* refer to its ALLOC.

    None if any of it has to stay: then all of it does.
    """
    deal, place = deal_of(alloc), (alloc.content.author, alloc.content.net)
    for entry in about:
        body = entry.content
        if body.kind is Kind.REFUND:
            continue  # it counts by itself
        if body.kind not in _GOES_WITH_IT or (body.author, body.net) != place:
            return None
        if body.seq >= below or deal_of(entry) != deal:
            return None
    if alloc.content.deal.arbiter:
        return None
    ends = (resolution_of(entry) for entry in about if entry.content.kind in _ENDS)
    return min(ends, default=None)


def leave(db: sqlite3.Connection, entry_id: bytes, left: Left) -> None:
    """Keep of an entry its id, its place, and *left*.

    The row moves to below 0, among its like: where it was, whole pages fall empty and are used
    again, and SQLite would not join half-empty ones.
    """
    db.execute(
        "UPDATE entry SET n = -n, state = 2, task = NULL, ref = NULL, raw = ?"
        " WHERE start = ? AND substr(raw, 1, 32) = ?",
        (entry_id + _encode(left), number(entry_id[:8]), entry_id),
    )


def left_of(raw: bytes) -> Left:
    """What a pruned row holds beside the id. Raises BadEntry if it is damaged."""
    if len(raw) == _ID:
        return None
    match unpack(raw[_ID:], ENTRY_MAX):
        case (bytes(seller), int(precedence), int(amount), bytes(entry_id)):
            return Closed(seller, Resolution(precedence, -amount, entry_id))
        case (bytes(buyer), int(amount)):
            return Returned(buyer, amount)
        case _:
            raise BadEntry("not what is left of an entry")


def closed(db: sqlite3.Connection, alloc_id: bytes, buyer: bytes) -> Closed | None:
    """How the deal ended whose ALLOC, on *buyer*'s chain, was pruned."""
    row = db.execute(
        "SELECT raw FROM entry JOIN chain USING (chain)"
        " WHERE start = ? AND substr(raw, 1, 32) = ? AND state = 2 AND author = ?",
        (number(alloc_id[:8]), alloc_id, buyer),
    ).fetchone()
    left = left_of(row[0]) if row else None
    return left if isinstance(left, Closed) else None


def is_pruned(db: sqlite3.Connection, entry_id: bytes) -> bool:
    row = db.execute(
        "SELECT 1 FROM entry WHERE start = ? AND substr(raw, 1, 32) = ? AND state = 2",
        (number(entry_id[:8]), entry_id),
    ).fetchone()
    return row is not None


def summed(lefts: Iterable[Left]) -> Sums:
    """What they amount to."""
    owed: defaultdict[bytes, int] = defaultdict(int)
    refunded: defaultdict[bytes, int] = defaultdict(int)
    for left in lefts:
        match left:
            case Closed(seller, end):
                owed[seller] += end.amount
            case Returned(buyer, amount):
                refunded[buyer] += amount
            case None:
                pass
            case _:
                assert_never(left)
    return {peer: (owed.get(peer, 0), refunded.get(peer, 0)) for peer in owed | refunded}


def sums(db: sqlite3.Connection, chain: int) -> Sums:
    """What the chain's pruned entries amount to, as it was written down."""
    rows = db.execute("SELECT peer, owed, refunded FROM carried WHERE chain = ?", (chain,))
    return {
        peer: (int.from_bytes(owed, "big"), int.from_bytes(back, "big"))
        for peer, owed, back in rows
    }


def carry(db: sqlite3.Connection, chain: int, lefts: Iterable[Left]) -> None:
    """Write down what more of the chain's entries amount to."""
    before = sums(db, chain)
    for peer, (owed, refunded) in summed(lefts).items():
        was_owed, was_refunded = before.get(peer, (0, 0))
        db.execute(
            "INSERT OR REPLACE INTO carried(chain, peer, owed, refunded) VALUES (?, ?, ?, ?)",
            (
                chain,
                peer,
                (was_owed + owed).to_bytes(_SUM, "big"),
                (was_refunded + refunded).to_bytes(_SUM, "big"),
            ),
        )


def carried(db: sqlite3.Connection, net: bytes) -> list[Carried]:
    """What the pruned entries of every chain amount to."""
    rows = db.execute("SELECT chain, author, low FROM chain WHERE net = ? AND low > 0", (net,))
    return [
        Carried(author, peer, low, owed, refunded)
        for chain, author, low in rows.fetchall()
        for peer, (owed, refunded) in sums(db, chain).items()
    ]


def pruned_at(db: sqlite3.Connection, author: bytes, net: bytes, seq: int) -> frozenset[bytes]:
    """The ids of what was pruned at one place."""
    rows = db.execute(
        "SELECT substr(raw, 1, 32) FROM entry JOIN chain USING (chain)"
        " WHERE author = ? AND net = ? AND seq = ? AND state = 2",
        (author, net, seq),
    )
    return frozenset(entry_id for (entry_id,) in rows)


def lefts(db: sqlite3.Connection, chain: int) -> Iterator[Left]:
    """What is left of each of the chain's pruned entries. Raises BadEntry."""
    rows = db.execute("SELECT raw FROM entry WHERE chain = ? AND state = 2", (chain,))
    return (left_of(raw) for (raw,) in rows)


def root_below(db: sqlite3.Connection, chain: int, seq: int) -> bytes:
    """Of the tree over the chain's ids, those of pruned entries too; empty if there is a gap."""
    rows = db.execute(
        "SELECT seq, substr(raw, 1, 32) FROM entry WHERE chain = ? AND seq < ? ORDER BY seq",
        (chain, seq),
    )
    tree = Tree()
    for place, entry_id in rows:
        if place != len(tree):
            return b""
        tree.append(entry_id)
    return tree.root()


def _encode(left: Left) -> bytes:
    match left:
        case Closed(seller, end):
            return pack((seller, end.precedence, end.amount, end.entry_id))
        case Returned(buyer, amount):
            return pack((buyer, amount))
        case None:
            return b""
        case _:
            assert_never(left)
