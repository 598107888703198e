"""The entries of one node on its disk: SQLite in WAL mode, one file.

An entry's id is its checksum: SQLite's own check sees few of the bits that flip, `scan` sees every
one that touches an entry. Every commit is synchronous=FULL: an own entry that was acknowledged and
then lost to a power cut would make us fork ourselves. Signatures are checked by the caller.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from ledger import keys
from ledger.chain import Head, check_link
from ledger.errors import BrokenChain, Corruption, LedgerError
from ledger.keys import Verify, entry_message
from ledger.model import Body, Entry, Kind

BUSY_WAIT_S = 5.0
"""How long another process's transaction is waited for."""
PAGE = 500
"""Entries read at a time."""

_PAGE_BYTES = 8192  # entries of 500-700 bytes leave less of such a page empty: 8 % less disk
_APPLICATION = 0x6D4C6431  # "mLd1": this SQLite file is ours
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE chain(chain INTEGER PRIMARY KEY, author BLOB NOT NULL, net BLOB NOT NULL)",
        "CREATE UNIQUE INDEX chain_of ON chain(author, net)",
        "CREATE TABLE entry(n INTEGER PRIMARY KEY, id BLOB NOT NULL, chain INTEGER NOT NULL,"
        " seq INTEGER NOT NULL, nonce BLOB NOT NULL, ref BLOB,"
        " body BLOB NOT NULL, sig BLOB NOT NULL)",
        "CREATE UNIQUE INDEX entry_id ON entry(id)",
        "CREATE INDEX entry_chain ON entry(chain, seq)",
        "CREATE INDEX entry_nonce ON entry(nonce)",
        "CREATE INDEX entry_ref ON entry(ref) WHERE ref IS NOT NULL",
    ),
)
"""What makes schema n+1 of schema n. Append only; a file of schema n has run the first n. A kind
that is new to the ledger is a new schema, so that a program that cannot read it says so."""

_RESTORE = "move the file away and fetch the entries from other nodes again"
_HINTS = {
    sqlite3.SQLITE_BUSY: ("the ledger is in use", "another process holds it: stop that one"),
    sqlite3.SQLITE_FULL: ("the disk is full", "make room: nothing was written"),
    sqlite3.SQLITE_READONLY: ("the ledger may not be written", "check the file's permissions"),
    sqlite3.SQLITE_CANTOPEN: ("the ledger cannot be opened", "check the folder's permissions"),
    sqlite3.SQLITE_IOERR: ("the disk failed", "nothing was acknowledged: check the disk"),
    sqlite3.SQLITE_NOTADB: ("the file is not a ledger", "give another path"),
}

_Row: TypeAlias = tuple[int, bytes, bytes, bytes]
"""(n, id, body, sig)"""


class Store:
    """Durable entries. Any thread may use it, but only one at a time; close it yourself."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    @staticmethod
    def open(path: Path) -> Store:
        """The store in the file *path*, made or brought up to date. Raises LedgerError."""
        with _telling_why():
            db = sqlite3.connect(
                path, timeout=BUSY_WAIT_S, isolation_level=None, check_same_thread=False
            )
            try:
                _prepare(db)
            except BaseException:
                db.close()
                raise
        return Store(db)

    def close(self) -> None:
        """Give the file back. Nothing acknowledged waits for it."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def append_own(self, entries: Iterable[Entry]) -> None:
        """Append to our own chain, in order, all or none; durable when it returns.

        An entry that is there already is passed over. Raises BrokenChain rather than let us fork
        ourselves or resolve an ALLOC twice, and LedgerError.
        """
        with _telling_why(), _transaction(self._db):
            for entry in entries:
                if self.entry(entry.id) is None:
                    self._check_own(entry)
                    self._insert(entry)

    def add(self, entries: Iterable[Entry]) -> int:
        """Keep others' *entries*, in any order and however often; how many were new.

        Only what `chain.check_entry` has passed: the store does not ask who signed. Of several
        signatures over one id the smallest is kept, so that replicas agree. Raises LedgerError.
        """
        with _telling_why(), _transaction(self._db):
            return sum(self._insert(entry) for entry in entries)

    def entry(self, entry_id: bytes) -> Entry | None:
        """The entry of that id. Raises LedgerError."""
        return next(self._read("WHERE id = ?", entry_id), None)

    def head(self, author: bytes, net: bytes) -> Head:
        """Where *author*'s chain on *net* ends: after the highest seq that we hold."""
        last = self._read(
            "JOIN chain USING (chain) WHERE author = ? AND net = ? ORDER BY seq DESC, id LIMIT 1",
            author,
            net,
        )
        return next(map(Head.after, last), Head.start(author, net))

    def chain(self, author: bytes, after_seq: int = -1) -> Iterator[Entry]:
        """*author*'s entries by seq, all arms of a fork, gaps left out; on every network."""
        seq, n = after_seq + 1, 0
        while rows := self._rows(
            "JOIN chain USING (chain) WHERE author = ? AND (seq, entry.n) >= (?, ?)"
            " ORDER BY seq, entry.n LIMIT ?",
            author,
            seq,
            n,
            PAGE,
        ):
            for row in rows:
                entry = _entry(row)
                yield entry
            seq, n = entry.content.seq, rows[-1][0] + 1

    def newest(self, limit: int, nonce: bytes | None = None) -> tuple[Entry, ...]:
        """The last *limit* entries stored, newest first; of task *nonce*, if given."""
        if nonce is None:
            return tuple(self._read("ORDER BY n DESC LIMIT ?", limit))
        return tuple(self._read("WHERE nonce = ? ORDER BY n DESC LIMIT ?", nonce, limit))

    def resolutions(self, alloc_id: bytes) -> tuple[Entry, ...]:
        """The SETTLEs and VOIDs that refer to the ALLOC, by id; state.py says which counts."""
        return tuple(self._read("WHERE ref = ? ORDER BY id", alloc_id))

    def entries(self) -> Iterator[Entry]:
        """All entries, in the order they were stored; what is added meanwhile comes last."""
        n = 0
        while rows := self._rows("WHERE n > ? ORDER BY n LIMIT ?", n, PAGE):
            n = rows[-1][0]
            yield from map(_entry, rows)

    def scan(self, verify: Verify = keys.verify) -> int:
        """Check everything on disk against its hash and signature; how many entries there are.

        Raises Corruption, which names the first entry that is not what was stored.
        """
        with _telling_why():
            (verdict,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
            if verdict != "ok":
                raise Corruption(f"the ledger file is damaged: {verdict}", _RESTORE)
        count = n = 0
        while rows := self._rows("WHERE n > ? ORDER BY n LIMIT ?", n, PAGE):
            n = rows[-1][0]
            count += len(rows)
            for row in rows:
                self._check_row(row, verify)
        return count

    def _check_own(self, entry: Entry) -> None:
        body = entry.content
        alloc: Body | None = None
        if body.kind is not Kind.ALLOC:
            found = self.entry(body.deal.ref)
            alloc = found.content if found else None
            others = self.resolutions(body.deal.ref)
            if any(other.content.author == body.author for other in others):
                raise BrokenChain("the ALLOC is resolved already")
        check_link(self.head(body.author, body.net), entry, alloc)

    def _check_row(self, row: _Row, verify: Verify) -> None:
        n, entry_id, _, _ = row
        entry = _entry(row)
        body = entry.content
        columns = self._db.execute(
            "SELECT net, author, seq, nonce, ref FROM entry JOIN chain USING (chain)"
            " WHERE entry.n = ?",
            (n,),
        ).fetchone()
        if columns != (body.net, body.author, body.seq, body.deal.nonce, body.deal.ref or None):
            raise Corruption(f"entry r-{entry_id.hex()} is filed under the wrong key", _RESTORE)
        if not verify(body.author, entry_message(entry_id), entry.sig):
            raise Corruption(f"entry r-{entry_id.hex()} has a damaged signature", _RESTORE)

    def _insert(self, entry: Entry) -> bool:
        body = entry.content
        self._db.execute(
            "INSERT OR IGNORE INTO chain(author, net) VALUES (?, ?)", (body.author, body.net)
        )
        cursor = self._db.execute(
            "INSERT INTO entry(id, chain, seq, nonce, ref, body, sig)"
            " SELECT ?, chain, ?, ?, ?, ?, ? FROM chain WHERE author = ? AND net = ?"
            " ON CONFLICT(id) DO NOTHING",
            (
                entry.id,
                body.seq,
                body.deal.nonce,
                body.deal.ref or None,
                entry.body,
                entry.sig,
                body.author,
                body.net,
            ),
        )
        if cursor.rowcount:
            return True
        self._db.execute(
            "UPDATE entry SET sig = ?1 WHERE id = ?2 AND sig > ?1", (entry.sig, entry.id)
        )
        return False

    def _read(self, where: str, *values: object) -> Iterator[Entry]:
        return map(_entry, self._rows(where, *values))

    def _rows(self, where: str, *values: object) -> list[_Row]:
        with _telling_why():
            query = "SELECT n, id, body, sig FROM entry " + where  # noqa: S608 (our own text)
            return self._db.execute(query, values).fetchall()


def _entry(row: _Row) -> Entry:
    _, entry_id, body, sig = row
    entry = Entry(body, sig)
    if entry.id != entry_id:
        raise Corruption(f"entry r-{entry_id.hex()} does not hash to its id", _RESTORE)
    return entry


def _prepare(db: sqlite3.Connection) -> None:
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    if tables and application != _APPLICATION:
        raise LedgerError("the file is not a ledger", "give another path")
    db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    with _transaction(db):
        (schema,) = db.execute("PRAGMA user_version").fetchone()
        if schema > len(_MIGRATIONS):
            raise LedgerError(
                f"the ledger has schema {schema}, this program knows {len(_MIGRATIONS)}",
                "a newer version wrote it: use that one or a newer one",
            )
        for statements in _MIGRATIONS[schema:]:
            for statement in statements:
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {_APPLICATION}")
        db.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
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
def _telling_why() -> Iterator[None]:
    """SQLite's errors as ours, with the way out; misuse of its API stays what it is."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code == sqlite3.SQLITE_CORRUPT:
            raise Corruption(f"the ledger file is damaged: {error}", _RESTORE) from error
        reason, hint = _HINTS.get(code, ("the ledger failed", ""))
        raise LedgerError(f"{reason}: {error}", hint) from error
