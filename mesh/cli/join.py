"""`mesh join`: run a node in the foreground."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import attrs
import click

from mesh import units
from mesh.cli import settings as sources
from mesh.cli.render import say
from mesh.cli.words import clean, show_capacity
from mesh.config import Layer

_FLAGS: dict[str, tuple[str, str]] = {
    "name": ("node", "name"),
    "cpus": ("sell", "cpus"),
    "memory": ("sell", "memory"),
    "disk": ("sell", "disk"),
    "slots": ("sell", "slots"),
    "price": ("sell", "price"),
    "sell": ("sell", "enabled"),
    "yields": ("sell", "yields"),
    "host": ("network", "listen_host"),
    "port": ("network", "listen_port"),
    "bootstrap": ("network", "bootstrap"),
    "mdns": ("network", "mdns"),
    "grpc_port": ("network", "grpc_port"),
    "websocket_port": ("network", "websocket_port"),
    "key_file": ("identity", "key_file"),
    "quota": ("storage", "quota"),
}
"""flag → (section, key): a flag is checked where its key is."""


@click.command()
@click.option("--name", help="What people call this node.")
@click.option("--cpus", metavar="CORES", help="Cores to sell: 2, 0.5.")
@click.option("--memory", metavar="SIZE", help="RAM to sell: 4GiB.")
@click.option("--disk", metavar="SIZE", help="Scratch disk to sell: 20GiB.")
@click.option("--slots", metavar="NUMBER", help="Tasks at a time.")
@click.option("--price", metavar="CREDITS", help="Asking price for 10^9 units of fuel: 0.0400.")
@click.option("--sell/--no-sell", default=None, help="Sell, or only buy.")
@click.option(
    "--yields/--no-yields", default=None, help="Give way to the owner's own load, or not."
)
@click.option("--bootstrap", multiple=True, metavar="MULTIADDR", help="A node to meet first.")
@click.option("--host", metavar="IP", help="Where other nodes reach this one.")
@click.option("--port", metavar="PORT", help="libp2p; 0: any free one.")
@click.option("--mdns/--no-mdns", default=None, help="Find nodes of the local network.")
@click.option("--grpc-port", metavar="PORT", help="gRPC for clients; 0: any free one.")
@click.option("--websocket-port", metavar="PORT", help="For watchers; 0: any free one.")
@click.option("--key-file", metavar="PATH", help="The node's key.")
@click.option("--quota", metavar="SIZE", help="The most the embedded store may hold.")
def join(**flags: Any) -> int:  # noqa: ANN401  (click's flags, read by mesh.config)
    """Run a node here: sell, bid, run, serve. Any `mesh config` key may be set by a flag.

    Ctrl-C once: runs of others are handed over, and go on elsewhere; what cannot be moved, or not
    within some seconds, is given up, and begun anew at once. Then the node leaves. Twice: it stops.
    """
    config, home = sources.load(flag_layers(flags))
    sys.excepthook = sys.__excepthook__  # a broken invariant of the node is to be loud
    from mesh import node

    return node.main(config, home, announce=announce)


def flag_layers(flags: Mapping[str, object]) -> list[Layer]:
    """A layer for each flag that was given, so that each is named when it is wrong."""
    layers = []
    for flag, value in flags.items():
        if value is None or value == ():
            continue
        section, key = _FLAGS[flag]
        value = list(value) if isinstance(value, tuple) else value
        layers.append(Layer(f"flag --{flag.replace('_', '-')}", {section: {key: value}}))
    return layers


def announce(facts: Mapping[str, Any]) -> None:
    """Say in five lines what runs here (mesh.node's facts), then how to stop it."""
    new = "new identity" if facts.get("is_new_key") else "identity"
    click.echo(f"  Node       {new} {facts['peer']}  ({facts['key']}, 0600)")
    price = f" at {units.show_money(facts['price'])} for 10^9 fuel"
    sold = show_capacity(attrs.asdict(facts["sold"]))
    click.echo(
        f"  Selling    {sold}{'' if sold == 'nothing' else price}"
        "      change: --cpus 2 --memory 4GiB --price 0.05"
    )
    click.echo(f"  Storage    {clean(facts['storage'])}")
    click.echo(f"  Network    {' '.join(facts['addresses']) or 'not reachable from elsewhere'}")
    click.echo(
        f"  Listening  gRPC {facts['grpc']} · WebSocket {facts['websocket']} · this machine only"
    )
    sys.stdout.flush()
    say("Others run metered WASM here, in a sandbox, without network or your files.")
    say("^C once: hands over what runs here, so that others take it at once. ^C again: stops.")
