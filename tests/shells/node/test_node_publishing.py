"""Modules made movable by a node: what it does with a Binaryen, without one, and with a bad one."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import trio
from node_hands import PATIENCE_S, until

from mesh import publishing as published
from mesh.errors import Exhausted, NotFound, Refused
from mesh.ids import RAW, Cid, cid_of
from mesh.publishing import Asked, Notebook, Publishing, source_here
from mesh.runtime import binary
from mesh.runtime.instrument import VARIABLE, check_tested, find_binaryen, version_of
from mesh.runtime.module import check_module
from mesh.runtime.origin import Origin, add_origin
from mesh.runtime.rewrite import Policy
from mesh.storage.blocks import MemoryBlocks
from mesh.storage.files import add_bytes

GUESTS = Path(__file__).parents[2] / "guests"
PLAIN, MOVABLE = (GUESTS / "hostile.wasm"), (GUESTS / "hostile.movable.wasm")
NAME = "mesh-5/binaryen-116"
SOURCE = cid_of(RAW, b"source")


def publishing_in(folder: Path) -> Publishing:
    (folder / "scratch").mkdir(exist_ok=True)
    return Publishing(MemoryBlocks(), folder / "scratch", folder / "publishing")


def add(publishing: Publishing, path: Path) -> Cid:
    return add_bytes(publishing.blocks, path.read_bytes()).cid


def pose(monkeypatch: pytest.MonkeyPatch, folder: Path, does: str, version: str = "116") -> Path:
    """A program that says it is wasm-opt and does something else; where it counts its runs."""
    program = folder / "wasm-opt"
    runs = folder / "runs"
    program.write_text(
        f"#!/bin/sh\n[ \"$1\" = --version ] && echo 'wasm-opt version {version}' && exit 0\n"
        f"echo $$ >> {runs}\n{does}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(program))
    return runs


def take_away(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(folder))


# --- without


async def test_without_binaryen_a_module_stays_as_it_is_and_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(monkeypatch, tmp_path)
    publishing = publishing_in(tmp_path)
    module = add(publishing, PLAIN)
    view = await publishing.instrument(module, Policy.OUTER, or_as_it_is=True)
    assert (view.module, view.is_movable, view.origin) == (module, False, None)
    assert "no Binaryen" in view.reason
    with pytest.raises(Refused, match="no Binaryen") as refused:
        await publishing.instrument(module, Policy.OUTER)
    assert VARIABLE in refused.value.hint


async def test_without_binaryen_a_movable_module_is_published_and_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(monkeypatch, tmp_path)
    publishing = publishing_in(tmp_path)
    module, source = add(publishing, MOVABLE), add(publishing, PLAIN)
    view = await publishing.instrument(module, Policy.ALL)
    assert (view.module, view.is_movable) == (module, True)
    assert view.origin == Origin(source, NAME, Policy.OUTER)


async def test_what_is_not_here_or_no_module_is_no_question_of_moving(tmp_path: Path) -> None:
    publishing = publishing_in(tmp_path)
    with pytest.raises(NotFound):
        await publishing.instrument(SOURCE, Policy.OUTER, or_as_it_is=True)
    text = add_bytes(publishing.blocks, b"no module").cid
    with pytest.raises(Refused, match="magic"):
        await publishing.instrument(text, Policy.OUTER, or_as_it_is=True)


async def test_an_origin_that_nobody_can_read_is_told_as_such(tmp_path: Path) -> None:
    publishing = publishing_in(tmp_path)
    twice = add_origin(MOVABLE.read_bytes(), Origin(SOURCE, NAME, Policy.OUTER))
    view = await publishing.describe(add_bytes(publishing.blocks, twice).cid)
    assert (view.is_movable, view.origin) == (True, None)
    assert "twice" in view.reason


# --- with a bad one


async def test_a_binaryen_whose_modules_cost_more_when_moved_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = pose(monkeypatch, tmp_path, "exit 0", version="132")
    publishing = publishing_in(tmp_path)
    with pytest.raises(Refused, match="132 may cost more") as refused:
        await publishing.instrument(add(publishing, PLAIN), Policy.OUTER)
    assert "116" in refused.value.hint
    assert not runs.exists()


async def test_what_failed_is_remembered_and_only_tried_again_by_who_insists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = pose(monkeypatch, tmp_path, "echo it makes me sick >&2; exit 3")
    publishing = publishing_in(tmp_path)
    module = add(publishing, PLAIN)
    first = await publishing.instrument(module, Policy.OUTER, or_as_it_is=True)
    assert "Binaryen failed on the module (3): it makes me sick" in first.reason
    again = Publishing(publishing.blocks, publishing.scratch, publishing.kept)  # a restarted node
    assert await again.instrument(module, Policy.OUTER, or_as_it_is=True) == first
    assert await again.describe(module) == first
    assert len(runs.read_text().split()) == 1
    with pytest.raises(Refused, match="it makes me sick"):
        await again.instrument(module, Policy.OUTER)
    assert len(runs.read_text().split()) == 2
    assert list(publishing.scratch.iterdir()) == []


async def test_a_module_that_cannot_be_moved_is_refused_for_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = pose(monkeypatch, tmp_path, "exit 1")
    sections = [s for s in binary.read_sections(PLAIN.read_bytes()) if s.number != binary.DATA]
    passive = binary.listing(binary.DATA, [b"\x01\x01x"])
    sections.insert(next(n for n, s in enumerate(sections) if s.number == binary.CODE) + 1, passive)
    publishing = publishing_in(tmp_path)
    module = add_bytes(publishing.blocks, binary.write_sections(sections)).cid
    view = await publishing.instrument(module, Policy.OUTER, or_as_it_is=True)
    assert "passive data" in view.reason
    assert not runs.exists()


async def test_one_that_never_ends_is_ended_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = pose(monkeypatch, tmp_path, f"exec {sys.executable} -c 'import time; time.sleep(3600)'")
    monkeypatch.setattr(published, "TRY_SECONDS", 1)
    publishing = publishing_in(tmp_path)
    with trio.fail_after(PATIENCE_S):
        view = await publishing.instrument(add(publishing, PLAIN), Policy.OUTER, or_as_it_is=True)
    assert "within 1 s" in view.reason
    for pid in runs.read_text().split() if runs.exists() else ():
        await until(lambda pid=int(pid): is_gone(pid))  # type: ignore[misc]  # a default of its own


async def test_a_client_that_leaves_takes_binaryen_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = pose(monkeypatch, tmp_path, f"exec {sys.executable} -c 'import time; time.sleep(3600)'")
    publishing = publishing_in(tmp_path)
    module = add(publishing, PLAIN)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publishing.instrument, module, Policy.OUTER)
            await until(lambda: runs.exists() and runs.read_text().endswith("\n"))
            nursery.cancel_scope.cancel()
        (pid,) = map(int, runs.read_text().split())
        await until(lambda: is_gone(pid))
    assert publishing.notebook.why_not(module) == "", "leaving says nothing of the module"


async def test_modules_that_wait_for_their_turn_are_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = pose(monkeypatch, tmp_path, f"exec {sys.executable} -c 'import time; time.sleep(3600)'")
    monkeypatch.setattr(published, "WAITING_MAX", 2)
    publishing = publishing_in(tmp_path)
    module = add(publishing, PLAIN)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(publishing.instrument, module, Policy.OUTER)
            await until(lambda: publishing._turn.statistics().tasks_waiting == 2)
            with pytest.raises(Exhausted, match="wait to be made movable"):
                await publishing.instrument(module, Policy.OUTER)
            await until(runs.exists)
            nursery.cancel_scope.cancel()


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# --- with a good one


@pytest.fixture
def binaryen(tmp_path: Path) -> str:
    """The name of a Binaryen that is tested."""
    try:
        found = find_binaryen(tmp_path)
        check_tested(version_of(found))
    except Refused as refusal:
        pytest.skip(refusal.reason)
    return version_of(found)


@pytest.mark.slow
async def test_what_is_published_is_what_was_committed(tmp_path: Path, binaryen: str) -> None:
    """So it came out of another machine, and of wasm-opt or the library, which give the same."""
    publishing = publishing_in(tmp_path)
    module = add(publishing, PLAIN)
    view = await publishing.instrument(module, Policy.OUTER)
    made = publishing.read(view.module)
    assert made == MOVABLE.read_bytes()
    assert check_module(made)
    assert view.origin == Origin(module, NAME, Policy.OUTER)
    assert publishing.notebook.get(Asked(module, NAME, Policy.OUTER)) == view.module
    assert source_here(publishing.blocks, made) == (module,)
    for cid in list(publishing.blocks.cids()):
        if cid != module:
            publishing.blocks.delete(cid)
    add(publishing, PLAIN)
    assert (await publishing.instrument(module, Policy.OUTER)).module == view.module
    assert publishing.read(view.module) == made, "it is made anew when it was swept away"
    other = await publishing.instrument(module, Policy.ALL)
    assert other.module != view.module
    assert other.origin == Origin(module, NAME, Policy.ALL)


# --- the notebook


def asked(number: int) -> Asked:
    return Asked(cid_of(RAW, b"%d" % number), NAME, Policy.OUTER)


def test_a_notebook_keeps_the_newest_and_survives_a_restart(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path / "notes", entries_max=3)
    for number in range(4):
        notebook.put(asked(number), SOURCE if number % 2 else f"reason {number}")
    notebook.put(asked(1), "changed")
    for kept in (notebook, Notebook(tmp_path / "notes", entries_max=3)):
        assert [kept.get(asked(n)) for n in range(4)] == [None, "changed", "reason 2", SOURCE]
        assert kept.why_not(asked(2).source) == "reason 2"
        assert kept.why_not(asked(3).source) == kept.why_not(SOURCE) == ""


@pytest.mark.parametrize(
    "damage",
    [b"", b"\xc1", b"\x92\x02\x90", b"\x92\x01\x91\x90", b"\x92\x01\x91\x94" + b"\xa1a" * 4],
)
def test_a_notebook_that_cannot_be_read_is_an_empty_one(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "notes").write_bytes(damage)
    notebook = Notebook(tmp_path / "notes")
    assert notebook.get(asked(1)) is None
    notebook.put(asked(1), SOURCE)
    assert Notebook(tmp_path / "notes").get(asked(1)) == SOURCE


def test_a_notebook_on_a_disk_that_is_gone_goes_on_in_memory(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    notebook = Notebook(folder / "notes")
    shutil.rmtree(folder)
    notebook.put(asked(1), SOURCE)
    assert notebook.get(asked(1)) == SOURCE


def test_a_source_is_kept_along_only_where_it_is_here(tmp_path: Path) -> None:
    blocks = MemoryBlocks()
    movable = MOVABLE.read_bytes()
    assert source_here(blocks, movable) == ()
    source = add_bytes(blocks, PLAIN.read_bytes()).cid
    assert source_here(blocks, movable) == (source,)
    assert source_here(blocks, PLAIN.read_bytes()) == ()
