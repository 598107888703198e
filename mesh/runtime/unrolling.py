"""Short loops written out several times. Pure.

The meter looks at its count at the head of every loop, and a machine's registers are emptied for
that. A loop that is written out is headed less often: what it computes, and what that burns, stays
the same, but for a unit where it ends by itself, in whichever copy that is: a guest that is moved
goes on in the first. So what is metered is the module written out, and the meter's name says in
which way.
"""

from __future__ import annotations

from mesh.errors import Refused
from mesh.runtime.binary import CODE, Cursor, Parts, code_entry, u32
from mesh.runtime.instructions import UNBRANCHED, Loop, read_body, skip_block_type

COPIES = 4
BYTES_MAX = 600
"""Of instructions in such a loop."""
FUNCTION_BYTES_MAX = 1 << 20
"""Of a function that is looked at, and so of what is known of its loops at once."""
ADDED_BYTES_MAX = 64 << 20
"""By which a module may grow: functions after that stay as they are."""
_BLOCK = b"\x02\x40"
_END = b"\x0b"


def unroll(wasm: bytes) -> bytes:
    """The valid module *wasm*, with its short loops written out and without custom sections.

    A function that has an instruction which is not known here stays as it is.
    """
    parts, added = Parts(wasm), 0
    if not parts.has(CODE):
        return parts.write()
    bodies = parts.code()
    for number, code in enumerate(bodies):
        if added <= ADDED_BYTES_MAX and len(code) <= FUNCTION_BYTES_MAX:
            bodies[number] = _unrolled(code)
            added += len(bodies[number]) - len(code)
    parts.replace(CODE, map(code_entry, bodies))
    return parts.write()


def _unrolled(code: bytes) -> bytes:
    if b"\x03" not in code:  # the opcode of a loop: most functions have none
        return code
    try:
        loops = read_body(code, may_move=False).loops
    except Refused:
        return code
    pieces, done = [], 0
    for loop in filter(is_short, loops):
        pieces += [code[done : loop.start], write_out(code[loop.at : loop.end])]
        done = loop.end + 1
    return b"".join((*pieces, code[done:]))


def is_short(loop: Loop) -> bool:
    """Whether it is written out: it holds no loop, and gives no values back."""
    return loop.is_void and not loop.has_loop and loop.end - loop.at <= BYTES_MAX


def write_out(inner: bytes, head: bytes = b"") -> bytes:
    """The loop of the instructions *inner*, and of *head* once in COPIES times.

    A block around each copy but the last takes the place of the loop: who branches there goes on
    to the next copy. Who comes to the end leaves a block around all of it.
    """
    again = _BLOCK + _relabelled(inner, 2) + b"\x0c\x02" + _END
    last = _relabelled(inner, 1) + b"\x0c\x01"
    return b"".join((_BLOCK, b"\x03\x40", head, again * (COPIES - 1), last, _END, _END))


def _relabelled(inner: bytes, more: int) -> bytes:
    """*inner*, with *more* blocks between it and what lies outside of the loop."""
    cursor, depth = Cursor(inner), 0
    pieces: list[bytes] = []
    done = 0
    while True:
        found = UNBRANCHED.match(inner, cursor.at)
        assert found is not None
        cursor.at = found.end()
        if cursor.at == cursor.end:
            return b"".join((*pieces, inner[done:]))
        labels = 0
        match cursor.byte():
            case 0x0B:
                depth -= 1
            case 0x02 | 0x04:
                skip_block_type(cursor)
                depth += 1
            case 0x0C | 0x0D:
                labels = 1
            case 0x0E:
                labels = cursor.count() + 1
            case 0x10 | 0xD2:
                cursor.u32()
            case 0x11:
                cursor.u32()
                cursor.u32()
            case 0x1C:
                cursor.take(cursor.count())
            case other:
                assert other == 0x05, other
        for _ in range(labels):
            start, label = cursor.at, cursor.u32()
            if label > depth:
                pieces += [inner[done:start], u32(label + more)]
                done = cursor.at
