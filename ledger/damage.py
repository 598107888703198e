"""Damage: what in the store's file is not as it was stored. Nothing is mended.

An entry's id is its checksum, so every flipped bit of one is found; what it is filed under is
compared with what it says, and what was pruned with the HEAD above it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from ledger import held, remains
from ledger.codec import UINT_MAX
from ledger.database import RESTORE, telling_why
from ledger.errors import BadEntry, Corruption
from ledger.filed import checked, number, vouched
from ledger.keys import Verify, entry_message
from ledger.model import Entry
from ledger.rows import SELECT, Row, entry_of, glance_of, root_of

PAGE = 500
"""Entries read at a time."""
CHECKED = 1
"""The state of an entry that was looked at."""

Chain: TypeAlias = Callable[[bytes, int], Iterator[Entry]]
"""(author, after seq) -> its entries."""


def found(
    db: sqlite3.Connection, chain_of: Chain, verify: Verify, seen: Callable[[int], None]
) -> Iterator[Corruption]:
    """All damage; *seen* hears how many entries were looked at."""
    count, n = 0, -UINT_MAX
    try:
        with telling_why():
            (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            yield Corruption(f"the ledger file is damaged: {verdict}", RESTORE)
        while rows := _page(db, n):
            n = rows[-1][0]
            count += len(rows)
            yield from _damaged(db, rows, verify)
            seen(count)
        with telling_why():
            _check_remains(db, chain_of)
            total = sum(holding.total.count for holding in held.holdings(db))
        if count != total:
            yield Corruption(f"{count} entries where {total} are counted", RESTORE)
    except Corruption as problem:  # of the file itself: nothing can be read beyond it
        yield problem


def _page(db: sqlite3.Connection, n: int) -> list[Row]:
    with telling_why():
        where = "WHERE n > ? ORDER BY n LIMIT ?"
        return db.execute(SELECT + where, (n, PAGE)).fetchall()


def _damaged(db: sqlite3.Connection, rows: Iterable[Row], verify: Verify) -> Iterator[Corruption]:
    for row in rows:
        try:
            with telling_why():
                _check_row(db, row, verify)
        except Corruption as problem:
            yield problem


def _check_row(db: sqlite3.Connection, row: Row, verify: Verify) -> None:
    n, raw = row
    start = number(raw[:8])
    *columns, state, low = db.execute(
        "SELECT author, net, start, seq, hlc, task, ref, state, low FROM entry JOIN chain"
        " USING (chain) WHERE entry.n = ?",
        (n,),
    ).fetchone() or (None, None)
    if state == remains.PRUNED:  # `_check_remains` looks at all of them together
        _, _, is_start, seq, _, *empty = columns
        if is_start != start or seq >= low or empty != [None, None]:
            raise Corruption(f"entry r-{raw[:32].hex()} is filed under the wrong key", RESTORE)
        return
    filed = checked(entry_of(row)) if state == CHECKED else vouched(glance_of(row))
    if columns != [*filed.key, start, filed.seq, filed.hlc, filed.task, filed.ref]:
        raise Corruption(f"entry r-{filed.id.hex()} is filed under the wrong key", RESTORE)
    author = filed.key[0]
    if filed.is_checked and author and not verify(author, entry_message(filed.id), filed.sig):
        raise Corruption(f"entry r-{filed.id.hex()} has a damaged signature", RESTORE)


def _check_remains(db: sqlite3.Connection, chain_of: Chain) -> None:
    """That the ids of what was pruned are those under the HEAD, and the sums are theirs."""
    pruned = db.execute("SELECT chain, author, net, low, forked FROM chain WHERE low > 0")
    for chain, author, net, low, forked in pruned.fetchall():
        where = f"the chain of {author.hex()} below {low}"
        heads = (e for e in chain_of(author, low - 1) if e.content.net == net)
        root = next(map(root_of, heads), b"")
        if not forked and (root == b"" or root != remains.root_below(db, chain, low)):
            raise Corruption(f"{where} is not what its HEAD is over", RESTORE)
        try:
            summed = remains.summed(remains.lefts(db, chain))
        except BadEntry as error:
            raise Corruption(f"{where} is damaged: {error}", RESTORE) from None
        if summed != remains.sums(db, chain):
            raise Corruption(f"{where} amounts to something else", RESTORE)
