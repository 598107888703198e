"""The hedge: whoever was right lately has the say, and nobody's silence is counted against it."""

from __future__ import annotations

import random

import pytest
from attrs import define
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.forecast.baseline import Band, Recent, Smoothed
from mesh.forecast.forecaster import simple_hedge
from mesh.forecast.hedge import Hedge


@define
class Stubborn:
    """A forecaster with one opinion, or, for a while, none."""

    opinion: Band | None

    def observe(self, value: float) -> None:
        """Nothing changes its mind."""

    def miss(self) -> None:
        """Nothing at all."""

    def band(self, ahead: int) -> Band | None:
        return self.opinion


LOW, HIGH = Band(0.0, 0.0, 0.0), Band(90.0, 90.0, 90.0)


def test_before_any_step_it_says_nothing() -> None:
    assert simple_hedge().band(1) is None


def test_before_any_outcome_all_have_the_same_say() -> None:
    hedge = Hedge([Stubborn(LOW), Stubborn(HIGH)], [1])
    hedge.observe(80.0)
    assert hedge.band(1) == Band(45.0, 45.0, 45.0)


def test_the_one_who_was_right_gets_the_say() -> None:
    hedge = Hedge([Stubborn(LOW), Stubborn(HIGH)], [1])
    for _ in range(10):
        hedge.observe(85.0)
    band = hedge.band(1)
    assert band is not None
    assert band.q50 == pytest.approx(90.0, abs=0.01)


def test_the_say_changes_when_the_load_does() -> None:
    hedge = Hedge([Stubborn(LOW), Stubborn(HIGH)], [1])
    for _ in range(300):
        hedge.observe(85.0)
    for _ in range(600):
        hedge.observe(2.0)
    low, high = hedge.weights(1)
    assert low == 1.0
    assert high < 0.01


def test_a_forecast_is_scored_when_its_own_horizon_has_come() -> None:
    hedge = Hedge([Stubborn(LOW), Stubborn(HIGH)], [1, 3])
    hedge.observe(0.0)
    hedge.observe(0.0)
    assert hedge.weights(1)[1] < 1.0
    assert hedge.weights(3) == (1.0, 1.0)
    hedge.observe(0.0)
    hedge.observe(0.0)
    assert hedge.weights(3)[1] < 1.0


def test_a_perfect_one_silences_the_others() -> None:
    hedge = Hedge([Stubborn(LOW), Stubborn(HIGH)], [1])
    for _ in range(3):
        hedge.observe(0.0)
    assert hedge.weights(1) == (1.0, 0.0)
    assert hedge.band(1) == LOW


def test_who_says_nothing_is_left_out() -> None:
    quiet = Stubborn(None)
    hedge = Hedge([quiet, Stubborn(HIGH)], [1])
    hedge.observe(0.0)
    hedge.observe(0.0)
    assert hedge.band(1) == HIGH
    quiet.opinion = LOW
    hedge.observe(0.0)
    band = hedge.band(1)
    assert band is not None
    assert band.q50 < 90.0


def test_a_step_not_seen_scores_nobody() -> None:
    hedge = Hedge([Stubborn(LOW), Stubborn(HIGH)], [1])
    for _ in range(5):
        hedge.miss()
    assert hedge.weights(1) == (1.0, 1.0)


def test_it_follows_the_better_model_through_a_change_of_kind() -> None:
    """Noise first, where smoothing is right; then a walk, where persistence is."""
    rng, horizons = random.Random(7), (1,)
    smooth, last = Smoothed(0.05, horizons, 288), Smoothed(1.0, horizons, 288)
    hedge = Hedge([smooth, last, Recent(12)], horizons)
    for _ in range(500):
        hedge.observe(50 + rng.uniform(-10, 10))
    assert hedge.weights(1)[0] > hedge.weights(1)[1]
    value = 50.0
    for _ in range(700):
        value += rng.uniform(-10, 10)
        hedge.observe(value)
    assert hedge.weights(1)[1] > 10 * hedge.weights(1)[0]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.none() | st.floats(0, 1e12), min_size=30, max_size=120))
def test_quantiles_never_cross_whatever_the_load(series: list[float | None]) -> None:
    hedge = simple_hedge()
    for value in series:
        hedge.miss() if value is None else hedge.observe(value)
        for ahead in (1, 3, 12):
            band = hedge.band(ahead)
            assert band is None or band.q10 <= band.q50 <= band.q90
