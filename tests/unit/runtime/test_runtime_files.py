"""Files: nothing outside is reachable, everything inside is counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from runtime_machine import IN, OUT, TMP, Machine

from mesh.runtime.files import DESCRIPTORS_MAX, ENTRIES_MAX, ENTRY_COST
from mesh.runtime.preview1 import APPEND, Errno, Open, Rights
from mesh.runtime.trees import DEPTH_MAX, HostFailure

CREATE = Open.CREATE


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """/in with a file, a folder, and things that must not be seen."""
    folder = tmp_path / "inputs"
    (folder / "folder" / "deep").mkdir(parents=True)
    (folder / "file").write_text("content")
    (folder / "folder" / "b").write_text("b")
    (folder / "folder" / "a").write_text("a")
    (folder / "folder" / "passwd").symlink_to("/etc/passwd")
    (folder / "folder" / "etc").symlink_to("/etc")
    os.mkfifo(folder / "folder" / "fifo")
    (tmp_path / "secret").write_text("secret")
    return folder


@pytest.fixture
def machine(tmp_path: Path, inputs: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("..", Errno.NOTCAPABLE),
        ("../secret", Errno.NOTCAPABLE),
        ("a/../../secret", Errno.NOTCAPABLE),
        ("./.././secret", Errno.NOTCAPABLE),
        ("/etc/passwd", Errno.NOTCAPABLE),
        ("//etc/passwd", Errno.NOTCAPABLE),
        ("folder/passwd", Errno.LOOP),
        ("folder/etc", Errno.LOOP),
        ("folder/etc/passwd", Errno.LOOP),
        ("folder/fifo", Errno.NOTCAPABLE),
        ("file/x", Errno.NOTDIR),
        ("file/", Errno.NOTDIR),
        ("missing", Errno.NOENT),
        ("missing/x", Errno.NOENT),
        ("folder/missing", Errno.NOENT),
        ("", Errno.NOENT),
        ("a\0b", Errno.INVAL),
        (b"\xff", Errno.ILSEQ),
        ("x" * 256, Errno.NAMETOOLONG),
        ("x/" * 600, Errno.NAMETOOLONG),
    ],
)
@pytest.mark.parametrize("call", ["open", "stat"])
def test_a_path_that_leads_out_or_nowhere_is_refused(
    machine: Machine, path: str | bytes, code: Errno, call: str
) -> None:
    if call == "open":
        assert machine.open(path, folder=IN) == code
    else:
        assert machine.call("path_filestat_get", IN, 0, *machine.text(path), 64) == code


@pytest.mark.parametrize("path", ["file", "./file", "folder/../file", "folder//./../file"])
def test_a_path_that_stays_inside_is_followed(machine: Machine, path: str) -> None:
    number = machine.opened(path, folder=IN, rights=Rights.READ)
    assert machine.read(number, 100) == b"content"


def test_an_open_folder_is_no_way_out_either(machine: Machine) -> None:
    folder = machine.opened("folder", folder=IN)
    assert machine.open("../file", folder=folder, rights=Rights.READ) == Errno.SUCCESS
    assert machine.open("../../secret", folder=folder) == Errno.NOTCAPABLE
    assert machine.open("x", folder=machine.opened("file", folder=IN, rights=2)) == Errno.NOTDIR


def test_folders_are_listed_in_order_without_links_and_pipes(machine: Machine) -> None:
    folder = machine.opened("folder", folder=IN)
    assert machine.names(folder) == [".", "..", "a", "b", "deep"]
    assert machine.names(IN) == [".", "..", "file", "folder"]


def test_a_listing_can_be_read_in_small_pieces(machine: Machine) -> None:
    for n in range(40):
        machine.opened(f"name-{n:02}", how=CREATE)
    assert machine.names(OUT, room=100)[2:] == [f"name-{n:02}" for n in range(40)]


def test_inputs_cannot_be_changed(machine: Machine) -> None:
    assert machine.open("file", folder=IN, rights=Rights.WRITE) == Errno.ROFS
    assert machine.open("file", folder=IN, rights=2, how=Open.TRUNCATE) == Errno.ROFS
    assert machine.open("folder/new", folder=IN, how=CREATE) == Errno.ROFS
    assert machine.open("new", folder=IN, how=CREATE) == Errno.ROFS
    assert machine.open("new/newer", folder=IN, how=CREATE) == Errno.NOENT
    assert machine.path("path_create_directory", "new", folder=IN) == Errno.ROFS
    assert machine.path("path_create_directory", "folder/new", folder=IN) == Errno.ROFS
    assert machine.path("path_unlink_file", "file", folder=IN) == Errno.ROFS
    assert machine.path("path_remove_directory", "folder", folder=IN) == Errno.ROFS
    assert machine.rename("file", "file", folder=IN) == Errno.ROFS
    number = machine.opened("file", folder=IN, rights=Rights.READ)
    assert machine.write(number, b"x") == Errno.NOTCAPABLE
    assert machine.call("fd_fdstat_set_rights", number, Rights.WRITE, 0) == Errno.NOTCAPABLE
    assert machine.call("fd_filestat_set_size", number, 0) == Errno.NOTCAPABLE
    assert (machine.inputs / "file").read_text() == "content"


def test_links_cannot_be_made(machine: Machine) -> None:
    text = machine.text("/etc/passwd")
    assert machine.call("path_symlink", *text, OUT, *text) == Errno.NOTSUP
    assert machine.call("path_link", OUT, 0, *text, OUT, *text) == Errno.NOTSUP
    assert os.listdir(machine.out) == []


def test_what_is_written_is_read_again(machine: Machine) -> None:
    number = machine.opened("file", how=CREATE)
    assert machine.write(number, b"hello ") == 0
    assert machine.write(number, b"world") == 0
    assert machine.call("fd_seek", number, 0, 0, 64) == 0
    assert machine.read(number, 100) == b"hello world"
    assert (machine.out / "file").read_bytes() == b"hello world"


def test_an_appending_descriptor_writes_at_the_end(machine: Machine) -> None:
    first = machine.opened("file", how=CREATE)
    machine.write(first, b"12345")
    second = machine.opened("file", flags=APPEND)
    machine.write(second, b"67")
    assert (machine.out / "file").read_bytes() == b"1234567"


def test_create_and_exclude_and_truncate(machine: Machine) -> None:
    assert machine.open("a") == Errno.NOENT
    number = machine.opened("a", how=CREATE | Open.EXCLUSIVE)
    machine.write(number, b"12345")
    assert machine.open("a", how=CREATE | Open.EXCLUSIVE) == Errno.EXIST
    assert machine.open("a", how=Open.DIRECTORY) == Errno.NOTDIR
    assert machine.files.used == ENTRY_COST + 5
    machine.opened("a", how=Open.TRUNCATE)
    assert machine.files.used == ENTRY_COST
    assert machine.open(".", how=Open.TRUNCATE) == Errno.ISDIR


# --- the quota --------------------------------------------------------------------------------


def test_a_write_beyond_the_quota_is_cut_and_then_refused(tmp_path: Path) -> None:
    machine = Machine(tmp_path, quota=ENTRY_COST + 100)
    number = machine.opened("file", how=CREATE)
    assert machine.write(number, bytes(60)) == 0
    assert machine.write(number, bytes(60)) == 0
    assert machine.u32() == 40
    assert machine.write(number, b"x") == Errno.NOSPC
    assert machine.files.was_refused_space
    assert (machine.out / "file").stat().st_size == 100


def test_overwriting_costs_nothing_and_both_trees_share_the_quota(tmp_path: Path) -> None:
    machine = Machine(tmp_path, quota=2 * ENTRY_COST + 100)
    number = machine.opened("file", how=CREATE)
    for _ in range(5):
        assert machine.call("fd_seek", number, 0, 0, 64) == 0
        assert machine.write(number, bytes(100)) == 0
    other = machine.opened("file", folder=TMP, how=CREATE)
    assert machine.write(other, b"x") == Errno.NOSPC
    assert machine.path("path_unlink_file", "file") == Errno.BUSY
    assert machine.call("fd_close", number) == 0
    assert machine.path("path_unlink_file", "file") == 0
    assert machine.write(other, b"x") == 0


@pytest.mark.parametrize("call", ["fd_filestat_set_size", "fd_allocate", "fd_pwrite"])
def test_a_sparse_file_counts_at_its_full_size(machine: Machine, call: str) -> None:
    number = machine.opened("file", how=CREATE)
    vectors = machine.vectors((0, 1))
    far = {
        "fd_filestat_set_size": (number, 1 << 40),
        "fd_allocate": (number, 1 << 39, 1 << 39),
        "fd_pwrite": (number, *vectors, 1 << 40, 64),
    }
    assert machine.call(call, *far[call]) == Errno.NOSPC
    assert machine.files.used == ENTRY_COST


def test_shrinking_and_removing_give_back(machine: Machine) -> None:
    number = machine.opened("file", how=CREATE)
    assert machine.call("fd_allocate", number, 0, 5000) == 0
    assert machine.files.used == ENTRY_COST + 5000
    assert machine.call("fd_filestat_set_size", number, 7) == 0
    assert machine.files.used == ENTRY_COST + 7
    machine.call("fd_close", number)
    assert machine.path("path_unlink_file", "file") == 0
    assert machine.path("path_create_directory", "folder") == 0
    assert machine.path("path_remove_directory", "folder") == 0
    assert (machine.files.used, machine.files.entries) == (0, 0)


def test_empty_files_and_folders_cost_too(tmp_path: Path) -> None:
    machine = Machine(tmp_path, quota=2 * ENTRY_COST)
    machine.opened("file", how=CREATE)
    assert machine.path("path_create_directory", "folder") == 0
    assert machine.open("more", how=CREATE) == Errno.NOSPC
    assert machine.path("path_create_directory", "more") == Errno.NOSPC
    assert machine.files.was_refused_space


def test_the_number_of_files_is_bounded_however_large_the_quota(tmp_path: Path) -> None:
    machine = Machine(tmp_path, quota=1 << 40)
    machine.files.entries = ENTRIES_MAX
    assert machine.open("more", how=CREATE) == Errno.NOSPC


def test_descriptors_are_bounded_and_reused(machine: Machine) -> None:
    numbers = [machine.opened("file", how=CREATE) for _ in range(DESCRIPTORS_MAX - 6)]
    assert machine.open("file") == Errno.MFILE
    assert machine.call("fd_close", numbers[3]) == 0
    assert machine.opened("file") == numbers[3]


# --- moving and removing ----------------------------------------------------------------------


def test_renaming_replaces_and_counts_right(machine: Machine) -> None:
    for name, size in (("a", 10), ("b", 1000)):
        number = machine.opened(name, how=CREATE)
        machine.write(number, bytes(size))
        machine.call("fd_close", number)
    assert machine.rename("a", "b") == 0
    assert machine.files.used == ENTRY_COST + 10
    assert os.listdir(machine.out) == ["b"]
    assert machine.rename("b", "b") == 0
    assert machine.rename("missing", "c") == Errno.NOENT
    assert machine.rename("b", "c", to_folder=TMP) == Errno.XDEV


def test_open_files_go_with_their_folder(machine: Machine) -> None:
    machine.path("path_create_directory", "old")
    folder = machine.opened("old")
    number = machine.opened("old/file", how=CREATE)
    assert machine.rename("old", "new") == 0
    assert machine.write(number, b"x") == 0
    assert machine.open("file", folder=folder) == 0
    assert machine.path("path_unlink_file", "new/file") == Errno.BUSY


def test_folders_move_only_where_depth_stays_bounded(machine: Machine) -> None:
    for path in ("a", "a/b", "c"):
        assert machine.path("path_create_directory", path) == 0
    assert machine.rename("a", "c/a") == Errno.XDEV
    assert machine.rename("a", "a/b/a") == Errno.INVAL
    assert machine.rename("a/b", "c/b") == 0
    assert machine.rename("c", "a") == 0
    assert os.listdir(machine.out / "a") == ["b"]


def test_kinds_cannot_replace_each_other(machine: Machine) -> None:
    machine.path("path_create_directory", "folder")
    machine.path("path_create_directory", "full")
    machine.opened("full/file", how=CREATE)
    machine.call("fd_close", machine.opened("file", how=CREATE))
    assert machine.rename("file", "folder") == Errno.ISDIR
    assert machine.rename("folder", "file") == Errno.NOTDIR
    assert machine.rename("folder", "full") == Errno.NOTEMPTY
    assert machine.path("path_unlink_file", "folder") == Errno.ISDIR
    assert machine.path("path_remove_directory", "file") == Errno.NOTDIR
    assert machine.path("path_remove_directory", "full") == Errno.NOTEMPTY
    assert machine.path("path_remove_directory", ".") == Errno.BUSY


def test_depth_is_bounded(machine: Machine) -> None:
    path = "d"
    for _ in range(DEPTH_MAX - 1):
        assert machine.path("path_create_directory", path) == 0
        path += "/d"
    assert machine.path("path_create_directory", path) == 0
    assert machine.path("path_create_directory", path + "/d") == Errno.NAMETOOLONG


def test_renumbering_closes_what_was_there(machine: Machine) -> None:
    first, second = machine.opened("a", how=CREATE), machine.opened("b", how=CREATE)
    assert machine.call("fd_renumber", first, second) == 0
    assert machine.call("fd_renumber", second, second) == 0
    machine.write(second, b"x")
    assert (machine.out / "a").read_bytes() == b"x"
    assert machine.call("fd_close", first) == Errno.BADF


def test_a_failure_of_this_machine_is_not_the_guests_to_see(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = machine.opened("file", how=CREATE)

    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(HostFailure, match="No space"):
        machine.write(number, b"x")
