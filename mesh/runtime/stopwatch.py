"""A stopwatch: how long something has run, its pauses apart."""

from __future__ import annotations

import math

import trio


class Stopwatch:
    """Seconds that have passed, pauses apart."""

    def __init__(self, *, is_paused: bool) -> None:
        self._passed = 0.0
        self._since = math.inf if is_paused else trio.current_time()

    @property
    def is_paused(self) -> bool:
        return self._since == math.inf

    @property
    def elapsed(self) -> float:
        return self._passed + max(0.0, trio.current_time() - self._since)

    def pause(self) -> None:
        self._passed = self.elapsed
        self._since = math.inf

    def go_on(self) -> None:
        if self.is_paused:
            self._since = trio.current_time()
