"""The embedded store: one file a block, durable when `put` returns, checked whenever it is read.

    FOLDER/lock            held by the process that has the store open
    FOLDER/pins.sqlite     what must be kept, and why
    FOLDER/blocks/HH/CID   HH is the last byte of the hash

A block is written beside its place, synced, renamed, and its folder synced, so that a crash leaves
a whole block or a stray `.tmp` that the next start removes.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from mesh.errors import ConfigError, Corruption, Refused, Unavailable
from mesh.ids import RAW, Cid, cid_codec, format_cid, parse_cid
from mesh.storage.blocks import check_block, matches, not_here
from mesh.storage.pins import Pin, Pins
from mesh.storage.unixfs import walk

BATCH_BLOCKS = 64
"""Blocks that `put_many` syncs together: 16 MiB of whole chunks."""
SYNCS = 8
"""Files synced at a time: one wait of the disk's journal serves them all."""
DOOMED_MAX = 1_000_000
"""Unneeded blocks that a sweep remembers; the rest waits for a later one."""
_TEMPORARY = ".tmp"
_NAME_LENGTH = 59
"""Characters of a CID of ours as text."""


class DiskBlocks:
    """Blocks in *folder*, at most *quota* bytes of them. See `Blocks`; close it when done."""

    def __init__(self, folder: Path, quota: int) -> None:
        """Raises ConfigError where another process has the store open."""
        self._folder = folder
        self._quota = quota
        folder.mkdir(parents=True, exist_ok=True)
        self._lock_file = _lock(folder / "lock")
        self._lock = threading.Lock()
        self._sweeping = threading.Lock()
        """Held while pins decide what stays: no pin comes between a sweep's look and its act."""
        self._doomed: dict[Cid, float] = {}
        """Blocks that a sweep found unneeded, and when. Any interest in one takes it out."""
        self._temporary = itertools.count()
        self._syncing = ThreadPoolExecutor(SYNCS)
        self._count = self._used = self._held = self._strangers = self._leftovers = 0
        self._refused = self._full = self._corrupt = self._swept = self._deferred = 0
        try:
            self._open_shards()
            self._pins = Pins(folder / "pins.sqlite")
        except BaseException:
            os.close(self._lock_file)
            raise

    def close(self) -> None:
        """Let go of the store."""
        self._syncing.shutdown()
        self._pins.close()
        os.close(self._lock_file)

    def __enter__(self) -> DiskBlocks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    # --- blocks ---------------------------------------------------------------------------------

    def get(self, cid: Cid) -> bytes:
        """See `Blocks`."""
        self._spare(cid)
        try:
            data = self._path(cid).read_bytes()
        except FileNotFoundError:
            raise not_here(cid) from None
        if not matches(cid, data):
            with self._lock:
                self._corrupt += 1
            raise Corruption(
                f"{self._path(cid)} fails its hash: check the disk, delete the file, fetch it again"
            )
        return data

    def put(self, cid: Cid, data: bytes) -> None:
        """See `Blocks`."""
        self._put_batch([(cid, data)])

    def put_many(self, blocks: Iterable[tuple[Cid, bytes]]) -> None:
        """See `Blocks`. Syncs each folder once per 64 blocks."""
        waiting = iter(blocks)
        while batch := list(itertools.islice(waiting, BATCH_BLOCKS)):
            self._put_batch(batch)

    def has(self, cid: Cid) -> bool:
        """See `Blocks`."""
        self._spare(cid)
        return self._path(cid).exists()

    def delete(self, cid: Cid) -> bool:
        """See `Blocks`. Does not look at the pins: that is what `sweep` is for."""
        with self._lock:
            return self._remove(cid) is not None

    def cids(self) -> Iterator[Cid]:
        """See `Blocks`."""
        for shard in self._shards():
            for name in os.listdir(shard):
                if (cid := _cid_of_name(name)) is not None:
                    yield cid

    def statistics(self) -> dict[str, int]:
        """See `Blocks`."""
        pins = len(self._pins.all())
        with self._lock:
            return {
                "blocks": self._count,
                "bytes": self._used,
                "quota": self._quota,
                "pins": pins,
                "refused": self._refused,
                "disk_full": self._full,
                "corrupt": self._corrupt,
                "leftovers_removed": self._leftovers,
                "strangers": self._strangers,
                "doomed": len(self._doomed),
                "swept": self._swept,
                "sweep_deferred": self._deferred,
            }

    # --- pins -----------------------------------------------------------------------------------

    def pin(self, root: Cid, reason: str) -> None:
        """Keep *root* and all below it. Raises NotFound if any of it is not here."""
        self.pin_all((root,), reason)

    def pin_all(self, roots: Sequence[Cid], reason: str) -> None:
        """`pin` of several, or of none of them, at the price of one wait for the disk."""
        with self._sweeping:
            for root in roots:
                for cid in walk(root, self.get):
                    if cid_codec(cid) == RAW and not self.has(cid):
                        raise not_here(cid)
            self._pins.add_all(roots, reason)

    def unpin(self, root: Cid, reason: str) -> None:
        """Undo one `pin`. Raises NotFound where there was none."""
        self._pins.remove(root, reason)

    def pins(self) -> tuple[Pin, ...]:
        """What is kept, and why."""
        return self._pins.all()

    def sweep(self, grace_s: float, now: float) -> int:
        """Remove blocks below no pin that nobody has touched since a sweep *grace_s* ago saw them.

        *now* is monotonic, in seconds. The first sweep after a start only looks, unless the grace
        is 0. Returns the bytes freed. Raises NotFound or Corruption, and removes nothing, where a
        pinned block is missing or broken.
        """
        with self._sweeping:
            kept: set[Cid] = set()
            for root in dict.fromkeys(pin.root for pin in self._pins.all()):
                kept.update(walk(root, self.get))
            return sum(self._judge(cid, grace_s, now) for cid in self.cids() if cid not in kept)

    def _judge(self, cid: Cid, grace_s: float, now: float) -> int:
        with self._lock:
            if cid not in self._doomed and len(self._doomed) >= DOOMED_MAX:
                self._deferred += 1
                return 0
            if now - self._doomed.setdefault(cid, now) < grace_s:
                return 0
            freed = self._remove(cid)
            self._swept += freed is not None
            return freed or 0

    def _spare(self, cid: Cid) -> None:
        """Somebody wants *cid*: its grace starts anew."""
        with self._lock:
            self._doomed.pop(cid, None)

    # --- files ----------------------------------------------------------------------------------

    def _put_batch(self, batch: list[tuple[Cid, bytes]]) -> None:
        for cid, data in batch:
            check_block(cid, data)
        fresh = {cid: data for cid, data in batch if not self.has(cid)}
        with self._reserved(sum(map(len, fresh.values()))), self._room():
            written = [(self._beside(cid), cid) for cid in fresh]
            try:
                self._at_once(_write, [temporary for temporary, _ in written], fresh.values())
                for temporary, cid in written:
                    self._adopt(temporary, cid, len(fresh[cid]))
            finally:
                for temporary, _ in written:
                    temporary.unlink(missing_ok=True)
            # of blocks that were here too: another thread may have renamed and not yet synced
            self._at_once(_sync, dict.fromkeys(self._path(cid).parent for cid, _ in batch))

    def _at_once(self, do: Callable[..., None], *values: Iterable[Any]) -> None:
        """*do* for each of *values*, all begun before the first error is raised, all ended."""
        begun = [self._syncing.submit(do, *one) for one in zip(*values, strict=True)]
        wait(begun)
        for one in begun:
            one.result()

    def _adopt(self, temporary: Path, cid: Cid, length: int) -> None:
        with self._lock:
            path = self._path(cid)
            if path.exists():  # put by another thread meanwhile
                return
            temporary.rename(path)
            self._count += 1
            self._used += length

    def _remove(self, cid: Cid) -> int | None:
        """Bytes freed, None if it was not here. The lock is held."""
        self._doomed.pop(cid, None)
        path = self._path(cid)
        try:
            length = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return None
        self._count -= 1
        self._used -= length
        return length

    @contextmanager
    def _reserved(self, length: int) -> Iterator[None]:
        """Hold *length* bytes of the quota while they are written. Raises Refused."""
        with self._lock:
            taken = self._used + self._held
            if length and taken + length > self._quota:
                self._refused += 1
                raise Refused(
                    f"the store is full: quota {self._quota:,} bytes, used {taken:,},"
                    f" needed {length:,}",
                    "raise storage.quota, or unpin what is no longer needed",
                )
            self._held += length
        try:
            yield
        finally:
            with self._lock:
                self._held -= length

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            with room_under(self._folder):
                yield
        except Unavailable:
            with self._lock:
                self._full += 1
            raise

    def _open_shards(self) -> None:
        for shard in self._shards():
            shard.mkdir(parents=True, exist_ok=True)
            with os.scandir(shard) as found:
                for file in found:
                    if file.name.endswith(_TEMPORARY):
                        os.unlink(file.path)
                        self._leftovers += 1
                    elif len(file.name) != _NAME_LENGTH:  # to decode them all takes seconds
                        self._strangers += 1
                    else:
                        self._count += 1
                        self._used += file.stat().st_size
        _sync(self._folder / "blocks")
        _sync(self._folder)

    def _shards(self) -> Iterator[Path]:
        return (self._folder / "blocks" / f"{last:02x}" for last in range(256))

    def _path(self, cid: Cid) -> Path:
        return self._folder / "blocks" / f"{cid[-1]:02x}" / format_cid(cid)

    def _beside(self, cid: Cid) -> Path:
        return self._path(cid).with_name(f"{next(self._temporary)}{_TEMPORARY}")


@contextmanager
def room_under(folder: Path) -> Iterator[None]:
    """Raises Unavailable in place of the OSError of a disk that takes no more."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Unavailable(
            f"the disk under {folder} is full: free some of it, or move MESH_HOME"
        ) from error


def _lock(path: Path) -> int:
    """Take the lock file for this process until the descriptor is closed. Raises ConfigError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise ConfigError(
            "MESH_HOME",
            f"{path.parent} is open in process {holder}",
            "stop that process, or give this node a home of its own",
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _cid_of_name(name: str) -> Cid | None:
    try:
        return parse_cid(name)
    except ValueError:
        return None


def _write(path: Path, data: bytes) -> None:
    with path.open("xb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
