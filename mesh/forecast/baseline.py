"""The simple forecasters: no training, a few numbers of state, right from the first hours on.

Each sees one series at even steps and says, for a number of steps ahead, where the value will be,
as 10, 50 and 90 % quantiles. None of them is best everywhere; hedge.py combines them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from attrs import frozen

from mesh.forecast.window import Window

SHARES = (0.1, 0.5, 0.9)
OUTCOMES_MIN = 12
"""Fewer outcomes than these make no quantiles."""


@frozen
class Band:
    """Quantiles of one forecast, in the unit of the series."""

    q10: float
    q50: float
    q90: float

    def __attrs_post_init__(self) -> None:
        assert self.q10 <= self.q50 <= self.q90, self

    def pinball(self, value: float) -> float:
        """What the forecast cost when *value* came: the mean pinball loss of the three quantiles
        (Koenker and Bassett 1978); the less the better, in the unit of the series."""
        return sum(map(_pinball, SHARES, (self.q10, self.q50, self.q90), (value,) * 3)) / 3

    def above(self, floor: float) -> Band:
        """The same band, nothing of it below *floor*."""
        return Band(max(floor, self.q10), max(floor, self.q50), max(floor, self.q90))


class Model(Protocol):
    """Anything that forecasts one series."""

    def observe(self, value: float) -> None:
        """The next step had *value*."""

    def miss(self) -> None:
        """The next step was not seen."""

    def band(self, ahead: int) -> Band | None:
        """The value *ahead* steps after the last, or None while that cannot be said."""


class Recent:
    """It will be as it has been: quantiles of the last *size* values."""

    def __init__(self, size: int) -> None:
        self._values = Window(size)

    def observe(self, value: float) -> None:
        self._values.push(value)

    def miss(self) -> None:
        """A step not seen changes nothing."""

    def band(self, ahead: int) -> Band | None:
        return _quantiles(self._values) if len(self._values) >= OUTCOMES_MIN else None


class Smoothed:
    """An exponentially weighted mean, and how far from it the last day's outcomes were.

    *rate* is the weight of the newest value (Brown 1956). With a rate of 1 the mean is the last
    value itself: persistence.
    """

    def __init__(self, rate: float, horizons: Sequence[int], outcomes: int) -> None:
        assert 0 < rate <= 1
        self._rate = rate
        self._level: float | None = None
        self._said: dict[int, deque[float | None]] = {h: deque(maxlen=h) for h in horizons}
        self._errors = {h: Window(outcomes) for h in horizons}

    def observe(self, value: float) -> None:
        for ahead, said in self._said.items():
            level = said[0] if len(said) == ahead else None
            if level is not None:
                self._errors[ahead].push(value - level)
        if self._level is None:
            self._level = value
        self._level += self._rate * (value - self._level)
        self._remember(self._level)

    def miss(self) -> None:
        """The level stays, but it is too old to be measured by what comes next."""
        self._remember(None)

    def _remember(self, level: float | None) -> None:
        for said in self._said.values():
            said.append(level)

    def band(self, ahead: int) -> Band | None:
        errors = self._errors[ahead]
        if self._level is None or len(errors) < OUTCOMES_MIN:
            return None
        error = _quantiles(errors)
        return Band(self._level + error.q10, self._level + error.q50, self._level + error.q90)


def _quantiles(values: Window) -> Band:
    return Band(*map(values.quantile, SHARES))


def _pinball(share: float, quantile: float, value: float) -> float:
    miss = value - quantile
    return share * miss if miss >= 0 else (share - 1) * miss
