"""The fold: what is owed does not depend on order, copies, gaps or forks."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from itertools import pairwise

from attrs import evolve
from ledger_deals import ALICE, BOB, CAROL, DAVE, NET, Chain, Party, settle_terms, void_terms

from ledger import chain
from ledger.authority import FOREBEARS_MAX
from ledger.chain import Head
from ledger.keys import terms_message
from ledger.model import KINDS_KNOWN, Entry, Kind
from ledger.state import Account, Accounts, Between, Stage, deal_of, fold
from ledger.statements import Line, Op
from ledger.validity import check_entry, prove_fork


def accounts_of(entries: Iterable[Entry]) -> Accounts:
    accounts = Accounts(NET)
    for entry in entries:
        accounts.add(entry)
    return accounts


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


def test_a_claim_is_labelled_and_never_a_debt() -> None:
    bob, alice = Chain(BOB), Chain(ALICE)
    alloc = bob.alloc(ALICE)
    claim = alice.claim(alloc)
    for order in ([alloc, claim], [claim, alloc]):
        accounts = accounts_of(order)
        assert accounts.account(BOB.key) == Account(pending_debit=5040, claimed_debit=3540)
        assert accounts.account(ALICE.key) == Account()
        assert accounts.standing(deal_of(alloc)).stage is Stage.CLAIMED
        assert accounts.between(BOB.key, ALICE.key) == Between(reserved=5040, claimed=3540)


def test_a_claim_of_a_deal_that_never_was_is_nothing() -> None:
    alloc = Chain(BOB).alloc(ALICE)
    claim = Chain(ALICE).claim(alloc)
    dear = Chain(ALICE).claim(Chain(BOB).alloc(ALICE, price=900))
    forged = Chain(ALICE)
    other = Chain(BOB).alloc(ALICE, price=900)
    terms = evolve(settle_terms(other), ref=alloc.id).encode()
    _, on_other_terms = chain._append(
        forged.head, forged.head, Kind.CLAIM, terms, b"", 0, ALICE.sign, BOB.key
    )
    check_entry(on_other_terms, kinds=KINDS_KNOWN)
    assert fold([claim], NET)[BOB.key] == Account()
    assert fold([alloc, dear, on_other_terms], NET)[BOB.key] == Account(pending_debit=5040)


def test_a_ruling_goes_before_a_settle_a_void_and_a_claim_in_any_order() -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE, arbiter=CAROL.key)
    twin = bob.fork()
    entries = [
        alloc,
        Chain(ALICE).claim(alloc),
        bob.void(ALICE, alloc),
        twin.settle(ALICE, alloc),
        Chain(CAROL).rule(alloc, 1234),
    ]
    told = [Stage.ALLOCATED, Stage.CLAIMED, Stage.VOID, Stage.SETTLED, Stage.RULED]
    for count, stage in enumerate(told, 1):
        for order in (entries[:count], entries[:count][::-1]):
            standing = accounts_of(order).standing(deal_of(alloc))
            assert standing.stage is stage
    assert fold(entries, NET)[BOB.key] == Account(posted_debit=1234, forked=True)


def test_only_the_arbiter_that_both_agreed_to_rules() -> None:
    alloc = Chain(BOB).alloc(ALICE)
    named = Chain(BOB).alloc(ALICE, arbiter=CAROL.key)
    terms = evolve(settle_terms(named, amount=5040), ref=alloc.id).encode()
    carol = Chain(CAROL)
    _, ruling = chain._append(
        carol.head, carol.head, Kind.RULING, terms, b"", 0, CAROL.sign, BOB.key
    )
    check_entry(ruling, kinds=KINDS_KNOWN)
    assert fold([alloc, ruling], NET)[BOB.key] == Account(pending_debit=5040)


def test_a_dispute_is_told_by_the_buyer_only() -> None:
    alloc = Chain(BOB).alloc(ALICE)
    claim = Chain(ALICE).claim(alloc)
    assert (
        not accounts_of([alloc, Chain(DAVE).dispute(claim, ALICE)])
        .standing(deal_of(alloc))
        .disputed
    )
    disputed = accounts_of([Chain(BOB).dispute(claim, ALICE), alloc, claim])
    assert disputed.standing(deal_of(alloc)).disputed
    assert disputed.account(BOB.key).claimed_debit == 3540


def test_what_was_used_is_the_most_that_both_agreed_to() -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    uses = [bob.use(ALICE, alloc, fuel=n * 10**9) for n in (1, 3, 2)]
    for order in (uses, uses[::-1]):
        accounts = accounts_of([alloc, *order])
        assert accounts.standing(deal_of(alloc)).used == 1500
        assert accounts.account(BOB.key) == Account(pending_debit=5040)


def test_a_refund_is_the_sellers_debt_once() -> None:
    bob, alice = Chain(BOB), Chain(ALICE)
    alloc = bob.alloc(ALICE)
    entries = [alloc, bob.settle(ALICE, alloc), alice.refund(alloc, 540)]
    accounts = accounts_of(entries + entries)
    assert accounts.account(ALICE.key) == Account(posted_debit=540, posted_credit=3540)
    assert accounts.account(BOB.key) == Account(posted_debit=3540, posted_credit=540)
    assert accounts.exposure(BOB.key, ALICE.key) == 3000
    assert accounts.exposure(ALICE.key, BOB.key) == -3000


def test_a_seller_lets_nobody_exceed_the_line_it_set() -> None:
    bob, alice = Chain(BOB), Chain(ALICE)
    alloc = bob.alloc(ALICE)
    accounts = accounts_of([alloc])
    assert not accounts.may_spend(BOB.key, ALICE.key, 1)
    accounts.add(alice.line(BOB, 6000))
    assert accounts.line(BOB.key, ALICE.key) == 6000
    assert accounts.may_spend(BOB.key, ALICE.key, 960)
    reason = accounts.refusal(BOB.key, ALICE.key, 961)
    assert reason == "5040 µcr exposed and 961 asked for exceed the line of 6000"
    assert not accounts.may_spend(BOB.key, CAROL.key, 1)
    assert accounts.may_spend(BOB.key, ALICE.key, 961, line=6001)
    accounts.add(alice.line(BOB, Line.NO_LIMIT))
    assert accounts.may_spend(BOB.key, ALICE.key, 10**18)


def test_the_last_line_counts_and_on_two_arms_the_lower() -> None:
    alice = Chain(ALICE)
    lines = [alice.line(BOB, 9000), alice.line(BOB, 5000)]
    fork = Chain(ALICE, chain.Head.after(lines[0]))
    for order in (lines, lines[::-1]):
        assert accounts_of(order).line(BOB.key, ALICE.key) == 5000
    arms = [*lines, fork.line(BOB, 7000)]
    for order in (arms, arms[::-1]):
        assert accounts_of(order).line(BOB.key, ALICE.key) == 5000


def test_a_fork_proof_alone_stops_the_forkers_spending() -> None:
    one, other = Chain(BOB).alloc(ALICE), Chain(BOB).alloc(CAROL)
    proof = prove_fork(one, other)
    assert proof is not None
    assert fold([proof], NET) == {BOB.key: Account(forked=True)}
    refusal = accounts_of([proof]).refusal(BOB.key, DAVE.key, 1, line=100)
    assert refusal == "it forked its chain"


def test_a_key_is_retired_by_itself_its_owner_or_its_recovery_key_and_nobody_else() -> None:
    node, recovery = Party.named("node"), Party.named("recovery")
    delegated = Chain(ALICE).keyop(Op.DELEGATE, node)
    own = Chain(node)
    known = [delegated, own.keyop(Op.RECOVERY, node, sha256(recovery.key).digest())]
    others = [(Chain(who), who is not BOB) for who in (ALICE, recovery, BOB)]
    for revoker, retired in [(own, True), *others]:
        revoke = revoker.keyop(Op.REVOKE, node)
        for order in ([*known, revoke], [revoke, *known]):
            accounts = accounts_of(order)
            assert accounts.account(node.key).retired is retired
            assert (accounts.refusal(node.key, DAVE.key, 0) == "its key is retired") is retired
            assert accounts.authority.owners(node.key) == {ALICE.key}
    revoke = Chain(recovery).keyop(Op.REVOKE, node)
    assert not accounts_of([revoke, delegated]).account(node.key).retired


def test_a_rotated_key_has_an_heir_and_keeps_its_debts() -> None:
    heir = Party.named("heir")
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    entries = [alloc, bob.settle(ALICE, alloc), bob.keyop(Op.ROTATE, heir)]
    accounts = accounts_of(entries)
    assert accounts.authority.heirs(BOB.key) == {heir.key}
    kept = Account(posted_debit=3540, retired=True, heirs=frozenset((heir.key,)))
    assert accounts.account(BOB.key) == kept
    assert accounts.account(heir.key) == Account()


def rotated(*parties: Party) -> list[Entry]:
    """Each owes ALICE 3540 and has 5040 reserved, and is rotated to the next."""
    entries: list[Entry] = []
    head = Chain(parties[0]).head
    for party, heir in pairwise(parties):
        chain = Chain(party, head)
        paid = chain.alloc(ALICE)
        rotate = [chain.settle(ALICE, paid), chain.alloc(ALICE), chain.keyop(Op.ROTATE, heir)]
        entries += [paid, *rotate]
        head = Head.heir(entries[-1])
    return entries


def test_rotating_does_not_shed_a_credit_line() -> None:
    accounts = accounts_of(rotated(BOB, DAVE))
    assert accounts.exposure(BOB.key, ALICE.key) == 3540 + 5040
    assert accounts.exposure(DAVE.key, ALICE.key) == 3540 + 5040
    assert accounts.exposure(DAVE.key, CAROL.key) == 0, "what is owed to another is no matter here"
    assert accounts.between(DAVE.key, ALICE.key).owed == 0, "it stays the debt of the old key"
    assert accounts.may_spend(DAVE.key, ALICE.key, 100, line=3540 + 5040 + 100)
    assert not accounts.may_spend(DAVE.key, ALICE.key, 101, line=3540 + 5040 + 100)


def test_an_heir_counts_the_debts_of_all_before_it_in_any_order() -> None:
    parties = [BOB, *(Party.named(f"heir {n}") for n in range(5))]
    entries = rotated(*parties)
    for order in (entries, entries[::-1]):
        accounts = accounts_of(order)
        owed = [accounts.exposure(party.key, ALICE.key) for party in parties]
        assert owed == [8580 * n for n in (1, 2, 3, 4, 5, 5)]


def test_a_longer_succession_than_is_followed_gets_no_credit() -> None:
    parties = [Party.named(f"heir {n}") for n in range(FOREBEARS_MAX + 2)]
    entries = rotated(*parties)
    accounts = accounts_of(entries)
    *_, last_but_one, last = (party.key for party in parties)
    assert accounts.exposure(last_but_one, ALICE.key) == 8580 * (FOREBEARS_MAX + 1)
    assert "the place of more than 64 keys" in accounts.refusal(last, ALICE.key, 0, Line.NO_LIMIT)


def test_keys_that_were_rotated_in_a_circle_are_each_counted_once() -> None:
    bob, dave = Chain(BOB), Chain(DAVE)
    one, other = bob.alloc(ALICE), dave.alloc(ALICE)
    accounts = accounts_of([one, other, bob.keyop(Op.ROTATE, DAVE), dave.keyop(Op.ROTATE, BOB)])
    assert accounts.exposure(BOB.key, ALICE.key) == 2 * 5040
    assert accounts.exposure(DAVE.key, ALICE.key) == 2 * 5040


def test_two_heirs_each_count_the_debt_and_neither_what_is_owed_to_the_old_key() -> None:
    bob, alice = Chain(BOB), Chain(ALICE)
    alloc = bob.alloc(ALICE)
    heirs = [bob.keyop(Op.ROTATE, DAVE), bob.keyop(Op.ROTATE, CAROL)]
    accounts = accounts_of([alloc, *heirs])
    assert accounts.account(BOB.key).heirs == {CAROL.key, DAVE.key}
    for heir in (CAROL, DAVE):
        assert accounts.exposure(heir.key, ALICE.key) == 5040
    accounts.add(alice.refund(alloc, 9000))
    assert accounts.exposure(BOB.key, ALICE.key) == 5040 - 9000
    for heir in (CAROL, DAVE):
        assert accounts.exposure(heir.key, ALICE.key) == 0, "or one refund would count twice"


def test_a_node_key_has_the_owners_that_it_agreed_to() -> None:
    alice, bob = Chain(ALICE), Chain(BOB)
    accounts = accounts_of([alice.keyop(Op.DELEGATE, DAVE), bob.keyop(Op.DELEGATE, DAVE)])
    assert accounts.owners(DAVE.key) == {ALICE.key, BOB.key}
    assert accounts.owners(ALICE.key) == frozenset()
