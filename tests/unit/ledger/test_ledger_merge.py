"""Merging: what is good gets in once, whatever else comes with it; what is not, is counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from ledger_deals import ALICE, BOB, CAROL, DAVE, NET, WALL_MS, Chain

from ledger import keys, merge
from ledger.codec import ENTRY_MAX
from ledger.keys import terms_message
from ledger.merge import CHUNK, EARLY_MAX, FUTURE_MAX_MS, Merged, Merger
from ledger.model import Entry
from ledger.store import Store


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.open(Path(":memory:")) as store:
        yield store


@pytest.fixture
def merger(store: Store) -> Merger:
    return Merger(store, spread=map)


def settled(deals: int, buyer: Chain | None = None) -> list[Entry]:
    chain, entries = buyer or Chain(BOB), []
    for _ in range(deals):
        alloc = chain.alloc(ALICE)
        entries += [alloc, chain.settle(ALICE, alloc)]
    return entries


def wires(entries: list[Entry]) -> list[bytes]:
    return [entry.encode() for entry in entries]


def resigned(entry: Entry, **changes: object) -> Entry:
    """Bob's entry with another body, which he signs."""
    body = evolve(entry.content, **changes)  # type: ignore[arg-type]
    return Entry(body.encode(), BOB.sign(keys.entry_message(body.id)))


def forged(entry: Entry) -> Entry:
    return Entry(entry.body, bytes([entry.sig[0] ^ 1]) + entry.sig[1:])


def test_good_entries_get_in_and_are_told_once(store: Store, merger: Merger) -> None:
    entries = settled(3)
    merged = merger.merge(wires(entries + entries), WALL_MS)
    assert merged == Merged(entries=tuple(entries), known=6)
    assert list(store.entries()) == entries
    assert merger.merge(wires(entries), WALL_MS) == Merged(known=6)


def test_threads_check_signatures_and_keep_the_order(store: Store) -> None:
    chain = Chain(BOB)
    entries = [chain.alloc(ALICE) for _ in range(2 * CHUNK + 5)]
    bad = {3, CHUNK, 2 * CHUNK + 1}
    mixed = [forged(entry) if at in bad else entry for at, entry in enumerate(entries)]
    with Merger(store) as merger:
        merged = merger.merge(wires(mixed), WALL_MS)
    assert merged.refused == len(bad)
    assert merged.entries == tuple(entry for at, entry in enumerate(entries) if at not in bad)


def test_whatever_is_wrong_is_refused_and_the_rest_gets_in(store: Store, merger: Merger) -> None:
    alloc, settle = settled(1)
    other_terms = evolve(settle.content.deal, amount=1).encode()
    wrong = {
        "too long": alloc.encode() + bytes(ENTRY_MAX),
        "garbage": b"\xc0garbage",
        "empty": b"",
        "no entry": b"\x92\x01\x02",
        "not canonical": b"\xdc\x00\x02" + alloc.encode()[1:],
        "a short signature": Entry(alloc.body, alloc.sig[:63]).encode(),
        "another's signature": forged(alloc).encode(),
        "not the seller's": resigned(alloc, peer_sig=settle.content.peer_sig).encode(),
        "not the bill": resigned(
            settle, terms=other_terms, peer_sig=ALICE.sign(terms_message(other_terms))
        ).encode(),
        "a key of small order": resigned(alloc, peer=bytes(32)).encode(),
    }
    for number, (reason, wire) in enumerate(wrong.items(), 1):
        assert merger.merge([wire], WALL_MS) == Merged(refused=1), reason
        assert merger.statistics()["refused"] == number
    assert merger.merge([*wrong.values(), alloc.encode()], WALL_MS).entries == (alloc,)
    assert store.total().count == 1


def test_what_is_known_costs_no_signature(store: Store) -> None:
    checks = []

    def verify(key: bytes, message: bytes, signature: bytes) -> bool:
        checks.append(key)
        return keys.verify(key, message, signature)

    merger = Merger(store, spread=map, verify=verify)
    entries = settled(2)
    for _ in range(3):
        merger.merge(wires(entries), WALL_MS)
    assert len(checks) == 2 * len(entries)


def test_an_entry_from_the_future_waits_for_its_time(store: Store, merger: Merger) -> None:
    alloc, settle = settled(1)
    now = WALL_MS - FUTURE_MAX_MS - 1
    assert merger.merge(wires([alloc, settle]), now) == Merged(early=2)
    assert merger.merge(wires([alloc, settle]), now) == Merged(known=2)
    assert merger.statistics()["waiting"] == 2
    assert merger.release(now) == Merged()
    assert merger.release(now + 1).entries == (alloc, settle)
    assert merger.statistics()["waiting"] == 0
    assert store.total().count == 2


def test_the_queue_of_the_future_is_bounded_and_keeps_the_nearest(
    store: Store, merger: Merger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "EARLY_MAX", 3)
    chain = Chain(BOB)
    entries = [chain.alloc(ALICE) for _ in range(5)]
    assert merger.merge(wires(entries), 0).early == 5
    assert (merger.statistics()["waiting"], merger.statistics()["early_dropped"]) == (3, 2)
    assert merger.release(WALL_MS).entries == tuple(entries[:3])
    assert EARLY_MAX > 3


def test_both_arms_of_a_fork_get_in_and_then_it_has_a_budget(
    store: Store, merger: Merger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "FORKED_PER_HOUR", 2)
    chain = Chain(BOB)
    arms = [chain.fork().alloc(seller) for seller in (ALICE, CAROL, DAVE)]
    more = [chain.alloc(ALICE) for _ in range(3)]
    assert merger.merge(wires(arms[:1]), WALL_MS).entries == (arms[0],)
    assert merger.merge(wires(arms[1:2]), WALL_MS).entries == (arms[1],)
    assert store.holding(BOB.key, NET).forked
    merged = merger.merge(wires(arms[2:] + more), WALL_MS)
    assert (len(merged.entries), merged.over_budget) == (2, 1)
    assert merger.merge(wires(settled(1, Chain(CAROL))), WALL_MS).over_budget == 0
    later = merger.merge(wires(more), WALL_MS + 3_600_000)
    assert later.over_budget == 0


def test_a_cold_start_checks_one_signature_a_run(store: Store) -> None:
    checks = []

    def verify(key: bytes, message: bytes, signature: bytes) -> bool:
        checks.append(key)
        return keys.verify(key, message, signature)

    merger = Merger(store, spread=map, verify=verify)
    bob, carol = settled(10), settled(5, Chain(CAROL))
    merged = merger.merge_cold(wires(bob + carol), WALL_MS)
    assert merged == Merged(entries=(bob[-1], carol[-1]), vouched=28)
    assert len(checks) == 4
    assert list(store.entries()) == [bob[-1], carol[-1]]
    assert store.holding(BOB.key, NET).height == 20
    assert merger.merge_cold(wires(bob + carol), WALL_MS) == Merged(known=30)
    assert set(merger.check(1000).entries) == set(bob[:-1] + carol[:-1])
    assert set(store.entries()) == set(bob + carol)
    assert merger.check(1000) == Merged()
    assert store.scan() == 30


def test_a_run_whose_last_signature_is_false_is_refused_whole(store: Store, merger: Merger) -> None:
    entries = settled(3)
    merged = merger.merge_cold(wires([*entries[:-1], forged(entries[-1])]), WALL_MS)
    assert merged == Merged(refused=6)
    assert store.total().count == 0


def test_a_run_is_only_what_links(store: Store, merger: Merger) -> None:
    bob, carol = settled(3), settled(1, Chain(CAROL))
    shuffled = [bob[0], bob[2], bob[1], carol[0], bob[3], bob[4], bob[5], carol[1]]
    merged = merger.merge_cold(wires(shuffled), WALL_MS)
    assert merged == Merged(entries=(*shuffled[:4], bob[5], carol[1]), vouched=2)


def test_a_liar_is_found_out_and_not_taken_at_its_word_again(store: Store, merger: Merger) -> None:
    """The author of a chain signs for debts to a seller that never agreed."""
    alloc = Chain(BOB).alloc(ALICE)
    lie = resigned(alloc, peer_sig=bytes(64))
    second = resigned(alloc, seq=1, prev=lie.id, hlc=alloc.content.hlc + 1)
    third = resigned(alloc, seq=2, prev=second.id, hlc=alloc.content.hlc + 2)
    merged = merger.merge_cold(wires([lie, second]), WALL_MS)
    assert merged == Merged(entries=(second,), vouched=1)
    assert merger.check(10) == Merged(refused=1)
    assert store.holding(BOB.key, NET).height == 0
    assert [entry.id for entry in store.entries()] == [second.id]
    again = merger.merge_cold(wires([lie, second, third]), WALL_MS)
    assert again == Merged(entries=(third,), known=1, refused=1)


def test_a_signature_that_was_changed_on_the_way_costs_only_the_entry(
    store: Store, merger: Merger
) -> None:
    entries = settled(2)
    merger.merge_cold(wires([forged(entries[0]), *entries[1:]]), WALL_MS)
    assert merger.check(10).refused == 1
    assert merger.merge(wires(entries), WALL_MS).entries == (entries[0],)
    assert store.holding(BOB.key, NET).height == 4


def test_garbage_that_an_author_vouches_for_is_never_read(store: Store, merger: Merger) -> None:
    alloc = Chain(BOB).alloc(ALICE)
    garbage = resigned(alloc, terms=b"garbage")
    last = resigned(alloc, seq=1, prev=garbage.id, hlc=alloc.content.hlc + 1)
    assert merger.merge_cold(wires([garbage, last]), WALL_MS).vouched == 1
    assert [entry.id for entry in store.entries()] == [last.id]
    assert merger.check(10) == Merged(refused=1)
    assert store.scan() == 1


def test_a_cold_run_from_the_future_waits_too(store: Store, merger: Merger) -> None:
    entries = settled(2)
    assert merger.merge_cold(wires(entries), 0) == Merged(early=4)
    assert store.total().count == 0
