"""The window: the last so many values, whatever the order they came in."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.forecast.window import Window

VALUES = st.floats(min_value=-1e12, max_value=1e12)


def filled(size: int, values: list[float]) -> Window:
    window = Window(size)
    for value in values:
        window.push(value)
    return window


def test_the_newest_value_pushes_the_oldest_out() -> None:
    window = filled(3, [9.0, 1.0, 2.0, 3.0])
    assert len(window) == 3
    assert (window.quantile(0.0), window.quantile(1.0)) == (1.0, 3.0)


def test_equal_values_leave_one_at_a_time() -> None:
    assert filled(3, [5.0, 5.0, 5.0, 7.0]).quantile(0.5) == 5.0
    assert filled(3, [5.0, 5.0, 5.0, 7.0, 7.0]).quantile(0.5) == 7.0


@pytest.mark.parametrize(("share", "value"), [(0.0, 10), (0.1, 11), (0.5, 15), (0.9, 19), (1, 20)])
def test_quantiles_lie_straight_between_neighbours(share: float, value: float) -> None:
    assert filled(2, [20.0, 10.0]).quantile(share) == pytest.approx(value)


@settings(deadline=None)
@given(st.lists(VALUES, min_size=2, max_size=40), st.integers(2, 20))
def test_quantiles_are_those_of_the_last_values(values: list[float], size: int) -> None:
    window, last = filled(size, values), values[-size:]
    tenths = statistics.quantiles(last, n=10, method="inclusive")
    wide = max(map(abs, last)) * 1e-12 + 1e-300  # below it floats have no digits left
    for number, expected in enumerate(tenths, 1):
        assert window.quantile(number / 10) == pytest.approx(expected, rel=1e-9, abs=wide)


@settings(deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=40), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_are_in_order(values: list[float], one: float, other: float) -> None:
    window = filled(30, values)
    assert window.quantile(min(one, other)) <= window.quantile(max(one, other))
