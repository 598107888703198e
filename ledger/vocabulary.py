"""What version 1 knows: its kinds of entries, its unit, and how much of each thing fits."""

from __future__ import annotations

from enum import IntEnum

VERSION = 1
UNIT = "uC/Gfuel"
"""The one unit of version 1: a price is in µcr per 10^9 units of fuel."""
FUEL_PER_PRICE = 10**9

TERMS_MAX = 3840
"""Bytes of encoded terms: a body of the longest terms still fits `BODY_MAX`."""
INPUTS_MAX = 48
OUTPUTS_MAX = 8
ESCALATIONS_MAX = 8
MIGRATIONS_MAX = 8
EXIT_MAX = 2**32 - 1


class Kind(IntEnum):
    """What an entry does."""

    ALLOC = 1
    """The buyer reserves money for the seller's work: the award."""
    USE = 2
    """Buyer and seller agree how much was burnt so far; nothing is owed by it yet."""
    SETTLE = 3
    """The buyer owes `amount`; the rest of the reserve is free."""
    VOID = 4
    """Both let an ALLOC go: nothing is owed."""
    CLAIM = 5
    """The seller's bill while the buyer is silent: one side's word, never a debt by itself."""
    DISPUTE = 6
    """The buyer does not agree."""
    RULING = 7
    """The arbiter that the terms name says what is owed."""
    REFUND = 8
    """The seller owes the buyer."""
    LINE = 9
    """How much a seller lets a buyer owe and reserve."""
    KEYOP = 10
    """Whose key is whose, and which is dead."""
    HEAD = 11
    """The author's signature of all its entries before this one."""
    FORKPROOF = 12
    """Two entries for one place. It has no author and no place itself: it proves itself."""


KINDS_KNOWN = frozenset(Kind)
"""What this program can read."""
VOCABULARY = 2
"""Rises with `KINDS_KNOWN`: 1 was ALLOC, SETTLE and VOID. Whoever stores entries stores this too,
so that an older program can say that it cannot read them."""
DEALINGS = frozenset((Kind.ALLOC, Kind.SETTLE, Kind.VOID))
"""What the parties of a deal send each other to open and to close it."""
TERMED = frozenset((Kind.ALLOC, Kind.USE, Kind.SETTLE, Kind.VOID, Kind.CLAIM, Kind.RULING))
"""The kinds whose `terms` are `Terms`; those of the others are a statement."""
