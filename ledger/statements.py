"""What an entry states where it is not about terms: each is the `terms` field of its kind.

    DISPUTE [version, ref, about, reason, evidence]      REFUND [version, ref, amount]
    LINE    [version, limit]                             HEAD   [version, root]
    KEYOP   [version, op, net, owner, subject, commitment]
    FORKPROOF [version, first, second]

A statement holds what its body does not: a HEAD's place, last id and totals are those of its body.
Who may state what, and who signs, is validity.py's.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Self

from attrs import fields_dict, frozen

from ledger.codec import BODY_MAX, UINT_MAX, Value, pack, unpack
from ledger.fields import CID_OR_NONE, HASH, KEY, NAME, UINT, Rule, at_most, exactly, record, sized

VERSION = 1
_VERSION = exactly(VERSION)


class Op(IntEnum):
    """What a KEYOP does."""

    DELEGATE = 1
    """The author is the owner of the subject, a node's key, which agrees."""
    REVOKE = 2
    """The subject signs nothing any more: by itself, by an owner or by its recovery key."""
    ROTATE = 3
    """The subject takes the author's place, and agrees."""
    RECOVERY = 4
    """Whoever holds the key that hashes to the commitment may revoke the author."""


class Statement:
    """An array of the fields in their order, with the rules that they keep."""

    RULES: ClassVar[dict[str, Rule]]

    def encode(self) -> bytes:
        """The canonical bytes."""
        return pack(tuple(_plain(getattr(self, name)) for name in self.RULES))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The statement in *data*. Raises BadEntry."""
        return cls(**record(cls.__name__.lower(), unpack(data, BODY_MAX), cls.RULES))


@frozen(kw_only=True)
class Dispute(Statement):
    """The buyer of a deal does not agree with what the seller says of it."""

    version: int = VERSION
    ref: bytes
    """The id of the ALLOC."""
    about: bytes
    """The id of the entry disputed."""
    reason: str
    """For people."""
    evidence: bytes = b""
    """A CID, or empty."""

    RULES: ClassVar = {
        "version": _VERSION,
        "ref": HASH,
        "about": HASH,
        "reason": NAME,
        "evidence": CID_OR_NONE,
    }


@frozen(kw_only=True)
class Refund(Statement):
    """The seller of a deal owes its buyer."""

    version: int = VERSION
    ref: bytes
    amount: int
    """µcr."""

    RULES: ClassVar = {"version": _VERSION, "ref": HASH, "amount": UINT}


@frozen(kw_only=True)
class Line(Statement):
    """How much the author, a seller, lets the peer, a buyer, owe and reserve at once."""

    version: int = VERSION
    limit: int
    """µcr; `UINT_MAX` is no limit, as within a pool."""

    RULES: ClassVar = {"version": _VERSION, "limit": UINT}
    NO_LIMIT: ClassVar = UINT_MAX


@frozen(kw_only=True)
class KeyOp(Statement):
    """Who may act for whom. The subject may sign this, so it names the network and the owner."""

    version: int = VERSION
    op: Op
    net: bytes
    owner: bytes
    """The author."""
    subject: bytes
    """The peer."""
    commitment: bytes = b""
    """RECOVERY: SHA-256 of the recovery key; else empty."""

    RULES: ClassVar = {
        "version": _VERSION,
        "op": Rule("1, 2, 3 or 4", lambda op: type(op) is int and 1 <= op <= 4),
        "net": sized(8),
        "owner": KEY,
        "subject": KEY,
        "commitment": sized(0, 32),
    }

    @classmethod
    def decode(cls, data: bytes) -> Self:
        fields = record("keyop", unpack(data, BODY_MAX), cls.RULES)
        return cls(**fields | {"op": Op(fields["op"])})


@frozen(kw_only=True)
class Checkpoint(Statement):
    """HEAD: the root over all entries of the author's chain before this one (proof.py)."""

    version: int = VERSION
    root: bytes

    RULES: ClassVar = {"version": _VERSION, "root": HASH}


@frozen(kw_only=True)
class ForkProof(Statement):
    """Two entries, encoded, which one author signed for one place; the smaller id first."""

    version: int = VERSION
    first: bytes
    second: bytes

    RULES: ClassVar = {
        "version": _VERSION,
        "first": at_most(BODY_MAX),
        "second": at_most(BODY_MAX),
    }


for _statement in (Dispute, Refund, Line, KeyOp, Checkpoint, ForkProof):
    assert list(fields_dict(_statement)) == list(_statement.RULES)


def _plain(value: Value) -> Value:
    return int(value) if isinstance(value, Op) else value
