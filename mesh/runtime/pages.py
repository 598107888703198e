"""What of a guest's memory has changed since it was last looked at, kept in a file beside it.

The file is the memory as it was then, where that was ever another than a fresh instance's. So what
stays as it is costs one comparison and no copy, and whoever has the file can read at leisure what
the guest, which goes on meanwhile, is writing over.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from mesh.migration.snapshot import PIECE, REGION, Pages, masked
from mesh.runtime.trees import HostFailure

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_BLANK = ctypes.create_string_buffer(REGION)


class Kept:
    """The memory of one guest, of *most* bytes at most, as it was when last looked at."""

    def __init__(self, path: Path, most: int) -> None:
        """The file is made, and written by its handle alone. Raises OSError."""
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._handle, most)
        self._map = mmap.mmap(self._handle, most)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.regions: dict[int, int] = {}
        """Which pages of a region differ from a fresh instance's, of regions that ever did."""
        self._changed: set[int] = set()

    def look(self, address: int, size: int, fresh: int, fresh_size: int) -> None:
        """Take in the memory of *size* bytes at *address*. A fresh instance's lies at *fresh*.

        Raises HostFailure where the disk is full.
        """
        for number in range(-(-size // REGION)):
            at = number * REGION
            length = min(REGION, size - at)
            mine, inside = address + at, max(0, min(length, fresh_size - at))
            if number in self.regions:
                is_same = not _memcmp(mine, self._start + at, length)
            else:
                is_same = _is_fresh(mine, length, fresh + at, inside)
            if not is_same:
                self._write(mine, length, at)
                self.regions[number] = _mask(mine, length, fresh + at, inside)
                self._changed.add(number)

    def take_changed(self) -> tuple[int, ...]:
        """Regions that looking found changed since this was last asked, in order."""
        changed = tuple(sorted(self._changed))
        self._changed.clear()
        return changed

    def pages(self) -> Iterator[Pages]:
        """What was kept."""
        for number, mask in sorted(self.regions.items()):
            at = number * REGION
            if mask:
                yield number, mask, masked(self._map[at : at + REGION], mask)

    def _write(self, mine: int, length: int, at: int) -> None:
        view = memoryview((ctypes.c_char * length).from_address(mine)).cast("B")
        try:
            while view:  # by a call and not by the map: a full disk is then an error and no signal
                written = os.pwrite(self._handle, view, at)
                view, at = view[written:], at + written
        except OSError as error:
            raise HostFailure(f"cannot keep the memory: {error.strerror}") from error


def _is_fresh(mine: int, length: int, fresh: int, inside: int) -> bool:
    """Whether it is as a fresh instance has it: *inside* bytes of that, and zeros from there on."""
    return not (
        (inside and _memcmp(mine, fresh, inside))
        or (inside < length and _memcmp(mine + inside, _BLANK, length - inside))
    )


def _mask(mine: int, length: int, fresh: int, inside: int) -> int:
    mask = 0
    for at in range(0, length, PIECE):
        there = max(0, min(PIECE, inside - at))
        if not _is_fresh(mine + at, PIECE, fresh + at, there):
            mask |= 1 << at // PIECE
    return mask
