"""A node's way to the others: what node.py uses of this package."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio
from attrs import define, field, frozen
from libp2p.abc import IHost
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from mesh.errors import ConfigError
from mesh.ids import PeerId, short_peer
from mesh.network import streams
from mesh.network.calls import Answer, Call, Calls
from mesh.network.discovery import Discovery
from mesh.network.gossip import OFFER_MAX, OFFERS, Gossip, Topic
from mesh.network.guard import Guard
from mesh.network.hardening import contain, overfull_peers
from mesh.network.host import (
    build_host,
    from_libp2p,
    parse_dial,
    parse_listen,
    run_host,
    to_libp2p,
)
from mesh.network.mdns import open_mdns
from mesh.network.requests import Requests
from mesh.network.streams import Postman

_log = logging.getLogger("mesh.network")

BLOCKS = "/mesh/1/blocks"
"""The request protocol of storage."""
LEDGER = "/mesh/ledger/1"
"""The protocol of calls between replicas of the ledger."""
WITNESS = "/mesh/1/witness"
"""The request protocol of votes for what is signed on a chain."""
PATROL_S = 0.5
FAULT = 3.0
"""Score of one protocol fault: four in quick succession make a ban."""


@frozen
class NetworkConfig:
    """What the operator decides."""

    seed: bytes
    """Ed25519 secret, 32 bytes."""
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    announce: tuple[str, ...] = ()
    """What others are told to dial instead, without /p2p/; empty: where it listens."""
    bootstrap: tuple[str, ...] = ()
    mdns: bool = False
    psk: str | None = None
    """64 hex digits, the same on every node of a private mesh."""
    state_folder: Path | None = None
    agent: str = "mesh"


@define(eq=False)
class Network:
    """The running network. Calls that do not say otherwise never wait."""

    peer: PeerId
    _host: IHost
    _guard: Guard
    _tally: Counter[str]
    _nursery: trio.Nursery
    _discovery: Discovery = field(init=False)
    _postman: Postman = field(init=False)
    _requests: Requests = field(init=False)
    _calls: Calls = field(init=False)
    _gossip: Gossip = field(init=False)

    def addresses(self) -> tuple[str, ...]:
        """Where others are to dial this node, each with its /p2p/ part."""
        return tuple(str(address) for address in self._host.get_addrs())

    def send_nowait(self, peer: PeerId, frame: bytes) -> bool:
        """Queue *frame* (<= 64 KiB) for *peer*; False when it was dropped and counted.

        A frame may be lost or repeated; one to ourselves or to a banned peer is dropped.
        """
        if peer == self.peer or self._guard.is_banned(peer, trio.current_time()):
            self._tally["frames_dropped"] += 1
            return False
        return self._postman.send_nowait(peer, frame)

    async def publish_offer(self, data: bytes) -> None:
        """Gossip *data* (<= 4 KiB) to the mesh."""
        await self._gossip.publish(OFFERS, data)

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip *data* to all who hear *topic*, which is one of ours."""
        await self._gossip.publish(topic, data)

    async def request(self, peer: PeerId, protocol: str, payload: bytes, timeout_s: float) -> bytes:
        """The answer of *peer*, <= 1 MiB either way. Raises Unavailable or PeerError."""
        return await self._requests.request(peer, protocol, payload, timeout_s)

    def call(self, peer: PeerId, protocol: str) -> AbstractAsyncContextManager[Call]:
        """A stream both ways to *peer*, for the length of the block. Raises Unavailable."""
        return self._calls.call(peer, protocol)

    def is_answering(self, peer: PeerId) -> bool:
        """Whether *peer* is calling us."""
        return self._calls.is_answering(peer)

    def connected(self) -> tuple[PeerId, ...]:
        """The peers with an open connection."""
        found: list[PeerId] = []
        for peer in self._host.get_connected_peers():
            with contain(self._tally, "connected"):
                found.append(from_libp2p(peer))
        return tuple(found)

    async def connect(self, multiaddr: str) -> None:
        """Dial `/ip4/…/tcp/…/p2p/…`. Raises ConfigError (not an address) or Unavailable."""
        await self._discovery.dial(parse_dial(multiaddr, "address"))

    def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        """Where *peer* was last known to listen, without the /p2p/ part."""
        return self._discovery.addresses_of(peer)

    async def provide(self, key: str) -> None:
        """Be found under *key* (such as "wasm") by `find_providers`."""
        await self._discovery.provide(key)

    async def find_providers(self, key: str) -> list[PeerId]:
        """All nodes listed under *key*, ourselves included; some may be gone."""
        return await self._discovery.find_providers(key)

    def penalize(self, peer: PeerId, reason: str) -> None:
        """A protocol fault of *peer*; at the limit it is banned for a while and disconnected."""
        self._tally["faults"] += 1
        _log.info("fault of %s: %s", short_peer(peer), reason)
        self._punish(peer, FAULT)

    def ban(self, peer: PeerId, reason: str) -> None:
        """Ban and disconnect *peer* at once."""
        _log.warning("banned %s: %s", short_peer(peer), reason)
        self._punish(peer, self._guard.config.ban_score)

    def _punish(self, peer: PeerId, weight: float) -> None:
        if self._guard.fault(peer, weight, trio.current_time()):
            self._tally["bans"] += 1
            self._nursery.start_soon(self._disconnect, to_libp2p(peer))

    def statistics(self) -> Mapping[str, int]:
        """Counters since the start, and how many peers and outboxes there are now."""
        return {
            **self._tally,
            "connections": len(self._host.get_connected_peers()),
            "outboxes": len(self._postman),
            "guarded_peers": len(self._guard),
            "guarded_forgotten": self._guard.forgotten,
            "known_peers": len(self._discovery.known),
        }

    async def _disconnect(self, peer: ID) -> None:
        with contain(self._tally, "disconnect"):
            await self._host.disconnect(peer)


@asynccontextmanager
async def open_network(
    config: NetworkConfig,
    *,
    rng: random.Random,
    on_frame: Callable[[PeerId, bytes], None],
    on_offer: Callable[[PeerId, bytes], None],
    serve: Mapping[str, Callable[[PeerId, bytes], Awaitable[bytes]]],
    topics: Sequence[Topic] = (),
    answers: Mapping[str, Answer] | None = None,
) -> AsyncIterator[Network]:
    """Join the mesh until the end of the block.

    *on_frame(sender, frame)* and *on_offer(author, data)* must not wait; *serve* answers requests
    by protocol, *answers* calls; *topics* are what else is gossiped. Raises ConfigError for what
    the operator must mend.
    """
    tally: Counter[str] = Counter()
    listen = parse_listen(config.listen)
    announce = parse_listen(config.announce, "network.announce")
    bootstrap = [parse_dial(text, "network.bootstrap") for text in config.bootstrap]
    host = build_host(
        config.seed, listen, psk=config.psk, agent=config.agent, tally=tally, announce=announce
    )
    peer = from_libp2p(host.get_id())
    async with run_host(host, listen, tally), trio.open_nursery() as nursery:
        guard = Guard()
        network = Network(peer, host, guard, tally, nursery)
        discovery = network._discovery = Discovery(host, bootstrap, config.state_folder, rng, tally)
        postman = network._postman = Postman(
            host, discovery.reach, on_frame, guard, network.penalize, rng, tally, nursery
        )
        requests = network._requests = Requests(
            host, discovery.reach, serve, guard, network.penalize, tally
        )
        calls = network._calls = Calls(
            host, discovery.reach, answers or {}, guard, network.penalize, tally
        )
        offers = Topic(OFFERS, OFFER_MAX, on_offer)
        gossip = network._gossip = Gossip(host, guard, network.penalize, (offers, *topics), tally)
        host.set_stream_handler(TProtocol(streams.PROTOCOL), postman.receive)
        requests.register()
        calls.register()
        nursery.start_soon(postman.hand_over)
        nursery.start_soon(_patrol, host, network)
        async with gossip.run(), discovery.run():
            if config.mdns:
                nursery.start_soon(_meet_neighbours, network, discovery, config.psk)
            yield network
        nursery.cancel_scope.cancel()


async def _patrol(host: IHost, network: Network) -> None:
    """Throw out whoever holds too much of our memory, and the banned who came back."""
    while True:
        await trio.sleep(PATROL_S)
        for peer in overfull_peers(host):
            with contain(network._tally, "patrol"):
                network.ban(from_libp2p(peer), "more unread bytes or streams than allowed")
        for banned in network.connected():
            if network._guard.is_banned(banned, trio.current_time()):
                network._nursery.start_soon(network._disconnect, to_libp2p(banned))


async def _meet_neighbours(network: Network, discovery: Discovery, psk: str | None) -> None:
    async with open_mdns(network.addresses(), psk, network._tally) as heard:
        async for text in heard:
            try:
                info = parse_dial(text, "mdns")
            except ConfigError:
                network._tally["mdns_invalid"] += 1
                continue
            if not discovery.is_connected(info.peer_id):
                await discovery.meet(info)
