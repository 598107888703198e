"""A series: many tasks, one worker, and each of them ends as it would have ended alone."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
import trio
from runtime_jobs import HOSTILE, PATIENCE, ROOT, WITNESS, ignore, is_gone, job_of, run, tree, until
from test_runtime_hostile import CASES

from mesh.errors import Refused, Unavailable
from mesh.ids import RAW, cid_of
from mesh.runtime import sandbox
from mesh.runtime.manifest import Job
from mesh.runtime.series import DEPTH, WAITING_PER_WORKER, Series, open_series
from mesh.runtime.supervisor import Outcome, Supervisor, WorkerLost, open_supervisor

RESIDUE = ROOT / "tests/guests/residue.wasm"
ENDLESS = {"fuel": 1 << 62}


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    with trio.fail_after(PATIENCE):
        async with open_supervisor(tmp_path / "node", workers_max=3) as opened:
            yield opened


def facts(outcome: Outcome) -> tuple[object, ...]:
    """All that a receipt rests on."""
    ended = (outcome.status, outcome.exit_code, outcome.detail, outcome.fuel)
    return (*ended, outcome.stdout, outcome.stderr, tree(outcome.out))


async def run_all(series: Series, jobs: list[Job]) -> list[tuple[object, ...]]:
    """As many at a time as are taken, each looked at before it is discarded."""
    found: dict[int, tuple[object, ...]] = {}
    slots = trio.CapacityLimiter(WAITING_PER_WORKER)

    async def go(number: int, job: Job) -> None:
        async with slots:
            outcome = await series.run(job)
            found[number] = facts(outcome)
            await series.discard(outcome)

    async with trio.open_nursery() as nursery:
        for number, job in enumerate(jobs):
            nursery.start_soon(go, number, job)
    return [found[number] for number in range(len(jobs))]


async def alone(
    supervisor: Supervisor, job: Job, module: Path, **inputs: Path
) -> tuple[object, ...]:
    named = tuple(pair for pair in job.inputs if pair[0] in inputs)
    outcome = await supervisor.run(
        "alone", attrs.evolve(job, inputs=named), module, inputs, on_progress=ignore
    )
    found = facts(outcome)
    await supervisor.discard("alone")
    return found


async def test_whatever_a_task_does_it_ends_as_it_would_alone(supervisor: Supervisor) -> None:
    """Every misbehaviour, three times, in an order that mixes them, on two workers."""
    pattern = job_of(HOSTILE)
    jobs = {mode: attrs.evolve(pattern, args=tuple(mode.split())) for mode in CASES}
    order = list(CASES) * 3
    random.Random(7).shuffle(order)
    async with open_series(supervisor, pattern, HOSTILE, {}, workers=2) as series:
        found = await run_all(series, [jobs[mode] for mode in order])
        assert series.statistics().ended == len(order)
        assert series.statistics().lost == 0
        assert series.statistics().kept == 0
        assert series.statistics().lives <= 2
    expected = {mode: await alone(supervisor, jobs[mode], HOSTILE) for mode in CASES}
    for mode, facts_ in zip(order, found, strict=True):
        assert facts_ == expected[mode], mode


async def test_nothing_goes_from_one_task_to_the_next(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    """Memory, descriptors, files, clock, chance, arguments, variables; after every kind of end."""
    (tmp_path / "one").write_text("1")
    (tmp_path / "other").write_text("2")
    inputs = {name: tmp_path / name for name in ("one", "other")}
    named = tuple((name, cid_of(RAW, name.encode())) for name in inputs)
    pattern = job_of(RESIDUE, inputs=named, memory=16 << 20)
    ends = [(), ("a",), ("b", "abort"), ("c", "exit"), ("d",), ()]
    jobs = [
        attrs.evolve(
            pattern,
            args=args,
            env=(("NUMBER", str(number)),),
            seed=bytes([number] * 16),
            t0_ns=number,
            inputs=named[: number % 3],
            disk=(1 << 20) if number % 4 else 0,
        )
        for number, args in enumerate(ends * 3)
    ]
    async with open_series(supervisor, pattern, RESIDUE, inputs, workers=1) as series:
        found = await run_all(series, jobs)
        assert series.statistics().lives == 1
    for number, job in enumerate(jobs):
        mine = {name: inputs[name] for name, _ in job.inputs}
        assert found[number] == await alone(supervisor, job, RESIDUE, **mine), number
    texts = [str(facts_[4]) for facts_ in found]
    assert all("1 marks, 0 dirty, " in text for text in texts)
    assert len(set(texts)) == len(texts)  # chance differs with the seed
    assert {"a", "b", "c", "d"} == {Path(name).name for facts_ in found for name in facts_[6]}  # type: ignore[attr-defined]


async def test_a_witness_of_all_it_sees_sees_the_same(supervisor: Supervisor) -> None:
    pattern = job_of(WITNESS)
    jobs = [attrs.evolve(pattern, args=(str(n),), seed=bytes([n] * 16)) for n in range(20)]
    async with open_series(supervisor, pattern, WITNESS, {}, workers=2) as series:
        found = await run_all(series, jobs)
    for number in (0, 7, 19):
        assert found[number] == await alone(supervisor, jobs[number], WITNESS)


async def test_tasks_that_leave_nothing_make_nothing_on_disk(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    pattern = job_of(HOSTILE, "exit", "0")
    async with open_series(supervisor, pattern, HOSTILE, {}, workers=1) as series:
        first = await series.run(pattern)
        desk = next((tmp_path / "node" / "tasks").glob("*/1/desk"))
        before = [(p.name, p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(desk.iterdir())]
        assert [name for name, _, _ in before] == ["out", "tmp"]
        assert {facts_[0] for facts_ in await run_all(series, [pattern] * 30)} == {"exited"}
        after = [(p.name, p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(desk.iterdir())]
        assert after == before
        last = await series.run(pattern)
        assert first.out == last.out
        await series.discard(first)
        assert list(last.out.iterdir()) == []
    assert list((tmp_path / "node" / "tasks").iterdir()) == []


async def test_what_tasks_left_is_kept_until_it_is_discarded(supervisor: Supervisor) -> None:
    pattern = job_of(RESIDUE)
    async with open_series(supervisor, pattern, RESIDUE, {}, workers=1) as series:
        outcomes = [await series.run(attrs.evolve(pattern, args=(name,))) for name in "ab"]
        assert [tree(o.out) for o in outcomes] == [{"folder/a": b"a"}, {"folder/b": b"b"}]
        assert series.statistics().kept == 2
        await series.discard(outcomes[0])
        await series.discard(outcomes[0])
        assert not outcomes[0].out.exists()
        assert tree(outcomes[1].out) == {"folder/b": b"b"}


async def test_a_task_beyond_its_wall_limit_is_killed_and_the_next_ones_run(
    supervisor: Supervisor,
) -> None:
    pattern = job_of(HOSTILE, "exit", "5")
    late = attrs.evolve(pattern, args=("loop",), fuel=1 << 62, wall_ms=300)
    async with open_series(supervisor, pattern, HOSTILE, {}, workers=1) as series:
        found = await run_all(series, [pattern, late, pattern, pattern])
        assert [(facts_[0], facts_[1]) for facts_ in found] == [
            ("exited", 5),
            ("wall-limit", 0),
            ("exited", 5),
            ("exited", 5),
        ]
        assert found[1][2] == "it ran for 300 ms"
        assert (await series.run(pattern)).exit_code == 5
        statistics = series.statistics()
        assert (statistics.late, statistics.lost, statistics.lives) == (1, 0, 2)


async def test_a_dead_worker_loses_the_task_that_ran_and_no_other(supervisor: Supervisor) -> None:
    pattern = job_of(HOSTILE, "exit", "5")
    endless = attrs.evolve(pattern, args=("loop",), fuel=1 << 62)
    killed: list[int] = []

    def kill(_: int) -> None:
        if not killed:
            killed.extend(supervisor.statistics().pids)
            os.kill(killed[0], signal.SIGKILL)

    async with open_series(supervisor, pattern, HOSTILE, {}, workers=1) as series:
        ends: list[str] = []

        async def lose() -> None:
            with pytest.raises(WorkerLost, match="SIGKILL"):
                await series.run(endless, on_progress=kill)
            ends.append("lost")

        async def go() -> None:
            ends.append((await series.run(pattern)).status)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lose)
            await until(lambda: series.statistics().running + series.statistics().waiting == 1)
            for _ in range(DEPTH + 3):
                nursery.start_soon(go)
        assert ends == ["lost"] + ["exited"] * (DEPTH + 3)
        statistics = series.statistics()
        assert (statistics.lost, statistics.ended, statistics.lives) == (1, DEPTH + 3, 2)
    assert is_gone(killed[0])


async def test_a_task_that_nobody_waits_for_is_given_up(supervisor: Supervisor) -> None:
    pattern = job_of(HOSTILE, "exit", "0")
    endless = attrs.evolve(pattern, args=("loop",), fuel=1 << 62)
    async with open_series(supervisor, pattern, HOSTILE, {}, workers=1) as series:
        with trio.CancelScope() as scope:
            await series.run(endless, on_progress=lambda _: scope.cancel())
        assert (await series.run(pattern)).status == "exited"
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(series.run, endless)
            await until(lambda: series.statistics().running == 5)
            nursery.cancel_scope.cancel()
        assert (await series.run(pattern)).status == "exited"
        statistics = series.statistics()
        assert (statistics.abandoned, statistics.lost, statistics.ended) == (6, 0, 2)


async def test_a_module_that_cannot_run_is_refused_task_by_task(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    path = tmp_path / "module"
    path.write_bytes(HOSTILE.read_bytes()[:9000] + bytes(200) + HOSTILE.read_bytes()[9200:])
    pattern = job_of(path)
    async with open_series(supervisor, pattern, path, {}, workers=1) as series:
        found = await run_all(series, [pattern] * 3)
    assert found == [await alone(supervisor, pattern, path)] * 3
    assert found[0][0] == "refused"


async def test_memory_that_does_not_fit_at_the_start_is_said_so(supervisor: Supervisor) -> None:
    pattern = job_of(HOSTILE, "exit", "0")
    small = attrs.evolve(pattern, memory=1 << 16)
    async with open_series(supervisor, pattern, HOSTILE, {}, workers=1) as series:
        found = await run_all(series, [small, pattern])
    assert found == [await alone(supervisor, job, HOSTILE) for job in (small, pattern)]
    assert found[0][0] == "out-of-memory"


async def test_a_task_of_another_pattern_is_refused(supervisor: Supervisor) -> None:
    pattern = job_of(HOSTILE)
    named = (("file", cid_of(RAW, b"")),)
    async with open_series(supervisor, pattern, HOSTILE, {}, workers=1) as series:
        for change in (
            {"module": cid_of(RAW, b"")},
            {"inputs": named},
            {"memory": pattern.memory + 1},
            {"disk": pattern.disk + 1},
            {"seed": b""},
        ):
            with pytest.raises(Refused):
                await series.run(attrs.evolve(pattern, **change))
        assert series.statistics().lives == 0


async def test_too_many_tasks_at_a_time_are_turned_away(supervisor: Supervisor) -> None:
    pattern = job_of(HOSTILE, "exit", "0")
    statuses: list[str] = []
    async with open_series(supervisor, pattern, HOSTILE, {}, workers=1) as series:

        async def go() -> None:
            try:
                statuses.append((await series.run(pattern)).status)
            except Unavailable:
                statuses.append("turned away")

        async with trio.open_nursery() as nursery:
            for _ in range(WAITING_PER_WORKER + 6):
                nursery.start_soon(go)
        assert statuses.count("turned away") == series.statistics().turned_away == 6
    assert statuses.count("exited") == WAITING_PER_WORKER


async def test_a_paused_series_stands_still_and_goes_on(supervisor: Supervisor) -> None:
    pattern = job_of(HOSTILE, "exit", "0")
    spin = attrs.evolve(pattern, args=("spin", "2000"), fuel=1 << 40)
    async with open_series(supervisor, pattern, HOSTILE, {}, workers=1) as series:
        outcomes: list[Outcome] = []
        paused = trio.Event()

        def pause(_: int) -> None:
            if not paused.is_set():
                series.pause()
                paused.set()

        async def go() -> None:
            outcomes.append(await series.run(spin, on_progress=pause))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go)
            await paused.wait()
            (pid,) = supervisor.statistics().pids
            await until(lambda: Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1][1] == "T")
            assert outcomes == []
            series.resume()
        assert facts(outcomes[0]) == await alone(supervisor, spin, HOSTILE)


async def test_a_series_that_bought_part_of_a_core_ends_the_same(supervisor: Supervisor) -> None:
    pattern = job_of(HOSTILE, "spin", "20")
    async with open_series(supervisor, pattern, HOSTILE, {}, workers=1, cpu_milli=300) as series:
        found = await run_all(series, [pattern] * 4)
    assert found == [await alone(supervisor, pattern, HOSTILE)] * 4


async def test_a_series_that_is_closed_leaves_nothing(tmp_path: Path) -> None:
    pattern = job_of(HOSTILE, "loop", fuel=1 << 62)
    async with open_supervisor(tmp_path / "node", workers_max=1) as supervisor:
        pids: list[int] = []
        with trio.CancelScope() as scope:

            def stop(_: int) -> None:
                pids.extend(supervisor.statistics().pids)
                scope.cancel()

            async with open_series(supervisor, pattern, HOSTILE, {}, workers=1) as series:
                await series.run(pattern, on_progress=stop)
        assert len(pids) == 1
        assert is_gone(pids[0])
        assert list((tmp_path / "node" / "tasks").iterdir()) == []
        assert supervisor.statistics().running == 0
        assert (await run(supervisor, "a", HOSTILE, "exit", "3")).exit_code == 3


async def test_who_waits_longer_than_the_series_is_told_so(supervisor: Supervisor) -> None:
    pattern = job_of(HOSTILE, "loop", fuel=1 << 62)
    told: list[str] = []

    async def wait(series: Series) -> None:
        with pytest.raises(WorkerLost, match="closed"):
            await series.run(pattern)
        told.append("closed")

    async with (
        trio.open_nursery() as nursery,
        open_series(supervisor, pattern, HOSTILE, {}, workers=1) as series,
    ):
        for _ in range(DEPTH + 2):
            nursery.start_soon(wait, series)
        await until(lambda: series.statistics().running == DEPTH)
    assert len(told) == DEPTH + 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_worker_of_a_series_stands_behind_the_same_walls(supervisor: Supervisor) -> None:
    pattern = job_of(HOSTILE, "spin", "2000", fuel=1 << 40, disk=5 << 20)
    seen: dict[str, str] = {}

    def look(_: int) -> None:
        (pid,) = supervisor.statistics().pids
        for name in ("status", "limits"):
            seen[name] = Path(f"/proc/{pid}/{name}").read_text()

    async with open_series(supervisor, pattern, HOSTILE, {}, workers=1) as series:
        await series.run(pattern, on_progress=look)
    has_filter = sandbox.SECCOMP in sandbox.walls()
    assert f"Seccomp:\t{2 if has_filter else 0}" in seen["status"]
    assert "NoNewPrivs:\t1" in seen["status"]
    limits = {line[:26].strip(): line[26:].split()[:2] for line in seen["limits"].splitlines()}
    assert limits["Max file size"] == [str(5 << 20)] * 2
    assert limits["Max processes"] == ["0", "0"]
    assert limits["Max open files"] == ["320", "320"]
    assert limits["Max cpu time"][0] != "unlimited"
