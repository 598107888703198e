"""The embedded store: nothing half-written, nothing broken served, nothing pinned swept."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mesh.errors import ConfigError, Corruption, NotFound, Refused, Unavailable
from mesh.ids import RAW, Cid, cid_of, format_cid
from mesh.storage import disk
from mesh.storage.disk import DiskBlocks
from mesh.storage.files import add_bytes, add_path, read_file
from mesh.storage.pins import Pin, Pins

QUOTA = 20_000_000
DATA = b"content"
CID = cid_of(RAW, DATA)
HOUR = 3_600.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[DiskBlocks]:
    with DiskBlocks(folder, QUOTA) as opened:
        yield opened


def file_of(folder: Path, cid: Cid) -> Path:
    (found,) = folder.glob(f"blocks/*/{format_cid(cid)}")
    return found


def temporary_files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


def test_blocks_pins_and_counts_survive_a_restart(folder: Path) -> None:
    with DiskBlocks(folder, QUOTA) as store:
        store.put(CID, DATA)
        store.pin(CID, "kept")
        before = store.statistics()
    with DiskBlocks(folder, QUOTA) as store:
        assert store.get(CID) == DATA
        assert store.pins() == (Pin(CID, "kept", 1),)
        assert store.statistics() == before


def test_blocks_lie_under_the_last_byte_of_their_hash(folder: Path, store: DiskBlocks) -> None:
    store.put(CID, DATA)
    assert file_of(folder, CID).parent.name == f"{CID[-1]:02x}"
    assert file_of(folder, CID).read_bytes() == DATA


def test_a_flipped_bit_is_corruption_and_is_counted(folder: Path, store: DiskBlocks) -> None:
    store.put(CID, DATA)
    path = file_of(folder, CID)
    path.write_bytes(bytes([DATA[0] ^ 1]) + DATA[1:])
    with pytest.raises(Corruption, match="fails its hash"):
        store.get(CID)
    path.write_bytes(DATA[:-1])
    with pytest.raises(Corruption):
        store.get(CID)
    assert store.statistics()["corrupt"] == 2


def test_a_broken_block_can_be_deleted_and_put_again(folder: Path, store: DiskBlocks) -> None:
    store.put(CID, DATA)
    file_of(folder, CID).write_bytes(b"broken")
    assert store.delete(CID)
    store.put(CID, DATA)
    assert store.get(CID) == DATA


def test_what_a_crash_left_is_removed_at_the_next_start(folder: Path) -> None:
    with DiskBlocks(folder, QUOTA) as store:
        store.put(CID, DATA)
    (folder / "blocks" / "00" / "17.tmp").write_bytes(b"half a blo")
    (folder / "blocks" / "ff" / "0.tmp").write_bytes(b"")
    with DiskBlocks(folder, QUOTA) as store:
        assert temporary_files(folder) == []
        assert store.statistics()["leftovers_removed"] == 2
        assert store.statistics()["bytes"] == len(DATA)


def test_a_killed_writer_leaves_whole_blocks_only(folder: Path) -> None:
    """A process dies while it writes; every block that it left is whole."""
    program = """
import itertools, sys
from pathlib import Path
from mesh.ids import RAW, cid_of
from mesh.storage.disk import DiskBlocks
store = DiskBlocks(Path(sys.argv[1]), 10**9)
for index in itertools.count():
    data = index.to_bytes(50_000, "big")
    store.put(cid_of(RAW, data), data)
    print(index, flush=True)
"""
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(20)]
        with pytest.raises(ConfigError, match=f"is open in process {process.pid}") as caught:
            DiskBlocks(folder, QUOTA)
        assert caught.value.key == "MESH_HOME"
        process.kill()
    with DiskBlocks(folder, QUOTA) as store:
        here = [store.get(cid) for cid in store.cids()]
        assert {int.from_bytes(data, "big") for data in here} >= set(said)
        assert temporary_files(folder) == []


def test_a_store_is_open_once(folder: Path, store: DiskBlocks) -> None:
    with pytest.raises(ConfigError, match=f"is open in process {os.getpid()}"):
        DiskBlocks(folder, QUOTA)
    store.put(CID, DATA)
    assert store.get(CID) == DATA


def test_a_failed_start_lets_go_of_the_lock(folder: Path) -> None:
    folder.mkdir()
    (folder / "pins.sqlite").write_bytes(b"this is no database, but long enough to be one" * 100)
    for _ in range(2):
        with pytest.raises(Corruption, match="no database of pins"):
            DiskBlocks(folder, QUOTA)


def test_the_quota_says_how_much_is_used_and_needed(folder: Path) -> None:
    with DiskBlocks(folder, 1_500) as store:
        first, second = bytes(1_000), bytes(1_001)
        store.put(cid_of(RAW, first), first)
        with pytest.raises(Refused) as caught:
            store.put(cid_of(RAW, second), second)
        assert caught.value.reason == (
            "the store is full: quota 1,500 bytes, used 1,000, needed 1,001"
        )
        assert "storage.quota" in caught.value.hint
        assert store.statistics()["bytes"] == 1_000
        assert temporary_files(folder) == []


def test_a_full_disk_is_unavailable_and_leaves_nothing(
    folder: Path, store: DiskBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(Unavailable, match="is full: free some of it, or move MESH_HOME"):
            store.put(CID, DATA)
    assert temporary_files(folder) == []
    assert not store.has(CID)
    statistics = store.statistics()
    assert (statistics["disk_full"], statistics["bytes"], statistics["blocks"]) == (1, 0, 0)
    store.put(CID, DATA)
    assert store.get(CID) == DATA


def test_another_fault_of_the_disk_is_not_hidden(
    folder: Path, store: DiskBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        store.put(CID, DATA)
    assert temporary_files(folder) == []


def test_every_file_and_its_folder_are_synced_before_put_returns(
    folder: Path, store: DiskBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    blocks = [index.to_bytes(1_000, "big") for index in range(64)]
    store.put_many((cid_of(RAW, data), data) for data in blocks)
    shards = [name for name in synced if not name.endswith(".tmp")]
    assert len(synced) - len(shards) == 64
    assert set(shards) == {str(file_of(folder, cid_of(RAW, data)).parent) for data in blocks}
    assert len(shards) == len(set(shards))
    assert synced[64:] == shards


def test_strange_files_are_left_alone_and_counted(folder: Path) -> None:
    with DiskBlocks(folder, QUOTA):
        pass
    stranger = folder / "blocks" / "00" / "README"
    stranger.write_text("mine")
    with DiskBlocks(folder, QUOTA) as store:
        assert store.statistics()["strangers"] == 1
        assert list(store.cids()) == []
        store.sweep(0, 0)
    assert stranger.exists()


# --- pins and sweeping --------------------------------------------------------------------------


def test_pins_count_by_root_and_reason(store: DiskBlocks) -> None:
    store.put(CID, DATA)
    for reason in ("result of t-1", "result of t-1", "mine"):
        store.pin(CID, reason)
    assert store.pins() == (Pin(CID, "mine", 1), Pin(CID, "result of t-1", 2))
    store.unpin(CID, "result of t-1")
    store.unpin(CID, "mine")
    assert store.pins() == (Pin(CID, "result of t-1", 1),)
    store.unpin(CID, "result of t-1")
    with pytest.raises(NotFound, match="is not pinned for"):
        store.unpin(CID, "result of t-1")


def test_another_fault_of_the_database_is_not_hidden(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "pins.sqlite")
    pins._database.execute("DROP TABLE pins")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        pins.add(CID, "mine")
    pins.close()


def test_only_what_is_wholly_here_can_be_pinned(store: DiskBlocks) -> None:
    root = add_bytes(store, os.urandom(600_000)).cid
    leaf = next(cid for cid in store.cids() if cid != root)
    store.delete(leaf)
    with pytest.raises(NotFound, match=format_cid(leaf)):
        store.pin(root, "mine")
    assert store.pins() == ()


def test_several_are_pinned_together_or_not_at_all(store: DiskBlocks) -> None:
    roots = [add_bytes(store, text).cid for text in (b"a", b"b", b"b")]
    store.pin_all(roots, "mine")
    assert sorted(pin.count for pin in store.pins()) == [1, 2]
    with pytest.raises(NotFound):
        store.pin_all([roots[0], CID], "theirs")
    store.pin_all([], "nobody's")
    assert {pin.reason for pin in store.pins()} == {"mine"}


def test_a_sweep_keeps_what_is_pinned_and_removes_the_rest(
    store: DiskBlocks, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "file").write_bytes(os.urandom(600_000))
    (tree / "other").write_bytes(b"other")
    kept = add_path(store, tree)
    before = set(store.cids())
    dropped = add_bytes(store, os.urandom(700_000))
    store.pin(kept.cid, "mine")
    freed = store.sweep(0, 0)
    assert freed == dropped.tsize
    assert set(store.cids()) == before
    assert store.statistics()["bytes"] == kept.tsize
    assert store.statistics()["swept"] == 4
    store.unpin(kept.cid, "mine")
    assert store.sweep(0, 0) == kept.tsize
    assert list(store.cids()) == []


def test_a_block_that_two_roots_share_stays_for_the_other(store: DiskBlocks) -> None:
    shared = os.urandom(262_144)
    first = add_bytes(store, shared + b"a").cid
    second = add_bytes(store, shared + b"b").cid
    store.pin(first, "mine")
    store.pin(second, "mine")
    store.unpin(first, "mine")
    store.sweep(0, 0)
    assert b"".join(read_file(store, second)) == shared + b"b"
    assert not store.has(first)


def test_a_sweep_grants_grace_from_when_it_first_saw_a_block_unneeded(store: DiskBlocks) -> None:
    store.put(CID, DATA)
    assert store.sweep(HOUR, 5.0) == 0
    assert store.sweep(HOUR, 5.0 + HOUR - 1) == 0
    assert store.sweep(HOUR, 5.0 + HOUR) == len(DATA)


@pytest.mark.parametrize("interest", ["put", "has", "get"])
def test_interest_in_a_block_renews_its_grace(store: DiskBlocks, interest: str) -> None:
    store.put(CID, DATA)
    store.sweep(HOUR, 0.0)
    match interest:
        case "put":
            store.put(CID, DATA)
        case "has":
            store.has(CID)
        case _:
            store.get(CID)
    assert store.sweep(HOUR, 2 * HOUR) == 0
    assert store.sweep(HOUR, 3 * HOUR) == len(DATA)


def test_a_pin_that_was_dropped_grants_grace_anew(store: DiskBlocks) -> None:
    store.put(CID, DATA)
    store.sweep(HOUR, 0.0)
    store.pin(CID, "mine")
    store.sweep(HOUR, 2 * HOUR)
    store.unpin(CID, "mine")
    assert store.sweep(HOUR, 3 * HOUR) == 0
    assert store.sweep(HOUR, 4 * HOUR) == len(DATA)


def test_a_sweep_with_a_broken_pin_removes_nothing(folder: Path, store: DiskBlocks) -> None:
    root = add_bytes(store, os.urandom(300_000)).cid
    store.pin(root, "mine")
    store.put(CID, DATA)
    file_of(folder, root).unlink()
    with pytest.raises(NotFound):
        store.sweep(0, 0)
    assert store.has(CID)


def test_a_sweep_remembers_a_bounded_number_of_blocks(
    store: DiskBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "DOOMED_MAX", 3)
    store.put_many((cid_of(RAW, bytes([index])), bytes([index])) for index in range(5))
    assert store.sweep(HOUR, 0.0) == 0
    assert store.statistics()["doomed"] == 3
    assert store.statistics()["sweep_deferred"] == 2
    assert store.sweep(HOUR, HOUR) >= 3
    store.sweep(HOUR, HOUR)
    store.sweep(HOUR, 2 * HOUR)
    assert list(store.cids()) == []


def test_pins_on_a_full_disk_are_unavailable(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "pins.sqlite")
    pins._database.execute("PRAGMA max_page_count = 4")  # SQLite's own idea of a full disk
    pins.add(CID, "small")
    with pytest.raises(Unavailable, match="no room"):
        pins.add(CID, "large " * 10_000)
    pins.add(CID, "small")
    assert pins.all() == (Pin(CID, "small", 2),)
    pins.close()


def test_pins_and_sweeps_at_once_never_lose_a_pinned_block(store: DiskBlocks) -> None:
    contents = [index.to_bytes(300_000, "big") for index in range(8)]

    def add_and_pin(data: bytes) -> Cid | None:
        root = add_bytes(store, data).cid
        try:
            store.pin(root, "mine")
        except NotFound:  # swept before it was pinned: the pin says so
            return None
        return root

    with ThreadPoolExecutor(4) as threads:
        sweeps = [threads.submit(store.sweep, 0, 0) for _ in range(8)]
        roots = list(threads.map(add_and_pin, contents))
        for sweep in sweeps:
            sweep.result()
    for root, data in zip(roots, contents, strict=True):
        if root is not None:
            assert b"".join(read_file(store, root)) == data
