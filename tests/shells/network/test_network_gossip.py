"""Offers to everybody: signed, bounded, never one's own, and forgeries go nowhere."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import PUBSUB_SIGNING_PREFIX
from libp2p.utils.varint import encode_uvarint

from mesh.ids import PeerId
from mesh.network.gossip import ENTRIES, ENTRY_MAX, OFFER_MAX, OFFERS, QUEUE, Gossip, Topic
from mesh.network.guard import Guard, GuardConfig
from mesh.network.hardening import SafePubsub


def make(host: Any, received: list[tuple[PeerId, bytes]], **more: Any) -> Gossip:
    """One that hears offers and entries; *more*: the guard, the tally, or what a topic asks."""
    guard, tally = more.pop("guard", Guard()), more.pop("tally", Counter())
    punish = more.pop("punish", lambda _peer, _why: None)

    def hear(peer: PeerId, data: bytes) -> None:
        received.append((peer, data))

    topics = [Topic(OFFERS, OFFER_MAX, hear, **more), Topic(ENTRIES, ENTRY_MAX, hear, **more)]
    return Gossip(host, guard, punish, topics, tally)


async def test_an_offer_reaches_everybody_with_its_author_and_not_oneself(harness: Any) -> None:
    a = await harness.node(1)
    others = [await harness.node(index, *a.network.addresses()) for index in (2, 3)]
    await harness.eventually(lambda: all(node.network.connected() for node in [a, *others]))

    async def offer_until_heard() -> None:
        number = 0
        while not all(node.offers for node in others):
            await a.network.publish_offer(b"%d" % number)
            number += 1
            with trio.move_on_after(0.2):
                await harness.eventually(lambda: all(node.offers for node in others))

    with trio.fail_after(20):
        await offer_until_heard()
    for node in others:
        assert {author for author, _ in node.offers} == {a.peer}
    assert a.offers == []


async def forge(harness: Any, **fields: Any) -> tuple[list[tuple[PeerId, bytes]], Counter[str]]:
    """What a listener makes of one raw message that an attacker writes to it."""
    victim, attacker, author = [await harness.host(index) for index in (1, 2, 3)]
    received: list[tuple[PeerId, bytes]] = []
    tally: Counter[str] = Counter()
    topics = fields.pop("topicIDs", [OFFERS])
    message = rpc_pb2.Message(
        from_id=author.get_id().to_bytes(), data=b"lie", seqno=b"\0" * 7 + b"\1", topicIDs=topics
    )
    signer = author if fields.pop("by_author", False) else attacker
    message.signature = signer.get_private_key().sign(
        PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString()
    )
    message.key = signer.get_public_key().serialize()
    for name, value in fields.items():
        setattr(message, name, value)
    done = trio.Event()
    stock_push = SafePubsub.push_msg

    async def push(self: SafePubsub, forwarder: Any, msg: Any) -> None:
        await stock_push(self, forwarder, msg)
        done.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SafePubsub, "push_msg", push)
        async with make(victim, received, tally=tally).run():
            await attacker.connect(harness.where(victim))
            stream = await attacker.new_stream(victim.get_id(), [PROTOCOL_ID_V11])
            data = rpc_pb2.RPC(publish=[message]).SerializeToString()
            await stream.write(encode_uvarint(len(data)) + data)
            with trio.fail_after(20):
                await done.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
    return received, tally


async def test_a_message_is_believed_when_its_author_signed_it(harness: Any) -> None:
    received, _ = await forge(harness, by_author=True)
    assert [data for _, data in received] == [b"lie"]


@pytest.mark.parametrize(
    "fields",
    [{}, {"signature": b""}, {"by_author": True, "data": b"changed"}, {"key": b"junk"}],
    ids=["another's signature", "no signature", "changed after signing", "junk key"],
)
async def test_a_forged_message_is_dropped(harness: Any, fields: dict[str, Any]) -> None:
    received, _ = await forge(harness, **fields)
    assert received == []


async def test_a_message_over_4_kib_is_dropped_before_its_signature_is_checked(
    harness: Any,
) -> None:
    received, tally = await forge(harness, data=bytes(OFFER_MAX + 1))
    assert received == []
    assert tally["gossip_refused"] == 1


async def hear(
    harness: Any,
    messages: list[bytes],
    handled: int,
    counter: str,
    topic: str = OFFERS,
    **more: Any,
) -> tuple[Any, Counter[str]]:
    """What one host hears of what another publishes, once *handled* are either delivered or in
    *counter*; *more* goes to the listener."""
    a, b = await harness.host(1), await harness.host(2)
    received: list[tuple[PeerId, bytes]] = []
    tally: Counter[str] = Counter()
    listener, speaker = make(a, received, tally=tally, **more), make(b, [])
    async with listener.run(), speaker.run():
        await b.connect(harness.where(a))
        await harness.eventually(lambda: bool(speaker.router.mesh.get(topic)))
        for message in messages:
            await speaker.publish(topic, message)
        await harness.eventually(lambda: len(received) + tally[counter] >= handled)
    return received, tally


async def test_what_the_validator_refuses_is_not_delivered_and_counts_against_the_forwarder(
    harness: Any,
) -> None:
    faults: list[str] = []
    received, tally = await hear(
        harness,
        [b"good", b"bad", b"good too"],
        3,
        "gossip_invalid",
        accepts=lambda _author, data: data.startswith(b"good"),
        punish=lambda _peer, why: faults.append(why),
    )
    assert [data for _, data in received] == [b"good", b"good too"]
    assert tally["gossip_invalid"] == 1
    assert len(faults) == 1


async def test_signatures_are_checked_within_the_forwarders_budget(harness: Any) -> None:
    guard = Guard(GuardConfig(verifications_per_s=0.001, burst_s=5000))
    received, tally = await hear(
        harness, [b"%d" % n for n in range(20)], 20, "gossip_refused", guard=guard
    )
    assert len(received) == 5
    assert tally["gossip_refused"] == 15


async def test_a_slow_consumer_loses_the_oldest_and_they_are_counted(harness: Any) -> None:
    gossip = make(await harness.host(1), [])
    author = bytes.fromhex("002408011220") + bytes(32)
    channel_in, channel_out = trio.open_memory_channel[Any](0)

    class Subscription:
        get = staticmethod(channel_out.receive)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(gossip._collect, gossip.topics[0], Subscription())
        for number in range(QUEUE + 10):
            await channel_in.send(rpc_pb2.Message(from_id=author, data=b"%d" % number))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert gossip.tally["gossip_dropped"] == 10
    assert len(gossip._waiting) == QUEUE
    assert gossip._waiting[0][2] == b"10"


async def test_a_message_over_the_limit_is_our_own_mistake(harness: Any) -> None:
    a = await harness.node(1)
    with pytest.raises(AssertionError):
        await a.network.publish_offer(bytes(OFFER_MAX + 1))


async def test_an_entry_may_be_longer_than_an_offer_and_no_longer_than_8_kib(harness: Any) -> None:
    faults: list[str] = []
    received, _ = await hear(
        harness, [bytes(ENTRY_MAX)], 1, "gossip_refused", topic=ENTRIES, punish=faults.append
    )
    assert [len(data) for _, data in received] == [ENTRY_MAX]
    received, tally = await forge(
        harness, by_author=True, topicIDs=[ENTRIES], data=bytes(ENTRY_MAX + 1)
    )
    assert (received, tally["gossip_refused"]) == ([], 1)


async def test_a_message_on_two_topics_is_refused_unread(harness: Any) -> None:
    received, tally = await forge(harness, by_author=True, topicIDs=[OFFERS, ENTRIES])
    assert (received, tally["gossip_refused"]) == ([], 1)


async def test_what_is_not_new_is_neither_checked_nor_punished(harness: Any) -> None:
    faults: list[str] = []
    checked: list[bytes] = []

    def accepts(_author: PeerId, data: bytes) -> bool:
        checked.append(data)
        return True

    received, tally = await hear(
        harness,
        [b"old", b"new", b"old"],
        3,
        "gossip_known",
        is_new=lambda data: data == b"new",
        accepts=accepts,
        punish=lambda _peer, why: faults.append(why),
    )
    assert ([data for _, data in received], checked, faults) == ([b"new"], [b"new"], [])
    assert tally["gossip_known"] == 2


async def test_what_is_dear_to_check_is_checked_within_the_forwarders_share_of_our_processor(
    harness: Any,
) -> None:
    guard = Guard(GuardConfig(cpu_ms_per_s=0.001, burst_s=5000))
    received, tally = await hear(
        harness, [b"%d" % n for n in range(20)], 20, "gossip_refused", guard=guard, cpu_ms=1.0
    )
    assert (len(received), tally["gossip_refused"]) == (5, 15)


async def test_a_flood_of_one_topic_drops_nothing_of_another(harness: Any) -> None:
    gossip = make(await harness.host(1), [])
    author = bytes.fromhex("002408011220") + bytes(32)
    offers, entries = gossip.topics
    for topic, count in ((offers, 3), (entries, QUEUE + 5)):
        sent, channel = trio.open_memory_channel[Any](QUEUE + 5)
        for number in range(count):
            sent.send_nowait(rpc_pb2.Message(from_id=author, data=b"%d" % number))

        class Subscription:
            get = staticmethod(channel.receive)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(gossip._collect, topic, Subscription())
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert gossip.tally["gossip_dropped"] == 5
    assert [data for topic, _, data in gossip._waiting if topic is offers] == [b"0", b"1", b"2"]
