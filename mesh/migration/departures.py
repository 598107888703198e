"""Departures: why runs leave this node while they go on, and the states of them that we give away.

A run is taken out alive when its buyer asks for it, when the owner wants the node empty, when the
owner himself needs, or is expected to need, what he sold, and when somebody who would pay far more
finds no room. On the way its state is kept every `interval_s`: should we be lost, its buyer has
somebody else go on from the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from ledger.model import FUEL_PER_PRICE
from mesh.ids import PeerId
from mesh.market.bidding import Shop
from mesh.market.lease import Clock, Phase, Tenancy
from mesh.market.policy import Policy
from mesh.market.slicing import slice_fuel
from mesh.market.tenancy import Tenancies
from mesh.messages import Ask, Award, Done, Handover, Outlook, Saved, Stays
from mesh.resources.capacity import Capacity
from mesh.sansio import (
    Action,
    Checkpoint,
    Checkpointed,
    DrainSet,
    Identity,
    Send,
    Suspend,
    Suspended,
    Unmoved,
    WakeAt,
    Woken,
)

_KEEPING_BYTES_S = 100e6
"""About how fast a state is kept and carried to its buyer."""
_BETWEEN_LOSSES_S = 86_400.0
"""About how long an executor lives."""
_LEAVE_TRIES = 5
"""A run that cannot be taken out yet is tried so many times more…"""
_LEAVE_AGAIN_S = 1.0
"""…so far apart."""
_ASKED = float("inf")
"""When the state of a run is due that is being taken out."""


class Departures:
    """Reads and ends tenancies."""

    def __init__(
        self, identity: Identity, policy: Policy, clock: Clock, tenancies: Tenancies
    ) -> None:
        self._identity = identity
        self._policy = policy
        self._clock = clock
        self._tenancies = tenancies
        self._preempted_at = -1e9

    # --- why a run leaves -----------------------------------------------------------------------

    def handover(self, peer: PeerId, asked: Handover) -> list[Action]:
        """Its buyer wants it back."""
        tenancy = self._tenancies.hosted_as(asked.task, asked.fence, peer)
        return self._leave(tenancy, asked.reason) if tenancy else []

    def drain(self, event: DrainSet) -> list[Action]:
        """The owner wants the node empty: what runs leaves, and nothing new is taken."""
        self._tenancies.close(is_closed=event.is_on)
        if not event.is_on:
            return []
        return [action for tenancy in self._running() for action in self._leave(tenancy, _DRAINING)]

    def pressed(self, shop: Shop, owner: Capacity, outlook: Sequence[Outlook]) -> list[Action]:
        """Make room for the owner, one run at a time: the one that takes least with it.

        *owner* is what the owner needs now.
        """
        running = [tenancy for tenancy in self._running() if not tenancy.is_fixed]
        if any(tenancy.leaving for tenancy in running):
            return []
        soon_ms = self._policy.leave_ahead_ms
        ahead = [o for o in outlook if o.ahead_ms <= soon_ms]
        need = Capacity(
            max([owner.cpu_milli, *[o.cpu_milli.q50 for o in ahead]]),
            max([owner.memory, *[o.memory.q50 for o in ahead]]),
        )
        pool = self._tenancies.pool
        short = need.minus(shop.machine.minus(shop.sold)).minus(pool.free)
        if not running or not (short.cpu_milli or short.memory):
            return []
        return self._leave(min(running, key=_burden), "its owner needs the machine")

    def preempt(self, ask: Ask, owner: Capacity, now: float) -> list[Action]:
        """Make room for what cannot be bid for, where a single run takes it that is paid far less.

        That ask stays refused: our next offer shows the room. *owner* is what the owner needs of
        what is for sale.
        """
        free, needs = self._tenancies.pool.free.minus(owner), ask.work.needs
        is_soon = now - self._preempted_at < self._policy.preempt_gap_ms / 1000
        if is_soon or ask.task in self._tenancies.holds or needs.fits_in(free):
            return []
        price = (ask.max_price - ask.fee) * FUEL_PER_PRICE // max(1, ask.work.fuel)
        victims = [
            tenancy
            for tenancy in self._running()
            if tenancy.work is not None
            and not (tenancy.is_fixed or tenancy.leaving)
            and tenancy.terms.price * self._policy.preempt_times <= price
            and needs.fits_in(free + tenancy.work.needs)
        ]
        if not victims or self._tenancies.is_closed:
            return []
        self._preempted_at = now
        victim = min(victims, key=lambda tenancy: (tenancy.terms.price, *_burden(tenancy)))
        return self._leave(victim, "a better paid task needs the room")

    def leaving(self) -> int:
        """Runs that are being taken out, or have been and are not settled yet."""
        return sum(bool(tenancy.leaving) for tenancy in self._tenancies.open())

    def _running(self) -> list[Tenancy]:
        return [tenancy for tenancy in self._tenancies.open() if tenancy.phase is Phase.RUNNING]

    def _leave(self, tenancy: Tenancy, reason: str) -> list[Action]:
        if tenancy.leaving:
            return []
        if tenancy.is_fixed:
            return [Send(tenancy.buyer, Stays(tenancy.task, tenancy.fence, _FIXED))]
        tenancy.leaving, tenancy.leave_tries, tenancy.save_at = reason, 0, _ASKED
        told = self._tenancies.tell(tenancy, "leaving", reason)
        return [told, Suspend(tenancy.task, tenancy.fence)]

    # --- what becomes of it ----------------------------------------------------------------------

    def arrived(self, peer: PeerId, award: Award, now: float) -> list[Action]:
        """A run begins: from now on its state is kept from time to time."""
        tenancy = self._tenancies.hosted_as(award.task, award.fence, peer)
        return [self.save_timer(tenancy, now)] if tenancy and not tenancy.save_at else []

    def suspended(self, event: Suspended, now: float) -> list[Action]:
        """It is out: give it back, with the bill."""
        tenancy = self._tenancies.hosted_as(event.task, event.fence)
        if tenancy is None:
            return []
        reason = tenancy.leaving or "taken out"
        done = self._bill(tenancy, event, event.run_ms, reason, now)
        told = self._tenancies.tell(tenancy, "left", reason)
        return [told, *self._tenancies.end(tenancy, done, now)]

    def checkpointed(self, event: Checkpointed, now: float) -> list[Action]:
        """Its state is kept: offer it to the buyer."""
        tenancy = self._tenancies.hosted_as(event.task, event.fence)
        if tenancy is None:
            return []
        tenancy.is_saving = False
        again = self.save_timer(tenancy, now)
        if event.fuel <= tenancy.saved_fuel:
            return [again]
        tenancy.saved_fuel = event.fuel
        done = self._bill(tenancy, event, 0, "kept on the way", now)
        saved = Saved(event.task, event.fence, done.result, done.terms, done.signature)
        return [Send(tenancy.buyer, saved), again]

    def unmoved(self, event: Unmoved, now: float) -> list[Action]:
        """It could not be kept or taken out, and runs on."""
        tenancy = self._tenancies.hosted_as(event.task, event.fence)
        if tenancy is None:
            return []
        if tenancy.leaving and not event.is_for_good and tenancy.leave_tries < _LEAVE_TRIES:
            tenancy.leave_tries += 1  # it has only just begun, or is paused for a moment
            tenancy.save_at, tenancy.is_saving = now + _LEAVE_AGAIN_S, False
            return [WakeAt(tenancy.save_at, Woken("save", event.task, event.fence))]
        was_leaving, tenancy.leaving = tenancy.leaving, ""
        tenancy.is_saving = False
        tenancy.is_fixed = tenancy.is_fixed or event.is_for_good
        again = [] if tenancy.is_fixed else [self.save_timer(tenancy, now)]
        if not was_leaving:
            return again
        told = self._tenancies.tell(tenancy, "stays", event.reason)
        stays = Stays(event.task, event.fence, event.reason)
        return [told, Send(tenancy.buyer, stays), *again]

    def save_due(self, tenancy: Tenancy | None, now: float) -> list[Action]:
        """Time to keep its state, if it has got any further; or to take it out once more."""
        if tenancy is None or tenancy.is_fixed or now < tenancy.save_at:
            return []
        if tenancy.leaving:
            is_due, tenancy.save_at = tenancy.save_at < _ASKED, _ASKED
            return [Suspend(tenancy.task, tenancy.fence)] if is_due else []
        if self._tenancies.is_closed:
            return self._leave(tenancy, _DRAINING)
        if tenancy.is_saving:
            return []
        if not tenancy.may_run or tenancy.fuel <= tenancy.saved_fuel:
            return [self.save_timer(tenancy, now)]
        tenancy.is_saving = True
        return [Checkpoint(tenancy.task, tenancy.fence)]

    def save_timer(self, tenancy: Tenancy, now: float) -> Action:
        tenancy.save_at = now + interval_s(tenancy, self._tenancies.shop, self._policy)
        return WakeAt(tenancy.save_at, Woken("save", tenancy.task, tenancy.fence))

    def _bill(
        self,
        tenancy: Tenancy,
        event: Checkpointed | Suspended,
        run_ms: int,
        reason: str,
        now: float,
    ) -> Done:
        wall_ms, sign = self._clock.wall_ms(now), self._identity.sign
        return tenancy.given_back(event.state, event.fuel, run_ms, reason, wall_ms, sign)


def interval_s(tenancy: Tenancy, shop: Shop, policy: Policy) -> float:
    """How long a run goes on between two states of it.

    Keeping one costs time, losing the work since then costs more the longer it is: the best
    interval is about sqrt(2 x cost x time between losses) (Young, CACM 17(9), 1974). Nor is more
    at stake than a slice, which is what its seller works for on trust.
    """
    assert tenancy.work is not None
    cost_s = 0.05 + tenancy.work.needs.memory / _KEEPING_BYTES_S
    best_s = sqrt(2 * cost_s * _BETWEEN_LOSSES_S)
    slice_s = slice_fuel(tenancy.terms, policy) / max(1, shop.speed) / 1000
    return max(policy.save_at_least_ms / 1000, min(best_s, slice_s, policy.save_at_most_ms / 1000))


def _burden(tenancy: Tenancy) -> tuple[int, int, bytes]:
    """What moving it costs: its memory, then what it has burnt."""
    assert tenancy.work is not None
    return tenancy.work.needs.memory, tenancy.fuel, tenancy.task


_DRAINING = "this node is being emptied"
_FIXED = "its module cannot be moved"
