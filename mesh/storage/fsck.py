"""Is what lies on disk what was put there? For reading alone, beside a running node or without one.

A file that goes while it is looked at was removed by its node, and is no problem.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from mesh import codec
from mesh.errors import PeerError
from mesh.ids import Cid, parse_cid
from mesh.market.order import TaskRecord
from mesh.sansio import PersistTenancy
from mesh.storage.blocks import BLOCK_BYTES_MAX, matches

BUSY_WAIT_S = 5.0


@frozen
class Problem:
    """Something that is not as it should be, and the way out."""

    what: str
    hint: str


def broken_blocks(folder: Path, seen: Callable[[int], None]) -> Iterator[Problem]:
    """The blocks below *folder* that fail their hash; *seen* hears how many were looked at."""
    count = 0
    shards = sorted(folder.glob("blocks/??"))
    for path in (path for shard in shards for path in sorted(shard.iterdir())):
        try:
            cid: Cid = parse_cid(path.name)
        except ValueError:
            continue  # half a block that a crash left: the next start removes it
        try:
            with path.open("rb") as file:
                data = file.read(BLOCK_BYTES_MAX + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            yield Problem(f"{path} cannot be read: {error.strerror}", "check the disk")
            continue
        count += 1
        seen(count)
        if not matches(cid, data):
            yield Problem(f"{path} fails its hash", "delete it: it is fetched again when needed")


def broken_database(path: Path) -> Iterator[Problem]:
    """What is wrong with the SQLite file *path*, as such."""
    try:
        with _viewed(path) as database:
            (verdict,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.Error as error:
        verdict = str(error)
    if verdict != "ok":
        yield Problem(f"{path} is damaged: {verdict}", "restore it from a backup, or move it away")


def broken_journal(path: Path) -> Iterator[Problem]:
    """What is wrong with the journal of a node."""
    found = list(broken_database(path))
    yield from found
    if found:
        return
    restore = "restore it from a backup; moved away, the tasks in it are forgotten, receipts not"
    for table, kind in (("task", TaskRecord), ("tenancy", PersistTenancy)):
        with _viewed(path) as database:
            rows = database.execute(f"SELECT record FROM {table}")  # noqa: S608  (our own names)
            for (data,) in rows:
                try:
                    codec.load(kind, data)
                except PeerError as error:
                    yield Problem(f"{path} holds a broken {kind.__name__}: {error}", restore)


@contextmanager
def _viewed(path: Path) -> Iterator[sqlite3.Connection]:
    """The database, for reading alone."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    database = sqlite3.connect(uri, uri=True, timeout=BUSY_WAIT_S)
    try:
        yield database
    finally:
        database.close()
