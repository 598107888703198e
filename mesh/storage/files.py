"""Real files and folders to and from a store of blocks. Everything here blocks.

What is read may have come from a hostile peer: names cannot leave the target, sizes must be what
they were claimed to be, and depth, number and bytes are bounded.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import define, field, frozen

from mesh.errors import NotFound, PeerError, Refused, Unavailable
from mesh.ids import RAW, Cid, cid_codec, format_cid
from mesh.storage.blocks import Blocks
from mesh.storage.unixfs import (
    CHUNK_BYTES,
    SHARD_DEPTH_MAX,
    Entry,
    File,
    Folder,
    Leaf,
    Link,
    Node,
    Shard,
    decode_node,
    import_dir,
    import_file,
    slot_of,
)

DEPTH_MAX = 64
"""Folders within folders."""
ENTRIES_MAX = 100_000
"""Files and folders below one root."""
PATH_CHARS_MAX = 4_096
"""Of one path below a root: what Linux can open."""
LISTING_CHARS_MAX = 32_000_000
"""Of all paths of one listing."""
FILE_DEPTH_MAX = 10
"""Levels of one file; 174 links a node reach an exabyte in nine."""
PARTS_MAX = 4_000_000
"""Leaves read for one file or one export: a terabyte in our chunks, minutes in hostile ones."""
_BATCH_BLOCKS = 64


@frozen
class Item:
    """A file or folder below a root."""

    path: str
    """From the root, with `/`; empty for the root itself."""
    cid: Cid
    size: int
    """Bytes of a file, as its own node or else its folder claims; 0 of a folder."""
    is_folder: bool


# --- adding -------------------------------------------------------------------------------------


def add_bytes(blocks: Blocks, data: bytes) -> Link:
    """Store *data* as a file. Raises what `Blocks.put` raises."""
    batch = Batch(blocks)
    link = import_file([data], batch.put)
    batch.flush()
    return link


def add_path(blocks: Blocks, path: Path) -> Link:
    """Store a file, or a folder with all that is in it.

    Raises Refused for a path that is not there, a symbolic link, a device, a name that is not
    UTF-8, and for more than 100,000 entries or 64 levels; and what `Blocks.put` raises.
    """
    batch = Batch(blocks)
    link = add_to(batch, path)
    batch.flush()
    return link


def add_to(batch: Batch, path: Path) -> Link:
    """`add_path`, to a batch that is yet to be flushed."""
    return _Adding(batch).add(path, 0)


@define
class Batch:
    """Blocks on their way to the store, so that it syncs many at a time."""

    blocks: Blocks
    waiting: list[tuple[Cid, bytes]] = field(factory=list)

    def put(self, cid: Cid, data: bytes) -> None:
        self.waiting.append((cid, data))
        if len(self.waiting) >= _BATCH_BLOCKS:
            self.flush()

    def flush(self) -> None:
        self.blocks.put_many(self.waiting)
        self.waiting.clear()


@define
class _Adding:
    """One walk over a folder."""

    batch: Batch
    entries: int = 0

    def add(self, path: Path, depth: int) -> Link:
        self.entries += 1
        if self.entries > ENTRIES_MAX or depth > DEPTH_MAX:
            raise Refused(
                f"{path}: more than {ENTRIES_MAX:,} entries or {DEPTH_MAX} levels of folders",
                "pack it into an archive first",
            )
        try:
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                return self._add_folder(path, depth)
            if stat.S_ISREG(mode):
                return import_file(_read(path), self.batch.put)
        except (FileNotFoundError, PermissionError) as error:
            raise Refused(f"{path}: {error.strerror}", "check the path and its rights") from error
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
        raise Refused(f"{path} is {kind}", "copy what it stands for, or leave it out")

    def _add_folder(self, path: Path, depth: int) -> Link:
        names = sorted(os.listdir(path))
        return import_dir({n: self.add(path / n, depth + 1) for n in names}, self.batch.put)


def _read(path: Path) -> Iterator[bytes]:
    """The chunks of a file that is no symbolic link, even if it has just become one."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


# --- reading ------------------------------------------------------------------------------------


def read_file(blocks: Blocks, cid: Cid) -> Iterator[bytes]:
    """The content of a file, a chunk at a time.

    Raises Refused if it is a folder, NotFound or Corruption of a block, and PeerError where its
    nodes are malformed or its sizes lie.
    """
    return _Reading(blocks).read(cid)


def leaves(blocks: Blocks, cid: Cid) -> Iterator[Link]:
    """The parts of a file in order, unread; what they say of their size is to be checked.

    Raises as `read_file` does.
    """
    for count, leaf in enumerate(_leaves(blocks, Link(cid, 0, 0), 0)):
        if count >= PARTS_MAX:
            raise _too_much(f"more than {PARTS_MAX:,} leaves")
        yield leaf


def _leaves(blocks: Blocks, link: Link, depth: int) -> Iterator[Link]:
    if depth and cid_codec(link.cid) == RAW:
        yield link
        return
    if depth > FILE_DEPTH_MAX:
        raise PeerError(f"a file of more than {FILE_DEPTH_MAX} levels")
    match _node(blocks, link.cid):
        case Leaf(data=data):
            yield Link(link.cid, link.tsize, len(data))
        case File(parts=parts):
            for part in parts:
                yield from _leaves(blocks, part, depth + 1)
        case _:
            raise Refused(f"{format_cid(link.cid)} is a folder", "name a file in it")


def list_dir(blocks: Blocks, cid: Cid) -> list[Item]:
    """All that is below a folder, or the one file that *cid* is. Raises as `read_file` does."""
    items: list[Item] = []
    chars = 0
    for item in _items(blocks, "", Entry("", cid, 0), 0):
        items.append(item)
        chars += len(item.path)
        if len(items) > ENTRIES_MAX or chars > LISTING_CHARS_MAX:
            raise _too_much(f"more than {ENTRIES_MAX:,} entries, or too long names")
    return items if not items[0].is_folder else items[1:]


def resolve(blocks: Blocks, cid: Cid, path: str) -> Cid:
    """What *path*, names with `/` between, leads to from *cid*. Raises NotFound and as above."""
    for name in filter(None, path.split("/")):
        node = _node(blocks, cid)
        match node:
            case Shard():
                found = _in_shard(blocks, node, name)
            case Folder(entries=entries):
                found = next((e.cid for e in entries if e.name == name), None)
            case _:
                found = None
        if found is None:
            raise NotFound(f"no {name!r} of {path!r} in {format_cid(cid)}", "list the folder")
        cid = found
    return cid


def write_path(blocks: Blocks, cid: Cid, target: Path, *, bytes_max: int) -> int:
    """Write a file or folder as *target*, which must not be there; bytes written.

    *target* appears whole or not at all. Raises Refused for more than *bytes_max* and where the
    names cannot be told apart on this disk, and as `read_file` does.
    """
    if os.path.lexists(target):
        raise Refused(f"{target} is there already", "name another target, or remove it first")
    writing = _Writing(_Reading(blocks), bytes_max)
    try:
        with TemporaryDirectory(prefix=".mesh-", dir=target.parent) as beside:
            partial = Path(beside) / "content"
            for item in _items(blocks, "", Entry("", cid, 0), 0):
                writing.write(item, partial / item.path if item.path else partial)
            partial.rename(target)
    except FileExistsError as error:
        raise Refused(f"{error.filename}: two names are one on this disk", "rename one") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Unavailable(f"the disk of {target} is full: free some of it") from error
        raise Refused(f"cannot write {target}: {error}", "choose another target") from error
    return writing.written


@define
class _Writing:
    """One export, and what it may still take."""

    reading: _Reading
    bytes_max: int
    written: int = 0
    entries: int = 0

    def write(self, item: Item, path: Path) -> None:
        self.entries += 1
        if self.entries > ENTRIES_MAX:
            raise _too_much(f"more than {ENTRIES_MAX:,} entries")
        if item.is_folder:
            path.mkdir()
            return
        with path.open("xb") as file:
            for chunk in self.reading.read(item.cid):
                self.written += len(chunk)
                if self.written > self.bytes_max:
                    raise Refused(
                        f"the content exceeds the {self.bytes_max:,} bytes allowed for it",
                        "allow more",
                    )
                file.write(chunk)


@define
class _Reading:
    """Files of one store, and how many leaves may still be read of them."""

    blocks: Blocks
    parts: int = 0

    def read(self, cid: Cid) -> Iterator[bytes]:
        node = _node(self.blocks, cid)
        if isinstance(node, Folder | Shard):
            raise Refused(f"{format_cid(cid)} is a folder", "name a file in it")
        return self._contents(node, 0)

    def _contents(self, node: Leaf | File, depth: int) -> Iterator[bytes]:
        if isinstance(node, Leaf):
            self.parts += 1
            if self.parts > PARTS_MAX:
                raise _too_much(f"more than {PARTS_MAX:,} leaves")
            if node.data:
                yield node.data
            return
        if depth == FILE_DEPTH_MAX:
            raise PeerError(f"a file of more than {FILE_DEPTH_MAX} levels")
        for part in node.parts:
            below = _node(self.blocks, part.cid)
            if isinstance(below, Folder | Shard):
                raise PeerError("a part of a file is a folder")
            if part.size != (len(below.data) if isinstance(below, Leaf) else below.size):
                raise PeerError("a part of a file is not as long as its node says")
            yield from self._contents(below, depth + 1)


def _too_much(what: str) -> Refused:
    return Refused(f"content of {what}", "read it in parts")


def _node(blocks: Blocks, cid: Cid) -> Node:
    return decode_node(cid, blocks.get(cid))


def _items(blocks: Blocks, path: str, entry: Entry, depth: int) -> Iterator[Item]:
    """*entry* and all below it, folders before what they hold."""
    if depth > DEPTH_MAX or len(path) > PATH_CHARS_MAX:
        raise _too_much(
            f"more than {DEPTH_MAX} levels of folders, or a longer path than any disk's"
        )
    if cid_codec(entry.cid) == RAW:
        yield Item(path, entry.cid, entry.tsize, is_folder=False)
        return
    match _node(blocks, entry.cid):
        case Leaf(data=data):
            yield Item(path, entry.cid, len(data), is_folder=False)
        case File(size=size):
            yield Item(path, entry.cid, size, is_folder=False)
        case node:
            yield Item(path, entry.cid, 0, is_folder=True)
            for child in _entries(blocks, node, ()):
                below = f"{path}/{child.name}" if path else child.name
                yield from _items(blocks, below, child, depth + 1)


def _entries(blocks: Blocks, node: Folder | Shard, slots: tuple[int, ...]) -> Iterator[Entry]:
    """The entries of a folder; in shards, each in the slots that its name's hash demands."""
    if isinstance(node, Folder):
        yield from node.entries
        return
    for slot in node.slots:
        place = (*slots, slot.index)
        if not slot.entry.name:
            yield from _entries(blocks, _shard_below(blocks, slot.entry.cid, len(place)), place)
        elif place == tuple(slot_of(slot.entry.name, depth) for depth in range(len(place))):
            yield slot.entry
        else:
            raise PeerError("a shard with a name in a slot of another")


def _in_shard(blocks: Blocks, shard: Shard, name: str) -> Cid | None:
    depth = 0
    while True:
        index = slot_of(name, depth)
        entry = next((s.entry for s in shard.slots if s.index == index), None)
        if entry is None or entry.name:
            return entry.cid if entry and entry.name == name else None
        depth += 1
        shard = _shard_below(blocks, entry.cid, depth)


def _shard_below(blocks: Blocks, cid: Cid, depth: int) -> Shard:
    below = _node(blocks, cid)
    if not isinstance(below, Shard) or not below.slots or depth == SHARD_DEPTH_MAX:
        raise PeerError("a shard whose lower part is no shard, empty or too deep")
    return below
