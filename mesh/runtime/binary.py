"""WebAssembly modules as bytes that can be taken apart and put together again. Pure, bounded.

The format is that of https://webassembly.github.io/spec/core/binary/. What is not touched comes
back byte for byte, numbers in a longer form than needed included. Modules are strangers': nothing
but Refused escapes, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NoReturn, TypeVar

from attrs import frozen

from mesh.errors import Refused

HEADER = b"\0asm\x01\0\0\0"
ENTRIES_MAX = 1_000_000
"""Entries of one list: types, functions, locals of a function, exports …"""
NAME_MAX = 1_000
"""Bytes of a name."""

CUSTOM, TYPE, IMPORT, FUNCTION, TABLE, MEMORY = 0, 1, 2, 3, 4, 5
GLOBAL, EXPORT, START, ELEMENT, CODE, DATA, DATA_COUNT = 6, 7, 8, 9, 10, 11, 12
_ORDER = (TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT, START, ELEMENT, *(12, 10, 11))
"""Of sections: the count of data stands in front of the code that it is needed for."""

FUNCTION_KIND, TABLE_KIND, MEMORY_KIND, GLOBAL_KIND = 0, 1, 2, 3
"""What an export or an import names."""
I32, I64, F32, F64 = 0x7F, 0x7E, 0x7D, 0x7C
NUMBERS = {I32: "i32", I64: "i64", F32: "f32", F64: "f64"}


def refuse(why: str, hint: str = "") -> NoReturn:
    """Raise Refused: this module cannot be moved, and why."""
    raise Refused(f"the module cannot be made to move: {why}", hint)


def u32(value: int) -> bytes:
    """*value* in the shortest form."""
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def text(name: str) -> bytes:
    data = name.encode()
    return u32(len(data)) + data


class Cursor:
    """A place in some bytes, which moves over what it reads and never past *end*."""

    def __init__(self, data: bytes, at: int = 0, end: int | None = None) -> None:
        self.data = data
        self.at = at
        self.end = len(data) if end is None else end

    def byte(self) -> int:
        if self.at >= self.end:
            refuse("it is cut short")
        self.at += 1
        return self.data[self.at - 1]

    def u32(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            refuse("it has a number that is too long")
        if value >= 1 << 32:
            refuse("it has a number that is too large")
        return value

    def count(self, most: int = ENTRIES_MAX) -> int:
        count = self.u32()
        if count > most:
            refuse(f"it has a list of {count} entries; the most is {most}")
        return count

    def take(self, length: int) -> bytes:
        if length > self.end - self.at:
            refuse("it is cut short")
        self.at += length
        return self.data[self.at - length : self.at]

    def name(self) -> str:
        try:
            return self.take(self.count(NAME_MAX)).decode()
        except UnicodeDecodeError:
            refuse("it has a name that is not UTF-8")


@frozen
class Section:
    """One section: its number, what is in it, and all of its bytes as they stood."""

    number: int
    body: bytes
    raw: bytes


@frozen
class Entry:
    """One entry of a section that is a list, with the bytes that it was read from."""

    raw: bytes


@frozen
class Export(Entry):
    name: str
    kind: int
    index: int


@frozen
class Import(Entry):
    module: str
    name: str
    kind: int


@frozen
class Global(Entry):
    kind: int
    is_mutable: bool


E = TypeVar("E", bound=Entry)


def section(number: int, body: bytes) -> Section:
    """A section made anew."""
    return Section(number, body, bytes((number,)) + u32(len(body)) + body)


def listing(number: int, entries: Iterable[bytes]) -> Section:
    """A section that is a list, made anew."""
    found = list(entries)
    return section(number, u32(len(found)) + b"".join(found))


def read_sections(wasm: bytes) -> list[Section]:
    """The sections of a core module, in their order, each but custom ones at most once."""
    if wasm[:8] != HEADER:
        refuse("it is not a core module of version 1")
    cursor = Cursor(wasm, 8)
    found: list[Section] = []
    place = -1
    while cursor.at < cursor.end:
        start, number = cursor.at, cursor.byte()
        body = cursor.take(cursor.u32())
        if number != CUSTOM:
            if number not in _ORDER or _ORDER.index(number) <= place:
                refuse(f"its section {number} is unknown, repeated or out of order")
            place = _ORDER.index(number)
        found.append(Section(number, body, wasm[start : cursor.at]))
        if len(found) > ENTRIES_MAX:
            refuse("it has too many sections")
    return found


def write_sections(sections: Iterable[Section]) -> bytes:
    """The module that they make, in the order of the format; custom ones stay where they are."""
    return HEADER + b"".join(section.raw for section in sections)


class Parts:
    """The sections of one module by number, to be replaced one by one. Custom ones are dropped:
    names, debugging and what a compiler says of itself do nothing for a run."""

    def __init__(self, wasm: bytes) -> None:
        self._sections = {s.number: s for s in read_sections(wasm) if s.number != CUSTOM}

    def body(self, number: int) -> bytes:
        """What is in a section; an empty list where there is none."""
        found = self._sections.get(number)
        return b"\0" if found is None else found.body

    def has(self, number: int) -> bool:
        return number in self._sections

    def replace(self, number: int, entries: Iterable[bytes]) -> None:
        self._sections[number] = listing(number, entries)

    def write(self) -> bytes:
        order = [number for number in _ORDER if number in self._sections]
        return write_sections(self._sections[number] for number in order)

    # --- the lists --------------------------------------------------------------------------

    def types(self) -> list[bytes]:
        return [e.raw for e in self._entries(TYPE, _read_type)]

    def imports(self) -> list[Import]:
        return self._entries(IMPORT, _read_import)

    def functions(self) -> list[bytes]:
        """The type of every function that is not imported."""
        return [e.raw for e in self._entries(FUNCTION, _read_index)]

    def tables(self) -> list[bytes]:
        return [e.raw for e in self._entries(TABLE, _read_table)]

    def memories(self) -> list[bytes]:
        return [e.raw for e in self._entries(MEMORY, _read_limits)]

    def globals(self) -> list[Global]:
        return self._entries(GLOBAL, _read_global)

    def exports(self) -> list[Export]:
        return self._entries(EXPORT, _read_export)

    def code(self) -> list[bytes]:
        """The bodies of functions: locals and instructions, without the length in front."""
        return [e.raw for e in self._entries(CODE, _read_code)]

    def _entries(self, number: int, read: Callable[[Cursor], E]) -> list[E]:
        cursor = Cursor(self.body(number))
        found = [read(cursor) for _ in range(cursor.count())]
        if cursor.at != cursor.end:
            refuse(f"its section {number} is longer than what it holds")
        return found


def export(name: str, kind: int, index: int) -> bytes:
    return text(name) + bytes((kind,)) + u32(index)


def code_entry(body: bytes) -> bytes:
    return u32(len(body)) + body


# --- entries ------------------------------------------------------------------------------------


def _read_type(cursor: Cursor) -> Entry:
    start = cursor.at
    if cursor.byte() != 0x60:
        refuse("it uses types of garbage collection or exceptions")
    for _ in range(2):
        cursor.take(cursor.count(NAME_MAX))
    return Entry(cursor.data[start : cursor.at])


def _read_import(cursor: Cursor) -> Import:
    start = cursor.at
    module, name, kind = cursor.name(), cursor.name(), cursor.byte()
    if kind != FUNCTION_KIND:
        refuse(f"it imports {module}.{name}, which is no function")
    cursor.u32()
    return Import(cursor.data[start : cursor.at], module, name, kind)


def _read_index(cursor: Cursor) -> Entry:
    start = cursor.at
    cursor.u32()
    return Entry(cursor.data[start : cursor.at])


def _read_table(cursor: Cursor) -> Entry:
    start = cursor.at
    if cursor.byte() not in (0x70, 0x6F):
        refuse("it has a table of a kind that is not run here")
    _read_limits(cursor)
    return Entry(cursor.data[start : cursor.at])


def _read_limits(cursor: Cursor) -> Entry:
    start, flags = cursor.at, cursor.byte()
    if flags > 1:
        refuse("it has a shared or 64-bit memory or table")
    for _ in range(1 + flags):
        cursor.u32()
    return Entry(cursor.data[start : cursor.at])


def _read_global(cursor: Cursor) -> Global:
    start, kind, mutable = cursor.at, cursor.byte(), cursor.byte()
    if mutable > 1:
        refuse("it has a global that is shared")
    skip_constant(cursor)
    return Global(cursor.data[start : cursor.at], kind, bool(mutable))


def _read_export(cursor: Cursor) -> Export:
    start = cursor.at
    name, kind, index = cursor.name(), cursor.byte(), cursor.u32()
    return Export(cursor.data[start : cursor.at], name, kind, index)


def _read_code(cursor: Cursor) -> Entry:
    return Entry(cursor.take(cursor.u32()))


_LEB = rb"[\x80-\xff]{0,9}+[\x00-\x7f]"
_CONSTANT = re.compile(
    rb"(?:[\x23\x41\x42\xd2]" + _LEB + rb"|\x43.{4}|\x44.{8}|\xd0[\x6f\x70]|\xfd\x0c.{16}"
    rb"|[\x6a-\x6c\x7c-\x7e])*+\x0b",
    re.DOTALL,
)
"""An initial value: constants, other globals, references, and the sums of extended ones."""


def skip_constant(cursor: Cursor) -> bytes:
    """Go past an initial value; its bytes."""
    found = _CONSTANT.match(cursor.data, cursor.at, cursor.end)
    if found is None:
        refuse("it has an initial value that is no constant")
    return cursor.take(found.end() - cursor.at)
