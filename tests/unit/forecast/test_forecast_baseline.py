"""The simple forecasters, each right where it should be."""

from __future__ import annotations

import random

import pytest

from mesh.forecast.baseline import OUTCOMES_MIN, Band, Model, Recent, Smoothed

HORIZONS = (1, 3)
DAY = 288


def shown(model: Model, values: list[float]) -> Model:
    for value in values:
        model.observe(value)
    return model


def test_a_perfect_forecast_costs_nothing_and_a_wrong_one_by_its_share() -> None:
    assert Band(5.0, 5.0, 5.0).pinball(5.0) == 0.0
    # ten too low: 0.1, 0.5 and 0.9 of ten; ten too high: the rest of it
    assert Band(0.0, 0.0, 0.0).pinball(10.0) == pytest.approx(5.0)
    assert Band(0.0, 10.0, 20.0).pinball(10.0) == pytest.approx((1 + 0 + 1) / 3)


def test_recent_says_what_has_been() -> None:
    band = shown(Recent(12), [50.0] * 20 + [float(v) for v in range(12)]).band(1)
    assert band is not None
    assert (band.q10, band.q50, band.q90) == pytest.approx((1.1, 5.5, 9.9))


@pytest.mark.parametrize("model", [Recent(36), Smoothed(0.3, HORIZONS, DAY)], ids=["r", "s"])
def test_too_few_outcomes_make_no_forecast(model: Model) -> None:
    shown(model, [1.0] * (OUTCOMES_MIN - 1))
    assert model.band(1) is None
    shown(model, [1.0] * 3)
    assert model.band(1) == Band(1.0, 1.0, 1.0)


def test_persistence_learns_how_far_it_is_off_at_each_horizon() -> None:
    ramp = [float(v) for v in range(100)]  # one more each step: off by the horizon, always
    model = shown(Smoothed(1.0, HORIZONS, DAY), ramp)
    assert model.band(1) == Band(100.0, 100.0, 100.0)
    assert model.band(3) == Band(102.0, 102.0, 102.0)


def test_smoothing_sees_through_noise_that_persistence_follows() -> None:
    noise = random.Random(1)
    values = [50 + noise.uniform(-10, 10) for _ in range(600)]
    smooth, last = Smoothed(0.1, HORIZONS, DAY), Smoothed(1.0, HORIZONS, DAY)
    cost = {smooth: 0.0, last: 0.0}
    for value in values:
        for model in cost:
            band = model.band(1)
            cost[model] += band.pinball(value) if band else 0.0
            model.observe(value)
    assert cost[smooth] < 0.8 * cost[last]


def test_a_step_not_seen_teaches_nothing() -> None:
    model = Smoothed(1.0, HORIZONS, DAY)
    for level in range(20):  # it moves only where nobody looks
        shown(model, [10.0 * level] * 2)
        model.miss()
    assert model.band(1) == Band(190.0, 190.0, 190.0)


def test_old_outcomes_are_forgotten() -> None:
    model = Smoothed(1.0, HORIZONS, outcomes=20)
    shown(model, [0.0, 100.0] * 30)
    wild = model.band(1)
    assert wild is not None
    assert wild.q90 - wild.q10 > 100
    assert shown(model, [5.0] * 40).band(1) == Band(5.0, 5.0, 5.0)
