"""The book of a witness: what was recorded is there, and is that witness's alone."""

from __future__ import annotations

import random
import sqlite3
from collections import deque
from pathlib import Path

import pytest
from ledger_deals import ALICE, BOB, CAROL, NET, Chain
from ledger_witnesses import WITNESSES, ask, is_vote_for, witness_of

from ledger.errors import Corruption, LedgerError
from ledger.votes import SCAN_PIECE, VoteBook
from ledger.witness import Voted

ONE, TWO = WITNESSES[:2]


def test_a_ballot_comes_back_from_the_file(tmp_path: Path) -> None:
    path, bob = tmp_path / "votes.sqlite", Chain(BOB)
    entries = [bob.alloc(ALICE) for _ in range(5)]
    with VoteBook.open(path, ONE.key) as book:
        ask(witness_of(ONE, book), *entries)
        ballot = book.ballot(BOB.key, NET)
        assert ballot is not None
        assert (ballot.seq, ballot.last) == (5, entries[-1])
    with VoteBook.open(path, ONE.key) as book:
        assert book.ballot(BOB.key, NET) == ballot
        assert [book.voted(BOB.key, NET, seq) for seq in range(6)] == [*entries, None]
        assert book.entry(entries[2].id) == entries[2]
        assert book.ballot(ALICE.key, NET) is None
        assert book.ballot(BOB.key, b"othernet") is None


def test_only_its_own_witness_may_open_a_book(tmp_path: Path) -> None:
    path = tmp_path / "votes.sqlite"
    VoteBook.open(path, ONE.key).close()
    with pytest.raises(LedgerError, match="another witness's"):
        VoteBook.open(path, TWO.key)
    VoteBook.open(path, ONE.key).close()


def test_a_book_has_one_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.votes.BUSY_WAIT_S", 0.0)
    path = tmp_path / "votes.sqlite"
    with (
        VoteBook.open(path, ONE.key),
        pytest.raises(LedgerError, match="in use"),
    ):
        VoteBook.open(path, ONE.key)


def test_every_commit_reaches_the_disk(tmp_path: Path) -> None:
    with VoteBook.open(tmp_path / "votes.sqlite", ONE.key) as book:
        assert book._db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert book._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_file_itself_holds_one_entry_for_a_place(tmp_path: Path) -> None:
    path = tmp_path / "votes.sqlite"
    with VoteBook.open(path, ONE.key) as book:
        first, second = Chain(BOB).alloc(ALICE), Chain(BOB).alloc(ALICE, price=1)
        ask(witness_of(ONE, book), first)
        ballot = book.ballot(BOB.key, NET)
        assert ballot is not None
        with pytest.raises(LedgerError, match="UNIQUE"):
            book.record(ballot, [second])
        assert book.voted(BOB.key, NET, 0) == first


def test_another_file_is_no_book(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE other(n)")
    db.close()
    with pytest.raises(LedgerError, match="not a witness's book"):
        VoteBook.open(path, ONE.key)
    (tmp_path / "text").write_text("no database, but long enough to be looked at" * 99)
    with pytest.raises(LedgerError, match="not a ledger"):
        VoteBook.open(tmp_path / "text", ONE.key)


def test_a_newer_book_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "votes.sqlite"
    VoteBook.open(path, ONE.key).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(LedgerError, match="schema 9"):
        VoteBook.open(path, ONE.key)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE voted SET body = zeroblob(length(body))",
        "UPDATE ballot SET peaks = x''",
        "DELETE FROM voted WHERE seq = 1",
    ],
)
def test_a_damaged_book_votes_for_nothing(tmp_path: Path, damage: str) -> None:
    path, bob = tmp_path / "votes.sqlite", Chain(BOB)
    with VoteBook.open(path, ONE.key) as book:
        ask(witness_of(ONE, book), bob.alloc(ALICE), bob.alloc(ALICE))
    with sqlite3.connect(path) as db:
        db.execute(damage)
    db.close()
    with VoteBook.open(path, ONE.key) as book, pytest.raises(Corruption, match="give up"):
        ask(witness_of(ONE, book), bob.alloc(ALICE))


def test_a_full_disk_casts_no_vote(tmp_path: Path) -> None:
    bob = Chain(BOB)
    with VoteBook.open(tmp_path / "votes.sqlite", ONE.key) as book:
        witness = witness_of(ONE, book)
        assert is_vote_for(ask(witness, first := bob.alloc(ALICE)), first)
        (pages,) = book._db.execute("PRAGMA page_count").fetchone()
        book._db.execute(f"PRAGMA max_page_count = {pages}")
        run = [bob.alloc(ALICE) for _ in range(40)]
        with pytest.raises(LedgerError, match="full"):
            ask(witness, *run)
        book._db.execute("PRAGMA max_page_count = 1000000")
        assert is_vote_for(ask(witness, *run), run[-1])


def test_every_flipped_bit_of_a_vote_is_found(tmp_path: Path) -> None:
    bob, path = Chain(BOB), tmp_path / "votes.sqlite"
    with VoteBook.open(path, ONE.key) as book:
        ask(witness_of(ONE, book), *(bob.alloc(ALICE) for _ in range(3)))
        assert sum(book.scan()) == 3
        names = ("author", "net", "id", "body", "sig")
        row = "SELECT author, net, id, body, sig FROM voted WHERE seq = 1"
        columns = dict(zip(names, book._db.execute(row).fetchone(), strict=True))
        dice = random.Random(5)
        for name, data in columns.items():
            for bit in dice.sample(range(8 * len(data)), 30):
                damaged = bytearray(data)
                damaged[bit // 8] ^= 1 << bit % 8
                book._db.execute("BEGIN")
                book._db.execute(f"UPDATE voted SET {name} = ? WHERE seq = 1", (bytes(damaged),))
                with pytest.raises(Corruption, match="give up"):
                    deque(book.scan())
                book._db.execute("ROLLBACK")
        assert sum(book.scan()) == 3


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE voted SET seq = 9 WHERE seq = 1",
        "DELETE FROM voted WHERE seq = 0",
        "UPDATE ballot SET seq = 2",
        "UPDATE ballot SET peaks = zeroblob(length(peaks))",
        "DELETE FROM ballot",
    ],
)
def test_a_book_that_is_not_whole_is_found(tmp_path: Path, damage: str) -> None:
    bob = Chain(BOB)
    with VoteBook.open(tmp_path / "votes.sqlite", ONE.key) as book:
        ask(witness_of(ONE, book), *(bob.alloc(ALICE) for _ in range(3)))
        book._db.execute(damage)
        with pytest.raises(Corruption, match="give up"):
            deque(book.scan())


def test_a_vote_that_the_book_lost_is_told_and_none_is_given(tmp_path: Path) -> None:
    bob = Chain(BOB)
    entries = [bob.alloc(ALICE) for _ in range(3)]
    with VoteBook.open(tmp_path / "votes.sqlite", ONE.key) as book:
        ask(witness_of(ONE, book), *entries)
        book._db.execute("DELETE FROM voted WHERE seq = 1")
        with pytest.raises(Corruption, match="give up"):
            ask(witness_of(ONE, book), entries[1])


def test_votes_may_be_recorded_while_the_book_is_looked_through(tmp_path: Path) -> None:
    bob, carol = Chain(BOB), Chain(CAROL)
    with VoteBook.open(tmp_path / "votes.sqlite", ONE.key) as book:
        witness = witness_of(ONE, book)
        for chain in (bob, carol):
            for _ in range(SCAN_PIECE + 1):
                assert isinstance(ask(witness, chain.alloc(ALICE)), Voted)
        pieces = book.scan()
        found = next(pieces)
        assert isinstance(ask(witness, bob.alloc(ALICE), bob.alloc(ALICE)), Voted)
        assert isinstance(ask(witness, carol.alloc(ALICE)), Voted)
        assert found + sum(pieces) >= 2 * (SCAN_PIECE + 1)
        assert sum(book.scan()) == 2 * (SCAN_PIECE + 1) + 3
