"""Keeping: states of tasks that run elsewhere, for the case that they are to go on here.

Their auctioneers ask it of a node that would have run them too. Nothing is promised and nothing is
paid; what is kept is bounded, and lapses.
"""

from __future__ import annotations

from attrs import define

from mesh.ids import Cid, PeerId, TaskId
from mesh.market.policy import Policy
from mesh.messages import Keep
from mesh.sansio import Action, DropState, KeepState, WakeAt, Woken


@define
class _Kept:
    state: Cid
    until: float


class Keeping:
    """The newest state of each of a few tasks."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._kept: dict[tuple[PeerId, TaskId], _Kept] = {}

    def sizes(self) -> dict[str, tuple[int, int]]:
        return {"states_kept": (len(self._kept), self._policy.states_kept_max)}

    def keep(self, peer: PeerId, asked: Keep, now: float) -> list[Action]:
        """Fetch it from its auctioneer, if there is room; it takes the place of the one before."""
        key = (peer, asked.task)
        known = self._kept.get(key)
        if known is None and len(self._kept) >= self._policy.states_kept_max:
            return []
        if asked.bytes_max > self._policy.state_kept_bytes_max:
            return []
        until = now + self._policy.state_kept_ms / 1000
        self._kept[key] = _Kept(asked.state, until)
        lapse = WakeAt(until, Woken("keep", asked.task, 0))
        if known is not None and known.state == asked.state:
            return [lapse]
        return [KeepState(asked.task, peer, asked.state, asked.bytes_max), lapse]

    def due(self, task: TaskId, now: float) -> list[Action]:
        """What nobody has asked us to keep for long is dropped."""
        over = [key for key, kept in self._kept.items() if key[1] == task and now >= kept.until]
        for key in over:
            del self._kept[key]
        return [DropState(task, peer) for peer, _ in over]
