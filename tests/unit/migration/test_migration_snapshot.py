"""Snapshots: what was suspended comes back whole, and nothing else ever comes out of bytes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import attrs
import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import PeerError
from mesh.ids import RAW, cid_of
from mesh.migration import snapshot
from mesh.migration.snapshot import (
    PIECE,
    REGION,
    Calls,
    Listed,
    OpenFile,
    OpenFolder,
    OpenStream,
    Pages,
    Shared,
    Snapshot,
    decode,
    decode_head,
    decode_since,
    encode_frame,
    encode_head,
    masked,
)
from mesh.runtime import files, trees, wasi
from mesh.runtime.manifest import METER
from mesh.runtime.preview1 import APPEND, Rights
from mesh.storage.blocks import BLOCK_BYTES_MAX

OPENED = (
    OpenStream(0, 0),
    OpenStream(1, 1),
    OpenFolder(3, 0, (), True),
    OpenFolder(4, 1, (), True),
    OpenFolder(5, 1, ("a", "ü"), False),
    OpenFile(6, 0, ("data",), Rights.READ, 0, 1 << 40),
    OpenFile(9, 1, ("a", "ü", "out"), Rights.FILE, APPEND, 17),
)
CALLS = Calls(
    opened=OPENED,
    listed=Listed(5, "/out/a/ü", ((b".", 3), (b"..", 3), (b"\xff", 4))),
    slept_ns=5,
    last_ns=7,
    drawn=3,
    stdout_was_cut=False,
    stderr_was_cut=True,
    was_refused_space=False,
)
WHOLE = Snapshot(
    module=cid_of(RAW, b"module"),
    job=cid_of(RAW, b"job"),
    meter=METER,
    fuel=123_456,
    size=6 << 20,
    variables=((0, 65536), (1, (1 << 64) - 1), (2, 0x7FA00001), (3, 1 << 63)),
    calls=CALLS,
    stack=b"stack" * 9,
    stdout=b"said",
    stderr=b"",
    regions={0: (1 << 64) - 1, 2: 0b1001, 23: 1 << 63},
)
SMALL = attrs.evolve(WHOLE, size=1 << 16, regions={0: 0b1000}, stack=b"")
Taken = tuple[Snapshot, tuple[Pages, ...]]


def pages_of(whole: Snapshot) -> tuple[Pages, ...]:
    """Bytes for its pages, no two of them the same."""
    return tuple(
        (number, mask, b"".join(bytes((number, n)) * (PIECE // 2) for n in range(mask.bit_count())))
        for number, mask in whole.regions.items()
    )


def bytes_of(whole: Snapshot) -> bytes:
    frames = (encode_frame(data) for _, _, data in pages_of(whole))
    return b"".join((encode_head(whole), *frames))


def taken(data: bytes) -> Taken:
    """All that comes out of bytes."""
    whole, pages = decode(memoryview(data))
    return whole, tuple(pages)


def forged(change: Callable[[list[Any]], None], whole: Snapshot = SMALL) -> bytes:
    """A snapshot whose header says something else."""
    data = bytes_of(whole)
    length = int.from_bytes(data[:4], "big")
    fields = list(msgpack.unpackb(data[4 : 4 + length], use_list=False))
    change(fields)
    header = msgpack.packb(fields)
    return len(header).to_bytes(4, "big") + header + data[4 + length :]


def with_calls(**changes: object) -> bytes:
    return bytes_of(attrs.evolve(SMALL, calls=attrs.evolve(CALLS, **changes)))


def with_opened(*opened: object) -> bytes:
    return with_calls(opened=opened, listed=None)


def test_what_was_suspended_comes_back_whole() -> None:
    for whole in (WHOLE, SMALL):
        assert taken(bytes_of(whole)) == (whole, pages_of(whole))
        assert decode_head(encode_head(whole)) == whole
    assert taken(forged(lambda fields: None)) == (SMALL, pages_of(SMALL))


def test_a_region_that_stays_gives_the_same_bytes() -> None:
    frames = [encode_frame(data) for _, _, data in pages_of(WHOLE)]
    later = attrs.evolve(WHOLE, fuel=WHOLE.fuel + 1, stack=b"other", stdout=b"more" * 99)
    assert all(frame in bytes_of(later) for frame in frames)
    assert len(set(frames)) == 3


BEFORE = attrs.evolve(WHOLE, size=5 * REGION, regions={0: 3, 1: 1, 2: 7, 4: 1})
AFTER = attrs.evolve(
    BEFORE, fuel=BEFORE.fuel + 1, size=6 * REGION, regions={0: 3, 2: 5, 4: 1, 5: 1}
)


def laid_out(whole: Snapshot, fill: int) -> tuple[bytes, dict[int, int]]:
    """Bytes of a snapshot, and where each of its regions begins; region 0 is filled with *fill*."""
    data, begins = encode_head(whole), {}
    for number, mask in whole.regions.items():
        begins[number] = len(data)
        raw = bytes([number or fill]) * PIECE * mask.bit_count()
        data += encode_frame(raw)
    return data, begins


def since(shared: list[tuple[int, int]]) -> list[Pages]:
    """What AFTER brings where BEFORE lies, with regions of both that are said to be the same."""
    was, was_at = laid_out(BEFORE, 8)
    now, now_at = laid_out(AFTER, 9)
    before, pages = decode_since(None, memoryview(was))
    assert len(list(pages)) == len(BEFORE.regions)
    holes = bytearray(now)
    told = []
    for number, other in shared:
        at, end = now_at[number], now_at[number] + len(encode_frame(bytes(PIECE)))
        told.append(Shared(at, was_at[other], before.frames[was_at[other]][2] - was_at[other]))
        holes[at:end] = bytes(end - at)
    laid, changes = decode_since(before, memoryview(bytes(holes)), told)
    found = list(changes)
    assert laid.snapshot == AFTER
    assert sorted(laid.frames) == sorted(now_at.values())
    return found


def test_of_a_later_state_comes_what_is_other_than_before() -> None:
    """Pages of a region that is fresh again are none, and it is told."""
    filled = {number: bytes([number or 9]) * PIECE for number in AFTER.regions}
    assert since([(4, 4)]) == [
        (0, 3, filled[0] * 2),
        (2, 5, filled[2] * 2),
        (5, 1, filled[5]),
        (1, 0, b""),
    ]


@pytest.mark.parametrize("lie", [(4, 1), (5, 4), (2, 2)], ids=["number", "new", "pages"])
def test_what_was_not_the_same_is_never_taken_for_it(lie: tuple[int, int]) -> None:
    with pytest.raises(PeerError):
        since([(4, 4), lie] if lie[0] != 4 else [lie])


def test_masked_pages_are_those_with_a_bit() -> None:
    region = b"".join(bytes((n,)) * PIECE for n in range(64))
    assert masked(region, 1 << 63 | 0b110) == b"".join(bytes((n,)) * PIECE for n in (1, 2, 63))
    assert masked(region, 0) == b""


@given(
    stack=st.binary(max_size=100),
    stdout=st.binary(max_size=100),
    variables=st.lists(st.tuples(st.sampled_from((0, 2)), st.integers(0, 2**32 - 1)), max_size=5),
    numbers=st.sets(st.integers(0, 31)),
    fuel=st.integers(0, 1 << 62),
    drawn=st.integers(0, 1 << 62),
)
def test_any_suspended_task_comes_back(
    stack: bytes,
    stdout: bytes,
    variables: list[tuple[int, int]],
    numbers: set[int],
    fuel: int,
    drawn: int,
) -> None:
    whole = attrs.evolve(
        SMALL,
        size=2 << 16,
        stack=stack,
        stdout=stdout,
        variables=tuple(variables),
        regions={0: sum(1 << n for n in numbers)} if numbers else {},
        fuel=fuel,
        calls=attrs.evolve(CALLS, drawn=drawn),
    )
    assert taken(bytes_of(whole)) == (whole, pages_of(whole))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_snapshot_or_a_peers_error(data: bytes) -> None:
    for tried in (data, len(data).to_bytes(4, "big") + data):
        with pytest.raises(PeerError):
            taken(tried)
        with pytest.raises(PeerError):
            decode_head(tried)


@given(st.data())
def test_a_flipped_bit_yields_a_snapshot_or_a_peers_error(data: st.DataObject) -> None:
    forgery = bytearray(bytes_of(SMALL))
    for _ in range(data.draw(st.integers(1, 3))):
        bit = data.draw(st.integers(0, 8 * len(forgery) - 1))
        forgery[bit // 8] ^= 1 << bit % 8
    with suppress(PeerError):
        whole, pages = taken(bytes(forgery))
        frames = b"".join(encode_frame(raw) for _, _, raw in pages)
        assert taken(encode_head(whole) + frames) == (whole, pages)


def test_every_truncation_is_a_peers_error() -> None:
    whole = bytes_of(SMALL)
    for length in range(len(whole)):
        with pytest.raises(PeerError):
            taken(whole[:length])


def put(place: int, value: object) -> Callable[[list[Any]], None]:
    def change(fields: list[Any]) -> None:
        fields[place] = value

    return change


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        (0, 1, "version"),
        (0, 3, "version"),
        (1, "other", "version"),
        (2, b"no", "CID"),
        (3, "text", "CID"),
        (4, "wasmtime-1/fuel", "meter"),
        (5, -1, "fuel"),
        (5, True, "fuel"),
        (5, 1 << 63, "fuel"),
        (6, 1 << 40, "memory"),
        (6, 100, "pages"),
        (6, 1 << 17, "bitmap"),
        (7, ((4, 0),), "variable"),
        (7, ((0, 1 << 32),), "variable"),
        (7, ((0, -1),), "variable"),
        (7, ((True, 0),), "variable"),
        (7, 7, "variables"),
        (7, ((0, 0),) * 10_001, "variables"),
        (8, (0, 0), "lengths"),
        (8, (1 << 30, 0, 0), "length"),
        (8, (100, 4, 0), "another length"),
        (9, b"\xff\xff", "another length"),
        (9, b"\0\0", "longer"),
        (9, b"\0", "bitmap"),
        (10, (), "system calls"),
        (10, None, "system calls"),
    ],
)
def test_a_header_that_lies_is_told_so(place: int, value: object, why: str) -> None:
    with pytest.raises(PeerError, match=why):
        taken(forged(put(place, value)))


@pytest.mark.parametrize(
    ("opened", "why"),
    [
        ((OpenStream(0, 3),), "a stream"),
        ((OpenStream(256, 0),), "a descriptor"),
        ((OpenStream(1, 1), OpenStream(0, 0)), "in order"),
        ((OpenStream(1, 1), OpenStream(1, 0)), "in order"),
        ((OpenFolder(3, 3, (), False),), "a tree"),
        ((OpenFolder(3, 1, ("..",), False),), "elsewhere"),
        ((OpenFolder(3, 1, ("a/b",), False),), "elsewhere"),
        ((OpenFolder(3, 1, ("",), False),), "elsewhere"),
        ((OpenFolder(3, 1, ("a\0",), False),), "elsewhere"),
        ((OpenFolder(3, 1, ("x" * 256,), False),), "elsewhere"),
        ((OpenFolder(3, 1, ("x" * 200,) * 30, False),), "too long"),
        ((OpenFolder(3, 1, ("a",), True),), "preopened"),
        ((OpenFile(3, 1, (), 0, 0, 0),), "without a name"),
        ((OpenFile(3, 0, ("a",), Rights.WRITE, 0, 0),), "rights"),
        ((OpenFile(3, 1, ("a",), 1 << 29, 0, 0),), "rights"),
        ((OpenFile(3, 1, ("a",), 0, 2, 0),), "rights"),
        ((OpenFile(3, 1, ("a",), 0, 0, -1),), "an offset"),
        ((OpenFile(3, 1, ("a",), 0, 0, 1 << 63),), "an offset"),
        (tuple(OpenStream(n, 0) for n in range(257)), "too many|a descriptor"),
    ],
)
def test_a_descriptor_that_no_guest_can_have_is_refused(
    opened: tuple[object, ...], why: str
) -> None:
    with pytest.raises(PeerError, match=why):
        taken(with_opened(*opened))


@pytest.mark.parametrize(
    "listed",
    [
        Listed(4, "/etc", ()),
        Listed(4, "/out/../..", ()),
        Listed(0, "/out", ()),
        Listed(77, "/out", ()),
        Listed(4, "/out", ((b"a/b", 4),)),
        Listed(4, "/out", ((b"", 4),)),
        Listed(4, "/out", ((b"a", 7),)),
        Listed(4, "/out", ((b"a" * 256, 4),)),
        Listed(4, "/out", ((b"a", 4),) * 10_001),
    ],
    ids=lambda listed: listed.place,
)
def test_a_listing_of_nothing_that_is_open_is_refused(listed: Listed) -> None:
    with pytest.raises(PeerError):
        taken(with_calls(listed=listed))


def test_a_frame_that_unpacks_to_more_than_was_said_is_not_unpacked() -> None:
    head = encode_head(SMALL)
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    with pytest.raises(PeerError, match="another length"):
        taken(head + len(bomb).to_bytes(4, "big") + bomb)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(PIECE))
    with pytest.raises(PeerError, match="another length"):
        taken(head + len(unsized).to_bytes(4, "big") + unsized)


def test_what_follows_the_last_frame_is_refused() -> None:
    for tried in (bytes_of(SMALL), bytes_of(attrs.evolve(SMALL, regions={}))):
        with pytest.raises(PeerError, match="longer"):
            taken(tried + b"more")
    with pytest.raises(PeerError, match="longer"):
        decode_head(bytes_of(SMALL))


def test_a_region_fits_into_a_block_whatever_is_in_it() -> None:
    assert len(encode_frame(Random(1).randbytes(REGION))) <= BLOCK_BYTES_MAX


def test_the_bounds_are_those_of_the_runtime() -> None:
    assert snapshot.DESCRIPTORS_MAX == files.DESCRIPTORS_MAX
    assert snapshot.TIME_MAX == wasi.TIME_MAX
    assert snapshot.NAME_MAX == trees.NAME_MAX
