"""The fold: what is owed does not depend on order, copies, gaps or forks."""

from __future__ import annotations

from ledger_deals import ALICE, BOB, CAROL, NET, Chain, void_terms

from ledger import chain
from ledger.keys import terms_message
from ledger.model import Kind
from ledger.state import Account, Accounts, fold


def test_a_deal_moves_money_once_it_is_settled() -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    assert fold([alloc], NET) == {
        ALICE.key: Account(),
        BOB.key: Account(pending_debit=5040),
    }
    settle = bob.settle(ALICE, alloc)
    assert fold([alloc, settle], NET) == {
        ALICE.key: Account(posted_credit=3540),
        BOB.key: Account(posted_debit=3540),
    }


def test_a_settle_counts_before_its_alloc_is_known() -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    settle = bob.settle(ALICE, alloc)
    assert fold([settle], NET)[BOB.key] == Account(posted_debit=3540)
    assert fold([settle, alloc], NET) == fold([alloc, settle], NET)


def test_a_void_frees_the_reserve() -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    void = bob.void(ALICE, alloc)
    assert fold([void, alloc], NET) == {ALICE.key: Account(), BOB.key: Account()}


def test_settle_goes_before_void_in_any_order() -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    fork = bob.fork()
    entries = [alloc, bob.void(ALICE, alloc), fork.settle(ALICE, alloc)]
    for order in (entries, entries[::-1], entries[1:] + entries[:1]):
        assert fold(order, NET)[BOB.key] == Account(posted_debit=3540, forked=True)


def test_of_two_settles_the_larger_counts_so_that_no_merge_shrinks_a_debt() -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    fork = bob.fork()
    settles = [bob.settle(ALICE, alloc, fuel=1), fork.settle(ALICE, alloc, fuel=10**9)]
    first = max(settles, key=lambda entry: entry.content.deal.amount)
    for order in (settles, settles[::-1]):
        accounts = Accounts(NET)
        for entry in [*order, alloc]:
            accounts.add(entry)
        assert accounts.account(ALICE.key).posted_credit == first.content.deal.amount
        resolution = accounts.resolution(alloc)
        assert resolution is not None
        assert resolution.entry_id == first.id


def test_a_retroactive_fork_does_not_shrink_the_forkers_debt() -> None:
    bob = Chain(BOB)
    start = bob.fork()
    alloc = bob.alloc(ALICE)
    debts = [alloc, bob.settle(ALICE, alloc)]
    before = fold(debts, NET)[BOB.key]
    fork = start.alloc(CAROL)
    after = fold([*debts, fork], NET)[BOB.key]
    assert after == Account(
        posted_debit=before.posted_debit, pending_debit=fork.content.deal.reserve, forked=True
    )


def test_a_gap_in_a_chain_hides_no_debt() -> None:
    bob = Chain(BOB)
    allocs = [bob.alloc(ALICE) for _ in range(3)]
    bob.alloc(CAROL)
    settles = [bob.settle(ALICE, alloc) for alloc in allocs]
    assert fold(settles, NET)[BOB.key].posted_debit == 3 * 3540


def test_nobody_resolves_anothers_alloc() -> None:
    mine = Chain(BOB).alloc(ALICE)
    theirs = Chain(CAROL)
    own = theirs.alloc(ALICE)
    forged = void_terms(own).encode().replace(own.id, mine.id)
    body_terms = forged
    head, void = chain._append(  # an author that does not keep to settle() and void()
        theirs.head,
        theirs.head,
        Kind.VOID,
        body_terms,
        ALICE.sign(terms_message(body_terms)),
        0,
        CAROL.sign,
    )
    chain.check_entry(void)
    assert head.seq == 2
    assert fold([mine, own, void], NET)[BOB.key] == Account(pending_debit=5040)


def test_an_entry_of_another_network_is_nothing_here() -> None:
    other = Chain(BOB, net=b"othernet").alloc(ALICE)
    assert fold([other], NET) == {}
    assert Accounts(NET).account(BOB.key) == Account()
