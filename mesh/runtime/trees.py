"""Folders of this machine as a guest may see them: confined, and the same on every machine.

A path is walked part by part from the root of its tree; a symbolic link is never followed and `..`
never leaves. Nobody else touches the trees while the guest runs.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from attrs import field, frozen

from mesh.runtime.preview1 import Errno, Filetype

PATH_MAX = 1024
"""Bytes of a path that a guest names."""
NAME_MAX = 255
DEPTH_MAX = 12
"""Folders within folders that a guest may make: keeps every path below the host's limits."""


class Denied(Exception):
    """The call fails, and this is what it answers: the guest's mistake, or its limit."""

    def __init__(self, code: Errno) -> None:
        super().__init__(code.name)
        self.code = code


class HostFailure(Exception):
    """This machine failed (disk full, I/O error): no fault of the task, which never hears of it."""


Parts = tuple[str, ...]


@frozen
class Stat:
    """What a guest may know of a file: nothing that another machine would say otherwise."""

    kind: Filetype
    size: int
    name: str
    """Its place among the trees; inode numbers are made of it."""


@frozen
class Tree:
    """A folder of the guest's: either its own on disk, or a read-only list of named inputs."""

    guest: str
    base: Path | None
    entries: Mapping[str, Path] = field(factory=dict)

    @property
    def is_writable(self) -> bool:
        return self.base is not None

    def host_path(self, parts: Parts) -> str | None:
        """Where *parts* lie on this machine; None for the root of the inputs, which is no folder.

        Raises Denied where there is no such input.
        """
        if self.base is not None:
            return os.path.join(self.base, *parts)
        if not parts:
            return None
        if parts[0] not in self.entries:
            raise Denied(Errno.NOENT)
        return os.path.join(self.entries[parts[0]], *parts[1:])

    def resolve(self, base: Parts, path: bytes) -> tuple[Parts, bool]:
        """The parts of *path* from folder *base*, and whether it ends as only a folder's may.

        `..` is taken by name: without symbolic links that is where it leads.
        """
        text = _text_of(path)
        parts = list(base)
        for part in text.split("/"):
            if part == "..":
                if not parts:
                    raise Denied(Errno.NOTCAPABLE)
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
        sizes = [len(part.encode()) for part in parts]
        if max(sizes, default=0) > NAME_MAX or sum(sizes) + len(sizes) > 2 * PATH_MAX:
            raise Denied(Errno.NAMETOOLONG)
        return tuple(parts), text.endswith(("/", "/."))

    def find(self, parts: Parts) -> Stat | None:
        """What lies at *parts*, if every folder on the way there is a real one."""
        if self.base is None and len(parts) == 1 and parts[0] not in self.entries:
            return None
        for depth in range(len(parts)):
            path = self.host_path(parts[:depth])
            if path is None:
                continue
            above = _look_at(path)
            if above is None:
                raise Denied(Errno.NOENT)
            if not stat.S_ISDIR(above.st_mode):
                raise Denied(Errno.NOTDIR)
        return self._find_here(parts)

    def _find_here(self, parts: Parts) -> Stat | None:
        """As `find`, where the folders on the way have been looked at."""
        path = self.host_path(parts)
        found = None if path is None else _look_at(path)
        if path is not None and found is None:
            return None
        if found is None or stat.S_ISDIR(found.st_mode):
            return Stat(Filetype.DIRECTORY, 0, self.place(parts))
        if not stat.S_ISREG(found.st_mode):
            raise Denied(Errno.NOTCAPABLE)
        return Stat(Filetype.REGULAR, found.st_size, self.place(parts))

    def list(self, parts: Parts) -> tuple[Stat, ...]:
        """What a guest may see in the folder at *parts*, sorted; the names are those of places."""
        self.find(parts)
        path = self.host_path(parts)
        if path is None:
            names = [*self.entries]
        else:
            with on_host():
                names = os.listdir(path)
        found = [self._find_plain((*parts, name)) for name in sorted(names, key=os.fsencode)]
        return tuple(s for s in found if s is not None)

    def _find_plain(self, parts: Parts) -> Stat | None:
        """As `_find_here`; what a guest could not open (a link, a device) is not there."""
        try:
            return self._find_here(parts)
        except Denied:
            return None

    def place(self, parts: Parts) -> str:
        """What the guest calls *parts*."""
        return "/".join((self.guest, *parts))


def _text_of(path: bytes) -> str:
    if len(path) > PATH_MAX:
        raise Denied(Errno.NAMETOOLONG)
    try:
        text = path.decode()
    except UnicodeDecodeError:
        raise Denied(Errno.ILSEQ) from None
    if not text:
        raise Denied(Errno.NOENT)
    if "\0" in text:
        raise Denied(Errno.INVAL)
    if text.startswith("/"):
        raise Denied(Errno.NOTCAPABLE)
    return text


def _look_at(path: str) -> os.stat_result | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostFailure(f"cannot look at a file: {error.strerror}") from error
    if stat.S_ISLNK(found.st_mode):
        raise Denied(Errno.LOOP)
    return found


_ANSWERS = {
    errno.ENOENT: Errno.NOENT,
    errno.EEXIST: Errno.EXIST,
    errno.ENOTDIR: Errno.NOTDIR,
    errno.EISDIR: Errno.ISDIR,
    errno.ENOTEMPTY: Errno.NOTEMPTY,
    errno.EINVAL: Errno.INVAL,
    errno.ELOOP: Errno.LOOP,
}


@contextmanager
def on_host() -> Iterator[None]:
    """Answer what is the guest's doing; what is this machine's is a HostFailure."""
    try:
        yield
    except OSError as error:
        code = _ANSWERS.get(error.errno or 0)
        if code is None:
            raise HostFailure(f"this machine's file system failed: {error.strerror}") from error
        raise Denied(code) from None
