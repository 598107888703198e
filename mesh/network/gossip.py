"""The public address system: topics that everybody hears, each message signed, small and rare."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio
from attrs import define, field, frozen
from libp2p.abc import IHost, ISubscriptionAPI
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.tools.anyio_service import background_trio_service

from mesh.ids import PeerId
from mesh.network.guard import Guard
from mesh.network.hardening import SafePubsub, explicit_router, number_messages_by_clock
from mesh.network.host import from_libp2p

OFFERS = "mesh/1/offers"
OFFER_MAX = 4096
ENTRIES = "mesh/1/entries"
ENTRY_MAX = 8192
QUEUE = 512
"""Messages of a topic that may wait for the consumer; the oldest is dropped and counted."""


@frozen
class Topic:
    """What is said under one name, and who hears it.

    The functions run within the event loop: a fraction of a millisecond, and they must not raise.
    """

    name: str
    bytes_max: int
    on_message: Callable[[PeerId, bytes], None]
    """Gets (author, data) of every message of others that `accepts` lets pass; the author is who
    signed it, not who passed it on."""
    is_new: Callable[[bytes], bool] = lambda _data: True
    """Asked before any signature is looked at. What is not new goes no further, and is no fault."""
    accepts: Callable[[PeerId, bytes], bool] = lambda _author, _data: True
    """Validity: what it refuses is not passed on, and counts against the forwarder."""
    cpu_ms: float = 0.0
    """What looking at one message costs; 0: libp2p's own check of its signature alone."""


@define(eq=False)
class Gossip:
    """All topics of this node."""

    host: IHost
    guard: Guard
    punish: Callable[[PeerId, str], None]
    topics: Sequence[Topic]
    tally: Counter[str]
    router: GossipSub = field(factory=explicit_router)
    _by_name: dict[str, Topic] = field(init=False)
    _pubsub: SafePubsub = field(init=False)
    _waiting: deque[tuple[Topic, PeerId, bytes]] = field(factory=deque, init=False)
    _counts: Counter[str] = field(factory=Counter, init=False)
    """How many of each topic wait."""
    _arrived: trio.Event = field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self._by_name = {topic.name: topic for topic in self.topics}

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Be subscribed, and call back until the end of the block."""
        self._pubsub = SafePubsub(
            self.host, self.router, topics=self._by_name, tally=self.tally, admit=self._admit
        )
        number_messages_by_clock(self._pubsub, self.tally)
        for name in self._by_name:
            self._pubsub.set_topic_validator(name, self._validate, False)
        async with background_trio_service(self._pubsub), background_trio_service(self.router):
            await self._pubsub.wait_until_ready()
            async with trio.open_nursery() as nursery:
                for topic in self.topics:
                    subscription = await self._pubsub.subscribe(topic.name)
                    nursery.start_soon(self._collect, topic, subscription)
                nursery.start_soon(self._hand_over)
                yield
                nursery.cancel_scope.cancel()

    async def publish(self, name: str, data: bytes) -> None:
        """Sign *data* and send it to the mesh."""
        assert len(data) <= self._by_name[name].bytes_max, "a gossip message over its limit"
        self.tally["gossip_published"] += 1
        await self._pubsub.publish(name, data)

    def _admit(self, forwarder: ID, message: rpc_pb2.Message) -> bool:
        try:
            peer = from_libp2p(forwarder)
        except ValueError:
            return False
        topic = self._topic_of(peer, message)
        if topic is not None and not topic.is_new(message.data):
            self.tally["gossip_known"] += 1
            return False
        is_admitted = topic is not None and self._is_affordable(peer, topic)
        self.tally["gossip_refused"] += not is_admitted
        return is_admitted

    def _topic_of(self, peer: PeerId, message: rpc_pb2.Message) -> Topic | None:
        """The one that *message* is about; None, and the forwarder's fault, if it is not fit."""
        topic = self._by_name.get(message.topicIDs[0]) if len(message.topicIDs) == 1 else None
        if topic is None:
            self.punish(peer, "gossip about more than one topic")
        elif len(message.data) > topic.bytes_max:
            self.punish(peer, "gossip over the limit")
            return None
        return topic

    def _is_affordable(self, peer: PeerId, topic: Topic) -> bool:
        now = trio.current_time()
        if topic.cpu_ms:
            return self.guard.admits_work(peer, topic.cpu_ms, now)
        return self.guard.admits_verification(peer, now)

    def _validate(self, forwarder: ID, message: rpc_pb2.Message) -> bool:
        if forwarder == self.host.get_id():
            return True
        try:
            author, via = from_libp2p(ID(message.from_id)), from_libp2p(forwarder)
        except ValueError:
            return False
        if not self._by_name[message.topicIDs[0]].accepts(author, message.data):
            self.tally["gossip_invalid"] += 1
            self.punish(via, "invalid gossip")
            return False
        return True

    async def _collect(self, topic: Topic, subscription: ISubscriptionAPI) -> None:
        mine = self.host.get_id().to_bytes()
        while True:
            message = await subscription.get()
            if message.from_id == mine:
                continue
            if self._counts[topic.name] >= QUEUE:
                self._drop_oldest(topic)
            self._waiting.append((topic, from_libp2p(ID(message.from_id)), message.data))
            self._counts[topic.name] += 1
            self.tally["gossip_received"] += 1
            self._arrived.set()

    def _drop_oldest(self, topic: Topic) -> None:
        """So that a flood of one topic costs the others nothing."""
        oldest = next(at for at, (other, _, _) in enumerate(self._waiting) if other is topic)
        del self._waiting[oldest]
        self._counts[topic.name] -= 1
        self.tally["gossip_dropped"] += 1

    async def _hand_over(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived = trio.Event()
            while self._waiting:
                topic, author, data = self._waiting.popleft()
                self._counts[topic.name] -= 1
                topic.on_message(author, data)
                await trio.lowlevel.checkpoint()
