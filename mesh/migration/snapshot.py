"""A suspended task as bytes that travel: format 2, compressed, decoded as hostile. Pure.

    u32 length │ header (msgpack) │ frame │ …            frame: u32 length, zstd

The first frames hold the stack, stdout and stderr, cut every REGION. Each further one holds the
pages of one region of the memory that differ from a fresh instance, in the order of the header's
bitmap: a region that stays as it is gives the same frame, which is the same block (see
storage/states.py). The header fixes the length of each frame, so none can unpack to more.
Arguments, environment, seed and limits are the job's, which the header names by CID: nobody can
say of them what is not so.

There is no hash in it: it travels as blocks, and its CID is one. A snapshot that passes is well
formed and no more: whether it is *true*, only a re-run tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn, TypeAlias, TypeGuard

import msgpack
import zstandard
from attrs import evolve, field, frozen

from mesh.errors import PeerError
from mesh.ids import Cid, check_cid
from mesh.runtime.manifest import FUEL_MAX, MEMORY_MAX, METER, STDOUT_MAX
from mesh.runtime.preview1 import APPEND, Filetype, Rights

PIECE = 4096
"""Bytes of a page of a snapshot."""
REGION = 64 * PIECE
"""Bytes of memory that one frame stands for. With a few bytes more it fits into a block."""
HEADER_MAX = 8 << 20
STACK_MAX = 4 << 20
HEAD_MAX = 4 + HEADER_MAX + (STACK_MAX + 2 * STDOUT_MAX) * 65 // 64
"""Bytes of all but the memory."""
VARIABLES_MAX = 10_000
DESCRIPTORS_MAX = 256
PARTS_MAX = 1024
NAME_MAX = 255
PLACE_MAX = 4096
LISTED_MAX = 10_000
"""Entries of a folder that is being read; one with more cannot be moved while it is."""
TIME_MAX = 1 << 62
OFFSET_MAX = (1 << 63) - 1
COMPRESSION = 1
_VERSION, _KIND, _WASM_PAGE = 2, "snapshot", 1 << 16
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
    """A suspended task, the bytes of its pages apart."""

    module: Cid
    """The instrumented one that runs."""
    job: Cid
    meter: str
    fuel: int
    size: int
    """Bytes of memory."""
    variables: tuple[tuple[int, int], ...]
    """Kind and bits."""
    calls: Calls
    stack: bytes
    stdout: bytes
    stderr: bytes
    regions: Mapping[int, int]
    """Which pages of a region differ from a fresh instance's: a bit for each. By its number."""


Pages: TypeAlias = tuple[int, int, bytes]
"""Number of a region, which of its pages, and these one after the other."""


@frozen
class Shared:
    """A block of a state that is also one of an earlier state, and where it lies in both."""

    at: int
    was_at: int
    length: int


@frozen
class Laid:
    """A state that lies in a memory, and where the frames of its regions were."""

    snapshot: Snapshot
    frames: dict[int, tuple[int, int, int]] = field(factory=dict)
    """Region, pages and end, by where the frame begins."""


def encode_head(snapshot: Snapshot) -> bytes:
    """The bytes before those of the first region."""
    header = _header_of(snapshot)
    assert len(header) <= HEADER_MAX
    said = snapshot.stack + snapshot.stdout + snapshot.stderr
    cuts = range(0, len(said), REGION)
    frames = [encode_frame(said[at : at + REGION]) for at in cuts]
    return b"".join((len(header).to_bytes(4, "big"), header, *frames))


def encode_frame(raw: bytes) -> bytes:
    """Pages of a region, as they follow the head: the same ones always give the same bytes."""
    frame = zstandard.ZstdCompressor(level=COMPRESSION).compress(raw)
    return len(frame).to_bytes(4, "big") + frame


def masked(region: bytes, mask: int) -> bytes:
    """The pages of *region* that *mask* names."""
    numbers = (n for n in range(mask.bit_length()) if mask >> n & 1)
    return b"".join(region[n * PIECE : (n + 1) * PIECE] for n in numbers)


def decode(data: memoryview) -> tuple[Snapshot, Iterator[Pages]]:
    """The inverse. Raises PeerError, and nothing else, for any bytes; so does the iterator."""
    laid, pages = decode_since(None, data)
    return laid.snapshot, pages


def decode_since(
    before: Laid | None, data: memoryview, shared: Iterable[Shared] = ()
) -> tuple[Laid, Iterator[Pages]]:
    """As `decode`, of what is other than *before*; *data* has anything where they share a block.

    A region of *before* that is as a fresh instance's by now comes with no pages. What is laid is
    whole once the iterator is at its end.
    """
    snapshot, at = _decode_head(data)
    laid = Laid(snapshot)
    return laid, _regions(data, at, laid, before, {one.at: one for one in shared})


def decode_head(data: bytes) -> Snapshot:
    """The inverse of `encode_head`. Raises PeerError, and nothing else, for any bytes."""
    snapshot, at = _decode_head(memoryview(data))
    if at != len(data):
        _reject("is longer than what it holds")
    return snapshot


def decode_start(data: memoryview) -> tuple[Cid, int]:
    """The job of a snapshot, and where its regions begin. Raises PeerError."""
    snapshot, at = _decode_head(data)
    return snapshot.job, at


def _header_in(data: memoryview) -> bytes:
    length = int.from_bytes(data[:4], "big")
    if not 0 < length <= min(HEADER_MAX, len(data) - 4):
        _reject("has no header, or one that is too long")
    return bytes(data[4 : 4 + length])


def _decode_head(data: memoryview) -> tuple[Snapshot, int]:
    header = _header_in(data)
    length = len(header)
    head, lengths = _read_header(header)
    frames, at, total = [], 4 + length, sum(lengths)
    while total:
        raw, at = _unpack(data, at, min(total, REGION))
        frames.append(raw)
        total -= len(raw)
    content = b"".join(frames)
    ends = [sum(lengths[: n + 1]) for n in range(3)]
    whole = evolve(
        head,
        stack=content[: ends[0]],
        stdout=content[ends[0] : ends[1]],
        stderr=content[ends[1] :],
    )
    if _header_of(whole) != header:
        _reject("has a header in another form than the canonical one")
    return whole, at


def _regions(
    data: memoryview, at: int, laid: Laid, before: Laid | None, shared: Mapping[int, Shared]
) -> Iterator[Pages]:
    known = before.frames if before else {}
    for number, mask in laid.snapshot.regions.items():
        begin, same = at, shared.get(at)
        if same and known.get(same.was_at) == (number, mask, same.was_at + same.length):
            at += same.length
        else:
            raw, at = _unpack(data, at, mask.bit_count() * PIECE)
            yield number, mask, raw
        laid.frames[begin] = number, mask, at
    if at != len(data):
        _reject("is longer than what it holds")
    if before is not None:
        for number in before.snapshot.regions.keys() - laid.snapshot.regions.keys():
            yield number, 0, b""


def _unpack(data: memoryview, at: int, wanted: int) -> tuple[bytes, int]:
    """The *wanted* bytes of the frame at *at*, and where it ends."""
    length = int.from_bytes(data[at : at + 4], "big")
    if not 0 < length <= len(data) - at - 4:
        _reject("is cut short")
    frame = data[at + 4 : at + 4 + length]
    unpacker = zstandard.ZstdDecompressor(max_window_size=8 << 20)
    try:
        if zstandard.frame_content_size(frame) != wanted:
            _reject("has a frame of another length than its header says")
        raw = unpacker.decompress(frame, max_output_size=wanted, allow_extra_data=False)
    except zstandard.ZstdError:
        raise PeerError("a snapshot that does not unpack") from None
    if len(raw) != wanted:
        _reject("has a frame of another length than its header says")
    return raw, at + 4 + length


# --- the header ---------------------------------------------------------------------------------


def _header_of(s: Snapshot) -> bytes:
    bitmap = bytearray(-(-s.size // REGION) * 8)
    for number, mask in s.regions.items():
        bitmap[number * 8 : number * 8 + 8] = mask.to_bytes(8, "little")
    lengths = (len(s.stack), len(s.stdout), len(s.stderr))
    names = (_VERSION, _KIND, s.module, s.job, s.meter)
    numbers = (s.fuel, s.size, s.variables, lengths, bytes(bitmap[: s.size // PIECE // 8]))
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


def _read_header(header: bytes) -> tuple[Snapshot, tuple[int, int, int]]:
    """A snapshot without its content, and the lengths of stack, stdout and stderr."""
    value = _unpack_header(header)
    if not isinstance(value, tuple) or len(value) != 11 or value[:2] != (_VERSION, _KIND):
        _reject("is of another version or shape")
    module, job, meter, fuel, size, variables, lengths, bitmap, calls = value[2:]
    if meter != METER:
        _reject("was metered by another meter")
    _check_number(fuel, FUEL_MAX, "fuel")
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
        fuel=fuel,
        size=size,
        variables=_read_variables(variables),
        calls=_read_calls(calls),
        stack=b"",
        stdout=b"",
        stderr=b"",
        regions=_read_regions(bitmap),
    )
    return head, (lengths[0], lengths[1], lengths[2])


def _read_regions(bitmap: bytes) -> dict[int, int]:
    masks = (int.from_bytes(bitmap[at : at + 8], "little") for at in range(0, len(bitmap), 8))
    return {number: mask for number, mask in enumerate(masks) if mask}


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
