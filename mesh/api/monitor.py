"""The monitor's WebSocket: what happens on this node, as JSON, to whoever looks on.

One follower of the door feeds all viewers. Each viewer has a bounded queue; what does not fit is
counted and told as a gap. A viewer that takes nothing for a while is cut, and nobody else notices.
The frames are described in README.md.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import trio
from attrs import frozen
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from trio_websocket import (
    ConnectionClosed,
    HandshakeError,
    WebSocketConnection,
    WebSocketRequest,
    wrap_server_stream,
)
from wsproto.utilities import ProtocolError

from mesh.api import convert
from mesh.api.door import Door, Numbered
from mesh.api.listen import check_loopback, port_error
from mesh.ids import format_peer
from mesh.notices import Answered, Awarded

HOST_KEY = "network.grpc_host"
PORT_KEY = "network.websocket_port"
SUBPROTOCOL = "mesh.v1.json"
VERSION = 1
SNAPSHOT_MAX = 200
"""Tasks, and peers, in a snapshot; the newest tasks win."""
IGNORED_MAX = 100
"""Messages that mean nothing to us, from one viewer."""


@frozen
class MonitorLimits:
    """What viewers may use."""

    viewers: int = 64
    queue: int = 256
    """Frames that wait for one viewer."""
    message: int = 1024
    """Bytes of a message from a viewer."""
    handshake_s: float = 10.0
    stall_s: float = 10.0
    """How long a viewer may take not one frame."""


DEFAULT_LIMITS = MonitorLimits()


class Viewer:
    """One who looks on: the frames that wait for it, and how many did not fit."""

    def __init__(self, queue_max: int) -> None:
        self.missed = 0
        self.owes_pong = False
        self._frames: deque[str] = deque()
        self._queue_max = queue_max
        self._wake = trio.Event()

    def push(self, frame: str) -> None:
        """Queue *frame*; the oldest one makes room."""
        if len(self._frames) >= self._queue_max:
            self._frames.popleft()
            self.missed += 1
        self._frames.append(frame)
        self._wake.set()

    def miss(self, notices: int) -> None:
        """So many never came this far."""
        self.missed += notices
        self._wake.set()

    def ask_pong(self) -> None:
        """Answer a ping; several at once get one answer."""
        self.owes_pong = True
        self._wake.set()

    async def next_frame(self) -> str:
        """The next thing to say."""
        while not (self._frames or self.missed or self.owes_pong):
            self._wake = trio.Event()
            await self._wake.wait()
        if self.owes_pong:
            self.owes_pong = False
            return _frame("pong")
        if self.missed:
            missed, self.missed = self.missed, 0
            return _frame("gap", missed=missed)
        return self._frames.popleft()


class Monitor:
    """See `open_monitor`."""

    def __init__(self, door: Door, limits: MonitorLimits) -> None:
        self.port = 0
        self._door = door
        self._limits = limits
        self._tier = door.status().tier  # it does not change while a node runs
        self._seq = 0
        self._viewers: list[Viewer] = []
        self._connections = 0
        self._tally: Counter[str] = Counter()

    def statistics(self) -> dict[str, int]:
        """Counters by name."""
        return {"viewers": len(self._viewers), **self._tally}

    async def follow(self, notices: trio.MemoryReceiveChannel[Numbered]) -> None:
        """Tell every viewer every notice, until the node stops."""
        async for numbered in notices:
            missed = max(0, numbered.seq - self._seq - 1) if self._seq else 0
            self._seq = numbered.seq
            if not self._viewers:
                continue
            frame = _event(numbered, self._tier)
            for viewer in self._viewers:
                if missed:
                    viewer.miss(missed)
                viewer.push(frame)

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection, from the handshake to the end."""
        self._connections += 1
        try:
            if self._connections > 2 * self._limits.viewers:
                self._tally["connections_refused"] += 1
                return
            await self._talk(stream)
        except* (ConnectionClosed, HandshakeError, ProtocolError):
            self._tally["connections_broken"] += 1
        finally:
            self._connections -= 1
            await trio.aclose_forcefully(stream)

    async def _talk(self, stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            socket: WebSocketConnection | None = None
            with trio.move_on_after(self._limits.handshake_s):
                request = await wrap_server_stream(
                    nursery, stream, message_queue_size=1, max_message_size=self._limits.message
                )
                socket = await self._answer(request)
            if socket is not None:
                await self._entertain(socket)
            nursery.cancel_scope.cancel()

    async def _answer(self, request: WebSocketRequest) -> WebSocketConnection | None:
        """The connection; None when it was refused."""
        status, why = 0, ""
        if not _is_own_page(request.headers):
            status, why = 403, "this page may not look on"
        elif SUBPROTOCOL not in request.proposed_subprotocols:
            status, why = 400, f"the subprotocol is {SUBPROTOCOL}"
        elif len(self._viewers) >= self._limits.viewers:
            status, why = 503, f"{self._limits.viewers} viewers are the most"
        if not status:
            return await request.accept(subprotocol=SUBPROTOCOL)
        self._tally["viewers_refused"] += 1
        await request.reject(status, body=why.encode())
        return None

    async def _entertain(self, socket: WebSocketConnection) -> None:
        viewer = Viewer(self._limits.queue)
        self._viewers.append(viewer)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, socket, viewer, nursery.cancel_scope)
                await self._speak(socket, viewer)
                nursery.cancel_scope.cancel()
        finally:
            self._viewers.remove(viewer)
            self._tally["frames_dropped"] += viewer.missed

    async def _speak(self, socket: WebSocketConnection, viewer: Viewer) -> None:
        """Hello, snapshot and then what happens. Returns when the viewer stands still."""
        peer = format_peer(self._door.status().peer)
        frame = _frame("hello", version=VERSION, peer=peer, seq=self._seq, tier=self._tier)
        snapshot: str | None = self._snapshot()
        while True:
            with trio.move_on_after(self._limits.stall_s) as sending:
                await socket.send_message(frame)
            if sending.cancelled_caught:
                self._tally["viewers_cut"] += 1
                return
            if snapshot is not None:
                frame, snapshot = snapshot, None
            else:
                frame = await viewer.next_frame()

    async def _listen(
        self, socket: WebSocketConnection, viewer: Viewer, scope: trio.CancelScope
    ) -> None:
        """Answer pings, ignore the rest, and notice when the viewer leaves."""
        ignored = 0
        while ignored < IGNORED_MAX:
            try:
                message = await socket.get_message()
            except ConnectionClosed:
                break
            if message == "ping":
                viewer.ask_pong()
            else:
                ignored += 1
                self._tally["messages_ignored"] += 1
        scope.cancel()

    def _snapshot(self) -> str:
        tasks, peers = self._door.tasks(), self._door.peers()
        return _frame(
            "snapshot",
            node=_plain(convert.status(self._door.status())),
            peers=[_plain(convert.peer(view)) for view in peers[:SNAPSHOT_MAX]],
            tasks=[
                _plain(convert.task(record, with_answers=False)) for record in tasks[-SNAPSHOT_MAX:]
            ],
            left_out={"peers": _over(peers), "tasks": _over(tasks)},
        )


@asynccontextmanager
async def open_monitor(
    door: Door, *, host: str = "127.0.0.1", port: int = 9001, limits: MonitorLimits = DEFAULT_LIMITS
) -> AsyncIterator[Monitor]:
    """Show *door* to viewers at *host* (loopback only) and *port* (0 for any).

    Raises ConfigError.
    """
    host = check_loopback(host, HOST_KEY)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise port_error(port, PORT_KEY, error) from None
    monitor = Monitor(door, limits)
    monitor.port = listeners[0].socket.getsockname()[1]
    async with door.follow(None) as notices, trio.open_nursery() as nursery:
        nursery.start_soon(monitor.follow, notices)
        nursery.start_soon(trio.serve_listeners, monitor.serve, listeners)
        yield monitor
        nursery.cancel_scope.cancel()


def _is_own_page(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether the page that opens the socket is one of this machine's, or no page does.

    A browser lets any page open a socket to any host and says in Origin which one it was
    (RFC 6455, section 10.2).
    """
    for name, value in headers:
        if name.lower() == b"origin":
            try:
                origin = urlsplit(value.decode("ascii"))
                host = origin.hostname
            except ValueError:
                return False
            if origin.scheme not in ("http", "https") or host not in ("localhost", "127.0.0.1"):
                return False
    return True


def _event(numbered: Numbered, tier: str) -> str:
    """A notice; where it speaks of money, with what bounds an overspend."""
    notice = _plain(convert.notice(numbered))
    del notice["seq"]
    if isinstance(numbered.notice, Answered | Awarded):
        return _frame("event", seq=numbered.seq, notice=notice, tier=tier)
    return _frame("event", seq=numbered.seq, notice=notice)


def _plain(message: Message) -> dict[str, object]:
    """The JSON mapping of protobuf, with the names of the .proto files."""
    plain: dict[str, object] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return plain


def _frame(kind: str, **fields: object) -> str:
    return json.dumps({"kind": kind, **fields}, separators=(",", ":"))


def _over(items: Sequence[object]) -> int:
    return max(0, len(items) - SNAPSHOT_MAX)
