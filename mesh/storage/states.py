"""The states of a running task, as blocks that another party has in part already.

A state is a folder of three: the snapshot, /out and /tmp. The leaves of the snapshot are its head
and one for each region of the memory, so that a later state of the same run shares with an earlier
one all blocks of what has not changed: whoever fetches it gets the rest alone.
"""

from __future__ import annotations

import mmap
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attrs import define, field, frozen

from mesh.errors import PeerError, Refused, Unavailable
from mesh.ids import Cid
from mesh.migration.snapshot import (
    HEAD_MAX,
    PIECE,
    REGION,
    Shared,
    Snapshot,
    decode_start,
    encode_frame,
    masked,
)
from mesh.runtime.course import Held
from mesh.runtime.frames import REGIONS_MAX
from mesh.storage import files
from mesh.storage.blocks import Blocks
from mesh.storage.unixfs import CHUNK_BYTES, Link, import_dir, import_leaf, import_leaves

THREADS = 2
"""Compressing, hashing and writing leave the interpreter to others."""
_AT_ONCE = 64
"""Regions that are read, compressed and written as one."""
_OVERHEAD = 8 << 20
"""Bytes of a state beyond its contents: nodes and headers."""
_PARTS = ("snapshot", "out", "tmp")


@frozen
class Known:
    """A snapshot that a standby has: what of it need not come again."""

    job: Cid
    blocks: dict[Cid, tuple[int, int]]
    """Of regions of the memory: where each begins, and its length."""


@frozen
class Remains:
    """A snapshot as a file; where it shares a block with one that is known, that has holes."""

    path: Path
    leaves: tuple[Link, ...]
    shared: tuple[Shared, ...]


@frozen
class State:
    """A state, laid out in files."""

    snapshot: Path
    out: Path
    tmp: Path
    shared: tuple[Shared, ...] = ()
    """What the snapshot leaves out."""


def state_bytes_max(memory: int, disk: int) -> int:
    """Bytes of blocks that a state of a task of so much can have."""
    return _snapshot_bytes_max(memory) + disk * 9 // 8 + _OVERHEAD


def _snapshot_bytes_max(memory: int) -> int:
    """What cannot be compressed grows a little."""
    return HEAD_MAX + memory * 65 // 64


@define
class Saving:
    """The states of one run on their way into *blocks*: what did not change is not read again."""

    blocks: Blocks
    _leaves: dict[int, Link] = field(factory=dict)
    """By region."""

    def save(self, held: Held) -> Cid:
        """The state that *held* is. Blocks. Raises PeerError where its image is too short,
        Unavailable where it cannot be read, and what `Blocks.put` raises."""
        for number in held.changed:
            self._leaves.pop(number, None)
        wanted = [n for n in held.snapshot.regions if n not in self._leaves]
        try:
            return self._save(held, wanted)
        except BaseException:
            for number in wanted:  # whether they were stored is not known
                self._leaves.pop(number, None)
            raise

    def _save(self, held: Held, wanted: list[int]) -> Cid:
        batch = files.Batch(self.blocks)
        try:
            with open(_opened(held.image), "rb", buffering=0) as image:
                self._read(image.fileno(), held.snapshot, wanted, batch)
        except OSError as error:
            raise Unavailable(f"the memory cannot be kept: {error}") from error
        cuts = range(0, len(held.head), CHUNK_BYTES)
        head = [import_leaf(held.head[at : at + CHUNK_BYTES], batch.put) for at in cuts]
        memory = [self._leaves[number] for number in held.snapshot.regions]
        snapshot = import_leaves((*head, *memory), batch.put)
        out, tmp = (files.add_to(batch, path) for path in (held.out, held.tmp))
        root = import_dir(dict(zip(_PARTS, (snapshot, out, tmp), strict=True)), batch.put)
        batch.flush()
        return root.cid

    def _read(self, image: int, snapshot: Snapshot, wanted: list[int], batch: files.Batch) -> None:
        """Those regions, in *batch* where they are few: one wait for the disk serves all then."""

        def add(group: list[int], batch: files.Batch) -> list[Link]:
            frames = (_frame(image, number, snapshot.regions[number]) for number in group)
            return [import_leaf(frame, batch.put) for frame in frames]

        def store(group: list[int]) -> list[Link]:
            mine = files.Batch(self.blocks)
            links = add(group, mine)
            mine.flush()
            return links

        *groups, last = [wanted[at : at + _AT_ONCE] for at in range(0, len(wanted), _AT_ONCE)] or [
            []
        ]
        with ThreadPoolExecutor(THREADS) as pool:
            for group, links in zip(groups, pool.map(store, groups), strict=True):
                self._leaves.update(zip(group, links, strict=True))
        self._leaves.update(zip(last, add(last, batch), strict=True))


def _opened(image: Path) -> int:
    """Of a file alone: what a worker may have put in its place is not read. Raises OSError."""
    handle = os.open(image, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{image} is no file")
    return handle


def _frame(image: int, number: int, mask: int) -> bytes:
    """The frame of a region. Raises PeerError: a worker may have cut its image short."""
    length = mask.bit_length() * PIECE
    region = os.pread(image, length, number * REGION)
    if len(region) != length:
        raise PeerError("a worker whose image of a memory is too short")
    return encode_frame(masked(region, mask))


def lay_out(
    blocks: Blocks,
    root: Cid,
    folder: Path,
    *,
    memory: int,
    disk: int,
    known: Known | None = None,
) -> State:
    """A state as files in *folder*, which must not be there; *memory* and *disk* are the job's.

    Blocks. Raises Refused or PeerError where it is none, and as `files.write_path`.
    """
    folder.mkdir()
    remains = lay_out_snapshot(
        blocks, root, folder / "snapshot", _snapshot_bytes_max(memory), known
    )
    for name in _PARTS[1:]:
        part = files.resolve(blocks, root, name)
        files.write_path(blocks, part, folder / name, bytes_max=disk)
    state = State(remains.path, folder / "out", folder / "tmp", remains.shared)
    if not (state.out.is_dir() and state.tmp.is_dir()):
        raise PeerError("a state whose parts are of another kind")
    return state


def lay_out_snapshot(
    blocks: Blocks, root: Cid, path: Path, bytes_max: int, known: Known | None = None
) -> Remains:
    """The snapshot of a state as a file, but for what is *known*. As `lay_out`."""
    at, leaves, shared = 0, list[Link](), list[Shared]()
    before = known.blocks if known else {}
    with path.open("xb", buffering=0) as file:
        for leaf in files.leaves(blocks, files.resolve(blocks, root, _PARTS[0])):
            if at + leaf.size > bytes_max:
                raise Refused(f"a snapshot of more than the {bytes_max:,} bytes allowed for it")
            was_at, length = before.get(leaf.cid, (0, -1))
            if length == leaf.size and len(shared) < REGIONS_MAX:
                shared.append(Shared(at, was_at, length))
            else:
                _write(file.fileno(), at, leaf, b"".join(files.read_file(blocks, leaf.cid)))
            leaves.append(leaf)
            at += leaf.size
        file.truncate(at)
    return Remains(path, tuple(leaves), tuple(shared))


def _write(handle: int, at: int, leaf: Link, data: bytes) -> None:
    if len(data) != leaf.size:
        raise PeerError("a part of a file is not as long as its node says")
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, at)
        view, at = view[written:], at + written


def known_of(remains: Remains) -> Known:
    """What of a snapshot that was laid out need not come again. Blocks. Raises PeerError."""
    with (
        remains.path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
    ):
        job, begin = decode_start(view)
    at, found = 0, {}
    for leaf in remains.leaves:
        if at >= begin:
            found[leaf.cid] = at, leaf.size
        at += leaf.size
    return Known(job, found)
