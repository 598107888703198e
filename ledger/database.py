"""The ledger's files: no commit is lost, older ones are brought up to date, errors are told."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from ledger import schema
from ledger.errors import Corruption, LedgerError
from ledger.filed import number
from ledger.model import Body

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

_PAGE_BYTES = 8192  # entries of 500-700 bytes leave less of such a page empty: 8 % less disk
_APPLICATION = 0x6D4C6431  # "mLd1": this SQLite file is ours

Recount: TypeAlias = Callable[[sqlite3.Connection, int], None]
"""Finds out what is held of a chain, which an older file does not tell."""


def opened(path: Path, recount: Recount) -> sqlite3.Connection:
    """The file *path*, made or brought up to date. Raises LedgerError."""
    with telling_why():
        db = sqlite3.connect(
            path, timeout=BUSY_WAIT_S, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(db, recount)
        except BaseException:
            db.close()
            raise
    return db


def viewed(path: Path) -> sqlite3.Connection:
    """The file *path*, for reading alone: it may be in use. Raises LedgerError."""
    with telling_why():
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True,
            timeout=BUSY_WAIT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            _check_format(db)
        except BaseException:
            db.close()
            raise
    return db


def _check_format(db: sqlite3.Connection) -> None:
    """That the file is a ledger in today's form, which `opened` makes of an older one."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (known,) = db.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise LedgerError("the file is not a ledger", "give another path")
    if known != len(schema.MIGRATIONS):
        told = f"the ledger has schema {known}, this program knows {len(schema.MIGRATIONS)}"
        raise LedgerError(told, "start its node once with this version, or use a newer one")


def _prepare(db: sqlite3.Connection, recount: Recount) -> None:
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    if tables and application != _APPLICATION:
        raise LedgerError("the file is not a ledger", "give another path")
    db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.create_function("hlc_of", 1, lambda body: Body.decode(body).hlc)
    db.create_function("number_of", 1, lambda data: None if data is None else number(data))
    db.create_function("raw_of", 3, lambda *parts: b"".join(parts))
    with transaction(db):
        (known,) = db.execute("PRAGMA user_version").fetchone()
        if known > len(schema.MIGRATIONS):
            raise LedgerError(
                f"the ledger has schema {known}, this program knows {len(schema.MIGRATIONS)}",
                "a newer version wrote it: use that one or a newer one",
            )
        for statements in schema.MIGRATIONS[known:]:
            for statement in statements:
                db.execute(statement)
        if 0 < known < schema.COUNTED_SINCE:
            for (chain,) in db.execute("SELECT chain FROM chain").fetchall():
                recount(db, chain)
        db.execute(f"PRAGMA application_id = {_APPLICATION}")
        db.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS)}")


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
    if db.in_transaction:  # that moment is the caller's
        yield
        return
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
