"""The peers that this node has met, on disk: how it finds back without its bootstrap addresses."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from attrs import define, field

from mesh.ids import PeerId, format_peer, parse_peer

MAX_PEERS = 256
MAX_ADDRESSES = 8
MAX_FILE = 1024 * 1024
FILE = "peers.json"


@define
class KnownPeers:
    """Addresses (multiaddrs without /p2p/) by peer, the newest last inside and first on disk."""

    _addresses: OrderedDict[PeerId, tuple[str, ...]] = field(factory=OrderedDict, init=False)
    changed: bool = field(default=False, init=False)

    def learn(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """*peer* answers at *addresses* now; nothing is learnt from no address."""
        kept = tuple(addresses)[:MAX_ADDRESSES]
        if not kept:
            return
        is_newest = next(reversed(self._addresses), None) == peer
        if is_newest and self._addresses[peer] == kept:
            return
        self._addresses[peer] = kept
        self._addresses.move_to_end(peer)
        while len(self._addresses) > MAX_PEERS:
            self._addresses.popitem(last=False)
        self.changed = True

    def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        """The last known addresses of *peer*."""
        return self._addresses.get(peer, ())

    def newest(self, count: int) -> list[tuple[PeerId, tuple[str, ...]]]:
        """The *count* peers met last."""
        return list(reversed(self._addresses.items()))[:count]

    def __len__(self) -> int:
        return len(self._addresses)

    def encode(self) -> bytes:
        """JSON for the state folder; what `decode` reads."""
        peers = [
            {"peer": format_peer(peer), "addresses": list(addresses)}
            for peer, addresses in self.newest(MAX_PEERS)
        ]
        return json.dumps({"version": 1, "peers": peers}, indent=1).encode()

    @classmethod
    def decode(cls, data: bytes) -> KnownPeers:
        """Raises ValueError: a damaged file is a loss of comfort, not of truth."""
        known = cls()
        try:
            for entry in reversed(json.loads(data)["peers"]):
                addresses = [str(address) for address in entry["addresses"]]
                known.learn(parse_peer(entry["peer"]), addresses)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a list of known peers: {error}") from None
        known.changed = False
        return known


def load_known(folder: Path) -> KnownPeers:
    """The store in *folder*; empty if there is none. Raises ValueError if it is damaged."""
    try:
        with (folder / FILE).open("rb") as file:
            data = file.read(MAX_FILE)
    except FileNotFoundError:
        return KnownPeers()
    return KnownPeers.decode(data)


def save_known(folder: Path, data: bytes) -> None:
    """Replace the store in *folder* by *data* at once: never half a file. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / (FILE + ".new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(folder / FILE)
