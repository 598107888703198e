"""Modules made ready to be moved, and made whole after Binaryen has been over them. Pure.

`add_checks` puts `if (mesh.flag) mesh.yield()` where a running guest can be asked to stop; Binaryen
then makes the functions that may lead there able to unwind and rewind (Asyncify); `finish` names
all that makes up a guest's state. A moved guest is the same artefact on every machine: only one of
them needs Binaryen.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum

from attrs import frozen

from mesh.runtime import binary
from mesh.runtime.binary import (
    CODE,
    CUSTOM,
    DATA,
    ELEMENT,
    EXPORT,
    FUNCTION,
    FUNCTION_KIND,
    GLOBAL,
    GLOBAL_KIND,
    I32,
    IMPORT,
    MEMORY_KIND,
    NUMBERS,
    START,
    TYPE,
    Cursor,
    Parts,
    refuse,
    u32,
)
from mesh.runtime.calls import Calls, calls_of
from mesh.runtime.instructions import Body, Loop, read_body
from mesh.runtime.module import (
    FLAG,
    GLOBAL_PREFIX,
    STACK,
    STACK_AT,
    STATE,
    YIELD,
    check_module,
)
from mesh.runtime.recursion import recursive
from mesh.runtime.unrolling import is_short, write_out

REWRITING = 5
"""Counts the ways of making a module movable, this file's and binaryen.py's: one more whenever the
same module comes out as other bytes, since auditors make modules again and compare."""
Move = Callable[[int], int]
"""Of the number of a function, the one it has from now on."""
_ASYNCIFY = "asyncify_"
MOVING = "moving"
"""How the names begin, as Binaryen hears them, of functions that a guest can be stopped in."""
_NO_TYPE = b"\x60\0\0"


class Policy(Enum):
    """Where a guest looks whether it should stop."""

    OUTER = "outer"
    """In loops and in functions that may call themselves, but not in the innermost loops of a nest
    that call nothing, or only what has no loop: these cost most and end soonest. A function that is
    called in a loop counts as part of it, and what it calls too."""
    ALL = "all"
    """In every loop, and in functions that may call themselves."""


@frozen
class Checks:
    """What add_checks did: of so many loops and functions, so many look at the flag."""

    loops: int
    checked_loops: int
    functions: int
    checked_functions: int


def add_checks(wasm: bytes, policy: Policy) -> tuple[bytes, Checks]:
    """*wasm* with checks, an import mesh.yield and a global mesh.flag. Raises Refused.

    The import takes the number of the first function, which moves behind all others: so only
    references to that one change.
    """
    check_module(wasm)
    parts = Parts(wasm)
    imports = parts.imports()
    check_movable(parts)
    bodies = parts.code()
    if len(bodies) != len(parts.functions()):
        refuse("it has functions without instructions")
    if not bodies:
        refuse("it has no function of its own")
    read = [read_body(code) for code in bodies]
    first = len(imports)
    moved = first + len(bodies)
    flag = len(parts.globals())
    check = b"\x23" + u32(flag) + b"\x04\x40\x10" + u32(first) + b"\x0b"
    calls = calls_of(parts, read, _in_tables(parts))
    entered = {n for n in recursive(calls.graph) if n < len(read)}
    places = _places(read, calls, policy, entered)
    moving = calls.callers(n for n, at in enumerate(places) if at)
    bodies = [
        _edit(code, body, at, check, first, moved)
        for code, body, at in zip(bodies, read, places, strict=True)
    ]
    _put_yield(parts)
    parts.replace(FUNCTION, [*parts.functions()[1:], parts.functions()[0]])
    parts.replace(CODE, map(binary.code_entry, (*bodies[1:], bodies[0])))
    _renumber(parts, first, moved)
    parts.replace(GLOBAL, [*(g.raw for g in parts.globals()), bytes((I32, 1, 0x41, 0, 0x0B))])
    exports = [_moved_export(e, first, moved) for e in parts.exports()]
    parts.replace(EXPORT, [*exports, binary.export(FLAG, GLOBAL_KIND, flag)])
    numbers = (moved, *range(first + 1, moved))
    named = _named({number: n in moving for n, number in enumerate(numbers)})
    return parts.write() + named, _count(read, places, entered)


def check_movable(parts: Parts) -> None:
    """Whether all that is state of such a module can be taken along. Raises Refused."""
    if parts.has(START):
        refuse("it has a start function")
    for found in parts.globals():
        if found.is_mutable and found.kind not in NUMBERS:
            refuse("it has a variable that is a reference or a vector")
    for name in (e.name for e in parts.exports()):
        if name.startswith(("mesh.", _ASYNCIFY)):
            refuse(f"it exports {name}", "give the module as it was before")
    _check_data(Cursor(parts.body(DATA)))


def _check_data(cursor: Cursor) -> None:
    for _ in range(cursor.count()):
        match cursor.u32():
            case 0:
                binary.skip_constant(cursor)
                cursor.take(cursor.u32())
            case 1:
                refuse("it has passive data, whose being dropped does not move")
            case _:
                refuse("it has data of another memory")


# --- where to look ------------------------------------------------------------------------------


def _in_tables(parts: Parts) -> set[int]:
    found: set[int] = set()

    def note(index: int) -> int:
        found.add(index)
        return index

    cursor = Cursor(parts.body(ELEMENT))
    for _ in range(cursor.count()):
        _read_element(cursor, note)
    return found


def _repeated(bodies: list[Body], first: int) -> set[int]:
    """Functions that are called in a loop, be it of another that calls them."""
    found: set[int] = set()
    ahead = {called for body in bodies for called in body.repeats}
    while ahead:
        found |= ahead
        calls = (bodies[n - first].calls for n in ahead if 0 <= n - first < len(bodies))
        ahead = {called for some in calls for called in some} - found
    return found


def _places(bodies: list[Body], calls: Calls, policy: Policy, entered: set[int]) -> list[list[int]]:
    """Where each function looks at the flag; *entered* are those that may call themselves."""
    repeated = _repeated(bodies, calls.first)
    lasting = calls.callers(
        n
        for n, body in enumerate(bodies)
        if n in entered or body.loops or any(called < calls.first for called in body.calls)
    )

    def is_checked(loop: Loop, is_repeated: bool) -> bool:
        if policy is Policy.ALL or loop.has_loop or not (loop.is_nested or is_repeated):
            return True
        if any(called < calls.first for called in loop.calls):
            return True
        return not lasting.isdisjoint(calls.nodes(loop.calls, loop.pointers))

    return [
        [body.at] * (n in entered)
        + [loop.at for loop in body.loops if is_checked(loop, calls.first + n in repeated)]
        for n, body in enumerate(bodies)
    ]


def _count(bodies: list[Body], places: list[list[int]], entered: set[int]) -> Checks:
    return Checks(
        loops=sum(len(body.loops) for body in bodies),
        checked_loops=sum(map(len, places)) - len(entered),
        functions=len(bodies),
        checked_functions=len(entered),
    )


def _named(moving: dict[int, bool]) -> bytes:
    """Names of functions for Binaryen, by which it knows those in which a guest may be stopped."""
    names = (
        u32(number) + binary.text(f"{MOVING if moving[number] else 'fixed'}.{number}")
        for number in sorted(moving)
    )
    functions = u32(len(moving)) + b"".join(names)
    return binary.section(
        CUSTOM, binary.text("name") + bytes((1,)) + u32(len(functions)) + functions
    ).raw


# --- numbers that change ------------------------------------------------------------------------


def _edit(code: bytes, body: Body, places: list[int], check: bytes, old: int, new: int) -> bytes:
    """*code* with *check* at *places*, references to *old* made *new*.

    Short loops that are checked and call nothing are written out, to be checked less often; others
    are when the module is compiled, as those of every module.
    """
    checked = [loop for loop in body.loops if loop.at in places]
    short = [loop for loop in checked if is_short(loop) and not loop.has_reference]
    edits = [(at, at, check) for at in {*places} - {loop.at for loop in short}]
    edits += [
        (loop.start, loop.end + 1, write_out(code[loop.at : loop.end], check)) for loop in short
    ]
    edits += [(start, end, u32(new)) for start, end, f in body.references if f == old]
    pieces, done = [], 0
    for start, end, put in sorted(edits):
        pieces += [code[done:start], put]
        done = end
    return b"".join((*pieces, code[done:]))


def _put_yield(parts: Parts) -> None:
    types = parts.types()
    if _NO_TYPE not in types:
        types.append(_NO_TYPE)
        parts.replace(TYPE, types)
    entry = b"".join(map(binary.text, YIELD)) + bytes((FUNCTION_KIND,))
    entry += u32(types.index(_NO_TYPE))
    parts.replace(IMPORT, [*(i.raw for i in parts.imports()), entry])


def _moved_export(found: binary.Export, old: int, new: int) -> bytes:
    if (found.kind, found.index) == (FUNCTION_KIND, old):
        return binary.export(found.name, found.kind, new)
    return found.raw


def _renumber(parts: Parts, old: int, new: int) -> None:
    """In the tables, and in variables that hold a function."""

    def move(index: int) -> int:
        return new if index == old else index

    if parts.has(ELEMENT):
        cursor = Cursor(parts.body(ELEMENT))
        entries = [_read_element(cursor, move) for _ in range(cursor.count())]
        if cursor.at != cursor.end:
            refuse("its table entries are longer than what they hold")
        parts.replace(ELEMENT, entries)
    if parts.has(GLOBAL):
        values = [g.raw[:2] + _moved_value(g.raw[2:], move) for g in parts.globals()]
        parts.replace(GLOBAL, values)


def _read_element(cursor: Cursor, move: Move) -> bytes:
    """One list of functions for a table, renumbered."""
    start, flags = cursor.at, cursor.u32()
    if flags > 7:
        refuse("it has table entries of an unknown form")
    if flags in (1, 5):
        refuse("it has passive table entries, whose being dropped does not move")
    is_declared, has_kind, has_values = flags & 1, flags & 3, flags & 4
    if not is_declared:
        if flags & 2:
            cursor.u32()
        binary.skip_constant(cursor)
    if has_kind:
        cursor.byte()
    head = cursor.data[start : cursor.at]
    count = cursor.count()
    pieces = [head, u32(count)]
    for _ in range(count):
        if has_values:
            pieces.append(_moved_value(binary.skip_constant(cursor), move))
        else:
            pieces.append(u32(move(cursor.u32())))
    return b"".join(pieces)


def _moved_value(value: bytes, move: Move) -> bytes:
    """An initial value; a `ref.func` (then all there is of it) is renumbered."""
    if value[:1] != b"\xd2":
        return value
    index = Cursor(value, 1).u32()
    return value if move(index) == index else b"\xd2" + u32(move(index)) + b"\x0b"


# --- after Binaryen -----------------------------------------------------------------------------

_GET_STATE = re.compile(rb"\x00\x23([\x80-\xff]{0,4}[\x00-\x7f])\x0b", re.DOTALL)
_START_UNWIND = re.compile(
    rb"\x00\x41\x01\x24([\x80-\xff]{0,4}[\x00-\x7f])\x20\x00\x24([\x80-\xff]{0,4}[\x00-\x7f]).*",
    re.DOTALL,
)


def finish(wasm: bytes) -> bytes:
    """What Binaryen made of a module with checks, with all of its state exported. Raises Refused.

    Asyncify is steered by its two variables and not by its functions: a host may set these while
    the guest is in a call, and no call into the guest is needed.
    """
    parts = Parts(wasm)
    if len(parts.memories()) != 2:
        refuse("Binaryen gave it no second memory for its stack")
    exports = parts.exports()
    functions = {e.name: e.index for e in exports if e.kind == FUNCTION_KIND}
    state, stack_at = _asyncify_variables(parts, functions)
    flags = [e.index for e in exports if e.name == FLAG]
    others = [
        n
        for n, found in enumerate(parts.globals())
        if found.is_mutable and n not in (state, stack_at, *flags)
    ]
    kept = [e.raw for e in exports if not e.name.startswith(_ASYNCIFY)]
    named = [
        binary.export(STATE, GLOBAL_KIND, state),
        binary.export(STACK_AT, GLOBAL_KIND, stack_at),
        binary.export(STACK, MEMORY_KIND, 1),
        *(binary.export(f"{GLOBAL_PREFIX}{n}", GLOBAL_KIND, at) for n, at in enumerate(others)),
    ]
    parts.replace(EXPORT, [*kept, *named])
    finished = parts.write()
    if not check_module(finished):
        refuse("Binaryen took out what stops it")
    return finished


def _asyncify_variables(parts: Parts, functions: dict[str, int]) -> tuple[int, int]:
    """The numbers of the state, and of the pointer to the stack."""
    code, first = parts.code(), len(parts.imports())
    found = []
    for name, form in (("get_state", _GET_STATE), ("start_unwind", _START_UNWIND)):
        at = functions.get(_ASYNCIFY + name, -1) - first
        body = code[at] if 0 <= at < len(code) else b""
        found.append(form.fullmatch(body))
    get_state, start_unwind = found
    if get_state is None or start_unwind is None or get_state[1] != start_unwind[1]:
        refuse("Binaryen made it able to unwind in another way than is known here")
    return Cursor(start_unwind[1]).u32(), Cursor(start_unwind[2]).u32()
