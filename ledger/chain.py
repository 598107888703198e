"""An author's chain of entries: how one is appended, and what follows from what. Pure.

Only a payer's log need be ordered. The seller has signed the terms before the payer appends, so
nobody's chain waits for anybody. Three questions are kept apart: is the entry valid, by its bytes
alone, the same everywhere and for ever (validity.py); does it follow from the entries before it
(`check_link`); what does the whole set amount to (state.py).
"""

from __future__ import annotations

from hashlib import sha256

from attrs import evolve, frozen

from ledger import keys
from ledger.codec import UINT_MAX
from ledger.errors import BrokenChain
from ledger.keys import Sign
from ledger.model import Body, Entry, Kind, Terms
from ledger.statements import Checkpoint, Dispute, KeyOp, Line, Op, Refund
from ledger.validity import GENESIS, check_deal, check_entry, check_signatures, flaw_of

__all__ = [
    "GENESIS",
    "Head",
    "alloc",
    "check_deal",
    "check_entry",
    "check_link",
    "check_order",
    "check_resolution",
    "check_signatures",
    "check_totals",
    "checkpoint",
    "claim",
    "dispute",
    "keyop",
    "line",
    "origin",
    "refund",
    "resolves",
    "rotated_to",
    "rule",
    "settle",
    "use",
    "void",
]


@frozen
class Head:
    """Where a chain ends: what the next entry must follow."""

    author: bytes
    net: bytes
    seq: int
    """Of the next entry."""
    prev: bytes
    """Id of the last entry."""
    hlc: int
    posted: int
    pending: int

    @staticmethod
    def start(author: bytes, net: bytes) -> Head:
        """The head of a chain without entries."""
        return Head(author, net, seq=0, prev=GENESIS, hlc=0, posted=0, pending=0)

    @staticmethod
    def heir(rotate: Entry) -> Head:
        """The head of the heir's chain without entries: it begins at the *rotate* that made it one.

        What the old key owed stays its debt: the heir's totals start at nothing.
        """
        heir, body = rotated_to(rotate), rotate.content
        assert heir, "an heir is made by a ROTATE"
        return Head(heir, body.net, seq=0, prev=rotate.id, hlc=body.hlc, posted=0, pending=0)

    @staticmethod
    def after(entry: Entry) -> Head:
        """The head that *entry* claims to make; `check_link` says whether it may."""
        body = entry.content
        return Head(
            body.author, body.net, body.seq + 1, entry.id, body.hlc, body.posted, body.pending
        )


def alloc(
    head: Head, terms: bytes, seller_sig: bytes, *, wall_ms: int, sign: Sign
) -> tuple[Head, Entry]:
    """Reserve money for the seller's signed *terms*: the award. Preconditions are asserted."""
    deal = Terms.decode(terms)
    after = evolve(head, pending=head.pending + deal.reserve)
    return _append(head, after, Kind.ALLOC, terms, seller_sig, wall_ms, sign)


def settle(
    head: Head, terms: bytes, seller_sig: bytes, *, alloc: Entry, wall_ms: int, sign: Sign
) -> tuple[Head, Entry]:
    """Owe the amount of *terms*, free the reserve of *alloc*: an unresolved one of this chain."""
    deal = _resolving(terms, alloc, Kind.SETTLE)
    after = _released(evolve(head, posted=head.posted + deal.amount), alloc)
    return _append(head, after, Kind.SETTLE, terms, seller_sig, wall_ms, sign)


def void(
    head: Head, terms: bytes, seller_sig: bytes, *, alloc: Entry, wall_ms: int, sign: Sign
) -> tuple[Head, Entry]:
    """Owe nothing and free the reserve of *alloc*, an unresolved one of this chain."""
    _resolving(terms, alloc, Kind.VOID)
    return _append(head, _released(head, alloc), Kind.VOID, terms, seller_sig, wall_ms, sign)


def use(
    head: Head, terms: bytes, seller_sig: bytes, *, alloc: Entry, wall_ms: int, sign: Sign
) -> tuple[Head, Entry]:
    """Agree to how much was burnt so far for *alloc*: the seller signed `keys.use_message`."""
    _resolving(terms, alloc, Kind.USE)
    return _append(head, head, Kind.USE, terms, seller_sig, wall_ms, sign)


def claim(
    head: Head, terms: bytes, *, alloc: Entry, wall_ms: int, sign: Sign
) -> tuple[Head, Entry]:
    """The seller's bill for *alloc*, whose buyer is silent: on the seller's chain."""
    deal = _resolving(terms, alloc, Kind.CLAIM)
    return _append(head, head, Kind.CLAIM, terms, b"", wall_ms, sign, deal.buyer)


def rule(head: Head, terms: bytes, *, alloc: Entry, wall_ms: int, sign: Sign) -> tuple[Head, Entry]:
    """What is owed for *alloc*, by the arbiter that its terms name: on the arbiter's chain."""
    deal = _resolving(terms, alloc, Kind.RULING)
    return _append(head, head, Kind.RULING, terms, b"", wall_ms, sign, deal.buyer)


def dispute(
    head: Head, statement: Dispute, seller: bytes, *, wall_ms: int, sign: Sign
) -> tuple[Head, Entry]:
    """The buyer does not agree with an entry of *seller*."""
    return _append(head, head, Kind.DISPUTE, statement.encode(), b"", wall_ms, sign, seller)


def refund(
    head: Head, statement: Refund, buyer: bytes, *, wall_ms: int, sign: Sign
) -> tuple[Head, Entry]:
    """The seller owes *buyer*, more than nothing."""
    after = evolve(head, posted=head.posted + statement.amount)
    return _append(head, after, Kind.REFUND, statement.encode(), b"", wall_ms, sign, buyer)


def line(head: Head, limit: int, buyer: bytes, *, wall_ms: int, sign: Sign) -> tuple[Head, Entry]:
    """Let *buyer* owe and reserve up to *limit* µcr from now on."""
    terms = Line(limit=limit).encode()
    return _append(head, head, Kind.LINE, terms, b"", wall_ms, sign, buyer)


def keyop(
    head: Head, statement: KeyOp, subject_sig: bytes, *, wall_ms: int, sign: Sign
) -> tuple[Head, Entry]:
    """Say whose key is whose. The subject of DELEGATE and ROTATE signed `keys.keyop_message`."""
    data = statement.encode()
    return _append(head, head, Kind.KEYOP, data, subject_sig, wall_ms, sign, statement.subject)


def checkpoint(head: Head, root: bytes, *, wall_ms: int, sign: Sign) -> tuple[Head, Entry]:
    """A HEAD: sign *root*, that of the tree over all `head.seq` entries so far (proof.py)."""
    terms = Checkpoint(root=root).encode()
    return _append(head, head, Kind.HEAD, terms, b"", wall_ms, sign, b"")


def check_link(head: Head, entry: Entry, alloc: Body | None = None) -> Head:
    """The head after the valid *entry*, if it follows from *head*. Raises BrokenChain.

    *alloc* is the body that a USE, SETTLE or VOID refers to. Whether that was resolved before is
    for whoever knows the whole chain: store.py and audit.py.
    """
    check_order(head, entry)
    return check_totals(head, entry, alloc)


def rotated_to(entry: Entry) -> bytes:
    """The key that takes its author's place by the valid *entry*; empty if it is no ROTATE."""
    body = entry.content
    if body.kind is not Kind.KEYOP:
        return b""
    keyop = KeyOp.decode(body.terms)
    return keyop.subject if keyop.op is Op.ROTATE else b""


def origin(body: Body, before: Entry | None) -> Head:
    """Where the chain begins whose entry 0 is *body*. Raises BrokenChain.

    At zeros, or at the ROTATE to its author, which is *before*: the entry whose id is its `prev`.
    """
    if body.prev == GENESIS:
        return Head.start(body.author, body.net)
    if before is None or before.id != body.prev:
        raise BrokenChain("the ROTATE that it begins at is not there")
    if (rotated_to(before), before.content.net) != (body.author, body.net):
        raise BrokenChain("it begins at an entry that is no ROTATE to its author")
    return Head.heir(before)


def check_order(head: Head, entry: Entry) -> None:
    """That *entry* takes the place after *head*. Raises BrokenChain."""
    body = entry.content
    if (body.author, body.net) != (head.author, head.net):
        raise BrokenChain("an entry of another chain")
    if body.seq != head.seq:
        raise BrokenChain(f"seq {body.seq} where {head.seq} follows")
    if body.prev != head.prev:
        raise BrokenChain("prev is not the id of the entry before")
    if body.hlc <= head.hlc:
        raise BrokenChain("the clock does not rise")


def check_totals(head: Head, entry: Entry, alloc: Body | None = None) -> Head:
    """The head after *entry*, if its totals follow from those of *head*. Raises BrokenChain."""
    body = entry.content
    posted, pending = head.posted, head.pending
    match body.kind:
        case Kind.ALLOC:
            pending += body.deal.reserve
        case Kind.SETTLE | Kind.VOID:
            check_resolution(body, alloc)
            assert alloc is not None
            posted += body.deal.amount
            pending -= alloc.deal.reserve
        case Kind.USE:
            check_resolution(body, alloc)
        case Kind.REFUND:
            posted += Refund.decode(body.terms).amount
        case _:
            pass  # what it states moves nothing of its author's
    if (body.posted, body.pending) != (posted, pending):
        raise BrokenChain(
            f"totals {body.posted} posted, {body.pending} pending where {posted}, {pending} follow"
        )
    return Head.after(entry)


def check_resolution(body: Body, alloc: Body | None) -> None:
    """That *body* is about *alloc* and keeps to its terms. Raises BrokenChain.

    USE, SETTLE and VOID are on the chain of their ALLOC, CLAIM and RULING on another.
    """
    if alloc is None or alloc.kind is not Kind.ALLOC or alloc.id != body.ref:
        raise BrokenChain("the ALLOC that it refers to is not there")
    deal = body.deal
    is_own = body.kind not in (Kind.CLAIM, Kind.RULING)
    if (alloc.author, alloc.net) != (deal.buyer, body.net) or (is_own and alloc.seq >= body.seq):
        raise BrokenChain("the ALLOC is not an earlier entry of the same chain")
    if not resolves(deal, alloc.deal):
        raise BrokenChain("the terms are not those of the ALLOC")


def resolves(deal: Terms, allocated: Terms) -> bool:
    """Whether *deal* changes nothing of *allocated* but what the run itself decides."""
    run = evolve(
        allocated,
        outputs=deal.outputs,
        fuel=deal.fuel,
        amount=deal.amount,
        exit=deal.exit,
        escalations=deal.escalations,
        migrations=deal.migrations,
        start_ms=deal.start_ms,
        end_ms=deal.end_ms,
        ref=deal.ref,
    )
    return deal == run and deal.fuel <= allocated.fuel


def _resolving(terms: bytes, alloc: Entry, kind: Kind) -> Terms:
    deal = Terms.decode(terms)
    assert alloc.content.kind is Kind.ALLOC, f"{kind.name} of an entry that is no ALLOC"
    assert deal.ref == alloc.id, f"{kind.name} of another ALLOC"
    assert resolves(deal, alloc.content.deal), f"{kind.name} on other terms"
    return deal


def _released(head: Head, alloc: Entry) -> Head:
    body = alloc.content
    assert (body.author, body.net) == (head.author, head.net), "the ALLOC is of another chain"
    assert body.seq < head.seq, "the ALLOC is not before the head"
    return evolve(head, pending=head.pending - body.deal.reserve)


def _append(
    head: Head,
    after: Head,
    kind: Kind,
    terms: bytes,
    peer_sig: bytes,
    wall_ms: int,
    sign: Sign,
    peer: bytes | None = None,
) -> tuple[Head, Entry]:
    assert 0 <= after.posted <= UINT_MAX, after
    assert 0 <= after.pending <= UINT_MAX, after
    body = Body(
        net=head.net,
        kind=kind,
        author=head.author,
        seq=head.seq,
        prev=head.prev,
        hlc=max(wall_ms << 16, head.hlc + 1),
        posted=after.posted,
        pending=after.pending,
        peer=Terms.decode(terms).seller if peer is None else peer,
        terms=terms,
        peer_sig=peer_sig,
    )
    assert flaw_of(body) == "", flaw_of(body)
    data = body.encode()
    entry = Entry(data, sign(keys.entry_message(sha256(data).digest())))
    return Head.after(entry), entry
