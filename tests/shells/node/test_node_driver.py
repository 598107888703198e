"""The driver: one writer, durable before it is said, timers on time, and a bounded inbox."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import trio
import trio.testing
from attrs import Factory, define

from mesh.driver import BATCH_MAX, BLACK_BOX_MAX, BYTES_MAX, INBOX_MAX, Driver, Durable
from mesh.ids import PeerId, TaskId
from mesh.messages import Accepted, Renew
from mesh.sansio import (
    Action,
    CancelRequested,
    Event,
    ForgetTenancy,
    LoadSampled,
    Send,
    Started,
    WakeAt,
    Woken,
)

PEER = PeerId(bytes(32))
TASK = TaskId(bytes(16))
WRITE = ForgetTenancy(TASK, 1)
SAID = Send(PEER, Accepted(TASK, 1))


@define
class Script:
    """A core that answers events as a test says, and everything that was done about it."""

    answers: dict[Event, list[Action]] = Factory(dict)
    handled: list[tuple[float, Event]] = Factory(list)
    done: list[object] = Factory(list)
    disk: Callable[[], trio.Event] | None = None
    """Makes what a commit waits for."""

    def handle(self, event: Event, now: float) -> list[Action]:
        self.handled.append((now, event))
        return self.answers.get(event, [])

    async def persist(self, writes: Sequence[Durable]) -> None:
        self.done.append(list(writes))
        if self.disk:
            await self.disk().wait()

    def events(self) -> list[Event]:
        return [event for _, event in self.handled]


@pytest.fixture
def script() -> Script:
    return Script()


def drive(nursery: trio.Nursery, script: Script) -> Driver:
    driver = Driver(script)

    async def run() -> None:
        await driver.drive(persist=script.persist, perform=script.done.append)

    nursery.start_soon(run)
    return driver


def load(number: int) -> Event:
    return LoadSampled(number, 0)


async def test_a_start_is_the_first_event(script: Script, nursery: trio.Nursery) -> None:
    driver = drive(nursery, script)
    await driver.post(load(1))
    await trio.testing.wait_all_tasks_blocked()
    assert script.events() == [Started(), load(1)]


async def test_what_is_said_is_durable_before(script: Script, nursery: trio.Nursery) -> None:
    committed = trio.Event()
    script.disk = lambda: committed
    script.answers[load(1)] = [SAID, WRITE]
    driver = drive(nursery, script)
    await driver.post(load(1))
    await trio.testing.wait_all_tasks_blocked()
    assert script.done == [[WRITE]], "nothing is said while the disk works"
    await driver.post(load(2))
    await trio.testing.wait_all_tasks_blocked()
    assert load(2) not in script.events(), "nor anything handled"
    committed.set()
    await trio.testing.wait_all_tasks_blocked()
    assert script.done == [[WRITE], SAID]
    assert load(2) in script.events()


async def test_events_that_wait_share_one_commit_and_keep_their_order(
    script: Script, nursery: trio.Nursery
) -> None:
    say = [Send(PEER, Renew(TASK, number, 0, 0)) for number in range(3)]
    for number in range(3):
        script.answers[load(number)] = [ForgetTenancy(TASK, number), say[number]]
    driver = drive(nursery, script)
    for number in range(3):
        assert driver.post_nowait(load(number))
    await trio.testing.wait_all_tasks_blocked()
    assert script.done == [[ForgetTenancy(TASK, number) for number in range(3)], *say]


async def test_a_batch_is_bounded(script: Script, nursery: trio.Nursery) -> None:
    driver = Driver(script)
    for number in range(BATCH_MAX + 10):
        assert driver.post_nowait(load(number))
        script.answers[load(number)] = [ForgetTenancy(TASK, number)]

    async def run() -> None:
        await driver.drive(persist=script.persist, perform=script.done.append)

    nursery.start_soon(run)
    await trio.testing.wait_all_tasks_blocked()
    assert [len(batch) for batch in script.done] == [BATCH_MAX, 10]  # type: ignore[arg-type]


async def test_nothing_to_write_waits_for_no_disk(script: Script, nursery: trio.Nursery) -> None:
    script.answers[load(1)] = [SAID]
    driver = drive(nursery, script)
    await driver.post(load(1))
    await trio.testing.wait_all_tasks_blocked()
    assert script.done == [SAID]


async def test_timers_ring_in_order_and_on_time(
    script: Script, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    start = trio.current_time()
    woken = [Woken("ask", TASK, mark) for mark in range(4)]
    script.answers[Started()] = [
        WakeAt(start + at, woken[mark]) for mark, at in enumerate((30.0, 10.0, 10.0, 20.0))
    ]
    script.answers[woken[3]] = [WakeAt(start + 25.0, load(9))]  # type: ignore[arg-type]
    drive(nursery, script)
    await trio.sleep_until(start + 40.0)
    rung = [(round(now - start, 6), event) for now, event in script.handled[1:]]
    assert rung == [
        (10.0, woken[1]),
        (10.0, woken[2]),
        (20.0, woken[3]),
        (25.0, load(9)),
        (30.0, woken[0]),
    ]


async def test_a_timer_that_is_overdue_rings_at_once_and_does_not_keep_others_out(
    script: Script, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    ring = Woken("ask", TASK, 1)
    script.answers[Started()] = [WakeAt(trio.current_time() - 5.0, ring)]
    driver = drive(nursery, script)
    await driver.post(load(1))
    await trio.testing.wait_all_tasks_blocked()
    assert set(script.events()) == {Started(), ring, load(1)}


async def test_a_late_disk_delays_timers_but_loses_none(
    script: Script, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    start = trio.current_time()
    committed = trio.Event()
    script.disk = lambda: committed
    ring = Woken("ask", TASK, 1)
    script.answers[Started()] = [WRITE, WakeAt(start + 1.0, ring)]
    drive(nursery, script)
    await trio.sleep_until(start + 7.0)
    assert ring not in script.events()
    committed.set()
    await trio.testing.wait_all_tasks_blocked()
    assert script.handled[-1] == (start + 7.0, ring)


async def test_the_inbox_is_bounded_peers_lose_and_clients_wait(script: Script) -> None:
    driver = Driver(script)
    accepted = sum(driver.post_nowait(load(number)) for number in range(INBOX_MAX + 5))
    assert (accepted, driver.dropped) == (INBOX_MAX, 5)
    with trio.move_on_after(0) as scope:
        await driver.post(CancelRequested(TASK))
    assert scope.cancelled_caught


async def test_the_black_box_keeps_the_last_events(script: Script, nursery: trio.Nursery) -> None:
    driver = drive(nursery, script)
    for number in range(BLACK_BOX_MAX + 10):
        await driver.post(load(number))
    await trio.testing.wait_all_tasks_blocked()
    assert len(driver.black_box) == BLACK_BOX_MAX
    assert driver.black_box[-1][1] == load(BLACK_BOX_MAX + 9)
    assert driver.forgotten == 11


async def test_a_broken_core_ends_the_driver_with_its_last_event_on_record() -> None:
    class Broken(Script):
        def handle(self, event: Event, now: float) -> list[Action]:
            assert event == Started(), "an invariant"
            return []

    driver, script = Driver(Broken()), Script()
    assert driver.post_nowait(load(1))
    with pytest.raises(AssertionError, match="an invariant"):
        await driver.drive(persist=script.persist, perform=script.done.append)
    assert driver.black_box[-1][1] == load(1)


async def script_drives(driver: Driver, script: Script) -> None:
    await driver.drive(persist=script.persist, perform=script.done.append)


async def test_long_messages_fill_neither_inbox_nor_black_box_beyond_their_bytes(
    script: Script, nursery: trio.Nursery
) -> None:
    driver = Driver(script)
    long = BYTES_MAX // 4
    assert [driver.post_nowait(load(number), long) for number in range(5)] == [True] * 4 + [False]
    assert driver.dropped == 1
    nursery.start_soon(script_drives, driver, script)
    await trio.testing.wait_all_tasks_blocked()
    assert driver.post_nowait(load(7), long), "what was handled waits no more"
    await trio.testing.wait_all_tasks_blocked()
    assert [event for _, event in driver.black_box] == [load(n) for n in (1, 2, 3, 7)]
    assert driver.forgotten == 2, "the first long one, and Started before it"


async def test_after_a_sleep_of_the_machine_what_is_due_comes_before_what_came_in(
    script: Script, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    asleep = 5.0  # since the machine booted
    driver = Driver(script, lambda: asleep)
    expiry = Woken("expire", TASK, 1)
    script.answers[load(1)] = [WakeAt(driver.now() + 10, expiry)]

    async def run() -> None:
        await driver.drive(persist=script.persist, perform=script.done.append)

    nursery.start_soon(run)
    await driver.post(load(1))
    await trio.testing.wait_all_tasks_blocked()
    start, asleep = driver.now(), asleep + 3600
    await driver.post(load(2))
    await trio.testing.wait_all_tasks_blocked()
    assert script.events()[-2:] == [expiry, load(2)]
    assert script.handled[-1][0] - start >= 3600
