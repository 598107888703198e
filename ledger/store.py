"""The entries of one node on its disk: SQLite in WAL mode, one file.

An entry's id is its checksum: SQLite's own check sees few of the bits that flip, `scan` sees every
one that touches an entry. Every commit is synchronous=FULL: an own entry that was acknowledged and
then lost to a power cut would make us fork ourselves. Signatures are checked by the caller.

An entry may be *vouched* for: a later one of its author's chain is signed and hashes to it, and
nothing else of it was looked at yet. It counts in `holdings`, so that replicas can compare what
they hold, and no other reader sees it until `add` brings it again, checked.

An entry may be *pruned*: its id and its place are left, and what its deal amounted to (remains.py).
It counts in `holdings` and is had already, for all else it is gone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType

from attrs import evolve

from ledger import damage, held, keys, remains
from ledger.chain import Head, check_link, origin, rotated_to
from ledger.database import opened, snapshot, telling_why, transaction, viewed
from ledger.errors import BrokenChain, Corruption, LedgerError
from ledger.filed import Filed, better, checked, number, vouched
from ledger.glance import Glance
from ledger.holdings import ChainKey, Holding, Total
from ledger.keys import Verify
from ledger.model import Entry, Kind
from ledger.rows import SELECT, Row, entry_of, glance_of, root_of
from ledger.state import Carried, Deal, Resolution
from ledger.statements import Refund

PAGE = 500
"""Entries read at a time."""

PRUNED_MAX = 1_000
"""Entries that one transaction prunes, unless told otherwise: some 0.1 s."""

_CLOSING = (Kind.SETTLE, Kind.VOID)
_VOUCHED, _CHECKED = 0, 1  # the states of an entry
_BY_ID = "start = ? AND substr(raw, 1, 32) = ?"  # bind `_found_by`
_OF_KIND = "substr(raw, 109, 1) = ?"  # the 13th byte of the body


class Store:
    """Durable entries. Any thread may use it, but only one at a time; close it yourself."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._total = Total()
        self._totalled_at: tuple[int, int] | None = None
        """What others had committed, and we written, when it was summed up."""

    @staticmethod
    def open(path: Path) -> Store:
        """The store in the file *path*, made or brought up to date. Raises LedgerError."""
        return Store(opened(path, held.recount))

    @staticmethod
    def view(path: Path) -> Store:
        """The store in the file *path*, for reading alone: it may be in use. Raises LedgerError."""
        return Store(viewed(path))

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
        with telling_why(), transaction(self._db):
            for entry in entries:
                if self.entry(entry.id) is None and not remains.is_pruned(self._db, entry.id):
                    self._check_own(entry)
                    self._file([checked(entry)])

    def add(self, entries: Iterable[Entry], vouched_for: Iterable[Glance] = ()) -> int:
        """Keep others' *entries*, in any order and however often; how many were new.

        Only what `chain.check_entry` has passed: the store does not ask who signed. Of several
        signatures over one id the smallest is kept, so that replicas agree. What is *vouched_for*
        is counted too. Raises LedgerError.
        """
        with telling_why(), transaction(self._db):
            return self._file([*map(checked, entries), *map(vouched, vouched_for)])

    def file(self, entries: Iterable[Filed]) -> int:
        """As `add`, of what is made ready for filing."""
        with telling_why(), transaction(self._db):
            return self._file(entries)

    def vouched(self, limit: int) -> tuple[Glance, ...]:
        """Up to *limit* entries that nobody has checked yet, the oldest first."""
        return tuple(map(glance_of, self._rows("WHERE state = 0 ORDER BY n LIMIT ?", limit)))

    def drop_vouched(self, entry_ids: Iterable[bytes]) -> int:
        """Forget entries that turned out to be no good before anybody saw them; how many."""
        with telling_why(), transaction(self._db):
            return sum(self._drop(entry_id) for entry_id in entry_ids)

    def which(self, entry_ids: Sequence[bytes]) -> frozenset[bytes]:
        """Those of *entry_ids* that are there, be they vouched for only."""
        with telling_why():
            return frozenset(self._where(entry_ids))

    def which_vouched(self, entry_ids: Sequence[bytes]) -> frozenset[bytes]:
        """Those of *entry_ids* that are there and were not checked yet."""
        with telling_why():
            return frozenset(self._where(entry_ids, "AND state = 0"))

    def entry(self, entry_id: bytes) -> Entry | None:
        """The entry of that id. Raises LedgerError."""
        return next(self._read(f"WHERE {_BY_ID} AND state = 1", *_found_by(entry_id)), None)

    def holding(self, author: bytes, net: bytes) -> Holding:
        """What is held of one chain. Raises LedgerError."""
        with telling_why():
            return held.holding_of(self._db, (author, net))[1]

    def holdings(self) -> list[Holding]:
        """What is held of every chain. Raises LedgerError."""
        with telling_why():
            return held.holdings(self._db)

    def total(self) -> Total:
        """What is held altogether: equal for equal stores. Raises LedgerError."""
        with telling_why():
            (theirs,) = self._db.execute("PRAGMA data_version").fetchone()
            version = (theirs, self._db.total_changes)
            if version != self._totalled_at:  # asked at every hello, and most change nothing
                rows = self._db.execute("SELECT count, sum FROM chain").fetchall()
                sums = sum(int.from_bytes(part, "big") for _, part in rows)
                self._total = Total(sum(count for count, _ in rows), sums % 2**256)
                self._totalled_at = version
        return self._total

    def ids(self) -> list[tuple[int, bytes]]:
        """(hlc, id) of every entry, in order. They are held in memory. Raises LedgerError."""
        with telling_why():
            return sorted(self._db.execute("SELECT hlc, substr(raw, 1, 32) FROM entry"))

    def glances(self, author: bytes, net: bytes, start: int, stop: int) -> Iterator[Glance]:
        """A chain's entries from seq *start* to below *stop*, all arms, vouched ones too.

        What was pruned is left out.
        """
        seq, n = start, 0
        while rows := self._rows(
            "JOIN chain USING (chain) WHERE author = ? AND net = ? AND (seq, entry.n) >= (?, ?)"
            " AND seq < ? AND state < 2 ORDER BY seq, entry.n LIMIT ?",
            author,
            net,
            seq,
            n,
            stop,
            PAGE,
        ):
            for row in rows:
                glance = glance_of(row)
                yield glance
            seq, n = glance.seq, rows[-1][0] + 1

    def places(self, author: bytes, net: bytes) -> Iterator[tuple[int, bytes]]:
        """(seq, id) of a chain's entries by seq, pruned ones too; nobody may write meanwhile."""
        with telling_why():
            yield from self._db.execute(
                "SELECT seq, substr(raw, 1, 32) FROM entry JOIN chain USING (chain)"
                " WHERE author = ? AND net = ? ORDER BY seq",
                (author, net),
            )

    def glance(self, entry_id: bytes) -> Glance | None:
        """The entry of that id, be it vouched for only. Raises LedgerError."""
        return next(
            map(glance_of, self._rows(f"WHERE {_BY_ID} AND state < 2", *_found_by(entry_id))), None
        )

    def head(self, author: bytes, net: bytes) -> Head:
        """Where *author*'s chain on *net* ends: after the highest seq that we hold.

        A chain without entries begins at the ROTATE to *author*, if we hold one.
        """
        last = self._read(
            "JOIN chain USING (chain) WHERE author = ? AND net = ? AND state = 1"
            " ORDER BY seq DESC, raw LIMIT 1",
            author,
            net,
        )
        return next(map(Head.after, last), None) or self._beginning(author, net)

    def chain(self, author: bytes, after_seq: int = -1) -> Iterator[Entry]:
        """*author*'s entries by seq, all arms of a fork, gaps left out; on every network."""
        seq, n = after_seq + 1, 0
        while rows := self._rows(
            "JOIN chain USING (chain) WHERE author = ? AND (seq, entry.n) >= (?, ?) AND state = 1"
            " ORDER BY seq, entry.n LIMIT ?",
            author,
            seq,
            n,
            PAGE,
        ):
            for row in rows:
                entry = entry_of(row)
                yield entry
            seq, n = entry.content.seq, rows[-1][0] + 1

    def newest(self, limit: int, nonce: bytes | None = None) -> tuple[Entry, ...]:
        """The last *limit* entries stored, newest first; of task *nonce*, if given."""
        if nonce is None:
            return tuple(self._read("WHERE state = 1 ORDER BY n DESC LIMIT ?", limit))
        found = self._read("WHERE task = ? AND state = 1 ORDER BY n DESC", number(nonce[:4]))
        return tuple(islice((e for e in found if e.content.nonce == nonce), limit))

    def resolutions(self, alloc_id: bytes) -> tuple[Entry, ...]:
        """The entries that refer to the ALLOC, by id; state.py says which counts."""
        found = self._read("WHERE ref = ? AND state = 1 ORDER BY raw", number(alloc_id[:4]))
        return tuple(entry for entry in found if entry.content.ref == alloc_id)

    def entries(self) -> Iterator[Entry]:
        """All entries, in the order they were stored; what is added meanwhile comes last."""
        n = 0
        while rows := self._rows("WHERE n > ? AND state = 1 ORDER BY n LIMIT ?", n, PAGE):
            n = rows[-1][0]
            yield from map(entry_of, rows)

    def prune(self, head_id: bytes, most: int = PRUNED_MAX) -> int:
        """Drop the deals that are over for good below a HEAD; how many entries went.

        About *most* of them: ask again until none goes. That witnesses signed this HEAD is the
        caller's to know: it is why nobody can fork what is below it. Nothing of a chain that forked
        goes. Raises LedgerError if the HEAD is none that we hold all of.
        """
        with telling_why():
            # Before others have to wait for us. What is below a HEAD comes to be another only by a
            # fork or a gap, which are looked for once more.
            self._check_below(head_id)
        with telling_why(), transaction(self._db):
            head = self.entry(head_id)
            assert head is not None
            chain, holding = self._below(head)
            if holding.forked:
                return 0
            below = head.content.seq
            gone = self._leave_deals(chain, holding.key, below, most)
            if gone:
                self._db.execute(
                    "UPDATE chain SET low = max(low, ?) WHERE chain = ?", (below, chain)
                )
            return gone

    def pruned(self) -> int:
        """Of how many entries only ids are left. Reads them all. Raises LedgerError."""
        with telling_why():
            (count,) = self._db.execute("SELECT count(*) FROM entry WHERE n < 0").fetchone()
            return int(count)

    def last_of(self, kind: Kind, author: bytes, net: bytes, below: int) -> Entry | None:
        """The last entry of *kind* on a chain below a seq, as `prune` wants a HEAD."""
        found = self._read(
            "JOIN chain USING (chain) WHERE author = ? AND net = ? AND seq < ? AND state = 1"
            f" AND {_OF_KIND} ORDER BY seq DESC, raw LIMIT 1",
            *(author, net, below, bytes([kind])),
        )
        return next(found, None)

    def all_of(self, kind: Kind) -> Iterator[Entry]:
        """All entries of *kind*; the others are not decoded. Nobody may write meanwhile."""
        return self._read(f"WHERE state = 1 AND {_OF_KIND} ORDER BY n", bytes([kind]))

    def carried(self, net: bytes) -> list[Carried]:
        """What pruned entries amount to, for a fold over the others. Raises LedgerError."""
        with telling_why():
            return remains.carried(self._db, net)

    def closed(self, deal: Deal) -> Resolution | None:
        """How a pruned deal ended. Raises LedgerError."""
        alloc_id, buyer, seller = deal
        with telling_why():
            found = remains.closed(self._db, alloc_id, buyer)
        return found.end if found and found.seller == seller else None

    def pruned_at(self, author: bytes, net: bytes, seq: int) -> frozenset[bytes]:
        """The ids of what was pruned at this place. Raises LedgerError."""
        with telling_why():
            return remains.pruned_at(self._db, author, net, seq)

    def scan(self, verify: Verify = keys.verify) -> int:
        """Check everything on disk against its hash and signature; how many entries there are.

        Raises Corruption, which names the first entry that is not what was stored.
        """
        with self.snapshot():
            for problem in self.damage(verify):
                raise problem
            return self.total().count

    def damage(
        self, verify: Verify = keys.verify, seen: Callable[[int], None] = lambda _: None
    ) -> Iterator[Corruption]:
        """All that is not as it was stored; *seen* hears how many entries were looked at."""
        return damage.found(self._db, self.chain, verify, seen)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read within is of one moment, whoever writes meanwhile."""
        with telling_why(), snapshot(self._db):
            yield

    def _beginning(self, author: bytes, net: bytes) -> Head:
        # Read once in a key's life, so by looking at every KEYOP.
        found = self._read(
            f"WHERE state = 1 AND {_OF_KIND} AND instr(raw, ?) ORDER BY raw",
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

    def _check_below(self, head_id: bytes) -> None:
        """That this is a HEAD over what is below it here. Raises LedgerError."""
        head = self.entry(head_id)
        if head is None or head.content.kind is not Kind.HEAD:
            raise LedgerError(f"r-{head_id.hex()} is no HEAD that is held", "fetch it first")
        chain, holding = self._below(head)
        below = head.content.seq
        if holding.forked or holding.low >= below:
            return  # nothing goes, or it was looked at before
        if remains.root_below(self._db, chain, below) != root_of(head):
            raise LedgerError("the HEAD is over other entries", "keep both: it is evidence")

    def _below(self, head: Entry) -> tuple[int, Holding]:
        """The chain of a HEAD, without a gap below it unless it forked. Raises LedgerError."""
        body = head.content
        chain, holding = held.holding_of(self._db, (body.author, body.net))
        assert chain is not None
        if holding.height <= body.seq and not holding.forked:
            raise LedgerError(f"entry {holding.height} is missing", "fetch the chain first")
        return chain, holding

    def _leave_deals(self, chain: int, key: ChainKey, below: int, most: int) -> int:
        """Of the chain's deals that are over and all *below*, leave what has to be; how many."""
        gone: dict[bytes, remains.Left] = {}
        for entry in self.chain(key[0]):
            body = entry.content
            if body.seq >= below or len(gone) >= most:
                break
            if body.net != key[1]:
                continue
            if body.kind is Kind.ALLOC:
                about = self.resolutions(entry.id)
                if end := remains.end_of(entry, about, below):
                    gone |= {e.id: None for e in about if e.content.kind is not Kind.REFUND}
                    gone[entry.id] = remains.Closed(body.peer, end)
            elif body.kind is Kind.REFUND and remains.is_pruned(self._db, body.ref):
                gone[entry.id] = remains.Returned(body.peer, Refund.decode(body.terms).amount)
        for entry_id, left in reversed(gone.items()):  # so that their rows lie close: see `leave`
            remains.leave(self._db, entry_id, left)
        remains.carry(self._db, chain, gone.values())
        return len(gone)

    def _file(self, entries: Iterable[Filed]) -> int:
        """Insert what is new, and look at what is not; how many were new."""
        unique: dict[bytes, Filed] = {}
        for filed in entries:
            twin = unique.get(filed.id)
            unique[filed.id] = better(filed, twin) if twin else filed
        for entry_id, n in self._where(list(unique)).items():
            filed = unique.pop(entry_id)
            if filed.is_checked:
                raw = filed.raw()
                self._db.execute(
                    "UPDATE entry SET raw = ?, state = 1, task = ?, ref = ?"
                    " WHERE n = ? AND (state = 0 OR state = 1 AND raw > ?)",
                    (raw, filed.task, filed.ref, n, raw),
                )
        chains: dict[ChainKey, list[Filed]] = {}
        for filed in unique.values():
            chains.setdefault(filed.key, []).append(filed)
        for key, several in chains.items():
            self._extend(key, several)
        return len(unique)

    def _extend(self, key: ChainKey, several: Sequence[Filed]) -> None:
        """File new entries of one chain, and what is held of it."""
        found, holding = held.holding_of(self._db, key)
        chain = found if found is not None else held.new_chain(self._db, key)
        self._db.executemany(
            "INSERT INTO entry(start, seq, hlc, task, ref, chain, state, raw)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (number(f.id[:8]), f.seq, f.hlc, f.task, f.ref, chain, f.is_checked, f.raw())
                for f in several
            ],
        )
        seqs = {filed.seq for filed in several}
        is_fork = len(seqs) < len(several) or any(
            held.is_fork(self._db, chain, seq) for seq in seqs if seq < holding.top
        )
        top = max(seqs)
        topped = holding.topped(top, min(filed.id for filed in several if filed.seq == top))
        known = evolve(
            topped,
            height=held.height_from(self._db, chain, holding.height, topped.top, seqs),
            total=holding.total.plus([filed.id for filed in several]),
            forked=holding.forked or (is_fork and key[0] != b""),
        )
        held.write(self._db, chain, known)

    def _drop(self, entry_id: bytes) -> bool:
        row = self._db.execute(
            f"SELECT n, chain FROM entry WHERE {_BY_ID} AND state = 0",  # noqa: S608 (our own text)
            _found_by(entry_id),
        ).fetchone()
        if row is None:
            return False
        self._db.execute("DELETE FROM entry WHERE n = ?", row[:1])
        held.recount(self._db, row[1])
        return True

    def _where(self, entry_ids: Sequence[bytes], also: str = "") -> dict[bytes, int]:
        """The row of each of these that is there."""
        found: dict[bytes, int] = {}
        for at in range(0, len(entry_ids), PAGE):
            page = entry_ids[at : at + PAGE]
            marks = ",".join("?" * len(page))
            where = f"WHERE start IN ({marks}) {also}"
            query = "SELECT substr(raw, 1, 32), n FROM entry " + where  # noqa: S608 (our own text)
            found.update(self._db.execute(query, [number(entry_id[:8]) for entry_id in page]))
        return {entry_id: found[entry_id] for entry_id in entry_ids if entry_id in found}

    def _read(self, where: str, *values: object) -> Iterator[Entry]:
        """Entries one by one, for a caller that stops in time; nobody may write meanwhile."""
        with telling_why():
            yield from map(entry_of, self._db.execute(SELECT + where, values))

    def _rows(self, where: str, *values: object) -> list[Row]:
        with telling_why():
            return self._db.execute(SELECT + where, values).fetchall()


def _found_by(entry_id: bytes) -> tuple[int, bytes]:
    return (number(entry_id[:8]), entry_id)
