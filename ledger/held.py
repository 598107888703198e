"""What is held of each chain, in the store's file: written down as entries come."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from typing import Any

from attrs import evolve

from ledger.holdings import ChainKey, Holding, Total

_HOLDING = "author, net, height, top, top_id, count, sum, forked, low"


def holdings(db: sqlite3.Connection) -> list[Holding]:
    """Of every chain."""
    return [*map(_held, db.execute(f"SELECT {_HOLDING} FROM chain"))]  # noqa: S608 (our own text)


def holding_of(db: sqlite3.Connection, key: ChainKey) -> tuple[int | None, Holding]:
    """Of one chain, and its number if there is anything."""
    row = db.execute(
        f"SELECT chain, {_HOLDING} FROM chain WHERE author = ? AND net = ?",  # noqa: S608 (our own text)
        key,
    ).fetchone()
    return (row[0], _held(row[1:])) if row else (None, Holding(*key))


def new_chain(db: sqlite3.Connection, key: ChainKey) -> int:
    """Its number."""
    cursor = db.execute("INSERT INTO chain(author, net) VALUES (?, ?)", key)
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def is_fork(db: sqlite3.Connection, chain: int, seq: int) -> bool:
    """Whether more than one entry has this place."""
    found = db.execute("SELECT 1 FROM entry WHERE chain = ? AND seq = ? LIMIT 2", (chain, seq))
    return len(found.fetchall()) > 1


def _held(row: Sequence[Any]) -> Holding:
    """Of the columns `_HOLDING`."""
    author, net, height, top, top_id, count, total, forked, low = row
    held = Total(count, int.from_bytes(total, "big"))
    return Holding(author, net, height, top, top_id, held, bool(forked), low)


def write(db: sqlite3.Connection, chain: int, holding: Holding) -> None:
    db.execute(
        "UPDATE chain SET height = ?, top = ?, top_id = ?, count = ?, sum = ?, forked = ?"
        " WHERE chain = ?",
        (
            holding.height,
            holding.top,
            holding.top_id,
            holding.total.count,
            holding.total.sum.to_bytes(32, "big"),
            holding.forked,
            chain,
        ),
    )


def height_from(
    db: sqlite3.Connection, chain: int, height: int, top: int, new: Collection[int] = ()
) -> int:
    """The first seq from *height* on that is missing, below *top*; *new* ones are there."""
    while height in new:
        height += 1
    if height == top:
        return height
    places = db.execute(
        "SELECT DISTINCT seq FROM entry WHERE chain = ? AND seq >= ? ORDER BY seq", (chain, height)
    )
    for (seq,) in places:
        if seq != height:
            break
        height += 1
    return height


def recount(db: sqlite3.Connection, chain: int) -> None:
    """What is held of a chain, from its entries; that it forked once is not forgotten."""
    author, net, forked = db.execute(
        "SELECT author, net, forked FROM chain WHERE chain = ?", (chain,)
    ).fetchone()
    places = db.execute(
        "SELECT seq, substr(raw, 1, 32) FROM entry WHERE chain = ?", (chain,)
    ).fetchall()
    holding = Holding(author, net, forked=bool(forked))
    for seq, entry_id in places:
        holding = holding.topped(seq, entry_id)
    twice = author != b"" and len({seq for seq, _ in places}) < len(places)
    total = Total().plus(entry_id for _, entry_id in places)
    height = height_from(db, chain, 0, holding.top)
    write(db, chain, evolve(holding, height=height, total=total, forked=holding.forked or twice))
