"""What the owner will need: its own load 5, 15 and 60 minutes ahead, as quantiles.

Samples (every ten seconds or so, the mesh's own tasks already subtracted) are folded into steps of
five minutes by their mean; each channel, CPU and RAM, is forecast by a hedge of simple models.
**Cold start**: before the first sample there is no outlook at all. Until a horizon has seen its
first outcomes (an hour and the horizon), its band is the least, the mean and the most that was
sampled in the last hour: an upper edge made of peaks, and so a careful one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from attrs import frozen

from mesh.forecast.baseline import Band, Recent, Smoothed
from mesh.forecast.hedge import Hedge
from mesh.messages import Outlook, Quantiles

STEP_S = 300
HORIZONS = (1, 3, 12)
"""Steps: 5, 15 and 60 minutes."""
DAY = 24 * 3600 // STEP_S
COLD_STEPS = 12
RATES = (0.1, 0.35, 0.7, 1.0)
"""Of smoothing; at 1 it is persistence."""
RECENT = (12, 36)
"""Steps whose quantiles are taken as they are: one and three hours."""


@frozen
class Step:
    """One channel's samples of a step: the least, the sum, the most, and how many."""

    least: int
    sum: int
    most: int
    count: int

    def and_sample(self, value: int) -> Step:
        return Step(min(self.least, value), self.sum + value, max(self.most, value), self.count + 1)


class Channel:
    """One quantity's series: the step that is being sampled, the last hour, and the hedge."""

    def __init__(self) -> None:
        self._open: Step | None = None
        self._hour: deque[Step] = deque(maxlen=COLD_STEPS)
        self._hedge = simple_hedge()

    def sample(self, value: int) -> None:
        """A sample of the step that is open."""
        assert value >= 0
        first = Step(value, value, value, 1)
        self._open = first if self._open is None else self._open.and_sample(value)

    def close(self) -> None:
        """The step is over; what was sampled in it, if anything, is its mean."""
        if self._open is None:
            self._hedge.miss()
            return
        self._hedge.observe(self._open.sum / self._open.count)
        self._hour.append(self._open)
        self._open = None

    def ahead(self, steps: int) -> Quantiles | None:
        """The value *steps* ahead, or None before the first sample."""
        band = self._hedge.band(steps) or self._cold()
        if band is None:
            return None
        band = band.above(0.0)
        return Quantiles(round(band.q10), round(band.q50), round(band.q90))

    def _cold(self) -> Band | None:
        steps = [*self._hour, self._open] if self._open else [*self._hour]
        if not steps:
            return None
        mean = sum(step.sum for step in steps) / sum(step.count for step in steps)
        return Band(min(step.least for step in steps), mean, max(step.most for step in steps))


class Forecaster:
    """The owner's load, both channels."""

    def __init__(self) -> None:
        self._cpu, self._memory = Channel(), Channel()
        self._step: int | None = None
        """Number of the open step, counted from the clock's origin."""
        self._said: tuple[Outlook, ...] | None = None
        """The outlook, until something changes it."""

    def observe(self, load: tuple[int, int], now: float) -> None:
        """A sample at *now* (monotonic seconds): thousandths of a core, bytes of RAM."""
        self._turn_to(now)
        cpu_milli, memory = load
        self._cpu.sample(cpu_milli)
        self._memory.sample(memory)
        self._said = None

    def outlook(self, now: float) -> tuple[Outlook, ...]:
        """The load 5, 15 and 60 minutes after *now*; empty before the first sample."""
        self._turn_to(now)
        if self._said is None:
            self._said = tuple(self._look_ahead())
        return self._said

    def _turn_to(self, now: float) -> None:
        """Close the steps that ended before *now*. After a long sleep of the machine the models
        need not be told of more missed steps than they look ahead."""
        step = int(now // STEP_S)
        if self._step is None:
            self._step = step
        assert step >= self._step, "time went backwards"
        for _ in range(min(step - self._step, HORIZONS[-1] + 1)):
            self._cpu.close()
            self._memory.close()
            self._said = None
        self._step = step

    def _look_ahead(self) -> Iterable[Outlook]:
        for steps in HORIZONS:
            cpu_milli, memory = self._cpu.ahead(steps), self._memory.ahead(steps)
            if cpu_milli is not None and memory is not None:
                yield Outlook(steps * STEP_S * 1000, cpu_milli, memory)


def simple_hedge() -> Hedge:
    """The hedge over smoothed means, persistence among them, and recent quantiles."""
    smoothed = (Smoothed(rate, HORIZONS, outcomes=DAY) for rate in RATES)
    recent = (Recent(size) for size in RECENT)
    return Hedge([*smoothed, *recent], HORIZONS)
