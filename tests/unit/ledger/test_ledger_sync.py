"""Sync: two replicas become equal for few bytes, and a peer that lies costs no more than that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
from attrs import evolve
from ledger_deals import ALICE, BOB, CAROL, DAVE, NET, WALL_MS, Chain, Party
from ledger_replicas import BOTH, close_all, held, ids, replica, synced
from trio.testing import memory_stream_pair

from ledger import exchange, sync
from ledger.chain import Head
from ledger.holdings import Total
from ledger.model import Entry
from ledger.sync import EXCHANGES_MAX, PIECES_MAX, Budget, OverBudget, Synced, serve
from ledger.turns import PIECE_MAX, Hello, Piece, Scope, SyncError


@pytest.fixture(autouse=True)
def _closing() -> Iterator[None]:
    yield
    close_all()


def settled(buyer: Party, deals: int, after: Head | None = None) -> list[Entry]:
    seller = ALICE if buyer is not ALICE else BOB
    chain, entries = Chain(buyer, after), []
    for _ in range(deals):
        alloc = chain.alloc(seller)
        entries += [alloc, chain.settle(seller, alloc)]
    return entries


async def test_equal_replicas_find_out_for_56_bytes() -> None:
    entries = settled(BOB, 2)
    mine, theirs = await synced(replica(entries), replica(entries))
    assert mine.is_equal
    assert theirs.is_equal
    assert (mine.bytes_out, mine.bytes_in, mine.turns) == (41, 15, 1)


@pytest.mark.parametrize("scopes", [(Scope.HEADS,), (Scope.IDS,), BOTH])
async def test_both_get_what_they_lack(scopes: tuple[Scope, ...]) -> None:
    bob, carol, dave = (settled(party, 4) for party in (BOB, CAROL, DAVE))
    one, other = replica(bob + carol[:4]), replica(bob[:2] + carol + dave)
    mine, theirs = await synced(one, other, scopes)
    assert held(one) == held(other) == {*bob, *carol, *dave}
    assert (mine.new, mine.sent) == (theirs.sent, theirs.new) == (12, 6)
    assert mine.withheld == theirs.withheld == 0
    assert (await synced(one, other))[0].is_equal


@pytest.mark.parametrize("scope", Scope)
async def test_an_empty_replica_gets_everything_and_gives_everything(scope: Scope) -> None:
    bob = settled(BOB, 5)
    for one, other in ((replica(bob), replica()), (replica(), replica(bob))):
        await synced(one, other, (scope,))
        assert held(one) == held(other) == set(bob)


async def test_missing_entries_come_in_three_round_trips() -> None:
    """Of many chains a few have grown: root, two splits and a list, what was missing."""
    parties = [Party.named(str(number)) for number in range(700)]
    common = [Chain(party).alloc(ALICE) for party in parties]
    grown = [
        e for first in common[:5] for e in settled(party_of(first, parties), 8, Head.after(first))
    ]
    one, other = replica(common), replica(common + grown)
    mine, _ = await synced(one, other, (Scope.HEADS,))
    assert mine.new == len(grown)
    assert mine.turns <= 4  # the last of ours says that there is nothing more
    payload = sum(len(entry.encode()) for entry in grown)
    assert mine.bytes_in + mine.bytes_out - payload < 5000


def party_of(entry: Entry, parties: list[Party]) -> Party:
    return next(party for party in parties if party.key == entry.content.author)


async def test_the_arms_of_a_fork_are_exchanged_by_ids() -> None:
    chain = Chain(BOB)
    common = [chain.alloc(ALICE)]
    arms = [chain.fork().alloc(seller) for seller in (ALICE, CAROL)]
    one, other = replica([*common, arms[0]]), replica([*common, arms[1]])
    await synced(one, other, (Scope.HEADS,))
    mine, _ = await synced(one, other)
    assert not mine.is_equal
    assert held(one) == held(other) == {*common, *arms}
    assert all(r.merger.store.holding(BOB.key, NET).forked for r in (one, other))
    assert (await synced(one, other))[0].is_equal


async def test_gaps_are_filled_and_what_lies_above_them_is_told() -> None:
    bob = settled(BOB, 5)
    one, other = replica(bob[:2] + bob[6:]), replica(bob[1:5])
    await synced(one, other)
    assert ids(one) == ids(other) == {entry.id for entry in bob[:5] + bob[6:]}


async def test_a_large_difference_comes_over_many_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "TURN_ENTRIES_MAX", 7)
    monkeypatch.setattr(exchange, "ENTRIES_PER_PIECE", 3)
    monkeypatch.setattr(exchange, "NOTES_PER_PIECE", 2)
    bob, carol = settled(BOB, 15), settled(CAROL, 10)
    for scope in Scope:
        one, other = replica(bob), replica(carol)
        mine, _ = await synced(one, other, (scope,))
        assert held(one) == held(other) == {*bob, *carol}
        assert mine.turns > 4


async def test_a_cold_start_takes_authors_at_their_word_until_checked() -> None:
    bob, carol = settled(BOB, 10), settled(CAROL, 10)
    one, other = replica(), replica(bob + carol)
    mine, _ = await synced(one, other, cold=True)
    assert mine.new == 40
    assert len(held(one)) == 2
    assert ids(one) == ids(other)
    assert (await synced(one, other))[0].is_equal
    one.merger.check(100)
    assert held(one) == held(other)


async def test_what_is_vouched_for_is_checked_before_it_is_passed_on() -> None:
    bob = settled(BOB, 3)
    damaged = Entry(bob[1].body, bytes(64))
    one, other = replica(), replica()
    one.merger.merge_cold([entry.encode() for entry in (bob[0], damaged, *bob[2:])], WALL_MS)
    mine, theirs = await synced(one, other, (Scope.HEADS,))
    assert (mine.sent, theirs.refused) == (5, 0)
    assert held(other) == {*bob} - {bob[1]}
    assert ids(one) == ids(other)


async def test_what_comes_from_the_future_stays_out_without_a_quarrel() -> None:
    one, other = replica(now_ms=0), replica(settled(BOB, 2))
    mine, theirs = await synced(one, other)
    assert (mine.new, mine.refused, theirs.sent) == (0, 0, 8)
    assert ids(one) == set()


# A peer that lies.

Liar = Callable[[trio.abc.Stream], Awaitable[None]]


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(4, "big") + message for message in messages)


HELLO = Hello(Scope.HEADS, bytes(32)).encode()
IDLE = Piece().encode()


async def served(data: bytes, entries: list[Entry], budget: Budget | None = None) -> Synced:
    """What our server makes of a caller that says *data* and hangs up; it must say so itself."""
    near, far = memory_stream_pair()
    server = replica(entries)
    await near.send_all(data)
    await near.send_stream.aclose()
    with trio.fail_after(30):
        try:
            return await serve(far, server, budget=budget)
        finally:
            assert held(server) == set(entries)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0\0", "hung up"),
        (b"\0\0\0\x09abc", "hung up"),
        (b"\xff\xff\xff\xff", "a message of 4294967295 bytes"),
        ((PIECE_MAX + 1).to_bytes(4, "big"), "a message of"),
        (framed(b""), "not a message"),
        (framed(b"garbage"), "not a message"),
        (framed(b"\x93\x01\x01\x01"), "not a hello"),
        (framed(b"\x93\x00\x01\xc4\x20" + bytes(32)), "version 0 where 1 is spoken"),
        (framed(b"\x93\x02\x01\xc4\x20" + bytes(32)), "version 2 where 1 is spoken"),
        (framed(b"\x93\x01\x03\xc4\x20" + bytes(32)), "not a hello"),
        (framed(HELLO), "hung up"),
        (framed(HELLO, b"\x90"), "not a piece"),
        (framed(HELLO, HELLO), "not a piece"),
        (framed(HELLO, Piece(rows=(bytes(55),)).encode()), "are not notes of 56"),
        (framed(HELLO, Piece(wants=(bytes(9),)).encode()), "are not notes of 8"),
        (framed(HELLO, Piece(rows=(b"\xff" * 56,)).encode()), "a chain from"),
        (
            framed(HELLO, Piece(fetches=(bytes(40) + b"\1" * 8 + bytes(8),)).encode()),
            "a chain from",
        ),
        (framed(HELLO, Piece(ranges=b"\xff\x07").encode()), "mode 7"),
        (framed(HELLO, Piece(ranges=b"\xff\x01" + bytes(16)).encode()), "nobody asked|no progress"),
        (framed(HELLO, Piece(entries=(b"garbage",)).encode()), "no entry"),
        (
            framed(HELLO, *[Piece(is_last=False).encode()] * (PIECES_MAX + 1)),
            "more than 128 pieces",
        ),
    ],
)
async def test_a_caller_that_talks_nonsense_is_told_off(data: bytes, reason: str) -> None:
    with pytest.raises(SyncError, match=reason):
        await served(data, settled(BOB, 1))


async def test_entries_that_nobody_asked_for_end_the_talk() -> None:
    for scope in Scope:
        hello = Hello(scope, bytes(32)).encode()
        gift = Piece(entries=tuple(entry.encode() for entry in settled(CAROL, 1))).encode()
        with pytest.raises(SyncError, match="nobody asked for"):
            await served(framed(hello, gift), settled(BOB, 1))


async def test_endless_turns_and_notes_end_at_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = settled(BOB, 1)
    want = Piece(wants=(b"a name 8",)).encode()
    with pytest.raises(OverBudget, match="more than 9 turns"):
        await served(framed(HELLO, *[want] * 20), entries, Budget(turns_max=9))
    many = Piece(is_last=False, wants=(b"a name 8",) * 60_000).encode()
    with pytest.raises(SyncError, match="more than 65536 notes"):
        await served(framed(HELLO, many, many), entries)
    with pytest.raises(OverBudget, match="more than 1000 bytes"):
        await served(framed(HELLO) + bytes(2000), entries, Budget(bytes_max=1000))
    with pytest.raises(OverBudget, match="seconds"):
        await served(framed(HELLO), entries, Budget(seconds=-1.0))
    with pytest.raises(SyncError, match=f"more than {EXCHANGES_MAX} exchanges"):
        await served(framed(*[Hello(Scope.HEADS, nothing()).encode()] * 9), [])


def nothing() -> bytes:
    return Total().fingerprint()


async def test_a_wanted_name_may_bring_one_chain_and_no_more() -> None:
    """Whoever promises a chain by name cannot bring another one along."""
    bob, carol, dave = (settled(party, 1) for party in (BOB, CAROL, DAVE))
    subject_of_liar = replica(bob)
    near, far = memory_stream_pair()

    async def lie() -> None:
        liar = sync._Talk(far, subject_of_liar, Budget())
        await liar._must_receive()
        talk = await liar._exchange(Scope.HEADS, nothing(), cold=False)
        talk.open()
        await liar._speak(talk)
        await liar._must_receive()
        wires = tuple(entry.encode() for entry in bob + carol + dave)
        await liar._send([Piece(entries=wires).encode()])

    honest = replica()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lie)
        with pytest.raises(SyncError, match="nobody asked for"):
            await sync.sync(near, honest)
    assert held(honest) == set()


async def test_what_was_promised_and_never_came_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    bob = settled(BOB, 3)
    for scope in Scope:
        honest, liar = replica(), replica(bob)
        with monkeypatch.context() as patch:
            patch.setattr(exchange.Exchange, "_serve", lambda self, most: [])
            mine, theirs = await synced(liar, honest, (scope,))
        assert theirs.withheld > 0
        assert theirs.new == 0
        assert mine.sent == 0


async def test_bad_entries_are_refused_and_too_many_end_the_talk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bob = settled(BOB, 3)
    forged = [bob[0], *(Entry(entry.body, bytes(64)) for entry in bob[1:])]
    one, liar = replica(), replica(forged)
    mine, _ = await synced(one, liar, (Scope.HEADS,))
    assert (mine.new, mine.refused) == (1, 5)
    assert held(one) == {bob[0]}
    monkeypatch.setattr(exchange, "REFUSED_MAX", 4)
    near, far = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, far, liar)
        with pytest.raises(SyncError, match="more than 4 entries"):
            await sync.sync(near, replica())
        nursery.cancel_scope.cancel()


async def test_a_silent_peer_is_the_callers_to_cancel_and_nothing_is_lost() -> None:
    near, _far = memory_stream_pair()
    bob = settled(BOB, 1)
    one = replica(bob)
    with trio.move_on_after(0.01) as scope:
        await sync.sync(near, one)
    assert scope.cancelled_caught
    assert held(one) == set(bob)


def test_a_piece_comes_back_from_its_bytes() -> None:
    piece = Piece(False, b"ranges", (bytes(56),) * 2, (bytes(8),), (bytes(56),), (b"one", b"two"))
    assert Piece.decode(piece.encode(), Scope.HEADS) == piece
    assert Piece.decode(IDLE, Scope.IDS).is_idle
    assert Hello.decode(HELLO) == Hello(Scope.HEADS, bytes(32))
    assert not evolve(piece, rows=()).is_idle
