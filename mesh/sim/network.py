"""The network: loses, delays, repeats and reorders; clogs links; cuts the mesh in two.

Links are directed pairs of node numbers. What is sent before a cut still arrives after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from mesh.sim.options import Options

CLOG_MAX = 64
"""Messages that wait in a clogged link's outbox; what comes on top is dropped, as in the driver."""
_HOP_S = 0.05
"""Mean time of one gossip hop."""


class Network:
    """Decides when, how often and whether a message arrives; delivers nothing itself."""

    def __init__(self, options: Options, rng: Random) -> None:
        self._options = options
        self._rng = rng
        self._cuts: dict[tuple[int, int], int] = {}  # how many partitions cut the link now
        self._clogs: dict[tuple[int, int], float] = {}  # until when
        self._clogged: dict[tuple[int, int], int] = {}
        self._is_healed = False
        self.sent = 0
        self.lost = 0
        self.repeated = 0

    def reaches(self, source: int, target: int) -> bool:
        """Whether a message sent now could arrive at all."""
        return (source, target) not in self._cuts

    def arrivals(self, source: int, target: int, now: float) -> list[float]:
        """When the copies of a message sent now arrive; none when it is lost."""
        self.sent += 1
        if (source, target) in self._cuts:
            self.lost += 1
            return []
        options, rng = self._options, self._rng
        if self._is_healed:
            return [now + rng.expovariate(1 / min(0.05, options.delay_s))]
        if rng.random() < options.loss:
            self.lost += 1
            return []
        start = self._unclogged_at(source, target, now)
        if start is None:
            self.lost += 1
            return []
        times = [start + self._delay()]
        while rng.random() < options.duplicates and len(times) < 4:
            self.repeated += 1
            times.append(start + self._delay())
        return times

    def gossip_arrival(self, source: int, target: int, now: float) -> float | None:
        """When a gossiped offer reaches *target*, over a few hops; None when it never does."""
        self.sent += 1
        lossy = not self._is_healed and self._rng.random() < self._options.gossip_loss
        if lossy or (source, target) in self._cuts:
            self.lost += 1
            return None
        return now + self._rng.expovariate(1 / (_HOP_S * self._rng.randint(1, 3)))

    def clog(self, source: int, target: int, until: float) -> None:
        """Hold everything on a link back until then."""
        self._clogs[source, target] = until
        self._clogged[source, target] = 0

    def cut(self, links: Iterable[tuple[int, int]]) -> None:
        """Cut links until `mend` is called with the same."""
        for link in links:
            self._cuts[link] = self._cuts.get(link, 0) + 1

    def mend(self, links: Iterable[tuple[int, int]]) -> None:
        """Undo one `cut`."""
        for link in links:
            left = self._cuts.get(link, 0) - 1
            if left > 0:
                self._cuts[link] = left
            else:
                self._cuts.pop(link, None)

    def heal(self) -> None:
        """From now on everything arrives, once and soon."""
        self._cuts.clear()
        self._clogs.clear()
        self._is_healed = True

    def _unclogged_at(self, source: int, target: int, now: float) -> float | None:
        until = self._clogs.get((source, target), 0.0)
        if until <= now:
            return now
        waiting = self._clogged[source, target]
        if waiting >= CLOG_MAX:
            return None
        self._clogged[source, target] = waiting + 1
        return until

    def _delay(self) -> float:
        if self._rng.random() < self._options.slow:
            return self._rng.uniform(0.0, self._options.slow_s)
        return self._rng.expovariate(1 / self._options.delay_s)


def split(nodes: int, rng: Random) -> list[tuple[int, int]]:
    """The links a drawn partition cuts: halves or one node alone, both ways or one way only."""
    if rng.random() < 0.4:
        lonely = rng.randrange(nodes)
        side = [node == lonely for node in range(nodes)]
    else:
        side = [rng.random() < 0.5 for _ in range(nodes)]
    is_symmetric = rng.random() < 0.6
    return [
        (source, target)
        for source in range(nodes)
        for target in range(nodes)
        if side[source] != side[target] and (is_symmetric or side[source])
    ]
