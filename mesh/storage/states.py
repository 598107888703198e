"""The states of a running task, as blocks that another party has in part already.

A state is a folder of three: the snapshot, /out and /tmp. The leaves of the snapshot are its head
and one for each region of the memory, so that a later state of the same run shares with an earlier
one all blocks of what has not changed: whoever fetches it gets the rest alone.
"""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attrs import define, field, frozen

from mesh.errors import PeerError, Unavailable
from mesh.ids import Cid
from mesh.migration.snapshot import HEAD_MAX, PIECE, REGION, Snapshot, encode_frame, masked
from mesh.runtime.course import Held
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
class State:
    """A state, laid out in files."""

    snapshot: Path
    out: Path
    tmp: Path


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
            with open(_opened(held.image), "rb", buffering=0) as image:
                self._read(image.fileno(), held.snapshot, wanted)
        except OSError as error:
            raise Unavailable(f"the memory cannot be kept: {error}") from error
        batch = files.Batch(self.blocks)
        cuts = range(0, len(held.head), CHUNK_BYTES)
        head = [import_leaf(held.head[at : at + CHUNK_BYTES], batch.put) for at in cuts]
        memory = [self._leaves[number] for number in held.snapshot.regions]
        snapshot = import_leaves((*head, *memory), batch.put)
        batch.flush()
        out, tmp = (files.add_path(self.blocks, path) for path in (held.out, held.tmp))
        root = import_dir(dict(zip(_PARTS, (snapshot, out, tmp), strict=True)), batch.put)
        batch.flush()
        return root.cid

    def _read(self, image: int, snapshot: Snapshot, wanted: list[int]) -> None:
        groups = [wanted[at : at + _AT_ONCE] for at in range(0, len(wanted), _AT_ONCE)]

        def add(group: list[int]) -> list[Link]:
            batch = files.Batch(self.blocks)
            frames = (_frame(image, number, snapshot.regions[number]) for number in group)
            links = [import_leaf(frame, batch.put) for frame in frames]
            batch.flush()
            return links

        with ThreadPoolExecutor(THREADS) as pool:
            for group, links in zip(groups, pool.map(add, groups), strict=True):
                self._leaves.update(zip(group, links, strict=True))


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


def lay_out(blocks: Blocks, root: Cid, folder: Path, *, memory: int, disk: int) -> State:
    """A state as files in *folder*, which must not be there; *memory* and *disk* are the job's.

    Blocks. Raises Refused or PeerError where it is none, and as `files.write_path`.
    """
    folder.mkdir()
    most = (_snapshot_bytes_max(memory), disk, disk)
    for name, bytes_max in zip(_PARTS, most, strict=True):
        part = files.resolve(blocks, root, name)
        files.write_path(blocks, part, folder / name, bytes_max=bytes_max)
    state = State(*(folder / name for name in _PARTS))
    if not (state.snapshot.is_file() and state.out.is_dir() and state.tmp.is_dir()):
        raise PeerError("a state whose parts are of another kind")
    return state
