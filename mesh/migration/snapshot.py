"""A suspended task as bytes that travel: format 1, compressed, hashed, decoded as hostile. Pure.

    u32 length │ header (msgpack) │ u32 length, zstd frame │ … │ SHA-256 of all before

The frames hold, one after the other and cut every MEBIBYTE: the stack, stdout, stderr, and the
pages that differ from a fresh instance, in the order of the header's bitmap. The header fixes the
length of each frame, so none can unpack to more. Arguments, environment, seed and limits are the
job's, which the header names by CID: nobody can say of them what is not so.

A snapshot that passes is well formed and no more: whether it is *true*, only a re-run tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NoReturn, TypeAlias, TypeGuard

import msgpack
import zstandard
from attrs import evolve, frozen

from mesh.errors import PeerError
from mesh.ids import Cid, check_cid
from mesh.runtime.manifest import FUEL_MAX, MEMORY_MAX, METER, STDOUT_MAX
from mesh.runtime.preview1 import APPEND, Filetype, Rights

PIECE = 4096
"""Bytes of a page of a snapshot."""
MEBIBYTE = 1 << 20
HEADER_MAX = 8 << 20
STACK_MAX = 4 << 20
VARIABLES_MAX = 10_000
DESCRIPTORS_MAX = 256
PARTS_MAX = 1024
NAME_MAX = 255
PLACE_MAX = 4096
LISTED_MAX = 10_000
"""Entries of a folder that is being read; one with more cannot be moved while it is."""
MOVES_MAX = 1_000_000
TIME_MAX = 1 << 62
OFFSET_MAX = (1 << 63) - 1
COMPRESSION = 1
_VERSION, _KIND, _WASM_PAGE = 1, "snapshot", 1 << 16
_HASH = 32
_BITS = {0: 32, 1: 64, 2: 32, 3: 64}
"""Of a variable: i32, i64, f32, f64."""
TREES = ("/in", "/out", "/tmp")  # noqa: S108 - the guest's, not this machine's


@frozen
class OpenStream:
    """stdin, stdout or stderr, at descriptor *number*."""

    number: int
    stream: int


@frozen
class OpenFolder:
    number: int
    tree: int
    """Of TREES."""
    parts: tuple[str, ...]
    is_preopened: bool


@frozen
class OpenFile:
    number: int
    tree: int
    parts: tuple[str, ...]
    rights: int
    flags: int
    offset: int


Opened: TypeAlias = OpenStream | OpenFolder | OpenFile


@frozen
class Listed:
    """The folder that is being read: what was in it when that began."""

    number: int
    place: str
    entries: tuple[tuple[bytes, int], ...]
    """Name and kind of each."""


@frozen
class Calls:
    """What the system calls know of a guest, beyond its job."""

    opened: tuple[Opened, ...]
    listed: Listed | None
    slept_ns: int
    last_ns: int
    drawn: int
    """Blocks of random numbers."""
    stdout_was_cut: bool
    stderr_was_cut: bool
    was_refused_space: bool


@frozen
class Snapshot:
    """A suspended task."""

    module: Cid
    """The instrumented one that runs."""
    job: Cid
    meter: str
    out: Cid
    """What is in /out, as a directory."""
    tmp: Cid
    fuel: int
    moves: int
    """How often it was suspended before."""
    size: int
    """Bytes of memory."""
    variables: tuple[tuple[int, int], ...]
    """Kind and bits."""
    calls: Calls
    stack: bytes
    stdout: bytes
    stderr: bytes
    pieces: dict[int, bytes]


def encode(snapshot: Snapshot) -> Iterator[bytes]:
    """The bytes, piece by piece as they are made: nothing is held twice."""
    digest = sha256()
    header = _header_of(snapshot)
    assert len(header) <= HEADER_MAX
    framed = len(header).to_bytes(4, "big") + header
    digest.update(framed)
    yield framed
    compressor = zstandard.ZstdCompressor(level=COMPRESSION)
    for raw in _cut(snapshot):
        frame = compressor.compress(raw)
        framed = len(frame).to_bytes(4, "big") + frame
        digest.update(framed)
        yield framed
    yield digest.digest()


def decode(data: bytes) -> Snapshot:
    """The inverse. Raises PeerError, and nothing else, for any bytes."""
    if len(data) < 4 + _HASH or sha256(memoryview(data)[:-_HASH]).digest() != data[-_HASH:]:
        _reject("is not what its hash says")
    length = int.from_bytes(data[:4], "big")
    if length > min(HEADER_MAX, len(data) - 4 - _HASH):
        _reject("has a header that is too long")
    header = data[4 : 4 + length]
    head, bitmap, lengths = _read_header(header)
    numbers = [n for n in range(head.size // PIECE) if bitmap[n // 8] >> n % 8 & 1]
    total = sum(lengths) + len(numbers) * PIECE
    content = b"".join(_unpack(data, 4 + length, total))
    ends = [sum(lengths[: n + 1]) for n in range(3)]
    start = ends[2]
    whole = evolve(
        head,
        stack=content[: ends[0]],
        stdout=content[ends[0] : ends[1]],
        stderr=content[ends[1] : ends[2]],
        pieces={
            number: content[start + n * PIECE : start + (n + 1) * PIECE]
            for n, number in enumerate(numbers)
        },
    )
    if _header_of(whole) != header:
        _reject("has a header in another form than the canonical one")
    return whole


# --- frames -------------------------------------------------------------------------------------


def _cut(snapshot: Snapshot) -> Iterator[bytes]:
    """What the frames hold, a mebibyte each."""
    waiting = bytearray()
    pages = (snapshot.pieces[n] for n in sorted(snapshot.pieces))
    for part in (snapshot.stack, snapshot.stdout, snapshot.stderr, *pages):
        waiting += part
        while len(waiting) >= MEBIBYTE:
            yield bytes(waiting[:MEBIBYTE])
            del waiting[:MEBIBYTE]
    if waiting:
        yield bytes(waiting)


def _unpack(data: bytes, at: int, total: int) -> Iterator[bytes]:
    """*total* bytes from the frames at *at*, which fill the rest of *data* exactly."""
    end = len(data) - _HASH
    unpacker = zstandard.ZstdDecompressor(max_window_size=8 << 20)
    while total:
        wanted = min(total, MEBIBYTE)
        length = int.from_bytes(data[at : at + 4], "big")
        if length > end - at - 4:
            _reject("is cut short")
        frame = data[at + 4 : at + 4 + length]
        try:
            if zstandard.frame_content_size(frame) != wanted:
                _reject("has a frame of another length than its header says")
            raw = unpacker.decompress(frame, max_output_size=wanted, allow_extra_data=False)
        except zstandard.ZstdError:
            raise PeerError("a snapshot that does not unpack") from None
        if len(raw) != wanted:
            _reject("has a frame of another length than its header says")
        yield raw
        at += 4 + length
        total -= wanted
    if at != end:
        _reject("is longer than what it holds")


# --- the header ---------------------------------------------------------------------------------


def _header_of(s: Snapshot) -> bytes:
    bitmap = bytearray(-(-s.size // PIECE // 8))
    for number in s.pieces:
        bitmap[number // 8] |= 1 << number % 8
    lengths = (len(s.stack), len(s.stdout), len(s.stderr))
    names = (_VERSION, _KIND, s.module, s.job, s.meter, s.out, s.tmp)
    numbers = (s.fuel, s.moves, s.size, s.variables, lengths, bytes(bitmap))
    data: bytes = msgpack.packb((*names, *numbers, _calls_of(s.calls)), use_bin_type=True)
    return data


def _calls_of(c: Calls) -> tuple[object, ...]:
    listed = c.listed and (c.listed.number, c.listed.place, c.listed.entries)
    flags = (c.stdout_was_cut, c.stderr_was_cut, c.was_refused_space)
    opened = tuple(_opened_of(one) for one in c.opened)
    return (opened, listed, c.slept_ns, c.last_ns, c.drawn, flags)


def _opened_of(opened: Opened) -> tuple[object, ...]:
    match opened:
        case OpenStream(number=number, stream=stream):
            return (number, 0, stream)
        case OpenFolder() as f:
            return (f.number, 1, f.tree, f.parts, f.is_preopened)
        case OpenFile() as f:
            return (f.number, 2, f.tree, f.parts, f.rights, f.flags, f.offset)


def _read_header(header: bytes) -> tuple[Snapshot, bytes, tuple[int, int, int]]:
    """A snapshot without its content, the bitmap, and the lengths of stack, stdout and stderr."""
    value = _unpack_header(header)
    if not isinstance(value, tuple) or len(value) != 14 or value[:2] != (_VERSION, _KIND):
        _reject("is of another version or shape")
    module, job, meter, out, tmp, fuel, moves, size, variables, lengths, bitmap, calls = value[2:]
    if meter != METER:
        _reject("was metered by another meter")
    _check_number(fuel, FUEL_MAX, "fuel")
    _check_number(moves, MOVES_MAX, "moves")
    _check_number(size, MEMORY_MAX, "memory")
    if size % _WASM_PAGE:
        _reject("has a memory that is no number of pages")
    if not isinstance(bitmap, bytes) or len(bitmap) != size // PIECE // 8:
        _reject("has a bitmap of another length than its memory")
    if not _is_tuple(lengths, 3) or len(lengths) != 3:
        _reject("has no lengths")
    for length, most in zip(lengths, (STACK_MAX, STDOUT_MAX, STDOUT_MAX), strict=True):
        _check_number(length, most, "a length")
    head = Snapshot(
        module=_cid(module),
        job=_cid(job),
        meter=meter,
        out=_cid(out),
        tmp=_cid(tmp),
        fuel=fuel,
        moves=moves,
        size=size,
        variables=_read_variables(variables),
        calls=_read_calls(calls),
        stack=b"",
        stdout=b"",
        stderr=b"",
        pieces={},
    )
    return head, bitmap, (lengths[0], lengths[1], lengths[2])


def _unpack_header(header: bytes) -> Any:  # noqa: ANN401 - a stranger's, and checked part by part
    try:
        return msgpack.unpackb(header, use_list=False, max_map_len=0, max_ext_len=0)
    except (ValueError, RecursionError, msgpack.UnpackException):
        raise PeerError("a snapshot whose header is not msgpack") from None


def _read_variables(value: object) -> tuple[tuple[int, int], ...]:
    if not _is_tuple(value, VARIABLES_MAX):
        _reject("has too many variables")
    for one in value:
        match one:
            case (int(kind), bits) if type(kind) is int and kind in _BITS:
                _check_number(bits, (1 << _BITS[kind]) - 1, "a variable")
            case _:
                _reject("has a variable that is no number")
    return value


def _read_calls(value: object) -> Calls:
    if not _is_tuple(value, 6) or len(value) != 6:
        _reject("has no state of system calls")
    opened, listed, slept_ns, last_ns, drawn, flags = value
    for number in (slept_ns, last_ns, drawn):
        _check_number(number, TIME_MAX, "time or chance")
    if not _is_tuple(flags, 3) or len(flags) != 3 or not all(type(f) is bool for f in flags):
        _reject("has limits that are neither met nor not met")
    if not _is_tuple(opened, DESCRIPTORS_MAX):
        _reject("has too many descriptors")
    found = tuple(_read_opened(one) for one in opened)
    if [o.number for o in found] != sorted({o.number for o in found}):
        _reject("has descriptors that are not in order")
    return Calls(found, _read_listed(listed, found), slept_ns, last_ns, drawn, *flags)


def _read_opened(value: object) -> Opened:
    match value:
        case (int(number), 0, int(stream)):
            found: Opened = OpenStream(number, stream)
            _check_number(stream, 2, "a stream")
        case (int(number), 1, int(tree), tuple(parts), bool(is_preopened)):
            found = OpenFolder(number, tree, _read_place(tree, parts), is_preopened)
            if is_preopened and parts:
                _reject("has a folder inside of a tree that is preopened")
        case (int(number), 2, int(tree), tuple(parts), int(rights), int(flags), int(offset)):
            found = OpenFile(number, tree, _read_place(tree, parts), rights, flags, offset)
            _check_file(found)
        case _:
            _reject("has a descriptor of an unknown shape")
    _check_number(number, DESCRIPTORS_MAX - 1, "a descriptor")
    return found


def _check_file(file: OpenFile) -> None:
    _check_number(file.rights, Rights.ALL, "rights")
    _check_number(file.offset, OFFSET_MAX, "an offset")
    allowed = Rights.FILE if file.tree else Rights.FILE & ~Rights.WRITING
    if file.rights & ~allowed or type(file.flags) is bool or file.flags not in (0, APPEND):
        _reject("has a file with rights that nobody gives")
    if not file.parts:
        _reject("has a file without a name")


def _read_place(tree: object, parts: tuple[object, ...]) -> tuple[str, ...]:
    """A path inside of a tree, none that leads out of it or is beyond the bounds of one."""
    _check_number(tree, len(TREES) - 1, "a tree")
    if len(parts) > PARTS_MAX or not all(isinstance(p, str) and _is_name(p) for p in parts):
        _reject("has a path that leads elsewhere")
    found = tuple(str(part) for part in parts)
    if sum(len(part.encode()) + 1 for part in found) > PLACE_MAX:
        _reject("has a path that is too long")
    return found


def _is_name(part: str) -> bool:
    if part in ("", ".", "..") or "/" in part or "\0" in part:
        return False
    try:
        return len(part.encode()) <= NAME_MAX
    except UnicodeEncodeError:
        return False


def _read_listed(value: object, opened: tuple[Opened, ...]) -> Listed | None:
    match value:
        case None:
            return None
        case (int(number), str(place), tuple(entries)) if len(entries) <= LISTED_MAX:
            pass
        case _:
            _reject("has a listing of an unknown shape")
    _check_number(number, DESCRIPTORS_MAX - 1, "a descriptor")
    if not any(isinstance(o, OpenFolder) and o.number == number for o in opened):
        _reject("reads a folder that is not open")
    if len(place) > PLACE_MAX or not _is_place(place):
        _reject("reads a folder that is nowhere")
    for one in entries:
        match one:
            case (bytes(name), int(kind)) if kind in (Filetype.DIRECTORY, Filetype.REGULAR):
                if not 0 < len(name) <= NAME_MAX or b"/" in name or b"\0" in name:
                    _reject("reads a name that is none")
            case _:
                _reject("reads an entry of an unknown shape")
    return Listed(number, place, entries)


def _is_place(place: str) -> bool:
    tree, _, rest = place.removeprefix("/").partition("/")
    return f"/{tree}" in TREES and all(_is_name(part) for part in rest.split("/") if rest)


def _is_tuple(value: object, most: int) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(value, tuple) and len(value) <= most


def _check_number(value: object, most: int, what: str) -> None:
    if type(value) is not int or not 0 <= value <= most:
        _reject(f"has {what} out of range")


def _cid(value: object) -> Cid:
    if not isinstance(value, bytes):
        _reject("names a block by no CID")
    try:
        return check_cid(value)
    except ValueError as error:
        raise PeerError(f"a snapshot with {error}") from None


def _reject(why: str) -> NoReturn:
    raise PeerError(f"a snapshot that {why}")
