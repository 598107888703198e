"""Moves: a task that is suspended here and goes on there says, leaves and costs the same."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
import trio
from runtime_jobs import HOSTILE as UNMOVABLE
from runtime_jobs import PATIENCE, is_gone, job_of, until
from runtime_places import (
    HEAP,
    HOSTILE,
    TRAVELLER,
    Going,
    Place,
    begin,
    facts,
    move,
    reason_of,
    suspend,
)

from mesh.errors import Refused
from mesh.ids import Cid
from mesh.runtime import course
from mesh.runtime.course import Held, Kept, Stays, Suspended
from mesh.runtime.manifest import Job
from mesh.runtime.supervisor import Outcome, WorkerLost, open_supervisor
from mesh.storage.states import Saving

LONG = {"fuel": 1 << 40}


@pytest.fixture
async def places(tmp_path: Path) -> AsyncIterator[list[Place]]:
    with trio.fail_after(PATIENCE):
        async with AsyncExitStack() as stack:
            found = []
            for name in ("one", "other"):
                opening = open_supervisor(tmp_path / name, workers_max=2)
                found.append(Place(await stack.enter_async_context(opening), tmp_path / name))
            yield found


@pytest.fixture
def place(places: list[Place]) -> Place:
    return places[0]


def traveller() -> Job:
    return job_of(TRAVELLER, "24", "4000", **LONG)


def spinner() -> Job:
    return job_of(HOSTILE, "spin", "3000", **LONG)


async def ended(place: Place, job: Job, module: Path) -> Outcome:
    """Of a run that nobody moves."""
    outcome = await place.run("plain", job, module)
    assert isinstance(outcome, Outcome)
    return outcome


@pytest.mark.parametrize(
    ("module", "job"),
    [
        (TRAVELLER, traveller()),
        (HOSTILE, spinner()),
        (HEAP, job_of(HEAP, "4", "400", **LONG)),
    ],
    ids=["traveller", "spin", "heap"],
)
async def test_a_task_moved_five_times_is_the_task(
    places: list[Place], module: Path, job: Job
) -> None:
    """Open files, folders being read, half lines, chance, time and deep recursion go along."""
    plain = await ended(places[0], job, module)
    assert plain.status == "exited"
    assert facts(await move(places, job, module, 5)) == facts(plain)


async def test_fuel_ends_where_it_ends_without_moves(places: list[Place]) -> None:
    job = job_of(HOSTILE, "spin", "30000", fuel=1_500_000_001)
    outcome = await move(places, job, HOSTILE, 3)
    assert (outcome.status, outcome.fuel) == ("out-of-fuel", 1_500_000_001)
    assert facts(outcome) == facts(await ended(places[0], job, HOSTILE))


async def test_a_checkpoint_is_gone_on_from_while_the_run_goes_on(places: list[Place]) -> None:
    job = traveller()
    one, other = places
    plain = facts(await ended(one, job, TRAVELLER))
    async with trio.open_nursery() as nursery:
        going = await begin(nursery, one, job, TRAVELLER)
        kept = [await going.checkpointed() for _ in range(3)]
        outcome = await going.outcome()
    assert facts(outcome) == plain
    assert kept[0].fuel < kept[1].fuel < kept[2].fuel < outcome.fuel
    for one_of in kept:
        beginning = await other.begin(job, one, one_of.state, one_of.fuel)
        again = await other.run("again", job, TRAVELLER, beginning)
        assert isinstance(again, Outcome)
        assert facts(again) == plain
        await other.supervisor.discard("again")


async def test_only_what_changed_is_made_into_blocks_and_sent(places: list[Place]) -> None:
    """The heap guest has eight mebibytes, and changes the first of them for ever."""
    one, other = places
    job = job_of(HEAP, "8", "1000000", memory=16 << 20, **LONG)
    async with trio.open_nursery() as nursery:
        going = await begin(nursery, one, job, HEAP, began=100_000_000)
        first = await going.checkpointed()
        before = len(list(one.blocks.cids()))
        whole = await other.fetch(one, first.state, 1 << 30)
        last = await going.suspended()
        made = len(list(one.blocks.cids())) - before
        rest = await other.fetch(one, last.state, 1 << 30)
    assert before >= 32
    assert made < 16
    assert rest < whole / 3
    beginning = await other.begin(job, one, last.state, last.fuel)
    async with trio.open_nursery() as nursery:
        going = await begin(nursery, other, job, HEAP, beginning=beginning, began=last.fuel)
        nursery.cancel_scope.cancel()


async def test_who_cannot_be_held_is_told_why_and_runs_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = place.supervisor
    assert "does not run" in reason_of(await supervisor.suspend("nobody"))
    async with trio.open_nursery() as nursery:
        going = await begin(nursery, place, job_of(UNMOVABLE, "loop", **LONG), UNMOVABLE)
        for stays in (await supervisor.suspend(going.key), await supervisor.checkpoint(going.key)):
            assert stays == Stays("its module was not made to be moved", is_for_good=True)
        nursery.cancel_scope.cancel()
    monkeypatch.setattr(course, "HOLD_S", 0.1)
    async with trio.open_nursery() as nursery:
        going = await begin(nursery, place, job_of(TRAVELLER, "0", **LONG), TRAVELLER)
        stays = await supervisor.suspend(going.key)
        assert stays == Stays("it did not come to a place where it can stand still", False)
        assert not going.is_over.is_set()
        supervisor.pause(going.key)
        assert "paused" in reason_of(await supervisor.checkpoint(going.key))
        nursery.cancel_scope.cancel()


async def test_before_it_runs_and_after_it_ended_nothing_is_held(place: Place) -> None:
    job = job_of(HOSTILE, "exit", "3")
    async with trio.open_nursery() as nursery:
        outcome: list[Outcome | Suspended] = []

        async def go() -> None:
            outcome.append(await place.run("short", job, HOSTILE))

        nursery.start_soon(go)
        await until(lambda: place.supervisor.statistics().running == 1)
        assert "not begun" in reason_of(await place.supervisor.suspend("short"))
    assert isinstance(outcome[0], Outcome)
    assert outcome[0].exit_code == 3
    assert "does not run" in reason_of(await place.supervisor.checkpoint("short"))


async def test_of_two_who_suspend_one_does(place: Place) -> None:
    job = spinner()
    answers: list[Suspended | Stays] = []
    async with trio.open_nursery() as nursery:
        going = await begin(nursery, place, job, HOSTILE)

        async def ask() -> None:
            answers.append(await place.supervisor.suspend(going.key))

        for _ in range(2):
            nursery.start_soon(ask)
    assert sorted(answer == going.end[0] for answer in answers) == [False, True]
    assert isinstance(going.end[0], Suspended)


async def test_a_run_that_is_cancelled_while_it_is_held_leaves_nothing(
    place: Place, tmp_path: Path
) -> None:
    is_held = trio.Event()

    async def keep(held: Held) -> Cid:
        is_held.set()
        await trio.sleep_forever()
        raise AssertionError

    async with trio.open_nursery() as nursery:
        going = await begin(nursery, place, spinner(), HOSTILE, keep=keep)
        (pid,) = place.supervisor.statistics().pids
        nursery.start_soon(place.supervisor.suspend, going.key)
        await is_held.wait()
        nursery.cancel_scope.cancel()
    assert is_gone(pid)
    assert list((tmp_path / "one" / "tasks").iterdir()) == []


async def test_a_state_that_cannot_be_kept_lets_the_run_go_on(places: list[Place]) -> None:
    one, other = places
    job, refusals = traveller(), 2
    saving = Saving(one.blocks)

    async def keep(held: Held) -> Cid:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise Refused("the store is full")
        return await one.keep(saving, held)

    async with trio.open_nursery() as nursery:
        going = await begin(nursery, one, job, TRAVELLER, keep=keep)
        assert "full" in reason_of(await one.supervisor.checkpoint(going.key))
        assert "full" in reason_of(await one.supervisor.suspend(going.key))
        end = await going.suspended()
    beginning = await other.begin(job, one, end.state, end.fuel)
    outcome = await other.run("there", job, TRAVELLER, beginning)
    assert isinstance(outcome, Outcome)
    assert facts(outcome) == facts(await ended(other, job, TRAVELLER))


async def test_a_worker_that_cuts_its_image_short_is_not_suspended(place: Place) -> None:
    async def keep(held: Held) -> Cid:
        os.truncate(held.image, 100)
        return await place.keep(Saving(place.blocks), held)

    async with trio.open_nursery() as nursery:
        going = await begin(nursery, place, spinner(), HOSTILE, keep=keep)
        assert "too short" in reason_of(await place.supervisor.suspend(going.key))
        nursery.cancel_scope.cancel()


async def test_a_worker_killed_while_its_state_is_laid_out_is_not_missed(
    places: list[Place],
) -> None:
    one, other = places
    job = traveller()

    async def keep(held: Held) -> Cid:
        one.kill()
        return await one.keep(Saving(one.blocks), held)

    async with trio.open_nursery() as nursery:
        going = await begin(nursery, one, job, TRAVELLER, keep=keep)
        end = await going.suspended()
    beginning = await other.begin(job, one, end.state, end.fuel)
    outcome = await other.run("there", job, TRAVELLER, beginning)
    assert isinstance(outcome, Outcome)
    assert facts(outcome) == facts(await ended(other, job, TRAVELLER))


@pytest.mark.parametrize("patience", range(0, 60, 15))
async def test_a_worker_killed_around_its_stop_is_lost_or_suspended_and_never_half(
    place: Place, patience: int
) -> None:
    """After more or fewer turns of the event loop: asked, unwinding, showing, laid out."""
    job = spinner()
    answer: list[Suspended | Stays] = []
    async with trio.open_nursery() as nursery:
        going = await begin(nursery, place, job, HOSTILE)

        async def ask() -> None:
            answer.append(await place.supervisor.suspend(going.key))

        nursery.start_soon(ask)
        for _ in range(patience):
            await trio.testing.wait_all_tasks_blocked(0.0002)
        place.kill()
    if isinstance(going.end[0], Suspended):
        assert answer == going.end
        assert place.blocks.has(going.end[0].state)
    else:
        assert isinstance(going.end[0], WorkerLost)


async def test_a_worker_killed_before_it_goes_on_is_lost_and_the_state_is_good(
    places: list[Place],
) -> None:
    one, other = places
    job = traveller()
    end = await suspend(one, job, TRAVELLER)
    for _ in range(3):
        beginning = await other.begin(job, one, end.state, end.fuel)
        async with trio.open_nursery() as nursery:
            going = Going(other, "lost")
            nursery.start_soon(partial(going.run, job, TRAVELLER, beginning=beginning))
            await until(lambda: other.supervisor.statistics().running == 1)
            other.kill()
        assert isinstance(going.end[0], WorkerLost)
    beginning = await other.begin(job, one, end.state, end.fuel)
    outcome = await other.run("there", job, TRAVELLER, beginning)
    assert isinstance(outcome, Outcome)
    assert facts(outcome) == facts(await ended(other, job, TRAVELLER))


async def test_kept_is_not_suspended(place: Place) -> None:
    async with trio.open_nursery() as nursery:
        going = await begin(nursery, place, spinner(), HOSTILE)
        assert isinstance(await place.supervisor.checkpoint(going.key), Kept)
        assert not going.is_over.is_set()
        nursery.cancel_scope.cancel()
