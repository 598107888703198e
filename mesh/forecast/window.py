"""The last so many numbers of a series, kept in order of arrival and in order of size."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque


class Window:
    """A ring: the newest value pushes the oldest out. Quantiles cost nothing but a look."""

    def __init__(self, size: int) -> None:
        assert size > 0
        self._size = size
        self._arrived: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._arrived)

    def push(self, value: float) -> None:
        """Take *value* in."""
        if len(self._arrived) == self._size:
            del self._sorted[bisect_left(self._sorted, self._arrived.popleft())]
        self._arrived.append(value)
        insort(self._sorted, value)

    def quantile(self, share: float) -> float:
        """The value below which *share* (0 to 1) of the window lies, straight between neighbours
        (Hyndman and Fan 1996, type 7). The window must not be empty."""
        place = share * (len(self._sorted) - 1)
        below = int(place)
        value = self._sorted[below]
        if place > below:
            above = self._sorted[below + 1]
            value = min(above, value + (above - value) * (place - below))  # rounding may overshoot
        return value
