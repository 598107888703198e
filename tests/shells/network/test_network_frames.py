"""Frames between nodes: delivered, bounded, and nobody waits for anybody else."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import trio

from mesh.errors import ConfigError, PeerError, Unavailable
from mesh.ids import PeerId
from mesh.network.framing import frame
from mesh.network.hardening import open_stream
from mesh.network.network import BLOCKS
from mesh.network.streams import MAX_FRAME, PROTOCOL, OutboxConfig


async def test_frames_go_both_ways_in_order(harness: Any) -> None:
    a = await harness.node(1)
    b = await harness.node(2, *a.network.addresses())
    for number in range(100):
        assert b.network.send_nowait(a.peer, b"to a %d" % number)
    await harness.eventually(lambda: len(a.frames) == 100)
    assert a.network.send_nowait(b.peer, bytes(MAX_FRAME))
    await harness.eventually(lambda: len(b.frames) == 1)
    assert a.frames == [(b.peer, b"to a %d" % number) for number in range(100)]
    assert b.frames == [(a.peer, bytes(MAX_FRAME))]


async def test_a_frame_reaches_a_peer_that_only_others_are_connected_to(harness: Any) -> None:
    a = await harness.node(1)
    b = await harness.node(2, *a.network.addresses())
    c = await harness.node(3, *a.network.addresses())
    await harness.eventually(lambda: len(a.network.connected()) == 2)
    assert b.network.send_nowait(c.peer, b"hello")
    await harness.eventually(lambda: c.frames == [(b.peer, b"hello")])


async def test_the_outbox_of_an_unreachable_peer_is_bounded_and_stalls_nobody(harness: Any) -> None:
    a = await harness.node(1)
    b = await harness.node(2, *a.network.addresses())
    nobody = PeerId(bytes(range(32)))
    bound = OutboxConfig().frames
    accepted = [a.network.send_nowait(nobody, b"x") for _ in range(bound + 10)]
    assert accepted == [True] * bound + [False] * 10
    assert a.count("frames_dropped") == 10
    assert a.network.send_nowait(b.peer, b"still here")
    await harness.eventually(lambda: len(b.frames) == 1)


async def test_what_waits_for_an_unreachable_peer_is_given_up_and_counted(harness: Any) -> None:
    a = await harness.node(1)
    assert a.network.send_nowait(PeerId(bytes(range(32))), b"x")
    await harness.eventually(lambda: a.count("frames_lost") == 1)


async def test_a_peer_that_stops_reading_stalls_only_itself(harness: Any) -> None:
    """The slow one's handler never reads: yamux's window fills, then the outbox does."""
    a = await harness.node(1)
    b = await harness.node(2, *a.network.addresses())
    slow = await harness.host(3)

    async def never_read(_stream: Any) -> None:
        await trio.sleep_forever()

    slow.set_stream_handler(PROTOCOL, never_read)
    await slow.connect(harness.dial(a))
    deaf = PeerId(slow.get_id().extract_public_key().to_bytes())
    while a.network.send_nowait(deaf, bytes(MAX_FRAME)):
        await trio.lowlevel.checkpoint()
    for _ in range(20):
        assert a.network.send_nowait(b.peer, b"quick")
    await harness.eventually(lambda: len(b.frames) == 20)
    assert a.count("frames_dropped") == 1


async def test_a_frame_to_ourselves_is_refused(harness: Any) -> None:
    a = await harness.node(1)
    assert not a.network.send_nowait(a.peer, b"x")


async def test_a_second_stream_replaces_the_first(harness: Any) -> None:
    a = await harness.node(1)
    raw = await harness.host(2)
    await raw.connect(harness.dial(a))
    for number in range(3):
        stream = await open_stream(raw, harness.dial(a).peer_id, PROTOCOL, within_s=5)
        await stream.write(frame(b"%d" % number))
        await harness.eventually(lambda number=number: len(a.frames) == number + 1)
    assert a.count("streams_replaced") == 2


async def test_a_peer_that_leaves_and_returns_is_reached_again(harness: Any) -> None:
    a = await harness.node(1)
    b = await harness.node(2, *a.network.addresses())
    assert a.network.send_nowait(b.peer, b"before")
    assert b.network.send_nowait(a.peer, b"before")
    await harness.eventually(lambda: bool(a.frames) and bool(b.frames))
    await b.close()
    await harness.eventually(lambda: not a.network.connected())
    again = await harness.node(2, *a.network.addresses())
    await harness.eventually(lambda: a.network.connected() == (again.peer,))
    assert a.network.send_nowait(again.peer, b"after")
    assert again.network.send_nowait(a.peer, b"after")
    await harness.eventually(lambda: again.frames == [(a.peer, b"after")])
    await harness.eventually(lambda: a.frames[-1] == (again.peer, b"after"))


async def test_what_on_frame_calls_a_fault_is_scored_until_the_sender_is_banned(
    harness: Any,
) -> None:
    def judge(_peer: PeerId, _data: bytes) -> None:
        raise PeerError("nonsense")

    a = await harness.node(1, on_frame=judge)
    b = await harness.node(2, *a.network.addresses())
    for _ in range(4):
        assert b.network.send_nowait(a.peer, b"x")
    await harness.eventually(lambda: a.count("bans") == 1)
    await harness.eventually(lambda: a.count("faults") == 4)
    assert not a.network.send_nowait(b.peer, b"nothing for you")


async def test_a_request_is_answered(harness: Any) -> None:
    a = await harness.node(1)
    b = await harness.node(2, *a.network.addresses())
    large = bytes(range(256)) * 4096
    with trio.fail_after(20):
        assert await b.network.request(a.peer, BLOCKS, b"abc", 10) == b"cba"
        assert await a.network.request(b.peer, BLOCKS, large, 10) == large[::-1]


async def test_many_requests_at_once_are_answered(harness: Any) -> None:
    a = await harness.node(1)
    b = await harness.node(2, *a.network.addresses())
    answers: list[bytes] = []

    async def ask(number: int) -> None:
        answers.append(await b.network.request(a.peer, BLOCKS, b"%03d" % number, 15))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(ask, number)
    assert sorted(answer[::-1] for answer in answers) == [b"%03d" % n for n in range(40)]


async def test_a_refusal_reaches_the_asker_with_its_reason(harness: Any) -> None:
    async def refuse(_peer: PeerId, _data: bytes) -> bytes:
        raise Unavailable("the disk is full")

    a = await harness.node(1, serve={BLOCKS: refuse})
    b = await harness.node(2, *a.network.addresses())
    with pytest.raises(Unavailable, match="the disk is full"):
        await b.network.request(a.peer, BLOCKS, b"x", 10)


async def test_a_slow_answer_and_an_unknown_protocol_are_unavailable(harness: Any) -> None:
    async def stall(_peer: PeerId, _data: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    a = await harness.node(1, serve={BLOCKS: stall})
    b = await harness.node(2, *a.network.addresses())
    with pytest.raises(Unavailable, match="did not answer"):
        await b.network.request(a.peer, BLOCKS, b"x", 0.2)
    with pytest.raises(Unavailable):
        await b.network.request(a.peer, "/mesh/1/nothing", b"x", 5)
    with pytest.raises(Unavailable):
        await b.network.request(PeerId(bytes(range(32))), BLOCKS, b"x", 5)


async def test_an_answer_that_breaks_the_protocol_is_a_peer_error(harness: Any) -> None:
    a = await harness.node(1)
    raw = await harness.host(2)

    async def answer_nonsense(stream: Any) -> None:
        await stream.write(frame(b"\x07nonsense"))

    raw.set_stream_handler(BLOCKS, answer_nonsense)
    await raw.connect(harness.dial(a))
    with pytest.raises(PeerError):
        await a.network.request(
            PeerId(raw.get_id().extract_public_key().to_bytes()), BLOCKS, b"x", 5
        )


async def test_a_port_in_use_is_the_operators_to_mend(harness: Any) -> None:
    a = await harness.node(1)
    taken = a.network.addresses()[0].partition("/p2p/")[0]
    with pytest.raises(ConfigError) as caught:
        await harness.node(2, listen=(taken,))
    assert caught.value.key == "network.listen_port"
    assert caught.value.hint


async def test_an_address_of_another_machine_is_the_operators_to_mend(harness: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        await harness.node(1, listen=("/ip4/192.0.2.1/tcp/0",))
    assert caught.value.key == "network.listen"


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
async def test_websocket_is_spoken_beside_tcp(harness: Any) -> None:
    """libp2p leaves the dialler's WebSocket to the garbage collector: collected in here."""
    a = await harness.node(1, listen=("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws"))
    web = next(address for address in a.network.addresses() if "/ws" in address)
    b = await harness.node(2, listen=("/ip4/127.0.0.1/tcp/0/ws",))
    with trio.fail_after(20):
        await b.network.connect(web)
    assert b.network.send_nowait(a.peer, b"over the web")
    await harness.eventually(lambda: a.frames == [(b.peer, b"over the web")])
    await b.close()
    await a.close()
    gc.collect()


async def test_leaving_amid_traffic_is_quiet(harness: Any) -> None:
    """Stock pubsub starts tasks in a closed nursery then."""
    a = await harness.node(1)
    b = await harness.node(2, *a.network.addresses())
    c = await harness.node(3, *a.network.addresses())
    await harness.eventually(lambda: len(a.network.connected()) == 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.close)
        for number in range(100):
            await b.network.publish_offer(b"b %d" % number)
            await c.network.publish_offer(b"c %d" % number)
            b.network.send_nowait(a.peer, b"x")
    await harness.eventually(lambda: a.peer not in b.network.connected())


@pytest.mark.parametrize("text", ["nonsense", "/ip4/127.0.0.1/tcp/1", "/ip4/1.2.3.4/tcp/1/p2p/Qm"])
async def test_a_bad_bootstrap_address_is_the_operators_to_mend(harness: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await harness.node(1, text)
    assert caught.value.key == "network.bootstrap"
    assert caught.value.hint


async def test_a_private_mesh_is_closed_to_others(harness: Any) -> None:
    key = "0f" * 32
    a = await harness.node(1, psk=key)
    b = await harness.node(2, psk=key)
    with trio.fail_after(20):
        await b.network.connect(a.network.addresses()[0])
    with pytest.raises(ConfigError, match="64 hex"):
        await harness.node(3, psk="short")
    assert b.network.send_nowait(a.peer, b"private")
    await harness.eventually(lambda: a.frames == [(b.peer, b"private")])


async def test_any_interface_is_advertised_as_addresses_that_can_be_dialled(harness: Any) -> None:
    a = await harness.node(1, listen=("/ip4/0.0.0.0/tcp/0",))
    assert a.network.addresses()
    assert not any("/0.0.0.0/" in address for address in a.network.addresses())
