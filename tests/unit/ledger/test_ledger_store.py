"""The store: what it acknowledged it has, and it says so when it has not."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_deals import ALICE, BOB, CAROL, DAVE, NET, Chain

from ledger import database, schema
from ledger import store as store_module
from ledger.chain import Head
from ledger.errors import BrokenChain, Corruption, LedgerError
from ledger.glance import Glance
from ledger.holdings import ChainKey, Holding, Total
from ledger.model import Entry, Kind
from ledger.state import fold
from ledger.store import PAGE, Store

DATA = Path(__file__).parents[2] / "data" / "ledger"
ID, SIG = 32, 64  # a stored entry is its id, its signature and its body


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as store:
        yield store


def filled(path: Path, deals: int = 4) -> list[Entry]:
    """A closed store of that many settled deals, and its entries."""
    bob, entries = Chain(BOB), []
    for _ in range(deals):
        alloc = bob.alloc(ALICE)
        entries += [alloc, bob.settle(ALICE, alloc)]
    with Store.open(path) as store:
        store.append_own(entries)
    return entries


def test_what_was_appended_is_there_after_opening_again(path: Path) -> None:
    entries = filled(path)
    with Store.open(path) as store:
        assert list(store.entries()) == entries
        assert store.entry(entries[3].id) == entries[3]
        assert store.entry(bytes(32)) is None
        assert store.head(BOB.key, NET) == Head.after(entries[-1])
        assert store.head(BOB.key, b"othernet") == Head.start(BOB.key, b"othernet")
        assert store.scan() == len(entries)


def test_appending_again_changes_nothing(store: Store) -> None:
    alloc = Chain(BOB).alloc(ALICE)
    store.append_own([alloc])
    store.append_own([alloc, alloc])
    assert list(store.entries()) == [alloc]


def test_we_never_fork_ourselves(store: Store) -> None:
    bob = Chain(BOB)
    fork = bob.fork()
    store.append_own([bob.alloc(ALICE)])
    with pytest.raises(BrokenChain, match="seq 0 where 1 follows"):
        store.append_own([fork.alloc(CAROL)])
    bob.alloc(ALICE)
    gap = bob.alloc(ALICE)
    with pytest.raises(BrokenChain, match="seq 2 where 1 follows"):
        store.append_own([gap])


def test_we_never_resolve_an_alloc_twice(store: Store) -> None:
    bob = Chain(BOB)
    first, second = bob.alloc(ALICE), bob.alloc(ALICE)
    store.append_own([first, second, bob.settle(ALICE, first)])
    with pytest.raises(BrokenChain, match="resolved already"):
        store.append_own([bob.void(ALICE, first)])


def test_an_append_is_all_or_nothing(store: Store) -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    bob.alloc(ALICE)
    gap = bob.alloc(ALICE)
    with pytest.raises(BrokenChain):
        store.append_own([alloc, gap])
    assert list(store.entries()) == []


def test_others_entries_come_in_any_order_and_any_number_of_times(store: Store) -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    fork = bob.fork()
    settle, arm = bob.settle(ALICE, alloc), fork.alloc(CAROL)
    assert store.add([settle, alloc, settle]) == 2
    assert store.add([arm, alloc]) == 1
    assert set(store.entries()) == {alloc, settle, arm}
    assert set(store.resolutions(alloc.id)) == {settle}
    assert fold(store.entries(), NET)[BOB.key].forked


def test_of_two_signatures_over_one_id_the_smaller_stays(store: Store) -> None:
    alloc = Chain(BOB).alloc(ALICE)
    larger, smaller = Entry(alloc.body, b"\xff" * 64), Entry(alloc.body, b"\x01" * 64)
    assert store.add([alloc, larger]) == 1
    assert store.entry(alloc.id) == alloc
    assert store.add([smaller]) == 0
    assert store.entry(alloc.id) == smaller


def test_a_chain_is_read_by_seq_with_every_arm(store: Store) -> None:
    bob = Chain(BOB)
    first = bob.alloc(ALICE)
    fork = bob.fork()
    second, third, arm = bob.alloc(ALICE), bob.alloc(ALICE), fork.alloc(CAROL)
    store.add([third, arm, Chain(CAROL).alloc(ALICE), first, second])
    assert list(store.chain(BOB.key)) == [first, arm, second, third]
    assert list(store.chain(BOB.key, after_seq=0)) == [arm, second, third]
    assert list(store.chain(BOB.key, after_seq=2)) == []
    assert list(store.chain(ALICE.key)) == []


def test_reading_goes_on_past_a_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "PAGE", 3)
    bob = Chain(BOB)
    fork = bob.fork()
    entries = [bob.alloc(ALICE) for _ in range(8)] + [fork.alloc(CAROL) for _ in range(8)]
    store.add(entries)
    assert list(store.entries()) == entries
    assert sorted(store.chain(BOB.key), key=entries.index) == entries
    assert [entry.content.seq for entry in store.chain(BOB.key)] == [n // 2 for n in range(16)]
    assert store.scan() == 16
    assert PAGE > 3


def test_the_newest_come_first_and_may_be_of_one_task(store: Store) -> None:
    bob = Chain(BOB)
    entries = [bob.alloc(ALICE, nonce=bytes([n % 2]) * 16) for n in range(6)]
    store.append_own(entries)
    assert store.newest(2) == (entries[5], entries[4])
    assert store.newest(10, nonce=bytes(16)) == (entries[4], entries[2], entries[0])
    assert store.newest(10, nonce=b"no such task 16b") == ()


def test_another_thread_may_use_it(store: Store) -> None:
    alloc = Chain(BOB).alloc(ALICE)
    worker = threading.Thread(target=store.append_own, args=([alloc],))
    worker.start()
    worker.join()
    assert store.entry(alloc.id) == alloc


def test_every_flipped_bit_of_a_stored_entry_is_found_and_named(path: Path) -> None:
    entries = filled(path, deals=1)
    with Store.open(path) as store:
        for entry in entries:
            for place in range(0, ID + SIG + len(entry.body), 5):
                mask = 1 << place % 8
                named = flipped(entry.id, place, mask) if place < ID else entry.id
                flip(store._db, entry.id, place, mask)
                with pytest.raises(Corruption, match=named.hex()):
                    store.scan()
                flip(store._db, named, place, mask)
        assert store.scan() == len(entries)


def test_the_total_is_right_whoever_has_written(path: Path) -> None:
    """It is remembered: what this connection and what another has written must both be seen."""
    chain = Chain(BOB)
    with Store.open(path) as one, Store.open(path) as other:
        for count in range(1, 7):
            (one if count % 2 else other).add([chain.alloc(ALICE)])
            assert one.total() == other.total()
            assert one.total().count == count


def test_flipped_bits_in_the_file_are_found(path: Path) -> None:
    entries = filled(path, deals=1)
    sound = path.read_bytes()
    for entry in entries:
        start = sound.index(entry.body)
        for place in (start, start + len(entry.body) // 2, start + len(entry.body) - 1):
            path.write_bytes(flipped(sound, place, 0x10))
            with Store.open(path) as store, pytest.raises(Corruption, match=entry.id.hex()):
                store.scan()


def test_a_damaged_entry_is_not_served(path: Path) -> None:
    entries = filled(path, deals=1)
    with Store.open(path) as store:
        flip(store._db, entries[0].id, ID + SIG + 40, 1)
        with pytest.raises(Corruption, match="does not hash to its id"):
            store.entry(entries[0].id)


@pytest.mark.parametrize("column", ["start", "seq", "hlc", "task", "ref", "chain"])
def test_an_entry_filed_under_the_wrong_key_is_found(path: Path, column: str) -> None:
    entries = filled(path, deals=1)
    with Store.open(path) as store:
        store.add([Chain(CAROL).alloc(ALICE)])
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE entry SET {column} = 2 WHERE substr(raw, 1, 32) = ?", (entries[0].id,))
    db.close()
    with Store.open(path) as store, pytest.raises(Corruption, match="under the wrong key"):
        store.scan()


def test_a_file_cut_short_is_found(path: Path) -> None:
    filled(path, deals=40)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 // 4096 * 4096])
    with pytest.raises(Corruption, match="damaged"), Store.open(path) as store:
        store.scan()


def test_a_newer_schema_is_refused_with_the_way_out(path: Path) -> None:
    Store.open(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LedgerError, match=r"schema 99, .*a newer version wrote it"):
        Store.open(path)


def test_a_file_of_schema_1_is_brought_up_to_date(path: Path) -> None:
    """tests/data/ledger/schema1.sql was made by the program of its time."""
    with sqlite3.connect(path) as db:
        db.executescript((DATA / "schema1.sql").read_text())
        before = db.execute("SELECT n, body, sig FROM entry ORDER BY n").fetchall()
    db.close()
    for _ in range(2):
        with Store.open(path) as store:
            entries = list(store.entries())
            assert [(entry.body, entry.sig) for entry in entries] == [row[1:] for row in before]
            assert store.scan() == len(entries) == 7
            assert store.total() == Total().plus(entry.id for entry in entries)
            bob, carol = (store.holding(party.key, NET) for party in (BOB, CAROL))
            assert (bob.height, bob.top, bob.total.count, bob.forked) == (4, 4, 5, True)
            assert (carol.height, carol.top, carol.total.count, carol.forked) == (1, 3, 2, False)
            assert store.resolutions(entries[0].id) == (entries[1],)
            assert len(store.newest(99, entries[0].content.nonce)) == 7
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)
    db.close()


def test_a_file_of_schema_2_is_brought_up_to_date(path: Path) -> None:
    """tests/data/ledger/schema2.sql was made by the program of its time."""
    with sqlite3.connect(path) as db:
        db.executescript((DATA / "schema2.sql").read_text())
        before = db.execute("SELECT n, id, body, sig FROM entry ORDER BY n").fetchall()
        chains = db.execute("SELECT author, net, height, top, count, forked FROM chain").fetchall()
    db.close()
    dave = Chain(DAVE)
    alloc = dave.alloc(ALICE)
    settle = dave.settle(ALICE, alloc)
    for _ in range(2):
        with Store.open(path) as store:
            assert store.scan() == len(before) == 10
            assert [(e.id, e.body, e.sig) for e in store.entries()] == [
                row[1:] for row in before if row[1] != alloc.id
            ]
            assert [glance.id for glance in store.vouched(9)] == [alloc.id]
            assert {entry.content.kind for entry in store.resolutions(alloc.id)} == {
                Kind.SETTLE,
                Kind.REFUND,
            }
            assert store.newest(99, alloc.content.nonce)[0] == settle
            assert [
                (h.author, h.net, h.height, h.top, h.total.count, h.forked)
                for h in store.holdings()
            ] == chains
            assert store.total() == Total().plus(row[1] for row in before)
            assert store.carried(NET) == []


def test_schemas_are_appended_one_after_the_other(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = filled(path)
    newer = (*schema.MIGRATIONS, ("CREATE TABLE witness(n INTEGER PRIMARY KEY)",))
    monkeypatch.setattr(schema, "MIGRATIONS", newer)
    for _ in range(2):
        with Store.open(path) as store:
            assert list(store.entries()) == entries
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(newer),)
        assert db.execute("SELECT count(*) FROM witness").fetchone() == (0,)
    db.close()


def recounted(store: Store) -> dict[ChainKey, Holding]:
    """The holdings from the entries, the plain way."""
    chains: dict[ChainKey, set[tuple[int, bytes]]] = {}
    for _, entry_id in store.ids():
        glance = store.glance(entry_id)
        assert glance is not None
        chains.setdefault(glance.key, set()).add((glance.seq, glance.id))
    holdings = {}
    for key, places in chains.items():
        seqs = {seq for seq, _ in places}
        top = max(seqs)
        holdings[key] = Holding(
            *key,
            height=next(seq for seq in range(top + 2) if seq not in seqs),
            top=top + 1,
            top_id=min(entry_id for seq, entry_id in places if seq == top),
            total=Total().plus(entry_id for _, entry_id in places),
            forked=len(seqs) < len(places),
        )
    return holdings


def test_what_is_held_of_each_chain_is_counted_as_it_comes(store: Store) -> None:
    bob, carol = Chain(BOB), Chain(CAROL)
    entries = [bob.alloc(ALICE) for _ in range(6)] + [carol.alloc(ALICE)]
    arms = [bob.fork() for _ in range(2)]
    entries += [bob.alloc(ALICE), arms[0].alloc(CAROL), arms[1].alloc(DAVE)]
    dice = random.Random(5)
    dice.shuffle(entries)
    while entries:
        store.add([entries.pop() for _ in range(min(len(entries), dice.randrange(1, 4)))])
        assert {holding.key: holding for holding in store.holdings()} == recounted(store)
    assert store.holding(BOB.key, NET).forked
    assert not store.holding(CAROL.key, NET).forked
    assert store.holding(DAVE.key, NET) == Holding(DAVE.key, NET)
    assert store.total().count == 10


def test_a_vouched_entry_is_held_but_nobody_reads_it_until_it_is_checked(store: Store) -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    settle = bob.settle(ALICE, alloc)
    glances = [Glance.decode(entry.encode()) for entry in (alloc, settle)]
    assert store.add([], [*glances, *glances]) == 2
    assert store.holding(BOB.key, NET).height == 2
    assert list(store.glances(BOB.key, NET, 0, 9)) == glances
    assert store.which([bytes(32), settle.id]) == {settle.id}
    assert store.scan() == 2
    assert (store.entry(alloc.id), store.newest(9), store.resolutions(alloc.id)) == (None, (), ())
    assert (list(store.entries()), list(store.chain(BOB.key))) == ([], [])
    assert store.head(BOB.key, NET) == Head.start(BOB.key, NET)
    assert store.vouched(9) == tuple(glances)
    assert store.add([settle, alloc]) == 0
    assert store.add([], glances) == 0
    assert store.vouched(9) == ()
    assert store.resolutions(alloc.id) == (settle,)
    assert store.newest(1, alloc.content.nonce) == (settle,)
    assert list(store.entries()) == [alloc, settle]


def test_a_checked_signature_replaces_one_that_was_vouched_for(store: Store) -> None:
    alloc = Chain(BOB).alloc(ALICE)
    store.add([], [Glance.of(alloc.body, bytes(64))])
    store.add([alloc])
    assert store.entry(alloc.id) == alloc
    store.add([], [Glance.of(alloc.body, bytes(64))])
    assert store.entry(alloc.id) == alloc


def test_a_vouched_entry_that_is_no_good_is_forgotten(store: Store) -> None:
    bob = Chain(BOB)
    entries = [bob.alloc(ALICE) for _ in range(4)]
    store.add(entries[:1])
    store.add([], (Glance.decode(entry.encode()) for entry in entries))
    assert store.drop_vouched([entries[0].id, entries[2].id, bytes(32)]) == 1
    assert {holding.key: holding for holding in store.holdings()} == recounted(store)
    assert store.holding(BOB.key, NET).height == 2
    assert store.scan() == 3


def test_entries_whose_keys_begin_alike_are_told_apart(store: Store) -> None:
    bob = Chain(BOB)
    one, other = (bob.alloc(ALICE, nonce=b"task" + bytes([n]) * 12) for n in range(2))
    settle = bob.settle(ALICE, one)
    store.add([one, other, settle])
    assert store.newest(9, one.content.nonce) == (settle, one)
    assert store.newest(9, other.content.nonce) == (other,)
    assert store.entry(one.id[:8] + bytes(24)) is None
    assert store.resolutions(one.id[:4] + bytes(28)) == ()


def test_ids_come_by_their_clocks(store: Store) -> None:
    bob = Chain(BOB)
    entries = [bob.alloc(ALICE) for _ in range(5)]
    store.add(entries[::-1])
    assert store.ids() == [(entry.content.hlc, entry.id) for entry in entries]


def test_a_wrong_count_is_found(path: Path) -> None:
    filled(path, deals=1)
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM entry WHERE n = 1")
    db.close()
    with Store.open(path) as store, pytest.raises(Corruption, match="1 entries where 2"):
        store.scan()


def test_another_kind_of_file_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("a letter to my mother, which is rather long\n" * 50)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="not a ledger"):
        Store.open(path)
    assert path.read_bytes() == before


def test_another_programs_database_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE letters(n)")
    db.close()
    with pytest.raises(LedgerError, match="not a ledger"):
        Store.open(path)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be opened"):
        Store.open(tmp_path / "nowhere" / "ledger.sqlite")


def test_a_store_in_use_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_WAIT_S", 0.0)
    with Store.open(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        alloc = Chain(BOB).alloc(ALICE)
        with pytest.raises(LedgerError, match="another process holds it"):
            store.append_own([alloc])
        other.execute("ROLLBACK")
        other.close()
        store.append_own([alloc])


def test_a_full_disk_is_told_and_nothing_is_half_written(store: Store) -> None:
    bob = Chain(BOB)
    first = bob.alloc(ALICE)
    store.append_own([first])
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    more = [bob.alloc(ALICE) for _ in range(40)]
    with pytest.raises(LedgerError, match="the disk is full"):
        store.append_own(more)
    store._db.execute("PRAGMA max_page_count = 100000")
    assert list(store.entries()) == [first]
    store.append_own(more)
    assert store.scan() == 41


def flipped(data: bytes, place: int, mask: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= mask
    return bytes(changed)


def flip(db: sqlite3.Connection, entry_id: bytes, place: int, mask: int) -> None:
    """Flip bits of a stored entry behind the store's back."""
    (raw,) = db.execute(
        "SELECT raw FROM entry WHERE substr(raw, 1, 32) = ?", (entry_id,)
    ).fetchone()
    values = (flipped(raw, place, mask), entry_id)
    db.execute("UPDATE entry SET raw = ? WHERE substr(raw, 1, 32) = ?", values)
