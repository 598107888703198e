"""Real clients of the gRPC door, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
import trio
from api_door import MODULE, MemoryDoor
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from mesh.api.server import ApiServer, Limits, open_api
from mesh.ids import format_cid
from mesh.v1 import (
    files_pb2_grpc,
    ledger_pb2_grpc,
    market_pb2,
    market_pb2_grpc,
    modules_pb2_grpc,
    node_pb2_grpc,
    tasks_pb2_grpc,
)

T = TypeVar("T")
PATIENCE_S = 30
HASTY = Limits(grace_s=0.2)
NEAR = [("grpc.use_local_subchannel_pool", 1)]


class Client:
    """Blocking stubs on one channel; `ask` runs a call beside trio."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.market = market_pb2_grpc.MarketStub(channel)
        self.tasks = tasks_pb2_grpc.TasksStub(channel)
        self.node = node_pb2_grpc.NodeStub(channel)
        self.files = files_pb2_grpc.FilesStub(channel)
        self.modules = modules_pb2_grpc.ModulesStub(channel)
        self.ledger = ledger_pb2_grpc.LedgerStub(channel)

    async def ask(self, call: Callable[..., T], *args: object) -> T:
        with trio.fail_after(PATIENCE_S):
            return await trio.to_thread.run_sync(lambda: call(*args), abandon_on_cancel=True)

    async def fail(self, call: Callable[..., object], *args: object) -> Fault:
        with pytest.raises(grpc.RpcError) as caught:
            await self.ask(call, *args)
        return Fault(caught.value)


class Fault:
    """A gRPC error, its rich details unpacked."""

    def __init__(self, error: grpc.RpcError) -> None:
        assert isinstance(error, grpc.Call)
        self.code = error.code()
        self.message = error.details()
        status: status_pb2.Status | None = rpc_status.from_call(error)
        self.reason = self.hint = self.field = ""
        self.retry_s: int | None = None
        for detail in status.details if status is not None else ():
            info = error_details_pb2.ErrorInfo()
            retry = error_details_pb2.RetryInfo()
            bad = error_details_pb2.BadRequest()
            if detail.Unpack(info):
                assert info.domain == "mesh.v1"
                self.reason, self.hint = info.reason, info.metadata["hint"]
            elif detail.Unpack(retry):
                self.retry_s = retry.retry_delay.seconds
            elif detail.Unpack(bad):
                self.field = bad.field_violations[0].field


@asynccontextmanager
async def serving(
    door: MemoryDoor, limits: Limits = HASTY, socket: Path | None = None
) -> AsyncIterator[tuple[Client, ApiServer]]:
    """A server for *door*, and a client of it."""
    async with open_api(door, address="127.0.0.1:0", socket=socket, limits=limits) as server:
        with connected(f"127.0.0.1:{server.port}") as client:
            yield client, server


@contextmanager
def connected(target: str, options: Iterable[tuple[str, int]] = ()) -> Iterator[Client]:
    """A client with a connection of its own."""
    with grpc.insecure_channel(target, options=[*NEAR, *options]) as channel:
        yield Client(channel)


def bid_request(key: bytes = b"k", **changes: Any) -> market_pb2.MarketBidRequest:
    """A bid that is right, but for *changes*."""
    request = market_pb2.MarketBidRequest(
        idempotency_key=key,
        name="count",
        module=format_cid(MODULE),
        args=["-l"],
        env={"B": "2", "A": "1"},
        inputs={"text": format_cid(MODULE)},
        cpu_milli=1000,
        memory=1 << 20,
        disk=0,
        fuel=1000,
        wall_ms=1000,
        deadline_ms=9000,
        max_price=100,
        fee=2,
        priority=1,
        features=["simd"],
    )
    request.MergeFrom(market_pb2.MarketBidRequest(**changes))
    return request
