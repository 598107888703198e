"""Finding peers: bootstrap addresses, known peers, the Kademlia table; and being found."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import trio
from attrs import define, field, frozen
from libp2p.abc import IHost
from libp2p.exceptions import BaseLibp2pError
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.tools.anyio_service import background_trio_service
from multiaddr.exceptions import Error as MultiaddrError
from multiaddr.multiaddr import Multiaddr

from mesh.errors import Unavailable
from mesh.ids import PeerId, short_peer
from mesh.network.hardening import contain, find_all_providers, strict_table
from mesh.network.host import from_libp2p, to_libp2p
from mesh.network.known import KnownPeers, load_known, save_known

ADDRESS_LIFE_S = 3600


@frozen
class DiscoveryConfig:
    """Times in seconds."""

    dial_s: float = 10.0
    retry_s: float = 0.5
    retry_max_s: float = 30.0
    watch_s: float = 10.0
    """How often a bootstrap address that is connected, or being alone, is looked at again."""
    first_lookups: tuple[float, ...] = (0.0, 1.0, 3.0)
    growing_s: float = 5.0
    """Pause while lookups still find somebody new."""
    lookup_s: float = 60.0
    lookup_limit_s: float = 30.0
    save_s: float = 15.0
    remembered: int = 8
    """Known peers that are dialled by who is alone."""


@define(eq=False)
class Discovery:
    """Keeps this node connected and its table fresh."""

    host: IHost
    bootstrap: Sequence[PeerInfo]
    folder: Path | None
    rng: random.Random
    tally: Counter[str]
    config: DiscoveryConfig = field(factory=DiscoveryConfig)
    known: KnownPeers = field(factory=KnownPeers, init=False)
    _table: KadDHT = field(init=False)
    _dialling: dict[ID, trio.Event] = field(factory=dict, init=False)
    _met: trio.Event = field(factory=trio.Event, init=False)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Look for peers until the end of the block; then keep what is known for the next start."""
        await self._load()
        self._table = strict_table(self.host, DHTMode.SERVER)
        async with background_trio_service(self._table), trio.open_nursery() as nursery:
            for info in self.bootstrap:
                if info.peer_id != self.host.get_id():
                    nursery.start_soon(self._stay_connected, info)
            nursery.start_soon(self._rejoin)
            nursery.start_soon(self._look_up)
            nursery.start_soon(self._remember)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True), trio.move_on_after(2):
                    await self._save()

    # --- reaching -----------------------------------------------------------------------------

    async def reach(self, peer: PeerId) -> None:
        """Be connected to *peer*: by addresses known here, else by asking. Raises Unavailable."""
        there = to_libp2p(peer)
        if self.is_connected(there):
            return
        with trio.move_on_after(self.config.dial_s):
            addresses = self._addresses(there) or await self._ask_for(there)
            await self.dial(PeerInfo(there, addresses))
            return
        raise Unavailable(f"{short_peer(peer)} cannot be reached in {self.config.dial_s:g} s")

    async def meet(self, info: PeerInfo) -> None:
        """Dial somebody whose address was heard, once; failing is no news."""
        try:
            with trio.move_on_after(self.config.dial_s):
                await self.dial(info)
        except Unavailable:
            self.tally["meetings_failed"] += 1

    async def dial(self, info: PeerInfo) -> None:
        """Connect to a peer at the addresses given, one after the other. Raises Unavailable."""
        peer = info.peer_id
        while peer in self._dialling:
            await self._dialling[peer].wait()
        if self.is_connected(peer):
            return
        self._dialling[peer] = trio.Event()
        try:
            problem = await self._try_addresses(info)
        finally:
            self._dialling.pop(peer).set()
        if not self.is_connected(peer):
            self.tally["dials_failed"] += 1
            raise Unavailable(f"{str(peer)[-6:]} cannot be reached: {problem}")
        self.note(peer)

    async def _try_addresses(self, info: PeerInfo) -> str:
        network: Any = self.host.get_network()
        network.unblock_peer(info.peer_id)  # our own backoff replaces libp2p's 60 s of silence
        problem = "no address is known"
        for address in info.addrs:
            try:
                network.peerstore.add_addrs(info.peer_id, [address], ADDRESS_LIFE_S)
                await network.dial_addr(address, info.peer_id)
                break
            except BaseLibp2pError as error:
                problem = str(error.__cause__ or error)
        return problem

    def is_connected(self, peer: ID) -> bool:
        """Is there a connection to *peer* that is not closed?"""
        return any(not c.is_closed for c in self.host.get_network().get_connections(peer))

    def note(self, peer: ID) -> None:
        """*peer* is connected: remember where."""
        self._met.set()
        with contain(self.tally, "note"):
            texts = (_bare(address) for address in self._addresses(peer))
            self.known.learn(from_libp2p(peer), dict.fromkeys(texts))

    def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        """Where *peer* was last known to listen, without the /p2p/ part."""
        return tuple(str(address) for address in self._addresses(to_libp2p(peer)))

    def _addresses(self, peer: ID) -> list[Multiaddr]:
        try:
            stored = self.host.get_peerstore().addrs(peer)
        except KeyError:  # libp2p's PeerStoreError: unknown, or its time is up
            stored = []
        known = self.known.addresses_of(from_libp2p(peer))
        named = [a for info in self.bootstrap if info.peer_id == peer for a in info.addrs]
        return _multiaddrs(dict.fromkeys([*map(_bare, stored), *map(_bare, named), *known]))

    async def _ask_for(self, peer: ID) -> list[Multiaddr]:
        with contain(self.tally, "find_peer"):
            info = await self._table.peer_routing.find_peer(peer)
            return list(info.addrs) if info else []
        return []

    # --- staying in touch ---------------------------------------------------------------------

    async def _stay_connected(self, info: PeerInfo) -> None:
        """Dial a bootstrap address, again and again with backoff."""
        failures = 0
        while True:
            try:
                with trio.move_on_after(self.config.dial_s):
                    await self.dial(info)
                failures = 0
                pause = self.config.watch_s
            except Unavailable:
                pause = min(self.config.retry_s * 2.0**failures, self.config.retry_max_s)
                failures = min(failures + 1, 16)
            await trio.sleep(pause * self.rng.uniform(0.5, 1.0))

    async def _rejoin(self) -> None:
        """While nobody is connected, dial those met last: at the start and after an outage."""
        while True:
            if not self.host.get_connected_peers():
                async with trio.open_nursery() as nursery:
                    for peer, addresses in self.known.newest(self.config.remembered):
                        info = PeerInfo(to_libp2p(peer), _multiaddrs(addresses))
                        nursery.start_soon(self.meet, info)
            await trio.sleep(self.config.watch_s * self.rng.uniform(0.5, 1.0))

    # --- the table ----------------------------------------------------------------------------

    async def _look_up(self) -> None:
        """Ask for our own neighbourhood: at 0, 1, 3 s after the first contact, then each minute.

        Jitter keeps nodes that start together from asking together: a table serves twelve at once.
        """
        await self._wait_for_contact()
        waited = 0.0
        for after in self.config.first_lookups:
            await trio.sleep(after - waited + self.rng.uniform(0.0, 0.5))
            waited = after
            await self._look_around()
        while True:
            grew = await self._look_around()
            pause = self.config.growing_s if grew else self.config.lookup_s
            await trio.sleep(pause * self.rng.uniform(0.7, 1.3))

    async def _wait_for_contact(self) -> None:
        while not self.host.get_connected_peers():
            with trio.move_on_after(1):
                await self._met.wait()

    async def _look_around(self) -> bool:
        """One self-lookup; True if somebody new was found."""
        before = self._table.get_routing_table_size(), len(self.host.get_connected_peers())
        with contain(self.tally, "lookup"), trio.move_on_after(self.config.lookup_limit_s):
            for peer in self.host.get_connected_peers():
                await self._table.add_peer(peer)
            await self._table.peer_routing.find_closest_peers_network(self.host.get_id().to_bytes())
            self.tally["lookups"] += 1
        for peer in self.host.get_connected_peers():
            self.note(peer)
        after = self._table.get_routing_table_size(), len(self.host.get_connected_peers())
        return after > before

    # --- providers ----------------------------------------------------------------------------

    async def provide(self, key: str) -> None:
        """Be listed under *key* by the nodes close to it."""
        await self._table.provider_store.provide(_table_key(key))

    async def find_providers(self, key: str) -> list[PeerId]:
        """Who is listed under *key* anywhere, ourselves included; some may be gone."""
        found: list[PeerId] = []
        for peer in await find_all_providers(self._table, _table_key(key), self.tally):
            with contain(self.tally, "provider"):
                found.append(from_libp2p(peer))
        return found

    # --- the store ----------------------------------------------------------------------------

    async def _load(self) -> None:
        if self.folder is None:
            return
        try:
            self.known = await trio.to_thread.run_sync(load_known, self.folder)
        except (ValueError, OSError):
            self.tally["known_peers_damaged"] += 1

    async def _remember(self) -> None:
        while True:
            await trio.sleep(self.config.save_s)
            await self._save()

    async def _save(self) -> None:
        if self.folder is None or not self.known.changed:
            return
        self.known.changed = False
        try:
            await trio.to_thread.run_sync(save_known, self.folder, self.known.encode())
        except OSError:
            self.tally["known_peers_unsaved"] += 1


def _multiaddrs(texts: Iterable[str]) -> list[Multiaddr]:
    """Those of *texts* that are addresses: the store on disk may have been edited."""
    found: list[Multiaddr] = []
    for text in texts:
        with suppress(ValueError, LookupError, MultiaddrError):
            found.append(Multiaddr(text))
    return found


def _bare(address: Multiaddr) -> str:
    return str(address).partition("/p2p/")[0]


def _table_key(key: str) -> bytes:
    """A sha2-256 multihash in a namespace of ours."""
    return b"\x12\x20" + sha256(b"mesh/1/provide\0" + key.encode()).digest()
