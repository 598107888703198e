"""The broadcast: everybody hears what concerns them, and nobody can hold the node up."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing

from mesh.broadcast import WAITING_MAX, WATCHERS_MAX, Broadcast
from mesh.errors import Refused
from mesh.ids import PeerId, TaskId
from mesh.notices import OfferAged, Progressed

TASK, OTHER = TaskId(bytes(16)), TaskId(bytes([1] * 16))


def progress(task: TaskId = TASK, fuel: int = 0) -> Progressed:
    return Progressed(task, 1, fuel)


async def test_a_watcher_of_everything_hears_every_number() -> None:
    broadcast = Broadcast()
    async with broadcast.follow(None) as notices:
        for notice in (progress(), OfferAged(PeerId(bytes(32))), progress(OTHER)):
            broadcast.publish(notice)
        assert [(await notices.receive()).seq for _ in range(3)] == [1, 2, 3]


async def test_a_watcher_of_one_task_hears_of_that_task_alone() -> None:
    broadcast = Broadcast()
    async with broadcast.follow(OTHER) as notices:
        for notice in (progress(), OfferAged(PeerId(bytes(32))), progress(OTHER), progress()):
            broadcast.publish(notice)
        assert (await notices.receive()).notice == progress(OTHER)
        with pytest.raises(trio.WouldBlock):
            notices.receive_nowait()


async def test_nothing_from_before_is_heard() -> None:
    broadcast = Broadcast()
    broadcast.publish(progress(fuel=1))
    async with broadcast.follow(None) as notices:
        broadcast.publish(progress(fuel=2))
        assert (await notices.receive()).seq == 2


async def test_who_does_not_read_sees_a_gap_and_holds_nobody_up() -> None:
    broadcast = Broadcast()
    async with broadcast.follow(None) as slow, broadcast.follow(None) as quick:
        for number in range(WAITING_MAX + 10):
            broadcast.publish(progress(fuel=number))
            assert (await quick.receive()).seq == number + 1
        for _ in range(WAITING_MAX):
            last = await slow.receive()
        broadcast.publish(progress())
        assert (await slow.receive()).seq == last.seq + 11, "the gap shows"
    assert broadcast.tally["notices_missed"] == 10


async def test_who_leaves_is_forgotten() -> None:
    broadcast = Broadcast()
    for _ in range(WATCHERS_MAX + 1):
        async with broadcast.follow(None):
            pass
    broadcast.publish(progress())
    assert not broadcast.tally


async def test_who_closes_its_end_harms_nobody() -> None:
    broadcast = Broadcast()
    async with broadcast.follow(None) as notices, broadcast.follow(None) as other:
        await notices.aclose()
        broadcast.publish(progress())
        assert (await other.receive()).seq == 1


async def test_watchers_are_bounded() -> None:
    broadcast = Broadcast()
    async with AsyncExitStack() as stack:
        for _ in range(WATCHERS_MAX):
            await stack.enter_async_context(broadcast.follow(None))
        with pytest.raises(Refused, match="1024 watchers"):
            await stack.enter_async_context(broadcast.follow(TASK))
    assert broadcast.tally["watchers_refused"] == 1


async def test_every_watch_ends_when_the_node_stops() -> None:
    broadcast = Broadcast()
    async with broadcast.follow(None) as notices:
        broadcast.publish(progress())
        broadcast.close()
        broadcast.publish(progress())
        assert [numbered.seq async for numbered in notices] == [1]
