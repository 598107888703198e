"""Holds: capacity that is kept for our open bids, until an award, a release, or their end.

A hold counts against the buyer's credit line like a reserve, so that however many bids win, the
line is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from ledger.keys import terms_message
from mesh.ids import Cid, PeerId, TaskId
from mesh.market.bidding import NoQuote, Quote, Shop, quote
from mesh.market.credit import Credit
from mesh.market.lease import Clock, Hold
from mesh.market.policy import Policy
from mesh.market.terms import alloc_terms
from mesh.messages import Ask, Award, Bid, Outlook, Refusal, Release
from mesh.resources.capacity import Capacity
from mesh.resources.pool import Pool
from mesh.sansio import Action, Identity, Send, WakeAt, Woken


class Holds:
    """The bids that may still win."""

    def __init__(
        self,
        identity: Identity,
        policy: Policy,
        clock: Clock,
        credit: Credit,
        pool: Pool[TaskId],
    ) -> None:
        self.lapsed = 0
        """Holds that ended without an award or a release."""
        self._identity = identity
        self._policy = policy
        self._clock = clock
        self._credit = credit
        self._pool = pool
        self._holds: dict[TaskId, Hold] = {}

    def __contains__(self, task: TaskId) -> bool:
        return task in self._holds

    def __len__(self) -> int:
        return len(self._holds)

    def repeated(self, peer: PeerId, ask: Ask) -> Bid | None:
        """The bid that this very ask got already."""
        held = self._holds.get(ask.task)
        return held.bid if held and held.buyer == peer and held.ask == ask else None

    def why_not(self, peer: PeerId, ask: Ask) -> str:
        """Why no bid can be held for *ask*, or the empty string."""
        held = self._holds.get(ask.task)
        if held and held.buyer != peer:
            return "held for another buyer of the same task"
        if held and held.ask.round > ask.round:
            return "a later round of this task is already held"
        if len(self._holds) >= self._policy.holds_max and not held:
            return "too many open bids"
        return ""

    def bid(
        self,
        peer: PeerId,
        ask: Ask,
        shop: Shop,
        *,
        owner: Capacity,
        outlook: Sequence[Outlook],
        cached: frozenset[Cid],
        now: float,
    ) -> list[Action]:
        """Bid for *ask* and hold what it needs, or refuse with the reason.

        *owner* is what the owner needs now of what is for sale.
        """
        if ask.task in self._holds:
            self._drop(ask.task)
        free = self._pool.free.minus(owner)
        answer = quote(ask, shop, free=free, outlook=outlook, cached=cached)
        if isinstance(answer, NoQuote):
            refused = Refusal(ask.task, ask.round, answer.reason, answer.may_change)
            return [Send(peer, refused)]
        deal = alloc_terms(
            ask,
            seller=self._identity.peer,
            buyer=peer,
            price=answer.price,
            wall_ms=self._clock.wall_ms(now),
            grace_ms=self._policy.grace_ms,
        )
        no_credit = self._credit.refusal(peer, self._held_for(peer) + deal.reserve)
        if no_credit:
            return [Send(peer, Refusal(ask.task, ask.round, no_credit, may_change=True))]
        bid = self._sign(ask, deal.encode(), answer, is_cached=ask.work.module in cached)
        is_reserved = self._pool.reserve(ask.task, ask.work.needs)
        assert is_reserved, "the quote was for what is free"
        ends_at = now + self._policy.hold_ms / 1000
        self._holds[ask.task] = Hold(
            peer, ask, bid, reserve=deal.reserve, sent_at=now, ends_at=ends_at
        )
        return [Send(peer, bid), WakeAt(ends_at, Woken("hold", ask.task, ask.round))]

    def release(self, peer: PeerId, release: Release) -> list[Action]:
        """We lost; the capacity is free again."""
        hold = self._holds.get(release.task)
        if hold and hold.buyer == peer and hold.ask.round == release.round:
            self._drop(release.task)
        return []

    def take(self, award: Award, terms: bytes, now: float) -> Hold | None:
        """The hold that *award* is of, if it still stands; its capacity stays reserved."""
        hold = self._holds.get(award.task)
        # After a stall an award may be looked at before the timer that ends its hold.
        if hold is None or now >= hold.ends_at or hold.bid.terms != terms:
            return None
        return self._holds.pop(award.task)

    def drop_all(self) -> None:
        """None of our bids is good any more."""
        for task in list(self._holds):
            self._drop(task)

    def due(self, task: TaskId, round_: int) -> list[Action]:
        """A hold comes to its end."""
        hold = self._holds.get(task)
        if hold and hold.ask.round == round_:
            self._drop(task)
            self.lapsed += 1
        return []

    def _sign(self, ask: Ask, terms: bytes, answer: Quote, *, is_cached: bool) -> Bid:
        return Bid(
            task=ask.task,
            round=ask.round,
            terms=terms,
            signature=self._identity.sign(terms_message(terms)),
            finish_ms=answer.finish_ms,
            p_on_time=answer.p_on_time,
            cached=int(is_cached),
            hold_ms=self._policy.hold_ms,
            reason=answer.reason,
        )

    def _held_for(self, buyer: PeerId) -> int:
        """µcr that our open bids would let *buyer* reserve."""
        return sum(hold.reserve for hold in self._holds.values() if hold.buyer == buyer)

    def _drop(self, task: TaskId) -> None:
        del self._holds[task]
        self._pool.release(task)
