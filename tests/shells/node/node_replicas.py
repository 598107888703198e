"""Replications on loopback, real: network, gossip, calls and files. The kernel is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import TypeVar

import trio
import trio.testing
from attrs import define, field
from ledger_deals import NET, Party
from nacl.signing import SigningKey

from ledger.merge import Merger
from ledger.model import Entry
from ledger.store import Store
from mesh.errors import MeshError
from mesh.ids import PeerId
from mesh.network.gossip import ENTRIES
from mesh.network.network import LEDGER, Network, NetworkConfig, open_network
from mesh.replication import Replication, ReplicationConfig
from mesh.rumours import Rumours, verify
from mesh.sansio import ChainConfirmed, Event, Learned

PATIENCE_S = 30
"""Far more than anything here takes; tests wait for events, not for time."""
NEVER = ReplicationConfig(repair_s=1e6, full_repair_s=1e6, gather_s=0.01, company_s=0.1)
"""No repairs: what comes, comes by gossip."""
OFTEN = ReplicationConfig(
    repair_s=0.05, full_repair_s=1e6, gather_s=0.01, tidy_s=0.05, company_s=0.1, retry_s=0.04
)
T = TypeVar("T")
Serve = Callable[[PeerId, bytes], Awaitable[bytes]]
NOTHING: Mapping[str, Serve] = {}


def party(index: int) -> Party:
    """The key of node *index*."""
    return Party(SigningKey(bytes([index]) * 32))


@define(eq=False)
class Node:
    """One node's replication and all that it says to the rest of the node."""

    replication: Replication
    network: Network
    store: Store
    posted: list[Event] = field(factory=list)
    alarms: list[MeshError] = field(factory=list)

    @property
    def where(self) -> str:
        return self.network.addresses()[0]

    @property
    def learned(self) -> set[Entry]:
        events = [event for event in self.posted if isinstance(event, Learned)]
        return {Entry.decode(data) for event in events for data in event.entries}

    @property
    def forked(self) -> list[PeerId]:
        events = [event for event in self.posted if isinstance(event, Learned)]
        return [peer for event in events for peer in event.forked]

    @property
    def confirmed(self) -> list[tuple[Entry, ...]]:
        events = [event for event in self.posted if isinstance(event, ChainConfirmed)]
        return [tuple(map(Entry.decode, event.lost)) for event in events]

    def holds(self, *entries: Entry) -> bool:
        return set(entries) <= set(self.store.entries())

    def count(self, name: str) -> int:
        return {**self.network.statistics(), **self.replication.statistics()}.get(name, 0)


@asynccontextmanager
async def open_node(
    folder: Path,
    index: int,
    entries: Iterable[Entry] = (),
    *,
    meets: Sequence[Node] = (),
    config: ReplicationConfig = OFTEN,
    is_confirmed: bool = True,
    serve: Mapping[str, Serve] = NOTHING,
) -> AsyncIterator[Node]:
    """A node that holds *entries*, all valid, and knows of those that it *meets*."""
    path = folder / f"{index}.sqlite"
    posted: list[Event] = []
    alarms: list[MeshError] = []
    tally: Counter[str] = Counter()

    async def post(event: Event) -> None:
        await trio.lowlevel.checkpoint()
        posted.append(event)

    with ExitStack() as stack:
        own, replica, reader = [stack.enter_context(Store.open(path)) for _ in range(3)]
        own.add(entries)
        merger = stack.enter_context(Merger(replica, verify=verify))
        me = party(index).key
        replication = Replication(
            merger=merger,
            rumours=Rumours(reader, tally),
            peer=PeerId(me),
            head=own.head(me, NET),
            is_confirmed=is_confirmed,
            post=post,
            alarm=alarms.append,
            rng=Random(index),
            tally=tally,
            config=config,
        )
        bootstrap = tuple(node.where for node in meets)
        async with open_network(
            NetworkConfig(seed=bytes([index]) * 32, bootstrap=bootstrap),
            rng=Random(index),
            on_frame=lambda _peer, _frame: None,
            on_offer=lambda _peer, _data: None,
            serve=serve,
            topics=[replication.rumours.topic],
            answers={LEDGER: replication.answer},
        ) as network:
            replication.network = network
            async with trio.open_nursery() as nursery:
                nursery.start_soon(replication.run)
                yield Node(replication, network, own, posted, alarms)
                nursery.cancel_scope.cancel()


async def eventually(condition: Callable[[], bool]) -> None:
    """Let everybody run until *condition*; the test fails after a generous while."""
    with trio.fail_after(PATIENCE_S):
        while not condition():
            with trio.move_on_after(0.02):
                await trio.testing.wait_all_tasks_blocked(0.005)


async def all_hear(*nodes: Node) -> None:
    """Until each passes entries on to somebody."""
    await eventually(lambda: all(n.network._gossip.router.mesh.get(ENTRIES) for n in nodes))
