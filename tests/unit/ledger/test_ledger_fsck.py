"""fsck: every flipped bit inside an entry is found, every wrong count, and what is sound is not."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from ledger_deals import ALICE, BOB, CAROL, NET, Chain
from ledger_deals import DAVE as HEIR

from ledger.__main__ import BAD, GOOD, USAGE, main
from ledger.chain import Head
from ledger.errors import BrokenChain, LedgerError
from ledger.fsck import Problem, examine
from ledger.glance import Glance
from ledger.model import Entry
from ledger.statements import Op
from ledger.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def filled(path: Path) -> list[Entry]:
    """BOB's own chain, some of ALICE's, in one flat file."""
    bob, alice = Chain(BOB), Chain(ALICE)
    alloc = bob.alloc(ALICE)
    own = [alloc, bob.use(ALICE, alloc), bob.settle(ALICE, alloc)]
    own.append(bob.checkpoint(own))
    others = [alice.line(BOB, 9000), alice.refund(alloc, 5)]
    with Store.open(path) as store:
        store.append_own(own)
        store.add(others)
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return [*own, *others]


def problems(path: Path, own: tuple[bytes, ...] = (BOB.key,)) -> list[Problem]:
    with Store.view(path) as store:
        return list(examine(store, own))


def told(path: Path) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    return main(["fsck", str(path)], out, err), out.getvalue()


def test_a_sound_store_has_no_problems_and_is_not_changed(path: Path) -> None:
    entries = filled(path)
    before = path.read_bytes()
    assert problems(path) == []
    assert told(path) == (GOOD, f"{len(entries)} entries, 0 problems\n")
    assert path.read_bytes() == before


def test_every_flipped_bit_inside_an_entry_is_found_and_named(path: Path) -> None:
    entries = filled(path)
    sound = path.read_bytes()
    for entry in entries[:4:3]:
        for part in (entry.body, entry.sig):
            start = sound.index(part)
            assert sound.count(part) == 1
            for place in range(start, start + len(part)):
                bit = 1 << (place * 5 % 8)
                path.write_bytes(sound[:place] + bytes([sound[place] ^ bit]) + sound[place + 1 :])
                found = problems(path, ())
                assert [entry.id.hex() in problem.what for problem in found] == [True], place
                assert "fetch the entries" in found[0].hint


def test_all_that_is_damaged_is_named_and_not_only_the_first(path: Path) -> None:
    entries = filled(path)
    data = bytearray(path.read_bytes())
    for entry in (entries[0], entries[2]):
        data[data.index(entry.body) + 40] ^= 1
    path.write_bytes(data)
    code, out = told(path)
    assert code == BAD
    assert all(f"r-{entry.id.hex()}" in out for entry in (entries[0], entries[2]))
    assert out.endswith("6 entries, 2 problems\n")


@pytest.mark.parametrize("column", ["count", "height", "top", "sum"])
def test_a_wrong_count_of_a_chain_is_found(path: Path, column: str) -> None:
    filled(path)
    with sqlite3.connect(path) as db:
        value = "zeroblob(32)" if column == "sum" else f"{column} + 1"
        db.execute(f"UPDATE chain SET {column} = {value} WHERE author = ?", (BOB.key,))
    found = problems(path)
    assert len(found) == 1
    assert "count" in found[0].what


def test_an_own_chain_with_a_gap_is_broken_and_anothers_is_not(path: Path) -> None:
    bob = Chain(BOB)
    entries = [bob.alloc(ALICE) for _ in range(3)]
    with Store.open(path) as store:
        store.add([entries[0], entries[2]])
    assert problems(path, ()) == []
    (found,) = problems(path)
    assert "our own chain is broken at seq 2" in found.what


def test_an_own_chain_that_forked_says_that_its_key_is_burnt(path: Path) -> None:
    bob = Chain(BOB)
    first = bob.alloc(ALICE)
    arm = bob.fork()
    with Store.open(path) as store:
        store.add([first, bob.alloc(ALICE), arm.alloc(CAROL)])
    (found,) = problems(path)
    assert "our own chain forked at seq 1" in found.what
    assert "rotate" in found.hint


def test_what_is_vouched_for_is_no_problem(path: Path) -> None:
    entries = _chain(4)
    with Store.open(path) as store:
        store.add(entries[-1:], [Glance.of(entry.body, entry.sig) for entry in entries[:-1]])
    assert problems(path, ()) == []


def _chain(length: int) -> list[Entry]:
    bob = Chain(BOB)
    return [bob.alloc(ALICE) for _ in range(length)]


def test_a_file_that_is_no_ledger_or_is_not_there_is_told_apart_from_a_damaged_one(
    path: Path,
) -> None:
    assert told(path)[0] == USAGE
    assert not path.exists(), "looking makes nothing"
    sqlite3.connect(path).close()
    path.write_bytes(b"not a database, but long enough to be read as one" * 100)
    assert told(path)[0] == USAGE
    path.unlink()
    filled(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    code, out = told(path)
    assert code == BAD
    assert "damaged" in out


def test_looking_needs_no_right_to_write_and_goes_beside_a_writer(path: Path) -> None:
    filled(path)
    with Store.open(path) as writer, Store.view(path) as viewer:
        writer.append_own([Chain(CAROL).alloc(ALICE)])
        assert viewer.total().count == 7
        assert list(examine(viewer, (BOB.key,))) == []
        with pytest.raises(LedgerError, match="may not be written"):
            viewer.append_own([Chain(HEIR).alloc(ALICE)])


def test_progress_is_told(path: Path) -> None:
    entries = filled(path)
    heard: list[int] = []
    with Store.view(path) as store:
        assert list(examine(store, (), heard.append)) == []
    assert heard[-1] == len(entries)


# --- heirs --------------------------------------------------------------------------------------


def rotated() -> tuple[Entry, Chain]:
    rotate = Chain(BOB).keyop(Op.ROTATE, HEIR)
    return rotate, Chain(HEIR, Head.heir(rotate))


def test_an_heirs_chain_starts_at_the_rotate(path: Path) -> None:
    rotate, chain = rotated()
    entries = [chain.alloc(ALICE), chain.alloc(ALICE)]
    with Store.open(path) as store:
        store.append_own([rotate])
        store.append_own(entries)
    assert problems(path, (BOB.key, HEIR.key)) == []


@pytest.mark.parametrize(
    "start",
    [
        lambda rotate: Chain(CAROL, Head(CAROL.key, NET, 0, rotate.id, 0, 0, 0)),
        lambda rotate: Chain(HEIR, Head(HEIR.key, NET, 0, bytes(31) + b"\1", 0, 0, 0)),
    ],
    ids=["of another's", "of nothing"],
)
def test_nobody_else_starts_there_and_nowhere_else(
    path: Path, start: Callable[[Entry], Chain]
) -> None:
    rotate, _ = rotated()
    with Store.open(path) as store:
        store.append_own([rotate])
        with pytest.raises(BrokenChain, match="ROTATE"):
            store.append_own([start(rotate).alloc(ALICE)])
