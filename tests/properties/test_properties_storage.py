"""Storage: whatever goes in comes out, and whatever a peer sends raises PeerError or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import PeerError, Refused
from mesh.ids import DAG_PB, Cid, cid_of
from mesh.storage.blocks import MemoryBlocks
from mesh.storage.exchange import decode_reply, decode_request, encode_reply
from mesh.storage.files import add_bytes, add_path, list_dir, read_file, resolve, write_path
from mesh.storage.transfer import fetch, serve
from mesh.storage.unixfs import (
    CHUNK_BYTES,
    Link,
    children,
    decode_node,
    import_dir,
    import_file,
    walk,
)

names = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20
).filter(lambda name: name not in (".", ".."))
lengths = st.one_of(
    st.integers(0, 2_000), st.sampled_from([CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 1])
)
trees = st.recursive(
    st.binary(max_size=50),
    lambda below: st.dictionaries(names, below, max_size=5),
    max_leaves=15,
)
Tree = bytes | dict[str, "Tree"]


def add(tree: Tree, put: Callable[[Cid, bytes], None]) -> Link:
    if isinstance(tree, bytes):
        return import_file([tree], put)
    return import_dir({name: add(below, put) for name, below in tree.items()}, put)


def read(blocks: MemoryBlocks, cid: Cid) -> Tree:
    """The tree back from a listing and the files."""
    items = list_dir(blocks, cid)
    if [item.path for item in items] == [""]:
        return b"".join(read_file(blocks, cid))
    folders: dict[str, dict[str, Tree]] = {"": {}}
    for item in items:
        above, _, name = item.path.rpartition("/")
        if item.is_folder:
            folders[above][name] = folders[item.path] = {}
        else:
            folders[above][name] = b"".join(read_file(blocks, item.cid))
    return folders[""]


@given(
    length=lengths, pieces=st.lists(st.integers(1, 300_000), max_size=5), fill=st.integers(0, 255)
)
@settings(max_examples=60, deadline=None)
def test_a_file_comes_out_as_it_went_in(length: int, pieces: list[int], fill: int) -> None:
    data = bytes([fill]) * length
    blocks = MemoryBlocks()
    cut = [data[start : start + piece] for start, piece in zip((0, *pieces), pieces, strict=False)]
    assert b"".join(read_file(blocks, add_bytes(blocks, data).cid)) == data
    rest = data[len(b"".join(cut)) :]
    whole = b"".join([*cut, rest])
    link = import_file([*cut, rest], blocks.put)
    assert b"".join(read_file(blocks, link.cid)) == whole
    assert link.size == len(whole)


@given(tree=trees)
@settings(max_examples=100, deadline=None)
def test_a_tree_comes_out_as_it_went_in(tree: Tree) -> None:
    blocks = MemoryBlocks()
    link = add(tree, blocks.put)
    assert read(blocks, link.cid) == tree
    assert set(walk(link.cid, blocks.get)) == set(blocks.cids())


@given(tree=trees)
@settings(max_examples=25, deadline=None)
def test_a_tree_keeps_its_cid_through_a_real_folder(tree: Tree) -> None:
    blocks = MemoryBlocks()
    link = add(tree, blocks.put)
    with TemporaryDirectory() as folder:
        target = Path(folder) / "target"
        write_path(blocks, link.cid, target, bytes_max=link.size)
        assert add_path(MemoryBlocks(), target) == link


@given(tree=trees)
@settings(max_examples=25, deadline=None)
def test_a_tree_moves_whole(tree: Tree) -> None:
    seller, buyer = MemoryBlocks(), MemoryBlocks()
    root = add(tree, seller.put).cid

    async def request(data: bytes) -> bytes:
        return serve(seller, data)

    async def main() -> int:
        return await fetch(root, buyer, request, bytes_max=10**6, blocks_max=10**3)

    assert trio.run(main) == seller.statistics()["bytes"]
    assert read(buyer, root) == tree


@given(found=st.sets(names, min_size=1, max_size=50))
@settings(max_examples=15, deadline=None)
def test_every_name_of_a_sharded_folder_resolves(found: set[str]) -> None:
    blocks = MemoryBlocks()
    one = add_bytes(blocks, b"x")
    filler = {f"{index:0200}": one for index in range(1_200)}
    other = add_bytes(blocks, b"y")
    root = import_dir({**filler, **dict.fromkeys(found, other)}, blocks.put).cid
    assert all(resolve(blocks, root, name) == other.cid for name in found)
    assert {item.path for item in list_dir(blocks, root)} == found | set(filler)


# --- whatever a peer sends ----------------------------------------------------------------------


def sample_nodes() -> list[bytes]:
    blocks: dict[Cid, bytes] = {}
    part = import_file([bytes(CHUNK_BYTES), b"x"], blocks.__setitem__)
    import_dir({"a": part, "b": part}, blocks.__setitem__)
    import_dir({f"{index:0200}": part for index in range(1_200)}, blocks.__setitem__)
    nodes = sorted((block for cid, block in blocks.items() if cid[1] == DAG_PB), key=len)
    return [nodes[0], nodes[1], nodes[2], nodes[-1]]


NODES = sample_nodes()


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of *originals* with a few bytes changed, removed or put in."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["change", "remove", "insert", "cut", "repeat"])):
            case "change":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "remove":
                del data[at : at + draw(st.integers(1, 8))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=8))
            case "cut":
                del data[at:]
            case _:
                data[at:at] = data[at : at + 100]
    return bytes(data)


@given(block=st.one_of(st.binary(max_size=200), damaged(NODES)))
@settings(max_examples=600, deadline=None)
def test_a_hostile_node_raises_peer_error_or_nothing(block: bytes) -> None:
    cid = cid_of(DAG_PB, block)
    for look in (decode_node, children):
        try:
            look(cid, block)
        except PeerError:
            continue


@given(block=damaged(NODES))
@settings(max_examples=200, deadline=None)
def test_a_hostile_root_is_read_within_bounds(block: bytes) -> None:
    blocks = MemoryBlocks()
    cid = cid_of(DAG_PB, block)
    blocks.put(cid, block)
    for look in (lambda: list_dir(blocks, cid), lambda: list(read_file(blocks, cid))):
        try:
            look()
        except (PeerError, Refused):
            continue


MESSAGES = [
    encode_reply([(cid_of(DAG_PB, block), block) for block in NODES[:2]]),
    encode_reply([]),
]


@given(data=st.one_of(st.binary(max_size=200), damaged(MESSAGES)))
@settings(max_examples=400, deadline=None)
def test_a_hostile_message_raises_peer_error_or_nothing(data: bytes) -> None:
    for decode in (decode_request, decode_reply):
        try:
            decode(data)
        except PeerError:
            continue
