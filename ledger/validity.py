"""What makes an entry valid: its bytes alone, the same everywhere and for ever. Pure.

Nothing here looks at time, order or other entries. Whether an ALLOC names this arbiter, or a bill
keeps to its ALLOC's terms, takes a second entry: that is chain.py's and state.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import assert_never

from ledger import keys
from ledger.codec import pack
from ledger.errors import BadEntry
from ledger.keys import Verify
from ledger.model import (
    DEALINGS,
    TERMS_MAX,
    AnyBody,
    AnyTerms,
    Body,
    Entry,
    Kind,
    accrued,
    amount_of,
)
from ledger.statements import Checkpoint, Dispute, ForkProof, KeyOp, Line, Op, Refund

GENESIS = bytes(32)
"""The `prev` of a chain's first entry."""
NO_SIGNATURE = bytes(64)
"""The `sig` of a FORKPROOF, which has no author."""
FORKS_KEPT_MAX = 256
"""Fork proofs whose two entries are kept decoded."""

# Sets, since every entry passes here: to look one member up takes longer than these do.
_OPENS = frozenset((Kind.ALLOC,))
_BEFORE_THE_END = frozenset((Kind.ALLOC, Kind.USE))
_ONE_SIGNS = frozenset((Kind.CLAIM, Kind.RULING))
_RULES = frozenset((Kind.RULING,))
_OWED: Mapping[Kind, Callable[[AnyTerms], int]] = {
    Kind.SETTLE: amount_of,
    Kind.CLAIM: amount_of,
    Kind.USE: accrued,
}
_MESSAGES = {Kind.USE: keys.use_message, Kind.KEYOP: keys.keyop_message}


def check_entry(
    entry: Entry, verify: Verify = keys.verify, kinds: Collection[Kind] = DEALINGS
) -> Body:
    """The body of *entry*, if its bytes alone make it valid and it is of *kinds*. Raises BadEntry.

    Without *kinds* it lets in what opens and closes a deal: whoever can handle more, says so, and
    a replica passes `KINDS_KNOWN`.
    """
    body = entry.content
    if body.kind not in kinds:
        raise BadEntry(f"a {body.kind.name} has no business here")
    check_deal(body)
    check_signatures(entry, verify)
    return body


def check_deal(body: Body) -> None:
    """That terms or statement are those of this body, and the amount is right. Raises BadEntry."""
    if flaw := flaw_of(body):
        raise BadEntry(flaw)


def check_signatures(entry: Entry, verify: Verify = keys.verify) -> None:
    """That everybody signed who has to. Raises BadEntry."""
    body = entry.content
    if body.kind is Kind.FORKPROOF:
        _check_fork_signatures(entry, verify)
        return
    if body.peer_sig and not verify(body.peer, peer_message(body), body.peer_sig):
        peer = "subject" if body.kind is Kind.KEYOP else "seller"
        raise BadEntry(f"the {peer}'s signature is not its own")
    if not verify(body.author, keys.entry_message(entry.id), entry.sig):
        raise BadEntry("the author's signature is not its own")


def peer_message(body: AnyBody) -> bytes:
    """What the peer signs of *body*. A kind of its own is a domain of its own."""
    return _MESSAGES.get(body.kind, keys.terms_message)(body.terms)


def fork_of(body: Body) -> tuple[Entry, Entry]:
    """The two entries of a FORKPROOF. Raises BadEntry."""
    assert body.kind is Kind.FORKPROOF, body.kind
    return _pair(body.terms)


def prove_fork(one: Entry, other: Entry) -> Entry | None:
    """The FORKPROOF of two valid entries for one place, the same whoever makes it.

    None where they are too long for one: then the two themselves are the proof.
    """
    assert _fork_flaw(one, other) == "", _fork_flaw(one, other)
    first, second = sorted((one, other), key=lambda entry: entry.id)
    terms = pack((1, first.encode(), second.encode()))
    if len(terms) > TERMS_MAX:
        return None
    body = Body(
        net=first.content.net,
        kind=Kind.FORKPROOF,
        author=b"",
        seq=0,
        prev=GENESIS,
        hlc=0,
        posted=0,
        pending=0,
        peer=b"",
        terms=terms,
        peer_sig=b"",
    )
    return Entry(body.encode(), NO_SIGNATURE)


def flaw_of(body: Body) -> str:
    """In what *body* and its terms or statement disagree; empty if in nothing. Raises BadEntry."""
    match body.kind:
        case Kind.ALLOC | Kind.USE | Kind.SETTLE | Kind.VOID | Kind.CLAIM | Kind.RULING:
            return flaw_of_deal(body, body.deal)
        case Kind.DISPUTE:
            Dispute.decode(body.terms)
        case Kind.REFUND:
            if Refund.decode(body.terms).amount == 0:
                return "a REFUND of nothing"
        case Kind.LINE:
            Line.decode(body.terms)
        case Kind.KEYOP:
            return _keyop_flaw(body, KeyOp.decode(body.terms))
        case Kind.HEAD:
            Checkpoint.decode(body.terms)
            return "" if body.seq else "a HEAD of nothing"
        case Kind.FORKPROOF:
            return _proof_flaw(body)
        case _:
            assert_never(body.kind)
    return "a deal with oneself" if body.author == body.peer else ""


def flaw_of_deal(body: AnyBody, deal: AnyTerms) -> str:
    """In what *body* and its terms, decoded, disagree; empty if in nothing."""
    return _parties_flaw(body, deal) or _terms_flaw(body.kind, deal)


def _parties_flaw(body: AnyBody, deal: AnyTerms) -> str:
    author, peer = deal.buyer, deal.seller
    names = "buyer", "seller"
    if body.kind in _ONE_SIGNS:
        is_claim = body.kind is Kind.CLAIM
        author, peer = deal.seller if is_claim else deal.arbiter, deal.buyer
        names = "seller" if is_claim else "arbiter", "buyer"
    if body.author != author:
        return f"the author is not the {names[0]} of the terms"
    if body.peer != peer:
        return f"the peer is not the {names[1]} of the terms"
    if deal.seller == deal.buyer:
        return "a deal with oneself"
    if body.kind in _RULES and deal.arbiter in (deal.seller, deal.buyer):
        return "an arbiter of its own deal"
    return ""


def _terms_flaw(kind: Kind, deal: AnyTerms) -> str:
    if (kind in _OPENS) != (deal.ref == b""):
        return f"ref must be {'empty' if deal.ref else 'given'} in {kind.name}"
    if kind in _BEFORE_THE_END and (deal.outputs or deal.exit):
        return f"{'an' if kind is Kind.ALLOC else 'a'} {kind.name} that tells how the run ended"
    if kind in _RULES:
        return "" if deal.amount <= deal.reserve else "a RULING above the reserve"
    owed = _OWED[kind](deal) if kind in _OWED else 0
    return "" if deal.amount == owed else f"the amount is {deal.amount}, the terms make it {owed}"


def _keyop_flaw(body: Body, keyop: KeyOp) -> str:
    if (keyop.owner, keyop.subject, keyop.net) != (body.author, body.peer, body.net):
        return "the KEYOP is another author's, subject's or network's"
    if (keyop.op is Op.RECOVERY) != bool(keyop.commitment):
        return f"the commitment must be {'empty' if keyop.commitment else 'given'}"
    agreed = keyop.op in (Op.DELEGATE, Op.ROTATE)
    if agreed != bool(body.peer_sig):
        return f"the subject of {keyop.op.name} must {'' if agreed else 'not '}sign"
    own = keyop.subject == keyop.owner
    if (agreed and own) or (keyop.op is Op.RECOVERY and not own):
        return f"{keyop.op.name} of the wrong subject"
    return ""


def _proof_flaw(body: Body) -> str:
    if (body.seq, body.prev, body.hlc, body.posted, body.pending) != (0, GENESIS, 0, 0, 0):
        return "a FORKPROOF has no place of its own"
    first, second = fork_of(body)
    if first.content.net != body.net:
        return "a fork on another network"
    return _fork_flaw(first, second) or ("" if first.id < second.id else "not the smaller id first")


def _fork_flaw(one: Entry, other: Entry) -> str:
    a, b = one.content, other.content
    if Kind.FORKPROOF in (a.kind, b.kind):
        return "a FORKPROOF of a FORKPROOF"
    if (a.net, a.author, a.seq) != (b.net, b.author, b.seq):
        return "two entries of different places"
    return "the same entry twice" if one.id == other.id else ""


def _check_fork_signatures(entry: Entry, verify: Verify) -> None:
    if entry.sig != NO_SIGNATURE:
        raise BadEntry("a FORKPROOF has no author to sign it")
    # That one key signed both is the whole offence; whether each is a sound deal is beside it.
    for arm in fork_of(entry.content):
        if not verify(arm.content.author, keys.entry_message(arm.id), arm.sig):
            raise BadEntry("the fork is not signed by its author")


@lru_cache(maxsize=FORKS_KEPT_MAX)
def _pair(terms: bytes) -> tuple[Entry, Entry]:
    proof = ForkProof.decode(terms)
    return Entry.decode(proof.first), Entry.decode(proof.second)
