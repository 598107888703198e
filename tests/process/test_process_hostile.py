"""A stranger writes to real nodes whatever it likes; their clients notice nothing."""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import Iterator

import pytest
import trio
from attrs import evolve
from libp2p.abc import IHost
from libp2p.peer.peerinfo import PeerInfo
from multiaddr.multiaddr import Multiaddr
from network_attacks import ATTACKS, Attack, write_raw
from process_nodes import HOSTILE, PATIENCE_S, SMALL, Node, eventually, open_mesh

from mesh import codec
from mesh.ids import RAW, PeerId, TaskId, cid_of
from mesh.messages import (
    Accepted,
    Ask,
    Award,
    Bid,
    Declined,
    Done,
    Lost,
    Offer,
    Quantiles,
    Refusal,
    Release,
    Renew,
    Renewed,
    Result,
    Revoked,
    Settled,
    SignedOffer,
    Work,
)
from mesh.network.framing import frame
from mesh.network.host import build_host, parse_dial, run_host
from mesh.network.network import NetworkConfig, open_network
from mesh.network.streams import PROTOCOL
from mesh.resources.capacity import Capacity

LOOPBACK = Multiaddr("/ip4/127.0.0.1/tcp/0")
CID = cid_of(RAW, b"nothing")
TASK = TaskId(bytes(16))
WORK = Work(CID, CID, (), Capacity(2**62, 2**62, 2**62, 2**31), 2**62, 2**62, ("wasm",) * 64)
RESULT = Result("exited", 0, "", 2**62, 2**62, CID, CID, CID)
JUNK, NO_SIGNATURE = b"\xff" * 200, bytes(64)
FORGED = (
    Ask(TASK, 1, WORK, 0, 2**62, 2**62, 1, 2**62, 2**62),
    Ask(TASK, 1, WORK, 0, 1000, 0, 1, 1000, 300),
    Bid(TASK, 1, JUNK, NO_SIGNATURE, Quantiles(3, 2, 1), 5000, 0, 2**62, "\x1b[2J"),
    Refusal(TASK, 1, "\x00" * 100, True),
    Award(TASK, 1, JUNK, 15_000),
    Accepted(TASK, 1),
    Declined(TASK, 1, "", JUNK, NO_SIGNATURE),
    Release(TASK, 1, ""),
    Renew(TASK, 1, 2**62, 2**62),
    Renewed(TASK, 1, 1, 2**62),
    Revoked(TASK, 1, "", True),
    Done(TASK, 1, RESULT, JUNK, NO_SIGNATURE),
    Lost(TASK, 1, "", JUNK, NO_SIGNATURE),
    Settled(TASK, 1, JUNK),
)


async def every_message_forged(attacker: IHost, target: PeerInfo) -> None:
    frames = [frame(codec.encode(message)) for message in FORGED]
    await write_raw(attacker, target, PROTOCOL, b"".join(frames))


async def nested_without_end(attacker: IHost, target: PeerInfo) -> None:
    for opening in (b"\x91", b"\x81\x01", b"\xdd\xff\xff\xff\xff"):
        await write_raw(attacker, target, PROTOCOL, frame(opening * 10_000))


async def forged_offers(_attacker: IHost, target: PeerInfo) -> None:
    """Gossiped as a real node would: from an identity of its own, in the name of others."""
    offer = Offer(
        peer=PeerId(target.peer_id.to_bytes()[-32:]),
        epoch=2**62,
        seq=2**62,
        sold=WORK.needs,
        free=WORK.needs,
        outlook=(),
        price=0,
        speed=2**62,
        features=("wasm",),
        cached=(),
        agent="forged",
    )
    there = f"{target.addrs[0]}"
    config = NetworkConfig(seed=secrets.token_bytes(32), bootstrap=(there,))
    async with open_network(
        config,
        rng=random.Random(1),
        on_frame=lambda peer, data: None,
        on_offer=lambda peer, data: None,
        serve={},
    ) as network:
        await network.connect(there)
        for said in (offer, evolve(offer, peer=network.peer), evolve(offer, seq=1)):
            signed = SignedOffer(codec.encode_offer(said), NO_SIGNATURE)
            await network.publish_offer(codec.encode_signed_offer(signed))
        for data in (b"", JUNK, b"\x91" * 4000):
            await network.publish_offer(data)


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    """A buyer and a seller."""
    with open_mesh() as mesh:
        mesh.start(2, buyers=1)
        mesh.meet()
        yield mesh.nodes


async def attack_from(attack: Attack, node: Node) -> None:
    """Run *attack* on *node* from a host of its own."""
    target = parse_dial(node.known["addresses"][0], "test")
    tally: Counter[str] = Counter()
    host = build_host(secrets.token_bytes(32), [LOOPBACK], psk=None, agent="t", tally=tally)
    async with run_host(host, [LOOPBACK], tally):
        await host.connect(target)
        await attack(host, PeerInfo(target.peer_id, [Multiaddr(node.known["addresses"][0])]))


def do_a_task(buyer: Node) -> None:
    task = buyer.client.submit(HOSTILE, ["exit", "0"], limits=SMALL)
    record = task.result(PATIENCE_S)
    assert (record.moves, record.result.exit_code) == (0, 0)


@pytest.mark.long
@pytest.mark.parametrize(
    "attack",
    [*ATTACKS, every_message_forged, nested_without_end, forged_offers],
    ids=lambda attack: attack.__name__,
)
async def test_clients_are_served_during_and_after(nodes: list[Node], attack: Attack) -> None:
    buyer, _ = nodes
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(attack_from, attack, node)
            await trio.to_thread.run_sync(do_a_task, buyer)
        await trio.to_thread.run_sync(do_a_task, buyer)
    assert all(node.member.process.poll() is None for node in nodes)


@pytest.mark.long
def test_nothing_of_it_sticks(nodes: list[Node]) -> None:
    """Run last: offers of liars are not in the book, the books balance, no log has a trace."""
    buyer, seller = nodes
    do_a_task(buyer)
    assert buyer.offers() == {seller.peer}
    eventually(lambda: seller.client.status().tasks_hosted == 0, "the seller is free again")
    assert seller.client.status().counters["network_bans"] > 0, "it was noticed, though"
    for node in nodes:
        assert node.complaints() == []
        assert "Traceback" not in node.member.log.read_text()
    assert all(node.leave() == 0 for node in nodes)
