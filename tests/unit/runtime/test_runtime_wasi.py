"""WASI: deterministic, bounded, and an errno for whatever is asked."""

from __future__ import annotations

import os
import random
import struct
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from runtime_machine import BUFFER, IN, OUT, RESULT, TEXT, VECTORS, FakeMemory, Machine

from mesh.runtime.files import DESCRIPTORS_MAX, ENTRY_COST
from mesh.runtime.preview1 import SIGNATURES, Errno, Filetype, Open, Rights
from mesh.runtime.wasi import RANDOM_MAX, TRANSFER_MAX, VECTORS_MAX, Exit


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_arguments_and_environment_arrive(machine: Machine) -> None:
    assert machine.call("args_sizes_get", 0, 4) == 0
    assert (machine.u32(0), machine.u32(4)) == (3, len(b"task\0eins\0zwei\0"))
    assert machine.call("args_get", 0, 100) == 0
    assert machine.memory.read(100, 15) == b"task\0eins\0zwei\0"
    assert [machine.u32(4 * n) for n in range(3)] == [100, 105, 110]
    assert machine.call("environ_get", 0, 100) == 0
    assert machine.memory.read(100, 4) == b"A=b\0"


def test_the_clock_is_a_function_of_fuel_and_never_stands_still(machine: Machine) -> None:
    assert machine.call("clock_time_get", 1, 0, RESULT) == 0
    first = machine.u64()
    assert machine.call("clock_time_get", 1, 0, RESULT) == 0
    assert machine.u64() == first + 1
    machine.fuel = 10**10
    machine.call("clock_time_get", 1, 0, RESULT)
    assert machine.u64() == 3 * 10**9
    machine.call("clock_time_get", 0, 0, RESULT)
    assert machine.u64() == 10**18 + 3 * 10**9 + 1
    assert machine.call("clock_time_get", 4, 0, RESULT) == Errno.INVAL


def test_randomness_is_the_seeds(tmp_path: Path) -> None:
    drawn = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        machine = Machine(tmp_path / name)
        assert machine.call("random_get", 0, 100) == 0
        assert machine.call("random_get", 100, 100) == 0
        drawn.append(machine.memory.read(0, 200))
    assert drawn[0] == drawn[1]
    assert drawn[0][:100] != drawn[0][100:]
    assert machine.call("random_get", 0, RANDOM_MAX + 1) == Errno.INVAL


def subscription(user: int, *, timeout: int, flags: int = 0, clock: int = 1) -> bytes:
    return struct.pack("<QBxxxxxxxIxxxxQQHxxxxxx", user, 0, clock, timeout, 0, flags)


def subscribed_file(user: int, number: int, tag: int = 1) -> bytes:
    return struct.pack("<QBxxxxxxxI", user, tag, number).ljust(48, b"\0")


def poll(machine: Machine, *subscriptions: bytes) -> list[tuple[int, int]]:
    machine.memory.write(BUFFER, b"".join(subscriptions))
    assert machine.call("poll_oneoff", BUFFER, TEXT, len(subscriptions), RESULT) == 0
    data = machine.memory.read(TEXT, 32 * machine.u32())
    return [struct.unpack_from("<QH", data, at) for at in range(0, len(data), 32)]


def test_sleeping_takes_no_time_but_passes_it(machine: Machine) -> None:
    assert poll(machine, subscription(7, timeout=10**12), subscription(8, timeout=2 * 10**12)) == [
        (7, 0)
    ]
    machine.call("clock_time_get", 1, 0, RESULT)
    assert 10**12 < machine.u64() < 10**12 + 100


def test_an_alarm_of_the_past_is_due_at_once(machine: Machine) -> None:
    machine.fuel = 10**9
    assert poll(machine, subscription(7, timeout=5, flags=1)) == [(7, 0)]
    assert poll(machine, subscription(7, timeout=5, flags=1, clock=0)) == [(7, 0)]
    machine.call("clock_time_get", 1, 0, RESULT)
    assert machine.u64() < 4 * 10**8


def test_a_sleep_without_end_ends_with_time(machine: Machine) -> None:
    for _ in range(3):
        assert poll(machine, subscription(7, timeout=2**64 - 1)) == [(7, 0)]
    assert machine.call("clock_time_get", 0, 0, RESULT) == 0


def test_descriptors_are_always_ready(machine: Machine) -> None:
    alarm = subscription(1, timeout=10**12)
    found = poll(machine, alarm, subscribed_file(2, 0), subscribed_file(3, 77, 2))
    assert found == [(2, 0), (3, Errno.BADF)]
    assert machine.call("poll_oneoff", BUFFER, TEXT, 0, RESULT) == Errno.INVAL
    assert machine.call("poll_oneoff", BUFFER, TEXT, 1 << 31, RESULT) == Errno.INVAL


def test_standard_input_is_a_file_that_is_only_read_or_empty(tmp_path: Path) -> None:
    (tmp_path / "inputs/folder").mkdir(parents=True)
    (tmp_path / "inputs/lines").write_bytes(b"one\ntwo\n")
    machine = Machine(tmp_path)
    tree = machine.files.folder(IN).tree
    for name in ("none", "folder"):
        machine.files.redirect(0, tree, (name,))
        assert machine.read(0, 10) == b""
    machine.files.redirect(0, tree, ("lines",))
    assert (machine.read(0, 4), machine.read(0, 10), machine.read(0, 10)) == (
        b"one\n",
        b"two\n",
        b"",
    )
    assert machine.call("fd_seek", 0, 4, 0, RESULT) == 0
    assert machine.read(0, 10) == b"two\n", "as after a shell's <"
    assert machine.write(0, b"x") == Errno.NOTCAPABLE
    assert machine.call("fd_filestat_set_size", 0, 0) == Errno.NOTCAPABLE
    assert (tmp_path / "inputs/lines").read_bytes() == b"one\ntwo\n"


def test_stdout_and_stderr_are_kept_apart_and_cut(machine: Machine) -> None:
    assert machine.write(1, b"x" * 60) == 0
    assert machine.write(2, b"y" * 10) == 0
    assert machine.write(1, b"z" * 60) == 0
    assert machine.u32() == 40
    assert machine.write(1, b"!") == Errno.NOSPC
    assert bytes(machine.wasi.stdout.data) == b"x" * 60 + b"z" * 40
    assert bytes(machine.wasi.stderr.data) == b"y" * 10
    assert (machine.wasi.stdout.was_cut, machine.wasi.stderr.was_cut) == (True, False)


def test_stdin_is_empty(machine: Machine) -> None:
    assert machine.read(0, 100) == b""
    assert machine.write(0, b"x") == Errno.BADF


def test_vectors_are_gathered_and_scattered(machine: Machine) -> None:
    machine.memory.write(BUFFER, b"abcdef")
    vectors = machine.vectors((BUFFER + 3, 3), (BUFFER, 2), (0, 0))
    number = machine.opened("file", how=Open.CREATE)
    assert machine.call("fd_write", number, *vectors, RESULT) == 0
    assert (machine.out / "file").read_bytes() == b"defab"
    vectors = machine.vectors((BUFFER, 2), (BUFFER + 100, 100), (BUFFER + 200, 1))
    assert machine.call("fd_pread", number, *vectors, 1, RESULT) == 0
    assert machine.u32() == 4
    assert machine.memory.read(BUFFER, 2) + machine.memory.read(BUFFER + 100, 2) == b"efab"


def test_one_call_moves_a_bounded_number_of_bytes(tmp_path: Path) -> None:
    machine = Machine(tmp_path, quota=1 << 30)
    number = machine.opened("file", how=Open.CREATE)
    vectors = machine.vectors(*[(0, 4 << 16)] * VECTORS_MAX)
    assert machine.call("fd_write", number, *vectors, RESULT) == 0
    assert machine.u32() == TRANSFER_MAX
    assert machine.call("fd_write", number, VECTORS, VECTORS_MAX + 1, RESULT) == Errno.INVAL


def test_seeking_stays_within_what_an_offset_can_be(machine: Machine) -> None:
    number = machine.opened("file", how=Open.CREATE)
    machine.write(number, b"12345")
    for distance, whence, where in ((2, 0, 2), (-1, 1, 1), (-2, 2, 3), (100, 2, 105)):
        assert machine.call("fd_seek", number, distance, whence, RESULT) == 0
        assert machine.u64() == where
    assert machine.call("fd_tell", number, RESULT) == 0
    assert machine.u64() == 105
    assert machine.call("fd_seek", number, -1, 0, RESULT) == Errno.INVAL
    assert machine.call("fd_seek", number, 0, 3, RESULT) == Errno.INVAL
    assert machine.call("fd_seek", number, 2**63 - 1, 2, RESULT) == Errno.INVAL
    assert machine.call("fd_seek", 1, 0, 1, RESULT) == Errno.SPIPE
    assert machine.call("fd_seek", OUT, 0, 1, RESULT) == Errno.ISDIR


def test_the_trees_are_found_by_their_names(machine: Machine) -> None:
    names = []
    for number in range(IN, IN + 3):
        assert machine.call("fd_prestat_get", number, RESULT) == 0
        length = machine.u32(RESULT + 4)
        assert machine.call("fd_prestat_dir_name", number, TEXT, length - 1) == Errno.NAMETOOLONG
        assert machine.call("fd_prestat_dir_name", number, TEXT, length) == 0
        names.append(machine.memory.read(TEXT, length))
    assert names == [b"/in", b"/out", b"/tmp"]
    assert machine.call("fd_prestat_get", IN + 3, RESULT) == Errno.BADF
    assert machine.call("fd_prestat_get", 1, RESULT) == Errno.BADF


def test_a_stat_says_nothing_of_this_machine(machine: Machine) -> None:
    number = machine.opened("file", how=Open.CREATE)
    machine.write(number, b"12345")
    assert machine.call("fd_filestat_get", number, RESULT) == 0
    fields = struct.unpack("<QQBxxxxxxxQQQQQ", machine.memory.read(RESULT, 64))
    assert fields[0] == 1
    assert fields[1] != (machine.out / "file").stat().st_ino
    assert fields[2:5] == (Filetype.REGULAR, 1, 5)
    assert fields[5:] == (10**18,) * 3
    assert machine.call("fd_fdstat_get", number, RESULT) == 0
    assert machine.memory.read(RESULT, 1)[0] == Filetype.REGULAR


def test_rights_can_only_be_given_up(machine: Machine) -> None:
    number = machine.opened("file", how=Open.CREATE)
    assert machine.call("fd_fdstat_set_rights", number, Rights.READ, 0) == 0
    assert machine.write(number, b"x") == Errno.NOTCAPABLE
    assert machine.call("fd_fdstat_set_rights", number, Rights.WRITE, 0) == Errno.NOTCAPABLE


def test_leaving_is_an_exit(machine: Machine) -> None:
    with pytest.raises(Exit) as caught:
        machine.call("proc_exit", 3)
    assert caught.value.code == 3
    with pytest.raises(Exit) as caught:
        machine.call("proc_exit", -1)
    assert caught.value.code == 2**32 - 1


@pytest.mark.parametrize("name", ["sock_accept", "sock_send", "proc_raise", "path_link"])
def test_what_does_not_exist_here_says_so(machine: Machine, name: str) -> None:
    assert machine.call(name, *[0] * len(SIGNATURES[name])) == Errno.NOTSUP


def test_addresses_outside_of_memory_are_faults(machine: Machine) -> None:
    end = len(machine.memory.data)
    for name, args in {
        "args_get": (end - 4, 0),
        "clock_time_get": (0, 0, end - 4),
        "random_get": (end - 10, 11),
        "fd_write": (1, -8, 1, 0),
        "fd_read": (0, 0, 0, -1),
        "path_open": (OUT, 0, end - 1, 2, 0, 0, 0, 0, 0),
        "path_filestat_get": (OUT, 0, -1, -1, 0),
        "fd_prestat_dir_name": (IN, end - 1, 10),
        "poll_oneoff": (end - 47, 0, 1, 0),
        "fd_readdir": (OUT, end - 4, 100, 0, 0),
    }.items():
        assert machine.call(name, *args) == Errno.FAULT, name


# --- whatever a guest may come up with --------------------------------------------------------

PATHS = ["a", "b", "a/b", "b/../a", "é", "c/", "../x", "/etc", ".", "a/./b", "x" * 300, "\0", ""]
PATH_AT = {path: 1000 + 400 * n for n, path in enumerate(PATHS)}
NUMBERS = [
    *range(12),
    *PATH_AT.values(),
    *(VECTORS, BUFFER, RESULT, 200000, (4 << 16) - 4),
    *(1 << 16, 1 << 31, (1 << 32) - 1, -1, -8, 1 << 62, (1 << 63) - 1, -(1 << 63)),
]
Call = tuple[str, tuple[int, ...]]


def wild_call(chance: random.Random) -> Call:
    """Any function with any arguments."""
    name = chance.choice(sorted(SIGNATURES))
    return name, tuple(chance.choice(NUMBERS) for _ in SIGNATURES[name])


def sane_call(chance: random.Random) -> Call:
    """A call that is likely to do something to files."""
    path, other = chance.choices(PATHS, weights=[20] * 5 + [1] * 8, k=2)
    text, to_text = ((PATH_AT[p], len(p.encode())) for p in (path, other))
    folder, to_folder = chance.choices([IN, OUT, OUT + 1, OUT + 2], weights=[1, 6, 1, 1], k=2)
    file, to_file = chance.choices([0, 1, 2, *range(OUT + 1, OUT + 6)], k=2)
    size, far = chance.choice([0, 1, 100, 5000, 9000, 1 << 40]), chance.randrange(-5, 5000)
    vectors = (VECTORS, chance.randrange(3))
    how, append = chance.choice([0, 1, 1, 1, 1, 2, 5, 8, 9]), chance.randrange(2)
    rights = chance.choice([Rights.FILE, Rights.FILE, Rights.READ])
    sane: list[Call] = [
        ("path_open", (folder, 0, *text, how, rights, 0, append, RESULT)),
        ("path_open", (OUT, 0, *text, 1, Rights.FILE, 0, append, RESULT)),
        ("path_create_directory", (folder, *text)),
        ("path_remove_directory", (folder, *text)),
        ("path_unlink_file", (folder, *text)),
        ("path_rename", (folder, *text, to_folder, *to_text)),
        ("path_filestat_get", (folder, 0, *text, RESULT)),
        ("fd_write", (file, *vectors, RESULT)),
        ("fd_pwrite", (file, *vectors, size, RESULT)),
        ("fd_read", (file, *vectors, RESULT)),
        ("fd_pread", (file, *vectors, size, RESULT)),
        ("fd_seek", (file, far, chance.randrange(3), RESULT)),
        ("fd_filestat_set_size", (file, size)),
        ("fd_allocate", (file, size, size)),
        ("fd_readdir", (folder, BUFFER, size, chance.randrange(4), RESULT)),
        ("fd_close", (chance.randrange(OUT + 2, OUT + 9),)),
        ("fd_renumber", (file, to_file)),
        ("fd_filestat_get", (file, RESULT)),
        ("fd_fdstat_get", (file, RESULT)),
    ]
    return chance.choice(sane)


def script_of(seed: int, length: int = 250) -> list[Call]:
    chance = random.Random(seed)
    return [
        chance.choice([sane_call, sane_call, sane_call, wild_call])(chance) for _ in range(length)
    ]


def fresh(folder: Path) -> Machine:
    (folder / "inputs" / "b").mkdir(parents=True)
    (folder / "inputs" / "a").write_text("content")
    (folder / "inputs" / "b" / "link").symlink_to("/etc/passwd")
    machine = Machine(folder, quota=20000)
    for path, at in PATH_AT.items():
        machine.memory.write(at, path.encode())
    machine.vectors((BUFFER, 10), (BUFFER, 3000), (1 << 31, 5))
    return machine


def play(machine: Machine, script: list[Call]) -> list[tuple[str, int]]:
    """Every call and its answer; an exit is no end here."""
    answers = []
    for name, args in script:
        try:
            answers.append((name, machine.call(name, *args)))
        except Exit as end:
            answers.append((name, 1000 + end.code))
    return answers


def size_on_disk(machine: Machine) -> int:
    total = 0
    for root in (machine.out, machine.folder / "tmp"):
        for path in root.rglob("*"):
            total += ENTRY_COST + (path.stat().st_size if path.is_file() else 0)
    return total


@pytest.mark.parametrize("seed", range(40))
def test_any_calls_end_in_an_errno_within_all_bounds_and_twice_the_same(seed: int) -> None:
    seen = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            machine = fresh(Path(folder))
            answers = play(machine, script_of(seed))
            seen.append((answers, bytes(machine.memory.data)))
            assert all(code in list(Errno) or name == "proc_exit" for name, code in answers)
            assert machine.files.used == size_on_disk(machine) <= 20000
            assert len(machine.files.descriptors) <= DESCRIPTORS_MAX
            assert len(machine.wasi.stdout.data) <= 100
            assert sorted(os.listdir(folder)) == ["inputs", "out", "tmp"]
            assert (Path(folder) / "inputs" / "a").read_text() == "content"
            assert sorted(os.listdir(Path(folder) / "inputs" / "b")) == ["link"]
            machine.files.close_all()
    assert seen[0] == seen[1]


def test_the_scripts_reach_what_they_are_meant_to_reach() -> None:
    """Else the test above would prove nothing."""
    done: Counter[tuple[str, int]] = Counter()
    for seed in range(40):
        with tempfile.TemporaryDirectory() as folder:
            machine = fresh(Path(folder))
            done.update(play(machine, script_of(seed)))
            machine.files.close_all()
    worked = {name for name, code in done if code == Errno.SUCCESS}
    assert {name for name, _ in sane_calls_of(0)} <= worked
    assert len({code for _, code in done if code < 1000}) >= 16


def sane_calls_of(seed: int) -> list[Call]:
    chance = random.Random(seed)
    return [sane_call(chance) for _ in range(500)]


def test_every_function_of_preview_1_is_there() -> None:
    assert len(SIGNATURES) == 46
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder))
        for name, signature in SIGNATURES.items():
            if name != "proc_exit":
                assert machine.call(name, *[0] * len(signature)) in list(Errno)
    assert FakeMemory().read(0, 1) == b"\0"
