"""A payer's chain of entries: how one is appended, and what makes one valid. Pure.

Only the payer's log is ordered. The seller has signed the terms before the payer appends, so
nobody's chain waits for anybody. Three questions are kept apart: is the entry valid, by its bytes
alone, the same everywhere and for ever (`check_entry`); does it follow from the entries before it
(`check_link`); what does the whole set amount to (state.py).
"""

from __future__ import annotations

from hashlib import sha256

from attrs import evolve, frozen

from ledger import keys
from ledger.codec import UINT_MAX
from ledger.errors import BadEntry, BrokenChain
from ledger.keys import Sign, Verify
from ledger.model import Body, Entry, Kind, Terms, amount_of

GENESIS = bytes(32)
"""The `prev` of a chain's first entry."""


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


def check_entry(entry: Entry, verify: Verify = keys.verify) -> Body:
    """The body of *entry*, if its bytes alone make it valid. Raises BadEntry."""
    body = entry.content
    check_deal(body)
    check_signatures(entry, verify)
    return body


def check_deal(body: Body) -> None:
    """That the terms are those of this body, and the amount is their bill. Raises BadEntry."""
    if flaw := _flaw(body):
        raise BadEntry(flaw)


def check_signatures(entry: Entry, verify: Verify = keys.verify) -> None:
    """That buyer and seller both signed. Raises BadEntry."""
    body = entry.content
    if not verify(body.peer, keys.terms_message(body.terms), body.peer_sig):
        raise BadEntry("the seller's signature is not its own")
    if not verify(body.author, keys.entry_message(entry.id), entry.sig):
        raise BadEntry("the author's signature is not its own")


def check_link(head: Head, entry: Entry, alloc: Body | None = None) -> Head:
    """The head after the valid *entry*, if it follows from *head*. Raises BrokenChain.

    *alloc* is the body that a SETTLE or VOID refers to. Whether that was resolved before is for
    whoever knows the whole chain: store.py and audit.py.
    """
    check_order(head, entry)
    return check_totals(head, entry, alloc)


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
    if body.kind is Kind.ALLOC:
        pending += body.deal.reserve
    else:
        check_resolution(body, alloc)
        assert alloc is not None
        posted += body.deal.amount
        pending -= alloc.deal.reserve
    if (body.posted, body.pending) != (posted, pending):
        raise BrokenChain(
            f"totals {body.posted} posted, {body.pending} pending where {posted}, {pending} follow"
        )
    return Head.after(entry)


def check_resolution(body: Body, alloc: Body | None) -> None:
    """That *body*, a SETTLE or VOID, resolves *alloc* on its own terms. Raises BrokenChain."""
    if alloc is None or alloc.kind is not Kind.ALLOC or alloc.id != body.deal.ref:
        raise BrokenChain("the ALLOC that it refers to is not there")
    if (alloc.author, alloc.net) != (body.author, body.net) or alloc.seq >= body.seq:
        raise BrokenChain("the ALLOC is not an earlier entry of the same chain")
    if not resolves(body.deal, alloc.deal):
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


def _flaw(body: Body) -> str:
    """In what *body* and its terms disagree; empty if in nothing."""
    deal = body.deal
    if body.author != deal.buyer:
        return "the author is not the buyer of the terms"
    if body.peer != deal.seller:
        return "the peer is not the seller of the terms"
    if deal.seller == deal.buyer:
        return "a deal with oneself"
    if (body.kind is Kind.ALLOC) != (deal.ref == b""):
        return f"ref must be {'empty' if deal.ref else 'given'} in {body.kind.name}"
    if body.kind is Kind.ALLOC and (deal.outputs or deal.exit):
        return "an ALLOC that tells how the run ended"
    owed = amount_of(deal) if body.kind is Kind.SETTLE else 0
    return "" if deal.amount == owed else f"the amount is {deal.amount}, the terms make it {owed}"


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
    seller_sig: bytes,
    wall_ms: int,
    sign: Sign,
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
        peer=Terms.decode(terms).seller,
        terms=terms,
        peer_sig=seller_sig,
    )
    assert _flaw(body) == "", _flaw(body)
    data = body.encode()
    entry = Entry(data, sign(keys.entry_message(sha256(data).digest())))
    return Head.after(entry), entry
