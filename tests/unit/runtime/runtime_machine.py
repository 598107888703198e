"""A guest's view of WASI without a guest: a bytearray for memory, calls by name."""

from __future__ import annotations

import struct
from pathlib import Path

from mesh.runtime.files import Files
from mesh.runtime.preview1 import Errno, Rights
from mesh.runtime.trees import Denied, Tree
from mesh.runtime.wasi import Wasi

IN, OUT, TMP = 3, 4, 5
RESULT = 64
TEXT = 4096
VECTORS = 8192
BUFFER = 16384


class FakeMemory:
    """Four pages of it."""

    def __init__(self) -> None:
        self.data = bytearray(4 << 16)

    def read(self, address: int, length: int) -> bytes:
        self._check(address, length)
        return bytes(self.data[address : address + length])

    def write(self, address: int, data: bytes) -> None:
        self._check(address, len(data))
        self.data[address : address + len(data)] = data

    def _check(self, address: int, length: int) -> None:
        if address + length > len(self.data):
            raise Denied(Errno.FAULT)


class Machine:
    """What a guest can do, with the pointers already in place."""

    def __init__(self, folder: Path, *, quota: int = 1 << 20, stdout_max: int = 100) -> None:
        self.folder = folder
        for name in ("inputs", "out", "tmp"):
            (folder / name).mkdir(exist_ok=True)
        self.inputs = folder / "inputs"
        self.out = folder / "out"
        entries = {p.name: p for p in self.inputs.iterdir()}
        trees = (
            Tree("/in", None, entries),
            Tree("/out", self.out),
            Tree("/tmp", folder / "tmp"),
        )
        self.fuel = 0
        self.memory = FakeMemory()
        self.files = Files(trees, quota)
        self.wasi = Wasi(
            ("task", "eins", "zwei"),
            (("A", "b"),),
            self.files,
            seed=bytes(16),
            t0_ns=10**18,
            stdout_max=stdout_max,
            fuel_used=lambda: self.fuel,
        )

    def call(self, name: str, *args: int) -> int:
        return self.wasi.call(name, self.memory, args)

    def u32(self, address: int = RESULT) -> int:
        return int.from_bytes(self.memory.read(address, 4), "little")

    def u64(self, address: int = RESULT) -> int:
        return int.from_bytes(self.memory.read(address, 8), "little")

    def text(self, text: str | bytes, at: int = TEXT) -> tuple[int, int]:
        data = text.encode() if isinstance(text, str) else text
        self.memory.write(at, data)
        return at, len(data)

    def open(
        self,
        path: str | bytes,
        *,
        folder: int = OUT,
        how: int = 0,
        rights: int = Rights.FILE,
        flags: int = 0,
    ) -> int:
        """The errno; the descriptor is then at RESULT."""
        return self.call("path_open", folder, 0, *self.text(path), how, rights, 0, flags, RESULT)

    def opened(self, path: str, **how: int) -> int:
        assert self.open(path, **how) == Errno.SUCCESS
        return self.u32()

    def path(self, name: str, path: str, *rest: int, folder: int = OUT) -> int:
        return self.call(name, folder, *self.text(path), *rest)

    def rename(self, old: str, new: str, *, folder: int = OUT, to_folder: int = OUT) -> int:
        old_text, new_text = self.text(old), self.text(new, TEXT + 2048)
        return self.call("path_rename", folder, *old_text, to_folder, *new_text)

    def vectors(self, *pieces: tuple[int, int]) -> tuple[int, int]:
        self.memory.write(VECTORS, b"".join(struct.pack("<II", *piece) for piece in pieces))
        return VECTORS, len(pieces)

    def write(self, number: int, data: bytes) -> int:
        """The errno; how much was written is then at RESULT."""
        self.memory.write(BUFFER, data)
        return self.call("fd_write", number, *self.vectors((BUFFER, len(data))), RESULT)

    def read(self, number: int, length: int) -> bytes:
        vectors = self.vectors((BUFFER, length))
        assert self.call("fd_read", number, *vectors, RESULT) == Errno.SUCCESS
        return self.memory.read(BUFFER, self.u32())

    def names(self, number: int, room: int = 4096) -> list[str]:
        """All of a folder, read in pieces of *room* bytes."""
        found: list[str] = []
        cookie = 0
        while True:
            assert self.call("fd_readdir", number, BUFFER, room, cookie, RESULT) == 0
            used, at = self.u32(), 0
            while at + 24 <= used:
                cookie_next, _, length = struct.unpack_from(
                    "<QQI", self.memory.read(BUFFER + at, 24)
                )
                if at + 24 + length > used:
                    break
                found.append(self.memory.read(BUFFER + at + 24, length).decode())
                cookie, at = cookie_next, at + 24 + length
            if used < room:
                return found
            assert at > 0
