"""What makes an entry of each kind valid, by its bytes alone."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import pytest
from attrs import evolve
from ledger_deals import ALICE, BOB, CAROL, DAVE, NET, Chain, Party, cid, settle_terms

from ledger import chain
from ledger.chain import Head, check_link
from ledger.codec import pack
from ledger.errors import BadEntry, BrokenChain
from ledger.keys import ENTRY_DOMAIN, KEYOP_DOMAIN, TERMS_DOMAIN, USE_DOMAIN, entry_message
from ledger.model import INPUTS_MAX, KINDS_KNOWN, Body, Entry, Kind, accrued
from ledger.statements import (
    Checkpoint,
    Dispute,
    ForkProof,
    KeyOp,
    Line,
    Op,
    Refund,
    Statement,
)
from ledger.validity import GENESIS, check_entry, fork_of, prove_fork

RECOVERY = Party.named("recovery")


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


def valid(entry: Entry) -> Body:
    return check_entry(Entry.decode(entry.encode()), kinds=KINDS_KNOWN)


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
def test_an_entry_of_every_kind_is_valid_and_comes_back_from_its_bytes(kind: Kind) -> None:
    assert valid(EVERY[kind]).kind is kind
    assert Entry.decode(EVERY[kind].encode()) == EVERY[kind]


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
def test_every_byte_of_every_kind_counts(kind: Kind) -> None:
    data = EVERY[kind].encode()
    for place in range(0, len(data), 3):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(BadEntry):
            check_entry(Entry.decode(bytes(changed)), kinds=KINDS_KNOWN)


def test_a_door_lets_in_only_the_kinds_that_it_can_handle() -> None:
    for kind, entry in EVERY.items():
        if kind in (Kind.ALLOC, Kind.SETTLE, Kind.VOID):
            check_entry(entry)
        else:
            with pytest.raises(BadEntry, match=f"a {kind.name} has no business here"):
                check_entry(entry)


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
def test_task_and_alloc_are_told_of_every_kind(kind: Kind) -> None:
    body = EVERY[kind].content
    alloc = EVERY[Kind.ALLOC]
    about = {Kind.USE, Kind.SETTLE, Kind.CLAIM, Kind.DISPUTE, Kind.RULING, Kind.REFUND}
    assert (body.ref == alloc.id) is (kind in about)
    termed = {Kind.ALLOC, Kind.USE, Kind.SETTLE, Kind.VOID, Kind.CLAIM, Kind.RULING}
    assert (body.nonce == alloc.content.nonce) is (kind in termed)
    if kind not in termed:
        with pytest.raises(BadEntry, match=f"a {kind.name} has no terms"):
            _ = body.deal


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


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_refused(name: str) -> None:
    forge, reason = FORGERIES[name]
    with pytest.raises(BadEntry, match=reason):
        check_entry(Entry.decode(forge().encode()), kinds=KINDS_KNOWN)


def test_a_buyer_cannot_settle_on_the_terms_of_a_use() -> None:
    """Without a fee the terms of a USE are those of a cheap SETTLE: the domain tells them apart."""
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE, fee=0)
    use = bob.use(ALICE, alloc, fuel=10**9)
    body = evolve(use.content, kind=Kind.SETTLE, posted=500, pending=0)
    cheap = Entry(body.encode(), BOB.sign(entry_message(body.id)))
    with pytest.raises(BadEntry, match="the seller's signature"):
        check_entry(cheap)


def test_no_signature_passes_from_one_meaning_to_another() -> None:
    domains = (TERMS_DOMAIN, USE_DOMAIN, KEYOP_DOMAIN, ENTRY_DOMAIN)
    assert len({domain for one in domains for domain in domains if one.startswith(domain)}) == 4
    assert all(domain.endswith(b"\0") for domain in domains)


def test_a_fork_proof_is_the_same_whoever_makes_it() -> None:
    one, other = Entry.decode(FIRST), Entry.decode(SECOND)
    assert prove_fork(one, other) == prove_fork(other, one) == EVERY[Kind.FORKPROOF]


def test_two_entries_too_long_for_one_proof_are_their_own() -> None:
    arms = [Chain(BOB).alloc(ALICE, inputs=(cid(b""),) * n) for n in (INPUTS_MAX, INPUTS_MAX - 1)]
    assert prove_fork(*arms) is None


STATEMENTS: list[Statement] = [
    Dispute(ref=bytes(32), about=bytes(32), reason="late", evidence=cid(b"log")),
    Refund(ref=bytes(32), amount=1),
    Line(limit=Line.NO_LIMIT),
    KeyOp(op=Op.REVOKE, net=NET, owner=BOB.key, subject=DAVE.key),
    Checkpoint(root=bytes(32)),
    ForkProof(first=b"1", second=b"2"),
]


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda each: type(each).__name__)
def test_a_statement_comes_back_from_its_bytes(statement: Statement) -> None:
    assert type(statement).decode(statement.encode()) == statement


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Dispute, (1, bytes(32), bytes(32), "", b"")),
        (Dispute, (1, bytes(32), bytes(32), "é", b"")),
        (Dispute, (1, bytes(32), bytes(32), "why", bytes(36))),
        (Dispute, (1, b"", bytes(32), "why", b"")),
        (Refund, (2, bytes(32), 1)),
        (Refund, (1, bytes(32), b"")),
        (Line, (1, "1")),
        (KeyOp, (1, 0, NET, BOB.key, BOB.key, b"")),
        (KeyOp, (1, 5, NET, BOB.key, BOB.key, b"")),
        (KeyOp, (1, 1, NET, BOB.key, bytes(31), b"")),
        (Checkpoint, (1, bytes(31))),
        (ForkProof, (1, (), b"")),
    ],
)
def test_a_statement_out_of_range_is_refused(kind: type[Statement], value: tuple[int, ...]) -> None:
    with pytest.raises(BadEntry, match=f"{kind.__name__.lower()}."):
        kind.decode(pack(value))


def test_what_a_use_has_accrued_stops_at_the_reserve() -> None:
    deal = EVERY[Kind.USE].content.deal
    assert accrued(deal) == 500
    assert accrued(evolve(deal, fuel=10**12)) == deal.reserve


def test_the_chain_of_a_seller_follows_and_a_refund_is_its_debt() -> None:
    alloc = EVERY[Kind.ALLOC]
    head = Head.start(ALICE.key, NET)
    alice = Chain(ALICE)
    entries = [alice.line(BOB, 1), alice.claim(alloc), alice.refund(alloc, 500)]
    entries += [alice.keyop(Op.RECOVERY, ALICE, sha256(RECOVERY.key).digest())]
    for entry in [*entries, alice.checkpoint(entries)]:
        valid(entry)
        head = check_link(head, entry)
    assert (head.posted, head.pending) == (500, 0)


def test_a_use_of_another_deal_does_not_follow() -> None:
    bob = Chain(BOB)
    alloc, other = bob.alloc(ALICE), bob.alloc(ALICE, price=1)
    head = bob.head
    use = bob.use(ALICE, alloc)
    assert check_link(head, use, alloc.content).pending == head.pending
    for wrong in (None, other.content):
        with pytest.raises(BrokenChain):
            check_link(head, use, wrong)


def test_a_claim_and_a_ruling_keep_to_the_terms_of_the_alloc() -> None:
    alloc = EVERY[Kind.ALLOC].content
    for kind in (Kind.CLAIM, Kind.RULING):
        chain.check_resolution(EVERY[kind].content, alloc)
    changed = settle_terms(EVERY[Kind.ALLOC], price=600)
    dear = resigned(Kind.CLAIM, ALICE, terms=changed.encode()).content
    with pytest.raises(BrokenChain, match="the terms are not those of the ALLOC"):
        chain.check_resolution(dear, alloc)
