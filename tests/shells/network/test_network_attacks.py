"""Whatever a stranger writes, the node goes on serving the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from libp2p.abc import IHost
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_uvarint

from mesh.network.framing import frame
from mesh.network.gossip import TOPIC
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
        from_id=author, data=b"x", seqno=b"1", topicIDs=[TOPIC], signature=b"z", key=key
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


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_the_node_serves_others_during_and_after(harness: Any, attack: Attack) -> None:
    victim = await harness.node(1)
    friend = await harness.node(2, *victim.network.addresses())
    attacker = await harness.host(3)
    target = harness.dial(victim)
    await attacker.connect(target)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attack, attacker, target)
        with trio.fail_after(20):
            assert await friend.network.request(victim.peer, BLOCKS, b"during", 15) == b"gnirud"
    assert friend.network.send_nowait(victim.peer, b"after")
    await harness.eventually(lambda: (friend.peer, b"after") in victim.frames)
    assert victim.network.send_nowait(friend.peer, b"too")
    await harness.eventually(lambda: (victim.peer, b"too") in friend.frames)
    with trio.fail_after(20):
        assert await friend.network.request(victim.peer, BLOCKS, b"after", 15) == b"retfa"
    await harness.eventually(lambda: friend.peer in victim.network.connected())


async def test_who_breaks_the_protocol_again_and_again_is_banned(harness: Any) -> None:
    victim = await harness.node(1)
    attacker = await harness.host(3)
    target = harness.dial(victim)
    await attacker.connect(target)
    for expected in range(1, 5):
        await write_raw(attacker, target, PROTOCOL, b"\xff\xff\xff\xff")
        await harness.eventually(lambda expected=expected: victim.count("faults") == expected)
    await harness.eventually(lambda: not victim.network.connected())
    assert victim.count("bans") == 1


async def test_who_ignores_its_window_is_banned(harness: Any) -> None:
    """The frames are read at the guard's pace; yamux itself would store all that comes."""
    victim = await harness.node(1)
    attacker = await harness.host(3)
    target = harness.dial(victim)
    await attacker.connect(target)
    stream = await write_raw(attacker, target, PROTOCOL, frame(b"x") * 1000)
    stream.muxed_stream.send_window = 1 << 30
    with trio.fail_after(20), suppress(BaseLibp2pError):
        while True:
            await stream.write(frame(b"x") * 100_000)
    await harness.eventually(lambda: victim.count("bans") == 1)
    await harness.eventually(lambda: not victim.network.connected())


async def test_the_banned_find_the_door_closed(harness: Any) -> None:
    victim = await harness.node(1)
    attacker = await harness.host(3)
    target = harness.dial(victim)
    await attacker.connect(target)
    await harness.eventually(lambda: bool(victim.network.connected()))
    for _ in range(4):
        victim.network.penalize(victim.network.connected()[0], "test")
    await harness.eventually(lambda: not victim.network.connected())
    await harness.eventually(lambda: not attacker.get_connected_peers())
    attacker.get_network().unblock_peer(target.peer_id)
    with suppress(BaseLibp2pError):
        await attacker.connect(target)
        assert attacker.get_connected_peers()
        await write_raw(attacker, target, PROTOCOL, frame(b"let me in"))
    await harness.eventually(lambda: not victim.network.connected())
    assert victim.frames == []
