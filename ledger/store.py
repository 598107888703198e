"""The entries of one node on its disk: SQLite in WAL mode, one file.

An entry's id is its checksum: SQLite's own check sees few of the bits that flip, `scan` sees every
one that touches an entry. Every commit is synchronous=FULL: an own entry that was acknowledged and
then lost to a power cut would make us fork ourselves. Signatures are checked by the caller.

An entry may be *vouched* for: a later one of its author's chain is signed and hashes to it, and
nothing else of it was looked at yet. It counts in `holdings`, so that replicas can compare what
they hold, and no other reader sees it until `add` brings it again, checked.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from attrs import evolve

from ledger import keys, schema
from ledger.chain import Head, check_link, origin, rotated_to
from ledger.database import BUSY_WAIT_S
from ledger.database import RESTORE as _RESTORE
from ledger.database import snapshot as _snapshot
from ledger.database import telling_why as _telling_why
from ledger.database import transaction as _transaction
from ledger.errors import BadEntry, BrokenChain, Corruption, LedgerError
from ledger.filed import Filed, better, checked, vouched
from ledger.glance import Glance
from ledger.holdings import ChainKey, Holding, Total
from ledger.keys import Verify, entry_message
from ledger.model import Body, Entry, Kind

PAGE = 500
"""Entries read at a time."""

_PAGE_BYTES = 8192  # entries of 500-700 bytes leave less of such a page empty: 8 % less disk
_APPLICATION = 0x6D4C6431  # "mLd1": this SQLite file is ours
_CLOSING = (Kind.SETTLE, Kind.VOID)

_SELECT = "SELECT n, id, body, sig FROM entry "
_BY_ID = "substr(id, 1, 8) = substr(?, 1, 8) AND id = ?"  # bind the id twice
_HOLDING = "author, net, height, top, top_id, count, sum, forked"

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

    @staticmethod
    def view(path: Path) -> Store:
        """The store in the file *path*, for reading alone: it may be in use. Raises LedgerError."""
        with _telling_why():
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
                    self._file([checked(entry)])

    def add(self, entries: Iterable[Entry], vouched_for: Iterable[Glance] = ()) -> int:
        """Keep others' *entries*, in any order and however often; how many were new.

        Only what `chain.check_entry` has passed: the store does not ask who signed. Of several
        signatures over one id the smallest is kept, so that replicas agree. What is *vouched_for*
        is counted too. Raises LedgerError.
        """
        with _telling_why(), _transaction(self._db):
            return self._file([*map(checked, entries), *map(vouched, vouched_for)])

    def vouched(self, limit: int) -> tuple[Glance, ...]:
        """Up to *limit* entries that nobody has checked yet, the oldest first."""
        return tuple(map(_glance, self._rows("WHERE checked = 0 ORDER BY n LIMIT ?", limit)))

    def drop_vouched(self, entry_ids: Iterable[bytes]) -> int:
        """Forget entries that turned out to be no good before anybody saw them; how many."""
        with _telling_why(), _transaction(self._db):
            return sum(self._drop(entry_id) for entry_id in entry_ids)

    def which(self, entry_ids: Sequence[bytes]) -> frozenset[bytes]:
        """Those of *entry_ids* that are there, be they vouched for only."""
        with _telling_why():
            return frozenset(self._where(entry_ids))

    def which_vouched(self, entry_ids: Sequence[bytes]) -> frozenset[bytes]:
        """Those of *entry_ids* that are there and were not checked yet."""
        with _telling_why():
            return frozenset(self._where(entry_ids, "AND NOT checked"))

    def entry(self, entry_id: bytes) -> Entry | None:
        """The entry of that id. Raises LedgerError."""
        return next(self._read(f"WHERE {_BY_ID} AND checked", entry_id, entry_id), None)

    def holding(self, author: bytes, net: bytes) -> Holding:
        """What is held of one chain. Raises LedgerError."""
        return self._holding((author, net))[1]

    def holdings(self) -> list[Holding]:
        """What is held of every chain. Raises LedgerError."""
        with _telling_why():
            rows = self._db.execute(f"SELECT {_HOLDING} FROM chain").fetchall()  # noqa: S608 (our own text)
        return [*map(_held, rows)]

    def total(self) -> Total:
        """What is held altogether: equal for equal stores. Raises LedgerError."""
        totals = [holding.total for holding in self.holdings()]
        return Total(sum(t.count for t in totals), sum(t.sum for t in totals) % 2**256)

    def ids(self) -> list[tuple[int, bytes]]:
        """(hlc, id) of every entry, in order. They are held in memory. Raises LedgerError."""
        with _telling_why():
            return sorted(self._db.execute("SELECT hlc, id FROM entry"))

    def glances(self, author: bytes, net: bytes, start: int, stop: int) -> Iterator[Glance]:
        """A chain's entries from seq *start* to below *stop*, all arms, vouched ones too."""
        seq, n = start, 0
        while rows := self._rows(
            "JOIN chain USING (chain) WHERE author = ? AND net = ? AND (seq, entry.n) >= (?, ?)"
            " AND seq < ? ORDER BY seq, entry.n LIMIT ?",
            author,
            net,
            seq,
            n,
            stop,
            PAGE,
        ):
            for row in rows:
                glance = _glance(row)
                yield glance
            seq, n = glance.seq, rows[-1][0] + 1

    def glance(self, entry_id: bytes) -> Glance | None:
        """The entry of that id, be it vouched for only. Raises LedgerError."""
        return next(map(_glance, self._rows(f"WHERE {_BY_ID}", entry_id, entry_id)), None)

    def head(self, author: bytes, net: bytes) -> Head:
        """Where *author*'s chain on *net* ends: after the highest seq that we hold.

        A chain without entries begins at the ROTATE to *author*, if we hold one.
        """
        last = self._read(
            "JOIN chain USING (chain) WHERE author = ? AND net = ? AND checked"
            " ORDER BY seq DESC, id LIMIT 1",
            author,
            net,
        )
        return next(map(Head.after, last), None) or self._beginning(author, net)

    def chain(self, author: bytes, after_seq: int = -1) -> Iterator[Entry]:
        """*author*'s entries by seq, all arms of a fork, gaps left out; on every network."""
        seq, n = after_seq + 1, 0
        while rows := self._rows(
            "JOIN chain USING (chain) WHERE author = ? AND (seq, entry.n) >= (?, ?) AND checked"
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
            return tuple(self._read("WHERE checked ORDER BY n DESC LIMIT ?", limit))
        found = self._read("WHERE task = substr(?, 1, 4) ORDER BY n DESC", nonce)
        return tuple(islice((e for e in found if e.content.nonce == nonce), limit))

    def resolutions(self, alloc_id: bytes) -> tuple[Entry, ...]:
        """The entries that refer to the ALLOC, by id; state.py says which counts."""
        found = self._read("WHERE ref = substr(?, 1, 4) ORDER BY id", alloc_id)
        return tuple(entry for entry in found if entry.content.ref == alloc_id)

    def entries(self) -> Iterator[Entry]:
        """All entries, in the order they were stored; what is added meanwhile comes last."""
        n = 0
        while rows := self._rows("WHERE n > ? AND checked ORDER BY n LIMIT ?", n, PAGE):
            n = rows[-1][0]
            yield from map(_entry, rows)

    def scan(self, verify: Verify = keys.verify) -> int:
        """Check everything on disk against its hash and signature; how many entries there are.

        Raises Corruption, which names the first entry that is not what was stored.
        """
        with _telling_why(), _snapshot(self._db):
            for problem in self.damage(verify):
                raise problem
            return self.total().count

    def damage(
        self, verify: Verify = keys.verify, seen: Callable[[int], None] = lambda _: None
    ) -> Iterator[Corruption]:
        """All that is not as it was stored; *seen* hears how many entries were looked at."""
        count = n = 0
        try:
            with _telling_why():
                (verdict,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
            if verdict != "ok":
                yield Corruption(f"the ledger file is damaged: {verdict}", _RESTORE)
            while rows := self._rows("WHERE n > ? ORDER BY n LIMIT ?", n, PAGE):
                n = rows[-1][0]
                count += len(rows)
                yield from self._damaged(rows, verify)
                seen(count)
            if count != self.total().count:
                told = f"{count} entries where {self.total().count} are counted"
                yield Corruption(told, _RESTORE)
        except Corruption as problem:  # of the file itself: nothing can be read beyond it
            yield problem

    def _damaged(self, rows: Iterable[_Row], verify: Verify) -> Iterator[Corruption]:
        for row in rows:
            try:
                with _telling_why():
                    self._check_row(row, verify)
            except Corruption as problem:
                yield problem

    def _beginning(self, author: bytes, net: bytes) -> Head:
        # Read once in a key's life, so by looking at every KEYOP: its kind is the 13th byte.
        found = self._read(
            "WHERE checked AND substr(body, 13, 1) = ? AND instr(body, ?) ORDER BY id",
            bytes([Kind.KEYOP]),
            author,
        )
        rotates = (e for e in found if (rotated_to(e), e.content.net) == (author, net))
        return next(map(Head.heir, rotates), Head.start(author, net))

    def _check_own(self, entry: Entry) -> None:
        body = entry.content
        alloc = self.entry(body.ref) if body.ref else None
        if body.kind in _CLOSING:
            others = (other.content for other in self.resolutions(body.ref))
            if any(o.author == body.author and o.kind in _CLOSING for o in others):
                raise BrokenChain("the ALLOC is resolved already")
        head = self.head(body.author, body.net)
        if head.seq == 0:  # it may begin at zeros, or at any ROTATE to its author
            head = origin(body, self.entry(body.prev))
        check_link(head, entry, alloc.content if alloc else None)

    def _check_row(self, row: _Row, verify: Verify) -> None:
        n, entry_id, _, _ = row
        *columns, is_checked = self._db.execute(
            "SELECT author, net, seq, hlc, task, ref, checked FROM entry JOIN chain USING (chain)"
            " WHERE entry.n = ?",
            (n,),
        ).fetchone() or (None,)
        filed = checked(_entry(row)) if is_checked else vouched(_glance(row))
        if columns != [*filed.key, filed.seq, filed.hlc, filed.task or None, filed.ref or None]:
            raise Corruption(f"entry r-{entry_id.hex()} is filed under the wrong key", _RESTORE)
        author = filed.key[0]
        if is_checked and author and not verify(author, entry_message(entry_id), filed.sig):
            raise Corruption(f"entry r-{entry_id.hex()} has a damaged signature", _RESTORE)

    def _file(self, entries: Iterable[Filed]) -> int:
        """Insert what is new, and look at what is not; how many were new."""
        unique: dict[bytes, Filed] = {}
        for filed in entries:
            twin = unique.get(filed.id)
            unique[filed.id] = better(filed, twin) if twin else filed
        for entry_id, n in self._where(list(unique)).items():
            filed = unique.pop(entry_id)
            if filed.is_checked:
                self._db.execute(
                    "UPDATE entry SET sig = ?, checked = 1, task = ?, ref = ?"
                    " WHERE n = ? AND (NOT checked OR sig > ?)",
                    (filed.sig, filed.task or None, filed.ref or None, n, filed.sig),
                )
        chains: dict[ChainKey, list[Filed]] = {}
        for filed in unique.values():
            chains.setdefault(filed.key, []).append(filed)
        for key, several in chains.items():
            self._extend(key, several)
        return len(unique)

    def _extend(self, key: ChainKey, several: list[Filed]) -> None:
        """File new entries of one chain, and what is held of it."""
        found, holding = self._holding(key)
        chain = found if found is not None else self._new_chain(key)
        self._db.executemany(
            "INSERT INTO entry(id, chain, seq, hlc, checked, task, ref, body, sig)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    f.id,
                    chain,
                    f.seq,
                    f.hlc,
                    f.is_checked,
                    f.task or None,
                    f.ref or None,
                    f.body,
                    f.sig,
                )
                for f in several
            ],
        )
        below = [filed.seq for filed in several if filed.seq < holding.top]
        twice = len(several) - len({filed.seq for filed in several})
        is_fork = bool(twice) or any(self._is_fork(chain, seq) for seq in below)
        highest = min(several, key=lambda filed: (-filed.seq, filed.id))
        topped = holding.topped(highest.seq, highest.id)
        held = evolve(
            topped,
            height=_height(self._db, chain, holding.height),
            total=holding.total.plus(filed.id for filed in several),
            forked=holding.forked or (is_fork and key[0] != b""),
        )
        _write(self._db, chain, held)

    def _new_chain(self, key: ChainKey) -> int:
        cursor = self._db.execute("INSERT INTO chain(author, net) VALUES (?, ?)", key)
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _drop(self, entry_id: bytes) -> bool:
        row = self._db.execute(
            f"SELECT n, chain FROM entry WHERE {_BY_ID} AND NOT checked",  # noqa: S608 (our own text)
            (entry_id, entry_id),
        ).fetchone()
        if row is None:
            return False
        self._db.execute("DELETE FROM entry WHERE n = ?", row[:1])
        _recount(self._db, row[1])
        return True

    def _holding(self, key: ChainKey) -> tuple[int | None, Holding]:
        with _telling_why():
            row = self._db.execute(
                f"SELECT chain, {_HOLDING} FROM chain WHERE author = ? AND net = ?",  # noqa: S608 (our own text)
                key,
            ).fetchone()
        return (row[0], _held(row[1:])) if row else (None, Holding(*key))

    def _is_fork(self, chain: int, seq: int) -> bool:
        found = self._db.execute(
            "SELECT 1 FROM entry WHERE chain = ? AND seq = ? LIMIT 2", (chain, seq)
        )
        return len(found.fetchall()) > 1

    def _where(self, entry_ids: Sequence[bytes], also: str = "") -> dict[bytes, int]:
        """The row of each of these that is there."""
        found: dict[bytes, int] = {}
        for at in range(0, len(entry_ids), PAGE):
            page = entry_ids[at : at + PAGE]
            marks = ",".join("?" * len(page))
            where = f"WHERE substr(id, 1, 8) IN ({marks}) {also}"
            query = "SELECT id, n FROM entry " + where  # noqa: S608 (our own text)
            found.update(self._db.execute(query, [entry_id[:8] for entry_id in page]))
        return {entry_id: found[entry_id] for entry_id in entry_ids if entry_id in found}

    def _read(self, where: str, *values: object) -> Iterator[Entry]:
        """Entries one by one, for a caller that stops in time; nobody may write meanwhile."""
        with _telling_why():
            yield from map(_entry, self._db.execute(_SELECT + where, values))

    def _rows(self, where: str, *values: object) -> list[_Row]:
        with _telling_why():
            return self._db.execute(_SELECT + where, values).fetchall()


def _entry(row: _Row) -> Entry:
    _, entry_id, body, sig = row
    entry = Entry(body, sig)
    if entry.id != entry_id:
        raise Corruption(f"entry r-{entry_id.hex()} does not hash to its id", _RESTORE)
    return entry


def _glance(row: _Row) -> Glance:
    _, entry_id, body, sig = row
    try:
        glance = Glance.of(body, sig)
    except BadEntry:
        glance = None
    if glance is None or glance.id != entry_id:
        raise Corruption(f"entry r-{entry_id.hex()} does not hash to its id", _RESTORE)
    return glance


def _held(row: Sequence[Any]) -> Holding:
    """Of the columns `_HOLDING`."""
    author, net, height, top, top_id, count, total, forked = row
    held = Total(count, int.from_bytes(total, "big"))
    return Holding(author, net, height, top, top_id, held, bool(forked))


def _write(db: sqlite3.Connection, chain: int, holding: Holding) -> None:
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


def _height(db: sqlite3.Connection, chain: int, height: int) -> int:
    """The first seq from *height* on that is missing."""
    places = db.execute(
        "SELECT DISTINCT seq FROM entry WHERE chain = ? AND seq >= ? ORDER BY seq", (chain, height)
    )
    for (seq,) in places:
        if seq != height:
            break
        height += 1
    return height


def _recount(db: sqlite3.Connection, chain: int) -> None:
    """What is held of a chain, from its entries; that it forked once is not forgotten."""
    author, net, forked = db.execute(
        "SELECT author, net, forked FROM chain WHERE chain = ?", (chain,)
    ).fetchone()
    places = db.execute("SELECT seq, id FROM entry WHERE chain = ?", (chain,)).fetchall()
    holding = Holding(author, net, _height(db, chain, 0), forked=bool(forked))
    for seq, entry_id in places:
        holding = holding.topped(seq, entry_id)
    twice = author != b"" and len({seq for seq, _ in places}) < len(places)
    total = Total().plus(entry_id for _, entry_id in places)
    _write(db, chain, evolve(holding, total=total, forked=holding.forked or twice))


def _prepare(db: sqlite3.Connection) -> None:
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    if tables and application != _APPLICATION:
        raise LedgerError("the file is not a ledger", "give another path")
    db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.create_function("hlc_of", 1, lambda body: Body.decode(body).hlc)
    with _transaction(db):
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
                _recount(db, chain)
        db.execute(f"PRAGMA application_id = {_APPLICATION}")
        db.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS)}")


def _check_format(db: sqlite3.Connection) -> None:
    """That the file is a ledger in today's form, which `open` makes of an older one."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (known,) = db.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise LedgerError("the file is not a ledger", "give another path")
    if known != len(schema.MIGRATIONS):
        told = f"the ledger has schema {known}, this program knows {len(schema.MIGRATIONS)}"
        raise LedgerError(told, "start its node once with this version, or use a newer one")
