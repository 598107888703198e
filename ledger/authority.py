"""Whose key is whose, and which is dead: what a set of KEYOPs amounts to in any order. Pure.

A key is retired once it was rotated away, or revoked by itself, by an owner of it, or by the key
whose hash it committed to. Nobody else's REVOKE does anything, and nothing brings a key back: a
replica that knows more never trusts a key more. Debts of a retired key stay what they are, and
whoever gives its heir credit counts them (state.py).
"""

from __future__ import annotations

from collections import defaultdict
from hashlib import sha256

from ledger.model import Body, Kind
from ledger.statements import KeyOp, Op

FOREBEARS_MAX = 64
"""Keys that the succession of one is followed back to: who has more gets no credit."""


class Authority:
    """The KEYOPs of one network. Its memory grows with them."""

    def __init__(self) -> None:
        self._owners: dict[bytes, set[bytes]] = defaultdict(set)
        self._heirs: dict[bytes, set[bytes]] = defaultdict(set)
        self._forebears: dict[bytes, set[bytes]] = defaultdict(set)
        self._revokers: dict[bytes, set[bytes]] = defaultdict(set)
        self._commitments: dict[bytes, set[bytes]] = defaultdict(set)

    def add(self, body: Body) -> None:
        """Count the valid KEYOP *body*."""
        assert body.kind is Kind.KEYOP, body.kind
        keyop = KeyOp.decode(body.terms)
        match keyop.op:
            case Op.DELEGATE:
                self._owners[keyop.subject].add(keyop.owner)
            case Op.REVOKE:
                self._revokers[keyop.subject].add(keyop.owner)
            case Op.ROTATE:
                self._heirs[keyop.owner].add(keyop.subject)
                self._forebears[keyop.subject].add(keyop.owner)
            case Op.RECOVERY:
                self._commitments[keyop.owner].add(keyop.commitment)

    def owners(self, key: bytes) -> frozenset[bytes]:
        """Who may act for *key*, by its own consent."""
        return frozenset(self._owners.get(key, ()))

    def heirs(self, key: bytes) -> frozenset[bytes]:
        """Which keys took the place of *key*; more than one is a quarrel to look into."""
        return frozenset(self._heirs.get(key, ()))

    def forebears(self, key: bytes) -> tuple[frozenset[bytes], bool]:
        """The keys in whose place *key* stands, at most `FOREBEARS_MAX`; whether those are all."""
        found: set[bytes] = set()
        queue = [key]
        while queue:
            for forebear in sorted(self._forebears.get(queue.pop(), ())):
                if forebear == key or forebear in found:
                    continue
                if len(found) == FOREBEARS_MAX:
                    return frozenset(found), False
                found.add(forebear)
                queue.append(forebear)
        return frozenset(found), True

    def is_retired(self, key: bytes) -> bool:
        """Whether *key* should sign nothing any more."""
        if key in self._heirs:
            return True
        revokers = self._revokers.get(key, set())
        committed = self._commitments.get(key, set())
        return (
            key in revokers
            or not revokers.isdisjoint(self._owners.get(key, ()))
            or any(sha256(revoker).digest() in committed for revoker in revokers)
        )
