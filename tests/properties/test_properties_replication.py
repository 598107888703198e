"""Promises L2 and S4: replicas that lost messages and were cut apart become equal in few rounds.

MESH_LEDGER_EXAMPLES=100000 runs each law that many times (default: 100).
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from ledger_deals import ALICE, BOB, CAROL, DAVE, NET, Chain
from ledger_replicas import BOTH, close_all, ids, replica, synced

from ledger.model import Entry
from ledger.state import fold
from ledger.sync import Replica
from mesh.ids import PeerId
from mesh.rota import Rota

laws = settings(
    max_examples=int(os.environ.get("MESH_LEDGER_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def _world() -> list[Entry]:
    """Chains with deals that were settled and void, and a fork."""
    world: list[Entry] = []
    for buyer, seller in ((BOB, ALICE), (CAROL, DAVE), (DAVE, BOB)):
        chain = Chain(buyer)
        for _ in range(3):
            alloc = chain.alloc(seller)
            world += [alloc, chain.settle(seller, alloc)]
    fork = Chain(ALICE)
    return [*world, fork.fork().alloc(BOB), fork.alloc(CAROL, price=7)]


WORLD = _world()
piles = some.lists(some.sampled_from(WORLD), unique=True)


class Mesh:
    """Replicas, each with the rota that nodes use, and who can reach whom."""

    def __init__(self, piles: Sequence[Sequence[Entry]], dice: random.Random) -> None:
        self.replicas: list[Replica] = [replica(pile) for pile in piles]
        self.sides = [frozenset(range(len(piles)))]
        self._rotas = [Rota(dice) for _ in piles]
        self._dice = dice

    async def round(self, loss: float = 0.0) -> None:
        """Each calls the next of whom it can reach; some calls come to nothing."""
        callers = list(range(len(self.replicas)))
        self._dice.shuffle(callers)
        for me in callers:
            (side,) = [side for side in self.sides if me in side]
            peer = self._rotas[me].next([_peer(other) for other in side - {me}])
            if peer is not None and self._dice.random() >= loss:
                await synced(self.replicas[me], self.replicas[peer[0]], BOTH)

    def are_equal(self) -> bool:
        return len({one.merger.store.total() for one in self.replicas}) == 1


def _peer(number: int) -> PeerId:
    return PeerId(bytes([number]) * 32)


@laws
@given(some.lists(piles, min_size=2, max_size=5), some.randoms(use_true_random=False))
def test_whoever_missed_what_all_are_equal_after_as_many_rounds_as_there_are_others(
    piles: list[list[Entry]], dice: random.Random
) -> None:
    mesh = Mesh(piles, dice)

    async def repair() -> None:
        for _ in range(len(piles) - 1):
            await mesh.round()

    trio.run(repair)
    assert mesh.are_equal()
    assert ids(mesh.replicas[0]) >= {entry.id for pile in piles for entry in pile}
    close_all()


@laws
@given(
    some.lists(piles, min_size=3, max_size=5),
    some.lists(some.lists(some.booleans(), min_size=5, max_size=5), max_size=3),
    some.randoms(use_true_random=False),
)
def test_partitions_and_lost_calls_cost_no_more_than_one_round_beyond_that(
    piles: list[list[Entry]], partitions: list[list[bool]], dice: random.Random
) -> None:
    """Whatever was cut, for however long: once healed, n rounds make n replicas equal."""
    everybody = frozenset(range(len(piles)))
    mesh = Mesh(piles, dice)

    async def live() -> None:
        for partition in partitions:
            here = frozenset(me for me in everybody if partition[me])
            mesh.sides = [here, everybody - here]
            await mesh.round(loss=0.5)
        mesh.sides = [everybody]
        for _ in range(len(piles)):
            await mesh.round()

    trio.run(live)
    assert mesh.are_equal()
    close_all()


@laws
@given(piles, some.randoms(use_true_random=False))
def test_equal_sets_have_equal_digests_and_balances(pile: list[Entry], dice: random.Random) -> None:
    """S4, with whatever came how and in which order; and unequal sets have unequal digests."""
    one, other = replica(pile), replica(dice.sample(pile, len(pile)))
    assert one.merger.store.total() == other.merger.store.total()
    assert fold(one.merger.store.entries(), NET) == fold(other.merger.store.entries(), NET)
    if pile:
        assert replica(pile[1:]).merger.store.total() != one.merger.store.total()
    close_all()
