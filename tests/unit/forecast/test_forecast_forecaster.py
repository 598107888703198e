"""The owner's outlook: from the first sample on, in order, never negative, and over gaps."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.forecast.forecaster import HORIZONS, STEP_S, Forecaster
from mesh.messages import Outlook, Quantiles

GIB = 1 << 30


def at_steps(forecaster: Forecaster, loads: list[tuple[int, int]], start: float = 0.0) -> float:
    """One sample in the middle of each step; the time when the last step is over."""
    for number, load in enumerate(loads):
        forecaster.observe(load, start + (number + 0.5) * STEP_S)
    return start + len(loads) * STEP_S


def test_before_the_first_sample_there_is_no_outlook() -> None:
    assert Forecaster().outlook(1234.5) == ()


def test_one_sample_is_an_outlook_at_every_horizon() -> None:
    forecaster = Forecaster()
    forecaster.observe((250, GIB), 7.0)
    assert forecaster.outlook(8.0) == tuple(
        Outlook(minutes * 60_000, Quantiles(250, 250, 250), Quantiles(GIB, GIB, GIB))
        for minutes in (5, 15, 60)
    )


def test_a_cold_start_is_careful_with_the_peaks_it_saw() -> None:
    forecaster = Forecaster()
    for number, cpu_milli in enumerate([100, 100, 900, 100]):
        forecaster.observe((cpu_milli, GIB), 10.0 * number)
    assert forecaster.outlook(40.0)[0].cpu_milli == Quantiles(100, 300, 900)


def test_cold_peaks_are_forgotten_after_an_hour() -> None:
    forecaster = Forecaster()
    now = at_steps(forecaster, [(4000, GIB)] + [(100, GIB)] * 12)
    assert forecaster.outlook(now)[-1].cpu_milli.q90 == 100


def test_samples_of_a_step_count_as_their_mean() -> None:
    often, once = Forecaster(), Forecaster()
    for step in range(40):
        for number in range(30):
            often.observe((step * 10 + number % 2 * 2, GIB), step * STEP_S + number * 10.0)
        once.observe((step * 10 + 1, GIB), step * STEP_S)
    assert often.outlook(40 * STEP_S) == once.outlook(40 * STEP_S)


def test_the_outlook_changes_only_when_a_step_ends() -> None:
    forecaster = Forecaster()
    now = at_steps(forecaster, [(100 + 7 * n % 50, GIB) for n in range(100)])
    before = forecaster.outlook(now)
    forecaster.observe((3000, GIB), now + 10)
    assert forecaster.outlook(now + 20) == before
    assert forecaster.outlook(now + STEP_S) != before


def test_a_steady_owner_is_foreseen_exactly() -> None:
    forecaster = Forecaster()
    now = at_steps(forecaster, [(300, 2 * GIB)] * 60)
    for outlook in forecaster.outlook(now):
        assert outlook.cpu_milli == Quantiles(300, 300, 300)
        assert outlook.memory == Quantiles(2 * GIB, 2 * GIB, 2 * GIB)


def test_the_band_is_wider_the_farther_it_looks() -> None:
    walk, cpu_milli, forecaster = random.Random(3), 4000, Forecaster()
    loads = []
    for _ in range(400):
        cpu_milli += walk.randint(-100, 100)
        loads.append((cpu_milli, GIB))
    now = at_steps(forecaster, loads)
    widths = [o.cpu_milli.q90 - o.cpu_milli.q10 for o in forecaster.outlook(now)]
    assert widths[0] < widths[1] < widths[2]


def test_a_falling_load_is_never_foreseen_below_nothing() -> None:
    forecaster = Forecaster()
    now = at_steps(forecaster, [(max(0, 3000 - 50 * n), GIB) for n in range(62)])
    assert all(outlook.cpu_milli.q10 >= 0 for outlook in forecaster.outlook(now))


def test_a_sleeping_machine_wakes_with_its_knowledge() -> None:
    forecaster = Forecaster()
    now = at_steps(forecaster, [(300, GIB)] * 60)
    later = now + 10 * 365 * 24 * 3600.0
    assert forecaster.outlook(later)[0].cpu_milli == Quantiles(300, 300, 300)
    end = at_steps(forecaster, [(500, GIB)] * 60, start=later + 2 * STEP_S)
    assert forecaster.outlook(end)[0].cpu_milli.q50 == 500


def test_a_gap_is_nobodys_error() -> None:
    steady, gappy = Forecaster(), Forecaster()
    at_steps(steady, [(300, GIB)] * 60)
    now = at_steps(gappy, [(100, GIB)] * 30)
    now = at_steps(gappy, [(300, GIB)] * 60, start=now + 20 * STEP_S)
    assert gappy.outlook(now)[0] == steady.outlook(60 * STEP_S)[0]


def test_time_never_goes_back() -> None:
    forecaster = Forecaster()
    forecaster.observe((1, 1), 1000.0)
    with pytest.raises(AssertionError):
        forecaster.observe((1, 1), 100.0)


def test_the_same_samples_make_the_same_outlook() -> None:
    rng = random.Random(11)
    loads = [(rng.randint(0, 8000), rng.randint(0, 16 * GIB)) for _ in range(300)]
    one, other = Forecaster(), Forecaster()
    assert one.outlook(at_steps(one, loads)) == other.outlook(at_steps(other, loads))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 128_000), st.integers(0, 1 << 44), st.floats(0.1, 2000)),
        min_size=1,
        max_size=120,
    )
)
def test_quantiles_are_in_order_and_never_negative(samples: list[tuple[int, int, float]]) -> None:
    forecaster, now = Forecaster(), 0.0
    for cpu_milli, memory, later in samples:
        now += later
        forecaster.observe((cpu_milli, memory), now)
        outlook = forecaster.outlook(now)
        assert [o.ahead_ms for o in outlook] == [h * STEP_S * 1000 for h in HORIZONS]
        for quantiles in (q for o in outlook for q in (o.cpu_milli, o.memory)):
            assert 0 <= quantiles.q10 <= quantiles.q50 <= quantiles.q90
