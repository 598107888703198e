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
from ledger.state import Account, fold
from ledger.store import Store

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


@some.composite
def histories(draw: some.DrawFn) -> list[Entry]:
    """Entries of several buyers, with forks, voids, gaps and allocs resolved more than once."""
    arms: list[tuple[Chain, list[tuple[Entry, Party]]]] = [(Chain(p), []) for p in PARTIES[:3]]
    entries: list[Entry] = []
    for _ in range(draw(some.integers(0, 12))):
        chain, allocs = draw(some.sampled_from(arms))
        verb = draw(some.sampled_from(("alloc", "alloc", "settle", "settle", "void", "fork")))
        if verb == "fork":
            arms.append((chain.fork(), list(allocs)))
        elif verb == "alloc" or not allocs:
            seller = draw(some.sampled_from([p for p in PARTIES if p != chain.buyer]))
            allocs.append((chain.alloc(seller, price=draw(some.integers(0, 9))), seller))
            entries.append(allocs[-1][0])
        else:
            alloc, seller = allocs.pop(draw(some.integers(0, len(allocs) - 1)))
            if verb == "void":
                entries.append(chain.void(seller, alloc))
            else:
                fuel = draw(some.integers(0, 10**10))
                entries.append(chain.settle(seller, alloc, fuel=fuel))
    return draw(some.lists(some.sampled_from(entries))) if entries else []


def plain_fold(entries: list[Entry]) -> dict[bytes, Account]:
    """The same from the words of the rule, over the whole set at once."""
    unique = {entry.id: entry.content for entry in entries}
    totals = {key: [0, 0, 0] for body in unique.values() for key in (body.author, body.peer)}
    counted = {}
    for ref in {body.deal.ref for body in unique.values() if body.deal.ref}:
        rivals = [(id, body) for id, body in unique.items() if body.deal.ref == ref]
        settles = [rival for rival in rivals if rival[1].kind is Kind.SETTLE]
        best = min(settles or rivals, key=lambda rival: (-rival[1].deal.amount, rival[0]))
        counted[ref] = best[1]
    for body in counted.values():
        totals[body.author][0] += body.deal.amount
        totals[body.peer][1] += body.deal.amount
    for id, body in unique.items():
        if body.kind is Kind.ALLOC and id not in counted:
            totals[body.author][2] += body.deal.reserve
    places = [(body.author, body.seq) for body in unique.values()]
    forked = {author for author, seq in places if places.count((author, seq)) > 1}
    return {key: Account(*total, forked=key in forked) for key, total in totals.items()}


@settings(max_examples=150, deadline=None)
@given(histories(), some.randoms(use_true_random=False))
def test_the_fold_is_what_the_rule_says_in_any_order(
    entries: list[Entry], dice: random.Random
) -> None:
    expected = plain_fold(entries)
    again = entries + [entry for entry in entries if dice.random() < 0.5]
    dice.shuffle(again)
    accounts = fold(again, NET)
    assert accounts == expected
    assert sum(a.posted_debit - a.posted_credit for a in accounts.values()) == 0
    assert all(a.pending_debit >= 0 for a in accounts.values())


@settings(max_examples=100, deadline=None)
@given(histories(), histories())
def test_more_entries_never_take_back_a_fork(some_entries: list[Entry], more: list[Entry]) -> None:
    before, after = fold(some_entries, NET), fold(some_entries + more, NET)
    assert before.keys() <= after.keys()
    assert all(after[key].forked for key, account in before.items() if account.forked)


@settings(max_examples=60, deadline=None)
@given(histories(), histories())
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


@settings(max_examples=60, deadline=None)
@given(histories())
def test_an_audit_finds_every_fork_and_no_bad_signature(entries: list[Entry]) -> None:
    found = list(findings(entries))
    forked = {key for key, account in fold(entries, NET).items() if account.forked}
    by_id = {entry.id: entry.content.author for entry in entries}
    assert {by_id[f.entry_id] for f in found if f.check == "fork"} == forked
    assert all(f.is_good for f in found if f.check in ("signatures", "amount", "balance"))
