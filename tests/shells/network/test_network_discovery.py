"""Finding each other: bootstrap, the table, known peers, providers, neighbours."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.errors import ConfigError, Unavailable
from mesh.ids import PeerId, format_peer
from mesh.network.known import FILE, KnownPeers, save_known
from mesh.network.mdns import service_type


async def test_nodes_that_know_one_address_all_meet(harness: Any) -> None:
    first = await harness.node(1)
    nodes = [first] + [await harness.node(n, *first.network.addresses()) for n in range(2, 6)]
    everybody = {node.peer for node in nodes}
    await harness.eventually(
        lambda: all({*node.network.connected(), node.peer} == everybody for node in nodes)
    )


async def test_a_bootstrap_that_comes_up_late_is_found(harness: Any) -> None:
    early = await harness.node(1)
    address = early.network.addresses()[0]
    listen = address.partition("/p2p/")[0]
    await early.close()
    waiting = await harness.node(2, address)
    await harness.eventually(lambda: waiting.count("dials_failed") > 0)
    late = await harness.node(1, listen=(listen,))
    await harness.eventually(lambda: waiting.network.connected() == (late.peer,))


async def test_known_peers_survive_a_restart(harness: Any, tmp_path: Path) -> None:
    """The second life has no bootstrap address at all."""
    a = await harness.node(1)
    b = await harness.node(2, *a.network.addresses(), state_folder=tmp_path)
    await harness.eventually(lambda: b.count("known_peers") == 1)
    await b.close()
    assert (tmp_path / FILE).exists()
    again = await harness.node(2, state_folder=tmp_path)
    await harness.eventually(lambda: again.network.connected() == (a.peer,))
    assert again.network.addresses_of(a.peer) == (a.network.addresses()[0].partition("/p2p/")[0],)


async def test_a_damaged_store_of_known_peers_costs_a_count_not_the_start(
    harness: Any, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_bytes(b"{not json")
    a = await harness.node(1, state_folder=tmp_path)
    assert a.count("known_peers_damaged") == 1


async def test_a_known_peer_with_nonsense_for_an_address_is_passed_over(
    harness: Any, tmp_path: Path
) -> None:
    known = KnownPeers()
    known.learn(PeerId(bytes(32)), ["nonsense", "/ip4/127.0.0.1/udp"])
    save_known(tmp_path, known.encode())
    a = await harness.node(1, state_folder=tmp_path)
    await harness.eventually(lambda: a.count("dials_failed") > 0)


async def test_a_provider_is_found_by_all(harness: Any) -> None:
    first = await harness.node(1)
    nodes = [first] + [await harness.node(n, *first.network.addresses()) for n in (2, 3)]
    await harness.eventually(lambda: all(len(n.network.connected()) == 2 for n in nodes))
    with trio.fail_after(20):
        await nodes[1].network.provide("wasm")
        await nodes[2].network.provide("wasm")
        for node in nodes:
            found = await node.network.find_providers("wasm")
            assert sorted(found) == sorted([nodes[1].peer, nodes[2].peer])
        assert await first.network.find_providers("python") == []


async def test_an_address_that_answers_not_is_unavailable_and_one_that_is_none_a_mistake(
    harness: Any,
) -> None:
    a = await harness.node(1)
    gone = await harness.node(2)
    address = gone.network.addresses()[0]
    await gone.close()
    with pytest.raises(Unavailable), trio.fail_after(20):
        await a.network.connect(address)
    with pytest.raises(ConfigError):
        await a.network.connect("/ip4/127.0.0.1")
    assert a.network.addresses_of(PeerId(bytes(32))) == ()


async def test_somebody_elses_key_at_an_address_is_not_taken_for_the_peer(harness: Any) -> None:
    a, b, c = [await harness.node(index) for index in (1, 2, 3)]
    place = b.network.addresses()[0].partition("/p2p/")[0]
    name = c.network.addresses()[0].partition("/p2p/")[2]
    with pytest.raises(Unavailable), trio.fail_after(20):
        await a.network.connect(f"{place}/p2p/{name}")
    assert c.peer not in a.network.connected()


async def test_neighbours_join_without_any_address(harness: Any) -> None:
    """A key of its own keeps this test from meeting whoever else is on this network."""
    key = secrets.token_hex(32)
    a = await harness.node(1, mdns=True, psk=key)
    b = await harness.node(2, mdns=True, psk=key)
    with trio.move_on_after(10) as patience:
        await harness.eventually(lambda: b.network.connected() == (a.peer,))
    if patience.cancelled_caught:
        pytest.skip("no multicast here")
    assert a.network.connected() == (b.peer,)


def test_a_private_mesh_has_a_service_name_of_its_own() -> None:
    assert service_type(None) == "_p2p-mesh1._udp.local."
    assert service_type("0F" * 32) == service_type("0f" * 32) != service_type("0e" * 32)


async def test_others_are_told_to_dial_what_is_announced(harness: Any) -> None:
    told = "/ip4/127.0.0.1/tcp/9"
    hidden = await harness.node(1, announce=(told,))
    assert hidden.network.addresses() == (f"{told}/p2p/{format_peer(hidden.peer)}",)
    host: Any = hidden.network._host
    (real,) = host.get_transport_addrs()
    friend = await harness.node(2)
    await friend.network.connect(f"{real}/p2p/{format_peer(hidden.peer)}")
    await harness.eventually(lambda: told in friend.network.addresses_of(hidden.peer))


async def test_an_announced_address_that_is_none_is_the_operators_to_mend(harness: Any) -> None:
    with pytest.raises(ConfigError, match=r"network\.announce"):
        await harness.node(1, announce=("/ip4/300.0.0.1/tcp/9",))
