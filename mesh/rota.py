"""The rota: with whom a replica compares next. A core: the dice are an argument.

Everybody once, in random order, before anybody twice; who came since is not waited for. So of n
replicas that stay connected and answer, each has heard of all after n - 1 rounds at most, whatever
the dice; log2 n as a rule, since each round moves entries both ways.
"""

from __future__ import annotations

from collections.abc import Collection
from random import Random

from attrs import define, field

from mesh.ids import PeerId


@define
class Rota:
    """Who has had its turn."""

    rng: Random
    _had: frozenset[PeerId] = field(default=frozenset(), init=False)

    def next(self, connected: Collection[PeerId], busy: Collection[PeerId] = ()) -> PeerId | None:
        """One of those *connected* that is not *busy*; None if there is none."""
        self._had &= frozenset(connected)
        free = frozenset(connected).difference(busy)
        if not free:
            return None
        if not free - self._had:
            self._had = frozenset()
        peer = self.rng.choice(sorted(free - self._had))
        self._had |= {peer}
        return peer
