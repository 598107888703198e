"""A node's monotonic clock: its origin means nothing and its rate is only nearly right."""

from __future__ import annotations

from attrs import frozen


@frozen
class Clock:
    """Maps the world's time to one boot of one node, and back. Seconds."""

    booted_at: float
    origin: float
    rate: float

    def read(self, at: float) -> float:
        """What the clock shows at world time *at*."""
        return self.origin + (at - self.booted_at) * self.rate

    def when(self, reading: float) -> float:
        """The world time at which the clock shows *reading*."""
        return self.booted_at + (reading - self.origin) / self.rate
