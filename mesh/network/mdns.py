"""Meeting the meshes of the same local network, by multicast DNS.

https://github.com/libp2p/specs/blob/master/discovery/mdns.md under a service name of ours, so that
a mesh meets meshes only; a private mesh has a name of its own. Zeroconf lives in threads of its
own: what it hears enters trio through a bounded channel.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from hashlib import sha256

import trio
from attrs import define
from zeroconf import Error as ZeroconfError
from zeroconf import ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

QUEUE = 64
MAX_ADDRESSES = 8
LOOK_MS = 3000


def service_type(psk: str | None) -> str:
    """The name under which nodes of one mesh look for each other."""
    mesh = "mesh1" if psk is None else "m" + sha256(psk.lower().encode()).hexdigest()[:9]
    return f"_p2p-{mesh}._udp.local."


@asynccontextmanager
async def open_mdns(
    addresses: Sequence[str], psk: str | None, tally: Counter[str]
) -> AsyncIterator[trio.MemoryReceiveChannel[str]]:
    """Announce *addresses* (each with its /p2p/ part); a channel of the addresses heard.

    Without multicast the channel stays silent, counted as `mdns_failed`.
    """
    speak, heard = trio.open_memory_channel[str](QUEUE)
    token = trio.lowlevel.current_trio_token()

    def hear(text: str) -> None:
        try:
            speak.send_nowait(text)
        except (trio.WouldBlock, trio.BrokenResourceError):
            tally["mdns_dropped"] += 1

    ear = _Ear(say=lambda text: token.run_sync_soon(hear, text), own=frozenset(addresses))
    zeroconf: Zeroconf | None = None
    try:
        zeroconf = await trio.to_thread.run_sync(
            partial(_announce, service_type(psk), addresses, ear)
        )
    except (OSError, ZeroconfError):
        tally["mdns_failed"] += 1
    try:
        yield heard
    finally:
        if zeroconf is not None:
            with trio.CancelScope(shield=True):  # about a second: it says goodbye
                await trio.to_thread.run_sync(zeroconf.close)


def _announce(kind: str, addresses: Sequence[str], ear: ServiceListener) -> Zeroconf:
    zeroconf = Zeroconf()
    name = f"{secrets.token_hex(16)}.{kind}"
    zeroconf.register_service(_describe(kind, name, addresses[:MAX_ADDRESSES]))
    ServiceBrowser(zeroconf, kind, listener=ear)
    return zeroconf


def _describe(kind: str, name: str, addresses: Sequence[str]) -> ServiceInfo:
    """Peers read the TXT records only, but zeroconf gives no answer without an A record."""
    parts = [address.split("/") for address in addresses]
    return ServiceInfo(
        kind,
        name,
        port=next((int(part[4]) for part in parts), 0),
        parsed_addresses=list(dict.fromkeys(part[2] for part in parts)) or ["127.0.0.1"],
        properties={f"dnsaddr{i or ''}": text for i, text in enumerate(addresses)},
        server=name,
    )


@define
class _Ear(ServiceListener):
    """Called in zeroconf's thread."""

    say: Callable[[str], None]
    own: frozenset[str]

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        try:
            info = zc.get_service_info(type_, name, timeout=LOOK_MS)
        except (ZeroconfError, RuntimeError, AssertionError, OSError):
            return  # it is being closed, and asserts that it is not
        if info is None:
            return
        for key, value in list(info.properties.items())[:MAX_ADDRESSES]:
            if key.startswith(b"dnsaddr") and value is not None:
                text = value.decode(errors="replace")
                if text not in self.own:
                    with suppress(trio.RunFinishedError):
                        self.say(text)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """A peer that left is noticed by its connection."""
