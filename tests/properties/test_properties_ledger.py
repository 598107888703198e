"""Laws of the ledger, for any entries whatever."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from ledger_deals import ALICE, BOB, CAROL, DAVE, NET, Chain, Party

from ledger.audit import findings
from ledger.chain import check_entry
from ledger.codec import ENTRY_MAX, UINT_MAX, Value, pack, unpack
from ledger.errors import BadEntry
from ledger.model import Entry, Kind
from ledger.state import Account, Accounts, fold
from ledger.statements import Op, Refund
from ledger.store import Store
from ledger.validity import fork_of, prove_fork

PARTIES = (ALICE, BOB, CAROL, DAVE)

texts = some.text(max_size=60).map(lambda text: unicodedata.normalize("NFC", text))
values: some.SearchStrategy[Value] = some.recursive(
    some.integers(0, UINT_MAX) | some.binary(max_size=300) | texts,
    lambda inner: some.lists(inner, max_size=20).map(tuple),
    max_leaves=20,
)


def depth(value: Value) -> int:
    return 1 + max(map(depth, value), default=0) if type(value) is tuple else 0


@given(values.filter(lambda value: depth(value) <= 8))
def test_a_value_comes_back_from_its_bytes(value: Value) -> None:
    data = pack(value)
    if len(data) <= ENTRY_MAX:
        assert unpack(data, ENTRY_MAX) == value


@settings(max_examples=500)
@given(some.binary(max_size=200))
def test_bytes_are_refused_or_are_the_only_encoding(data: bytes) -> None:
    try:
        value = unpack(data, ENTRY_MAX)
    except BadEntry:
        return
    assert pack(value) == data


def valid(data: bytes) -> bool:
    try:
        check_entry(Entry.decode(data))
    except BadEntry:
        return False
    return True


SETTLED = Chain(BOB)
ALLOC = SETTLED.alloc(ALICE).encode()
SETTLE = SETTLED.settle(ALICE, Entry.decode(ALLOC)).encode()


@settings(max_examples=400)
@given(some.sampled_from((ALLOC, SETTLE)), some.data(), some.integers(1, 255))
def test_no_entry_survives_another_byte(entry: bytes, data: some.DataObject, mask: int) -> None:
    place = data.draw(some.integers(0, len(entry) - 1))
    changed = bytearray(entry)
    changed[place] ^= mask
    assert valid(entry)
    assert not valid(bytes(changed))


@given(some.sampled_from((ALLOC, SETTLE)), some.data())
def test_no_entry_survives_a_cut_or_an_addition(entry: bytes, data: some.DataObject) -> None:
    place = data.draw(some.integers(0, len(entry) - 1))
    byte = data.draw(some.binary(min_size=1, max_size=1))
    assert not valid(entry[:place])
    assert not valid(entry[:place] + entry[place + 1 :])
    assert not valid(entry[:place] + byte + entry[place:])


DEALS = ("alloc", "alloc", "settle", "settle", "void", "fork")
ALL = (
    *DEALS,
    "use",
    "claim",
    "claim",
    "dispute",
    "rule",
    "rule",
    "refund",
    "line",
    "revoke",
    "rotate",
)


@some.composite
def histories(draw: some.DrawFn, verbs: tuple[str, ...] = DEALS) -> list[Entry]:
    """Entries of several authors, with forks, voids, gaps and allocs resolved more than once.

    The arbiter of some deals is Dave; whoever sells also claims, refunds and sets lines.
    """
    arms: list[tuple[Chain, list[tuple[Entry, Party]]]] = [(Chain(p), []) for p in PARTIES]
    chains = {arm[0].buyer.key: arm[0] for arm in arms}
    allocs: list[tuple[Entry, Party]] = []
    entries: list[Entry] = []
    for _ in range(draw(some.integers(0, 16))):
        chain, mine = draw(some.sampled_from(arms[:3] + arms[4:]))
        verb = draw(some.sampled_from(verbs))
        other = draw(some.sampled_from([p for p in PARTIES[:3] if p != chain.buyer]))
        if verb == "fork":
            arms.append((chain.fork(), list(mine)))
        elif verb == "line":
            entries.append(chain.line(other, draw(some.integers(0, 10**4))))
        elif verb == "revoke":
            entries.append(chain.keyop(Op.REVOKE, draw(some.sampled_from(PARTIES))))
        elif verb == "rotate":
            entries.append(chain.keyop(Op.ROTATE, other))
        elif verb == "alloc" or not mine:
            arbiter = draw(some.sampled_from((DAVE.key, DAVE.key, b"")))
            price = draw(some.integers(0, 9))
            mine.append((chain.alloc(other, price=price, arbiter=arbiter), other))
            allocs.append(mine[-1])
            entries.append(mine[-1][0])
        elif verb in ("settle", "void"):
            alloc, seller = mine.pop(draw(some.integers(0, len(mine) - 1)))
            if verb == "void":
                entries.append(chain.void(seller, alloc))
            else:
                fuel = draw(some.integers(0, 10**10))
                entries.append(chain.settle(seller, alloc, fuel=fuel))
        else:
            alloc, seller = draw(some.sampled_from(allocs))
            fuel = draw(some.integers(0, 10**10))
            if verb == "use":
                alloc, seller = draw(some.sampled_from(mine))
                entries.append(chain.use(seller, alloc, fuel=fuel))
            elif verb == "claim":
                entries.append(chains[seller.key].claim(alloc, fuel=fuel))
            elif verb == "refund":
                entries.append(chains[seller.key].refund(alloc, draw(some.integers(1, 99))))
            elif verb == "dispute":
                entries.append(chains[alloc.content.author].dispute(alloc, seller))
            elif alloc.content.deal.arbiter:
                amount = draw(some.integers(0, alloc.content.deal.reserve))
                entries.append(chains[DAVE.key].rule(alloc, amount))
    if verbs == ALL and draw(some.booleans()):
        twins = [(a, b) for a in entries for b in entries if is_fork(a, b)]
        entries += [proof for a, b in twins[:1] if (proof := prove_fork(a, b))]
    if not entries or draw(some.booleans()):
        return entries
    return draw(some.lists(some.sampled_from(entries)))


def is_fork(a: Entry, b: Entry) -> bool:
    one, other = a.content, b.content
    return a != b and one.author != b"" and (one.author, one.seq) == (other.author, other.seq)


def plain_fold(entries: list[Entry]) -> dict[bytes, Account]:
    """The same from the words of the rule, over the whole set at once."""
    unique = {entry.id: entry.content for entry in entries}
    proofs = [body for body in unique.values() if body.kind is Kind.FORKPROOF]
    forked = {fork_of(body)[1].content.author for body in proofs}
    chained = {id: body for id, body in unique.items() if body.kind is not Kind.FORKPROOF}
    keys = {key for body in chained.values() for key in (body.author, body.peer)} | forked
    totals = {key: [0, 0, 0, 0] for key in keys - {b""}}
    allocs = {id: body for id, body in chained.items() if body.kind is Kind.ALLOC}
    rank = [Kind.RULING, Kind.SETTLE, Kind.VOID, Kind.CLAIM]
    counted = {}
    for ref in {body.ref for body in chained.values() if body.kind in rank}:
        rivals = [
            (rank.index(body.kind), -body.deal.amount, id, body)
            for id, body in chained.items()
            if body.kind in rank
            and body.ref == ref
            # one side's word needs the deal that both signed
            and (body.kind in (Kind.SETTLE, Kind.VOID) or ref in allocs)
        ]
        if rivals:
            counted[ref] = min(rivals)[-1]
    for ref, body in counted.items():
        if body.kind is Kind.CLAIM:
            totals[body.deal.buyer][3] += body.deal.amount
            totals[body.deal.buyer][2] += allocs[ref].deal.reserve
        else:
            totals[body.deal.buyer][0] += body.deal.amount
            totals[body.deal.seller][1] += body.deal.amount
    for id, body in allocs.items():
        if id not in counted:
            totals[body.author][2] += body.deal.reserve
    for body in chained.values():
        if body.kind is Kind.REFUND:
            totals[body.author][0] += Refund.decode(body.terms).amount
            totals[body.peer][1] += Refund.decode(body.terms).amount
    places = [(body.author, body.seq) for body in chained.values()]
    forked |= {author for author, seq in places if places.count((author, seq)) > 1}
    keyops = [body for body in chained.values() if body.kind is Kind.KEYOP]
    rotates = plain_rotates(entries)
    retired = {body.peer for body in keyops if body.author == body.peer}
    retired |= {owner for owner, _ in rotates}
    heirs = {key: frozenset(heir for owner, heir in rotates if owner == key) for key in totals}
    return {
        key: Account(*sums[:3], key in forked, sums[3], key in retired, heirs[key])
        for key, sums in totals.items()
    }


def plain_rotates(entries: list[Entry]) -> set[tuple[bytes, bytes]]:
    """(owner, heir); the other KEYOPs here are REVOKEs, which no subject signs."""
    bodies = [entry.content for entry in entries]
    return {(b.author, b.peer) for b in bodies if b.kind is Kind.KEYOP and b.peer_sig}


def plain_exposure(whole: Accounts, entries: list[Entry], buyer: bytes, seller: bytes) -> int:
    """What a key exposes its seller to by itself, and by those in whose place it stands."""

    def alone(key: bytes) -> int:
        there, back = whole.between(key, seller), whole.between(seller, key)
        return there.owed + there.reserved - there.refunded - back.owed + back.refunded

    line = {buyer}
    for _ in PARTIES:
        line |= {owner for owner, heir in plain_rotates(entries) if heir in line}
    return alone(buyer) + sum(max(0, alone(key)) for key in line - {buyer})


@settings(max_examples=250, deadline=None)
@given(histories(ALL), some.randoms(use_true_random=False))
def test_the_fold_is_what_the_rule_says_in_any_order(
    entries: list[Entry], dice: random.Random
) -> None:
    expected = plain_fold(entries)
    again = entries + [entry for entry in entries if dice.random() < 0.5]
    dice.shuffle(again)
    accounts = fold(again, NET)
    assert accounts == expected
    assert sum(a.posted_debit - a.posted_credit for a in accounts.values()) == 0
    assert all(a.pending_debit >= a.claimed_debit >= 0 for a in accounts.values())


@settings(max_examples=100, deadline=None)
@given(histories(ALL), some.sampled_from(PARTIES), some.sampled_from(PARTIES))
def test_exposure_is_what_each_pair_owes_and_reserves(
    entries: list[Entry], buyer: Party, seller: Party
) -> None:
    whole = Accounts(NET)
    for entry in entries:
        whole.add(entry)
    exposure = whole.exposure(buyer.key, seller.key)
    assert exposure == plain_exposure(whole, entries, buyer.key, seller.key)
    account = whole.account(buyer.key)
    pairs = [whole.between(buyer.key, other.key) for other in PARTIES]
    assert sum(pair.reserved for pair in pairs) == account.pending_debit
    assert sum(pair.claimed for pair in pairs) == account.claimed_debit
    refunds = sum(whole.between(other.key, buyer.key).refunded for other in PARTIES)
    assert sum(pair.owed for pair in pairs) + refunds == account.posted_debit
    room = whole.line(buyer.key, seller.key) - exposure
    if not account.forked and not account.retired:
        assert whole.may_spend(buyer.key, seller.key, room) is True
    assert whole.may_spend(buyer.key, seller.key, room + 1) is False


@settings(max_examples=100, deadline=None)
@given(histories(ALL), histories(ALL))
def test_more_entries_never_take_back_a_fork(some_entries: list[Entry], more: list[Entry]) -> None:
    before, after = fold(some_entries, NET), fold(some_entries + more, NET)
    assert before.keys() <= after.keys()
    assert all(after[key].forked for key, account in before.items() if account.forked)


@settings(max_examples=60, deadline=None)
@given(histories(ALL), histories(ALL))
def test_union_of_stores_is_the_same_from_either_side(
    tmp_path_factory: pytest.TempPathFactory, ours: list[Entry], theirs: list[Entry]
) -> None:
    accounts = []
    for first, second in ((ours, theirs), (theirs, ours)):
        with Store.open(Path(":memory:")) as store:
            store.add(first)
            assert store.add(second) == len(set(ours + theirs)) - len(set(first))
            assert store.add(first + second) == 0
            assert store.scan() == len(set(ours + theirs))
            accounts.append(fold(store.entries(), NET))
    assert accounts[0] == accounts[1]


def author_of(entry: Entry) -> bytes:
    body = entry.content
    return fork_of(body)[0].content.author if body.kind is Kind.FORKPROOF else body.author


@settings(max_examples=60, deadline=None)
@given(histories(ALL))
def test_an_audit_finds_every_fork_and_no_bad_signature(entries: list[Entry]) -> None:
    found = list(findings(entries))
    forked = {key for key, account in fold(entries, NET).items() if account.forked}
    by_id = {entry.id: author_of(entry) for entry in entries}
    assert {by_id[f.entry_id] for f in found if f.check == "fork"} == forked
    assert all(f.is_good for f in found if f.check in ("signatures", "amount", "balance"))
