"""What makes an entry valid, and what makes it follow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import evolve
from ledger_deals import (
    ALICE,
    BOB,
    CAROL,
    NET,
    WALL_MS,
    Chain,
    Party,
    alloc_terms,
    cid,
    settle_terms,
    void_terms,
)

from ledger import chain
from ledger.chain import Head, check_entry, check_link
from ledger.errors import BadEntry, BrokenChain
from ledger.keys import entry_message, terms_message
from ledger.model import Body, Entry, Kind, Terms


def signed(body: Body, author: Party) -> Entry:
    return Entry(body.encode(), author.sign(entry_message(body.id)))


def with_deal(body: Body, deal: Terms, seller: Party = ALICE, author: Party = BOB) -> Entry:
    """*body* on other terms, signed by both."""
    terms = deal.encode()
    return signed(evolve(body, terms=terms, peer_sig=seller.sign(terms_message(terms))), author)


@pytest.fixture
def bob() -> Chain:
    return Chain(BOB)


def test_a_deal_from_award_to_bill(bob: Chain) -> None:
    start = bob.head
    alloc = bob.alloc(ALICE)
    assert check_entry(alloc).kind is Kind.ALLOC
    assert (bob.head.posted, bob.head.pending) == (0, 5040)
    settle = bob.settle(ALICE, alloc)
    assert check_entry(settle).deal.amount == 3540
    assert (bob.head.posted, bob.head.pending) == (3540, 0)
    assert check_link(check_link(start, alloc), settle, alloc.content) == bob.head


def test_a_void_frees_the_reserve(bob: Chain) -> None:
    first, second = bob.alloc(ALICE), bob.alloc(CAROL)
    before = bob.head
    void = bob.void(CAROL, second)
    assert check_entry(void).kind is Kind.VOID
    assert check_link(before, void, second.content) == bob.head
    assert bob.head.pending == first.content.deal.reserve


def test_the_clock_rises_even_when_the_walls_does_not(bob: Chain) -> None:
    clocks = [bob.alloc(ALICE).content.hlc for _ in range(3)]
    assert clocks == [(WALL_MS << 16) + n for n in range(3)]


def test_no_bill_is_above_the_reserve(bob: Chain) -> None:
    alloc = bob.alloc(ALICE, reserve=100)
    assert check_entry(bob.settle(ALICE, alloc)).deal.amount == 100


Forgery = Callable[[Body], Entry]
FORGERIES: dict[str, tuple[Forgery, str]] = {
    "another author": (
        lambda body: signed(evolve(body, author=CAROL.key), CAROL),
        "the author is not the buyer",
    ),
    "another peer": (
        lambda body: signed(evolve(body, peer=CAROL.key), BOB),
        "the peer is not the seller",
    ),
    "a deal with oneself": (
        lambda body: with_deal(
            evolve(body, peer=BOB.key), evolve(body.deal, seller=BOB.key), seller=BOB
        ),
        "a deal with oneself",
    ),
    "the seller did not sign": (
        lambda body: signed(evolve(body, peer_sig=bytes(64)), BOB),
        "the seller's signature",
    ),
    "the buyer signed for the seller": (
        lambda body: with_deal(body, body.deal, seller=BOB),
        "the seller's signature",
    ),
    "the seller signed other terms": (
        lambda body: signed(evolve(body, terms=evolve(body.deal, price=1).encode()), BOB),
        "the seller's signature",
    ),
    "somebody else signed for the author": (
        lambda body: signed(body, CAROL),
        "the author's signature",
    ),
    "an ALLOC that refers to something": (
        lambda body: with_deal(body, evolve(body.deal, ref=bytes(32))),
        "ref must be empty",
    ),
    "an ALLOC that owes": (
        lambda body: with_deal(body, evolve(body.deal, amount=1)),
        "the amount is 1",
    ),
    "an ALLOC that has ended": (
        lambda body: with_deal(body, evolve(body.deal, exit=1)),
        "tells how the run ended",
    ),
    "an ALLOC with outputs": (
        lambda body: with_deal(body, evolve(body.deal, outputs=(cid(b""),))),
        "tells how the run ended",
    ),
    "a SETTLE of nothing": (
        lambda body: signed(evolve(body, kind=Kind.SETTLE), BOB),
        "ref must be given",
    ),
    "an inflated bill": (
        lambda body: with_deal(
            evolve(body, kind=Kind.SETTLE), evolve(body.deal, ref=bytes(32), amount=5041)
        ),
        "the amount is 5041, the terms make it 5040",
    ),
    "a VOID that owes": (
        lambda body: with_deal(
            evolve(body, kind=Kind.VOID), evolve(body.deal, ref=bytes(32), amount=1)
        ),
        "the amount is 1, the terms make it 0",
    ),
    "terms that are none": (
        lambda body: signed(evolve(body, terms=b"\x90"), BOB),
        "terms: not an array",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_refused(bob: Chain, name: str) -> None:
    forge, reason = FORGERIES[name]
    with pytest.raises(BadEntry, match=reason):
        check_entry(forge(bob.alloc(ALICE).content))


def test_a_signature_of_the_terms_is_not_one_of_the_entry(bob: Chain) -> None:
    alloc = bob.alloc(ALICE)
    crossed = Entry(alloc.body, BOB.sign(terms_message(alloc.content.terms)))
    with pytest.raises(BadEntry, match="the author's signature"):
        check_entry(crossed)


def test_who_verifies_is_an_argument(bob: Chain) -> None:
    alloc = bob.alloc(ALICE)
    with pytest.raises(BadEntry, match="the seller's signature"):
        check_entry(alloc, verify=lambda *_: False)
    assert check_entry(Entry(alloc.body, bytes(64)), verify=lambda *_: True) == alloc.content


BREAKS: dict[str, tuple[Callable[[Body], Body], str]] = {
    "another network": (lambda body: evolve(body, net=b"other-nt"), "another chain"),
    "a gap": (lambda body: evolve(body, seq=body.seq + 1), "seq 2 where 1 follows"),
    "a replay": (lambda body: evolve(body, seq=0), "seq 0 where 1 follows"),
    "another past": (lambda body: evolve(body, prev=bytes(32)), "prev is not"),
    "time stands still": (lambda body: evolve(body, hlc=body.hlc - 1), "the clock does not rise"),
    "posted lies": (lambda body: evolve(body, posted=0), "totals 0 posted, 0 pending where 3540"),
    "pending lies": (lambda body: evolve(body, pending=1), "totals 3540 posted, 1 pending where"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_an_entry_that_does_not_follow_is_told_why(bob: Chain, name: str) -> None:
    change, reason = BREAKS[name]
    alloc = bob.alloc(ALICE)
    head = bob.head
    broken = signed(change(bob.settle(ALICE, alloc).content), BOB)
    with pytest.raises(BrokenChain, match=reason):
        check_link(head, broken, alloc.content)


def test_a_settle_without_its_alloc_does_not_follow(bob: Chain) -> None:
    alloc, other = bob.alloc(ALICE), bob.alloc(ALICE)
    head = bob.head
    settle = bob.settle(ALICE, alloc)
    for wrong in (None, other.content, settle.content):
        with pytest.raises(BrokenChain, match="is not there"):
            check_link(head, settle, wrong)


def test_a_settle_of_an_alloc_of_another_chain_does_not_follow(bob: Chain) -> None:
    theirs = Chain(CAROL).alloc(ALICE)
    mine = bob.alloc(ALICE)
    head = bob.head
    deal = evolve(settle_terms(mine), ref=theirs.id)
    settle = with_deal(bob.settle(ALICE, mine).content, deal)
    check_entry(settle)
    with pytest.raises(BrokenChain, match="not an earlier entry of the same chain"):
        check_link(head, settle, theirs.content)


@pytest.mark.parametrize(
    "change",
    [{"price": 600, "fuel": 1}, {"fence": 2}, {"nonce": bytes(16)}, {"reserve": 6000}, {"fee": 0}],
    ids=str,
)
def test_a_bill_on_other_terms_does_not_follow(bob: Chain, change: dict[str, int]) -> None:
    alloc = bob.alloc(ALICE)
    head = bob.head
    deal = settle_terms(alloc, **change)
    settle = with_deal(bob.settle(ALICE, alloc).content, deal)
    check_entry(settle)
    with pytest.raises(BrokenChain, match="the terms are not those of the ALLOC"):
        check_link(head, settle, alloc.content)


def test_more_fuel_than_was_allowed_does_not_follow(bob: Chain) -> None:
    alloc = bob.alloc(ALICE)
    head = bob.head
    settle = with_deal(
        bob.settle(ALICE, alloc).content, settle_terms(alloc, fuel=alloc.content.deal.fuel + 1)
    )
    with pytest.raises(BrokenChain, match="the terms are not those of the ALLOC"):
        check_link(head, settle, alloc.content)


def test_our_own_mistakes_are_assertions(bob: Chain) -> None:
    other = Chain(CAROL).alloc(ALICE)
    alloc = bob.alloc(ALICE)
    for deal, of in (
        (void_terms(other), other),
        (void_terms(other), alloc),
        (evolve(void_terms(alloc), price=1), alloc),
        (evolve(settle_terms(alloc), amount=1), alloc),
    ):
        for close in (chain.settle, chain.void):
            with pytest.raises(AssertionError):
                close(bob.head, deal.encode(), bytes(64), alloc=of, wall_ms=0, sign=BOB.sign)
    terms = alloc_terms(ALICE, CAROL).encode()
    with pytest.raises(AssertionError):
        chain.alloc(bob.head, terms, bytes(64), wall_ms=0, sign=BOB.sign)


def test_a_head_starts_from_nothing() -> None:
    assert Head.start(BOB.key, NET) == Head(BOB.key, NET, 0, bytes(32), 0, 0, 0)
