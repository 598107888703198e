"""The gRPC door under way: who leaves, who is late, who is slow, and how it opens and shuts."""

from __future__ import annotations

import socket as sockets
import stat
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import quote

import grpc
import pytest
import trio
import trio.testing
from api_client import Client, Fault, bid_request, connected, serving
from api_door import TASK, MemoryDoor, moved, record

from mesh.api.door import Finding
from mesh.api.server import Limits, open_api
from mesh.errors import ConfigError
from mesh.ids import format_task
from mesh.market.order import State
from mesh.v1 import files_pb2, ledger_pb2, market_pb2, node_pb2, tasks_pb2


async def test_a_clients_cancellation_reaches_trio() -> None:
    door = MemoryDoor()
    door.is_hanging = True
    async with serving(door) as (client, server):
        call = client.market.Bid.future(bid_request())
        await door.changed.wait()
        call.cancel()
        with trio.fail_after(30):
            await door.until_cancelled()
        assert server.statistics()["calls_cancelled"] == 1
    assert door.cancelled == ["bid"]


async def test_a_deadline_reaches_trio() -> None:
    door = MemoryDoor()
    door.is_hanging = True
    async with serving(door) as (client, _):
        fault = await client.fail(lambda: client.market.Bid(bid_request(), timeout=0.1))
        assert fault.code is grpc.StatusCode.DEADLINE_EXCEEDED
        with trio.fail_after(30):
            await door.until_cancelled()


async def test_a_watcher_that_leaves_is_forgotten() -> None:
    door = MemoryDoor()
    door.records[TASK] = record()
    async with serving(door) as (_, server):
        with connected(f"127.0.0.1:{server.port}") as other:
            stream = other.tasks.Watch(tasks_pb2.TasksWatchRequest(task_id=format_task(TASK)))
            await other.ask(next, stream)
            assert door.followers == 1
        with trio.fail_after(30):
            await door.until_followed(0)


@pytest.mark.slow
async def test_a_watcher_that_stands_still_is_ended_and_nobody_else() -> None:
    door = MemoryDoor()
    door.records[TASK] = record()
    limits = Limits(stall_s=1.0, grace_s=0.2)
    async with serving(door, limits) as (client, server):
        quick = client.tasks.Watch(tasks_pb2.TasksWatchRequest(task_id=format_task(TASK)))
        await client.ask(next, quick)
        with connected(f"127.0.0.1:{server.port}") as other:
            slow = other.tasks.Watch(tasks_pb2.TasksWatchRequest(task_id=format_task(TASK)))
            await other.ask(next, slow)
            with trio.fail_after(60):
                while door.followers == 2:
                    door.tell(moved(TASK, State.RUNNING, "x" * 100_000))
                    await client.ask(next, quick)
            fault = await other.fail(lambda: list(slow))
        assert (fault.code, fault.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_SLOW")
        assert fault.message is not None
        assert "too slow" in fault.message
        assert server.statistics()["watchers_ended"] == 1
        door.finish(TASK)
        assert [event.WhichOneof("event") for event in await client.ask(list, quick)][-1] == "task"


@pytest.mark.slow
async def test_a_watcher_that_never_reads_again_does_not_hold_the_node_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    door = MemoryDoor()
    door.records[TASK] = record()
    async with serving(door, Limits(stall_s=0.2, grace_s=0.2)) as (client, server):
        still = client.tasks.Watch(tasks_pb2.TasksWatchRequest(task_id=format_task(TASK)))
        await client.ask(next, still)
        with trio.fail_after(60):
            while door.followers:
                door.tell(moved(TASK, State.RUNNING, "x" * 100_000))
                await trio.lowlevel.checkpoint()
    assert server.statistics()["watchers_ended"] == 1
    assert caplog.records == []


async def test_a_watcher_of_everything_that_missed_a_notice_is_ended() -> None:
    door = MemoryDoor()
    door.records[TASK] = record()
    async with serving(door) as (client, _):
        stream = client.tasks.Watch(tasks_pb2.TasksWatchRequest())
        await client.ask(next, stream)
        for _ in range(300):  # more than the channel holds
            door.tell(moved(TASK, State.RUNNING))
        await trio.testing.wait_all_tasks_blocked()
        door.tell(moved(TASK, State.RUNNING))
        fault = await client.fail(lambda: list(stream))
    assert (fault.code, fault.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_SLOW")


async def test_a_call_too_many_is_refused() -> None:
    door = MemoryDoor()
    door.is_hanging = True
    async with serving(door, Limits(calls=1, grace_s=0.2)) as (client, server):
        call = client.market.Bid.future(bid_request())
        await door.changed.wait()
        fault = await client.fail(client.node.Status, node_pb2.NodeStatusRequest())
        assert (fault.code, fault.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY")
        assert fault.retry_s == 1
        assert server.statistics()["calls_refused"] == 1
        call.cancel()


async def test_a_message_too_large_is_refused() -> None:
    async with serving(MemoryDoor()) as (client, _):
        large = bid_request(name="x" * (1 << 20))
        fault = await client.fail(client.market.Bid, large)
        assert fault.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        small = await client.ask(client.market.Bid, bid_request())
        assert small.task_id


@pytest.mark.parametrize("method", ["Market/Bid", "Tasks/Watch", "Files/Put"])
async def test_a_request_that_is_none_is_refused(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(MemoryDoor()) as (client, _):
        call = client.channel.stream_unary(f"/mesh.v1.{method}")
        fault = await client.fail(lambda: call(iter([b"\xff\xff"])))
    assert (fault.code, fault.field) == (grpc.StatusCode.INVALID_ARGUMENT, "request")
    assert caplog.records == []


async def test_clients_that_hang_up_leave_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    door = MemoryDoor()
    door.records[TASK] = record()
    door.findings = [Finding(None, None, "chain", True, "x" * 1000)] * 20_000
    door.upload_gate = trio.Event()
    async with serving(door) as (_, server):
        for taken in range(10):
            with connected(f"127.0.0.1:{server.port}") as client:
                audit = client.ledger.Audit(ledger_pb2.LedgerAuditRequest())
                for _ in range(taken):
                    await client.ask(next, audit)
                watch = client.tasks.Watch(tasks_pb2.TasksWatchRequest())
                await client.ask(next, watch)
                chunk = files_pb2.FilesPutRequest(chunk=bytes(100_000))
                client.files.Put.future(iter([files_pb2.FilesPutRequest(name="a"), *[chunk] * 20]))
        with trio.fail_after(30):
            while server.statistics()["calls_now"]:
                await trio.lowlevel.checkpoint()
            await door.until_followed(0)
    assert caplog.records == []


async def test_calls_in_flight_are_told_that_the_node_stops(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    door = MemoryDoor()
    door.records[TASK] = record()
    door.is_hanging = True
    faults: list[Fault] = []

    async def fail(client: Client, call: grpc.Future | grpc.Call) -> None:
        faults.append(await client.fail(lambda: list(call)))

    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        async with open_api(door, address="127.0.0.1:0", limits=Limits(grace_s=0.1)) as server:
            client = stack.enter_context(connected(f"127.0.0.1:{server.port}"))
            watch = client.tasks.Watch(tasks_pb2.TasksWatchRequest())
            await client.ask(next, watch)
            bid = client.market.Bid.future(bid_request())
            await door.changed.wait()

            async def await_bid() -> None:
                faults.append(await client.fail(bid.result))

            nursery.start_soon(fail, client, watch)
            nursery.start_soon(await_bid)
            await trio.testing.wait_all_tasks_blocked()
        while len(faults) < 2:
            await trio.lowlevel.checkpoint()
    assert {(fault.code, fault.reason) for fault in faults} == {
        (grpc.StatusCode.UNAVAILABLE, "STOPPING")
    }
    assert door.cancelled == ["bid"]
    assert door.followers == 0
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


async def test_a_call_may_finish_while_the_node_stops() -> None:
    door = MemoryDoor()
    door.upload_gate = trio.Event()
    uploaded: list[str] = []

    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        async with open_api(door, address="127.0.0.1:0", limits=Limits(grace_s=30)) as server:
            client = stack.enter_context(connected(f"127.0.0.1:{server.port}"))
            parts = [files_pb2.FilesPutRequest(name="a"), files_pb2.FilesPutRequest(chunk=b"x")]
            upload = client.files.Put.future(iter(parts))

            async def await_upload() -> None:
                uploaded.append((await client.ask(upload.result)).cid)

            nursery.start_soon(await_upload)
            while not door.uploading:
                await trio.lowlevel.checkpoint()
            nursery.start_soon(trio.testing.wait_all_tasks_blocked, 0.01)
            nursery.start_soon(_open_when_quiet, door.upload_gate)
    assert len(uploaded) == 1


async def _open_when_quiet(gate: trio.Event) -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)
    gate.set()


async def test_followers_whose_node_stops_are_told() -> None:
    door = MemoryDoor()
    door.records[TASK] = record()
    async with serving(door) as (client, _):
        watches = [
            client.tasks.Watch(tasks_pb2.TasksWatchRequest()),
            client.market.WatchAuction(
                market_pb2.MarketWatchAuctionRequest(task_id=format_task(TASK))
            ),
        ]
        for watch in watches:
            await client.ask(next, watch)
        result = client.tasks.Result.future(
            tasks_pb2.TasksResultRequest(task_id=format_task(TASK), wait=True)
        )
        with trio.fail_after(30):
            await door.until_followed(3)
        await trio.testing.wait_all_tasks_blocked()
        door.stop_telling()
        faults = [await client.fail(next, watch) for watch in watches]
        faults.append(await client.fail(result.result))
    assert {fault.reason for fault in faults} == {"STOPPING"}


# Where it listens


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "mesh.example", "[::]"])
async def test_off_loopback_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="TLS and login") as caught:
        async with open_api(MemoryDoor(), address=f"{host}:0"):
            pass
    assert caught.value.key == "network.grpc_host"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:x", "127.0.0.1:65536"])
async def test_an_address_without_a_port_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        async with open_api(MemoryDoor(), address=address):
            pass


async def test_a_busy_port_is_named() -> None:
    async with serving(MemoryDoor()) as (_, server):
        with pytest.raises(ConfigError, match=f"port {server.port} is in use") as caught:
            async with open_api(MemoryDoor(), address=f"127.0.0.1:{server.port}"):
                pass
    assert caught.value.key == "network.grpc_port"


async def test_two_nodes_serve_side_by_side() -> None:
    async with serving(MemoryDoor()) as (one, _), serving(MemoryDoor()) as (other, _):
        for client in (one, other):
            assert (await client.ask(client.node.Status, node_pb2.NodeStatusRequest())).agent


async def test_the_unix_socket_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "my%20run" / "mesh.sock"
    async with serving(MemoryDoor(), socket=path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        with connected("unix:" + quote(str(path))) as client:
            assert (await client.ask(client.node.Status, node_pb2.NodeStatusRequest())).agent
    assert not path.exists()


async def test_a_stale_socket_is_removed_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "run" / "mesh.sock"
    path.parent.mkdir(mode=0o700)
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(MemoryDoor(), socket=path):
        with pytest.raises(ConfigError, match="a node answers"):
            async with serving(MemoryDoor(), socket=path):
                pass
        with connected(f"unix:{path}") as client:
            assert (await client.ask(client.node.Status, node_pb2.NodeStatusRequest())).agent


@pytest.mark.parametrize(
    ("case", "why"),
    [("file", "is no socket"), ("open", "others can enter"), ("long", "too long")],
)
async def test_a_socket_that_cannot_be_is_explained(tmp_path: Path, case: str, why: str) -> None:
    path = tmp_path / "run" / ("x" * 90 if case == "long" else "mesh.sock")
    path.parent.mkdir(mode=0o755 if case == "open" else 0o700)
    if case == "file":
        path.touch()
    with pytest.raises(ConfigError, match=why) as caught:
        async with open_api(MemoryDoor(), address="127.0.0.1:0", socket=path):
            pass
    assert caught.value.hint
