"""Frames on a stream: four bytes of length, big-endian, then that many bytes."""

from __future__ import annotations

from attrs import define, field

from mesh.errors import PeerError

HEADER = 4


def frame(payload: bytes) -> bytes:
    """*payload* with its length before it."""
    return len(payload).to_bytes(HEADER, "big") + payload


@define
class FrameReader:
    """Turns bytes as they come into frames of at most *limit* bytes."""

    limit: int
    _buffer: bytearray = field(factory=bytearray, init=False)

    @property
    def is_between_frames(self) -> bool:
        """No frame is half read."""
        return not self._buffer

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that *data* completes. Raises PeerError for a frame over the limit."""
        self._buffer += data
        frames: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= HEADER:
            size = int.from_bytes(self._buffer[start : start + HEADER], "big")
            if size > self.limit:
                raise PeerError(f"a frame of {size} bytes, {self.limit} allowed")
            if len(self._buffer) - start - HEADER < size:
                break
            start += HEADER
            frames.append(bytes(self._buffer[start : start + size]))
            start += size
        del self._buffer[:start]
        return frames
