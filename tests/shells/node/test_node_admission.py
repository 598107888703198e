"""Admission: what a node takes from its clients, it can keep, send and take once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from attrs import evolve
from market_players import WORK, ask, cid, order
from node_hands import PATIENCE_S, WITNESS
from test_node_desk import BID, open_desk

from mesh import codec
from mesh.desk import FEATURE_MAX, check_request
from mesh.driver import Durable
from mesh.errors import Refused
from mesh.ids import PeerId, TaskId, task_id
from mesh.market.order import State, TaskRecord
from mesh.sansio import Action, Notify, PersistTask
from mesh.storage.files import add_bytes

LONGEST = tuple("\U0001f600" * FEATURE_MAX for _ in range(16))


def test_the_largest_task_that_is_taken_can_be_asked_for_and_kept() -> None:
    check_request(evolve(BID, features=LONGEST, name="\U0001f600" * 128))
    inputs = tuple(cid(str(number)) for number in range(48))
    work = evolve(WORK, features=LONGEST, inputs=inputs)
    largest = ask(TaskId(bytes(16)), work=work)
    assert codec.decode(codec.encode(largest)) == largest
    record = TaskRecord(order(PeerId(bytes(32)), work=work), State.WAITING, submitted_ms=0)
    assert codec.load(TaskRecord, codec.dump(record)) == record


def test_longer_features_are_refused() -> None:
    with pytest.raises(Refused, match="features"):
        check_request(evolve(BID, features=("x" * (FEATURE_MAX + 1),)))


async def test_two_bids_at_once_under_one_key_are_one_task(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as (desk, hands), trio.open_nursery() as nursery:
        add_bytes(hands.blocks, WITNESS.read_bytes())

        async def persist(writes: Sequence[Durable]) -> None:
            await trio.lowlevel.checkpoint()

        def perform(action: Action) -> None:
            if isinstance(action, Notify):
                desk.broadcast.publish(action.notice)

        async def drive() -> None:
            await desk.driver.drive(persist=persist, perform=perform)

        tasks: list[TaskId] = []

        async def bid() -> None:
            tasks.append(await desk.bid(BID))

        nursery.start_soon(drive)
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as clients:
                for _ in range(5):
                    clients.start_soon(bid)
        assert len(tasks) == 5
        assert list(desk.kernel.records) == [tasks[0]]
        nursery.cancel_scope.cancel()


async def test_a_key_means_the_same_task_long_after_it_left_memory(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as (desk, hands):
        task = task_id(desk.kernel.identity.peer, BID.idempotency_key)
        old = evolve(order(desk.kernel.identity.peer), task=task)
        hands.journal.commit([PersistTask(TaskRecord(old, State.DONE, submitted_ms=0))])
        assert await desk.bid(BID) == task
        assert desk.kernel.records == {}
