"""Several forecasters as one: whoever has been right here lately has the say.

For each horizon apart, every model's forecasts are scored when their outcome is known; its weight
falls exponentially with its loss of late, relative to the best (the exponentially weighted
forecaster of Cesa-Bianchi and Lugosi, Prediction, Learning, and Games, 2006, chapter 2, with old
losses forgotten). What is said is the weighted mean of the models' quantiles: quantiles in order
stay in order, and, since pinball loss is convex, the mean loses at most the mean of their losses.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

from mesh.forecast.baseline import Band, Model

SHARPNESS = 12.0
"""A model whose loss of late is the best one's and a twelfth of it more has 1/e of its weight."""
MEMORY = 288
"""Steps over which losses are forgotten."""

Bands: TypeAlias = tuple[Band | None, ...]


class Hedge:
    """One series, forecast by several models for each of *horizons* (in steps)."""

    def __init__(self, models: Sequence[Model], horizons: Sequence[int]) -> None:
        self._models = tuple(models)
        self._said: dict[int, deque[Bands]] = {h: deque(maxlen=h) for h in horizons}
        self._losses = {h: [_Loss() for _ in models] for h in horizons}

    def observe(self, value: float) -> None:
        """The next step had *value*: score what was said of it, then look ahead again."""
        for ahead, said in self._said.items():
            if len(said) == ahead:
                for loss, band in zip(self._losses[ahead], said[0], strict=True):
                    if band is not None:
                        loss.add(band.pinball(value))
        for model in self._models:
            model.observe(value)
        for ahead, said in self._said.items():
            said.append(self._bands(ahead))

    def miss(self) -> None:
        """The next step was not seen: nobody is scored, neither for it nor for what it hid."""
        for model in self._models:
            model.miss()
        for said in self._said.values():
            said.append((None,) * len(self._models))

    def _bands(self, ahead: int) -> Bands:
        return tuple(model.band(ahead) for model in self._models)

    def band(self, ahead: int) -> Band | None:
        """The value *ahead* steps after the last, or None while no model says anything."""
        voices = zip(self.weights(ahead), self._bands(ahead), strict=True)
        heard = [(weight, band) for weight, band in voices if band is not None]
        if not heard:
            return None
        total = sum(weight for weight, _ in heard)
        return Band(
            sum(weight * band.q10 for weight, band in heard) / total,
            sum(weight * band.q50 for weight, band in heard) / total,
            sum(weight * band.q90 for weight, band in heard) / total,
        )

    def weights(self, ahead: int) -> tuple[float, ...]:
        """The models' say at this horizon, the best one's being 1; unscored ones count as best."""
        losses = [loss.mean for loss in self._losses[ahead]]
        best = min((loss for loss in losses if loss is not None), default=0.0)
        if best <= 0:
            return tuple(float(loss is None or loss <= best) for loss in losses)
        return tuple(
            1.0 if loss is None else math.exp(-SHARPNESS * (loss / best - 1)) for loss in losses
        )


class _Loss:
    """A mean that forgets: each new loss counts 1/MEMORY, and the first ones count evenly."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = 0.0

    def add(self, loss: float) -> None:
        self._count = min(self._count + 1, MEMORY)
        self._mean += (loss - self._mean) / self._count

    @property
    def mean(self) -> float | None:
        return self._mean if self._count else None
