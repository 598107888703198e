"""Who may say how much: rates, faults and bans of peers. A core: time is an argument (seconds).

Token buckets per peer (frames, bytes, signature verifications, our processor) and one score; the
processor has one more for all peers together, or many keys would take what one may not. A fault
adds to the score, which halves every `half_life_s`; at `ban_score` the peer is banned for `ban_s`,
doubled with every ban until a clean `ban_memory_s`. A peer within its rates never waits.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from attrs import Factory, define, field, frozen

from mesh.ids import PeerId


@frozen
class GuardConfig:
    """Limits of one peer. Rates are per second; a bucket holds *burst_s* seconds' worth."""

    frames_per_s: float = 400.0
    bytes_per_s: float = 32e6
    verifications_per_s: float = 100.0
    cpu_ms_per_s: float = 200.0
    """Of a core, for looking at what a peer forwards."""
    cpu_ms_all_per_s: float = 500.0
    """The same, for all peers together."""
    burst_s: float = 2.0
    half_life_s: float = 60.0
    ban_score: float = 10.0
    ban_s: float = 60.0
    ban_max_s: float = 3600.0
    ban_memory_s: float = 7200.0
    max_peers: int = 2048


@define
class _Peer:
    spent_at: float
    frames: float
    bytes: float
    verifications: float
    cpu_ms: float
    score: float = 0.0
    scored_at: float = 0.0
    banned_until: float = -math.inf
    bans: int = 0


@define
class Guard:
    """Rates, scores and bans of all peers: at most `max_peers`, the longest unseen forgotten."""

    config: GuardConfig = Factory(GuardConfig)
    forgotten: int = 0
    """Peers dropped from the full table."""
    _peers: OrderedDict[PeerId, _Peer] = field(factory=OrderedDict, init=False)
    _all_cpu_ms: float = field(init=False)
    _all_spent_at: float = field(default=-math.inf, init=False)

    @_all_cpu_ms.default
    def _full(self) -> float:
        return self.config.cpu_ms_all_per_s * self.config.burst_s

    def delay(self, peer: PeerId, size: int, now: float) -> float:
        """Charge a frame of *size* bytes; seconds to wait before the next is read (0: none).

        Inbound frames are slowed, not dropped: the sender's own bounded outbox then fills.
        """
        known, config = self._refilled(peer, now), self.config
        known.frames -= 1
        known.bytes -= size
        return max(0.0, -known.frames / config.frames_per_s, -known.bytes / config.bytes_per_s)

    def admits_verification(self, peer: PeerId, now: float) -> bool:
        """Charge one signature check to *peer*; False when its budget is spent or it is banned."""
        known = self._refilled(peer, now)
        if known.verifications < 1 or known.banned_until > now:
            return False
        known.verifications -= 1
        return True

    def admits_work(self, peer: PeerId, cpu_ms: float, now: float) -> bool:
        """Charge *cpu_ms* of our processor to *peer*; False when its budget, or that of all
        together, is spent, or it is banned."""
        known, config = self._refilled(peer, now), self.config
        passed = max(0.0, now - max(self._all_spent_at, now - config.burst_s))
        self._all_cpu_ms = _fill(self._all_cpu_ms, config.cpu_ms_all_per_s, passed, config.burst_s)
        self._all_spent_at = max(now, self._all_spent_at)
        if min(known.cpu_ms, self._all_cpu_ms) < cpu_ms or known.banned_until > now:
            return False
        known.cpu_ms -= cpu_ms
        self._all_cpu_ms -= cpu_ms
        return True

    def fault(self, peer: PeerId, weight: float, now: float) -> bool:
        """Add *weight* to the peer's score; True if it is banned by this very fault.

        Faults during a ban are part of it.
        """
        known = self._known(peer, now)
        if known.banned_until > now:
            return False
        known.score = self._decayed(known, now) + weight
        known.scored_at = now
        if known.score < self.config.ban_score:
            return False
        if now - known.banned_until > self.config.ban_memory_s:
            known.bans = 0
        length = min(self.config.ban_s * 2.0**known.bans, self.config.ban_max_s)
        known.bans = min(known.bans + 1, 32)
        known.banned_until = now + length
        known.score = 0.0
        return True

    def score(self, peer: PeerId, now: float) -> float:
        """What is left of the peer's faults."""
        known = self._peers.get(peer)
        return self._decayed(known, now) if known else 0.0

    def is_banned(self, peer: PeerId, now: float) -> bool:
        """Is *peer* serving a ban?"""
        known = self._peers.get(peer)
        return known is not None and known.banned_until > now

    def __len__(self) -> int:
        return len(self._peers)

    def _known(self, peer: PeerId, now: float) -> _Peer:
        known = self._peers.get(peer)
        if known is None:
            self._make_room(now)
            config = self.config
            known = self._peers[peer] = _Peer(
                spent_at=now,
                frames=config.frames_per_s * config.burst_s,
                bytes=config.bytes_per_s * config.burst_s,
                verifications=config.verifications_per_s * config.burst_s,
                cpu_ms=config.cpu_ms_per_s * config.burst_s,
                scored_at=now,
            )
        self._peers.move_to_end(peer)
        return known

    def _make_room(self, now: float) -> None:
        """Forget the longest unseen; a banned peer must not buy its way out with fresh keys."""
        while len(self._peers) >= self.config.max_peers:
            oldest = next((p for p, k in self._peers.items() if k.banned_until <= now), None)
            del self._peers[next(iter(self._peers)) if oldest is None else oldest]
            self.forgotten += 1

    def _refilled(self, peer: PeerId, now: float) -> _Peer:
        known, config = self._known(peer, now), self.config
        passed, burst = max(0.0, now - known.spent_at), config.burst_s
        known.spent_at = max(now, known.spent_at)
        known.frames = _fill(known.frames, config.frames_per_s, passed, burst)
        known.bytes = _fill(known.bytes, config.bytes_per_s, passed, burst)
        known.verifications = _fill(known.verifications, config.verifications_per_s, passed, burst)
        known.cpu_ms = _fill(known.cpu_ms, config.cpu_ms_per_s, passed, burst)
        return known

    def _decayed(self, known: _Peer, now: float) -> float:
        age = max(0.0, now - known.scored_at)
        return known.score * math.exp2(-age / self.config.half_life_s)


def _fill(level: float, rate: float, passed: float, burst_s: float) -> float:
    return min(rate * burst_s, level + rate * passed)
