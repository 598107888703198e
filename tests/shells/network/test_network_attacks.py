"""Whatever a stranger writes, the node goes on serving the others."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import trio
from libp2p.exceptions import BaseLibp2pError
from network_attacks import ATTACKS, Attack, write_raw

from mesh.network.framing import frame
from mesh.network.network import BLOCKS
from mesh.network.streams import PROTOCOL


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_the_node_serves_others_during_and_after(harness: Any, attack: Attack) -> None:
    victim = await harness.node(1)
    friend = await harness.node(2, *victim.network.addresses())
    attacker = await harness.host(3)
    target = harness.dial(victim)
    await attacker.connect(target)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attack, attacker, target)
        with trio.fail_after(20):
            assert await friend.network.request(victim.peer, BLOCKS, b"during", 15) == b"gnirud"
    assert friend.network.send_nowait(victim.peer, b"after")
    await harness.eventually(lambda: (friend.peer, b"after") in victim.frames)
    assert victim.network.send_nowait(friend.peer, b"too")
    await harness.eventually(lambda: (victim.peer, b"too") in friend.frames)
    with trio.fail_after(20):
        assert await friend.network.request(victim.peer, BLOCKS, b"after", 15) == b"retfa"
    await harness.eventually(lambda: friend.peer in victim.network.connected())


async def test_who_breaks_the_protocol_again_and_again_is_banned(harness: Any) -> None:
    victim = await harness.node(1)
    attacker = await harness.host(3)
    target = harness.dial(victim)
    await attacker.connect(target)
    for expected in range(1, 5):
        await write_raw(attacker, target, PROTOCOL, b"\xff\xff\xff\xff")
        await harness.eventually(lambda expected=expected: victim.count("faults") == expected)
    await harness.eventually(lambda: not victim.network.connected())
    assert victim.count("bans") == 1


async def test_who_ignores_its_window_is_banned(harness: Any) -> None:
    """The frames are read at the guard's pace; yamux itself would store all that comes."""
    victim = await harness.node(1)
    attacker = await harness.host(3)
    target = harness.dial(victim)
    await attacker.connect(target)
    stream = await write_raw(attacker, target, PROTOCOL, frame(b"x") * 1000)
    stream.muxed_stream.send_window = 1 << 30
    with trio.fail_after(20), suppress(BaseLibp2pError):
        while True:
            await stream.write(frame(b"x") * 100_000)
    await harness.eventually(lambda: victim.count("bans") == 1)
    await harness.eventually(lambda: not victim.network.connected())


async def test_the_banned_find_the_door_closed(harness: Any) -> None:
    victim = await harness.node(1)
    attacker = await harness.host(3)
    target = harness.dial(victim)
    await attacker.connect(target)
    await harness.eventually(lambda: bool(victim.network.connected()))
    for _ in range(4):
        victim.network.penalize(victim.network.connected()[0], "test")
    await harness.eventually(lambda: not victim.network.connected())
    await harness.eventually(lambda: not attacker.get_connected_peers())
    attacker.get_network().unblock_peer(target.peer_id)
    with suppress(BaseLibp2pError):
        await attacker.connect(target)
        assert attacker.get_connected_peers()
        await write_raw(attacker, target, PROTOCOL, frame(b"let me in"))
    await harness.eventually(lambda: not victim.network.connected())
    assert victim.frames == []
