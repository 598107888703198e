"""Requests with an answer: one stream each, at most 1 MiB either way.

A request is one frame; the answer is one frame that begins with a byte of status. Own frames
rather than libp2p's RequestResponse because that leaks its stream when the caller is cancelled, and
puts no bound on one peer's share of the inbound slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from weakref import WeakValueDictionary

import trio
from attrs import define, field, frozen
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF

from mesh.errors import MeshError, PeerError, Unavailable
from mesh.ids import PeerId, short_peer
from mesh.network.framing import FrameReader, frame
from mesh.network.guard import Guard
from mesh.network.hardening import end_stream, open_stream
from mesh.network.host import from_libp2p, to_libp2p
from mesh.network.streams import LIBP2P_ERRORS, READ_SIZE

MAX_PAYLOAD = 1024 * 1024
OK = b"\x00"
REFUSED = b"\x01"
"""The frame after it says why, in UTF-8."""

Handler = Callable[[PeerId, bytes], Awaitable[bytes]]


@frozen
class RequestConfig:
    """Bounds; times in seconds, on the answering side."""

    outbound_per_peer: int = 12
    inbound: int = 128
    inbound_per_peer: int = 16
    read_s: float = 10.0
    handle_s: float = 30.0
    write_s: float = 10.0


@define(eq=False)
class Requests:
    """Asks peers, and answers them by *handlers* (protocol -> handler)."""

    host: IHost
    reach: Callable[[PeerId], Awaitable[None]]
    handlers: Mapping[str, Handler]
    guard: Guard
    punish: Callable[[PeerId, str], None]
    tally: Counter[str]
    config: RequestConfig = field(factory=RequestConfig)
    _serving: Counter[PeerId] = field(factory=Counter, init=False)
    _asking: WeakValueDictionary[PeerId, trio.Semaphore] = field(
        factory=WeakValueDictionary, init=False
    )

    def register(self) -> None:
        """Make the host answer each protocol."""
        for protocol, handler in self.handlers.items():
            self.host.set_stream_handler(TProtocol(protocol), self._answerer(handler))

    async def request(self, peer: PeerId, protocol: str, payload: bytes, timeout_s: float) -> bytes:
        """The peer's answer. Raises Unavailable (not reached, too slow, refused) or PeerError.

        At most `outbound_per_peer` go to one peer at a time; the others wait, within *timeout_s*.
        """
        assert len(payload) <= MAX_PAYLOAD, "a request over the protocol's limit"
        turn = self._asking.get(peer) or trio.Semaphore(self.config.outbound_per_peer)
        self._asking[peer] = turn  # lives as long as somebody holds it
        try:
            with trio.fail_after(timeout_s):
                async with turn:
                    answer = await self._ask(peer, protocol, payload, timeout_s)
        except trio.TooSlowError:
            raise Unavailable(f"{short_peer(peer)} did not answer in {timeout_s:g} s") from None
        return _open_answer(peer, answer)

    async def _ask(self, peer: PeerId, protocol: str, payload: bytes, timeout_s: float) -> bytes:
        stream: INetStream | None = None
        answered = False
        try:
            await self.reach(peer)
            stream = await open_stream(self.host, to_libp2p(peer), protocol, within_s=timeout_s)
            await stream.write(frame(payload))
            answer = await _read_frame(stream, MAX_PAYLOAD + 1)
            answered = True
        except LIBP2P_ERRORS as error:
            raise Unavailable(f"{short_peer(peer)}: {type(error).__name__}") from None
        finally:
            if stream is not None:
                await end_stream(stream, self.tally, clean=answered)
        return answer

    def _answerer(self, handler: Handler) -> Callable[[INetStream], Awaitable[None]]:
        async def answer(stream: INetStream) -> None:
            peer = from_libp2p(stream.muxed_conn.peer_id)
            config = self.config
            if (
                self.guard.is_banned(peer, trio.current_time())
                or self._serving.total() >= config.inbound
                or self._serving[peer] >= config.inbound_per_peer
            ):
                self.tally["requests_refused"] += 1
                await end_stream(stream, self.tally, clean=False)
                return
            self._serving[peer] += 1
            try:
                await self._serve(peer, stream, handler)
            finally:
                self._serving[peer] -= 1
                if not self._serving[peer]:
                    del self._serving[peer]

        return answer

    async def _serve(self, peer: PeerId, stream: INetStream, handler: Handler) -> None:
        try:
            with trio.fail_after(self.config.read_s):
                payload = await _read_frame(stream, MAX_PAYLOAD)
            await trio.sleep(self.guard.delay(peer, len(payload), trio.current_time()))
            answer = await self._handle(peer, payload, handler)
            self.guard.delay(peer, len(answer), trio.current_time())
            with trio.fail_after(self.config.write_s):
                await stream.write(frame(answer))
                await stream.close()
                await _read_to_end(stream)
            self.tally["requests_answered"] += 1
        except PeerError as error:
            self.punish(peer, str(error))
        except (trio.TooSlowError, *LIBP2P_ERRORS):
            self.tally["requests_failed"] += 1
        finally:
            await end_stream(stream, self.tally, clean=False)

    async def _handle(self, peer: PeerId, payload: bytes, handler: Handler) -> bytes:
        try:
            with trio.fail_after(self.config.handle_s):
                body = await handler(peer, payload)
        except PeerError:
            raise
        except MeshError as error:
            return REFUSED + str(error).encode()[:1024]
        assert len(body) <= MAX_PAYLOAD, "an answer over the protocol's limit"
        return OK + body


async def _read_frame(stream: INetStream, limit: int) -> bytes:
    """One frame and nothing after it. Raises PeerError."""
    reader = FrameReader(limit)
    while True:
        try:
            data = await stream.read(READ_SIZE)
        except StreamEOF:
            raise PeerError("the stream ended before its frame") from None
        frames = reader.feed(data)
        if frames:
            if len(frames) > 1 or not reader.is_between_frames:
                raise PeerError("bytes after the only frame")
            return frames[0]


async def _read_to_end(stream: INetStream) -> None:
    """Wait for the other end to close: only then yamux forgets the stream. Raises PeerError."""
    try:
        data = await stream.read(READ_SIZE)
    except StreamEOF:
        return
    if data:
        raise PeerError("bytes after the only frame")


def _open_answer(peer: PeerId, answer: bytes) -> bytes:
    if answer[:1] == OK:
        return answer[1:]
    if answer[:1] == REFUSED:
        raise Unavailable(f"{short_peer(peer)}: {answer[1:].decode(errors='replace')}")
    raise PeerError(f"an answer of unknown status {answer[:1].hex()}")
