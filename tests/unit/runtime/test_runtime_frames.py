"""Frames: a worker runs a stranger's code, so what it says is checked like any peer's."""

from __future__ import annotations

import random

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import PeerError
from mesh.migration.snapshot import HEAD_MAX
from mesh.runtime.frames import (
    DETAIL_MAX,
    FRAME_MAX,
    HEADER,
    REGIONS_MAX,
    Ended,
    Failed,
    Go,
    Hold,
    Progress,
    Ready,
    Report,
    RunJob,
    StartedRunning,
    Still,
    Unmoved,
    Withdraw,
    decode_report,
    decode_run,
    decode_word,
    encode_report,
    encode_run,
    encode_word,
    frame_length,
)
from mesh.runtime.manifest import STDOUT_MAX

REPORTS: list[Report] = [
    Ready(),
    StartedRunning(can_move=True),
    Still(b"head", (0, 3, REGIONS_MAX - 1)),
    Still(bytes(HEAD_MAX), tuple(range(REGIONS_MAX))),
    Unmoved("not now"),
    Progress(10**15, 1 << 40),
    Ended("trapped", 0, "stack overflow", 123, b"out", b"err"),
    Ended("exited", 2**32 - 1, "", 2**62, bytes(STDOUT_MAX), bytes(STDOUT_MAX)),
    Failed("disk full"),
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_a_report_comes_back_from_its_frame(report: Report) -> None:
    frame = encode_report(report)
    assert frame_length(frame[:HEADER]) == len(frame) - HEADER
    assert decode_report(frame[HEADER:]) == report


def test_a_run_comes_back_from_its_frame() -> None:
    named = (("a", "/a"), ("b", "/b"))
    run = RunJob(b"job", "/module", named, "/scratch", "/cache", 250, is_moved=True)
    assert decode_run(encode_run(run)[HEADER:]) == run


def test_a_word_comes_back_from_its_frame() -> None:
    for word in (Hold(), Go(), Withdraw()):
        assert decode_word(encode_word(word)[HEADER:]) == word
    with pytest.raises(PeerError):
        decode_word(encode_report(Ready())[HEADER:])


def test_a_detail_is_cut() -> None:
    report = decode_report(encode_report(Failed("x" * 10_000))[HEADER:])
    assert report == Failed("x" * DETAIL_MAX)


def test_a_frame_beyond_its_size_is_refused_by_its_header() -> None:
    assert frame_length(FRAME_MAX.to_bytes(HEADER, "big")) == FRAME_MAX
    with pytest.raises(PeerError):
        frame_length((FRAME_MAX + 1).to_bytes(HEADER, "big"))


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        ["ready", 1],
        ["unknown"],
        ["progress", -1, 0],
        ["progress", 1],
        ["progress", "1", 0],
        ["done", "won", 0, "", 1, b"", b""],
        ["done", "exited", -1, "", 1, b"", b""],
        ["done", "exited", 1 << 32, "", 1, b"", b""],
        ["done", "exited", 0, "", -1, b"", b""],
        ["done", "exited", 0, "", 1, "", b""],
        ["done", "exited", 0, "", 1, bytes(STDOUT_MAX + 1), b""],
        ["failed", b"x"],
        ["started"],
        ["started", 1],
        ["unmoved", 1],
        ["still", "head", []],
        ["still", b"", 1],
        ["still", b"", [1, 1]],
        ["still", b"", [2, 1]],
        ["still", b"", [-1]],
        ["still", b"", [True]],
        ["still", b"", [REGIONS_MAX]],
        ["still", bytes(HEAD_MAX + 1), []],
        ["run", b"", "", [], "", "", "", 0],
        {"a": 1},
    ],
)
def test_what_no_worker_says_is_refused(value: object) -> None:
    with pytest.raises(PeerError):
        decode_report(msgpack.packb(value))


@given(st.binary(max_size=100))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_report_or_the_peers_error(data: bytes) -> None:
    with pytest.raises(PeerError):
        decode_report(data)


def test_a_damaged_report_is_another_or_the_peers_error() -> None:
    chance = random.Random(5)
    whole = encode_report(REPORTS[6])[HEADER:]
    refused = 0
    for _ in range(2000):
        data = bytearray(whole)
        data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            decode_report(bytes(data))
        except PeerError:
            refused += 1
    assert 0 < refused < 2000
