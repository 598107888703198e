"""Frames: cut anywhere, put together again; never more than the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import PeerError
from mesh.network.framing import FrameReader, frame


@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(1, 97))
def test_frames_survive_any_cut(payloads: list[bytes], step: int) -> None:
    wire = b"".join(map(frame, payloads))
    reader, seen = FrameReader(300), []
    for start in range(0, len(wire), step):
        seen += reader.feed(wire[start : start + step])
    assert seen == payloads
    assert reader.is_between_frames


@given(st.binary(max_size=2000), st.integers(1, 97))
def test_any_bytes_give_frames_or_a_peer_error(data: bytes, step: int) -> None:
    reader = FrameReader(500)
    try:
        for start in range(0, len(data), step):
            assert all(len(f) <= 500 for f in reader.feed(data[start : start + step]))
    except PeerError:
        pass


def test_a_frame_over_the_limit_is_refused_by_its_length_alone() -> None:
    with pytest.raises(PeerError):
        FrameReader(10).feed((11).to_bytes(4, "big"))


def test_a_half_frame_is_known_to_be_one() -> None:
    reader = FrameReader(10)
    assert reader.feed(frame(b"abc")[:5]) == []
    assert not reader.is_between_frames
    assert reader.feed(frame(b"abc")[5:] + frame(b"")) == [b"abc", b""]
    assert reader.is_between_frames
