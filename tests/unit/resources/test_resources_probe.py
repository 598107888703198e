"""The probe: what the owner uses, the mesh's own processes taken out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import trio
from attrs import define
from trio.testing import MockClock

from mesh.resources.capacity import Capacity
from mesh.resources.cgroup import ControlGroup
from mesh.resources.probe import EVERY_S, FIRST_S, Probe, ThisMachine, Usage, watch
from mesh.sansio import LoadSampled

GIB = 1 << 30


@define
class Scripted:
    """A machine of four cores and 8 GiB whose accounts a test moves by hand."""

    now: float = 0.0
    all_s: float = 1000.0
    our_s: float = 10.0
    all_memory: int = 3 * GIB
    our_memory: int = 1 * GIB

    def clock(self) -> float:
        return self.now

    def cpu_milli(self) -> int:
        return 4000

    def memory(self) -> int:
        return 8 * GIB

    def disk_free(self, folder: Path) -> int:
        assert folder.exists()
        return 100 * GIB

    def everybody(self) -> Usage:
        return Usage(self.all_s, self.all_memory)

    def ours(self) -> Usage:
        return Usage(self.our_s, self.our_memory)

    def runs(self, seconds: float, *, owner: float, mesh: float) -> None:
        """Time passes; *owner* and *mesh* keep so many cores busy."""
        self.now += seconds
        self.all_s += seconds * (owner + mesh)
        self.our_s += seconds * mesh


@pytest.fixture
def machine() -> Scripted:
    return Scripted()


def test_our_own_work_is_not_the_owners_load(machine: Scripted) -> None:
    probe = Probe(machine, machine.clock)
    machine.runs(10, owner=0.5, mesh=3.0)
    assert probe.sample(machine.now) == LoadSampled(cpu_milli=500, memory=2 * GIB)


def test_each_sample_counts_from_the_one_before(machine: Scripted) -> None:
    probe = Probe(machine, machine.clock)
    machine.runs(10, owner=4.0, mesh=0.0)
    probe.sample(machine.now)
    machine.runs(5, owner=0.25, mesh=1.0)
    assert probe.sample(machine.now).cpu_milli == 250


def test_what_the_machine_did_before_us_does_not_count(machine: Scripted) -> None:
    machine.runs(10_000, owner=4.0, mesh=0.0)
    probe = Probe(machine, machine.clock)
    machine.runs(10, owner=0.0, mesh=0.0)
    assert probe.sample(machine.now).cpu_milli == 0


def test_a_worker_whose_account_is_lost_makes_no_negative_work(machine: Scripted) -> None:
    probe = Probe(machine, machine.clock)
    machine.runs(10, owner=1.0, mesh=0.0)
    machine.our_s -= 9.0
    assert probe.sample(machine.now).cpu_milli == 1000


def test_the_load_is_within_the_machine(machine: Scripted) -> None:
    probe = Probe(machine, machine.clock)
    machine.runs(10, owner=5.0, mesh=0.0)  # the kernel's accounts are kept in coarse ticks
    machine.all_memory = 12 * GIB
    assert probe.sample(machine.now) == LoadSampled(cpu_milli=4000, memory=8 * GIB)
    machine.runs(10, owner=-1.0, mesh=1.0)
    machine.all_memory = 0
    assert probe.sample(machine.now) == LoadSampled(cpu_milli=0, memory=0)


def test_two_samples_at_one_moment_are_no_division_by_zero(machine: Scripted) -> None:
    probe = Probe(machine, machine.clock)
    assert probe.sample(machine.now).cpu_milli == 0


def test_capacity_is_all_that_the_machine_has(machine: Scripted, tmp_path: Path) -> None:
    probe = Probe(machine, machine.clock)
    whole = Capacity(cpu_milli=4000, memory=8 * GIB, disk=100 * GIB, slots=4)
    assert probe.capacity(tmp_path) == whole
    assert probe.capacity(tmp_path / "not" / "yet" / "there") == whole


async def test_the_first_sample_comes_early_and_the_others_in_time(
    machine: Scripted, autojump_clock: MockClock
) -> None:
    posted: list[float] = []
    began = trio.current_time()

    async def post(sample: LoadSampled) -> None:
        posted.append(trio.current_time() - began)
        if len(posted) == 4:
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, Probe(machine, trio.current_time), post)
    assert posted == pytest.approx([FIRST_S + EVERY_S * n for n in range(4)])


# --- the real machine ----------------------------------------------------------------------------


@pytest.fixture
def unlimited(tmp_path: Path) -> ThisMachine:
    """This machine without the control group that the tests happen to run in."""
    return ThisMachine(ControlGroup(proc=tmp_path / "none", mount=tmp_path / "none"))


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A process of ours that works for a while, says so, and waits to be let go."""
    work = "n = 0\nwhile time.process_time() < 0.3: n += 1"
    program = f"import time\n{work}\nprint('done', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield process
        process.kill()


def test_the_machine_has_cores_and_memory_and_disk(unlimited: ThisMachine, tmp_path: Path) -> None:
    assert unlimited.cpu_milli() >= 1000
    assert unlimited.memory() == psutil.virtual_memory().total
    assert unlimited.disk_free(tmp_path) > 0
    assert 0 < unlimited.everybody().memory < unlimited.memory()


def test_a_childs_work_is_ours_while_it_runs_and_after_it_ended(
    unlimited: ThisMachine, child: subprocess.Popen[str]
) -> None:
    before = unlimited.ours()
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "done\n"
    during = unlimited.ours()
    assert during.cpu_s - before.cpu_s >= 0.2  # the kernel counts in ticks
    child.communicate("\n")
    after = unlimited.ours()
    assert after.cpu_s >= during.cpu_s - 0.02
    assert after.memory < during.memory


def test_our_work_is_part_of_everybodys(unlimited: ThisMachine) -> None:
    ours, everybody = unlimited.ours(), unlimited.everybody()
    assert 0 < ours.cpu_s < everybody.cpu_s
    assert 0 < ours.memory < everybody.memory


def test_in_a_limited_group_the_group_is_the_machine(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/\n")
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 42000000\nuser_usec 1\n")
    (tmp_path / "memory.max").write_text(f"{64 << 20}\n")
    (tmp_path / "memory.current").write_text(f"{48 << 20}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {16 << 20}\n")
    machine = ThisMachine(ControlGroup(proc=tmp_path / "membership", mount=tmp_path))
    assert machine.cpu_milli() == 500
    assert machine.memory() == 64 << 20
    assert machine.everybody() == Usage(42.0, 32 << 20)
