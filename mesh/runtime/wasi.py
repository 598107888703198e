"""WASI preview 1, deterministic: the same job gives the same bytes and the same fuel anywhere.

The clock is a function of fuel, randomness is the job's seed, directories are sorted, sleeping
moves the clock, and nothing ever blocks. Every argument is a stranger's: addresses, lengths and
counts are checked before anything is read, and all that can come of a call is an errno or Exit.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from hashlib import blake2b
from typing import Protocol

from mesh.runtime.files import DESCRIPTORS_MAX, File, Files, Folder, Stream
from mesh.runtime.preview1 import APPEND, SIGNATURES, Errno, Filetype, Rights
from mesh.runtime.trees import Denied, Stat

TRANSFER_MAX = 1 << 20
"""Bytes that one call moves at most; a longer one is cut short, as POSIX allows."""
VECTORS_MAX = 1024
SUBSCRIPTIONS_MAX = 1024
RANDOM_MAX = 1 << 16
TIME_MAX = 1 << 62
"""Nanoseconds at which the clock stands still."""

_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1
_SIGN = 1 << 63
_CLOCKS = range(4)
_DIRENT = struct.Struct("<QQIBxxx")
_EVENT = struct.Struct("<QHBxxxxxQHxxxxxx")
_FDSTAT = struct.Struct("<BxHxxxxQQ")
_FILESTAT = struct.Struct("<QQBxxxxxxxQQQQQ")
_SUBSCRIBED_CLOCK = struct.Struct("<IxxxxQQH")


class Exit(Exception):
    """The guest ended itself."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Memory(Protocol):
    """A guest's linear memory. Both raise Denied(FAULT) for what lies outside."""

    def read(self, address: int, length: int) -> bytes: ...

    def write(self, address: int, data: bytes) -> None: ...


class Output:
    """stdout or stderr: the first *most* bytes of it."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.data = bytearray()
        self.was_cut = False

    def write(self, data: bytes) -> int:
        room = self.most - len(self.data)
        if room < len(data):
            self.was_cut = True
            if room <= 0:
                raise Denied(Errno.NOSPC)
        self.data += data[:room]
        return min(room, len(data))


class Wasi:
    """The system calls of one guest. *fuel_used* is asked whenever the guest looks at a clock."""

    def __init__(
        self,
        args: tuple[str, ...],
        env: tuple[tuple[str, str], ...],
        files: Files,
        *,
        seed: bytes,
        t0_ns: int,
        stdout_max: int,
        fuel_used: Callable[[], int],
    ) -> None:
        self.args = [text.encode() + b"\0" for text in args]
        self.env = [f"{name}={value}".encode() + b"\0" for name, value in env]
        self.files = files
        self.seed = seed
        self.t0_ns = t0_ns
        self.stdout = Output(stdout_max)
        self.stderr = Output(stdout_max)
        self.fuel_used = fuel_used
        self.slept_ns = 0
        self.last_ns = 0
        self.drawn = 0
        self._listing: tuple[Folder, tuple[tuple[bytes, Stat], ...]] | None = None

    def call(self, name: str, memory: Memory, args: tuple[int, ...]) -> int:
        """Perform *name*, one of SIGNATURES; the errno. Raises Exit, and HostFailure."""
        self.memory = memory
        masks = (_U32 if kind == "i" else _U64 for kind in SIGNATURES[name])
        function = getattr(self, name)
        try:
            function(*(value & mask for value, mask in zip(args, masks, strict=True)))
        except Denied as denial:
            return denial.code
        return Errno.SUCCESS

    # --- arguments, time, chance --------------------------------------------------------------

    def args_sizes_get(self, count: int, size: int) -> None:
        self._store_sizes(self.args, count, size)

    def args_get(self, pointers: int, texts: int) -> None:
        self._store_texts(self.args, pointers, texts)

    def environ_sizes_get(self, count: int, size: int) -> None:
        self._store_sizes(self.env, count, size)

    def environ_get(self, pointers: int, texts: int) -> None:
        self._store_texts(self.env, pointers, texts)

    def clock_res_get(self, clock: int, result: int) -> None:
        _check(clock in _CLOCKS)
        self._store_u64(result, 1)

    def clock_time_get(self, clock: int, precision: int, result: int) -> None:
        _check(clock in _CLOCKS)
        self._store_u64(result, self._now() + (self.t0_ns if clock == 0 else 0))

    def random_get(self, buffer: int, length: int) -> None:
        _check(length <= RANDOM_MAX)
        data = b""
        while len(data) < length:
            data += blake2b(self.drawn.to_bytes(8, "little"), key=self.seed).digest()
            self.drawn += 1
        self.memory.write(buffer, data[:length])

    def sched_yield(self) -> None:
        """There is nobody to yield to."""

    def proc_exit(self, code: int) -> None:
        raise Exit(code)

    def proc_raise(self, signal: int) -> None:
        raise Denied(Errno.NOTSUP)

    def poll_oneoff(self, subscriptions: int, events: int, count: int, result: int) -> None:
        """Descriptors are always ready; with none of them, sleep to the earliest alarm at once."""
        _check(0 < count <= SUBSCRIPTIONS_MAX)
        data = self.memory.read(subscriptions, 48 * count)
        ready: list[bytes] = []
        alarms: list[tuple[int, int]] = []
        for at in range(0, 48 * count, 48):
            user, tag = struct.unpack_from("<QB", data, at)
            if tag == 0:
                clock, timeout, _, flags = _SUBSCRIBED_CLOCK.unpack_from(data, at + 16)
                _check(clock in _CLOCKS)
                alarms.append((self._alarm(clock, timeout, bool(flags & 1)), user))
            else:
                _check(tag <= 2)
                number = struct.unpack_from("<I", data, at + 16)[0]
                code = 0 if number in self.files.descriptors else Errno.BADF
                ready.append(_EVENT.pack(user, code, tag, 0, 0))
        if not ready:
            due = max(min(alarms)[0], self._now())
            self.slept_ns += due - self.last_ns
            self.last_ns = due
            ready = [_EVENT.pack(user, 0, 0, 0, 0) for when, user in alarms if when <= due]
        self.memory.write(events, b"".join(ready))
        self._store_u32(result, len(ready))

    def _alarm(self, clock: int, timeout: int, is_absolute: bool) -> int:
        if not is_absolute:
            return min(self._now() + timeout, TIME_MAX)
        return min(max(0, timeout - (self.t0_ns if clock == 0 else 0)), TIME_MAX)

    def _now(self) -> int:
        """Nanoseconds since the start: 0.3 a unit of fuel, what was slept, never the same twice."""
        now = self.fuel_used() * 3 // 10 + self.slept_ns
        self.last_ns = min(max(now, self.last_ns + 1), TIME_MAX)
        return self.last_ns

    # --- descriptors --------------------------------------------------------------------------

    def fd_close(self, number: int) -> None:
        self.files.close(number)

    def fd_renumber(self, source: int, target: int) -> None:
        self.files.renumber(source, target)

    def fd_prestat_get(self, number: int, result: int) -> None:
        name = self._preopened(number)
        self.memory.write(result, struct.pack("<II", 0, len(name)))

    def fd_prestat_dir_name(self, number: int, buffer: int, length: int) -> None:
        name = self._preopened(number)
        if length < len(name):
            raise Denied(Errno.NAMETOOLONG)
        self.memory.write(buffer, name)

    def _preopened(self, number: int) -> bytes:
        match self.files.descriptor(number):
            case Folder(is_preopened=True, tree=tree):
                return tree.guest.encode()
            case _:
                raise Denied(Errno.BADF)

    def fd_fdstat_get(self, number: int, result: int) -> None:
        match self.files.descriptor(number):
            case Stream(number=stream):
                rights = Rights.STREAM | (Rights.WRITE if stream else Rights.READ)
                data = _FDSTAT.pack(Filetype.UNKNOWN, 0, rights, 0)
            case Folder():
                data = _FDSTAT.pack(Filetype.DIRECTORY, 0, Rights.FOLDER, Rights.ALL)
            case File(rights=rights, flags=flags):
                data = _FDSTAT.pack(Filetype.REGULAR, flags, rights, 0)
        self.memory.write(result, data)

    def fd_fdstat_set_flags(self, number: int, flags: int) -> None:
        match self.files.descriptor(number):
            case File() as file:
                file.flags = flags & APPEND
            case _:
                pass

    def fd_fdstat_set_rights(self, number: int, base: int, inheriting: int) -> None:
        """Rights can only be given up."""
        match self.files.descriptor(number):
            case File() as file:
                if base & Rights.FILE & ~file.rights:
                    raise Denied(Errno.NOTCAPABLE)
                file.rights &= base
            case _:
                pass

    def fd_filestat_get(self, number: int, result: int) -> None:
        self._store_stat(result, self.files.stat_of(self.files.descriptor(number)))

    def fd_filestat_set_size(self, number: int, size: int) -> None:
        self.files.resize(self.files.file(number, Rights.WRITE), size)

    def fd_filestat_set_times(self, number: int, accessed: int, modified: int, flags: int) -> None:
        """Times are the job's t0, whatever is set."""
        self.files.descriptor(number)

    def fd_advise(self, number: int, offset: int, length: int, advice: int) -> None:
        self.files.file(number)

    def fd_allocate(self, number: int, offset: int, length: int) -> None:
        file = self.files.file(number, Rights.WRITE)
        if offset + length > self.files.size(file):
            self.files.resize(file, offset + length)

    def fd_sync(self, number: int) -> None:
        """What is written here outlives the guest and not the machine: nothing to wait for."""
        self.files.descriptor(number)

    def fd_datasync(self, number: int) -> None:
        self.files.descriptor(number)

    # --- bytes --------------------------------------------------------------------------------

    def fd_read(self, number: int, vectors: int, count: int, result: int) -> None:
        match self.files.descriptor(number):
            case Stream(number=0):
                self._store_u32(result, 0)
            case Stream():
                raise Denied(Errno.BADF)
            case _:
                file = self.files.file(number, Rights.READ)
                file.offset += self._scatter(file, file.offset, vectors, count, result)

    def fd_pread(self, number: int, vectors: int, count: int, offset: int, result: int) -> None:
        file = self.files.file(number, Rights.READ)
        self._scatter(file, offset, vectors, count, result)

    def fd_write(self, number: int, vectors: int, count: int, result: int) -> None:
        data = self._gather(vectors, count)
        match self.files.descriptor(number):
            case Stream(number=1):
                written = self.stdout.write(data)
            case Stream(number=2):
                written = self.stderr.write(data)
            case Stream():
                raise Denied(Errno.BADF)
            case _:
                file = self.files.file(number, Rights.WRITE)
                if file.flags & APPEND:
                    file.offset = self.files.size(file)
                written = self.files.write(file, data, file.offset)
                file.offset += written
        self._store_u32(result, written)

    def fd_pwrite(self, number: int, vectors: int, count: int, offset: int, result: int) -> None:
        file = self.files.file(number, Rights.WRITE)
        self._store_u32(result, self.files.write(file, self._gather(vectors, count), offset))

    def fd_seek(self, number: int, distance: int, whence: int, result: int) -> None:
        file = self.files.file(number)
        _check(whence <= 2)
        base = (0, file.offset, self.files.size(file))[whence]
        offset = base + (distance ^ _SIGN) - _SIGN
        _check(0 <= offset < _SIGN)
        file.offset = offset
        self._store_u64(result, offset)

    def fd_tell(self, number: int, result: int) -> None:
        self._store_u64(result, self.files.file(number).offset)

    def _vectors(self, vectors: int, count: int) -> list[tuple[int, int]]:
        _check(count <= VECTORS_MAX)
        return list(struct.iter_unpack("<II", self.memory.read(vectors, 8 * count)))

    def _gather(self, vectors: int, count: int) -> bytes:
        data = bytearray()
        for address, length in self._vectors(vectors, count):
            data += self.memory.read(address, min(length, TRANSFER_MAX - len(data)))
        return bytes(data)

    def _scatter(self, file: File, offset: int, vectors: int, count: int, result: int) -> int:
        done = 0
        for address, length in self._vectors(vectors, count):
            wanted = min(length, TRANSFER_MAX - done)
            data = self.files.read(file, wanted, offset + done)
            self.memory.write(address, data)
            done += len(data)
            if len(data) < length:
                break
        self._store_u32(result, done)
        return done

    # --- names --------------------------------------------------------------------------------

    def fd_readdir(self, number: int, buffer: int, length: int, cookie: int, result: int) -> None:
        entries = self._entries(self.files.folder(number), cookie)
        wanted = min(length, TRANSFER_MAX)
        data = bytearray()
        while cookie < len(entries) and len(data) < wanted:
            name, found = entries[cookie]
            cookie += 1
            data += _DIRENT.pack(cookie, _inode(found.name), len(name), found.kind) + name
        self.memory.write(buffer, bytes(data[:wanted]))
        self._store_u32(result, min(wanted, len(data)))

    def _entries(self, folder: Folder, cookie: int) -> tuple[tuple[bytes, Stat], ...]:
        """The listing as of cookie 0; it is kept for the one folder that was listed last."""
        if cookie == 0 or self._listing is None or self._listing[0] is not folder:
            here = self.files.stat_of(folder)
            found = folder.tree.list(folder.parts)
            names = [(s.name.rsplit("/", 1)[1].encode(errors="surrogateescape"), s) for s in found]
            self._listing = folder, ((b".", here), (b"..", here), *names)
        return self._listing[1]

    def path_open(
        self,
        number: int,
        lookup: int,
        path: int,
        length: int,
        how: int,
        rights: int,
        inheriting: int,
        flags: int,
        result: int,
    ) -> None:
        folder = self.files.folder(number)
        opened = self.files.open(folder, self._path(path, length), how, rights, flags)
        assert opened < DESCRIPTORS_MAX
        self._store_u32(result, opened)

    def path_filestat_get(
        self, number: int, lookup: int, path: int, length: int, result: int
    ) -> None:
        folder = self.files.folder(number)
        self._store_stat(result, self.files.stat(folder, self._path(path, length)))

    def path_filestat_set_times(
        self,
        number: int,
        lookup: int,
        path: int,
        length: int,
        accessed: int,
        modified: int,
        flags: int,
    ) -> None:
        self.files.stat(self.files.folder(number), self._path(path, length))

    def path_create_directory(self, number: int, path: int, length: int) -> None:
        self.files.make_folder(self.files.folder(number), self._path(path, length))

    def path_remove_directory(self, number: int, path: int, length: int) -> None:
        self.files.remove_folder(self.files.folder(number), self._path(path, length))

    def path_unlink_file(self, number: int, path: int, length: int) -> None:
        self.files.unlink(self.files.folder(number), self._path(path, length))

    def path_rename(
        self, number: int, path: int, length: int, to_number: int, to_path: int, to_length: int
    ) -> None:
        folder, to_folder = self.files.folder(number), self.files.folder(to_number)
        source, target = self._path(path, length), self._path(to_path, to_length)
        self.files.rename(folder, source, to_folder, target)

    def path_readlink(
        self, number: int, path: int, length: int, buffer: int, size: int, result: int
    ) -> None:
        """There are no links, so nothing is one."""
        self.files.stat(self.files.folder(number), self._path(path, length))
        raise Denied(Errno.INVAL)

    def path_link(self, *args: int) -> None:
        raise Denied(Errno.NOTSUP)

    def path_symlink(self, *args: int) -> None:
        raise Denied(Errno.NOTSUP)

    def sock_accept(self, *args: int) -> None:
        raise Denied(Errno.NOTSUP)

    def sock_recv(self, *args: int) -> None:
        raise Denied(Errno.NOTSUP)

    def sock_send(self, *args: int) -> None:
        raise Denied(Errno.NOTSUP)

    def sock_shutdown(self, *args: int) -> None:
        raise Denied(Errno.NOTSUP)

    def _path(self, address: int, length: int) -> bytes:
        # One byte too many is enough to be told that a path is too long.
        return self.memory.read(address, min(length, 1 << 16))

    # --- results ------------------------------------------------------------------------------

    def _store_u32(self, address: int, value: int) -> None:
        self.memory.write(address, value.to_bytes(4, "little"))

    def _store_u64(self, address: int, value: int) -> None:
        self.memory.write(address, value.to_bytes(8, "little"))

    def _store_sizes(self, texts: list[bytes], count: int, size: int) -> None:
        self._store_u32(count, len(texts))
        self._store_u32(size, sum(map(len, texts)))

    def _store_texts(self, texts: list[bytes], pointers: int, buffer: int) -> None:
        at = buffer
        addresses = []
        for text in texts:
            addresses.append(at & _U32)
            at += len(text)
        self.memory.write(pointers, struct.pack(f"<{len(texts)}I", *addresses))
        self.memory.write(buffer, b"".join(texts))

    def _store_stat(self, address: int, found: Stat) -> None:
        times = (self.t0_ns,) * 3
        data = _FILESTAT.pack(1, _inode(found.name), found.kind, 1, found.size, *times)
        self.memory.write(address, data)


def _check(is_valid: bool) -> None:
    if not is_valid:
        raise Denied(Errno.INVAL)


def _inode(name: str) -> int:
    """A number that is the same on every machine and never 0."""
    data = name.encode(errors="surrogateescape")
    return int.from_bytes(blake2b(data, digest_size=7).digest(), "little") | 1
