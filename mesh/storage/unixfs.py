"""UnixFS: files and folders as blocks that IPFS would make, byte for byte; and a strict reader.

The layout is that of `ipfs add --cid-version=1`: CIDv1, raw leaves, sha2-256, chunks of 262,144
bytes, 174 links a node, and a sharded folder (HAMT, fan-out 256, murmur3) once the names and CIDs
of a folder exceed 262,144 bytes. Sources: https://specs.ipfs.tech/unixfs/,
https://ipld.io/specs/codecs/dag-pb/spec/.

What is read came from a peer: only `PeerError` escapes, and every block is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import TypeAlias

import mmh3
from attrs import frozen

from mesh.errors import NotFound, PeerError, Refused
from mesh.ids import DAG_PB, RAW, Cid, check_cid, cid_codec, cid_of
from mesh.storage.blocks import BLOCK_BYTES_MAX, Blocks

CHUNK_BYTES = 262_144
LINKS_A_NODE = 174
SHARD_OVER_BYTES = 262_144
"""A folder whose names and CIDs take more than this is sharded."""
NAME_BYTES_MAX = 255
LINKS_READ_MAX = 8_192
"""Links accepted in one node of a peer's; our own folders stay below 7,100."""
FAN_OUT = 256
SHARD_DEPTH_MAX = 8
"""Eight levels of eight bits use up the 64-bit hash of a name."""

Put: TypeAlias = Callable[[Cid, bytes], None]


@frozen
class Link:
    """A file or folder, or a part of a file."""

    cid: Cid
    tsize: int
    """Bytes of all blocks below and with this one, repeated ones counted again."""
    size: int
    """Bytes of content."""


@frozen
class Entry:
    """A name in a folder."""

    name: str
    cid: Cid
    tsize: int
    """As the folder claims; of a raw block, its length."""


@frozen
class Leaf:
    """Content and nothing else."""

    data: bytes


@frozen
class File:
    """A file in parts; `size` is their sum and no part is empty."""

    parts: tuple[Link, ...]
    size: int


@frozen
class Folder:
    """A folder in one block, by name (UTF-8 bytes)."""

    entries: tuple[Entry, ...]


@frozen
class Slot:
    """One place of a shard: an entry, or where `entry.name` is empty, the shard below."""

    index: int
    entry: Entry


@frozen
class Shard:
    """A folder, or a part of one, spread by the hash of the names."""

    slots: tuple[Slot, ...]


Node: TypeAlias = Leaf | File | Folder | Shard

# --- writing ------------------------------------------------------------------------------------


def import_file(chunks: Iterable[bytes], put: Put) -> Link:
    """Import the content that *chunks* (of any length) make up; every block goes to *put*.

    Keeps one chunk and at most 174 links a level in memory.
    """
    return import_leaves((import_leaf(chunk, put) for chunk in _rechunk(chunks)), put)


def import_leaf(data: bytes, put: Put) -> Link:
    """Import a part of a file, of a length that the caller chose."""
    return _emit(RAW, data, put, size=len(data))


def import_leaves(leaves: Iterable[Link], put: Put) -> Link:
    """Import the file whose parts, one at least, are in the store already."""
    levels: list[list[Link]] = [[]]

    def push(level: int, link: Link) -> None:
        if level == len(levels):
            levels.append([])
        if len(levels[level]) == LINKS_A_NODE:  # a node is closed only when one more link comes
            push(level + 1, _emit_file(levels[level], put))
            levels[level] = []
        levels[level].append(link)

    for leaf in leaves:
        push(0, leaf)
    level = 0
    while level + 1 < len(levels):
        push(level + 1, _emit_file(levels[level], put))  # a lone child too: all leaves equally deep
        level += 1
    return levels[-1][0] if len(levels[-1]) == 1 else _emit_file(levels[-1], put)


def import_dir(entries: Mapping[str, Link], put: Put) -> Link:
    """Import a folder of things already imported. Raises Refused for a name that cannot be one."""
    named = sorted((_own_name(name), link) for name, link in entries.items())
    size = sum(link.size for _, link in named)
    if sum(len(name) + len(link.cid) for name, link in named) > SHARD_OVER_BYTES:
        root = _emit_shard([(_name_hash(name), name, link) for name, link in named], 0, put)
        return Link(root.cid, root.tsize, size)
    block = b"".join(_link_field(name, link) for name, link in named)
    tsize = sum(link.tsize for _, link in named)
    return _emit(DAG_PB, block + _body(1, _number(1, _FOLDER)), put, tsize, size)


def _rechunk(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Chunks of full length but the last; one empty chunk for empty content."""
    rest = bytearray()
    is_empty = True
    for piece in pieces:
        at = min(CHUNK_BYTES - len(rest), len(piece)) if rest else 0
        rest += piece[:at]
        if len(rest) == CHUNK_BYTES:
            yield bytes(rest)
            rest.clear()
        while len(piece) - at >= CHUNK_BYTES:
            yield piece[at : at + CHUNK_BYTES]
            at += CHUNK_BYTES
        rest += piece[at:]
        is_empty = is_empty and not piece
    if rest or is_empty:
        yield bytes(rest)


def _emit(codec: int, block: bytes, put: Put, below: int = 0, size: int = 0) -> Link:
    cid = cid_of(codec, block)
    put(cid, block)
    return Link(cid, len(block) + below, size)


def _emit_file(parts: list[Link], put: Put) -> Link:
    size = sum(part.size for part in parts)
    about = _number(1, _FILE) + _number(3, size) + b"".join(_number(4, p.size) for p in parts)
    block = b"".join(_link_field(b"", part) for part in parts) + _body(1, about)
    return _emit(DAG_PB, block, put, sum(part.tsize for part in parts), size)


def _emit_shard(items: list[tuple[int, bytes, Link]], depth: int, put: Put) -> Link:
    """A shard of (hash, name, link): where two share a slot, a shard below takes both."""
    if depth == SHARD_DEPTH_MAX:
        raise Refused(
            f"{len(items)} names of one folder have the same 64-bit hash",
            "rename one of them: " + items[0][1].decode(),
        )
    slots: dict[int, list[tuple[int, bytes, Link]]] = {}
    for item in items:
        slots.setdefault(_slot(item[0], depth), []).append(item)
    block, below, bits = b"", 0, 0
    for index in sorted(slots):
        bits |= 1 << index
        match slots[index]:
            case [(_, name, link)]:
                pass
            case crowd:
                name, link = b"", _emit_shard(crowd, depth + 1, put)
        block += _link_field(b"%02X" % index + name, link)
        below += link.tsize
    field = bits.to_bytes(FAN_OUT // 8, "big").lstrip(b"\0")
    about = _number(1, _SHARD) + _body(2, field) + _number(5, _MURMUR3) + _number(6, FAN_OUT)
    return _emit(DAG_PB, block + _body(1, about), put, below)


def _own_name(name: str) -> bytes:
    try:
        data = name.encode()
        _check_name(data)
    except (UnicodeEncodeError, PeerError) as error:
        raise Refused(f"{name!r} cannot be a name in a folder: {error}", "rename it") from None
    return data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _body(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _link_field(name: bytes, link: Link) -> bytes:
    return _body(2, _body(1, link.cid) + _body(2, name) + _number(3, link.tsize))


# --- reading ------------------------------------------------------------------------------------

_RAW_DATA, _FOLDER, _FILE, _SHARD = 0, 1, 2, 5  # kinds of UnixFS
_KIND, _DATA, _SIZE, _PART_SIZE = 0x08, 0x12, 0x18, 0x20  # fields with their wire types
_HASH, _FAN_OUT, _MODE, _MTIME = 0x28, 0x30, 0x38, 0x42
_MURMUR3 = 0x22


def decode_node(cid: Cid, block: bytes) -> Node:
    """What *block*, whose hash has been checked against *cid*, says. Raises PeerError."""
    if len(block) > BLOCK_BYTES_MAX:
        raise PeerError(f"a block of {len(block)} bytes: at most {BLOCK_BYTES_MAX} are allowed")
    if cid_codec(cid) == RAW:
        return Leaf(block)
    links, about = _split(block)
    numbers, bodies, sizes = _about(about)
    known = numbers.keys() | bodies.keys() | ({_PART_SIZE} if sizes else set())
    kind = numbers.get(_KIND)
    allowed = _FIELDS.get(-1 if kind is None else kind)
    if allowed is None:
        raise PeerError(f"a UnixFS node of kind {kind} is neither file nor folder")
    if not known <= allowed:
        raise PeerError(f"a UnixFS node of kind {kind} with fields that do not belong to it")
    if kind == _FOLDER:
        return Folder(_entries(links))
    if kind == _SHARD:
        return _shard(links, numbers, bodies.get(_DATA, b""))
    return _file(links, bodies.get(_DATA, b""), numbers.get(_SIZE), sizes)


_COMMON = {_KIND, _MODE, _MTIME}
_FIELDS: dict[int, set[int]] = {
    _RAW_DATA: _COMMON | {_DATA, _SIZE},
    _FILE: _COMMON | {_DATA, _SIZE, _PART_SIZE},
    _FOLDER: _COMMON,
    _SHARD: _COMMON | {_DATA, _HASH, _FAN_OUT},
}


def children(cid: Cid, block: bytes) -> tuple[Cid, ...]:
    """The blocks that *block* links to, in order. Raises PeerError."""
    match decode_node(cid, block):
        case Leaf():
            return ()
        case File(parts=parts):
            return tuple(part.cid for part in parts)
        case Folder(entries=entries):
            return tuple(entry.cid for entry in entries)
        case Shard(slots=slots):
            return tuple(slot.entry.cid for slot in slots)


def walk(root: Cid, get: Callable[[Cid], bytes]) -> Iterator[Cid]:
    """Every block of a DAG once, parents first. Raw leaves are named without being got."""
    seen = {root}
    waiting = [root]
    while waiting:
        cid = waiting.pop()
        yield cid
        if cid_codec(cid) == RAW:
            continue
        fresh = [child for child in children(cid, get(cid)) if child not in seen]
        seen.update(fresh)
        waiting.extend(dict.fromkeys(reversed(fresh)))


def is_whole(blocks: Blocks, root: Cid) -> bool:
    """Whether *root* is a DAG of which every block is here."""
    try:
        return all(blocks.has(cid) for cid in walk(root, blocks.get))
    except (NotFound, PeerError):
        return False


def slot_of(name: str, depth: int) -> int:
    """The slot of *name* in a shard *depth* levels below the folder's root."""
    return _slot(_name_hash(name.encode(errors="surrogatepass")), depth)


def _slot(hashed: int, depth: int) -> int:
    return hashed >> (56 - 8 * depth) & (FAN_OUT - 1)


def _name_hash(name: bytes) -> int:
    return mmh3.hash64(name, 0, True, signed=False)[0]


def _file(links: list[Entry], data: bytes, size: int | None, sizes: list[int]) -> Leaf | File:
    if not links:
        if sizes or size not in (None, len(data)):
            raise PeerError("a file node whose sizes are not those of its data")
        return Leaf(data)
    if data or any(link.name for link in links):
        raise PeerError("a file node with both data and links, or with named links")
    if len(sizes) != len(links) or size != sum(sizes) or 0 in sizes:
        raise PeerError("a file node whose sizes do not add up")
    parts = (Link(link.cid, link.tsize, part) for link, part in zip(links, sizes, strict=True))
    return File(tuple(parts), size)


def _entries(links: list[Entry]) -> tuple[Entry, ...]:
    names = [link.name.encode() for link in links]
    for name in names:
        _check_name(name)
    if any(a >= b for a, b in pairwise(names)):
        raise PeerError("a folder whose names are not in order, each once")
    return tuple(links)


def _shard(links: list[Entry], numbers: dict[int, int], field: bytes) -> Shard:
    if numbers.get(_HASH) != _MURMUR3 or numbers.get(_FAN_OUT) != FAN_OUT:
        raise PeerError("a shard that is not of 256 slots by murmur3")
    slots = tuple(_shard_slot(link) for link in links)
    indices = [slot.index for slot in slots]
    bits = int.from_bytes(field, "big")
    if len(field) > FAN_OUT // 8 or indices != [i for i in range(FAN_OUT) if bits >> i & 1]:
        raise PeerError("a shard whose bit field is not that of its links")
    return Shard(slots)


def _shard_slot(link: Entry) -> Slot:
    prefix, name = link.name[:2], link.name[2:]
    if len(prefix) != 2 or any(digit not in "0123456789ABCDEF" for digit in prefix):
        raise PeerError("a link of a shard that does not start with its slot")
    if name:
        _check_name(name.encode())
    return Slot(int(prefix, 16), Entry(name, link.cid, link.tsize))


def _check_name(name: bytes) -> None:
    """Whether *name* can be a file's on any machine we know. Raises PeerError."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise PeerError("a name is not empty, '.' or '..', and has no '/' and no NUL in it")
    if len(name) > NAME_BYTES_MAX:
        raise PeerError(f"a name has at most {NAME_BYTES_MAX} bytes")


def _split(block: bytes) -> tuple[list[Entry], bytes]:
    """The links and the data of a dag-pb node: links first, exactly one data."""
    links: list[Entry] = []
    data: bytes | None = None
    for tag, _, body in _fields(block):
        if data is not None or tag not in (0x0A, 0x12):
            raise PeerError("a dag-pb node with fields out of order or unknown")
        if tag == 0x0A:
            data = body
        elif len(links) == LINKS_READ_MAX:
            raise PeerError(f"a node with more than {LINKS_READ_MAX} links")
        else:
            links.append(_link(body))
    if data is None:
        raise PeerError("a dag-pb node without UnixFS data")
    return links, data


def _link(body: bytes) -> Entry:
    fields = list(_fields(body))
    if [tag for tag, _, _ in fields] != [0x0A, 0x12, 0x18]:
        raise PeerError("a dag-pb link is a CID, a name and a size, in this order")
    try:
        return Entry(fields[1][2].decode(), check_cid(fields[0][2]), fields[2][1])
    except ValueError:
        raise PeerError("a dag-pb link with a CID or a name that we cannot read") from None


def _about(data: bytes) -> tuple[dict[int, int], dict[int, bytes], list[int]]:
    """The UnixFS message: numbers and bodies by tag, and the sizes of the parts."""
    numbers: dict[int, int] = {}
    bodies: dict[int, bytes] = {}
    sizes: list[int] = []
    for tag, value, body in _fields(data):
        if tag in numbers or tag in bodies:
            raise PeerError("a UnixFS field that comes twice")
        if tag == _PART_SIZE:
            sizes.append(value)
        elif tag & 7 == 0:
            numbers[tag] = value
        else:
            bodies[tag] = body
    return numbers, bodies, sizes


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(tag, number, body) of each protobuf field; one of the two is empty."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        value, at = _read_varint(data, at)
        if tag & 7 == 0:
            yield tag, value, b""
        elif tag & 7 == 2 and value <= len(data) - at:
            yield tag, 0, data[at : at + value]
            at += value
        else:
            raise PeerError("a protobuf field that is cut short or of a type we never use")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A shortest-form varint below 2^63, and where it ends."""
    value = 0
    for place in range(9):
        if at + place >= len(data):
            break
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            if byte == 0 and place:
                break
            return value, at + place + 1
    raise PeerError("a protobuf number that is cut short, too long or padded")
