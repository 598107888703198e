"""Files and folders through a store: what went in comes out, and nothing leaves the target."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.errors import Corruption, NotFound, PeerError, Refused, Unavailable
from mesh.ids import DAG_PB, RAW, Cid, cid_of
from mesh.storage import files
from mesh.storage.blocks import Blocks, MemoryBlocks
from mesh.storage.disk import DiskBlocks
from mesh.storage.files import (
    DEPTH_MAX,
    FILE_DEPTH_MAX,
    Item,
    add_bytes,
    add_path,
    list_dir,
    read_file,
    resolve,
    write_path,
)
from mesh.storage.unixfs import CHUNK_BYTES, Link, import_dir

BYTES_MAX = 10_000_000


@pytest.fixture
def store() -> MemoryBlocks:
    return MemoryBlocks()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub" / "none").mkdir(parents=True)
    (root / "sub" / "big.bin").write_bytes(os.urandom(2 * CHUNK_BYTES + 7))
    (root / "empty").write_bytes(b"")
    (root / "ü n\n").write_text("odd name")
    return root


def contents(root: Path) -> dict[str, bytes | None]:
    """Every path below *root*: the bytes of a file, None of a folder."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
    }


def put(store: Blocks, block: bytes, size: int = 0) -> Link:
    """A dag-pb block that no importer would make."""
    cid = cid_of(DAG_PB, block)
    store.put(cid, block)
    return Link(cid, len(block), size)


def file_node(parts: list[tuple[Cid, int]], size: int | None = None) -> bytes:
    """A file node with these parts; *size* may lie."""
    size = sum(length for _, length in parts) if size is None else size
    about = b"\x08\x02\x18" + varint(size) + b"".join(b"\x20" + varint(n) for _, n in parts)
    return b"".join(link(b"", cid) for cid, _ in parts) + body(0x0A, about)


def shard_node(slots: dict[int, tuple[bytes, Cid]]) -> bytes:
    links = b"".join(link(b"%02X" % i + name, cid) for i, (name, cid) in sorted(slots.items()))
    field = sum(1 << index for index in slots).to_bytes(32, "big").lstrip(b"\0")
    return links + body(0x0A, b"\x08\x05" + body(0x12, field) + b"\x28\x22\x30\x80\x02")


def link(name: bytes, cid: Cid) -> bytes:
    return body(0x12, body(0x0A, cid) + body(0x12, name) + b"\x18\x01")


def body(tag: int, data: bytes) -> bytes:
    return bytes([tag]) + varint(len(data)) + data


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


# --- there and back -----------------------------------------------------------------------------


def test_a_folder_comes_back_as_it_was(store: MemoryBlocks, tree: Path, tmp_path: Path) -> None:
    root = add_path(store, tree)
    target = tmp_path / "back"
    written = write_path(store, root.cid, target, bytes_max=BYTES_MAX)
    assert contents(target) == contents(tree)
    assert written == root.size == 2 * CHUNK_BYTES + 7 + 8


def test_a_folder_comes_back_from_the_embedded_store(tree: Path, tmp_path: Path) -> None:
    with DiskBlocks(tmp_path / "store", BYTES_MAX) as disk:
        root = add_path(disk, tree)
        write_path(disk, root.cid, tmp_path / "back", bytes_max=BYTES_MAX)
    assert contents(tmp_path / "back") == contents(tree)


@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 1])
def test_a_file_comes_back_as_it_was(store: MemoryBlocks, tmp_path: Path, length: int) -> None:
    data = os.urandom(length)
    (tmp_path / "file").write_bytes(data)
    root = add_path(store, tmp_path / "file")
    assert root == add_bytes(MemoryBlocks(), data)
    assert b"".join(read_file(store, root.cid)) == data
    assert write_path(store, root.cid, tmp_path / "back", bytes_max=length) == length
    assert (tmp_path / "back").read_bytes() == data


def test_a_folder_of_thousands_of_names_comes_back(store: MemoryBlocks, tmp_path: Path) -> None:
    names = [f"a file with quite a long name, number {index}" for index in range(3_500)]
    one = add_bytes(store, b"x")
    root = import_dir(dict.fromkeys(names, one), store.put)
    assert sorted(item.path for item in list_dir(store, root.cid)) == sorted(names)
    for name in names[::500]:
        assert resolve(store, root.cid, name) == one.cid
    for name in ("missing", "a file", "\ud800"):
        with pytest.raises(NotFound):
            resolve(store, root.cid, name)


def test_a_listing_names_everything_with_its_size(store: MemoryBlocks, tree: Path) -> None:
    root = add_path(store, tree).cid
    sub, none = resolve(store, root, "sub"), resolve(store, root, "sub/none")
    assert list_dir(store, root) == [
        Item("empty", resolve(store, root, "empty"), 0, is_folder=False),
        Item("sub", sub, 0, is_folder=True),
        Item("sub/big.bin", resolve(store, root, "sub/big.bin"), 2 * CHUNK_BYTES + 7, False),
        Item("sub/none", none, 0, is_folder=True),
        Item("ü n\n", resolve(store, root, "ü n\n"), 8, is_folder=False),
    ]
    assert list_dir(store, none) == []


def test_a_listing_of_a_file_is_the_file(store: MemoryBlocks) -> None:
    root = add_bytes(store, bytes(300_000)).cid
    assert list_dir(store, root) == [Item("", root, 300_000, is_folder=False)]


def test_files_within_their_nodes_are_listed_and_written(
    store: MemoryBlocks, tmp_path: Path
) -> None:
    inline = put(store, body(0x0A, b"\x08\x02" + body(0x12, b"inline") + b"\x18\x06"))
    root = import_dir({"a": inline}, store.put).cid
    assert list_dir(store, root) == [Item("a", inline.cid, 6, is_folder=False)]
    assert write_path(store, root, tmp_path / "back", bytes_max=6) == 6
    assert contents(tmp_path / "back") == {"a": b"inline"}


def test_a_path_resolves_with_any_slashes_around_it(store: MemoryBlocks, tree: Path) -> None:
    root = add_path(store, tree).cid
    assert resolve(store, root, "/sub//none/") == resolve(store, root, "sub/none")
    assert resolve(store, root, "") == root


@pytest.mark.parametrize("path", ["no", "sub/no", "empty/x", "sub/big.bin/x", "..", "."])
def test_a_path_that_leads_nowhere_is_not_found(store: MemoryBlocks, tree: Path, path: str) -> None:
    with pytest.raises(NotFound):
        resolve(store, add_path(store, tree).cid, path)


def test_a_folder_is_not_read_as_a_file(store: MemoryBlocks, tree: Path) -> None:
    with pytest.raises(Refused, match="is a folder"):
        list(read_file(store, add_path(store, tree).cid))


# --- adding what should not be added ------------------------------------------------------------


def test_a_symbolic_link_is_refused(store: MemoryBlocks, tree: Path) -> None:
    (tree / "sub" / "link").symlink_to("/etc/passwd")
    with pytest.raises(Refused, match=r"sub/link is a symbolic link"):
        add_path(store, tree)
    with pytest.raises(Refused, match="symbolic link"):
        add_path(store, tree / "sub" / "link")


def test_a_socket_or_device_is_refused(store: MemoryBlocks, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        with pytest.raises(Refused, match="neither a file nor a folder"):
            add_path(store, tmp_path / "socket")


def test_a_path_that_is_not_there_is_refused(store: MemoryBlocks, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="No such file"):
        add_path(store, tmp_path / "nothing")


def test_a_name_that_is_not_utf8_is_refused(store: MemoryBlocks, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff")).write_bytes(b"")
    with pytest.raises(Refused, match="cannot be a name"):
        add_path(store, tmp_path)


def test_a_folder_too_deep_or_too_full_is_refused(
    store: MemoryBlocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / "deep"
    deep.joinpath(*["d"] * (DEPTH_MAX + 1)).mkdir(parents=True)
    with pytest.raises(Refused, match="64 levels"):
        add_path(store, deep)
    monkeypatch.setattr(files, "ENTRIES_MAX", 3)
    full = tmp_path / "full"
    full.mkdir()
    for name in "abc":
        (full / name).write_bytes(b"")
    with pytest.raises(Refused, match="3 entries"):
        add_path(store, full)


# --- writing with care --------------------------------------------------------------------------


def test_a_target_that_is_there_is_left_alone(
    store: MemoryBlocks, tree: Path, tmp_path: Path
) -> None:
    root = add_path(store, tree).cid
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere")
    for target in (tree, tree / "empty", tmp_path / "dangling"):
        with pytest.raises(Refused, match="is there already"):
            write_path(store, root, target, bytes_max=BYTES_MAX)
    assert not (tmp_path / "elsewhere").exists()


def test_a_target_without_its_folder_is_refused(store: MemoryBlocks, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot write"):
        write_path(store, add_bytes(store, b"x").cid, tmp_path / "no" / "x", bytes_max=1)


def test_more_bytes_than_allowed_leave_nothing_behind(
    store: MemoryBlocks, tree: Path, tmp_path: Path
) -> None:
    root = add_path(store, tree)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(Refused, match="exceeds"):
        write_path(store, root.cid, tmp_path / "back", bytes_max=root.size - 1)
    assert sorted(os.listdir(tmp_path)) == before
    write_path(store, root.cid, tmp_path / "back", bytes_max=root.size)


def test_a_missing_block_leaves_nothing_behind(
    store: MemoryBlocks, tree: Path, tmp_path: Path
) -> None:
    root = add_path(store, tree).cid
    store.delete(resolve(store, root, "ü n\n"))
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(NotFound):
        write_path(store, root, tmp_path / "back", bytes_max=BYTES_MAX)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_broken_block_is_never_written(tmp_path: Path) -> None:
    with DiskBlocks(tmp_path / "store", BYTES_MAX) as disk:
        root = add_bytes(disk, b"content").cid
        (stored,) = (tmp_path / "store" / "blocks").glob("*/*")
        stored.write_bytes(b"CONTENT")
        with pytest.raises(Corruption):
            write_path(disk, root, tmp_path / "back", bytes_max=BYTES_MAX)
    assert not (tmp_path / "back").exists()


def test_names_that_are_one_on_this_disk_are_refused(
    store: MemoryBlocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.mkdir

    def mkdir(path: Path, mode: int = 0o777) -> None:
        real(os.fspath(path).replace("/content/A", "/content/a"), mode)

    none = import_dir({}, store.put)
    root = import_dir({"a": none, "A": none}, store.put).cid
    monkeypatch.setattr(os, "mkdir", mkdir)  # as on a disk that takes A and a for the same
    with pytest.raises(Refused, match="two names are one on this disk"):
        write_path(store, root, tmp_path / "back", bytes_max=0)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_unavailable_and_nothing_is_left_behind(
    store: MemoryBlocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(_source: Path, _target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    root = add_bytes(store, b"x").cid
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(Unavailable, match="is full"):
            write_path(store, root, tmp_path / "back", bytes_max=1)
    assert os.listdir(tmp_path) == []


def test_paths_longer_than_the_disk_takes_are_refused(store: MemoryBlocks, tmp_path: Path) -> None:
    root = add_bytes(store, b"x")
    for _ in range(30):
        root = import_dir({"n" * 255: root}, store.put)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(Refused):
        write_path(store, root.cid, tmp_path / "back", bytes_max=BYTES_MAX)
    with pytest.raises(Refused, match="longer path"):
        list_dir(store, root.cid)
    assert sorted(os.listdir(tmp_path)) == before


# --- reading what a hostile peer made -----------------------------------------------------------


def lying_files(store: MemoryBlocks) -> Iterator[Cid]:
    leaf = add_bytes(store, b"four").cid
    folder = import_dir({}, store.put).cid
    below = put(store, file_node([(leaf, 4)])).cid
    yield put(store, file_node([(leaf, 3)])).cid
    yield put(store, file_node([(leaf, 5)])).cid
    yield put(store, file_node([(below, 5)])).cid
    yield put(store, file_node([(folder, 4)])).cid
    deep = leaf
    for _ in range(FILE_DEPTH_MAX + 1):
        deep = put(store, file_node([(deep, 4)])).cid
    yield deep


def test_a_file_whose_sizes_lie_is_the_peers_fault(store: MemoryBlocks) -> None:
    for root in lying_files(store):
        with pytest.raises(PeerError):
            list(read_file(store, root))


def test_a_small_dag_cannot_become_an_endless_file(store: MemoryBlocks, tmp_path: Path) -> None:
    root, size = add_bytes(store, bytes(1_000)).cid, 1_000
    for _ in range(4):
        root, size = put(store, file_node([(root, size)] * 170)).cid, size * 170
    assert size > 800 * 10**9
    with pytest.raises(Refused, match="exceeds"):
        write_path(store, root, tmp_path / "bomb", bytes_max=100_000)
    assert os.listdir(tmp_path) == []


def test_a_file_of_endless_tiny_parts_is_refused(
    store: MemoryBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PARTS_MAX", 100)
    leaf = add_bytes(store, b"x").cid
    root = put(store, file_node([(leaf, 1)] * 101)).cid
    with pytest.raises(Refused, match="more than 100 leaves"):
        list(read_file(store, root))


def test_a_small_dag_cannot_become_an_endless_folder(
    store: MemoryBlocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ENTRIES_MAX", 100)
    root = import_dir({}, store.put)
    for _ in range(20):
        root = import_dir(dict.fromkeys("abcdefgh", root), store.put)
    with pytest.raises(Refused, match="100 entries"):
        list_dir(store, root.cid)
    with pytest.raises(Refused, match="100 entries"):
        write_path(store, root.cid, tmp_path / "bomb", bytes_max=BYTES_MAX)
    assert os.listdir(tmp_path) == []


def test_a_listing_of_endless_names_is_refused(
    store: MemoryBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LISTING_CHARS_MAX", 1_000)
    names = [f"{index:0250}" for index in range(5)]
    root = import_dir(dict.fromkeys(names, add_bytes(store, b"x")), store.put)
    with pytest.raises(Refused, match="too long names"):
        list_dir(store, root.cid)


def test_folders_without_end_are_refused(store: MemoryBlocks) -> None:
    root = add_bytes(store, b"x")
    for _ in range(DEPTH_MAX + 2):
        root = import_dir({"d": root}, store.put)
    with pytest.raises(Refused, match="64 levels"):
        list_dir(store, root.cid)


def bad_shards(store: MemoryBlocks) -> Iterator[Cid]:
    leaf = add_bytes(store, b"x").cid
    folder = import_dir({}, store.put).cid
    yield put(store, shard_node({0: (b"a", leaf)})).cid  # 'a' belongs into slot 0x85
    yield put(store, shard_node({1: (b"", leaf)})).cid
    yield put(store, shard_node({1: (b"", folder)})).cid
    yield put(store, shard_node({1: (b"", put(store, shard_node({})).cid)})).cid
    bottomless = put(store, shard_node({0: (b"a", leaf)})).cid
    for _ in range(9):
        bottomless = put(store, shard_node(dict.fromkeys(range(256), (b"", bottomless)))).cid
    yield bottomless


def test_a_shard_that_is_not_what_its_names_demand_is_the_peers_fault(
    store: MemoryBlocks,
) -> None:
    for root in bad_shards(store):
        with pytest.raises(PeerError):
            list_dir(store, root)


def test_a_name_is_looked_for_only_where_its_hash_leads(store: MemoryBlocks) -> None:
    for root in bad_shards(store):
        with pytest.raises((NotFound, PeerError)):
            resolve(store, root, "a")


def test_an_empty_sharded_folder_is_empty(store: MemoryBlocks) -> None:
    assert list_dir(store, put(store, shard_node({})).cid) == []


def test_a_raw_root_of_another_hash_is_not_here(store: MemoryBlocks) -> None:
    with pytest.raises(NotFound):
        list(read_file(store, cid_of(RAW, b"never put")))
