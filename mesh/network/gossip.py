"""The public address system: offers to everybody, signed, at most 4 KiB, at a low rate."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio
from attrs import define, field
from libp2p.abc import IHost, ISubscriptionAPI
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.tools.anyio_service import background_trio_service

from mesh.ids import PeerId
from mesh.network.guard import Guard
from mesh.network.hardening import SafePubsub, explicit_router, number_messages_by_clock
from mesh.network.host import from_libp2p

TOPIC = "mesh/1/offers"
MAX_MESSAGE = 4096
QUEUE = 512
"""Messages that may wait for the consumer; the oldest is dropped and counted."""


@define(eq=False)
class Gossip:
    """One topic. `on_message(author, data)` gets every message of others that `accepts` lets pass;
    the author is who signed it, not who passed it on."""

    host: IHost
    guard: Guard
    punish: Callable[[PeerId, str], None]
    on_message: Callable[[PeerId, bytes], None]
    tally: Counter[str]
    accepts: Callable[[PeerId, bytes], bool] = lambda _author, _data: True
    """Cheap validity: what it refuses is not passed on, and counts against the forwarder."""
    router: GossipSub = field(factory=explicit_router)
    _pubsub: SafePubsub = field(init=False)
    _waiting: deque[tuple[PeerId, bytes]] = field(factory=deque, init=False)
    _arrived: trio.Event = field(factory=trio.Event, init=False)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Be subscribed, and call back until the end of the block."""
        self._pubsub = SafePubsub(
            self.host, self.router, topic=TOPIC, tally=self.tally, admit=self._admit
        )
        number_messages_by_clock(self._pubsub, self.tally)
        self._pubsub.set_topic_validator(TOPIC, self._validate, False)
        async with background_trio_service(self._pubsub), background_trio_service(self.router):
            await self._pubsub.wait_until_ready()
            subscription = await self._pubsub.subscribe(TOPIC)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._collect, subscription)
                nursery.start_soon(self._hand_over)
                yield
                nursery.cancel_scope.cancel()

    async def publish(self, data: bytes) -> None:
        """Sign *data* and send it to the mesh."""
        assert len(data) <= MAX_MESSAGE, "a gossip message over the protocol's limit"
        self.tally["gossip_published"] += 1
        await self._pubsub.publish(TOPIC, data)

    def _admit(self, forwarder: ID, size: int) -> bool:
        try:
            peer = from_libp2p(forwarder)
        except ValueError:
            return False
        if size > MAX_MESSAGE:
            self.punish(peer, "gossip over the limit")
            return False
        return self.guard.admits_verification(peer, trio.current_time())

    def _validate(self, forwarder: ID, message: rpc_pb2.Message) -> bool:
        try:
            author, via = from_libp2p(ID(message.from_id)), from_libp2p(forwarder)
        except ValueError:
            return False
        if list(message.topicIDs) != [TOPIC] or not self.accepts(author, message.data):
            self.tally["gossip_invalid"] += 1
            self.punish(via, "invalid gossip")
            return False
        return True

    async def _collect(self, subscription: ISubscriptionAPI) -> None:
        mine = self.host.get_id().to_bytes()
        while True:
            message = await subscription.get()
            if message.from_id == mine:
                continue
            if len(self._waiting) >= QUEUE:
                self._waiting.popleft()
                self.tally["gossip_dropped"] += 1
            self._waiting.append((from_libp2p(ID(message.from_id)), message.data))
            self.tally["gossip_received"] += 1
            self._arrived.set()

    async def _hand_over(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived = trio.Event()
            while self._waiting:
                self.on_message(*self._waiting.popleft())
                await trio.lowlevel.checkpoint()
