"""Laws of merging and of sync, on the real store, for any histories whatever.

MESH_LEDGER_EXAMPLES=100000 runs each law that many times (default: 200).
"""

from __future__ import annotations

import os
import random
from itertools import pairwise

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from ledger_deals import ALICE, BOB, CAROL, DAVE, NET, WALL_MS, Chain
from ledger_replicas import BOTH, close_all, held, ids, in_memory, replica, synced

from ledger.glance import Glance
from ledger.merge import Merger
from ledger.model import Entry
from ledger.state import fold
from ledger.store import Store

EXAMPLES = int(os.environ.get("MESH_LEDGER_EXAMPLES", "200"))
laws = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
few = settings(laws, max_examples=max(1, EXAMPLES // 4))


def _world() -> list[Entry]:
    """Chains with settled, void and doubly resolved deals, forks at several places, and rivals."""
    world: list[Entry] = []
    for buyer, seller, other in ((BOB, ALICE, CAROL), (CAROL, DAVE, BOB), (DAVE, BOB, ALICE)):
        chain = Chain(buyer)
        first = chain.alloc(seller)
        early = chain.fork()
        world += [first, chain.settle(seller, first, fuel=10**9), early.void(seller, first)]
        second = chain.alloc(other, price=7)
        late = chain.fork()
        world += [second, chain.void(other, second), late.settle(other, second)]
        world += [chain.alloc(seller), late.alloc(seller, price=1), early.alloc(other, price=2)]
    return world


WORLD = _world()
# Signing is dear, so all examples draw from one world: any part of it, so with any gaps.
histories = some.lists(some.sampled_from(WORLD), unique=True)
orders = some.randoms(use_true_random=False)


def state(store: Store) -> tuple[object, ...]:
    """All that two equal replicas agree on, the signatures kept included."""
    entries = frozenset(store.entries())
    return entries, store.total(), sorted(map(repr, store.holdings())), fold(entries, NET)


def resigned(entry: Entry, first_byte: int) -> Entry:
    """The same entry under other bytes for a signature: the store does not ask who signed."""
    return Entry(entry.body, bytes([first_byte]) + entry.sig[1:])


@laws
@given(histories, histories)
def test_merging_commutes_and_is_idempotent(ours: list[Entry], theirs: list[Entry]) -> None:
    one, other = in_memory(ours, theirs), in_memory(theirs, ours, theirs, ours)
    assert state(one) == state(other)
    close_all()


@laws
@given(histories, histories, histories, some.sampled_from((0, 255)))
def test_merging_associates(a: list[Entry], b: list[Entry], c: list[Entry], byte: int) -> None:
    again = [resigned(entry, byte) for entry in a]
    left = in_memory(in_memory(a, b).entries(), c, again)
    right = in_memory(again, a, in_memory(b, c).entries())
    assert state(left) == state(right)
    close_all()


@laws
@given(histories, orders)
def test_no_order_batch_or_duplicate_changes_the_result(
    entries: list[Entry], dice: random.Random
) -> None:
    again = entries + [entry for entry in entries if dice.random() < 0.4]
    dice.shuffle(again)
    batches = []
    while again:
        size = dice.randrange(1, 5)
        batches.append(again[:size])
        again = again[size:]
    assert state(in_memory(*batches)) == state(in_memory(entries))
    close_all()


@laws
@given(histories, histories)
def test_debts_forks_and_credits_never_shrink(ours: list[Entry], more: list[Entry]) -> None:
    before = fold(in_memory(ours).entries(), NET)
    after = fold(in_memory(ours, more).entries(), NET)
    for key, account in before.items():
        assert after[key].posted_debit >= account.posted_debit
        assert after[key].posted_credit >= account.posted_credit
        assert after[key].forked >= account.forked
    assert sum(a.posted_debit - a.posted_credit for a in after.values()) == 0
    close_all()


@laws
@given(histories, orders)
def test_a_cold_start_checked_later_is_a_full_one(
    entries: list[Entry], dice: random.Random
) -> None:
    pile = entries + [entry for entry in entries if dice.random() < 0.2]
    pile.sort(key=lambda entry: (entry.content.author, entry.content.seq, dice.random()))
    store, full = in_memory(), in_memory(entries)
    merger = Merger(store, spread=map)
    merger.merge_cold([entry.encode() for entry in pile], WALL_MS)
    assert store.total() == full.total()
    assert sorted(map(repr, store.holdings())) == sorted(map(repr, full.holdings()))
    merger.check(1000)
    assert state(store) == state(full)
    close_all()


@laws
@given(histories, histories, some.booleans())
def test_any_two_stores_converge_to_equal_digests(
    ours: list[Entry], theirs: list[Entry], cold: bool
) -> None:
    one, other = replica(ours), replica(theirs)

    async def talk() -> None:
        first, _ = await synced(one, other, BOTH, cold=cold)
        assert first.withheld == first.refused == 0
        second, _ = await synced(one, other)
        assert second.is_equal

    trio.run(talk)
    assert one.merger.store.total() == other.merger.store.total()
    one.merger.check(1000)
    assert ids(one) == ids(other) == {entry.id for entry in ours + theirs}
    assert held(one) == held(other)
    close_all()


@few
@given(some.lists(histories, min_size=3, max_size=4), orders)
def test_partitions_heal_whoever_talks_to_whom(
    parts: list[list[Entry]], dice: random.Random
) -> None:
    replicas = [replica(part) for part in parts]

    async def gossip() -> None:
        for _ in range(2):
            dice.shuffle(replicas)
            for one, other in [*pairwise(replicas), *pairwise(replicas[::-1])]:
                await synced(one, other)

    trio.run(gossip)
    assert len({one.merger.store.total() for one in replicas}) == 1
    assert ids(replicas[0]) == {entry.id for part in parts for entry in part}
    close_all()


@laws
@given(some.sampled_from(WORLD), some.data())
def test_a_glance_reads_what_strict_decoding_reads(entry: Entry, data: some.DataObject) -> None:
    glance = Glance.decode(entry.encode())
    body = entry.content
    assert (glance.id, glance.key) == (entry.id, (body.author, body.net))
    assert (glance.seq, glance.prev, glance.hlc) == (body.seq, body.prev, body.hlc)
    assert glance.entry() == entry
