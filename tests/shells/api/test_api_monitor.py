"""The monitor's WebSocket with real clients: what they hear, and who is cut or refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from api_door import ANSWER, ENTRY, OTHER, OWN, TASK, MemoryDoor, moved, record
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    WebSocketConnection,
    wrap_client_stream,
)

from mesh.api.monitor import IGNORED_MAX, Monitor, MonitorLimits, open_monitor
from mesh.errors import ConfigError
from mesh.ids import format_peer, format_task, task_id
from mesh.market.order import State
from mesh.notices import Answered, Awarded, OfferAged


@asynccontextmanager
async def looking_on(
    monitor: Monitor, origin: str | None = None, subprotocol: str = "mesh.v1.json"
) -> AsyncIterator[WebSocketConnection]:
    headers = [] if origin is None else [(b"Origin", origin.encode())]
    async with (
        await trio.open_tcp_stream("127.0.0.1", monitor.port) as stream,
        trio.open_nursery() as nursery,
    ):
        yield await wrap_client_stream(
            nursery, stream, "127.0.0.1", "/", subprotocols=[subprotocol], extra_headers=headers
        )
        nursery.cancel_scope.cancel()


async def refusal(
    monitor: Monitor, origin: str | None = None, subprotocol: str = "mesh.v1.json"
) -> ConnectionRejected:
    with pytest.raises(ExceptionGroup) as caught:
        async with looking_on(monitor, origin, subprotocol):
            pass
    (error,) = caught.value.exceptions
    assert isinstance(error, ConnectionRejected)
    return error


async def drain(socket: WebSocketConnection) -> None:
    """Read until the connection closes."""
    while True:
        await socket.get_message()


async def hear(socket: WebSocketConnection) -> dict[str, Any]:
    frame: dict[str, Any] = json.loads(await socket.get_message())
    return frame


async def greet(socket: WebSocketConnection) -> tuple[dict[str, Any], dict[str, Any]]:
    return await hear(socket), await hear(socket)


async def test_hello_comes_first_and_then_a_snapshot() -> None:
    door = MemoryDoor()
    door.records[TASK] = record()
    async with open_monitor(door, port=0) as monitor:
        door.tell(OfferAged(OTHER))
        await trio.testing.wait_all_tasks_blocked()
        async with looking_on(monitor) as socket:
            hello, snapshot = await greet(socket)
    assert hello == {
        "kind": "hello",
        "version": 1,
        "peer": format_peer(OWN),
        "seq": 1,
        "tier": "T0: trust",
    }
    assert snapshot["kind"] == "snapshot"
    assert snapshot["node"]["counters"] == {"frames_dropped": "7"}
    assert snapshot["peers"][0]["offer"]["price"] == "700"
    assert snapshot["tasks"][0]["task_id"] == format_task(TASK)
    assert snapshot["tasks"][0]["state"] == "TASK_STATE_WAITING"
    assert snapshot["left_out"] == {"peers": 0, "tasks": 0}


async def test_a_snapshot_has_the_newest_tasks_and_says_what_it_left_out() -> None:
    door = MemoryDoor()
    for number in range(230):
        task = task_id(OWN, bytes([number]))
        door.records[task] = record(task)
    async with open_monitor(door, port=0) as monitor, looking_on(monitor) as socket:
        _, snapshot = await greet(socket)
    assert [task["task_id"] for task in snapshot["tasks"]] == [
        format_task(task) for task in list(door.records)[30:]
    ]
    assert snapshot["left_out"]["tasks"] == 30


async def test_events_arrive_in_order_at_every_viewer() -> None:
    door = MemoryDoor()
    async with (
        open_monitor(door, port=0) as monitor,
        looking_on(monitor) as one,
        looking_on(monitor, "http://localhost:9002") as other,
    ):
        await greet(one)
        await greet(other)
        for number in range(100):
            door.tell(moved(TASK, State.RUNNING, str(number)))
        for socket in (one, other):
            heard = [await hear(socket) for _ in range(100)]
            assert [frame["seq"] for frame in heard] == list(range(1, 101))
            assert [frame["notice"]["moved"]["reason"] for frame in heard] == [
                str(number) for number in range(100)
            ]
        assert monitor.statistics()["viewers"] == 2


async def test_a_notice_that_names_a_price_comes_with_the_tier() -> None:
    door = MemoryDoor()
    async with open_monitor(door, port=0) as monitor, looking_on(monitor) as socket:
        await greet(socket)
        door.tell(Answered(TASK, ANSWER))
        door.tell(Awarded(TASK, 1, OTHER, 90, "cheapest on time", ENTRY))
        door.tell(OfferAged(OTHER))
        heard = [await hear(socket) for _ in range(3)]
    assert [frame.get("tier") for frame in heard] == ["T0: trust", "T0: trust", None]


async def test_what_the_node_itself_missed_is_told_as_a_gap() -> None:
    door = MemoryDoor()
    async with open_monitor(door, port=0) as monitor, looking_on(monitor) as socket:
        await greet(socket)
        door.tell(OfferAged(OTHER))
        assert (await hear(socket))["seq"] == 1
        for _ in range(300):  # more than the door's channel holds
            door.tell(OfferAged(OTHER))
        await trio.testing.wait_all_tasks_blocked()
        door.tell(OfferAged(OTHER))
        gap, seq = 0, 1
        while seq < 302:
            frame = await hear(socket)
            if frame["kind"] == "gap":
                gap += frame["missed"]
            else:
                seq = frame["seq"]
        assert gap > 0


async def stand_still(door: MemoryDoor, reader: WebSocketConnection) -> None:
    """So much happens that a viewer which does not read has its queue and its socket full."""
    for _ in range(400):
        door.tell(moved(TASK, State.RUNNING, "x" * 100_000))
        await reader.get_message()
    await trio.testing.wait_all_tasks_blocked()


@pytest.mark.slow
async def test_a_slow_viewer_is_told_how_much_it_missed(
    mock_clock: trio.testing.MockClock,
) -> None:
    door = MemoryDoor()
    async with (
        open_monitor(door, port=0, limits=MonitorLimits(queue=8)) as monitor,
        looking_on(monitor) as quick,
        looking_on(monitor) as slow,
    ):
        await greet(quick)
        await greet(slow)
        await stand_still(door, quick)
        seqs: list[int] = []
        missed = 0
        while not seqs or seqs[-1] < 400:
            frame = await hear(slow)
            if frame["kind"] == "gap":
                missed += frame["missed"]
            else:
                seqs.append(frame["seq"])
        assert missed > 0
        assert len(seqs) + missed == 400
        assert seqs == sorted(seqs)


@pytest.mark.slow
async def test_a_viewer_that_stands_still_is_cut_and_nobody_else_notices(
    mock_clock: trio.testing.MockClock,
) -> None:
    door = MemoryDoor()
    async with (
        open_monitor(door, port=0) as monitor,
        looking_on(monitor) as quick,
        looking_on(monitor) as still,
    ):
        await greet(quick)
        await greet(still)
        await stand_still(door, quick)
        mock_clock.jump(9.9)
        await trio.testing.wait_all_tasks_blocked()
        assert monitor.statistics()["viewers"] == 2
        mock_clock.jump(0.2)
        await trio.testing.wait_all_tasks_blocked()
        assert monitor.statistics()["viewers_cut"] == 1
        assert monitor.statistics()["viewers"] == 1
        door.tell(OfferAged(OTHER))
        assert (await hear(quick))["seq"] == 401
        with pytest.raises(ConnectionClosed):
            await drain(still)


async def test_a_ping_is_answered_and_anything_else_ignored() -> None:
    async with open_monitor(MemoryDoor(), port=0) as monitor, looking_on(monitor) as socket:
        await greet(socket)
        for message in ("hello?", b"\x00", "ping"):
            await socket.send_message(message)
        assert await hear(socket) == {"kind": "pong"}
        assert monitor.statistics()["messages_ignored"] == 2
        await socket.ping()


async def chatter(socket: WebSocketConnection) -> None:
    for _ in range(10 * IGNORED_MAX):
        await socket.send_message("blah")
        await trio.testing.wait_all_tasks_blocked()


async def test_a_viewer_that_talks_too_much_is_cut() -> None:
    async with open_monitor(MemoryDoor(), port=0) as monitor:
        async with looking_on(monitor) as socket:
            await greet(socket)
            with pytest.raises(ConnectionClosed):
                await chatter(socket)
        async with looking_on(monitor) as socket:
            await greet(socket)
            await socket.send_message("x" * 2000)
            with pytest.raises(ConnectionClosed):
                await socket.get_message()


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "file://localhost",
        "null",
        "http://[",
    ],
)
async def test_a_page_from_elsewhere_is_refused(origin: str) -> None:
    async with open_monitor(MemoryDoor(), port=0) as monitor:
        assert (await refusal(monitor, origin)).status_code == 403
        assert monitor.statistics()["viewers_refused"] == 1


async def test_another_subprotocol_is_refused() -> None:
    async with open_monitor(MemoryDoor(), port=0) as monitor:
        error = await refusal(monitor, subprotocol="chat")
    assert (error.status_code, error.body) == (400, b"the subprotocol is mesh.v1.json")


async def test_a_viewer_too_many_is_refused_until_one_leaves() -> None:
    limits = MonitorLimits(viewers=1)
    async with open_monitor(MemoryDoor(), port=0, limits=limits) as monitor:
        async with looking_on(monitor) as socket:
            await greet(socket)
            assert (await refusal(monitor)).status_code == 503
        with trio.fail_after(30):
            while monitor.statistics()["viewers"]:
                await trio.lowlevel.checkpoint()
        async with looking_on(monitor) as socket:
            await greet(socket)


async def test_a_connection_too_many_is_closed_unheard() -> None:
    limits = MonitorLimits(viewers=1)
    async with open_monitor(MemoryDoor(), port=0, limits=limits) as monitor:
        mute = [await trio.open_tcp_stream("127.0.0.1", monitor.port) for _ in range(3)]
        assert await mute[2].receive_some() == b""
        assert monitor.statistics()["connections_refused"] == 1
        for stream in mute:
            await stream.aclose()


async def test_one_who_never_says_hello_is_let_go(mock_clock: trio.testing.MockClock) -> None:
    async with (
        open_monitor(MemoryDoor(), port=0) as monitor,
        await trio.open_tcp_stream("127.0.0.1", monitor.port) as stream,
    ):
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(11)
        assert await stream.receive_some() == b""


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01", b"\r\n" * 9000])
async def test_garbage_breaks_nothing(garbage: bytes) -> None:
    async with open_monitor(MemoryDoor(), port=0) as monitor:
        async with await trio.open_tcp_stream("127.0.0.1", monitor.port) as stream:
            await stream.send_all(garbage)
            with suppress(trio.BrokenResourceError):  # a reset is an answer, too
                await stream.send_eof()
                while await stream.receive_some():
                    pass
        async with looking_on(monitor) as socket:
            await greet(socket)


async def test_off_loopback_and_busy_ports_are_refused() -> None:
    with pytest.raises(ConfigError, match="TLS and login"):
        async with open_monitor(MemoryDoor(), host="0.0.0.0", port=0):
            pass
    async with open_monitor(MemoryDoor(), port=0) as monitor:
        with pytest.raises(ConfigError, match="is in use") as caught:
            async with open_monitor(MemoryDoor(), port=monitor.port):
                pass
    assert caught.value.key == "network.websocket_port"


async def test_viewers_leave_when_the_node_stops() -> None:
    async with trio.open_nursery() as nursery:
        gone = trio.Event()
        here = trio.Event()

        async def look(monitor: Monitor) -> None:
            async with looking_on(monitor) as socket:
                await greet(socket)
                here.set()
                with pytest.raises(ConnectionClosed):
                    await socket.get_message()
            gone.set()

        door = MemoryDoor()
        async with open_monitor(door, port=0) as monitor:
            nursery.start_soon(look, monitor)
            await here.wait()
        with trio.fail_after(30):
            await gone.wait()
        assert door.followers == 0
