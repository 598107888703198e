"""Witnesses on loopback, real: network, book on the disk, and who asks them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from attrs import define, field
from ledger_deals import Chain
from node_replicas import party

from ledger import keys
from ledger.model import Entry
from ledger.quorum import Quorum
from ledger.store import Store
from ledger.votes import VoteBook
from mesh.certifying import Certifying, Witnessing, stand_witness
from mesh.errors import MeshError
from mesh.ids import NET, PeerId
from mesh.network.network import WITNESS, Network, NetworkConfig, open_network
from mesh.sansio import Identity

AUTHOR = 1
"""The number of the node that asks."""

Handler = Callable[[PeerId, bytes], Awaitable[bytes]]


def chain_of(index: int) -> Chain:
    """That of node *index*, in the network of all nodes."""
    return Chain(party(index), net=NET)


def quorum_of(*indices: int) -> Quorum:
    return Quorum.of(party(index).key for index in indices)


@define(eq=False)
class Judge:
    """One witness and all that it says to the rest of its node."""

    votes: VoteBook
    folder: Path
    index: int
    alarms: list[MeshError] = field(factory=list)
    learned: list[tuple[bytes, ...]] = field(factory=list)
    frozen: set[PeerId] = field(factory=set)
    witnessing: Witnessing = field(init=False)

    def __attrs_post_init__(self) -> None:
        us = party(self.index)
        self.witnessing = stand_witness(
            self.votes,
            self.folder,
            Identity(PeerId(us.key), us.sign, keys.verify),
            is_frozen=lambda key: key in self.frozen,
            alarm=self.alarms.append,
            learn=self.learn,
        )

    async def learn(self, wires: Sequence[bytes]) -> None:
        self.learned.append(tuple(wires))

    def holds(self, entries: Iterable[Entry]) -> bool:
        """Whether it voted for all of them."""
        return all(self.votes.entry(entry.id) == entry for entry in entries)


@asynccontextmanager
async def open_peer(index: int, serving: Handler | None = None) -> AsyncIterator[Network]:
    """A network on loopback that answers questions to a witness by *serving*."""
    async with open_network(
        NetworkConfig(seed=bytes([index]) * 32),
        rng=Random(index),
        on_frame=lambda _peer, _frame: None,
        on_offer=lambda _peer, _data: None,
        serve={WITNESS: serving} if serving else {},
    ) as network:
        yield network


@asynccontextmanager
async def open_judge(folder: Path, index: int) -> AsyncIterator[tuple[Judge, str]]:
    """A witness, and where it listens."""
    with VoteBook.open(folder / f"votes-{index}.sqlite", party(index).key) as votes:
        judge = Judge(votes, folder, index)
        async with open_peer(index, judge.witnessing.answer) as network:
            yield judge, network.addresses()[0]


@asynccontextmanager
async def open_author(
    folder: Path,
    quorum: Quorum,
    entries: Iterable[Entry],
    *where: str,
    index: int = AUTHOR,
    judge: Judge | None = None,
) -> AsyncIterator[tuple[Certifying, list[tuple[bytes, ...]]]]:
    """Who asks *quorum* about *entries*, and knows the nodes at *where*; what it learns of forks.

    It may be a witness itself: *judge*.
    """
    learned: list[tuple[bytes, ...]] = []

    async def learn(wires: Sequence[bytes]) -> None:
        learned.append(tuple(wires))

    with Store.open(folder / f"ledger-{index}.sqlite") as store:
        store.add(entries)
        serving = judge.witnessing.answer if judge else None
        async with open_peer(index, serving) as network:
            for address in where:
                await network.connect(address)
            witnessing = judge.witnessing if judge else None
            yield Certifying(quorum, store, learn, witnessing, network), learned
