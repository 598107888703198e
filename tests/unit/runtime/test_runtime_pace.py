"""The pace of a run: never more of the processor than was bought, whatever the machine does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.runtime.pace import SAVED_S, Pace


class Machine:
    """A clock and a processor that move as they are told."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.used = 7.0

    def work(self, seconds: float, waited: float = 0.0) -> None:
        self.now += seconds + waited
        self.used += seconds


@pytest.mark.parametrize(("milli", "rests"), [(500, 0.02), (100, 0.18), (10, 1.98), (999, 2e-5)])
def test_a_slice_is_followed_by_what_it_costs(milli: int, rests: float) -> None:
    machine = Machine()
    pace = Pace(milli, machine.now, machine.used)
    for _ in range(5):
        machine.work(0.02)
        rest = pace.rest(machine.now, machine.used)
        assert rest == pytest.approx(rests, rel=0.01)
        machine.now += rest
        assert pace.rest(machine.now, machine.used) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("milli", [1000, 4000])
def test_whoever_bought_a_core_never_rests(milli: int) -> None:
    machine = Machine()
    pace = Pace(milli, machine.now, machine.used)
    for _ in range(5):
        machine.work(10.0)
        assert pace.rest(machine.now, machine.used) == 0.0


def test_a_rest_that_was_cut_short_goes_on() -> None:
    machine = Machine()
    pace = Pace(100, machine.now, machine.used)
    machine.work(1.0)
    assert pace.rest(machine.now, machine.used) == pytest.approx(9.0)
    machine.now += 4.0
    assert pace.rest(machine.now, machine.used) == pytest.approx(5.0)


def test_time_that_was_not_used_is_saved_for_a_moment_only() -> None:
    machine = Machine()
    pace = Pace(500, machine.now, machine.used)
    machine.work(0.0, waited=3600.0)
    assert pace.rest(machine.now, machine.used) == 0.0
    machine.work(1.0)
    assert pace.rest(machine.now, machine.used) == pytest.approx(1.0 - SAVED_S)


steps = st.lists(st.tuples(st.floats(0.0, 0.5), st.floats(0.0, 2.0)), min_size=1, max_size=50)


@given(st.integers(1, 999), steps)
def test_no_run_has_ever_used_more_than_it_bought(
    milli: int, found: list[tuple[float, float]]
) -> None:
    machine = Machine()
    pace = Pace(milli, machine.now, machine.used)
    for seconds, waited in found:
        machine.work(seconds, waited)
        machine.now += pace.rest(machine.now, machine.used)
        assert machine.used - 7.0 <= (machine.now - 1000.0) * milli / 1000 + 1e-6
