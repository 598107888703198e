"""Capacity and the pool: a vector that never goes below zero, and reservations never above."""

from __future__ import annotations

import pytest

from mesh.resources.capacity import NOTHING, Capacity
from mesh.resources.pool import Pool

SOLD = Capacity(2_000, 100, 50, 2)
TASK = Capacity(1_000, 60, 10, 1)


def test_capacities_add_and_subtract_by_component() -> None:
    assert Capacity(2_000, 120, 20, 2) == TASK + TASK
    assert Capacity(1_000, 40, 40, 1) == SOLD - TASK
    assert TASK + NOTHING == TASK


def test_no_capacity_is_negative() -> None:
    with pytest.raises(AssertionError):
        TASK - SOLD
    with pytest.raises(AssertionError):
        Capacity(memory=-1)


def test_an_estimate_of_what_is_left_stops_at_zero() -> None:
    assert TASK.minus(SOLD) == Capacity()
    assert SOLD.minus(Capacity(5_000, 1, 0, 0)) == Capacity(0, 99, 50, 2)


@pytest.mark.parametrize(
    ("needs", "short"),
    [
        (Capacity(slots=3), "slots"),
        (Capacity(cpu_milli=2_001), "cpu"),
        (Capacity(memory=101), "memory"),
        (Capacity(disk=51), "disk"),
        (Capacity(2_001, 101, 51, 3), "slots"),
        (SOLD, ""),
        (NOTHING, ""),
    ],
)
def test_a_shortage_has_a_name(needs: Capacity, short: str) -> None:
    assert needs.shortage_in(SOLD) == short
    assert needs.fits_in(SOLD) == (short == "")


def test_the_pool_never_reserves_more_than_is_sold() -> None:
    pool: Pool[str] = Pool(SOLD)
    assert pool.reserve("a", TASK)
    assert not pool.reserve("b", TASK), "100 bytes hold 60 only once"
    assert "b" not in pool
    assert (pool.reserved, pool.free, len(pool)) == (TASK, SOLD - TASK, 1)


def test_what_is_released_is_free_again_and_releasing_twice_frees_nothing_more() -> None:
    pool: Pool[str] = Pool(SOLD)
    pool.reserve("a", TASK)
    for _ in range(2):
        pool.release("a")
        assert (pool.reserved, pool.free, len(pool)) == (NOTHING, SOLD, 0)
    assert pool.reserve("b", SOLD)


def test_one_key_reserves_once() -> None:
    pool: Pool[str] = Pool(SOLD)
    pool.reserve("a", NOTHING)
    with pytest.raises(AssertionError):
        pool.reserve("a", NOTHING)
