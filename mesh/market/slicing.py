"""Slices: a long task is signed for in parts while it runs, so that little is ever unsigned. Pure.

The seller asks at half a slice, and stops at a whole one that its buyer has not signed for: that is
the most it works for on trust. What it asks for is a USE (ledger/model.py): nothing is owed by it
yet, but the buyer can no longer deny it.
"""

from __future__ import annotations

from ledger.keys import use_message
from ledger.model import FUEL_PER_PRICE, Terms
from mesh.market.lease import Sign, Tenancy
from mesh.market.policy import Policy
from mesh.market.terms import use_terms
from mesh.messages import Slice


def slice_fuel(terms: Terms, policy: Policy) -> int:
    """How much fuel a slice of these ALLOC terms has; more than all of it where it costs little."""
    if terms.price == 0:
        return terms.fuel + 1
    worth = -(-policy.slice_at_least * FUEL_PER_PRICE // terms.price)
    return max(1, worth, terms.fuel // policy.slices)


def is_due(tenancy: Tenancy, policy: Policy) -> bool:
    """Whether it is time to ask the buyer to sign for the next slice."""
    unsigned = tenancy.fuel - tenancy.signed_fuel
    return tenancy.slice is None and 2 * unsigned >= slice_fuel(tenancy.terms, policy)


def is_spent(tenancy: Tenancy, policy: Policy) -> bool:
    """Whether the run has used up what it may burn unsigned."""
    return tenancy.fuel - tenancy.signed_fuel >= slice_fuel(tenancy.terms, policy)


def propose(tenancy: Tenancy, wall_ms: int, sign: Sign) -> Slice:
    """What the buyer is to sign."""
    terms = use_terms(tenancy.terms, tenancy.alloc_id, tenancy.fuel, wall_ms).encode()
    return Slice(tenancy.task, tenancy.fence, terms, sign(use_message(terms)))
