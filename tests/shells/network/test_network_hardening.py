"""The pitfalls of libp2p, each with its fix on and off: off shows the stock harm."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import libp2p.pubsub.utils as pubsub_utils
import pytest
import trio
import trio.testing
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.exceptions import StreamFailure
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network import swarm as swarm_module
from libp2p.network.config import ConnectionConfig
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.records.utils import InvalidRecordType
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.stream_muxer.yamux.yamux import YamuxStream
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils.varint import encode_uvarint
from multiaddr.multiaddr import Multiaddr

from mesh.network import hardening
from mesh.network.gossip import OFFER_MAX, OFFERS, Gossip, Topic
from mesh.network.guard import Guard
from mesh.network.host import build_host, run_host

LOOPBACK = Multiaddr("/ip4/127.0.0.1/tcp/0")
ECHO = "/test/1/echo"
STOCK_S = 0.7
"""How long to look for what is not expected to happen."""
HARDENED = pytest.mark.parametrize("hardened", [True, False], ids=["hardened", "stock"])


def use_library(hardened: bool) -> None:
    """The process-wide fixes on or off; the next test finds them on."""
    if hardened:
        hardening.harden_library(Counter())
    else:
        hardening.restore_stock()


async def pair(harness: Any, **more: Any) -> tuple[IHost, IHost]:
    """Two bare hosts, the second connected to the first."""
    a, b = await harness.host(1, **more), await harness.host(2, **more)
    await b.connect(harness.where(a))
    return a, b


def make_gossip(host: IHost, tally: Counter[str], received: list[bytes], **more: Any) -> Gossip:
    return Gossip(
        host,
        Guard(),
        lambda _peer, _why: None,
        [Topic(OFFERS, OFFER_MAX, lambda _peer, data: received.append(data))],
        tally,
        **more,
    )


# --- 1 ----------------------------------------------------------------------------------------


@HARDENED
async def test_1_a_handler_that_raises_ends_only_its_stream(harness: Any, hardened: bool) -> None:
    host = await harness.host(2)
    fragile = new_host(key_pair=create_new_key_pair())
    tally: Counter[str] = Counter()
    if hardened:
        hardening.contain_stream_failures(fragile, tally)

    async def fail(_stream: Any) -> None:
        raise ValueError("five bytes of garbage")

    async def attack() -> str:
        fragile.set_stream_handler(ECHO, fail)
        async with fragile.run([LOOPBACK]):
            await host.connect(harness.where(fragile))
            with suppress(StreamFailure):  # the reset may overtake the negotiation
                await host.new_stream(fragile.get_id(), [ECHO])
            await harness.eventually(lambda: bool(tally))
            return "alive"

    if hardened:
        assert await attack() == "alive"
        assert tally["stream_contained"] == 1
    else:
        with pytest.raises(ExceptionGroup) as caught:
            await attack()
        assert caught.value.subgroup(trio.TooSlowError) is None


@HARDENED
async def test_1_a_message_with_a_junk_author_does_not_end_gossip(
    harness: Any, hardened: bool
) -> None:
    attacker = await harness.host(2)
    victim = await harness.host(1)
    tally: Counter[str] = Counter()
    router = hardening.explicit_router()
    service = (
        hardening.SafePubsub(victim, router, topics=[OFFERS], tally=tally, admit=lambda *_: True)
        if hardened
        else Pubsub(victim, router)
    )
    rpc = rpc_pb2.RPC()
    rpc.publish.append(
        rpc_pb2.Message(
            from_id=b"\x01\x02junk",
            data=b"x",
            seqno=b"1",
            topicIDs=[OFFERS],
            signature=b"z",
            key=b"junk",
        )
    )
    junk = rpc.SerializeToString()

    async def attack() -> None:
        async with background_trio_service(service), background_trio_service(router):
            await service.subscribe(OFFERS)
            await attacker.connect(harness.where(victim))
            stream = await attacker.new_stream(victim.get_id(), [PROTOCOL_ID_V11])
            await stream.write(encode_uvarint(len(junk)) + junk)
            await harness.eventually(lambda: bool(tally))
            assert service.manager.is_running

    if hardened:
        await attack()
        assert tally["gossip_contained"] == 1
    else:
        with pytest.raises(ExceptionGroup) as caught:
            await attack()
        assert caught.value.subgroup(trio.TooSlowError) is None


# --- 2 ----------------------------------------------------------------------------------------


@HARDENED
async def test_2_reading_gives_window_back_in_halves_not_at_every_read(
    harness: Any, hardened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await pair(harness)
    use_library(hardened)
    updates = []
    stock_send = YamuxStream.send_window_update

    async def count(self: YamuxStream, increment: int, skip_lock: bool = False) -> None:
        updates.append(increment)
        await stock_send(self, increment, skip_lock)

    monkeypatch.setattr(YamuxStream, "send_window_update", count)
    done = trio.Event()

    async def read_all(stream: Any) -> None:
        for _ in range(1000):
            await read_exactly(stream, 10)
        done.set()

    a.set_stream_handler(ECHO, read_all)
    stream = await b.new_stream(a.get_id(), [ECHO])
    updates.clear()
    await stream.write(bytes(10_000))
    with trio.fail_after(20):
        await done.wait()
    assert len(updates) <= 1 if hardened else len(updates) > 500


async def read_exactly(stream: Any, size: int) -> None:
    while size:
        size -= len(await stream.read(size))


async def test_2_batched_updates_neither_starve_nor_flood_a_reader(harness: Any) -> None:
    """Back-pressure still works: the writer is held while nobody reads, and gets through after."""
    a, b = await pair(harness)
    total, may_read, received = 4 * 1024 * 1024, trio.Event(), [0]

    async def read_late(stream: Any) -> None:
        await may_read.wait()
        while received[0] < total:
            received[0] += len(await stream.read(64 * 1024))

    a.set_stream_handler(ECHO, read_late)
    stream = await b.new_stream(a.get_id(), [ECHO])
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, bytes(total))
            muxer: Any = a.get_network().get_connections()[0].muxed_conn
            await harness.eventually(lambda: held(muxer) > 255 * 1024)
            assert held(muxer) <= 256 * 1024
            may_read.set()
    await harness.eventually(lambda: received[0] == total)


def held(muxer: Any) -> int:
    """Bytes received and not read."""
    return sum(map(len, muxer.stream_buffers.values()))


@HARDENED
async def test_2_a_signed_record_is_verified_once(
    harness: Any, hardened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await harness.host(1), await harness.host(2)
    use_library(hardened)
    checks = []
    stock_check = pubsub_utils.consume_envelope

    def count(*args: Any) -> Any:
        checks.append(1)
        return stock_check(*args)

    monkeypatch.setattr(pubsub_utils, "consume_envelope", count)
    module: Any = hardening.pubsub_module
    envelope, _ = module.env_to_send_in_RPC(a)
    rpc = rpc_pb2.RPC(senderRecord=envelope)
    assert all(module.maybe_consume_signed_record(rpc, b, a.get_id()) for _ in range(10))
    assert not module.maybe_consume_signed_record(rpc, b, b.get_id())
    assert len(checks) == (2 if hardened else 11)


# --- 3, 4, 5 ----------------------------------------------------------------------------------


@HARDENED
async def test_3_more_than_ten_messages_a_second_get_through(harness: Any, hardened: bool) -> None:
    def stock_router() -> GossipSub:
        return GossipSub(protocols=[PROTOCOL_ID_V11], degree=4, degree_low=3, degree_high=8)

    router = hardening.explicit_router if hardened else stock_router
    heard = await hear_burst(harness, 40, router, hardened=hardened)
    assert heard == 40 if hardened else heard < 40


@HARDENED
async def test_4_a_burst_is_queued_not_dropped(harness: Any, hardened: bool) -> None:
    router = hardening.explicit_router
    heard = await hear_burst(harness, 150, router, hardened=hardened, library=hardened)
    assert heard == 150 if hardened else heard < 150


@HARDENED
def test_4_no_rpc_is_longer_than_the_other_side_takes(hardened: bool) -> None:
    """A peer that missed many messages asks for all at once: one answer would end its stream."""
    use_library(hardened)
    messages = [rpc_pb2.Message(data=bytes(8192)) for _ in range(30)]
    rpc = rpc_pb2.RPC(publish=messages, senderRecord=bytes(2000))
    parts = RpcQueue().split_rpc(rpc)
    longest = max(part.ByteSize() for part in parts)
    assert sum(len(part.publish) for part in parts) == 30
    assert (longest <= hardening.GOSSIP_RPC_BYTES) == hardened


async def hear_burst(
    harness: Any, count: int, router: Any, *, hardened: bool, library: bool = True
) -> int:
    """How many of *count* messages, published without a pause, the other host hears."""
    a, b = await harness.host(1), await harness.host(2)
    use_library(library)
    received: list[bytes] = []
    listener = make_gossip(a, Counter(), received, router=router())
    speaker = make_gossip(b, Counter(), [], router=router())
    async with listener.run(), speaker.run():
        await b.connect(harness.where(a))
        await harness.eventually(lambda: bool(speaker.router.mesh.get(OFFERS)))
        for number in range(count):
            await speaker.publish(OFFERS, b"%d" % number)
        with trio.move_on_after(float("inf") if hardened else STOCK_S):
            await harness.eventually(lambda: len(received) == count)
    return len(received)


@HARDENED
async def test_5_messages_after_a_restart_are_not_taken_for_seen(
    harness: Any, hardened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same key publishes, restarts within the second, and publishes again."""
    if not hardened:
        monkeypatch.setattr("mesh.network.gossip.number_messages_by_clock", lambda *_: None)
        monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
    a = await harness.host(1)
    received: list[bytes] = []
    async with make_gossip(a, Counter(), received).run():
        for life in range(2):
            await publish_and_leave(harness, a, [b"%d %d" % (life, n) for n in range(20)])
        if hardened:
            await harness.eventually(lambda: len(received) == 40)
    assert len(received) == 40 if hardened else len(received) < 40


async def publish_and_leave(harness: Any, listener: IHost, messages: list[bytes]) -> None:
    """One short life of a host that always has the same key."""
    tally: Counter[str] = Counter()
    host = build_host(bytes([9]) * 32, [LOOPBACK], psk=None, agent="t", tally=tally)
    async with run_host(host, [LOOPBACK], tally):
        speaker = make_gossip(host, tally, [])
        async with speaker.run():
            await host.connect(harness.where(listener))
            await harness.eventually(lambda: bool(speaker.router.mesh.get(OFFERS)))
            for message in messages:
                await speaker.publish(OFFERS, message)
            queues = speaker._pubsub.peer_queues
            await harness.eventually(lambda: not any(map(len, queues.values())))
            await trio.testing.wait_all_tasks_blocked(0.01)
    await harness.eventually(lambda: not listener.get_connected_peers())


# --- 6 ----------------------------------------------------------------------------------------


@HARDENED
async def test_6_a_peer_that_answers_no_ping_is_dropped(harness: Any, hardened: bool) -> None:
    quick = dataclasses.replace(
        hardening.watchful_connections() if hardened else ConnectionConfig(),
        health_initial_delay=0.01,
        health_check_interval=0.05,
        health_warmup_window=0.01,
        ping_timeout=0.1,
    )
    a = await harness.host(1, connections=quick)
    b = await harness.host(2)

    async def stay_silent(_stream: Any) -> None:
        await trio.sleep_forever()

    b.set_stream_handler("/ipfs/ping/1.0.0", stay_silent)
    await b.connect(harness.where(a))
    with trio.move_on_after(float("inf") if hardened else STOCK_S):
        await harness.eventually(lambda: not a.get_connected_peers())
    assert bool(a.get_connected_peers()) is not hardened


async def test_6_closing_a_host_ends_its_connections_at_the_other_end(harness: Any) -> None:
    a, b = await pair(harness)
    await hardening.close_host(b, Counter())
    await harness.eventually(lambda: not a.get_connected_peers())


# --- 7 ----------------------------------------------------------------------------------------


@HARDENED
async def test_7_records_of_unknown_namespaces_are_refused(harness: Any, hardened: bool) -> None:
    host = await harness.host(1)
    table = (
        hardening.strict_table(host, DHTMode.SERVER) if hardened else KadDHT(host, DHTMode.SERVER)
    )
    async with background_trio_service(table):
        if hardened:
            with pytest.raises(InvalidRecordType):
                await table.put_value("/unheard/of", b"x")
        else:
            await table.put_value("/unheard/of", b"x")


@HARDENED
async def test_7_providers_are_sought_in_the_whole_network(harness: Any, hardened: bool) -> None:
    """Our own store knows one of the two providers: the stock query is content with it."""
    hosts = [await harness.host(index) for index in (1, 2, 3)]
    tables = [hardening.strict_table(host, DHTMode.SERVER) for host in hosts]
    key = b"\x12\x20" + bytes(32)
    async with (
        background_trio_service(tables[0]),
        background_trio_service(tables[1]),
        background_trio_service(tables[2]),
    ):
        for host in hosts[1:]:
            await host.connect(harness.where(hosts[0]))
        for table in tables[1:]:
            await table.add_peer(hosts[0].get_id())
            await table.provider_store.provide(key)
        tables[1].provider_store.providers[key] = {
            peer: record
            for peer, record in tables[1].provider_store.providers[key].items()
            if record.peer_id == hosts[1].get_id()
        }
        if hardened:
            found = await hardening.find_all_providers(tables[1], key, Counter())
            assert set(found) == {hosts[1].get_id(), hosts[2].get_id()}
            assert len(found) == 2
        else:
            stock_found = await tables[1].provider_store.find_providers(key)
            assert [info.peer_id for info in stock_found] == [hosts[1].get_id()]


# --- 8 ----------------------------------------------------------------------------------------


@HARDENED
async def test_8_a_dial_does_not_wait_for_a_second_address(harness: Any, hardened: bool) -> None:
    a, b = await harness.host(1), await harness.host(2)
    use_library(hardened)
    started = trio.current_time()
    await b.connect(harness.where(a))
    if hardened:
        assert swarm_module._HAPPY_EYEBALLS_DELAY == hardening.DIAL_HEAD_START_S
    else:
        assert trio.current_time() - started >= 0.25


# --- 9 ----------------------------------------------------------------------------------------


async def test_9_the_256th_stream_is_refused_in_time_and_ended_streams_free_their_slot(
    harness: Any,
) -> None:
    a, b = await pair(harness)

    async def stay(stream: Any) -> None:
        while await stream.read(1):
            pass

    a.set_stream_handler(ECHO, stay)
    muxer: Any = b.get_network().get_connections()[0].muxed_conn
    await harness.eventually(lambda: muxer.stream_backlog_semaphore.value == 256)
    muxer.stream_backlog_semaphore = trio.Semaphore(2)
    first = await hardening.open_stream(b, a.get_id(), ECHO, within_s=10)
    second = await hardening.open_stream(b, a.get_id(), ECHO, within_s=10)
    with pytest.raises(trio.TooSlowError):
        await hardening.open_stream(b, a.get_id(), ECHO, within_s=0.1)
    await hardening.end_stream(first, Counter(), clean=True)
    await hardening.end_stream(second, Counter(), clean=False)
    assert muxer.stream_backlog_semaphore.value == 2


async def test_9_a_stream_is_ended_also_when_its_user_is_cancelled(harness: Any) -> None:
    a, b = await pair(harness)

    async def stay(stream: Any) -> None:
        await stream.read(1)

    a.set_stream_handler(ECHO, stay)
    muxer: Any = b.get_network().get_connections()[0].muxed_conn
    stream = await hardening.open_stream(b, a.get_id(), ECHO, within_s=10)
    before = len(muxer.streams)
    with trio.CancelScope() as scope:
        scope.cancel()
        await hardening.end_stream(stream, Counter(), clean=False)
    assert len(muxer.streams) == before - 1


# --- 10 ---------------------------------------------------------------------------------------


@HARDENED
async def test_10_nobody_comes_in_without_encryption(harness: Any, hardened: bool) -> None:
    keys = create_new_key_pair()
    naked = new_host(key_pair=keys, sec_opt={PLAINTEXT_PROTOCOL_ID: InsecureTransport(keys)})
    async with naked.run([LOOPBACK]):
        if hardened:
            target = await harness.host(1)
            with pytest.raises(Exception, match="unable to connect"):
                await naked.connect(harness.where(target))
            assert not target.get_connected_peers()
            return
        target = new_host(key_pair=create_new_key_pair())
        async with target.run([LOOPBACK]):
            await naked.connect(harness.where(target))
            assert target.get_connected_peers()
            await target.close()
        await naked.close()


@HARDENED
async def test_10_nobody_is_dialled_but_by_discovery(harness: Any, hardened: bool) -> None:
    """An address in the book is dialled by the stock auto-connector as soon as it looks."""
    a, b = await harness.host(1), await harness.host(2)
    network: Any = b.get_network()
    if not hardened:
        del network.auto_connector.maybe_connect
    b.get_peerstore().add_addrs(a.get_id(), a.get_addrs(), 60)
    await network.auto_connector.maybe_connect()
    with trio.move_on_after(STOCK_S if hardened else float("inf")):
        await harness.eventually(lambda: bool(a.get_connected_peers()))
    assert bool(a.get_connected_peers()) is not hardened
