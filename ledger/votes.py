"""The book of one witness on its disk: what it voted for, in a SQLite file of its own, WAL mode.

Every commit is synchronous=FULL: a vote that was seen and then lost to a power cut would let its
witness vote for another. One process holds the file, so that no two can vote from one book. It
keeps the entries too: they are the evidence against whoever forks, and what later ones refer to.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from ledger import keys
from ledger.database import BUSY_WAIT_S, telling_why, transaction
from ledger.errors import Corruption, LedgerError
from ledger.keys import Verify, entry_message
from ledger.model import Entry, Kind
from ledger.proof import Frontier
from ledger.witness import LOST, Ballot

_APPLICATION = 0x6D577431  # "mWt1"
_SCHEMA = 1
_HASH = 32
SCAN_PIECE = 32
"""Entries that are checked at a time."""
_CLOSING = (Kind.SETTLE, Kind.VOID)
_TABLES = (
    "CREATE TABLE owner(witness BLOB NOT NULL)",
    # The primary key says it once more: one entry at each place.
    "CREATE TABLE voted(author BLOB NOT NULL, net BLOB NOT NULL, seq INTEGER NOT NULL,"
    " id BLOB NOT NULL, closes BLOB, body BLOB NOT NULL, sig BLOB NOT NULL,"
    " PRIMARY KEY (author, net, seq))",
    "CREATE INDEX voted_id ON voted(id)",
    "CREATE INDEX voted_closes ON voted(closes) WHERE closes IS NOT NULL",
    "CREATE TABLE ballot(author BLOB NOT NULL, net BLOB NOT NULL, seq INTEGER NOT NULL,"
    " peaks BLOB NOT NULL, retired INTEGER NOT NULL, rival_body BLOB, rival_sig BLOB,"
    " PRIMARY KEY (author, net))",
)


class VoteBook:
    """A `witness.Book`. Any thread may use it, but only one at a time; close it yourself."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    @staticmethod
    def open(path: Path, witness: bytes) -> VoteBook:
        """The book of the key *witness* in the file *path*, made if it is not there.

        A book that is gone, or older than its votes, is no book: then take another key. Raises
        LedgerError.
        """
        with telling_why(LOST):
            db = sqlite3.connect(
                path, timeout=BUSY_WAIT_S, isolation_level=None, check_same_thread=False
            )
            try:
                _prepare(db, witness)
            except BaseException:
                db.close()
                raise
        return VoteBook(db)

    def close(self) -> None:
        """Give the file back. Nothing recorded waits for it."""
        self._db.close()

    def __enter__(self) -> VoteBook:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ballot(self, author: bytes, net: bytes) -> Ballot | None:
        """What was recorded last of that chain."""
        with telling_why(LOST):
            row = self._db.execute(
                "SELECT seq, peaks, retired, rival_body, rival_sig FROM ballot"
                " WHERE author = ? AND net = ?",
                (author, net),
            ).fetchone()
        if row is None:
            return None
        seq, peaks, retired, rival_body, rival_sig = row
        nodes = tuple(peaks[at : at + _HASH] for at in range(0, len(peaks), _HASH))
        rival = None if rival_body is None else Entry(rival_body, rival_sig)
        last = self.voted(author, net, seq - 1)
        if last is None or len(nodes) != seq.bit_count():
            raise Corruption(f"the ballot of {author.hex()} is not that of its votes", LOST)
        return Ballot(author, net, last, Frontier(seq, nodes), bool(retired), rival)

    def voted(self, author: bytes, net: bytes, seq: int) -> Entry | None:
        """The entry at that place, if it was voted for."""
        entry = self._entry("author = ? AND net = ? AND seq = ?", author, net, seq)
        body = entry.content if entry else None
        if entry and body and (body.author, body.net, body.seq) != (author, net, seq):
            raise Corruption(f"entry r-{entry.id.hex()} is filed under the wrong key", LOST)
        return entry

    def entry(self, entry_id: bytes) -> Entry | None:
        """An entry that was voted for."""
        return self._entry("id = ?", entry_id)

    def is_closed(self, alloc_id: bytes) -> bool:
        """Whether a SETTLE or VOID of that ALLOC was voted for."""
        with telling_why(LOST):
            found = self._db.execute("SELECT 1 FROM voted WHERE closes = ? LIMIT 1", (alloc_id,))
            return found.fetchone() is not None

    def scan(self, verify: Verify = keys.verify) -> Iterator[int]:
        """Check all that is on the disk, piece by piece; how many entries each piece had.

        Votes may be recorded between two pieces; what comes after its chain was looked at was just
        checked by the witness. Raises Corruption.
        """
        with telling_why(LOST):
            (verdict,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
            chains = self._db.execute("SELECT author, net FROM ballot").fetchall()
        if verdict != "ok":
            raise Corruption(f"the book is damaged: {verdict}", LOST)
        for author, net in chains:
            yield from self._scan(author, net, verify)
        with telling_why(LOST):
            voted, known = self._db.execute(
                "SELECT (SELECT count(*) FROM voted), (SELECT ifnull(sum(seq), 0) FROM ballot)"
            ).fetchone()
        if voted != known:
            raise Corruption(f"{voted} entries where {known} were voted for", LOST)

    def record(self, ballot: Ballot, entries: Sequence[Entry]) -> None:
        """Keep *ballot* and the *entries* that are new in it: durable when it returns."""
        assert ballot.last is not None, "a ballot without a vote"
        rival = (ballot.rival.body, ballot.rival.sig) if ballot.rival else (None, None)
        with telling_why(LOST), transaction(self._db):
            self._db.executemany(
                "INSERT INTO voted(author, net, seq, id, closes, body, sig)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                map(_row, entries),
            )
            self._db.execute(
                "INSERT OR REPLACE INTO ballot(author, net, seq, peaks, retired, rival_body,"
                " rival_sig) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    ballot.author,
                    ballot.net,
                    ballot.seq,
                    b"".join(ballot.tree.peaks),
                    ballot.retired,
                    *rival,
                ),
            )

    def _scan(self, author: bytes, net: bytes, verify: Verify) -> Iterator[int]:
        """Check what was voted for on one chain, up to where its ballot is now."""
        ballot, tree = self.ballot(author, net), Frontier()
        assert ballot is not None, "it was just there"
        for seq in range(ballot.seq):
            entry = self.voted(author, net, seq)
            if entry is None or not verify(author, entry_message(entry.id), entry.sig):
                raise Corruption(f"the vote of {author.hex()} for seq {seq} is damaged", LOST)
            tree = tree.plus(entry.id)
            if tree.size % SCAN_PIECE == 0:
                yield SCAN_PIECE
        if tree != ballot.tree:
            raise Corruption(f"the ballot of {author.hex()} is not that of its votes", LOST)
        yield tree.size % SCAN_PIECE

    def _entry(self, where: str, *values: object) -> Entry | None:
        with telling_why(LOST):
            row = self._db.execute(
                f"SELECT id, body, sig FROM voted WHERE {where}",  # noqa: S608 (our own text)
                values,
            ).fetchone()
        if row is None:
            return None
        entry_id, body, sig = row
        entry = Entry(body, sig)
        if entry.id != entry_id:
            raise Corruption(f"entry r-{entry_id.hex()} does not hash to its id", LOST)
        return entry


def _row(entry: Entry) -> tuple[object, ...]:
    body = entry.content
    closes = body.ref if body.kind in _CLOSING else None
    return (body.author, body.net, body.seq, entry.id, closes, entry.body, entry.sig)


def _prepare(db: sqlite3.Connection, witness: bytes) -> None:
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    if tables and application != _APPLICATION:
        raise LedgerError("the file is not a witness's book", "give another path")
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    with transaction(db):
        (known,) = db.execute("PRAGMA user_version").fetchone()
        if known > _SCHEMA:
            raise LedgerError(
                f"the book has schema {known}, this program knows {_SCHEMA}",
                "a newer version wrote it: use that one or a newer one",
            )
        if known == 0:
            for statement in _TABLES:
                db.execute(statement)
            db.execute("INSERT INTO owner(witness) VALUES (?)", (witness,))
            db.execute(f"PRAGMA application_id = {_APPLICATION}")
            db.execute(f"PRAGMA user_version = {_SCHEMA}")
        owners = db.execute("SELECT witness FROM owner").fetchall()
        if owners != [(witness,)]:
            raise LedgerError("the book is another witness's", "a key votes from its own book only")
