"""The message path between kernels: one long-lived outgoing stream to each peer, frames one way.

`send_nowait` never waits: it puts a frame into the peer's bounded outbox, whose own task dials,
opens the stream and writes. So a slow or dead peer stalls nobody else. A frame may be lost (the
peer is gone, the outbox full) or repeated (the stream broke while it was written), never reordered
within one stream.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable

import trio
from attrs import define, field, frozen
from libp2p.abc import IHost, INetStream
from libp2p.exceptions import BaseLibp2pError

from mesh.errors import PeerError, Unavailable
from mesh.ids import PeerId
from mesh.network.framing import FrameReader, frame
from mesh.network.guard import Guard
from mesh.network.hardening import end_stream, open_stream
from mesh.network.host import from_libp2p, to_libp2p

PROTOCOL = "/mesh/1/messages"
MAX_FRAME = 64 * 1024
READ_SIZE = 64 * 1024
INBOX = 256
"""Frames read and not yet handed over; the readers wait while it is full."""

LIBP2P_ERRORS = (BaseLibp2pError, trio.BrokenResourceError, trio.ClosedResourceError, OSError)
"""What a stream that breaks raises."""


@frozen
class OutboxConfig:
    """Bounds of one outbox and of the table of outboxes; times in seconds."""

    frames: int = 512
    bytes: int = 2 * 1024 * 1024
    peers: int = 512
    open_s: float = 10.0
    write_s: float = 10.0
    idle_s: float = 120.0
    backoff_s: float = 0.2
    backoff_max_s: float = 10.0
    attempts: int = 3
    """Failures in a row (dial, open or write) after which what waits is given up, each time."""


@define(eq=False)
class _Outbox:
    frames: deque[bytes] = field(factory=deque)
    bytes: int = 0
    wanted: trio.Event = field(factory=trio.Event)
    is_idle: bool = False


@define(eq=False)
class Postman:
    """Sends and receives frames. `reach` connects to a peer: it raises Unavailable."""

    host: IHost
    reach: Callable[[PeerId], Awaitable[None]]
    on_frame: Callable[[PeerId, bytes], None]
    guard: Guard
    punish: Callable[[PeerId, str], None]
    rng: random.Random
    tally: Counter[str]
    nursery: trio.Nursery
    config: OutboxConfig = field(factory=OutboxConfig)
    _outboxes: OrderedDict[PeerId, _Outbox] = field(factory=OrderedDict, init=False)
    _inbound: dict[PeerId, INetStream] = field(factory=dict, init=False)
    _inbox: trio.MemorySendChannel[tuple[PeerId, bytes]] = field(init=False)
    _outlet: trio.MemoryReceiveChannel[tuple[PeerId, bytes]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._inbox, self._outlet = trio.open_memory_channel(INBOX)

    def send_nowait(self, peer: PeerId, payload: bytes) -> bool:
        """Queue *payload* for *peer*; False (and counted) when it was dropped."""
        assert len(payload) <= MAX_FRAME, "a frame over the protocol's limit"
        box = self._outboxes.get(peer) or self._open_outbox(peer)
        if (
            box is None
            or len(box.frames) >= self.config.frames
            or box.bytes + len(payload) > self.config.bytes
        ):
            self.tally["frames_dropped"] += 1
            return False
        self._outboxes.move_to_end(peer)
        box.frames.append(payload)
        box.bytes += len(payload)
        box.wanted.set()
        return True

    def waiting(self, peer: PeerId) -> int:
        """Frames in the outbox of *peer*."""
        box = self._outboxes.get(peer)
        return len(box.frames) if box else 0

    def __len__(self) -> int:
        return len(self._outboxes)

    # --- out ----------------------------------------------------------------------------------

    def _open_outbox(self, peer: PeerId) -> _Outbox | None:
        if len(self._outboxes) >= self.config.peers:
            idle = next((p for p, box in self._outboxes.items() if box.is_idle), None)
            if idle is None:
                return None
            self._outboxes.pop(idle).wanted.set()
            self.tally["outboxes_evicted"] += 1
        box = self._outboxes[peer] = _Outbox()
        self.nursery.start_soon(self._deliver, peer, box)
        return box

    async def _deliver(self, peer: PeerId, box: _Outbox) -> None:
        stream: INetStream | None = None
        failures = 0
        try:
            while await self._something_to_send(peer, box):
                if stream is None:
                    stream = await self._open(peer)
                if stream is not None and await self._write(stream, box):
                    failures = 0
                    continue
                if stream is not None:
                    await end_stream(stream, self.tally, clean=False)
                    stream = None
                failures += 1
                if failures >= self.config.attempts:
                    self._give_up(box)
                await self._back_off(failures)
        finally:
            if self._outboxes.get(peer) is box:
                del self._outboxes[peer]
            if stream is not None:
                await end_stream(stream, self.tally, clean=True)

    async def _something_to_send(self, peer: PeerId, box: _Outbox) -> bool:
        if box.frames:
            return True
        box.wanted = trio.Event()
        box.is_idle = True
        with trio.move_on_after(self.config.idle_s):
            await box.wanted.wait()
        box.is_idle = False
        return bool(box.frames) and self._outboxes.get(peer) is box

    async def _open(self, peer: PeerId) -> INetStream | None:
        try:
            with trio.fail_after(self.config.open_s):
                await self.reach(peer)
            return await open_stream(
                self.host, to_libp2p(peer), PROTOCOL, within_s=self.config.open_s
            )
        except (Unavailable, trio.TooSlowError, *LIBP2P_ERRORS):
            self.tally["streams_failed"] += 1
            return None

    async def _back_off(self, failures: int) -> None:
        pause = min(self.config.backoff_s * 2.0 ** (failures - 1), self.config.backoff_max_s)
        await trio.sleep(pause * self.rng.uniform(0.5, 1.0))

    def _give_up(self, box: _Outbox) -> None:
        self.tally["frames_lost"] += len(box.frames)
        box.frames.clear()
        box.bytes = 0

    async def _write(self, stream: INetStream, box: _Outbox) -> bool:
        """Write what fits one packet; what was not surely written stays for the next stream."""
        batch: list[bytes] = []
        size = 0
        for payload in box.frames:
            if batch and size + len(payload) > MAX_FRAME:
                break
            batch.append(frame(payload))
            size += len(payload)
        try:
            with trio.fail_after(self.config.write_s):
                await stream.write(b"".join(batch))
        except (trio.TooSlowError, *LIBP2P_ERRORS):
            self.tally["writes_failed"] += 1
            return False
        for _ in batch:
            box.bytes -= len(box.frames.popleft())
        self.tally["frames_sent"] += len(batch)
        return True

    # --- in -----------------------------------------------------------------------------------

    async def hand_over(self) -> None:
        """Call `on_frame` for all that arrives, one at a time; it may raise PeerError, no more.

        A task of its own, outside libp2p's: a broken invariant behind `on_frame` must end the node,
        not pass for one more bad stream.
        """
        async for peer, payload in self._outlet:
            try:
                self.on_frame(peer, payload)
            except PeerError as error:
                self.punish(peer, str(error))

    async def receive(self, stream: INetStream) -> None:
        """Stream handler: the newest stream of a peer replaces the one before."""
        peer = from_libp2p(stream.muxed_conn.peer_id)
        older = self._inbound.get(peer)
        self._inbound[peer] = stream
        if older is not None:
            self.tally["streams_replaced"] += 1
            await end_stream(older, self.tally, clean=False)
        try:
            await self._read_frames(peer, stream)
        except PeerError as error:
            self.punish(peer, str(error))
        except (trio.TooSlowError, *LIBP2P_ERRORS):
            self.tally["streams_ended"] += 1
        finally:
            if self._inbound.get(peer) is stream:
                del self._inbound[peer]
            await end_stream(stream, self.tally, clean=False)

    async def _read_frames(self, peer: PeerId, stream: INetStream) -> None:
        reader = FrameReader(MAX_FRAME)
        while True:
            patience = float("inf") if reader.is_between_frames else self.config.write_s
            with trio.fail_after(patience):
                data = await stream.read(READ_SIZE)
            for payload in reader.feed(data):
                now = trio.current_time()
                if self.guard.is_banned(peer, now):
                    self.tally["frames_refused"] += 1
                    return
                self.tally["frames_received"] += 1
                await self._inbox.send((peer, payload))
                pause = self.guard.delay(peer, len(payload), now)
                if pause:
                    self.tally["frames_slowed"] += 1
                    await trio.sleep(pause)
