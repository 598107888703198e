"""Claims: what a buyer does not sign for, its seller writes on its own chain: one side's word."""

from __future__ import annotations

from functools import partial

from ledger import chain
from ledger.model import Terms
from mesh.market.lease import Clock, Tenancy
from mesh.market.own_chain import OwnChain
from mesh.market.policy import Policy
from mesh.messages import Done
from mesh.sansio import Action, Identity, WakeAt, Woken


class Claims:
    """Writes them, when their time has come."""

    def __init__(self, identity: Identity, policy: Policy, clock: Clock, own: OwnChain) -> None:
        self._identity = identity
        self._policy = policy
        self._clock = clock
        self._own = own

    def timer(self, tenancy: Tenancy, now: float) -> Action:
        """When what is unsigned by then is claimed."""
        tenancy.claim_at = now + self._policy.claim_ms / 1000
        return WakeAt(tenancy.claim_at, Woken("claim", tenancy.task, tenancy.fence))

    def claim(self, tenancy: Tenancy, now: float) -> list[Action]:
        """Write the bill of a silent buyer, once; if nothing can be written now, later."""
        answer = tenancy.answer
        if tenancy.is_claimed or not isinstance(answer, Done):
            return []
        if Terms.decode(answer.terms).amount == 0:
            return []
        if self._own.why_not():
            return [self.timer(tenancy, now)]
        tenancy.is_claimed = True
        write = partial(
            chain.claim, terms=answer.terms, alloc=tenancy.alloc, sign=self._identity.sign
        )
        _, actions = self._own.append(
            lambda head, wall_ms: write(head, wall_ms=wall_ms), self._clock.wall_ms(now)
        )
        return actions
