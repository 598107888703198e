"""What makes an entry of each kind valid, by its bytes alone."""

from __future__ import annotations

from hashlib import sha256

import pytest
from attrs import evolve
from ledger_deals import ALICE, BOB, DAVE, NET, Chain, Party, cid, settle_terms
from ledger_forgeries import EVERY, FIRST, FORGERIES, SECOND, resigned

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
from ledger.validity import check_entry, prove_fork

RECOVERY = Party.named("recovery")


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
