"""What py-libp2p 0.8.1 needs before it may face strangers: one named function per pitfall.

Stock py-libp2p is neither safe (five bytes of garbage end the host) nor fast (a window update per
read). Every fix first looks whether libp2p is still the one that it was written against; if not,
the fix is left out, which is logged and counted as `hardening_missing`, and the stock behaviour
stays. README.md has the table: pitfall, fix, test.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any
from weakref import WeakKeyDictionary

import libp2p.identity.identify.identify as identify_module
import libp2p.pubsub.gossipsub as gossipsub_module
import libp2p.pubsub.pubsub as pubsub_module
import trio
from libp2p.abc import IHost, INetStream
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.custom_types import TProtocol, TSecurityOptions
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.network import swarm as swarm_module
from libp2p.network.config import ConnectionConfig
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID, PROTOCOL_ID_V11, PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import YamuxStream

LIBP2P_VERSION = "0.8.1"
QUEUE_DEPTH = 1024
"""RPCs that may wait for one gossip peer, and messages for one subscription (stock: 32)."""
DIAL_HEAD_START_S = 0.02
"""Pause before the second address of a peer is dialled too (stock: 0.25, always waited)."""
RECORD_LIFE_S = 600.0
"""How long a verified peer record is believed without verifying it again."""
OWN_RECORD_LIFE_S = 5.0
RECORDS_KEPT = 4096
GOSSIP_RPC_BYTES = 64 * 1024
MAX_CONNECTIONS = 256
MAX_BUFFERED = 32 * 1024 * 1024
"""Bytes of one connection that nobody has read (two yamux windows at their largest)."""
MAX_STREAMS_PER_PEER = 512

_log = logging.getLogger("mesh.network")
_stock: dict[tuple[object, str], Any] = {}


def harden_library(tally: Counter[str]) -> None:
    """Apply the process-wide fixes (pitfalls 2, 4, 8). Idempotent."""
    version = metadata.version("libp2p")
    if version != LIBP2P_VERSION:
        _miss(tally, f"libp2p is {version}, hardened for {LIBP2P_VERSION}")
    batch_window_updates(tally)
    cache_signed_records(tally)
    deepen_queues(tally)
    shorten_dial_head_start(tally)


def restore_stock() -> None:
    """Undo `harden_library`: for tests that show what the stock behaviour does."""
    for (owner, name), value in _stock.items():
        setattr(owner, name, value)
    _stock.clear()


# --- 1: one bad stream ends the host ------------------------------------------------------------


@contextmanager
def contain(tally: Counter[str], what: str) -> Iterator[None]:
    """Keep whatever libp2p raises over a peer's bytes from ending the whole host; count it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - libp2p raises anything over a peer's bytes
        tally[f"{what}_contained"] += 1
        level = logging.ERROR if isinstance(error, AssertionError) else logging.DEBUG
        _log.log(level, "%s: contained %r", what, error, exc_info=level == logging.ERROR)


def contain_stream_failures(host: IHost, tally: Counter[str]) -> None:
    """Pitfall 1: an exception in any stream handler ends the swarm's nursery, and with it the host.

    The failing stream is reset instead.
    """
    inner: Callable[[INetStream], Awaitable[None]] | None
    inner = getattr(host, "_swarm_stream_handler", None)
    if inner is None:
        _miss(tally, "host._swarm_stream_handler is gone")
        return

    async def handle(stream: INetStream) -> None:
        finished = False
        with contain(tally, "stream"):
            await inner(stream)
            finished = True
        if not finished:
            with contain(tally, "stream_reset"), trio.move_on_after(1):
                await stream.reset()

    host.get_network().set_stream_handler(handle)


class SafePubsub(Pubsub):
    """Pubsub that junk cannot end (pitfall 1) and that refuses before it verifies.

    *admit(forwarder, message)* is asked before the signature is checked: verification is the
    expensive part of a flood.
    """

    def __init__(
        self,
        host: IHost,
        router: GossipSub,
        *,
        topics: Iterable[str],
        tally: Counter[str],
        admit: Callable[[ID, rpc_pb2.Message], bool],
    ) -> None:
        super().__init__(
            host,
            router,
            strict_signing=True,
            max_inbound_rpc_size=GOSSIP_RPC_BYTES,
            max_subscriptions_per_rpc=16,
            max_subscriptions_per_peer=16,
            allowed_topics=frozenset(topics),
        )
        self._tally = tally
        self._admit = admit

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Handle one message; called for our own and for each that arrives."""
        with contain(self._tally, "gossip"):
            if msg_forwarder == self.my_id or self._admit(msg_forwarder, msg):
                await super().push_msg(msg_forwarder, msg)


# --- 2: a window update per read, a signature per RPC -------------------------------------------


async def _release_half_windows(self: YamuxStream, *, bytes_read: int = 0) -> None:
    async with self.window_lock:
        self._pending_recv_release += bytes_read
        pending = self._pending_recv_release
        if pending == 0 or pending < self.target_recv_window // 2:
            return
        self._pending_recv_release = 0
        self.recv_window += pending
        buffered = len(self.conn.stream_buffers.get(self.stream_id, b""))
        increment = pending + self._apply_autotune_epoch(buffered)
    await self.send_window_update(increment, skip_lock=True)


def batch_window_updates(tally: Counter[str]) -> None:
    """Pitfall 2a: every `read()` sends a WINDOW_UPDATE frame of its own.

    With this the receiver gives back credit half a window at a time, as yamux means it to:
    https://github.com/hashicorp/yamux/blob/master/spec.md#flow-control
    """
    needed = ("_auto_tune_and_send_window_update", "_apply_autotune_epoch", "send_window_update")
    if all(hasattr(YamuxStream, name) for name in needed):
        _replace(YamuxStream, "_auto_tune_and_send_window_update", _release_half_windows)
    else:
        _miss(tally, "YamuxStream's window update changed")


def cache_signed_records(tally: Counter[str]) -> None:
    """Pitfall 2b: each gossip RPC carries a signed peer record, verified and built each time."""
    modules = (gossipsub_module, pubsub_module)
    names = ("maybe_consume_signed_record", "env_to_send_in_RPC")
    if not all(hasattr(module, name) for module in modules for name in names):
        _miss(tally, "the signed-record functions moved")
        return
    if (pubsub_module, names[0]) in _stock:
        return
    # Read by name: the modules re-export them without saying so.
    consume = _remember_records(getattr(pubsub_module, names[0]))
    issue = _remember_own_record(getattr(pubsub_module, names[1]))
    for module in modules:
        _replace(module, names[0], consume)
        _replace(module, names[1], issue)


def _remember_records(
    stock: Callable[[Any, IHost, ID], bool],
) -> Callable[[Any, IHost, ID], bool]:
    seen: WeakKeyDictionary[IHost, OrderedDict[tuple[ID, bytes], float]] = WeakKeyDictionary()

    def consume(msg: Any, host: IHost, peer_id: ID) -> bool:  # noqa: ANN401 - any protobuf with a record
        if not msg.HasField("senderRecord"):
            return True
        known = seen.setdefault(host, OrderedDict())
        key, now = (peer_id, msg.senderRecord), time.monotonic()
        if now - known.get(key, -RECORD_LIFE_S) < RECORD_LIFE_S:
            return True
        if not stock(msg, host, peer_id):
            return False
        known[key] = now
        while len(known) > RECORDS_KEPT:
            known.popitem(last=False)
        return True

    return consume


def _remember_own_record(
    stock: Callable[[IHost], tuple[bytes, bool]],
) -> Callable[[IHost], tuple[bytes, bool]]:
    issued: WeakKeyDictionary[IHost, tuple[float, tuple[bytes, bool]]] = WeakKeyDictionary()

    def issue(host: IHost) -> tuple[bytes, bool]:
        now = time.monotonic()
        last = issued.get(host)
        if last is None or now - last[0] >= OWN_RECORD_LIFE_S:
            last = issued[host] = (now, stock(host))
        return last[1]

    return issue


# --- 3, 4, 5: gossip ----------------------------------------------------------------------------


def explicit_router() -> GossipSub:
    """Pitfall 3: the defaults drop all over 10 messages a second and beat every 120 s."""
    return GossipSub(
        protocols=[PROTOCOL_ID_V12, PROTOCOL_ID_V11, PROTOCOL_ID],
        degree=4,
        degree_low=3,
        degree_high=8,
        time_to_live=60,
        gossip_window=3,
        gossip_history=5,
        heartbeat_initial_delay=0.1,
        heartbeat_interval=1,
        do_px=False,
        prune_back_off=10,
        adaptive_gossip_enabled=False,
        spam_protection_enabled=False,
        eclipse_protection_enabled=False,
    )


def deepen_queues(tally: Counter[str]) -> None:
    """Pitfall 4: gossip queues hold 32 and drop the rest without a word; and they split what is
    longer than 1 MiB, where we hear no more than `GOSSIP_RPC_BYTES` and hang up on the rest."""
    defaults = RpcQueue.__init__.__defaults__
    if not hasattr(pubsub_module, "SUBSCRIPTION_CHANNEL_SIZE") or len(defaults or ()) != 2:
        _miss(tally, "the gossip queues changed")
        return
    assert defaults is not None
    _replace(pubsub_module, "SUBSCRIPTION_CHANNEL_SIZE", QUEUE_DEPTH)
    _replace(RpcQueue.__init__, "__defaults__", (QUEUE_DEPTH, GOSSIP_RPC_BYTES * 3 // 4))


def number_messages_by_clock(pubsub: Pubsub, tally: Counter[str]) -> None:
    """Pitfall 5: sequence numbers restart at the second of the start, so that a node which sent
    faster than one a second loses its first messages after a restart as "seen".

    Nanoseconds of the wall clock only grow faster than any sender; they are compared to nothing.
    """
    if not hasattr(pubsub, "counter"):
        _miss(tally, "Pubsub.counter is gone")
        return
    pubsub.counter = time.time_ns()


# --- 6, 10: connections -------------------------------------------------------------------------


def watchful_connections() -> ConnectionConfig:
    """Pitfall 6: a half-open peer is never dropped, and deaf when it returns: ping, and drop.

    Watermarks at zero: discovery decides whom we dial (see also `still_auto_connector`).
    """
    return ConnectionConfig(
        max_connections=MAX_CONNECTIONS,
        min_connections=0,
        low_watermark=0,
        high_watermark=MAX_CONNECTIONS * 3 // 4,
        auto_connect_interval=3600,
        inbound_upgrade_timeout=5,
        outbound_upgrade_timeout=5,
        inbound_stream_protocol_negotiation_timeout=5,
        outbound_stream_protocol_negotiation_timeout=5,
        enable_health_monitoring=True,
        health_initial_delay=2,
        health_check_interval=4,
        health_warmup_window=1,
        ping_timeout=4,
        abort_connection_on_ping_failure=True,
    )


def only_noise(keys: KeyPair) -> TSecurityOptions:
    """Pitfall 10a: the default also offers SECIO and plaintext, and a TLS that others refuse."""
    return {NOISE: Noise(keys, noise_privkey=create_new_key_pair().private_key)}


def still_auto_connector(host: IHost, tally: Counter[str]) -> None:
    """Pitfall 10b: the auto-connector dials strangers from the address book at the start, hourly
    and at every loss, towards the middle of the watermarks, also when the lower one is zero.
    """
    connector = getattr(host.get_network(), "auto_connector", None)
    if not hasattr(connector, "maybe_connect"):
        _miss(tally, "the auto-connector changed")
        return

    async def stay() -> None:
        await trio.lowlevel.checkpoint()

    _set(connector, "maybe_connect", stay)


async def close_host(host: IHost, tally: Counter[str], *, within_s: float = 3.0) -> None:
    """Pitfall 6b: leaving `host.run` leaves the sockets open, and the peers believe us alive.

    All connections at once, since each takes 0.2 s; shielded and bounded.
    """
    with trio.CancelScope(shield=True), trio.move_on_after(within_s) as scope:
        async with trio.open_nursery() as nursery:
            for peer in list(host.get_connected_peers()):
                nursery.start_soon(_disconnect, host, peer, tally)
        with contain(tally, "close"):
            await host.close()
    if scope.cancelled_caught:
        tally["close_timed_out"] += 1


async def _disconnect(host: IHost, peer: ID, tally: Counter[str]) -> None:
    with contain(tally, "disconnect"):
        await host.disconnect(peer)


def free_inbound_slots(host: IHost, tally: Counter[str]) -> None:
    """Beyond the ten: each accepted connection keeps its slot until the host ends, so that after
    `max_connections` visits, however short, nobody can come in any more.

    The accepting task waits for the end of the swarm on purpose; here it ends with its connection.
    """
    network: Any = host.get_network()
    upgrade = getattr(network, "upgrade_inbound_raw_conn", None)
    if upgrade is None or not hasattr(network, "_inbound_limiter"):
        _miss(tally, "the swarm's inbound limiter changed")
        return

    async def upgrade_and_stay(raw: Any, address: Any) -> None:  # noqa: ANN401 - libp2p's own types
        connection = await upgrade(raw, address)
        await connection.event_closed.wait()
        raise SwarmException("the connection has ended")  # what the acceptor expects of a failure

    _set(network, "upgrade_inbound_raw_conn", upgrade_and_stay)


def overfull_peers(host: IHost) -> list[ID]:
    """Beyond the ten: yamux warns of a peer that writes past its window, and keeps the bytes; and
    it lets a peer open any number of streams. The peers who do either beyond reason.
    """
    full: list[ID] = []
    for connection in host.get_network().get_connections():
        muxer: Any = connection.muxed_conn
        held = sum(map(len, getattr(muxer, "stream_buffers", {}).values()))
        if held > MAX_BUFFERED or len(getattr(muxer, "streams", ())) > MAX_STREAMS_PER_PEER:
            full.append(muxer.peer_id)
    return full


def name_agent(agent: str, tally: Counter[str]) -> None:
    """Tell peers by identify what we run; process-wide, as libp2p has it."""
    if hasattr(identify_module, "AGENT_VERSION"):
        _replace(identify_module, "AGENT_VERSION", agent)
    else:
        _miss(tally, "identify's agent moved")


# --- 7: the DHT ---------------------------------------------------------------------------------


def strict_table(host: IHost, mode: Any) -> KadDHT:  # noqa: ANN401 - DHTMode
    """Pitfall 7a: records of unknown namespaces are accepted unseen unless validation is strict."""
    return KadDHT(host, mode, strict_validation=True)


async def find_all_providers(
    table: KadDHT, key: bytes, tally: Counter[str], *, each_s: float = 5.0
) -> list[ID]:
    """Pitfall 7b: the stock query answers from its own store first and counts duplicates.

    Asks every peer close to *key*; ids without repetition, our own store's first.
    """
    ask = getattr(table.provider_store, "_get_providers_from_peer_with_closers", None)
    if ask is None:
        _miss(tally, "the provider query changed")
        return list(
            dict.fromkeys(p.peer_id for p in await table.provider_store.find_providers(key))
        )
    found = dict.fromkeys(p.peer_id for p in table.provider_store.get_providers(key))

    async def ask_one(peer: ID) -> None:
        with contain(tally, "provider_query"), trio.move_on_after(each_s):
            providers, _ = await ask(peer, key)
            found.update(dict.fromkeys(p.peer_id for p in providers))

    async with trio.open_nursery() as nursery:
        for peer in await table.peer_routing.find_closest_peers_network(key):
            if peer != table.local_peer_id:
                nursery.start_soon(ask_one, peer)
    return list(found)


# --- 8: dialling --------------------------------------------------------------------------------


def shorten_dial_head_start(tally: Counter[str]) -> None:
    """Pitfall 8: each dial waits 250 ms for a second address, also when the first has succeeded."""
    if hasattr(swarm_module, "_HAPPY_EYEBALLS_DELAY"):
        _replace(swarm_module, "_HAPPY_EYEBALLS_DELAY", DIAL_HEAD_START_S)
    else:
        _miss(tally, "the dial head start is gone")


# --- 9: streams ---------------------------------------------------------------------------------


async def open_stream(host: IHost, peer: ID, protocol: str, *, within_s: float) -> INetStream:
    """Pitfall 9: the 256th stream of a connection waits for ever, and so does a dead peer.

    Raises trio.TooSlowError, and whatever libp2p raises. The caller ends it by `end_stream`.
    """
    with trio.fail_after(within_s):
        return await host.new_stream(peer, [TProtocol(protocol)])


async def end_stream(stream: INetStream, tally: Counter[str], *, clean: bool) -> None:
    """Close (*clean*) or reset a stream, also under cancellation: one left open is a slot lost.

    Yamux keeps a closed stream until the other end has closed it too; a reset ends it at once,
    with whatever is still under way.
    """
    with trio.CancelScope(shield=True), trio.move_on_after(1), contain(tally, "stream_end"):
        if clean:
            await stream.close()
        else:
            await stream.reset()


# --- seeing that libp2p changed -----------------------------------------------------------------


def _replace(owner: object, name: str, value: object) -> None:
    _stock.setdefault((owner, name), getattr(owner, name))
    setattr(owner, name, value)


def _set(owner: Any, name: str, value: object) -> None:  # noqa: ANN401 - one libp2p object
    setattr(owner, name, value)


def _miss(tally: Counter[str], why: str) -> None:
    if not tally["hardening_missing"]:
        _log.warning("libp2p changed: %s; its stock behaviour stays", why)
    tally["hardening_missing"] += 1
