"""Announcing: when this node gossips its own offer, and what stands in it.

Every `offer_every_ms`, sooner on real change (over 10 % of what is sold) or when a newcomer is
heard, never closer than `offer_gap_ms` (market.md, "Gossip: offers").
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from mesh import codec
from mesh.ids import Cid
from mesh.market.bidding import Shop
from mesh.market.policy import Policy
from mesh.messages import Offer, Outlook, SignedOffer
from mesh.resources.capacity import Capacity
from mesh.sansio import Action, Gossip, Identity, WakeAt, Woken

_GREETERS = 8.0
"""About so many nodes greet a newcomer with a fresh offer, however large the mesh is."""


class Announcer:
    """This node's voice on the offers topic."""

    def __init__(self, identity: Identity, policy: Policy, epoch: int) -> None:
        self.offer: Offer | None = None
        """The last one gossiped."""
        self._identity = identity
        self._policy = policy
        self._epoch = epoch
        self._seq = 0
        self._said_at = -1e9
        self._due_at = 0.0

    def greets(self, peers: int, rng: Random) -> bool:
        """Whether this node should answer a newcomer among *peers* with a fresh offer."""
        return rng.random() < _GREETERS / max(1, peers)

    def is_stale(self, free: Capacity, sold: Capacity) -> bool:
        """Whether what is free has really changed since the last offer."""
        if self.offer is None:
            return True
        before = self.offer.free
        if before.slots != free.slots and 0 in (before.slots, free.slots):
            return True
        moved = max(
            abs(before.cpu_milli - free.cpu_milli) / max(1, sold.cpu_milli),
            abs(before.memory - free.memory) / max(1, sold.memory),
        )
        return moved > 0.1

    def hurry(self, now: float) -> list[Action]:
        """Bring the next offer forward, as far as the gap allows."""
        soonest = max(now, self._said_at + self._policy.offer_gap_ms / 1000)
        if self._due_at <= soonest:
            return []
        self._due_at = soonest
        return [WakeAt(soonest, Woken("offer", None, 0))]

    def due(
        self,
        now: float,
        *,
        shop: Shop,
        free: Capacity,
        outlook: Sequence[Outlook],
        modules: Sequence[Cid],
    ) -> list[Action]:
        """Say it, when it is time."""
        if now < self._due_at:
            return []
        self._seq += 1
        self.offer = Offer(
            peer=self._identity.peer,
            epoch=self._epoch,
            seq=self._seq,
            sold=shop.sold,
            free=free,
            outlook=tuple(outlook),
            price=shop.price,
            speed=shop.speed,
            features=shop.features,
            cached=tuple(bytes(module[-4:]) for module in modules),
            agent=shop.agent,
        )
        data = codec.encode_offer(self.offer)
        signature = self._identity.sign(codec.offer_message(data))
        self._said_at = now
        self._due_at = now + self._policy.offer_every_ms / 1000
        return [
            Gossip(SignedOffer(data, signature)),
            WakeAt(self._due_at, Woken("offer", None, 0)),
        ]
