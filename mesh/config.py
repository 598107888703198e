"""What an operator may set: every key, its default, its unit and its bounds; layers with origins.

Pure: text and mappings in, values out. The command line reads the files. A later layer never wins
silently: the origin of every value is kept, and `mesh config list --origin` shows it.

    flags > MESH_SECTION__KEY > ./mesh.toml > the user's file > /etc/mesh/config.toml > defaults
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import Attribute, field, fields, frozen

from mesh import kinds
from mesh.errors import ConfigError
from mesh.kinds import Kind
from mesh.resources.capacity import Capacity

DEFAULT = "default"
"""The origin of a value that nobody set."""
MIB = 1 << 20
GIB = 1 << 30


def _key(kind: Kind, doc: str) -> dict[str, object]:
    return {"kind": kind, "doc": doc}


@frozen
class Node:
    name: str = field(
        default="", metadata=_key(kinds.NAME, "What people call this node; empty: none.")
    )


@frozen
class Network:
    listen_host: str = field(
        default="0.0.0.0",  # noqa: S104  (peers must reach us; nothing but libp2p listens here)
        metadata=_key(kinds.HOST, "Where other nodes reach this one (libp2p over TCP)."),
    )
    listen_port: int = field(
        default=4001, metadata=_key(kinds.port(), "libp2p's port; 0: any free one.")
    )
    bootstrap: tuple[str, ...] = field(
        default=(), metadata=_key(kinds.ADDRESSES, "Nodes to meet first, as full multiaddresses.")
    )
    announce: tuple[str, ...] = field(
        default=(),
        metadata=_key(
            kinds.LISTENS, "What others are told to dial, such as a forwarded port; empty: as is."
        ),
    )
    mdns: bool = field(
        default=True,
        metadata=_key(kinds.FLAG, "Find and be found by nodes of the same local network."),
    )
    psk_file: str = field(
        default="",
        metadata=_key(
            kinds.PATH, "File with the private network's key, 64 hex digits; empty: public."
        ),
    )
    grpc_host: str = field(
        default="127.0.0.1", metadata=_key(kinds.LOOPBACK, "Where clients reach this node.")
    )
    grpc_port: int = field(
        default=50_051,
        metadata=_key(kinds.port(), "gRPC for clients; 0: any free one."),
    )
    websocket_port: int = field(
        default=9001,
        metadata=_key(kinds.port(), "WebSocket for watchers; 0: any free one."),
    )


@frozen
class Sell:
    enabled: bool = field(
        default=True,
        metadata=_key(kinds.FLAG, "Sell this machine's idle capacity; false: only buy."),
    )
    yields: bool = field(
        default=True,
        metadata=_key(
            kinds.FLAG, "Give way to the owner's own load; false: the machine is there to sell."
        ),
    )
    cpus: int | None = field(
        default=None,
        metadata=_key(
            kinds.or_auto(kinds.cores(10, 4_096_000)), "Cores; auto: all but one, of one a half."
        ),
    )
    memory: int | None = field(
        default=None,
        metadata=_key(
            kinds.or_auto(kinds.size(16 * MIB, 64 << 40, "4GiB")),
            "RAM; auto: three quarters of it.",
        ),
    )
    disk: int | None = field(
        default=None,
        metadata=_key(
            kinds.or_auto(kinds.size(MIB, 1 << 50, "20GiB")),
            "Scratch disk; auto: a quarter of what is free, at most 20GiB.",
        ),
    )
    slots: int | None = field(
        default=None,
        metadata=_key(
            kinds.or_auto(kinds.whole(1, 4096, "tasks")), "Tasks at a time; auto: one a core."
        ),
    )
    price: int = field(
        default=40_000,
        metadata=_key(kinds.money(0, 10**15), "Asking price in credits for 10^9 units of fuel."),
    )
    checkpoint_s: int = field(
        default=600,
        metadata=_key(
            kinds.seconds(2, 86_400), "Seconds, at most, between two kept states of a task."
        ),
    )

    def capacity(self, machine: Capacity) -> Capacity:
        """What is sold of *machine*: its cores, its RAM, its free disk. Never more than it has."""
        if not self.enabled:
            return Capacity()
        auto_cpu = machine.cpu_milli - 1000 if machine.cpu_milli > 1000 else machine.cpu_milli // 2
        cpu = min(auto_cpu if self.cpus is None else self.cpus, machine.cpu_milli)
        memory = machine.memory * 3 // 4 if self.memory is None else self.memory
        disk = min(machine.disk // 4, 20 * GIB) if self.disk is None else self.disk
        return Capacity(
            cpu_milli=cpu,
            memory=min(memory, machine.memory),
            disk=min(disk, machine.disk),
            slots=-(-cpu // 1000) if self.slots is None else self.slots,
        )


@frozen
class Ipfs:
    api_url: str = field(
        default="http://localhost:5001",
        metadata=_key(kinds.URL, "RPC of an IPFS daemon, used when one answers; none is needed."),
    )


@frozen
class Market:
    candidates: int = field(
        default=8,
        metadata=_key(kinds.whole(1, 32, "nodes"), "Nodes asked in a task's first auction."),
    )
    window_ms: int = field(
        default=300,
        metadata=_key(kinds.milliseconds(50, 900), "Milliseconds that an auction waits for bids."),
    )
    lease_ttl_s: int = field(
        default=15,
        metadata=_key(kinds.seconds(3, 600), "Seconds that a lease lives without being renewed."),
    )


@frozen
class Identity:
    key_file: str = field(
        default="", metadata=_key(kinds.PATH, "The node's key; empty: node.key in the keys folder.")
    )


@frozen
class Storage:
    quota: int = field(
        default=10 * GIB,
        metadata=_key(
            kinds.size(64 * MIB, 1 << 50, "10GiB"), "Most that the embedded store may hold."
        ),
    )


@frozen
class Forecast:
    model: str = field(
        default="auto",
        metadata=_key(kinds.choice("auto", "baseline"), "Forecaster of the owner's own load."),
    )


@frozen
class Ledger:
    repair_s: int = field(
        default=30,
        metadata=_key(kinds.seconds(1, 3600), "Seconds, about, between comparisons with a peer."),
    )
    full_repair_s: int = field(
        default=3600,
        metadata=_key(
            kinds.seconds(10, 86_400), "Seconds between comparisons entry by entry, forks included."
        ),
    )
    credit_line: int = field(
        default=1_000_000_000,
        metadata=_key(kinds.money(0, 10**15), "Credits that one buyer may owe this node."),
    )
    tier: str = field(
        default="T1",
        metadata=_key(
            kinds.choice("T0", "T1", "T2"), "Guard against overspending: lines, gossip, witnesses."
        ),
    )
    witnesses: tuple[str, ...] = field(
        default=(), metadata=_key(kinds.PEERS, "Peer ids of the witnesses that T2 trusts.")
    )
    witness: bool = field(
        default=False, metadata=_key(kinds.FLAG, "Serve as a witness for those who name this node.")
    )
    archive: bool = field(
        default=True,
        metadata=_key(kinds.FLAG, "Keep every entry; false: prune what witnesses have sealed."),
    )


@frozen
class Config:
    """Everything that is set, section by section."""

    node: Node = Node()
    network: Network = Network()
    sell: Sell = Sell()
    ipfs: Ipfs = Ipfs()
    market: Market = Market()
    identity: Identity = Identity()
    storage: Storage = Storage()
    forecast: Forecast = Forecast()
    ledger: Ledger = Ledger()
    origins: Mapping[str, str] = field(factory=dict, eq=False, repr=False)
    """Where each key that is not a default was set."""


@frozen
class Layer:
    """One source of settings: section → key → value."""

    origin: str
    values: Mapping[str, object]


@frozen
class Setting:
    """One key as it stands."""

    key: str
    value: str
    """As TOML."""
    origin: str
    doc: str
    allowed: str


def parse_toml(text: str, origin: str) -> Layer:
    """The layer that a configuration file holds. Raises ConfigError where it is not TOML."""
    try:
        return Layer(origin, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(origin, f"is not TOML: {error}", "see config/config.toml") from None


def environment_layers(environ: Mapping[str, str]) -> list[Layer]:
    """A layer for each `MESH_SECTION__KEY` of *environ*, so that each has its own origin."""
    layers = []
    for variable in sorted(environ):
        section, separator, key = variable.removeprefix("MESH_").lower().partition("__")
        if variable.startswith("MESH_") and separator:
            layers.append(Layer(f"env {variable}", {section: {key: environ[variable]}}))
    return layers


def configure(layers: Sequence[Layer]) -> Config:
    """*layers* laid over the defaults; the last one wins, key by key.

    Raises ConfigError for an unknown key (naming the nearest), a bad type or a value out of range.
    """
    chosen: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for section, key, raw in _entries(layer):
            name = f"{section}.{key}"
            chosen.setdefault(section, {})[key] = _read(name, raw, layer.origin)
            origins[name] = layer.origin
    sections = {name: kind(**chosen.get(name, {})) for name, kind in _SECTIONS.items()}
    config = Config(origins=origins, **sections)
    _check_ports(config)
    return config


def settings(config: Config) -> list[Setting]:
    """Every key in the order of its section, as `mesh config list` shows it."""
    return [
        Setting(
            key=name,
            value=kind_of(attribute).write(getattr(getattr(config, section), attribute.name)),
            origin=config.origins.get(name, DEFAULT),
            doc=str(attribute.metadata["doc"]),
            allowed=kind_of(attribute).what,
        )
        for name, section, attribute in _attributes()
    ]


def find_setting(config: Config, name: str) -> Setting:
    """The one key *name*. Raises ConfigError that names the nearest."""
    for setting in settings(config):
        if setting.key == name:
            return setting
    raise _unknown(name, [key for key, _, _ in _attributes()], "asked for")


def kind_of(attribute: Attribute[Any]) -> Kind:
    """How a field of a section is read and written."""
    kind = attribute.metadata["kind"]
    assert isinstance(kind, Kind)
    return kind


_SECTIONS: dict[str, type[Any]] = {
    "node": Node,
    "network": Network,
    "sell": Sell,
    "ipfs": Ipfs,
    "market": Market,
    "identity": Identity,
    "storage": Storage,
    "forecast": Forecast,
    "ledger": Ledger,
}


def _attributes() -> Iterator[tuple[str, str, Attribute[Any]]]:
    for section, kind in _SECTIONS.items():
        for attribute in fields(kind):
            yield f"{section}.{attribute.name}", section, attribute


_KINDS = {name: kind_of(attribute) for name, _, attribute in _attributes()}


def _entries(layer: Layer) -> Iterator[tuple[str, str, object]]:
    for section, values in layer.values.items():
        if section not in _SECTIONS:
            raise _unknown(section, list(_SECTIONS), layer.origin)
        if not isinstance(values, Mapping):
            raise ConfigError(
                section, f"is a value, not a section ({layer.origin})", f"write [{section}] first"
            )
        for key, raw in values.items():
            if f"{section}.{key}" not in _KINDS:
                raise _unknown(f"{section}.{key}", list(_KINDS), layer.origin)
            yield section, key, raw


def _read(name: str, raw: object, origin: str) -> object:
    try:
        return _KINDS[name].read(raw)
    except ValueError as error:
        raise ConfigError(name, f"{error} ({origin})", f"set it to {_KINDS[name].what}") from None


def _unknown(name: str, known: Sequence[str], origin: str) -> ConfigError:
    """Nearest by the key's own name: in its section first, then in another."""
    section, _, key = name.rpartition(".")
    near = difflib.get_close_matches(key, [k.rpartition(".")[2] for k in known], n=1)
    right = [k for k in known if k.rpartition(".")[2] in near]
    right.sort(key=lambda k: k.rpartition(".")[0] != section)
    hint = f"did you mean {right[0]}?" if right else "mesh config list names them all"
    return ConfigError(name, f"there is no such key ({origin})", hint)


def _check_ports(config: Config) -> None:
    network = config.network
    ports = {
        "network.listen_port": network.listen_port,
        "network.grpc_port": network.grpc_port,
        "network.websocket_port": network.websocket_port,
    }
    taken: dict[int, str] = {}
    for key, port in ports.items():
        if port and port in taken:
            why = f"{port} is also {taken[port]}"
            raise ConfigError(key, why, "give each a port of its own, or 0 for any free one")
        taken[port] = key
