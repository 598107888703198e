"""What the ledger's files have in common: SQLite's transactions, and its errors as ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from ledger.errors import Corruption, LedgerError

BUSY_WAIT_S = 5.0
"""How long another process's transaction is waited for."""
RESTORE = "move the file away and fetch the entries from other nodes again"
"""The way out of a damaged ledger."""

_HINTS = {
    sqlite3.SQLITE_BUSY: ("the ledger is in use", "another process holds it: stop that one"),
    sqlite3.SQLITE_FULL: ("the disk is full", "make room: nothing was written"),
    sqlite3.SQLITE_READONLY: ("the ledger may not be written", "check the file's permissions"),
    sqlite3.SQLITE_CANTOPEN: ("the ledger cannot be opened", "check the folder's permissions"),
    sqlite3.SQLITE_IOERR: ("the disk failed", "nothing was acknowledged: check the disk"),
    sqlite3.SQLITE_NOTADB: ("the file is not a ledger", "give another path"),
}


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and nobody else writes meanwhile."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """What is read is of one moment, whatever others write meanwhile."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("ROLLBACK")


@contextmanager
def telling_why(restore: str = RESTORE) -> Iterator[None]:
    """SQLite's errors as ours, with the way out; misuse of its API stays what it is."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code == sqlite3.SQLITE_CORRUPT:
            raise Corruption(f"the ledger file is damaged: {error}", restore) from error
        reason, hint = _HINTS.get(code, ("the ledger failed", ""))
        raise LedgerError(f"{reason}: {error}", hint) from error
