"""UnixFS: the CIDs are those of IPFS, and nothing malformed is read.

The golden CIDs and DAG sizes were made once from the same seeded content by boxo 0.43.0, the
library that `ipfs add --cid-version=1` runs on (balanced layout, raw leaves, 174 links).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import shake_256

import pytest

from mesh.errors import PeerError, Refused
from mesh.ids import DAG_PB, RAW, Cid, cid_of, format_cid
from mesh.storage.blocks import BLOCK_BYTES_MAX
from mesh.storage.unixfs import (
    CHUNK_BYTES,
    LINKS_A_NODE,
    LINKS_READ_MAX,
    Entry,
    File,
    Folder,
    Leaf,
    Link,
    Shard,
    children,
    decode_node,
    import_dir,
    import_file,
    slot_of,
    walk,
)

GOLDEN_FILES = [
    (0, "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku", 0),
    (1, "bafkreidhlbxjr6wspwqltfulya42d3zuze43tohfeoul56e5i6darrpm6y", 1),
    (CHUNK_BYTES - 1, "bafkreiho5u7qgkmxtofjlhe2ntxaqxamumrn6xgg4hugjmkng6cjtggdxi", 262143),
    (CHUNK_BYTES, "bafkreidajdwirgl225prrm25mt5d4xynkdelv3e4je5eh4po2zegybsrli", 262144),
    (CHUNK_BYTES + 1, "bafybeid6anht25hxr47cpvrrnwqcjvuyjv5gf3osfep5dzhrwjqisafyqa", 262249),
    (5 * 2**20 + 3, "bafybeieoomvdhtittv2dd7am75q3leelukugvol3xcsec35x73neqtvhcy", 5243938),
    (
        LINKS_A_NODE * CHUNK_BYTES,
        "bafybeigeo3xoxbuqvz4xz5wftrdbzsg6u55tsnnwkgza62ksojle6w5tte",
        45621766,
    ),
    (
        LINKS_A_NODE * CHUNK_BYTES + 1,
        "bafybeicaq222arfjyepcxdjjrzq3ubbcdg3hlx7pczkjlcrcjvabwnxfye",
        45621926,
    ),
]


def seeded(length: int) -> bytes:
    return shake_256(b"mesh storage %d" % length).digest(length)


def seeded_names(count: int, length: int) -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-_"
    seed = shake_256(b"mesh storage names").digest(count * length)
    text = "".join(letters[byte % len(letters)] for byte in seed)
    return [text[at : at + length] for at in range(0, len(text), length)]


def nowhere(_cid: Cid, _block: bytes) -> None:
    """Only the CIDs are wanted."""


def tiny(data: bytes) -> Link:
    return import_file([data], nowhere)


@pytest.mark.parametrize(("length", "cid", "tsize"), GOLDEN_FILES)
def test_a_file_has_the_cid_that_ipfs_gives_it(length: int, cid: str, tsize: int) -> None:
    link = import_file([seeded(length)], nowhere)
    assert (format_cid(link.cid), link.tsize, link.size) == (cid, tsize, length)


def test_hello_world_has_the_cid_that_everybody_knows() -> None:
    known = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
    assert format_cid(tiny(b"hello world").cid) == known


def test_how_the_content_is_cut_does_not_matter() -> None:
    data = seeded(3 * CHUNK_BYTES + 5)
    whole = import_file([data], nowhere)
    for length in (1_000, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES):
        pieces = [data[at : at + length] for at in range(0, len(data), length)]
        assert import_file([b"", *pieces, b""], nowhere) == whole


def test_importing_a_file_streams() -> None:
    held = 0
    held_max = 0

    def pieces() -> Iterator[bytes]:
        nonlocal held, held_max
        for index in range(400):
            held += 1
            held_max = max(held_max, held)
            yield index.to_bytes(2, "big") * (CHUNK_BYTES // 2)

    def put(cid: Cid, _block: bytes) -> None:
        nonlocal held
        held -= cid[1] == RAW

    import_file(pieces(), put)
    assert held == 0
    assert held_max == 1


def test_an_empty_folder_has_the_cid_that_ipfs_gives_it() -> None:
    link = import_dir({}, nowhere)
    known = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
    assert (format_cid(link.cid), link.tsize, link.size) == (known, 4, 0)


def test_a_tree_has_the_cid_that_ipfs_gives_it() -> None:
    none = import_dir({}, nowhere)
    deep = import_dir({"zero": tiny(b"")}, nowhere)
    big = import_file([seeded(300_000)], nowhere)
    tree = {
        "a.txt": tiny(b"hello world"),
        "sub": import_dir({"big.bin": big, "deep": deep, "none": none}, nowhere),
        "Zed": tiny(b"z"),
        "\u00e9": tiny(b"e"),
        "\U0001d11e": tiny(b"clef"),  # UTF-8 sorts it after the next, UTF-16 before
        "\uffee": tiny(b"h"),
        "..x": tiny(b"d"),
        "with space": tiny(b"s"),
    }
    link = import_dir(tree, nowhere)
    known = "bafybeihpzxmy3tpbxldnxxchkg4nfkvdp67oc4cttaiv6rfbx4zbbrgtfi"
    assert (format_cid(link.cid), link.tsize, link.size) == (known, 300_728, 300_000 + 20)


@pytest.mark.parametrize(
    ("count", "length", "cid", "tsize"),
    [
        (4096, 28, "bafybeih4kk3hwwsqbamtvizukcgvck5ngtfthpa4vxgq5m5tmy4vla5xue", 299012),
        (4097, 28, "bafybeifcomkaxsusn5k4gyzsfp3exnjmmyopi7y6lq257wlnmjw7vktryi", 338620),
        (6000, 24, "bafybeiewatp5bbhjcikkus3nnp4iy74usbrybpw6e5z4ldfhqnwinxabau", 470466),
    ],
    ids=["the largest in one block", "the smallest sharded", "sharded"],
)
def test_a_large_folder_has_the_cid_that_ipfs_gives_it(
    count: int, length: int, cid: str, tsize: int
) -> None:
    x = tiny(b"x")
    link = import_dir(dict.fromkeys(seeded_names(count, length), x), nowhere)
    assert (format_cid(link.cid), link.tsize, link.size) == (cid, tsize, count)


def test_a_sharded_folder_with_a_folder_in_it_has_the_cid_that_ipfs_gives_it() -> None:
    sub = import_dir(dict.fromkeys(seeded_names(10, 6), tiny(b"y")), nowhere)
    files = {name: tiny(name.encode()) for name in seeded_names(7000, 6)}
    link = import_dir({**files, "sub": sub}, nowhere)
    known = "bafybeigsgv26p5fxymcyblxaajnt2sxurnunolfx4obryodx475o7sbidm"
    assert (format_cid(link.cid), link.tsize) == (known, 456_105)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "n" * 256, "\ud800"])
def test_a_name_that_no_disk_takes_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="cannot be a name"):
        import_dir({name: tiny(b"x")}, nowhere)


def test_names_made_to_collide_are_refused_and_do_not_recurse_for_ever() -> None:
    """Two names with all 64 bits of the hash in common, found by running murmur3 backwards."""
    pair = ["4\x01qT_H>\x02E\x0eJ\x06euc\x12", "[\u06ffxOR\x08\x08\u062a\tw%+(u"]
    assert [slot_of(pair[0], depth) for depth in range(8)] == [*b"\x01\x23\x45\x67\x89\xab\xcd\xef"]
    x = tiny(b"x")
    import_dir(dict.fromkeys(pair, x), nowhere)
    crowd = [f"{index:0200}" for index in range(1_200)]
    import_dir(dict.fromkeys([*crowd, pair[0]], x), nowhere)
    with pytest.raises(Refused, match="same 64-bit hash"):
        import_dir(dict.fromkeys([*crowd, *pair], x), nowhere)


def test_what_was_imported_decodes_to_the_same() -> None:
    blocks: dict[Cid, bytes] = {}
    file = import_file([seeded(2 * CHUNK_BYTES + 1)], blocks.__setitem__)
    leaf = import_file([b"x"], blocks.__setitem__)
    folder = import_dir({"b": file, "a": leaf}, blocks.__setitem__)
    assert decode_node(leaf.cid, blocks[leaf.cid]) == Leaf(b"x")
    node = decode_node(file.cid, blocks[file.cid])
    assert isinstance(node, File)
    assert [part.size for part in node.parts] == [CHUNK_BYTES, CHUNK_BYTES, 1]
    assert node.size == file.size
    assert decode_node(folder.cid, blocks[folder.cid]) == Folder(
        (Entry("a", leaf.cid, 1), Entry("b", file.cid, file.tsize))
    )
    assert children(folder.cid, blocks[folder.cid]) == (leaf.cid, file.cid)


def test_every_name_of_a_sharded_folder_is_in_the_slot_of_its_hash() -> None:
    blocks: dict[Cid, bytes] = {}
    names = seeded_names(6000, 24)
    root = import_dir(dict.fromkeys(names, tiny(b"x")), blocks.__setitem__)
    found: list[str] = []

    def look(cid: Cid, depth: int) -> None:
        node = decode_node(cid, blocks[cid])
        assert isinstance(node, Shard)
        for slot in node.slots:
            if slot.entry.name:
                assert slot_of(slot.entry.name, depth) == slot.index
                found.append(slot.entry.name)
            else:
                look(slot.entry.cid, depth + 1)

    look(root.cid, 0)
    assert sorted(found) == sorted(names)


def test_a_walk_names_every_block_once_and_gets_no_leaf() -> None:
    blocks: dict[Cid, bytes] = {}
    file = import_file([bytes(5 * CHUNK_BYTES)], blocks.__setitem__)
    root = import_dir({"a": file, "b": file}, blocks.__setitem__)
    got: list[Cid] = []

    def get(cid: Cid) -> bytes:
        got.append(cid)
        return blocks[cid]

    assert list(walk(root.cid, get)) == [root.cid, file.cid, cid_of(RAW, bytes(CHUNK_BYTES))]
    assert got == [root.cid, file.cid]


# --- hostile blocks: written field by field, since our importer cannot make them ----------------

LEAF = cid_of(RAW, b"x")


def number(field: int, value: int) -> bytes:
    return bytes([field << 3]) + varint(value)


def body(field: int, data: bytes) -> bytes:
    return bytes([field << 3 | 2]) + varint(len(data)) + data


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def link(name: bytes = b"", cid: bytes = LEAF, tsize: int = 1) -> bytes:
    return body(2, body(1, cid) + body(2, name) + number(3, tsize))


def about(kind: int, rest: bytes = b"") -> bytes:
    return body(1, number(1, kind) + rest)


def shard(links: bytes, bits: int, rest: bytes = number(5, 0x22) + number(6, 256)) -> bytes:
    field = bits.to_bytes(32, "big").lstrip(b"\0")
    return links + about(5, body(2, field) + rest)


ONE_PART = number(3, 1) + number(4, 1)
FOLDER = about(1)


def test_the_fields_of_other_writers_are_read() -> None:
    def decode(block: bytes) -> object:
        return decode_node(cid_of(DAG_PB, block), block)

    inline = about(2, body(2, b"hello") + number(3, 5))
    assert decode(inline) == Leaf(b"hello")
    assert decode(about(0, body(2, b"hello"))) == Leaf(b"hello")
    with_mode_and_time = number(7, 0o644) + body(8, number(1, 1))
    assert decode(link() + about(2, ONE_PART + with_mode_and_time)) == File((Link(LEAF, 1, 1),), 1)
    assert decode(link(b"a") + FOLDER) == Folder((Entry("a", LEAF, 1),))


MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "garbage": b"\xff" * 40,
    "cut short": (link(b"a") + FOLDER)[:-1],
    "a body longer than the block": b"\x0a\x7f",
    "a padded number": b"\x0a\x82\x00\x08\x01",
    "a number of ten bytes": body(1, b"\x08" + b"\xff" * 9 + b"\x01"),
    "a fixed field": b"\x0d\0\0\0\0",
    "no data": link(b"a"),
    "data twice": FOLDER + FOLDER,
    "data before links": FOLDER + link(b"a"),
    "an unknown field": FOLDER + body(3, b""),
    "no kind": body(1, b""),
    "a kind twice": body(1, number(1, 1) + number(1, 1)),
    "a symbolic link": about(4, body(2, b"/etc/passwd")),
    "a link without a CID": body(2, body(2, b"a") + number(3, 1)) + FOLDER,
    "a link without a size": body(2, body(1, LEAF) + body(2, b"a")) + FOLDER,
    "a link to a CIDv0": link(b"a", LEAF[2:]) + FOLDER,
    "a link by another hash": link(b"a", b"\x01\x55\x13\x20" + bytes(32)) + FOLDER,
    "a name that is not UTF-8": link(b"\xff") + FOLDER,
    "an empty name": link(b"") + FOLDER,
    "a dot": link(b".") + FOLDER,
    "two dots": link(b"..") + FOLDER,
    "a slash": link(b"../../etc/passwd") + FOLDER,
    "a NUL": link(b"a\0b") + FOLDER,
    "a long name": link(b"n" * 256) + FOLDER,
    "a name twice": link(b"a") + link(b"a") + FOLDER,
    "names out of order": link(b"b") + link(b"a") + FOLDER,
    "a folder with a size": link(b"a") + about(1, number(3, 1)),
    "too many links": link() * (LINKS_READ_MAX + 1) + about(2, ONE_PART),
    "a file with named links": link(b"a") + about(2, ONE_PART),
    "a file with data and links": link() + about(2, body(2, b"x") + ONE_PART),
    "a file with a size too few": link() + link() + about(2, ONE_PART),
    "a file with a size too many": link() + about(2, number(3, 2) + number(4, 1) * 2),
    "a file of another sum": link() + about(2, number(3, 2) + number(4, 1)),
    "a file without its sum": link() + about(2, number(4, 1)),
    "a file with an empty part": link() + about(2, number(3, 0) + number(4, 0)),
    "a leaf of another size": about(2, body(2, b"x") + number(3, 2)),
    "a leaf with parts": about(2, body(2, b"x") + ONE_PART),
    "raw data with links": link() + about(0, body(2, b"x")),
    "a shard of 16 slots": shard(link(b"0Aa"), 1 << 10, number(5, 0x22) + number(6, 16)),
    "a shard by another hash": shard(link(b"0Aa"), 1 << 10, number(5, 0x12) + number(6, 256)),
    "a shard without its hash": shard(link(b"0Aa"), 1 << 10, number(6, 256)),
    "a shard with other bits": shard(link(b"0Aa"), 1 << 11),
    "a shard with a long field": link(b"0Aa")
    + about(5, body(2, bytes(31) + b"\4\0") + number(5, 0x22) + number(6, 256)),
    "a shard with a slot twice": shard(link(b"0Aa") + link(b"0Ab"), 1 << 10),
    "a shard with a small prefix": shard(link(b"0aa"), 1 << 10),
    "a shard with half a prefix": shard(link(b"A"), 1 << 10),
    "a shard with no number": shard(link(b"+1a"), 1 << 1),
    "a shard with a slash": shard(link(b"0A/"), 1 << 10),
}


@pytest.mark.parametrize("block", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_node_is_the_peers_fault(block: bytes) -> None:
    for read in (decode_node, children):
        assert_peer_error(read, cid_of(DAG_PB, block), block)


def test_a_block_over_the_limit_is_the_peers_fault() -> None:
    block = bytes(BLOCK_BYTES_MAX + 1)
    assert_peer_error(decode_node, cid_of(RAW, block), block)


def assert_peer_error(read: Callable[[Cid, bytes], object], cid: Cid, block: bytes) -> None:
    with pytest.raises(PeerError):
        read(cid, block)
