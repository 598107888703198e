"""The gRPC door: grpc.aio in the asyncio thread, the methods of mesh.v1 in trio behind it.

Deadlines and cancellations of clients reach the methods through the bridge. What a client does not
read is bounded by gRPC's flow control and by the bridge's windows; a watcher that stands still is
ended, a download waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias, assert_never
from urllib.parse import quote

import grpc
import grpc.aio
import trio
from attrs import frozen
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from mesh.api import services
from mesh.api.bridge import Bridge, open_bridge
from mesh.api.door import Door
from mesh.api.faults import FieldError, TooMany, TooSlow, status_of
from mesh.api.listen import (
    check_loopback,
    check_port,
    claim_socket,
    protect_socket,
    release_socket,
    split_address,
)
from mesh.errors import ConfigError, MeshError
from mesh.v1 import files_pb2, ledger_pb2, market_pb2, modules_pb2, node_pb2, tasks_pb2

HOST_KEY = "network.grpc_host"
PORT_KEY = "network.grpc_port"
SOCKET_KEY = "MESH_HOME"

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Parse: TypeAlias = Callable[[bytes], Message]
Behaviour: TypeAlias = Callable[[Any, Context], Awaitable[Message | None]]


@frozen
class Limits:
    """What clients may use of the door."""

    message: int = 1 << 20
    """Bytes of one message, either way."""
    streams: int = 128
    """Calls at a time on one connection; more wait at the client."""
    calls: int = 256
    """Calls at a time altogether; more are refused."""
    stall_s: float = 10.0
    """How long a watcher may take no message at all."""
    grace_s: float = 1.0
    """How long calls in flight may go on when the node stops."""


DEFAULT_LIMITS = Limits()


class ApiServer:
    """The running door. Counters are written by the asyncio thread and read by anybody."""

    def __init__(self, bridge: Bridge, door: Door, limits: Limits) -> None:
        self.port = 0
        self.calls_now = 0
        self.calls_refused = 0
        self.watchers_ended = 0
        """Watchers that were too slow."""
        self._bridge = bridge
        self._door = door
        self._limits = limits
        self._server: grpc.aio.Server
        self._health: Any

    def statistics(self) -> dict[str, int]:
        """Counters by name."""
        return self._bridge.statistics() | {
            "calls_now": self.calls_now,
            "calls_refused": self.calls_refused,
            "watchers_ended": self.watchers_ended,
        }

    # In the asyncio thread

    async def start(self, host: str, port: int, path: Path | None) -> None:
        """Listen and serve. Raises ConfigError."""
        self._server = grpc.aio.server(options=self._options())
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # its stubs are partial
        health_pb2_grpc.add_HealthServicer_to_server(  # type: ignore[no-untyped-call]  # it has no types
            self._health, self._server
        )
        names = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        for descriptor in _descriptors():
            handlers = {
                method.name: self._handler(method, services.SERVICES[descriptor.full_name])
                for method in descriptor.methods
            }
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(descriptor.full_name, handlers),)
            )
            names.append(descriptor.full_name)
        reflection.enable_server_reflection(  # type: ignore[no-untyped-call]  # it has no types
            names, self._server
        )
        try:
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            self.port = self._server.add_insecure_port(address)
        except RuntimeError:  # taken since we looked
            raise ConfigError(PORT_KEY, f"port {port} is in use", "choose another") from None
        if path is not None:
            self._listen_at(path)
        await self._server.start()
        for name in names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def _listen_at(self, path: Path) -> None:
        try:
            self._server.add_insecure_port("unix:" + quote(str(path)))  # it is read as a URI
        except RuntimeError:
            raise ConfigError(SOCKET_KEY, f"cannot listen at {path}", "choose another") from None
        protect_socket(path)

    async def stop(self) -> None:
        """Refuse new calls; wait for those in flight, but not for ever."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(2 * self._limits.grace_s)

    def _options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self._limits.message),
            ("grpc.max_send_message_length", self._limits.message),
            ("grpc.max_concurrent_streams", self._limits.streams),
        ]

    def _handler(
        self, descriptor: MethodDescriptor, methods: Mapping[str, services.Method]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        parse = _parser(descriptor)
        method = methods[descriptor.name]
        match method:
            case services.Unary():
                behaviour = self._guarded(self._answer(method, parse))
                return grpc.unary_unary_rpc_method_handler(behaviour, None, _serialize)
            case services.Stream():
                behaviour = self._guarded(self._tell(method, parse))
                return grpc.unary_stream_rpc_method_handler(behaviour, None, _serialize)
            case services.Upload():
                behaviour = self._guarded(self._take(method, parse))
                return grpc.stream_unary_rpc_method_handler(behaviour, None, _serialize)
            case never:
                assert_never(never)

    def _answer(self, method: services.Unary, parse: Parse) -> Behaviour:
        async def answer(request: bytes, context: Context) -> Message:
            return await self._bridge.call(method.answer, self._door, parse(request))

        return answer

    def _tell(self, method: services.Stream, parse: Parse) -> Behaviour:
        stall_s = self._limits.stall_s if method.is_watch else None

        async def tell(request: bytes, context: Context) -> None:
            messages = self._bridge.stream(
                method.tell, self._door, parse(request), window=method.window
            )
            async with messages as told:
                async for message in told:
                    try:
                        async with asyncio.timeout(stall_s):
                            await context.write(message)
                    except TimeoutError:
                        raise TooSlow from None

        return tell

    def _take(self, method: services.Upload, parse: Parse) -> Behaviour:
        async def take(requests: AsyncIterator[bytes], context: Context) -> Message:
            return await self._bridge.feed(_Parsed(requests, parse), method.take, self._door)

        return take

    def _guarded(self, behaviour: Behaviour) -> Behaviour:
        """*behaviour* within the limit of calls, its errors as statuses."""

        async def guarded(request: object, context: Context) -> Message | None:
            self.calls_now += 1
            try:
                if self.calls_now > self._limits.calls:
                    raise TooMany(self._limits.calls)
                return await behaviour(request, context)
            except MeshError as error:
                self.calls_refused += isinstance(error, TooMany)
                self.watchers_ended += isinstance(error, TooSlow)
                status = rpc_status.to_status(  # type: ignore[no-untyped-call]  # it has no types
                    status_of(error)
                )
            except grpc.aio.InternalError:
                raise asyncio.CancelledError from None  # the client is gone: nobody to answer
            finally:
                self.calls_now -= 1
            with suppress(grpc.aio.InternalError):
                await context.abort_with_status(status)
            raise asyncio.CancelledError  # likewise

        return guarded


@asynccontextmanager
async def open_api(
    door: Door,
    *,
    address: str = "127.0.0.1:50051",
    socket: Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> AsyncIterator[ApiServer]:
    """Serve *door* at *address* (loopback only; port 0 for any) and at the Unix *socket*.

    Raises ConfigError. A bug met by a call cancels the body and is raised from here.
    """
    host, port = split_address(address, PORT_KEY)
    host = check_loopback(host, HOST_KEY)
    check_port(host, port, PORT_KEY)
    if socket is not None:
        claim_socket(socket, SOCKET_KEY)
    async with open_bridge() as bridge:
        server = ApiServer(bridge, door, limits)
        await bridge.perform(server.start, host, port, socket)
        try:
            yield server
        finally:
            await _stop(server, bridge, limits.grace_s)
            if socket is not None:
                release_socket(socket)


async def _stop(server: ApiServer, bridge: Bridge, grace_s: float) -> None:
    """Let calls finish for a while, tell the rest that the node is stopping, and stop."""
    stopped = trio.Event()

    async def stop() -> None:
        await bridge.perform(server.stop)
        stopped.set()

    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            with trio.move_on_after(grace_s):
                await stopped.wait()
            bridge.close()


def _descriptors() -> list[ServiceDescriptor]:
    files = (market_pb2, tasks_pb2, node_pb2, files_pb2, modules_pb2, ledger_pb2)
    return [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]


def _parser(descriptor: MethodDescriptor) -> Parse:
    """Our own, since gRPC takes a request that is none for a fault of the server."""
    message = message_factory.GetMessageClass(descriptor.input_type)

    def parse(request: bytes) -> Message:
        try:
            return message.FromString(request)
        except DecodeError:
            raise FieldError("request", f"is no {message.DESCRIPTOR.full_name}") from None

    return parse


class _Parsed:
    """The messages of an upload."""

    def __init__(self, requests: AsyncIterator[bytes], parse: Parse) -> None:
        self._requests = requests
        self._parse = parse

    def __aiter__(self) -> _Parsed:
        return self

    async def __anext__(self) -> Message:
        return self._parse(await anext(self._requests))


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
