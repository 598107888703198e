"""The journal: what a restarted node must find again, apart from money (ledger/store.py) and files.

SQLite in WAL mode; one transaction a batch, on disk when `commit` returns. Values are the kernel's
own (codec.dump); a value that does not load is our corruption, not a peer's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias, TypeVar, assert_never

from mesh import codec
from mesh.errors import Corruption, PeerError, Unavailable
from mesh.ids import TaskId
from mesh.market.copies import awaited
from mesh.market.order import TaskRecord
from mesh.sansio import ForgetTenancy, PersistTask, PersistTenancy

VERSION = 1
BUSY_WAIT_S = 5.0
"""How long another process's transaction is waited for."""

Write: TypeAlias = PersistTask | PersistTenancy | ForgetTenancy

_SCHEMA = """
CREATE TABLE IF NOT EXISTS task (
    id BLOB PRIMARY KEY, at INTEGER NOT NULL, is_final INTEGER NOT NULL, record BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS task_at ON task (at);
CREATE TABLE IF NOT EXISTS tenancy (
    task BLOB, fence INTEGER, record BLOB NOT NULL, PRIMARY KEY (task, fence));
CREATE TABLE IF NOT EXISTS epoch (
    only INTEGER PRIMARY KEY CHECK (only = 1), value INTEGER NOT NULL);
"""

T = TypeVar("T")


class JournalFailed(Unavailable):
    """It takes nothing more, and what it has acknowledged is safe."""

    hint = "free some of its disk, or see who else holds it; then start the node again"


class Journal:
    """One node's journal. Calls block; one thread at a time may be inside."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def commit(self, writes: Sequence[Write]) -> None:
        """Make *writes* durable, all or none. Raises Unavailable when the disk does not take it."""
        with _named_errors(), self._database:
            self._database.execute("BEGIN IMMEDIATE")
            for write in writes:
                self._write(write)

    def next_epoch(self) -> int:
        """The number of this start: one more than the last."""
        with _named_errors(), self._database:
            self._database.execute(
                "INSERT INTO epoch VALUES (1, 1) ON CONFLICT (only) DO UPDATE SET value = value + 1"
            )
            (value,) = self._database.execute("SELECT value FROM epoch").fetchone()
            return int(value)

    def tasks(self, ended_max: int, awarded: Collection[TaskId] = ()) -> list[TaskRecord]:
        """All open tasks, with the ended copies of them, those *awarded* by the ledger, and the
        newest *ended_max* of the ended ones, oldest first."""
        rows = self._read(
            "SELECT record, at FROM task WHERE NOT is_final UNION ALL SELECT * FROM"
            " (SELECT record, at FROM task WHERE is_final ORDER BY at DESC LIMIT ?)"
            " ORDER BY at",
            ended_max,
        )
        records = [_load(TaskRecord, data) for data, _ in rows]
        known = {record.order.task for record in records}
        copies = awaited([record for record in records if not record.state.is_final])
        wanted = dict.fromkeys((*copies, *sorted(awarded)))
        older = [self.task(task) for task in wanted if task not in known]
        found = [record for record in older if record]
        return [*sorted(found, key=lambda record: record.submitted_ms), *records]

    def task(self, task: TaskId) -> TaskRecord | None:
        """A task of any age."""
        rows = self._read("SELECT record FROM task WHERE id = ?", task)
        return _load(TaskRecord, rows[0][0]) if rows else None

    def tenancies(self) -> list[PersistTenancy]:
        """What this node still answers for."""
        rows = self._read("SELECT record FROM tenancy ORDER BY task, fence")
        return [_load(PersistTenancy, data) for (data,) in rows]

    def close(self) -> None:
        self._database.close()

    def _read(self, query: str, *values: object) -> list[tuple[bytes, ...]]:
        with _named_errors():
            return self._database.execute(query, values).fetchall()

    def _write(self, write: Write) -> None:
        match write:
            case PersistTask(record):
                self._database.execute(
                    "INSERT OR REPLACE INTO task VALUES (?, ?, ?, ?)",
                    (
                        record.order.task,
                        record.submitted_ms,
                        record.state.is_final,
                        codec.dump(record),
                    ),
                )
            case PersistTenancy(task, fence):
                self._database.execute(
                    "INSERT OR REPLACE INTO tenancy VALUES (?, ?, ?)",
                    (task, fence, codec.dump(write)),
                )
            case ForgetTenancy(task, fence):
                self._database.execute(
                    "DELETE FROM tenancy WHERE task = ? AND fence = ?", (task, fence)
                )
            case _:
                assert_never(write)


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """The journal at *path*, made if need be. Raises Unavailable, or Corruption."""
    with _named_errors():
        database = sqlite3.connect(
            path, timeout=BUSY_WAIT_S, isolation_level=None, check_same_thread=False
        )
    try:
        with _named_errors():
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):
                raise Unavailable(f"{path} was written by a newer mesh (version {version})")
            database.executescript(_SCHEMA)
            database.execute(f"PRAGMA user_version = {VERSION}")
        yield Journal(database)
    finally:
        database.close()


def _load(kind: type[T], data: bytes) -> T:
    try:
        return codec.load(kind, data)
    except PeerError as error:
        raise Corruption(f"the journal holds a broken {kind.__name__}: {error}") from None


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise JournalFailed(f"the journal cannot be written: {error}") from error
    except sqlite3.DatabaseError as error:
        raise Corruption(f"the journal is damaged: {error}") from error
