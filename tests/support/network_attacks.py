"""What a stranger may write to a node: each attack is given a connected host and its target."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio
from libp2p.abc import IHost
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_uvarint

from mesh.network.framing import frame
from mesh.network.gossip import OFFERS
from mesh.network.network import BLOCKS
from mesh.network.streams import MAX_FRAME, PROTOCOL

GOSSIP = "/meshsub/1.1.0"
PROTOCOLS = [
    GOSSIP,
    "/meshsub/1.2.0",
    "/ipfs/kad/1.0.0",
    "/ipfs/id/1.0.0",
    "/ipfs/id/push/1.0.0",
    "/ipfs/ping/1.0.0",
    PROTOCOL,
    BLOCKS,
]
JUNK = b"\xff" * 5

Attack = Callable[[IHost, PeerInfo], Awaitable[None]]


async def write_raw(attacker: IHost, target: PeerInfo, protocol: str, data: bytes) -> Any:
    with trio.fail_after(10):
        stream = await attacker.new_stream(target.peer_id, [protocol])
        with suppress(BaseLibp2pError):  # being thrown out half-way is the expected answer
            await stream.write(data)
    return stream


async def garbage_everywhere(attacker: IHost, target: PeerInfo) -> None:
    for protocol in PROTOCOLS:
        for junk in (encode_uvarint(5) + JUNK, JUNK, bytes(200), frame(JUNK)):
            with suppress(BaseLibp2pError, trio.TooSlowError):
                stream = await write_raw(attacker, target, protocol, junk)
                await stream.close()


async def resets_everywhere(attacker: IHost, target: PeerInfo) -> None:
    for protocol in PROTOCOLS:
        with suppress(BaseLibp2pError, trio.TooSlowError):
            stream = await write_raw(attacker, target, protocol, b"abc")
            await stream.reset()


async def gossip(attacker: IHost, target: PeerInfo, rpc: rpc_pb2.RPC) -> None:
    data = rpc.SerializeToString()
    await write_raw(attacker, target, GOSSIP, encode_uvarint(len(data)) + data)


def message(author: bytes, key: bytes = b"") -> rpc_pb2.Message:
    return rpc_pb2.Message(
        from_id=author, data=b"x", seqno=b"1", topicIDs=[OFFERS], signature=b"z", key=key
    )


async def gossip_with_junk_authors(attacker: IHost, target: PeerInfo) -> None:
    rpc = rpc_pb2.RPC()
    rpc.publish.append(message(b"\x01\x02junk", b"junk"))
    rpc.publish.append(message(b""))
    await gossip(attacker, target, rpc)


async def gossip_with_a_junk_record(attacker: IHost, target: PeerInfo) -> None:
    await gossip(attacker, target, rpc_pb2.RPC(senderRecord=b"junk"))


async def gossip_that_ends_early(attacker: IHost, target: PeerInfo) -> None:
    stream = await write_raw(attacker, target, GOSSIP, encode_uvarint(100) + b"abc")
    await stream.close()


async def gossip_longer_than_allowed(attacker: IHost, target: PeerInfo) -> None:
    await write_raw(attacker, target, GOSSIP, encode_uvarint(2**31) + bytes(100_000))


async def gossip_flood(attacker: IHost, target: PeerInfo) -> None:
    rpc = rpc_pb2.RPC()
    rpc.publish.extend([message(attacker.get_id().to_bytes())] * 300)
    for _ in range(10):
        await gossip(attacker, target, rpc)


async def frames_longer_than_allowed(attacker: IHost, target: PeerInfo) -> None:
    await write_raw(attacker, target, PROTOCOL, (MAX_FRAME + 1).to_bytes(4, "big") + bytes(100))
    await write_raw(attacker, target, BLOCKS, b"\xff\xff\xff\xff" + bytes(100))


async def half_frames_that_never_end(attacker: IHost, target: PeerInfo) -> None:
    for protocol in (PROTOCOL, BLOCKS):
        for _ in range(20):
            with suppress(BaseLibp2pError):  # beyond its share, a peer is turned away
                await write_raw(attacker, target, protocol, b"\x00\x00\x10")


async def streams_that_never_negotiate(attacker: IHost, target: PeerInfo) -> None:
    muxer: Any = attacker.get_network().get_connections(target.peer_id)[0].muxed_conn
    with trio.move_on_after(1):
        for _ in range(200):
            await muxer.open_stream()


async def frame_flood(attacker: IHost, target: PeerInfo) -> None:
    stream = await write_raw(attacker, target, PROTOCOL, frame(b"x"))
    with trio.move_on_after(1), suppress(BaseLibp2pError):
        while True:
            await stream.write(frame(b"x") * 1000)


async def request_flood(attacker: IHost, target: PeerInfo) -> None:
    async def ask() -> None:
        with suppress(BaseLibp2pError, trio.TooSlowError):
            await write_raw(attacker, target, BLOCKS, frame(b"x"))

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)


async def junk_below_the_streams(attacker: IHost, target: PeerInfo) -> None:
    muxer: Any = attacker.get_network().get_connections(target.peer_id)[0].muxed_conn
    await muxer.secured_conn.write(b"\xff" * 500)


async def junk_on_the_bare_socket(_attacker: IHost, target: PeerInfo) -> None:
    port = int(target.addrs[0].value_for_protocol("tcp"))
    silent = await trio.open_tcp_stream("127.0.0.1", port)
    async with silent:
        for junk in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 10_000, b""):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(junk)


ATTACKS = [
    garbage_everywhere,
    resets_everywhere,
    gossip_with_junk_authors,
    gossip_with_a_junk_record,
    gossip_that_ends_early,
    gossip_longer_than_allowed,
    gossip_flood,
    frames_longer_than_allowed,
    half_frames_that_never_end,
    streams_that_never_negotiate,
    frame_flood,
    request_flood,
    junk_below_the_streams,
    junk_on_the_bare_socket,
]
