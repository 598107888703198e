"""The pace of a run that bought a part of a core: when it rests, and for how long. Pure.

What it used of the processor is paid for with time, at the rate that was bought: who bought a fifth
of a core pays five seconds for each. It rests until all is paid. Time in which it got less than it
bought is not saved up, beyond a moment: the owner's machine shall not pay it back at once.
"""

from __future__ import annotations

CORE_MILLI = 1000
"""A whole core: whoever bought that never rests, nor who bought more, as one guest has one core."""
SAVED_S = 0.1


class Pace:
    """*now* is a clock that only rises, *used* the processor time so far, both in seconds."""

    def __init__(self, cpu_milli: int, now: float, used: float) -> None:
        self._milli = min(max(cpu_milli, 1), CORE_MILLI)
        self._paid_at = now
        self._used = used

    def rest(self, now: float, used: float) -> float:
        """For how long to rest, from *now* on."""
        if self._milli == CORE_MILLI:
            return 0.0
        price = (used - self._used) * CORE_MILLI / self._milli
        self._used = used
        self._paid_at = max(self._paid_at + price, now - SAVED_S)
        return max(0.0, self._paid_at - now)
