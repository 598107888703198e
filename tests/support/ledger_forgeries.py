"""An entry of every kind, and forgeries of each: no implementation may let one of them in."""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve
from ledger_deals import ALICE, BOB, CAROL, DAVE, Chain, Party, cid

from ledger.codec import pack
from ledger.keys import entry_message, keyop_message
from ledger.model import Entry, Kind
from ledger.statements import ForkProof, KeyOp, Op, Refund
from ledger.validity import GENESIS, fork_of, prove_fork


def every_kind() -> dict[Kind, Entry]:
    """One entry of each, by buyer Bob, seller Alice and arbiter Carol."""
    bob, alice, carol = Chain(BOB), Chain(ALICE), Chain(CAROL)
    twin = bob.fork()
    line = alice.line(BOB, 10_000)
    alloc = bob.alloc(ALICE, arbiter=CAROL.key)
    use = bob.use(ALICE, alloc)
    claim = alice.claim(alloc)
    dispute = bob.dispute(claim, ALICE)
    ruling = carol.rule(alloc, 3000)
    settle = bob.settle(ALICE, alloc)
    other = bob.alloc(ALICE)
    void = bob.void(ALICE, other)
    refund = alice.refund(alloc, 500)
    keyop = alice.keyop(Op.DELEGATE, DAVE)
    head = alice.checkpoint([line, claim, refund, keyop])
    proof = prove_fork(alloc, twin.alloc(CAROL))
    assert proof is not None
    entries = (alloc, use, settle, void, claim, dispute, ruling, refund, line, keyop, head, proof)
    return {entry.content.kind: entry for entry in entries}


EVERY = every_kind()


def resigned(of: Kind, signer: Party, **changes: object) -> Entry:
    """The entry of kind *of* with its body changed, signed again by *signer* alone."""
    body = evolve(EVERY[of].content, **changes)  # type: ignore[arg-type]
    return Entry(body.encode(), signer.sign(entry_message(body.id)))


def with_terms(of: Kind, signer: Party, **changes: object) -> Entry:
    deal = evolve(EVERY[of].content.deal, **changes)  # type: ignore[arg-type]
    return resigned(of, signer, terms=deal.encode())


KEYOP = KeyOp.decode(EVERY[Kind.KEYOP].content.terms)


def with_keyop(author: Party = ALICE, sig: bytes | None = None, **changes: object) -> Entry:
    statement = evolve(KEYOP, **changes)  # type: ignore[arg-type]
    peer_sig = EVERY[Kind.KEYOP].content.peer_sig if sig is None else sig
    return resigned(Kind.KEYOP, author, terms=statement.encode(), peer_sig=peer_sig)


def with_oneself() -> Entry:
    statement = evolve(KEYOP, subject=ALICE.key).encode()
    sig = ALICE.sign(keyop_message(statement))
    return resigned(Kind.KEYOP, ALICE, peer=ALICE.key, terms=statement, peer_sig=sig)


def with_proof(*arms: bytes, **changes: object) -> Entry:
    terms = ForkProof(first=arms[0], second=arms[1]).encode() if arms else None
    body = EVERY[Kind.FORKPROOF].content
    body = evolve(body, **({"terms": terms} if terms else {}), **changes)  # type: ignore[arg-type]
    return Entry(body.encode(), bytes(64))


FIRST, SECOND = (arm.encode() for arm in fork_of(EVERY[Kind.FORKPROOF].content))
UNSIGNED = Entry(Entry.decode(SECOND).body, bytes(64)).encode()

FORGERIES: dict[str, tuple[Callable[[], Entry], str]] = {
    "a USE that owes what a success costs": (
        lambda: with_terms(Kind.USE, BOB, amount=540),
        "the amount is 540, the terms make it 500",
    ),
    "a USE with outputs": (
        lambda: with_terms(Kind.USE, BOB, outputs=(cid(b""),)),
        "a USE that tells how the run ended",
    ),
    "a USE that its buyer made up": (
        lambda: with_terms(Kind.USE, BOB, fuel=0, amount=0),
        "the seller's signature",
    ),
    "a SETTLE on the seller's word of how far it was": (
        lambda: resigned(Kind.USE, BOB, kind=Kind.SETTLE),
        "the amount is 500",
    ),
    "a CLAIM by the buyer": (
        lambda: resigned(Kind.CLAIM, BOB, author=BOB.key),
        "the author is not the seller",
    ),
    "a CLAIM of another buyer": (
        lambda: resigned(Kind.CLAIM, ALICE, peer=CAROL.key),
        "the peer is not the buyer",
    ),
    "an inflated CLAIM": (
        lambda: with_terms(Kind.CLAIM, ALICE, amount=5000),
        "the amount is 5000, the terms make it 3540",
    ),
    "a CLAIM of nothing": (lambda: with_terms(Kind.CLAIM, ALICE, ref=b""), "ref must be given"),
    "a CLAIM with a signature of its peer": (
        lambda: resigned(Kind.CLAIM, ALICE, peer_sig=bytes(64)),
        "peer_sig",
    ),
    "a RULING by somebody else": (
        lambda: resigned(Kind.RULING, DAVE, author=DAVE.key),
        "the author is not the arbiter",
    ),
    "a RULING above the reserve": (
        lambda: with_terms(Kind.RULING, CAROL, amount=5041),
        "above the reserve",
    ),
    "a RULING by a party": (
        lambda: resigned(
            Kind.RULING,
            ALICE,
            author=ALICE.key,
            terms=evolve(EVERY[Kind.RULING].content.deal, arbiter=ALICE.key).encode(),
        ),
        "an arbiter of its own deal",
    ),
    "a REFUND of nothing": (
        lambda: resigned(Kind.REFUND, ALICE, terms=Refund(ref=bytes(32), amount=0).encode()),
        "of nothing",
    ),
    "a LINE for oneself": (
        lambda: resigned(Kind.LINE, ALICE, peer=ALICE.key),
        "a deal with oneself",
    ),
    "a LINE with a debt in it": (
        lambda: resigned(Kind.LINE, ALICE, terms=pack((1, 2, 3))),
        "line: not an array of 2",
    ),
    "a KEYOP of another owner": (
        lambda: with_keyop(owner=BOB.key),
        "another author's, subject's or network's",
    ),
    "a KEYOP of another network": (
        lambda: with_keyop(net=b"othernet"),
        "another author's, subject's or network's",
    ),
    "a DELEGATE that its subject never agreed to": (
        lambda: with_keyop(sig=b""),
        "the subject of DELEGATE must sign",
    ),
    "a DELEGATE turned into a ROTATE": (
        lambda: with_keyop(op=Op.ROTATE),
        "the subject's signature",
    ),
    "a DELEGATE to oneself": (
        with_oneself,
        "of the wrong subject",
    ),
    "a REVOKE that its subject signed": (
        lambda: with_keyop(op=Op.REVOKE),
        "the subject of REVOKE must not sign",
    ),
    "a DELEGATE with a commitment": (
        lambda: with_keyop(commitment=bytes(32)),
        "the commitment must be empty",
    ),
    "a RECOVERY without a commitment": (
        lambda: with_keyop(op=Op.RECOVERY, sig=b""),
        "the commitment must be given",
    ),
    "a RECOVERY for somebody else": (
        lambda: with_keyop(op=Op.RECOVERY, sig=b"", commitment=bytes(32)),
        "of the wrong subject",
    ),
    "a HEAD of nothing": (
        lambda: resigned(Kind.HEAD, ALICE, seq=0, prev=GENESIS),
        "a HEAD of nothing",
    ),
    "a HEAD with a peer": (lambda: resigned(Kind.HEAD, ALICE, peer=BOB.key), r"body\.peer"),
    "a proof of nothing": (lambda: with_proof(FIRST, FIRST), "the same entry twice"),
    "a proof in the other order": (lambda: with_proof(SECOND, FIRST), "not the smaller id first"),
    "a proof of two places": (
        lambda: with_proof(FIRST, EVERY[Kind.SETTLE].encode()),
        "two entries of different places",
    ),
    "a proof of a proof": (
        lambda: with_proof(FIRST, EVERY[Kind.FORKPROOF].encode()),
        "a FORKPROOF of a FORKPROOF",
    ),
    "a proof of one signature": (
        lambda: with_proof(FIRST, UNSIGNED),
        "the fork is not signed by its author",
    ),
    "a proof on another network": (lambda: with_proof(net=b"othernet"), "on another network"),
    "a proof with a place": (lambda: with_proof(seq=1), "no place of its own"),
    "a proof with an author": (lambda: with_proof(author=BOB.key), r"body\.author"),
    "a signed proof": (
        lambda: Entry(EVERY[Kind.FORKPROOF].body, BOB.sign(b"")),
        "has no author to sign it",
    ),
}
