"""A rotated key: where the chain of its heir begins, and where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from ledger_bundles import resigned
from ledger_deals import ALICE, BOB, CAROL, DAVE, NET, Chain
from ledger_witnesses import WITNESSES, ask, close_books, is_vote_for, witness_of

from ledger.chain import GENESIS, Head, check_entry, check_link, origin, rotated_to
from ledger.errors import BrokenChain
from ledger.model import KINDS_KNOWN, Entry
from ledger.statements import Op
from ledger.store import Store
from ledger.witness import Refused


@pytest.fixture(autouse=True)
def books() -> Iterator[None]:
    yield
    close_books()


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.open(Path(":memory:")) as store:
        yield store


def handed_over() -> tuple[list[Entry], list[Entry]]:
    """BOB's chain up to the ROTATE to DAVE, and DAVE's from there."""
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    mine = [alloc, bob.keyop(Op.DELEGATE, DAVE), bob.keyop(Op.ROTATE, DAVE)]
    dave = Chain(DAVE, Head.heir(mine[-1]))
    first = dave.alloc(ALICE)
    return mine, [first, dave.settle(ALICE, first)]


def test_the_heir_s_chain_begins_at_the_rotate_with_nothing_owed() -> None:
    mine, heirs = handed_over()
    head = Head.heir(mine[-1])
    assert (head.author, head.seq, head.prev) == (DAVE.key, 0, mine[-1].id)
    assert (head.posted, head.pending) == (0, 0)
    assert heirs[0].content.hlc > mine[-1].content.hlc
    assert check_entry(heirs[0], kinds=KINDS_KNOWN).prev == mine[-1].id
    assert check_link(origin(heirs[0].content, mine[-1]), heirs[0]) == Head.after(heirs[0])


def test_only_a_rotate_has_an_heir() -> None:
    mine, heirs = handed_over()
    assert [rotated_to(entry) for entry in (*mine, *heirs)] == [b"", b"", DAVE.key, b"", b""]
    with pytest.raises(AssertionError, match="made by a ROTATE"):
        Head.heir(mine[1])


def test_a_chain_begins_nowhere_else() -> None:
    mine, heirs = handed_over()
    first = heirs[0].content
    to_carol = Chain(BOB).keyop(Op.ROTATE, CAROL)
    elsewhere = Chain(BOB, net=b"othernet").keyop(Op.ROTATE, DAVE)
    assert origin(evolve(first, prev=GENESIS), None) == Head.start(DAVE.key, NET)
    for before in (None, mine[1], to_carol, elsewhere):
        with pytest.raises(BrokenChain, match="not there"):
            origin(first, before)
    for before in (mine[0], mine[1], to_carol, elsewhere):
        with pytest.raises(BrokenChain, match="no ROTATE to its author"):
            origin(evolve(first, prev=before.id), before)


def test_the_store_of_an_heir_begins_where_its_rotate_is(store: Store) -> None:
    mine, heirs = handed_over()
    assert store.head(DAVE.key, NET) == Head.start(DAVE.key, NET)
    store.add(mine)
    assert store.head(DAVE.key, NET) == Head.heir(mine[-1])
    assert store.head(DAVE.key, b"othernet") == Head.start(DAVE.key, b"othernet")
    assert store.head(CAROL.key, NET) == Head.start(CAROL.key, NET)
    store.append_own(heirs)
    assert store.head(DAVE.key, NET) == Head.after(heirs[-1])


def test_the_store_lets_nobody_begin_at_another_s_rotate(store: Store) -> None:
    mine, heirs = handed_over()
    first = heirs[0].content
    with pytest.raises(BrokenChain, match="not there"):
        store.append_own(heirs)
    store.add(mine)
    for before in (mine[0], mine[1]):
        with pytest.raises(BrokenChain, match="no ROTATE to its author"):
            store.append_own([resigned(evolve(first, prev=before.id), DAVE)])
    carol = evolve(Chain(CAROL).alloc(ALICE).content, prev=mine[-1].id)
    with pytest.raises(BrokenChain, match="no ROTATE to its author"):
        store.append_own([resigned(carol, CAROL)])
    store.append_own(heirs)


def test_an_heir_may_begin_at_zeros_too_but_not_twice(store: Store) -> None:
    mine, heirs = handed_over()
    store.add(mine)
    fresh = Chain(DAVE)
    store.append_own([fresh.alloc(ALICE)])
    with pytest.raises(BrokenChain, match="seq 0 where 1 follows"):
        store.append_own(heirs)


def test_a_witness_votes_for_an_heir_whose_rotate_it_voted_for() -> None:
    mine, heirs = handed_over()
    witness = witness_of(WITNESSES[0])
    answer = ask(witness, *heirs)
    assert isinstance(answer, Refused)
    assert "the ROTATE that it begins at is not there" in answer.reason
    assert is_vote_for(ask(witness, *mine), mine[-1])
    assert is_vote_for(ask(witness, *heirs), heirs[-1])


def test_under_witnesses_a_key_has_one_heir() -> None:
    """The second ROTATE comes after the first, or is a fork: neither gets a vote."""
    mine, _ = handed_over()
    witness = witness_of(WITNESSES[0])
    ask(witness, *mine)
    later = Chain(BOB, Head.after(mine[-1])).keyop(Op.ROTATE, CAROL)
    instead = Chain(BOB, Head.after(mine[-2])).keyop(Op.ROTATE, CAROL)
    for rotate in (later, instead):
        assert isinstance(ask(witness, rotate), Refused)
        heir = Chain(CAROL, Head.heir(rotate)).alloc(ALICE)
        assert isinstance(ask(witness, heir), Refused)
