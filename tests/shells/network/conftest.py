"""Nodes and bare hosts on loopback, each closed at the end of its test."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import pytest
import trio
import trio.testing
from attrs import define, field, frozen
from libp2p.abc import IHost
from libp2p.peer.peerinfo import PeerInfo
from multiaddr.multiaddr import Multiaddr

from mesh.errors import ConfigError
from mesh.ids import PeerId
from mesh.network import hardening
from mesh.network.calls import Answer
from mesh.network.host import build_host, parse_dial, run_host
from mesh.network.network import BLOCKS, Network, NetworkConfig, open_network

LOOPBACK = Multiaddr("/ip4/127.0.0.1/tcp/0")
T = TypeVar("T")
PATIENCE_S = 20
"""Far more than anything here takes; tests wait for events, not for time."""


@define(eq=False)
class Node:
    """A whole node's network with what it has received."""

    network: Network
    frames: list[tuple[PeerId, bytes]]
    offers: list[tuple[PeerId, bytes]]
    leave: trio.Event
    left: trio.Event

    @property
    def peer(self) -> PeerId:
        return self.network.peer

    def count(self, name: str) -> int:
        return self.network.statistics().get(name, 0)

    async def close(self) -> None:
        self.leave.set()
        await self.left.wait()


@frozen
class Harness:
    """Starts nodes (whole) and hosts (bare, hardened), each in a task of its own."""

    nursery: trio.Nursery
    leaving: trio.Event
    tally: Counter[str] = field(factory=Counter)

    async def node(
        self,
        index: int,
        *bootstrap: str,
        on_frame: Callable[[PeerId, bytes], None] | None = None,
        serve: Mapping[str, Callable[[PeerId, bytes], Awaitable[bytes]]] | None = None,
        answers: Mapping[str, Answer] | None = None,
        **more: Any,
    ) -> Node:
        frames: list[tuple[PeerId, bytes]] = []
        offers: list[tuple[PeerId, bytes]] = []
        leave, left = trio.Event(), trio.Event()
        opening = open_network(
            NetworkConfig(seed=seed(index), bootstrap=bootstrap, **more),
            rng=random.Random(index),
            on_frame=on_frame or (lambda peer, data: frames.append((peer, data))),
            on_offer=lambda peer, data: offers.append((peer, data)),
            serve=serve or {BLOCKS: _reverse},
            answers=answers,
        )
        network = await self._start(opening, leave, left)
        return Node(network, frames, offers, leave, left)

    async def host(self, index: int, **more: Any) -> IHost:
        host = build_host(seed(index), [LOOPBACK], psk=None, agent="t", tally=self.tally, **more)
        await self._start(run_host(host, [LOOPBACK], self.tally), trio.Event(), trio.Event())
        return host

    async def _start(
        self, opening: AbstractAsyncContextManager[T], leave: trio.Event, left: trio.Event
    ) -> T:
        """Enter *opening* in a task of its own, left when *leave* or the test's end says so."""
        entered: list[T] = []
        failed: list[ConfigError] = []
        ready = trio.Event()

        async def stay() -> None:
            try:
                async with opening as value, trio.open_nursery() as waiting:
                    entered.append(value)
                    ready.set()
                    waiting.start_soon(_first, leave, waiting.cancel_scope)
                    waiting.start_soon(_first, self.leaving, waiting.cancel_scope)
            except ConfigError as error:
                failed.append(error)
                ready.set()
            left.set()

        self.nursery.start_soon(stay)
        await ready.wait()
        for error in failed:
            raise error
        return entered[0]

    @staticmethod
    async def eventually(condition: Callable[[], bool]) -> None:
        """Let everybody run until *condition*; the test fails after a generous while."""
        with trio.fail_after(PATIENCE_S):
            while not condition():
                with trio.move_on_after(0.02):  # a busy peer never lets everybody block
                    await trio.testing.wait_all_tasks_blocked(0.005)

    @staticmethod
    def where(host: IHost) -> PeerInfo:
        """How to dial *host*."""
        return PeerInfo(host.get_id(), host.get_addrs())

    @staticmethod
    def dial(node: Node) -> PeerInfo:
        """How a bare host dials *node*."""
        return parse_dial(node.network.addresses()[0], "test")


async def _first(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _reverse(_peer: PeerId, data: bytes) -> bytes:
    return data[::-1]


def seed(index: int) -> bytes:
    """The secret of node *index*."""
    return bytes([index]) * 32


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    async with trio.open_nursery() as nursery:
        leaving = trio.Event()
        yield Harness(nursery, leaving)
        leaving.set()


@pytest.fixture(autouse=True)
def hardened_again() -> Iterator[None]:
    """A test may restore libp2p's stock behaviour; the next one finds it hardened."""
    hardening.harden_library(Counter())
    yield
    hardening.harden_library(Counter())
