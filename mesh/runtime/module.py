"""Which WebAssembly modules may run here: a bounded reading of a module's headers. Pure.

The binary format is that of https://webassembly.github.io/spec/core/binary/modules.html. Only
what policy needs is read (types, imports, functions, tables, memory, exports, start); the bodies
are validated by the compiler, in the worker.
"""

from __future__ import annotations

from typing import NoReturn

from mesh.errors import Refused
from mesh.runtime.preview1 import NAMESPACE, SIGNATURES

MODULE_BYTES_MAX = 128 << 20
PAGE = 1 << 16
"""Bytes of a page of linear memory."""
TABLES_MAX = 4
TABLE_ELEMENTS_MAX = 100_000
YIELD = ("mesh", "yield")
FLAG, STATE, STACK_AT, STACK = "mesh.flag", "mesh.state", "mesh.stack_at", "mesh.stack"
"""Exports of a module that can be moved: the request to stop, Asyncify's two variables, and the
memory in which it keeps the stack."""
GLOBAL_PREFIX = "mesh.g"
"""Exports mesh.g0, mesh.g1 …: every other global that can change."""
_MOVING = {FLAG: 3, STATE: 3, STACK_AT: 3, STACK: 2}
"""Of what kind they are."""
_ENTRIES_MAX = 1_000_000
_NAME_MAX = 1_000

_CUSTOM, _TYPE, _IMPORT, _FUNCTION, _TABLE, _MEMORY = 0, 1, 2, 3, 4, 5
_GLOBAL, _EXPORT, _START, _ELEMENT, _CODE, _DATA, _DATA_COUNT, _TAG = 6, 7, 8, 9, 10, 11, 12, 13
_ORDER = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 10, 11)
_VALUE_TYPES = {0x7F: "i", 0x7E: "I", 0x7D: "f", 0x7C: "F", 0x7B: "v", 0x70: "r", 0x6F: "e"}


def check_module(wasm: bytes) -> bool:
    """That *wasm* is a WASI preview 1 command we run; whether it can be moved (rewrite.py).

    Raises Refused with the reason.
    """
    headers = _Headers(wasm)
    headers.check()
    return headers.can_move


class _Headers:
    """A cursor over a module and what has been read of it."""

    def __init__(self, wasm: bytes) -> None:
        self.data = wasm
        self.at = 0
        self.end = len(wasm)
        self.types: list[tuple[str, str]] = []
        self.functions: list[int] = []
        """Type of every function, the imported ones first."""
        self.memories = 0
        self.can_move = False
        """Whether it imports mesh.yield."""
        self.exports: dict[str, tuple[int, int]] = {}

    def check(self) -> None:
        if len(self.data) > MODULE_BYTES_MAX:
            _refuse(f"it has {len(self.data)} bytes; the most is {MODULE_BYTES_MAX}")
        if self.data[:4] != b"\0asm":
            _refuse("it does not begin with the magic number of WebAssembly")
        if self.data[4:8] == b"\x0d\0\x01\0":
            _refuse("it is a component", "build a core module for wasm32-wasip1")
        if self.data[4:8] != b"\x01\0\0\0":
            _refuse("it is not version 1 of the format")
        self.at = 8
        self._read_sections()
        self._check_exports()

    def _read_sections(self) -> None:
        place = -1
        while self.at < self.end:
            section = self._byte()
            end = self.at + self._u32_then_here()
            if end > len(self.data):
                _refuse("it is cut short")
            if section == _TAG:
                _refuse("it uses exceptions", "compile without -fwasm-exceptions")
            if section != _CUSTOM:
                if section not in _ORDER or _ORDER.index(section) <= place:
                    _refuse(f"its section {section} is unknown, repeated or out of order")
                place = _ORDER.index(section)
            self._read_section(section, end)

    def _u32_then_here(self) -> int:
        """A length that counts from behind itself, as a distance from where the cursor was."""
        start = self.at
        size = self._u32()
        return size + self.at - start

    def _read_section(self, section: int, end: int) -> None:
        outer, self.end = self.end, end
        readers = {
            _TYPE: self._read_types,
            _IMPORT: self._read_imports,
            _FUNCTION: self._read_functions,
            _TABLE: self._read_tables,
            _MEMORY: self._read_memories,
            _EXPORT: self._read_exports,
            _START: self._read_start,
        }
        reader = readers.get(section)
        if reader is None:
            self.at = end
        else:
            reader()
            if self.at != end:
                _refuse(f"its section {section} is longer than what it holds")
        self.end = outer

    def _read_types(self) -> None:
        for _ in range(self._count()):
            if self._byte() != 0x60:
                _refuse("it uses types of garbage collection or exceptions")
            self.types.append((self._value_types(), self._value_types()))

    def _value_types(self) -> str:
        codes = [self._byte() for _ in range(self._count(_NAME_MAX))]
        if not all(code in _VALUE_TYPES for code in codes):
            _refuse("it uses value types beyond numbers, vectors and plain references")
        return "".join(_VALUE_TYPES[code] for code in codes)

    def _read_imports(self) -> None:
        for _ in range(self._count()):
            module, name, kind = self._name(), self._name(), self._byte()
            if kind == 2:
                _refuse(f"it imports its memory ({module}.{name})", "let it define its own")
            if (module, name, kind) == (*YIELD, 0):
                self._add_yield()
                continue
            if kind != 0 or module != NAMESPACE or name not in SIGNATURES:
                _refuse(
                    f"it imports {module}.{name}",
                    f"only the functions of {NAMESPACE} exist here: build for wasm32-wasip1",
                )
            self._add_function()
            expected = (SIGNATURES[name], "" if name == "proc_exit" else "i")
            if self.types[self.functions[-1]] != expected:
                _refuse(f"it imports {name} with a signature that is not that of WASI")

    def _add_yield(self) -> None:
        self._add_function()
        self.can_move = True
        if self.types[self.functions[-1]] != ("", ""):
            _refuse("it imports mesh.yield with arguments or results")

    def _read_functions(self) -> None:
        for _ in range(self._count()):
            self._add_function()

    def _add_function(self) -> None:
        index = self._u32()
        if index >= len(self.types):
            _refuse("it has a function whose type does not exist")
        self.functions.append(index)

    def _read_tables(self) -> None:
        for _ in range(self._count(TABLES_MAX)):
            if self._byte() not in (0x70, 0x6F):
                _refuse("it has a table of a kind that is not run here")
            flags = self._byte()
            if flags > 1:
                _refuse("it has a shared or 64-bit table")
            if self._u32() > TABLE_ELEMENTS_MAX:
                _refuse(f"it has a table of more than {TABLE_ELEMENTS_MAX} elements")
            if flags:
                self._u32()

    def _read_memories(self) -> None:
        self.memories = self._count(_ENTRIES_MAX)
        expected = 2 if self.can_move else 1
        if self.memories != expected:
            _refuse(f"it has {self.memories} memories and not {'one' if expected == 1 else 'two'}")
        for _ in range(self.memories):
            self._read_memory()

    def _read_memory(self) -> None:
        flags = self._byte()
        if flags & 2:
            _refuse("it uses threads (shared memory)", "compile without -pthread")
        if flags & 4:
            _refuse("it uses 64-bit memory", "build for wasm32")
        if flags > 1:
            _refuse("it uses pages of another size than 64 KiB")
        if self._u32() > PAGE:
            _refuse("its memory is beyond 4 GiB")
        if flags:
            self._u32()

    def _read_exports(self) -> None:
        for _ in range(self._count()):
            name = self._name()
            self.exports[name] = (self._byte(), self._u32())

    def _read_start(self) -> None:
        _refuse("it has a start function, whose work would not be metered", "export _start")

    def _check_exports(self) -> None:
        kind, index = self.exports.get("_start", (-1, 0))
        if kind != 0:
            _refuse("it does not export the function _start", "link it as a command")
        if index >= len(self.functions):
            _refuse("its _start does not exist")
        if self.types[self.functions[index]] != ("", ""):
            _refuse("its _start takes arguments or returns results")
        if not self.memories or self.exports.get("memory") != (2, 0):
            _refuse("it does not export its memory as memory")
        for name, kind in _MOVING.items() if self.can_move else ():
            if self.exports.get(name, (-1, 0))[0] != kind:
                _refuse(f"it imports mesh.yield and does not export {name}")
        if self.can_move and self.exports[STACK] != (2, 1):
            _refuse("its second memory is not mesh.stack")

    # --- the cursor ---------------------------------------------------------------------------

    def _byte(self) -> int:
        if self.at >= self.end:
            _refuse("it is cut short")
        self.at += 1
        return self.data[self.at - 1]

    def _u32(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            _refuse("it has a number that is too long")
        if value >= 1 << 32:
            _refuse("it has a number that is too large")
        return value

    def _count(self, most: int = _ENTRIES_MAX) -> int:
        count = self._u32()
        if count > most:
            _refuse(f"it has a list of {count} entries; the most is {most}")
        return count

    def _name(self) -> str:
        length = self._count(_NAME_MAX)
        if self.at + length > self.end:
            _refuse("it is cut short")
        self.at += length
        try:
            return self.data[self.at - length : self.at].decode()
        except UnicodeDecodeError:
            _refuse("it has a name that is not UTF-8")


def _refuse(why: str, hint: str = "") -> NoReturn:
    raise Refused(f"the module cannot run here: {why}", hint)
