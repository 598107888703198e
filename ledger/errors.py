"""Errors of the ledger, by whose fault it is."""

from __future__ import annotations


class LedgerError(Exception):
    """Root of every error that the ledger raises on purpose. *hint*: the way out, if any."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(f"{reason} ({hint})" if hint else reason)
        self.reason = reason
        self.hint = hint


class BadEntry(LedgerError):
    """Bytes that are no valid entry, whoever looks at them and whenever: theirs, not ours."""


class BrokenChain(LedgerError):
    """A valid entry that does not follow from the head of its author's chain."""


class Corruption(LedgerError):
    """Our own store holds bytes that fail their hash: stop, and restore from a replica."""
