"""States that lie, through the whole path: each is refused with its reason, and nobody minds."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import attrs
import pytest
import trio
from runtime_jobs import PATIENCE, job_of
from runtime_places import HEAP, TRAVELLER, Place, facts, suspend

from mesh.errors import MeshError
from mesh.ids import RAW, cid_of
from mesh.migration.snapshot import (
    PIECE,
    Calls,
    OpenFile,
    Snapshot,
    decode,
    encode_frame,
    encode_head,
)
from mesh.runtime.course import Beginning
from mesh.runtime.manifest import Job, encode
from mesh.runtime.supervisor import Outcome, WorkerLost, open_supervisor
from mesh.storage.files import add_bytes
from mesh.storage.states import lay_out
from mesh.storage.unixfs import import_dir, import_file

JOB = job_of(TRAVELLER, "24", "4000", fuel=1 << 40)
Change = Callable[[Snapshot], Snapshot]


@attrs.define
class Suspect:
    """A true state of JOB, and where lies are told of it."""

    place: Place
    beginning: Beginning
    state: bytes

    async def go_on(self, data: bytes, *, job: Job = JOB, fuel: int | None = None) -> Outcome:
        """From a snapshot of these bytes."""
        place = self.place
        place.runs += 1
        folder = place.folder / f"lie-{place.runs}"
        shutil.copytree(self.beginning.snapshot.parent, folder)
        (folder / "snapshot").write_bytes(data)
        told = self.beginning.fuel if fuel is None else fuel
        begins = Beginning(folder / "snapshot", folder / "out", folder / "tmp", told)
        outcome = await place.run(f"lie-{place.runs}", job, TRAVELLER, begins)
        assert isinstance(outcome, Outcome)
        return outcome

    def forged(self, change: Change) -> bytes:
        """With another head, and the pages as they are."""
        snapshot, pages = decode(memoryview(self.state))
        frames = b"".join(encode_frame(data) for _, _, data in pages)
        return encode_head(change(snapshot)) + frames

    async def check_unharmed(self) -> None:
        """No worker is left, and the state itself is still good here."""
        assert self.place.supervisor.statistics().running == 0
        outcome = await self.place.run("plain", JOB, TRAVELLER)
        assert isinstance(outcome, Outcome)
        assert facts(await self.go_on(self.state)) == facts(outcome)


@pytest.fixture
async def suspect(tmp_path: Path) -> AsyncIterator[Suspect]:
    with trio.fail_after(PATIENCE):
        async with open_supervisor(tmp_path / "node", workers_max=2) as supervisor:
            place = Place(supervisor, tmp_path)
            end = await suspend(place, JOB, TRAVELLER)
            beginning = await place.begin(JOB, place, end.state, end.fuel)
            yield Suspect(place, beginning, beginning.snapshot.read_bytes())


def with_calls(**changes: Any) -> Change:
    def change(snapshot: Snapshot) -> Snapshot:
        return attrs.evolve(snapshot, calls=attrs.evolve(snapshot.calls, **changes))

    return change


def also_open(*opened: OpenFile) -> Change:
    def change(snapshot: Snapshot) -> Snapshot:
        calls: Calls = snapshot.calls
        return attrs.evolve(snapshot, calls=attrs.evolve(calls, opened=(*calls.opened, *opened)))

    return change


def change(**changes: Any) -> Change:
    return lambda snapshot: attrs.evolve(snapshot, **changes)


LIES: list[tuple[Change, str]] = [
    (change(module=cid_of(RAW, b"other")), "another task's"),
    (change(job=cid_of(RAW, b"other")), "another task's"),
    (change(fuel=0), "other fuel"),
    (change(size=1 << 16), "memory or a stack|page outside"),
    (change(size=4 << 30), "more memory than was bought"),
    (change(size=0, regions={}), "memory or a stack"),
    (change(variables=()), "other variables"),
    (change(variables=((3, 0),)), "other variables"),
    (change(regions={15: 1}), "longer|another length"),
    (change(stdout=bytes(1 << 17)), "said more than it may"),
    (also_open(OpenFile(200, 1, ("none",), 0, 0, 0)), "not there"),
    (also_open(OpenFile(200, 0, ("log",), 0, 0, 0)), "not there"),
]


async def test_a_head_that_lies_is_refused_with_its_reason(suspect: Suspect) -> None:
    for lie, why in LIES:
        with pytest.raises(WorkerLost, match=why):
            await suspect.go_on(suspect.forged(lie))
    await suspect.check_unharmed()


async def test_a_state_of_another_job_or_other_fuel_is_refused(suspect: Suspect) -> None:
    with pytest.raises(WorkerLost, match="another task's"):
        await suspect.go_on(suspect.state, job=attrs.evolve(JOB, args=("23", "4000")))
    with pytest.raises(WorkerLost, match="other fuel"):
        await suspect.go_on(suspect.state, fuel=suspect.beginning.fuel + 1)
    with pytest.raises(WorkerLost, match="cannot be read"):
        await suspect.go_on(b"")
    await suspect.check_unharmed()


async def test_damage_is_refused_or_ends_the_task_and_nothing_else(suspect: Suspect) -> None:
    """Flipped bits in what is well formed otherwise may be another state; then the task goes on
    from that, within its limits."""
    chance = Random(7)
    cuts = [suspect.state[: chance.randrange(1, len(suspect.state))] for _ in range(6)]
    for cut in cuts:
        with pytest.raises(WorkerLost, match="state to go on from is none"):
            await suspect.go_on(cut)
    job = attrs.evolve(JOB, fuel=suspect.beginning.fuel + 10_000_000)
    snapshot, pages = decode(memoryview(suspect.state))
    own = attrs.evolve(snapshot, job=cid_of(RAW, encode(job)))
    frames = b"".join(encode_frame(data) for _, _, data in pages)
    whole = encode_head(own) + frames
    for _ in range(12):
        forgery = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            forgery[chance.randrange(len(forgery))] ^= 1 << chance.randrange(8)
        try:
            outcome = await suspect.go_on(bytes(forgery), job=job)
        except WorkerLost:
            continue
        assert outcome.fuel <= job.fuel
    await suspect.check_unharmed()


async def test_memory_and_a_stack_of_chance_end_the_task_and_nothing_else(
    suspect: Suspect,
) -> None:
    chance = Random(8)
    job = attrs.evolve(JOB, fuel=suspect.beginning.fuel + 10_000_000)
    snapshot, _ = decode(memoryview(suspect.state))
    for _ in range(4):
        lie = attrs.evolve(
            snapshot,
            job=cid_of(RAW, encode(job)),
            stack=chance.randbytes(len(snapshot.stack)),
        )
        frames = (
            encode_frame(chance.randbytes(m.bit_count() * PIECE)) for m in lie.regions.values()
        )
        try:
            outcome = await suspect.go_on(encode_head(lie) + b"".join(frames), job=job)
        except WorkerLost:
            continue
        assert outcome.fuel <= job.fuel
    await suspect.check_unharmed()


async def test_a_state_of_a_module_that_cannot_be_moved_is_refused(suspect: Suspect) -> None:
    plain = TRAVELLER.with_name("traveller.wasm")
    begins = suspect.beginning
    with pytest.raises(WorkerLost, match="cannot be moved"):
        await suspect.place.run("plain", job_of(plain, "1"), plain, begins)


async def test_what_is_no_state_is_never_laid_out(suspect: Suspect, tmp_path: Path) -> None:
    blocks = suspect.place.blocks
    file, folder = add_bytes(blocks, b"x"), import_dir({}, blocks.put)
    snapshot = import_file([suspect.state], blocks.put)
    large = import_file([bytes(2 << 20)], blocks.put)
    for number, parts in enumerate(
        [
            {},
            {"snapshot": snapshot, "out": folder},
            {"snapshot": folder, "out": folder, "tmp": folder},
            {"snapshot": snapshot, "out": file, "tmp": folder},
            {"snapshot": snapshot, "out": folder, "tmp": import_dir({"a": large}, blocks.put)},
        ]
    ):
        root = import_dir(parts, blocks.put).cid
        with pytest.raises(MeshError):
            lay_out(blocks, root, tmp_path / f"no-{number}", memory=JOB.memory, disk=JOB.disk)
    with pytest.raises(MeshError):
        lay_out(blocks, file.cid, tmp_path / "no-file", memory=JOB.memory, disk=JOB.disk)


async def test_a_neighbour_of_a_state_that_lies_runs_on(suspect: Suspect) -> None:
    plain = job_of(HEAP, "4", "400", fuel=1 << 40)
    outcomes: list[object] = []

    async def neighbour() -> None:
        outcome = await suspect.place.run("neighbour", plain, HEAP)
        assert isinstance(outcome, Outcome)
        outcomes.append(facts(outcome))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(neighbour)
        for lie, why in LIES[:4]:
            with pytest.raises(WorkerLost, match=why):
                await suspect.go_on(suspect.forged(lie))
    outcome = await suspect.place.run("alone", plain, HEAP)
    assert isinstance(outcome, Outcome)
    assert outcomes == [facts(outcome)]
