"""Scoring: what a bid is worth to the buyer, and how far its promises are to be believed.

Score = value x P(on time, corrected by the bidder's record) - price - spread (market.md, step 3);
pure, so that an award can be replayed by anybody who has the bids.
"""

from __future__ import annotations

from hashlib import sha256
from math import log2

from mesh.ids import PeerId, TaskId
from mesh.messages import Bid

_PRIOR = 4.0
"""Promises that every peer is credited with at first: one failure must not end a newcomer."""
_PEERS_MAX = 4_096
_HALF_LIFE = 64.0
"""Promises after which old ones weigh half."""


class Calibration:
    """How each peer's promises of finishing on time turned out."""

    def __init__(self) -> None:
        self._promised: dict[PeerId, float] = {}
        self._kept: dict[PeerId, float] = {}

    def __len__(self) -> int:
        return len(self._promised)

    def record(self, peer: PeerId, p_on_time: int, *, was_kept: bool) -> None:
        """Score one settled or broken promise; *p_on_time* in thousandths."""
        fade = 0.5 ** (1 / _HALF_LIFE)
        promised = self._promised.pop(peer, 0.0) * fade + p_on_time / 1000
        self._promised[peer] = promised
        self._kept[peer] = self._kept.get(peer, 0.0) * fade + (1.0 if was_kept else 0.0)
        if len(self._promised) > _PEERS_MAX:
            stale = next(iter(self._promised))
            del self._promised[stale]
            del self._kept[stale]

    def factor(self, peer: PeerId) -> float:
        """By what a promise of *peer* is to be multiplied: kept over promised, at most 1."""
        promised = self._promised.get(peer, 0.0) + _PRIOR
        kept = self._kept.get(peer, 0.0) + _PRIOR
        return max(0.05, min(1.0, kept / promised))


BOUND = _PEERS_MAX
"""The most peers a `Calibration` remembers."""


def score(bid: Bid, *, value: int, price: int, deadline_ms: int, factor: float) -> int:
    """What awarding to *bid* would gain the buyer, µcr. Negative when it costs more than it gives.

    The spread term charges a bidder that cannot say when it will be done: a twentieth of the value
    for a promise as wide as the time left.
    """
    expected = value * bid.p_on_time / 1000 * factor
    width = (bid.finish_ms.q90 - bid.finish_ms.q10) / max(1, deadline_ms)
    return int(expected) - price - int(value * min(1.0, max(0.0, width)) / 20)


def tie_break(task: TaskId, round_: int, peer: PeerId) -> bytes:
    """Orders equal scores: nobody can choose it and everybody can recompute it."""
    return sha256(b"mesh/1/tie\0" + task + round_.to_bytes(8, "big") + peer).digest()


def virtual_deadline(deadline_at: float, fee: int, fuel: int, reference: float) -> float:
    """The order of waiting tasks: vk = deadline - beta * log2(fee density / reference density).

    Seconds on the scale of *deadline_at*; *reference* is the median of (fee + 1) / fuel. Static, so
    it is transitive and cannot ping-pong (market.md, "The order of tasks").
    """
    density = (fee + 1) / max(1, fuel)
    return deadline_at - _BETA_S * log2(density / reference)


_BETA_S = 900.0
"""A quarter of an hour: doubling the fee density is worth this much of the deadline."""
