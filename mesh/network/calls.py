"""Calls: streams on which two peers talk both ways, for as long as both keep talking.

A call is bounded: so many inbound in all and one for each peer, seconds of silence, seconds in
all, and bytes as the guard has it: who sends faster is read slower. It always ends: closed when
both have said what they had to say, reset otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import trio
from attrs import define, field, frozen
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF

from mesh.errors import MeshError, PeerError, Unavailable
from mesh.ids import PeerId, short_peer
from mesh.network.guard import Guard
from mesh.network.hardening import end_stream, open_stream
from mesh.network.host import from_libp2p, to_libp2p
from mesh.network.streams import LIBP2P_ERRORS, READ_SIZE


@frozen
class CallConfig:
    """Bounds; times in seconds."""

    inbound: int = 8
    inbound_per_peer: int = 1
    cpu_ms: float = 20.0
    """Of our processor that each is charged for, as a rule: ten calls a second of one peer."""
    open_s: float = 10.0
    silence_s: float = 20.0
    """How long one waits for the other to say something, or to hear it."""
    length_s: float = 120.0
    """The longest call that is answered."""


@frozen(eq=False)
class Call:
    """One end of a call. Every method raises Unavailable where the call breaks or falls silent."""

    peer: PeerId
    _stream: INetStream
    _guard: Guard
    _silence_s: float

    async def send_all(self, data: bytes) -> None:
        """Send all of *data*."""
        with _patience(self.peer, self._silence_s):
            await self._stream.write(data)

    async def receive_some(self, max_bytes: int) -> bytes:
        """At least one byte and at most *max_bytes*; none at the end."""
        with _patience(self.peer, self._silence_s):
            try:
                data = await self._stream.read(min(max_bytes, READ_SIZE))
            except StreamEOF:
                return b""
        await trio.sleep(self._guard.delay(self.peer, len(data), trio.current_time()))
        return data


Answer = Callable[[Call], Awaitable[None]]
"""Talks until it has no more to say. A PeerError counts against the peer."""


@define(eq=False)
class Calls:
    """Calls peers, and answers them by *answers* (protocol -> answer)."""

    host: IHost
    reach: Callable[[PeerId], Awaitable[None]]
    answers: Mapping[str, Answer]
    guard: Guard
    punish: Callable[[PeerId, str], None]
    tally: Counter[str]
    config: CallConfig = field(factory=CallConfig)
    _answering: Counter[PeerId] = field(factory=Counter, init=False)

    def register(self) -> None:
        """Make the host answer each protocol."""
        for protocol, answer in self.answers.items():
            self.host.set_stream_handler(TProtocol(protocol), self._answerer(answer))

    def is_answering(self, peer: PeerId) -> bool:
        """Whether a call of *peer* is under way."""
        return self._answering[peer] > 0

    @asynccontextmanager
    async def call(self, peer: PeerId, protocol: str) -> AsyncIterator[Call]:
        """A call to *peer* that ends with the block. Raises Unavailable."""
        stream = await self._open(peer, protocol)
        is_done = False
        try:
            yield Call(peer, stream, self.guard, self.config.silence_s)
            is_done = True
        finally:
            self.tally["calls_made" if is_done else "calls_broken"] += 1
            await end_stream(stream, self.tally, clean=is_done)

    async def _open(self, peer: PeerId, protocol: str) -> INetStream:
        if self.guard.is_banned(peer, trio.current_time()):
            raise Unavailable(f"{short_peer(peer)} is banned")
        within_s = self.config.open_s
        with _patience(peer, 2 * within_s):
            await self.reach(peer)
            return await open_stream(self.host, to_libp2p(peer), protocol, within_s=within_s)

    def _answerer(self, answer: Answer) -> Callable[[INetStream], Awaitable[None]]:
        async def pick_up(stream: INetStream) -> None:
            peer = from_libp2p(stream.muxed_conn.peer_id)
            if self._is_refused(peer):
                self.tally["calls_refused"] += 1
                await end_stream(stream, self.tally, clean=False)
                return
            self._answering[peer] += 1
            try:
                await self._talk(Call(peer, stream, self.guard, self.config.silence_s), answer)
            finally:
                self._answering[peer] -= 1
                if not self._answering[peer]:
                    del self._answering[peer]

        return pick_up

    def _is_refused(self, peer: PeerId) -> bool:
        config = self.config
        return (
            self.guard.is_banned(peer, trio.current_time())
            or self._answering.total() >= config.inbound
            or self._answering[peer] >= config.inbound_per_peer
            or not self.guard.admits_work(peer, config.cpu_ms, trio.current_time())
        )

    async def _talk(self, call: Call, answer: Answer) -> None:
        is_done = False
        try:
            with trio.fail_after(self.config.length_s):
                await answer(call)
            is_done = True
            self.tally["calls_answered"] += 1
        except PeerError as error:
            self.punish(call.peer, str(error))
        except (trio.TooSlowError, MeshError):
            self.tally["calls_failed"] += 1
        finally:
            await end_stream(call._stream, self.tally, clean=is_done)


@contextmanager
def _patience(peer: PeerId, seconds: float) -> Iterator[None]:
    """Raises Unavailable for what libp2p raises, and for silence."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise Unavailable(f"{short_peer(peer)} fell silent for {seconds:g} s") from None
    except LIBP2P_ERRORS as error:
        raise Unavailable(f"{short_peer(peer)}: {type(error).__name__}") from None
