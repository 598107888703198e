"""The bookkeeper over a real ledger: every kind is shown, files verify, entries come in checked."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import evolve
from ledger_bundles import forked, history
from ledger_deals import ALICE, BOB, CAROL, DAVE, NET, Chain, Party
from nacl.signing import SigningKey
from node_desks import KEY, open_desk

from ledger.audit import findings
from ledger.bundle import read
from ledger.evidence import Inclusion
from ledger.glance import Glance
from ledger.model import KINDS_KNOWN, TERMED, Entry, Kind
from ledger.statements import Line, Op
from ledger.validity import prove_fork
from mesh.api.door import Form
from mesh.bookkeeper import Bookkeeper, Tier, view_of
from mesh.desk import Desk
from mesh.errors import NotFound, Refused, Unavailable
from mesh.ids import PeerId, TaskId
from mesh.sansio import Event, Learned, LineSet
from mesh.tier import promise

TASK = TaskId(b"a task of 16 byt")
ME = KEY.peer


def every_kind() -> list[Entry]:
    one, other = forked()
    proof = prove_fork(one, other)
    assert proof is not None
    return [*history(), proof]


@asynccontextmanager
async def keeping(folder: Path) -> AsyncIterator[tuple[Desk, Bookkeeper]]:
    async with open_desk(folder) as (desk, _):
        yield desk, desk.bookkeeper


async def exported(
    keeper: Bookkeeper, form: Form, task: TaskId | None = None
) -> tuple[bytes, int, int]:
    data, entries, left_out = b"", 0, 0
    async for piece in keeper.export(task, form):
        data, entries, left_out = data + piece.data, piece.entries, piece.left_out
    return data, entries, left_out


def posted(desk: Desk) -> list[Event]:
    """What the kernel is to hear of."""
    events = []
    while True:
        try:
            events.append(desk.driver._events.receive_nowait()[0])
        except trio.WouldBlock:
            return events


# --- what is shown


async def test_every_kind_of_entry_is_a_receipt(tmp_path: Path) -> None:
    async with keeping(tmp_path) as (_, keeper):
        keeper.ledger.add(every_kind())
        views = await keeper.receipts(None, 256)
        assert {view.kind for view in views} == {kind.name for kind in KINDS_KNOWN}
        of_task = await keeper.receipts(TASK, 256)
    assert all(view.signatures_good == view.signatures_needed > 0 for view in views)
    assert all(view.says for view in views)
    assert {view.kind for view in of_task} == {kind.name for kind in TERMED}
    for view in views:
        assert (view.task is None) == (view.kind not in {kind.name for kind in TERMED})


def test_receipts_say_who_is_whose_debtor() -> None:
    views = {view.kind: view for view in map(view_of, every_kind())}
    for kind in ("ALLOC", "SETTLE", "DISPUTE", "LINE", "REFUND", "CLAIM", "RULING"):
        assert (views[kind].buyer, views[kind].seller) == (BOB.key, ALICE.key), kind
    assert views["REFUND"].amount == 40
    assert views["LINE"].says == "line of 0.0200 cr"
    assert views["FORKPROOF"].author is None
    assert (views["HEAD"].buyer, views["KEYOP"].seller) == (None, None)


def test_a_bad_signature_of_any_kind_is_counted() -> None:
    for entry in every_kind():
        if entry.content.kind is not Kind.FORKPROOF:
            view = view_of(evolve(entry, sig=bytes(64)))
            assert view.signatures_good == view.signatures_needed - 1


def test_no_limit_is_said_in_words() -> None:
    assert view_of(Chain(ALICE).line(BOB, Line.NO_LIMIT)).says == "line of no limit"


async def test_the_state_counts_entries_chains_and_forks(tmp_path: Path) -> None:
    entries = every_kind()
    async with keeping(tmp_path) as (desk, keeper):
        empty = await desk.ledger()
        keeper.ledger.add(entries)
        view = await keeper.status(1, 2, {"ledger_rounds": 3, "frames_dropped": 4})
        again = await keeper.status(1, 2, {})
    assert (view.entries, view.chains) == (len(entries), 3)
    assert view.forked == (PeerId(BOB.key),), "by a FORKPROOF alone"
    assert view.counters == (("ledger_rounds", 3),)
    assert view.digest == again.digest != empty.digest
    assert (view.tier, view.promise) == ("T0", promise("T0"))


@pytest.mark.parametrize(
    ("tier", "words"),
    [
        (Tier("T0"), "bounds what it can lose, even in a partition"),
        (Tier("T1"), "forks are detected by gossip, not prevented"),
        (Tier("T2", 4, 3), "a witness quorum of 4, 3 of them, makes a fork impossible"),
        (Tier("T2", 7, 5), "with at most 2 bad witnesses"),
    ],
)
def test_a_tier_promises_what_it_can_hold(tier: Tier, words: str) -> None:
    assert tier.promise().startswith(f"{tier.name}: ")
    assert words in tier.promise()


async def test_forks_are_proven_once_each_by_lines_that_verify(tmp_path: Path) -> None:
    one, other = forked()
    late = [Chain(DAVE).alloc(party) for party in (ALICE, BOB)]
    async with keeping(tmp_path) as (_, keeper):
        keeper.ledger.add([one, other, *late, *every_kind()])
        forks = [fork async for fork in keeper.forks()]
    assert {(fork.peer, fork.seq) for fork in forks} == {(BOB.key, 0), (DAVE.key, 0)}
    for fork in forks:
        items = list(read(line.encode() for line in fork.lines))
        entries = [item for item in items if isinstance(item, Entry)]
        assert len(entries) == len(items)
        assert [f.check for f in findings(entries) if not f.is_good] == ["fork"]


# --- what is written down


async def test_a_bundle_is_the_exact_bytes_and_verifies_alone(tmp_path: Path) -> None:
    entries = history()
    async with keeping(tmp_path) as (_, keeper):
        keeper.ledger.add(entries)
        data, count, left_out = await exported(keeper, Form.BUNDLE)
    items = list(read(data.splitlines()))
    assert {item.encode() for item in items if isinstance(item, Entry)} == {
        entry.encode() for entry in entries
    }
    assert (count, left_out) == (len(entries), 0)
    assert all(f.is_good for f in findings(e for e in items if isinstance(e, Entry)))


async def test_a_chain_with_a_gap_is_left_out_of_a_bundle_and_counted(tmp_path: Path) -> None:
    entries = history()
    async with keeping(tmp_path) as (_, keeper):
        keeper.ledger.add(entries[:2] + entries[3:10] + [Chain(DAVE).line(BOB, 5)])
        data, count, left_out = await exported(keeper, Form.BUNDLE)
        lines, every, none = await exported(keeper, Form.JSONL)
    assert (count, left_out) == (1, 9)
    assert all(
        f.is_good for f in findings(e for e in read(data.splitlines()) if isinstance(e, Entry))
    )
    assert (len(lines.splitlines()), every, none) == (10, 10, 0)


async def test_a_chain_that_was_pruned_is_left_out_of_a_bundle(tmp_path: Path) -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    over = [alloc, bob.settle(ALICE, alloc)]
    head = bob.checkpoint(over)
    async with keeping(tmp_path) as (_, keeper):
        keeper.ledger.add([*over, head])
        assert (await exported(keeper, Form.BUNDLE))[1:] == (3, 0)
        keeper.ledger.prune(head.id)
        assert (await exported(keeper, Form.BUNDLE))[1:] == (0, 3)


async def test_no_bundle_is_made_while_entries_are_only_vouched_for(tmp_path: Path) -> None:
    """They would be missing from it, and whoever reads it would see gaps."""
    bob = Chain(BOB)
    first, last = bob.alloc(ALICE), bob.alloc(ALICE)
    async with keeping(tmp_path) as (_, keeper):
        keeper.ledger.add([last], [Glance.of(first.body, first.sig)])
        with pytest.raises(Unavailable, match="still being checked"):
            await exported(keeper, Form.BUNDLE)
        assert (await exported(keeper, Form.JSONL))[1] == 1


async def test_one_task_comes_with_the_proofs_of_its_entries(tmp_path: Path) -> None:
    bob = Chain(BOB)
    mine = bob.alloc(ALICE, nonce=b"the task wanted!")
    others = [bob.alloc(ALICE, nonce=bytes([n]) * 16) for n in range(5)]
    settle = bob.settle(ALICE, mine)
    chain = [mine, *others, settle]
    chain.append(bob.checkpoint(chain))
    async with keeping(tmp_path) as (_, keeper):
        keeper.ledger.add(chain)
        data, count, _ = await exported(keeper, Form.BUNDLE, TaskId(b"the task wanted!"))
    items = list(read(data.splitlines()))
    entries = [item for item in items if isinstance(item, Entry)]
    proofs = [item for item in items if isinstance(item, Inclusion)]
    assert {entry.id for entry in entries} == {mine.id, settle.id, chain[-1].id}
    assert (len(proofs), count) == (2, 3)
    assert all(f.is_good for f in findings(entries, evidence=proofs))


async def test_a_task_under_no_head_comes_with_all_that_is_before_it(tmp_path: Path) -> None:
    bob = Chain(BOB)
    chain = [bob.alloc(ALICE, nonce=bytes([n]) * 16) for n in range(4)]
    async with keeping(tmp_path) as (_, keeper):
        keeper.ledger.add(chain)
        data, count, _ = await exported(keeper, Form.BUNDLE, TaskId(bytes([2]) * 16))
        table, rows, _ = await exported(keeper, Form.CSV, TaskId(bytes([2]) * 16))
        with pytest.raises(NotFound, match="no receipt"):
            await exported(keeper, Form.BUNDLE, TaskId(bytes([9]) * 16))
    entries = [item for item in read(data.splitlines()) if isinstance(item, Entry)]
    assert [entry.id for entry in entries] == [entry.id for entry in chain[:3]]
    assert (count, rows, len(table.splitlines())) == (3, 1, 2)
    assert all(f.is_good for f in findings(entries))


async def test_a_table_has_one_title_however_long_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.bookkeeper.SLICE", 3)
    async with keeping(tmp_path) as (_, keeper):
        empty, _, _ = await exported(keeper, Form.CSV)
        keeper.ledger.add(every_kind())
        data, _, _ = await exported(keeper, Form.CSV)
    assert len(list(csv.reader(io.StringIO(empty.decode())))) == 1
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    assert {row["id"] for row in rows} == {entry.id.hex() for entry in every_kind()}
    assert data.count(b"id,kind") == 1


# --- what comes in


async def test_entries_are_checked_kept_and_told_to_the_kernel_where_they_concern_it(
    tmp_path: Path,
) -> None:
    seller = Chain(ALICE)
    about_us = seller.line(Party(SigningKey(KEY.seed)), 500)
    not_about_us = seller.line(BOB, 500)
    keyop = Chain(CAROL).keyop(Op.DELEGATE, DAVE)
    async with keeping(tmp_path) as (desk, keeper):
        told: list[Entry] = []
        keeper = evolve(keeper, publish=told.extend)
        wires = [entry.encode() for entry in (about_us, not_about_us, keyop)]
        taken = await keeper.take_in([*wires, b"rubbish", wires[0]])
        assert (taken.added, taken.refused) == (3, 1)
        assert {entry.id for entry in keeper.ledger.entries()} == {
            entry.id for entry in (about_us, not_about_us, keyop)
        }
        (learned,) = posted(desk)
        assert isinstance(learned, Learned)
        assert set(learned.entries) == {wires[0], wires[2]}
        assert {entry.encode() for entry in told} == set(wires)
        assert (await keeper.take_in(wires)).known == 3
        assert (posted(desk), len(told)) == ([], 3)


async def test_a_fork_that_comes_in_is_told_to_the_kernel(tmp_path: Path) -> None:
    one, other = forked()
    proof = prove_fork(*[Chain(DAVE).alloc(party) for party in (ALICE, BOB)])
    assert proof is not None
    async with keeping(tmp_path) as (desk, keeper):
        await keeper.take_in([entry.encode() for entry in (one, other, proof)])
        (learned,) = posted(desk)
    assert isinstance(learned, Learned)
    assert set(learned.forked) == {PeerId(BOB.key), PeerId(DAVE.key)}


async def test_what_is_new_on_our_own_chain_is_refused(tmp_path: Path) -> None:
    """The kernel would sign the same place again: a fork of our own making."""
    async with keeping(tmp_path) as (desk, keeper):
        keeper = evolve(keeper, me=PeerId(BOB.key))
        chain = Chain(BOB)
        known, news = chain.alloc(ALICE), chain.alloc(ALICE)
        keeper.ledger.append_own([known])
        taken = await keeper.take_in([known.encode(), news.encode()])
        assert (taken.known, taken.refused, taken.added) == (1, 1, 0)
        assert keeper.ledger.head(BOB.key, NET).seq == 1
        assert posted(desk) == []


# --- lines


async def test_a_line_is_for_the_kernel_to_set(tmp_path: Path) -> None:
    async with keeping(tmp_path) as (desk, _):
        await desk.set_line(PeerId(BOB.key), 500)
        assert posted(desk) == [LineSet(PeerId(BOB.key), 500)]
        with pytest.raises(Refused, match="this node itself"):
            await desk.set_line(ME, 500)


async def test_no_line_is_set_before_peers_confirmed_our_chain(tmp_path: Path) -> None:
    async with keeping(tmp_path) as (desk, _):
        desk.kernel._own.is_confirmed = False
        with pytest.raises(Unavailable, match="confirmed"):
            await desk.set_line(PeerId(BOB.key), 500)
        assert posted(desk) == []


async def test_every_buyer_with_a_line_or_a_debt_is_listed(tmp_path: Path) -> None:
    async with keeping(tmp_path) as (desk, _):
        assert desk.lines() == []
        desk.kernel.credit.lines[PeerId(BOB.key)] = 500
        desk.kernel.credit.lines[PeerId(CAROL.key)] = Line.NO_LIMIT
        desk.kernel.credit.freeze([PeerId(CAROL.key)])
        lines = {line.buyer: (line.owed, line.limit, line.is_frozen) for line in desk.lines()}
    assert lines == {BOB.key: (0, 500, False), CAROL.key: (0, Line.NO_LIMIT, True)}
