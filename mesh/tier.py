"""What bounds an overspend, in words: said wherever money is shown. Pure."""

from __future__ import annotations

T0, T1, T2 = "T0", "T1", "T2"
STATISTIC = "sums over receipts: a statistic, never credit to spend"
"""What a balance over all is."""

_LINES = "each seller's own credit line per buyer bounds what it can lose, even in a partition"


def promise(tier: str, *, n: int = 0, q: int = 0) -> str:
    """What *tier* promises; T2 by *q* of *n* witnesses.

    Two quorums share at least 2q - n witnesses, and one honest one among them signs no fork: so
    it takes more bad ones than 2q - n - 1.
    """
    if tier == T2:
        bad = 2 * q - n - 1
        return (
            f"T2: a witness quorum of {n}, {q} of them, makes a fork impossible"
            f" with at most {bad} bad witness{'' if bad == 1 else 'es'}"
        )
    if tier == T1:
        return f"T1: {_LINES}; forks are detected by gossip, not prevented"
    return f"T0: {_LINES}"
