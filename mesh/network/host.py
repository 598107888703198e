"""The libp2p host: TCP (and WebSocket) + Noise + Yamux, one Ed25519 key, watched connections."""

from __future__ import annotations

import errno
import logging
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import psutil
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.custom_types import TProtocol
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.rcmgr import new_resource_manager
from libp2p.rcmgr.manager import ResourceLimits, ResourceManager
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr.exceptions import Error as MultiaddrError
from multiaddr.multiaddr import Multiaddr

from mesh.errors import ConfigError
from mesh.ids import PeerId, format_peer, parse_peer
from mesh.network.hardening import (
    close_host,
    contain_stream_failures,
    free_inbound_slots,
    harden_library,
    name_agent,
    only_noise,
    still_auto_connector,
    watchful_connections,
)

MAX_STREAMS = 4096
_PSK = re.compile(r"[0-9a-fA-F]{64}")
_LISTEN_HINT = "give an address of this machine, such as /ip4/0.0.0.0/tcp/4001"
_ANY = {"ip4": "0.0.0.0", "ip6": "::"}  # noqa: S104 - compared with, not bound


def build_host(
    seed: bytes,
    listen: Sequence[Multiaddr],
    *,
    psk: str | None,
    agent: str,
    tally: Counter[str],
    connections: ConnectionConfig | None = None,
    announce: Sequence[Multiaddr] = (),
) -> IHost:
    """A hardened host that does not listen yet. *psk*: 64 hex digits of a private mesh, or None.

    *announce*: what others are told to dial; none: where it listens.
    """
    assert len(seed) == 32
    if psk is not None and not _PSK.fullmatch(psk):
        raise ConfigError("network.psk", "not 64 hex digits", "make one: openssl rand -hex 32")
    harden_library(tally)
    name_agent(agent, tally)
    _quieten()
    secret = Ed25519PrivateKey.from_bytes(seed)
    keys = KeyPair(secret, secret.get_public_key())
    host = new_host(
        key_pair=keys,
        sec_opt=only_noise(keys),
        muxer_opt={TProtocol(YAMUX): Yamux},
        listen_addrs=listen,
        connection_config=connections or watchful_connections(),
        resource_manager=_resources(),
        psk=psk,
        addrs_factory=(lambda _: list(announce)) if announce else _advertise,
        disable_identify_address_discovery=True,
    )
    contain_stream_failures(host, tally)
    free_inbound_slots(host, tally)
    still_auto_connector(host, tally)
    return host


@asynccontextmanager
async def run_host(
    host: IHost, listen: Sequence[Multiaddr], tally: Counter[str]
) -> AsyncIterator[None]:
    """Listen; close every connection at the end. Raises ConfigError if an address cannot be."""
    for address in listen:
        _check_free(address)
    missing: list[str] = []
    async with host.run(list(listen)):
        try:
            missing = [str(a) for a in listen if str(a) not in _listeners(host)]
            if not missing:
                yield
        finally:
            await close_host(host, tally)
    if missing:  # raised out here, where no nursery wraps it
        raise ConfigError("network.listen", f"cannot listen on {missing[0]}", _LISTEN_HINT)


def parse_listen(texts: Sequence[str], key: str = "network.listen") -> tuple[Multiaddr, ...]:
    """Addresses without their peer. Raises ConfigError about *key*."""
    return tuple(_parse(text, key, "such as /ip4/0.0.0.0/tcp/4001") for text in texts)


def parse_dial(text: str, key: str) -> PeerInfo:
    """An address with its peer, `/ip4/…/tcp/…/p2p/12D3KooW…`. Raises ConfigError about *key*."""
    hint = "such as /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW…, as `mesh status` prints it"
    address = _parse(text, key, hint)
    name, _, peer = str(address).rpartition("/p2p/")
    if not name:
        raise ConfigError(key, f"{text} names no peer", hint)
    try:
        return PeerInfo(to_libp2p(parse_peer(peer)), [Multiaddr(name)])
    except ValueError as error:
        raise ConfigError(key, str(error), hint) from None


def to_libp2p(peer: PeerId) -> ID:
    """Our peer id as libp2p's."""
    return ID.from_base58(format_peer(peer))


def from_libp2p(peer: ID) -> PeerId:
    """libp2p's peer id as ours. Raises ValueError if its key is not Ed25519."""
    return parse_peer(peer.to_base58())


def _parse(text: str, key: str, hint: str) -> Multiaddr:
    try:
        address = Multiaddr(text)
        address.value_for_protocol("tcp")
    except (ValueError, LookupError, MultiaddrError) as error:
        raise ConfigError(key, f"{text}: {error}", hint) from None
    return address


def _check_free(address: Multiaddr) -> None:
    """libp2p binds with SO_REUSEPORT, so two nodes would quietly share one port."""
    parts = dict(zip(*[iter(str(address).strip("/").split("/"))] * 2, strict=False))
    version = next((v for v in _ANY if v in parts), None)
    if version is None:
        return
    family = socket.AF_INET if version == "ip4" else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((parts[version], int(parts["tcp"])))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                hint = "another node here? choose another port, or 0 for any"
                raise ConfigError("network.listen_port", f"{address} is in use", hint) from None
            raise ConfigError(
                "network.listen", f"{address}: {error.strerror}", _LISTEN_HINT
            ) from None


def _listeners(host: IHost) -> set[str]:
    return {str(address) for address in host.get_network().listeners}


def _advertise(addresses: list[Multiaddr]) -> list[Multiaddr]:
    """Addresses that others can dial: "any interface" becomes the interfaces, the routed one first
    (libp2p dials one address per transport only), loopback only when there is nothing else.
    """
    texts: dict[str, None] = {}
    for address in addresses:
        for version, wildcard in _ANY.items():
            prefix = f"/{version}/{wildcard}/"
            if str(address).startswith(prefix):
                rest = str(address).removeprefix(prefix)
                texts.update(dict.fromkeys(f"/{version}/{ip}/{rest}" for ip in _own_ips(version)))
                break
        else:
            texts[str(address)] = None
    return [Multiaddr(text) for text in texts]


def _own_ips(version: str) -> list[str]:
    family = socket.AF_INET if version == "ip4" else socket.AF_INET6
    loopback, elsewhere = ("127.0.0.1", "192.0.2.1") if version == "ip4" else ("::1", "2001:db8::1")
    ips: list[str] = []
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((elsewhere, 9))  # a documentation address: chooses a route, sends nothing
            ips.append(probe.getsockname()[0])
        except OSError:
            pass
    for interface in psutil.net_if_addrs().values():
        ips += [a.address for a in interface if a.family == family and "%" not in a.address]
    return [ip for ip in dict.fromkeys(ips) if ip != loopback] or [loopback]


def _resources() -> ResourceManager:
    """Plain limits. The stock circuit breaker would refuse everybody for a minute after five
    refusals, which any stranger can bring about."""
    return new_resource_manager(
        limits=ResourceLimits(max_streams=MAX_STREAMS),
        enable_metrics=False,
        enable_memory_limits=False,
        enable_memory_pooling=False,
        enable_circuit_breaker=False,
        enable_graceful_degradation=False,
    )


def _quieten() -> None:
    """libp2p reports every peer's mistake on stderr; ours to count, not the operator's to read."""
    logger = logging.getLogger("libp2p")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
