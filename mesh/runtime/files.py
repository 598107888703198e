"""What a guest holds open and what it may write: descriptors over trees, and one quota.

All that could tell two machines apart (inodes, times, order, this machine's errors) is replaced or
kept away.
"""

from __future__ import annotations

import os

from attrs import define

from mesh.runtime.preview1 import APPEND, Errno, Filetype, Open, Rights
from mesh.runtime.trees import DEPTH_MAX, Denied, Parts, Stat, Tree, on_host

DESCRIPTORS_MAX = 256
ENTRY_COST = 4096
"""Bytes of quota that every file and folder costs, however empty."""
ENTRIES_MAX = 100_000
"""Files and folders that a guest may make: the machine's inodes are its owner's too."""
OFFSET_MAX = 1 << 62


@define
class Stream:
    """stdin, stdout or stderr."""

    number: int


@define
class Folder:
    """An open directory; a preopened one is the root of its tree."""

    tree: Tree
    parts: Parts
    is_preopened: bool = False


@define
class File:
    """An open file. The offset is kept here and not by the host, as state that could be moved."""

    tree: Tree
    parts: Parts
    handle: int
    rights: int
    flags: int
    offset: int = 0


Descriptor = Stream | Folder | File


class Files:
    """The descriptors of one guest and the trees behind them. Errors of its calls are Denied."""

    def __init__(self, trees: tuple[Tree, ...], quota: int) -> None:
        self.quota = quota
        self.used = 0
        self.entries = 0
        self.was_refused_space = False
        self.descriptors: dict[int, Descriptor] = {n: Stream(n) for n in range(3)}
        for number, tree in enumerate(trees, 3):
            self.descriptors[number] = Folder(tree, (), is_preopened=True)

    def redirect(self, number: int, tree: Tree, parts: Parts) -> None:
        """Have the descriptor *number* read the file at *parts* from its start, as a shell's `<`
        does; where there is none, leave it as it is."""
        found = tree.find(parts)
        if found is not None and found.kind is Filetype.REGULAR:
            self.descriptors[number] = self._open_file(tree, parts, Rights.READING, 0, 0)

    # --- descriptors --------------------------------------------------------------------------

    def descriptor(self, number: int) -> Descriptor:
        found = self.descriptors.get(number)
        if found is None:
            raise Denied(Errno.BADF)
        return found

    def file(self, number: int, rights: int = 0) -> File:
        """The open file *number*, if it was opened with *rights*."""
        match self.descriptor(number):
            case File() as file:
                if file.rights & rights != rights:
                    raise Denied(Errno.NOTCAPABLE)
                return file
            case Folder():
                raise Denied(Errno.ISDIR)
            case Stream():
                raise Denied(Errno.SPIPE)

    def folder(self, number: int) -> Folder:
        match self.descriptor(number):
            case Folder() as folder:
                return folder
            case _:
                raise Denied(Errno.NOTDIR)

    def close(self, number: int) -> None:
        match self.descriptor(number):
            case File(handle=handle):
                os.close(handle)
            case _:
                pass
        del self.descriptors[number]

    def close_all(self) -> None:
        for number in list(self.descriptors):
            self.close(number)

    def renumber(self, source: int, target: int) -> None:
        self.descriptor(source)
        self.descriptor(target)
        if source != target:
            self.close(target)
            self.descriptors[target] = self.descriptors.pop(source)

    def _add(self, descriptor: Descriptor) -> int:
        number = next(n for n in range(DESCRIPTORS_MAX) if n not in self.descriptors)
        self.descriptors[number] = descriptor
        return number

    def _check_room(self) -> None:
        if len(self.descriptors) >= DESCRIPTORS_MAX:
            raise Denied(Errno.MFILE)

    # --- names --------------------------------------------------------------------------------

    def open(self, folder: Folder, path: bytes, how: int, rights: int, flags: int) -> int:
        """Open or create; the number of the new descriptor."""
        self._check_room()
        tree = folder.tree
        parts, wants_folder = tree.resolve(folder.parts, path)
        found = tree.find(parts)
        if found is None:
            if not how & Open.CREATE:
                raise Denied(Errno.NOENT)
            if how & Open.DIRECTORY or wants_folder:
                raise Denied(Errno.INVAL)
            return self._create(tree, parts, rights, flags)
        if how & Open.CREATE and how & Open.EXCLUSIVE:
            raise Denied(Errno.EXIST)
        if found.kind is Filetype.DIRECTORY:
            if how & (Open.TRUNCATE | Open.CREATE):
                raise Denied(Errno.ISDIR)
            return self._add(Folder(tree, parts))
        if how & Open.DIRECTORY or wants_folder:
            raise Denied(Errno.NOTDIR)
        number = self._add(self._open_file(tree, parts, rights, flags, 0))
        if how & Open.TRUNCATE:
            self._truncate_opened(number)
        return number

    def _truncate_opened(self, number: int) -> None:
        file = self.file(number)
        if not file.tree.is_writable:
            self.close(number)
            raise Denied(Errno.ROFS)
        self.resize(file, 0)

    def _create(self, tree: Tree, parts: Parts, rights: int, flags: int) -> int:
        self._charge_entry(tree, parts)
        create = os.O_CREAT | os.O_EXCL
        return self._add(self._open_file(tree, parts, rights, flags, create))

    def _open_file(self, tree: Tree, parts: Parts, rights: int, flags: int, create: int) -> File:
        if rights & Rights.WRITING and not tree.is_writable:
            raise Denied(Errno.ROFS)
        access = os.O_RDWR if tree.is_writable else os.O_RDONLY
        path = tree.host_path(parts)
        assert path is not None
        with on_host():
            mode = access | create | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            handle = os.open(path, mode, 0o600)
        return File(tree, parts, handle, rights & Rights.FILE, flags & APPEND)

    def stat(self, folder: Folder, path: bytes) -> Stat:
        tree = folder.tree
        parts, wants_folder = tree.resolve(folder.parts, path)
        found = tree.find(parts)
        if found is None:
            raise Denied(Errno.NOENT)
        if wants_folder and found.kind is not Filetype.DIRECTORY:
            raise Denied(Errno.NOTDIR)
        return found

    def stat_of(self, descriptor: Descriptor) -> Stat:
        match descriptor:
            case Stream(number=number):
                return Stat(Filetype.UNKNOWN, 0, f"stream {number}")
            case Folder(tree=tree, parts=parts):
                return Stat(Filetype.DIRECTORY, 0, tree.place(parts))
            case File(tree=tree, parts=parts, handle=handle):
                return Stat(Filetype.REGULAR, os.fstat(handle).st_size, tree.place(parts))

    def make_folder(self, folder: Folder, path: bytes) -> None:
        tree = folder.tree
        parts, _ = tree.resolve(folder.parts, path)
        if tree.find(parts) is not None:
            raise Denied(Errno.EXIST)
        self._charge_entry(tree, parts)
        with on_host():
            os.mkdir(_path_in(tree, parts), 0o700)

    def remove_folder(self, folder: Folder, path: bytes) -> None:
        tree, parts, _ = self._resolve_writable(folder, path)
        found = tree.find(parts)
        if found is None or found.kind is not Filetype.DIRECTORY:
            raise Denied(Errno.NOENT if found is None else Errno.NOTDIR)
        self._check_idle(tree, parts)
        with on_host():
            os.rmdir(_path_in(tree, parts))
        self._discharge_entry(0)

    def unlink(self, folder: Folder, path: bytes) -> None:
        """Remove a file. An open one is BUSY: bytes without a name could be neither counted nor
        moved to another machine."""
        tree, parts, wants_folder = self._resolve_writable(folder, path)
        found = tree.find(parts)
        if found is None or wants_folder:
            raise Denied(Errno.NOENT if found is None else Errno.NOTDIR)
        if found.kind is Filetype.DIRECTORY:
            raise Denied(Errno.ISDIR)
        self._check_idle(tree, parts)
        with on_host():
            os.unlink(_path_in(tree, parts))
        self._discharge_entry(found.size)

    def rename(self, folder: Folder, path: bytes, to_folder: Folder, to_path: bytes) -> None:
        """Move within a tree. Folders with something in them keep their parent (DEPTH_MAX)."""
        tree, old, _ = self._resolve_writable(folder, path)
        to_tree, new, _ = self._resolve_writable(to_folder, to_path)
        if tree is not to_tree:
            raise Denied(Errno.XDEV)
        source, target = tree.find(old), tree.find(new)
        if source is None:
            raise Denied(Errno.NOENT)
        if old == new:
            return
        _check_new(new)
        if source.kind is Filetype.DIRECTORY and old[:-1] != new[:-1]:
            if new[: len(old)] == old:
                raise Denied(Errno.INVAL)
            if os.listdir(_path_in(tree, old)):
                raise Denied(Errno.XDEV)
        if target is not None:
            self._check_replaceable(tree, source, target, new)
        with on_host():
            os.rename(_path_in(tree, old), _path_in(tree, new))
        if target is not None:
            self._discharge_entry(target.size)
        self._follow(tree, old, new)

    def _check_replaceable(self, tree: Tree, source: Stat, target: Stat, new: Parts) -> None:
        if target.kind is Filetype.DIRECTORY and source.kind is not Filetype.DIRECTORY:
            raise Denied(Errno.ISDIR)
        if target.kind is not Filetype.DIRECTORY and source.kind is Filetype.DIRECTORY:
            raise Denied(Errno.NOTDIR)
        self._check_idle(tree, new)

    def _follow(self, tree: Tree, old: Parts, new: Parts) -> None:
        """Let open descriptors go with what was renamed."""
        for descriptor in self.descriptors.values():
            match descriptor:
                case Folder() | File():
                    if descriptor.tree is tree and descriptor.parts[: len(old)] == old:
                        descriptor.parts = new + descriptor.parts[len(old) :]
                case Stream():
                    pass

    def _check_idle(self, tree: Tree, parts: Parts) -> None:
        for descriptor in self.descriptors.values():
            match descriptor:
                case Folder(tree=held, parts=at) | File(tree=held, parts=at):
                    if held is tree and at == parts:
                        raise Denied(Errno.BUSY)
                case Stream():
                    pass

    # --- bytes --------------------------------------------------------------------------------

    def size(self, file: File) -> int:
        return os.fstat(file.handle).st_size

    def read(self, file: File, length: int, offset: int) -> bytes:
        if offset > OFFSET_MAX:
            return b""
        with on_host():
            return os.pread(file.handle, length, offset)

    def write(self, file: File, data: bytes, offset: int) -> int:
        """Write what the quota leaves room for; the number of bytes written."""
        if not data:
            return 0
        if offset > OFFSET_MAX:
            raise Denied(Errno.FBIG)
        size = self.size(file)
        room = size + max(0, self.quota - self.used) - offset
        if room < len(data):
            self.was_refused_space = True
        if room <= 0:
            raise Denied(Errno.NOSPC)
        with on_host():
            written = os.pwrite(file.handle, data[:room], offset)
        self.used += max(0, offset + written - size)
        return written

    def resize(self, file: File, size: int) -> None:
        before = self.size(file)
        self._charge(size - before)
        with on_host():
            os.ftruncate(file.handle, size)

    def _charge(self, growth: int) -> None:
        if growth > 0 and self.used + growth > self.quota:
            self.was_refused_space = True
            raise Denied(Errno.NOSPC)
        self.used += growth

    def _charge_entry(self, tree: Tree, parts: Parts) -> None:
        if not tree.is_writable:
            raise Denied(Errno.ROFS)
        _check_new(parts)
        parent = tree.find(parts[:-1])
        if parent is None or parent.kind is not Filetype.DIRECTORY:
            raise Denied(Errno.NOENT if parent is None else Errno.NOTDIR)
        if self.entries >= ENTRIES_MAX:
            self.was_refused_space = True
            raise Denied(Errno.NOSPC)
        self._charge(ENTRY_COST)
        self.entries += 1

    def _discharge_entry(self, size: int) -> None:
        self.used -= ENTRY_COST + size
        self.entries -= 1

    def _resolve_writable(self, folder: Folder, path: bytes) -> tuple[Tree, Parts, bool]:
        parts, wants_folder = folder.tree.resolve(folder.parts, path)
        if not folder.tree.is_writable:
            raise Denied(Errno.ROFS)
        if not parts:
            raise Denied(Errno.BUSY)
        return folder.tree, parts, wants_folder


def _path_in(tree: Tree, parts: Parts) -> str:
    path = tree.host_path(parts)
    assert path is not None
    return path


def _check_new(parts: Parts) -> None:
    if not parts:
        raise Denied(Errno.EXIST)
    if len(parts) > DEPTH_MAX:
        raise Denied(Errno.NAMETOOLONG)
