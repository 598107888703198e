"""The instructions of a function, as far as changing it needs: loops, calls, what forbids it. Pure.

Most instructions matter to nobody here and are passed over by one pattern, at the speed of `re`.
What is not understood is refused. Whether the rest is valid the compiler says later.
"""

from __future__ import annotations

import re
from typing import NoReturn

from attrs import define, field

from mesh.runtime.binary import Cursor, refuse

NESTING_MAX = 10_000
"""Blocks within blocks."""


_LEB = rb"[\x80-\xff]{0,9}+[\x00-\x7f]"
_ACCESS = rb"[\x00-\x3f]" + _LEB
"""Alignment and offset in the one memory: a second one would set a bit of the alignment."""
_ANY_ACCESS = rb"(?:[\x00-\x3f]|[\x40-\x7f]" + _LEB + rb")" + _LEB


def _operations(access: bytes, *others: bytes) -> re.Pattern[bytes]:
    """As many instructions as there are that open, close and call nothing; *others* included."""
    known = (
        rb"[\x00\x01\x0f\x1a\x1b\x45-\xc4\xd1]",  # numbers, drop, select, return, unreachable
        rb"[\x20-\x25\x41\x42]" + _LEB,  # locals, globals, table.get
        rb"[\x28-\x3e]" + access,
        rb"\x43.{4}",
        rb"\x44.{8}",
        rb"\xd0[\x6f\x70]",
        rb"\xfc[\x00-\x07]",  # conversions that saturate
        rb"\xfc\x10" + _LEB,  # table.size
        rb"\xfd(?:[\x00-\x0b]|[\x5c\x5d])" + access,
        rb"\xfd[\x54-\x5b]" + access + b".",
        rb"\xfd[\x0c\x0d].{16}",
        rb"\xfd[\x15-\x22].",
        rb"\xfd(?:[\x0e-\x14\x23-\x53\x5e-\x7f]|[\x80-\xff]\x01)",
    )
    return re.compile(b"(?:" + b"|".join((*known, *others)) + b")*+", re.DOTALL)


_BRANCHES = rb"[\x0c\x0d]" + _LEB
_STAYING = (
    rb"\x26" + _LEB,  # table.set
    rb"[\x3f\x40]" + _LEB,  # memory.size, memory.grow
    rb"\xfc[\x08\x0a\x0c\x0e]" + _LEB + _LEB,  # init and copy
    rb"\xfc[\x09\x0b\x0d\x0f\x11]" + _LEB,  # drop, fill, table.grow
)
_MOVABLE = _operations(
    _ACCESS,
    _BRANCHES,
    rb"[\x3f\x40]\x00",
    rb"\xfc\x0a\x00\x00",  # memory.copy
    rb"\xfc\x0b\x00",  # memory.fill
)
_ANY = _operations(_ANY_ACCESS, _BRANCHES, *_STAYING)
UNBRANCHED = _operations(_ANY_ACCESS, *_STAYING)
"""As many instructions as there are that open, close, branch and call nothing."""
_FORBIDDEN = {
    0x06: "exceptions",
    0x07: "exceptions",
    0x08: "exceptions",
    0x09: "exceptions",
    0x0A: "exceptions",
    0x18: "exceptions",
    0x19: "exceptions",
    0x1F: "exceptions",
    0x12: "tail calls",
    0x13: "tail calls",
    0x14: "typed function references",
    0x15: "tail calls",
    0x26: "table.set: tables do not move",
    0xD3: "garbage collection",
    0xD4: "typed function references",
    0xD5: "typed function references",
    0xD6: "typed function references",
    0xFB: "garbage collection",
    0xFE: "threads",
}
_FORBIDDEN_BULK = {
    8: "memory.init: what was dropped does not move",
    9: "data.drop: what was dropped does not move",
    12: "table.init: tables do not move",
    13: "elem.drop: what was dropped does not move",
    14: "table.copy: tables do not move",
    15: "table.grow: tables do not move",
    17: "table.fill: tables do not move",
}


@define(eq=False)
class Loop:
    """One loop of a function."""

    start: int
    """Where it stands itself."""
    at: int
    """Where its first instruction stands."""
    is_void: bool
    """Whether it neither takes nor gives values."""
    is_nested: bool
    end: int = 0
    """Where its `end` stands."""
    has_loop: bool = False
    has_reference: bool = False
    """Whether it names or calls a function. As what follows, outside of the loops in it."""
    calls: set[int] = field(factory=set)
    """Functions that it calls by name."""
    pointers: set[int] = field(factory=set)
    """Types of those that it calls by a pointer."""


@define(eq=False)
class Body:
    """What was found in one function."""

    at: int
    """Where its first instruction stands, behind the locals."""
    loops: list[Loop] = field(factory=list)
    calls: set[int] = field(factory=set)
    repeats: set[int] = field(factory=set)
    """Those of `calls` that it makes within a loop."""
    pointers: set[int] = field(factory=set)
    """Types of the functions that it calls by a pointer."""
    references: list[tuple[int, int, int]] = field(factory=list)
    """(start, end, function): where a number in the code names a function."""


def read_body(code: bytes, *, may_move: bool = True) -> Body:
    """Read one function (locals and instructions). Raises Refused for what is not known here, and
    for what cannot be moved where it *may_move*."""
    cursor = Cursor(code)
    for _ in range(cursor.count()):
        cursor.u32()
        cursor.byte()
    body = Body(cursor.at)
    _read_blocks(cursor, body, _MOVABLE if may_move else _ANY)
    if cursor.at != cursor.end:
        refuse("it has a function that is longer than its instructions")
    return body


def _read_blocks(cursor: Cursor, body: Body, plain: re.Pattern[bytes]) -> None:
    """Until the `end` of the function itself. *open_blocks* has a None for what is no loop."""
    open_blocks: list[Loop | None] = []
    loops: list[Loop] = []
    while True:
        found = plain.match(cursor.data, cursor.at, cursor.end)
        assert found is not None
        cursor.at = found.end()
        match cursor.byte():
            case 0x0B:
                if not open_blocks:
                    return
                if open_blocks.pop() is not None:
                    loops.pop().end = cursor.at - 1
            case 0x05:
                pass
            case 0x03:
                open_blocks.append(_open_loop(cursor, body, loops))
            case 0x02 | 0x04:
                skip_block_type(cursor)
                open_blocks.append(None)
            case other:
                _read_other(other, cursor, body, loops)
        if len(open_blocks) > NESTING_MAX:
            refuse(f"it has more than {NESTING_MAX} blocks within blocks")


def _open_loop(cursor: Cursor, body: Body, loops: list[Loop]) -> Loop:
    start = cursor.at - 1
    skip_block_type(cursor)
    if loops:
        loops[-1].has_loop = True
    is_void = cursor.data[start + 1 : cursor.at] == b"\x40"
    loop = Loop(start, cursor.at, is_void, is_nested=bool(loops))
    loops.append(loop)
    body.loops.append(loop)
    return loop


def _read_other(opcode: int, cursor: Cursor, body: Body, loops: list[Loop]) -> None:
    match opcode:
        case 0x10:
            called = _read_reference(cursor, body, loops)
            body.calls.add(called)
            if loops:
                body.repeats.add(called)
                loops[-1].calls.add(called)
        case 0x11:
            called = cursor.u32()
            cursor.u32()
            body.pointers.add(called)
            if loops:
                loops[-1].has_reference = True
                loops[-1].pointers.add(called)
        case 0xD2:
            _read_reference(cursor, body, loops)
        case 0x0E:
            for _ in range(cursor.count() + 1):
                cursor.u32()
        case 0x1C:
            cursor.take(cursor.count())
        case 0xFC:
            _refuse_bulk(cursor)
        case _:
            refuse(f"it uses {_FORBIDDEN.get(opcode, f'the unknown instruction {opcode:#04x}')}")


def _read_reference(cursor: Cursor, body: Body, loops: list[Loop]) -> int:
    start = cursor.at
    function = cursor.u32()
    body.references.append((start, cursor.at, function))
    if loops:
        loops[-1].has_reference = True
    return function


def _refuse_bulk(cursor: Cursor) -> NoReturn:
    code = cursor.u32()
    refuse(f"it uses {_FORBIDDEN_BULK.get(code, f'the unknown instruction 0xfc {code}')}")


def skip_block_type(cursor: Cursor) -> None:
    for _ in range(5):
        if cursor.byte() < 0x80:
            return
    refuse("it has a number that is too long")
