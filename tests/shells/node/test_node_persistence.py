"""What is written when, and what a crash between two of a node's files leaves."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from ledger_deals import ALICE, BOB, Chain, Party
from market_players import Table, order
from nacl.signing import SigningKey
from node_hands import open_hands

from ledger.errors import LedgerError
from ledger.model import Entry
from mesh.errors import Unavailable
from mesh.ids import PeerId
from mesh.market.order import State, TaskRecord
from mesh.messages import Settled
from mesh.sansio import AppendEntry, PersistTask

US = Party(SigningKey(bytes([1]) * 32))
"""The node of `open_hands`."""
RECORD = TaskRecord(order(PeerId(ALICE.key)), State.WAITING, submitted_ms=1)


def jam(path: Path) -> sqlite3.Connection:
    """Somebody else's transaction, for as long as it is open."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other


async def test_a_record_is_durable_before_our_own_entry_that_it_tells_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.database.BUSY_WAIT_S", 0.1)
    async with open_hands(tmp_path) as hands:
        entry = Chain(BOB).alloc(ALICE)
        other = jam(tmp_path / "ledger.sqlite")
        with pytest.raises(LedgerError):
            await hands.performer.persist(
                [AppendEntry(entry.encode(), is_own=True), PersistTask(RECORD)]
            )
        other.close()
        assert hands.journal.tasks(1) == [RECORD]
        assert list(hands.ledger.entries()) == []


async def test_a_receipt_is_durable_before_the_account_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.storage.journal.BUSY_WAIT_S", 0.1)
    async with open_hands(tmp_path) as hands:
        entry = Chain(BOB).alloc(ALICE)
        other = jam(tmp_path / "node.sqlite")
        with pytest.raises(Unavailable):
            await hands.performer.persist(
                [PersistTask(RECORD), AppendEntry(entry.encode(), is_own=False)]
            )
        other.close()
        assert hands.journal.tasks(1) == []
        assert list(hands.ledger.entries()) == [entry]


async def test_entries_are_told_of_once_they_are_durable(tmp_path: Path) -> None:
    async with open_hands(tmp_path) as hands:
        ours, theirs = Chain(US).alloc(ALICE), Chain(BOB).alloc(US)
        told: list[tuple[str, list[Entry], int]] = []

        def note(what: str) -> Callable[[Sequence[Entry]], None]:
            return lambda entries: told.append(
                (what, list(entries), len(list(hands.ledger.entries())))
            )

        hands.performer.said, hands.performer.received = note("said"), note("received")
        await hands.performer.persist(
            [AppendEntry(ours.encode(), is_own=True), AppendEntry(theirs.encode(), is_own=False)]
        )
        assert told == [("received", [theirs], 2), ("said", [ours], 2)]


def test_killed_between_record_and_payment_a_buyer_pays_once() -> None:
    """The reverse left a paid task that still ran: after a ttl it was run, and paid, again."""
    table = Table(3)
    buyer = table["A"]
    task = table.submit(buyer)
    table.run(1.0)
    executor = table.executor(task)
    entries, head = list(buyer.entries), buyer._head
    table.is_lost = lambda _from, _to, message: isinstance(message, Settled)
    table.finish(executor, task)
    told = buyer.records[task]
    assert told.settle is not None
    table.crash(buyer)
    buyer.entries, buyer._head = entries, head  # the ledger never got it
    table.is_lost = lambda *_: False
    table.restart(buyer)
    assert buyer.task(task).settle is None
    assert buyer.task(task).amount == 0
    table.run(300.0)
    assert [entry.content.kind.name for entry in buyer.entries] == ["ALLOC", "SETTLE"]
    assert buyer.task(task).state is State.DONE
    assert buyer.task(task).settle == buyer.entries[-1].id
    assert executor.tenancies == {}


def test_a_payment_ends_the_task_of_an_older_journal() -> None:
    table = Table(3)
    buyer = table["A"]
    task = table.submit(buyer)
    table.run(1.0)
    older = buyer.records[task]
    table.finish(table.executor(task), task)
    table.crash(buyer)
    buyer.records[task] = older  # restored from a backup
    table.restart(buyer)
    table.run(300.0)
    assert [entry.content.kind.name for entry in buyer.entries] == ["ALLOC", "SETTLE"]
    ended = buyer.task(task)
    assert (ended.state, ended.settle) == (State.DONE, buyer.entries[-1].id)
    assert ended.result is not None
    assert ended.result.fuel == buyer.entries[-1].content.deal.fuel
