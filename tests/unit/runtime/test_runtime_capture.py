"""What system calls know of a guest, moved: the guest cannot tell, and lies open nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import attrs
import pytest
from runtime_machine import BUFFER, RESULT, Machine

from mesh.errors import Refused
from mesh.migration.snapshot import Calls, OpenFile, OpenFolder
from mesh.runtime.capture import capture, restore
from mesh.runtime.files import Folder
from mesh.runtime.preview1 import Open, Rights
from mesh.runtime.trees import Tree


def trees_of(machine: Machine) -> tuple[Tree, ...]:
    found = [d.tree for d in machine.files.descriptors.values() if isinstance(d, Folder)]
    return tuple(found[:3])


def moved(old: Machine, folder: Path, calls: Calls | None = None) -> Machine:
    """The same guest elsewhere, with all that it had on disk and in memory."""
    calls = calls or capture(old.wasi)
    shutil.copytree(old.folder, folder, symlinks=True)
    new = Machine(folder)
    new.memory.data[:] = old.memory.data
    stdout, stderr = bytes(old.wasi.stdout.data), bytes(old.wasi.stderr.data)
    restore(new.wasi, trees_of(new), calls, stdout, stderr)
    return new


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "old/inputs").mkdir(parents=True)
    (tmp_path / "old/inputs/book").write_bytes(b"once upon a time")
    return Machine(tmp_path / "old")


def test_a_moved_guest_reads_on_in_its_standard_input(machine: Machine, tmp_path: Path) -> None:
    machine.files.redirect(0, trees_of(machine)[0], ("book",))
    assert machine.read(0, 5) == b"once "
    new = moved(machine, tmp_path / "new")
    assert new.read(0, 4) == b"upon"
    assert capture(new.wasi) != capture(machine.wasi), "each has an offset of its own"


def test_a_moved_guest_goes_on_where_it_was(machine: Machine, tmp_path: Path) -> None:
    machine.path("path_create_directory", "folder")
    file = machine.opened("folder/file", how=Open.CREATE)
    book = machine.opened("book", folder=3, rights=Rights.READ)
    machine.write(file, b"written before")
    machine.write(1, b"said before")
    machine.read(book, 5)
    machine.call("random_get", BUFFER, 8)
    new = moved(machine, tmp_path / "new")
    assert capture(new.wasi) == capture(machine.wasi)
    assert (new.files.used, new.files.entries) == (machine.files.used, machine.files.entries)
    for one in (machine, new):
        one.write(file, b" and after")
        one.write(1, b", said after")
    assert new.read(book, 4) == machine.read(book, 4) == b"upon"
    assert new.wasi.stdout.data == machine.wasi.stdout.data
    assert (new.out / "folder/file").read_bytes() == b"written before and after"
    for one in (machine, new):
        one.call("random_get", BUFFER, 8)
        one.call("clock_time_get", 0, 0, RESULT)
    assert new.memory.data == machine.memory.data


def test_a_folder_that_is_being_read_is_read_on(machine: Machine, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        machine.call("fd_close", machine.opened(name, how=Open.CREATE))
    assert machine.call("fd_readdir", 4, BUFFER, 60, 0, RESULT) == 0
    machine.path("path_unlink_file", "a")
    new = moved(machine, tmp_path / "new")
    for one in (machine, new):
        assert one.call("fd_readdir", 4, BUFFER, 4096, 2, RESULT) == 0
    assert new.memory.data == machine.memory.data
    assert new.u32() == 3 * 25


@pytest.mark.parametrize(
    "opened",
    [
        OpenFile(9, 1, ("none",), 0, 0, 0),
        OpenFile(9, 1, ("folder",), 0, 0, 0),
        OpenFile(9, 1, ("link",), 0, 0, 0),
        OpenFile(9, 0, ("none",), 0, 0, 0),
        OpenFile(9, 0, ("book",), Rights.WRITE, 0, 0),
        OpenFolder(9, 1, ("none",), False),
        OpenFolder(9, 0, ("book",), False),
        OpenFolder(9, 1, ("link", "deep"), False),
    ],
    ids=str,
)
def test_what_is_not_there_is_not_opened(
    machine: Machine, tmp_path: Path, opened: OpenFile | OpenFolder
) -> None:
    machine.path("path_create_directory", "folder")
    calls = capture(machine.wasi)
    (machine.out / "link").symlink_to("/etc/passwd")
    with pytest.raises(Refused):
        moved(machine, tmp_path / "new", attrs.evolve(calls, opened=(*calls.opened, opened)))


def test_more_than_the_quota_is_not_taken_in(machine: Machine, tmp_path: Path) -> None:
    (machine.out / "large").write_bytes(bytes(2 << 20))
    with pytest.raises(Refused, match="quota"):
        moved(machine, tmp_path / "new")
