"""The crossing between trio and asyncio: what arrives, in which order, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from mesh.api.bridge import Bridge, Send, open_bridge
from mesh.api.faults import Closed, Crashed
from mesh.errors import Corruption, MeshError, Refused


async def add(left: int, right: int) -> int:
    await trio.lowlevel.checkpoint()
    return left + right


async def test_a_call_runs_in_trio_and_its_answer_comes_back() -> None:
    async def outside(bridge: Bridge) -> tuple[int, bool]:
        return await bridge.call(add, 2, 3), trio.lowlevel.in_trio_run()

    async with open_bridge() as bridge:
        assert await bridge.perform(outside, bridge) == (5, False)
        assert bridge.statistics() == {"calls_begun": 1, "calls_cancelled": 0}


@pytest.mark.parametrize("grouped", [False, True])
async def test_an_error_of_ours_is_an_answer_and_stops_nothing(grouped: bool) -> None:
    async def refuse() -> None:
        if grouped:
            async with trio.open_nursery():
                raise Refused("no", "pay")
        raise Refused("no", "pay")

    async def outside(bridge: Bridge) -> tuple[str, int]:
        with pytest.raises(Refused) as caught:
            await bridge.call(refuse)
        return caught.value.hint, await bridge.call(add, 1, 1)

    async with open_bridge() as bridge:
        assert await bridge.perform(outside, bridge) == ("pay", 2)


@pytest.mark.parametrize("bug", [ZeroDivisionError("ours"), Corruption("block 7")])
async def test_a_bug_is_told_to_the_client_and_stops_the_node(bug: Exception) -> None:
    told: list[BaseException] = []

    async def break_down() -> None:
        raise bug

    async def outside(bridge: Bridge) -> None:
        try:
            await bridge.call(break_down)
        except MeshError as error:
            told.append(error)

    async def live(nursery: trio.Nursery) -> None:
        async with open_bridge() as bridge:
            nursery.start_soon(bridge.perform, outside, bridge)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with pytest.raises(type(bug)) as caught:
            await live(nursery)
    assert caught.value is bug
    assert [type(error) for error in told] == [Crashed]


async def test_the_bodys_own_error_comes_out_of_its_group() -> None:
    with pytest.raises(KeyError):
        async with open_bridge():
            raise KeyError("mine")


async def test_cancelling_outside_cancels_inside() -> None:
    begun, ended = trio.Event(), trio.Event()

    async def wait() -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with open_bridge() as bridge:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bridge.perform, bridge.call, wait)
            await begun.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(10):
            await ended.wait()
        assert bridge.calls_cancelled == 1


async def test_a_cancelled_coroutine_is_waited_for() -> None:
    begun = trio.Event()
    cleaned: list[str] = []

    async def outside(token: trio.lowlevel.TrioToken) -> None:
        token.run_sync_soon(begun.set)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("yes")

    async with open_bridge() as bridge:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bridge.perform, outside, trio.lowlevel.current_trio_token())
            await begun.wait()
            nursery.cancel_scope.cancel()
        assert cleaned == ["yes"]


async def test_a_coroutines_error_is_raised_in_trio() -> None:
    async def outside() -> None:
        raise KeyError("there")

    async with open_bridge() as bridge:
        with pytest.raises(KeyError, match="there"):
            await bridge.perform(outside)


async def count_to(last: int, send: Send[int]) -> None:
    for number in range(last):
        await send(number)


@pytest.mark.parametrize("window", [1, 2, 64])
async def test_a_stream_arrives_whole_and_in_order(window: int) -> None:
    async def outside(bridge: Bridge) -> list[int]:
        async with bridge.stream(count_to, 500, window=window) as items:
            return [item async for item in items]

    async with open_bridge() as bridge:
        assert await bridge.perform(outside, bridge) == list(range(500))


async def test_a_stream_gives_what_was_sent_before_its_error() -> None:
    async def tell(send: Send[str]) -> None:
        await send("one")
        raise Refused("enough")

    async def outside(bridge: Bridge) -> str:
        async with bridge.stream(tell) as items:
            first = await anext(items)
            with pytest.raises(Refused, match="enough"):
                await anext(items)
        return first

    async with open_bridge() as bridge:
        assert await bridge.perform(outside, bridge) == "one"


async def test_a_sender_waits_when_the_window_is_full() -> None:
    sent: list[int] = []
    parked = trio.Event()

    async def tell(send: Send[int]) -> None:
        for number in range(100):
            await send(number)
            sent.append(number)

    async def watch_over() -> None:
        await trio.testing.wait_all_tasks_blocked()
        parked.set()

    async def outside(bridge: Bridge, gate: asyncio.Event) -> list[int]:
        async with bridge.stream(tell, window=4) as items:
            await gate.wait()
            return [item async for item in items]

    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        gate = asyncio.Event()
        received: list[list[int]] = []

        async def receive() -> None:
            received.append(await bridge.perform(outside, bridge, gate))

        nursery.start_soon(receive)
        while len(sent) < 4:
            await trio.lowlevel.checkpoint()
        nursery.start_soon(watch_over)
        await parked.wait()
        assert sent == [0, 1, 2, 3]

        async def open_gate() -> None:
            gate.set()

        await bridge.perform(open_gate)
    assert received == [list(range(100))]


async def test_leaving_a_stream_early_cancels_its_teller() -> None:
    ended = trio.Event()

    async def tell(send: Send[int]) -> None:
        try:
            await send(1)
            await trio.sleep_forever()
        finally:
            ended.set()

    async def outside(bridge: Bridge) -> int:
        async with bridge.stream(tell) as items:
            return await anext(aiter(items))

    async with open_bridge() as bridge:
        assert await bridge.perform(outside, bridge) == 1
        with trio.fail_after(10):
            await ended.wait()


async def numbers(count: int, asked: list[int]) -> AsyncIterator[int]:
    for number in range(count):
        asked.append(number)
        yield number


async def test_what_is_fed_arrives_whole_and_in_order() -> None:
    async def take(items: AsyncIterator[int]) -> list[int]:
        return [item async for item in items]

    async def outside(bridge: Bridge) -> list[int]:
        return await bridge.feed(numbers(300, []), take, window=3)

    async with open_bridge() as bridge:
        assert await bridge.perform(outside, bridge) == list(range(300))


async def test_a_source_is_not_asked_beyond_the_window() -> None:
    asked: list[int] = []

    async def take_one(items: AsyncIterator[int]) -> int:
        first = await anext(items)
        while len(asked) < 4:  # one taken and three in the window
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked(0.01)
        return first

    async def outside(bridge: Bridge) -> int:
        return await bridge.feed(numbers(1000, asked), take_one, window=3)

    async with open_bridge() as bridge:
        assert await bridge.perform(outside, bridge) == 0
    assert len(asked) == 4


async def test_a_taker_that_refuses_ends_the_feeding() -> None:
    async def refuse(items: AsyncIterator[int]) -> None:
        await anext(items)
        raise Refused("too large")

    async def outside(bridge: Bridge) -> None:
        with pytest.raises(Refused, match="too large"):
            await bridge.feed(numbers(1000, []), refuse, window=2)

    async with open_bridge() as bridge:
        await bridge.perform(outside, bridge)


async def test_a_source_that_fails_cancels_its_taker() -> None:
    ended = trio.Event()

    async def broken() -> AsyncIterator[int]:
        yield 1
        raise KeyError("the client is gone")

    async def take(items: AsyncIterator[int]) -> None:
        try:
            async for _ in items:
                pass
        finally:
            ended.set()

    async def outside(bridge: Bridge) -> None:
        with pytest.raises(KeyError):
            await bridge.feed(broken(), take)

    async with open_bridge() as bridge:
        await bridge.perform(outside, bridge)
        with trio.fail_after(10):
            await ended.wait()


async def test_calls_in_flight_are_closed_when_the_node_stops() -> None:
    told: list[BaseException] = []
    begun = trio.Event()

    async def wait() -> None:
        begun.set()
        async with trio.open_nursery() as nursery:  # two cancellations make a group
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)

    async def outside(bridge: Bridge) -> None:
        try:
            await bridge.call(wait)
        except MeshError as error:
            told.append(error)

    async with trio.open_nursery() as nursery, open_bridge() as bridge:
        nursery.start_soon(bridge.perform, outside, bridge)
        await begun.wait()
    assert [type(error) for error in told] == [Closed]


async def test_a_call_that_comes_after_the_end_is_closed() -> None:
    told: list[BaseException] = []
    is_ending, may_call = trio.Event(), asyncio.Event()

    async def linger() -> None:
        try:
            await trio.sleep_forever()
        finally:
            is_ending.set()
            with trio.CancelScope(shield=True):
                while not told:
                    await trio.lowlevel.checkpoint()

    async def call_late(bridge: Bridge) -> None:
        await may_call.wait()
        try:
            await bridge.call(add, 1, 1)
        except MeshError as error:
            told.append(error)

    async def outside(bridge: Bridge) -> None:
        with pytest.raises(Closed):
            await bridge.call(linger)

    async def permit(bridge: Bridge) -> None:
        await is_ending.wait()

        async def now() -> None:
            may_call.set()

        await bridge.perform(now)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, open_bridge() as bridge:
            nursery.start_soon(bridge.perform, outside, bridge)
            nursery.start_soon(bridge.perform, call_late, bridge)
            nursery.start_soon(permit, bridge)
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert [type(error) for error in told] == [Closed]
