"""Pins: the roots that the embedded store must keep, each with the reason why, in SQLite."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from mesh.errors import Corruption, NotFound, Unavailable
from mesh.ids import Cid, format_cid

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pins (
    root BLOB NOT NULL, reason TEXT NOT NULL, count INTEGER NOT NULL CHECK (count > 0),
    PRIMARY KEY (root, reason)
) STRICT, WITHOUT ROWID
"""


@frozen
class Pin:
    """A root that is kept for a reason, as often as it was pinned for it."""

    root: Cid
    reason: str
    count: int


class Pins:
    """The durable set of pins. May be called from several threads."""

    def __init__(self, path: Path) -> None:
        """Raises Corruption where *path* is something else."""
        self._path = path
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            with self._writing():
                # One wait for the disk at each commit, where a rollback journal has four.
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")
                self._database.execute(_SCHEMA)
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise Corruption(f"{path} is no database of pins: {error}") from error

    def close(self) -> None:
        """Close the database; nothing may be called after."""
        self._database.close()

    def add(self, root: Cid, reason: str) -> None:
        """Pin *root* once more for *reason*. Raises Unavailable if the disk is full."""
        self.add_all((root,), reason)

    def add_all(self, roots: Sequence[Cid], reason: str) -> None:
        """`add` of several, or of none of them, at the price of one wait for the disk."""
        if not roots:
            return
        rows = ",".join(["(?, ?, 1)"] * len(roots))  # one statement: a transaction of its own
        with self._writing():
            self._database.execute(
                f"INSERT INTO pins VALUES {rows}"  # noqa: S608  (of question marks)
                " ON CONFLICT (root, reason) DO UPDATE SET count = count + 1",
                [field for root in roots for field in (root, reason)],
            )

    def remove(self, root: Cid, reason: str) -> None:
        """Undo one `add`. Raises NotFound where there was none."""
        with self._writing():
            if self._count(root, reason) == 0:
                raise NotFound(
                    f"{format_cid(root)} is not pinned for {reason!r}", "see the list of pins"
                )
            if self._count(root, reason) == 1:
                change = "DELETE FROM pins WHERE root = ? AND reason = ?"
            else:
                change = "UPDATE pins SET count = count - 1 WHERE root = ? AND reason = ?"
            self._database.execute(change, (root, reason))

    def all(self) -> tuple[Pin, ...]:
        """Every pin, by root and reason."""
        with self._lock:
            rows = self._database.execute("SELECT * FROM pins ORDER BY root, reason").fetchall()
        return tuple(Pin(Cid(root), reason, count) for root, reason, count in rows)

    def _count(self, root: Cid, reason: str) -> int:
        row = self._database.execute(
            "SELECT count FROM pins WHERE root = ? AND reason = ?", (root, reason)
        ).fetchone()
        return 0 if row is None else int(row[0])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                    raise
                raise Unavailable(f"no room for {self._path}: free some of its disk") from error
