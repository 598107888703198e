"""Whom a replica compares with next."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as some

from mesh.ids import PeerId
from mesh.rota import Rota

PEERS = [PeerId(bytes([number]) * 32) for number in range(6)]
dice = some.randoms(use_true_random=False)


@given(dice, some.integers(1, 6))
def test_everybody_has_a_turn_before_anybody_has_two(rng: Random, count: int) -> None:
    rota = Rota(rng)
    for _ in range(3):
        assert {rota.next(PEERS[:count]) for _ in range(count)} == set(PEERS[:count])


@given(dice)
def test_who_came_since_comes_first(rng: Random) -> None:
    rota = Rota(rng)
    assert {rota.next(PEERS[:3]) for _ in range(3)} == set(PEERS[:3])
    assert {rota.next(PEERS) for _ in range(3)} == set(PEERS[3:])


@given(dice)
def test_who_left_and_came_back_is_a_newcomer(rng: Random) -> None:
    rota = Rota(rng)
    assert {rota.next(PEERS[:2]) for _ in range(2)} == set(PEERS[:2])
    assert rota.next(PEERS[1:2]) == PEERS[1]
    assert rota.next(PEERS[:2]) == PEERS[0]


def test_who_is_busy_is_passed_over_and_nobody_is_nobody() -> None:
    rota = Rota(Random(1))
    assert rota.next([]) is None
    assert rota.next(PEERS[:1], busy=PEERS[:1]) is None
    assert {rota.next(PEERS[:2], busy=PEERS[:1]) for _ in range(3)} == {PEERS[1]}
