"""Fuzz the system calls: random, mostly hostile calls on the real Wasi, real memory, real folders.

    python tools/fuzz.py --seconds 600           seeds 0, 1, 2 … for ten minutes
    python tools/fuzz.py --seed 7 --seconds 0    one seed again, to look at what it found

A seed is a guest that makes CALLS calls. After each of them the laws must hold: nothing but an
errno or an exit comes out; no file outside of the guest's folders is named to this machine, and
memory is the guest's own; quota, output and descriptors keep their bounds, and the quota's count is
what lies on the disk; a call does a bounded number of things. The same seed does the same.
"""

from __future__ import annotations

import argparse
import gc
import os
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from random import Random

import wasmtime
from attrs import define, field

from mesh.runtime.engine import GuestMemory
from mesh.runtime.files import DESCRIPTORS_MAX, ENTRY_COST, File, Files, Folder
from mesh.runtime.preview1 import SIGNATURES, Errno
from mesh.runtime.trees import DEPTH_MAX, Tree
from mesh.runtime.wasi import TIME_MAX, TRANSFER_MAX, VECTORS_MAX, Exit, Wasi

CALLS = 600
PAGES = 20
"""Of memory: more than one call may move."""
LOOK_EVERY = 16
"""Calls between two looks at the disk."""
BYTES_MAX = 2 * TRANSFER_MAX
"""Bytes that one call may read and write of the guest's memory."""
TOUCHES_MAX = 2 * VECTORS_MAX
"""Times that one call may look at memory, or do something to this machine's files."""

ROLES = {
    "args_get": "pp", "args_sizes_get": "pp", "clock_res_get": "cp", "clock_time_get": "cUp",
    "environ_get": "pp", "environ_sizes_get": "pp", "fd_advise": "fOOu", "fd_allocate": "fOO",
    "fd_close": "f", "fd_datasync": "f", "fd_fdstat_get": "fp", "fd_fdstat_set_flags": "fg",
    "fd_fdstat_set_rights": "frr", "fd_filestat_get": "fp", "fd_filestat_set_size": "fO",
    "fd_filestat_set_times": "fUUu", "fd_pread": "fvOp", "fd_prestat_dir_name": "fb",
    "fd_prestat_get": "fp", "fd_pwrite": "fvOp", "fd_read": "fvp", "fd_readdir": "fbkp",
    "fd_renumber": "ff", "fd_seek": "fOwp", "fd_sync": "f", "fd_tell": "fp", "fd_write": "fvp",
    "path_create_directory": "fn", "path_filestat_get": "fwnp",
    "path_filestat_set_times": "fwnUUu", "path_link": "fwnfn", "path_open": "fwnhrrgp",
    "path_readlink": "fnbp", "path_remove_directory": "fn", "path_rename": "fnfn",
    "path_symlink": "nfn", "path_unlink_file": "fn", "poll_oneoff": "sp", "proc_exit": "u",
    "proc_raise": "u", "random_get": "b", "sched_yield": "", "sock_accept": "fup",
    "sock_recv": "fvupp", "sock_send": "fvup", "sock_shutdown": "fu",
}  # fmt: skip
"""What each argument of a call stands for: one letter is one argument, or a pair (n b v), or three
(s). See Guest.argument."""
OFTEN = {
    "path_open": 14, "path_rename": 6, "path_create_directory": 6, "path_unlink_file": 4,
    "path_remove_directory": 3, "fd_write": 6, "fd_pwrite": 4, "fd_allocate": 2, "fd_read": 3,
    "fd_readdir": 3, "fd_seek": 3, "fd_filestat_set_size": 4, "fd_pread": 3, "poll_oneoff": 2,
}  # fmt: skip
"""How much oftener than the others: what changes most."""
EDGES = (TRANSFER_MAX, PAGES << 16, 0, 1, 7, 1 << 16, 23, 256, 1024, 4096)
KNOWN = 6
NAMES = (
    b"a", b"b", b"c", b"d", b"deep", b"inner", b"link", b"pipe", b".", b"..", b"", b"x" * 255,
    b"y" * 256, "ü".encode(), b"\xff", b"\xed\xb2\x80", b"n\0l", b"\\", b"~", b" ", b"\x01",
)  # fmt: skip
ABROAD = (b"/etc/passwd", b"/", b"../outside/secret", b"deep/out/secret", b"a/" * 600, b"//a")


class Broken(Exception):
    """A law does not hold."""


class Memory:
    """The guest's real memory, and what one call does to it."""

    def __init__(self, store: wasmtime.Store) -> None:
        kind = wasmtime.MemoryType(wasmtime.Limits(PAGES, PAGES))
        self._real = GuestMemory(store, wasmtime.Memory(store, kind))
        self.size = self._real.size
        self.touches = self.bytes = 0
        self.written = blake2b(digest_size=16)

    def read(self, address: int, length: int) -> bytes:
        self.touches += 1
        data = self._real.read(address, length)
        self.bytes += length
        return data

    def write(self, address: int, data: bytes) -> None:
        self.touches += 1
        self._real.write(address, data)
        self.bytes += len(data)
        self.written.update(struct.pack("<QQ", address, len(data)))
        self.written.update(data)


@define
class Watch:
    """Hears of everything that Python asks of the operating system for a call."""

    inside: tuple[str, ...] = ()
    """The guest's folders, while a call goes on."""
    thread: int = 0
    """Whose call it is: what other threads do is their own affair."""
    touches: int = 0
    wrong: list[str] = field(factory=list)

    def hear(self, event: str, args: tuple[object, ...]) -> None:
        if not self.inside or self.thread != threading.get_ident():
            return
        if event.startswith(("object.", "sys.", "ctypes.")):
            return
        self.touches += 1
        if event not in ("open", "os.listdir", "os.mkdir", "os.rename", "os.remove", "os.rmdir",
                         "os.truncate"):  # fmt: skip
            self.wrong.append(event)
        inside, self.inside = self.inside, ()  # what is asked for here is not the guest's
        for path in args[: 2 if event == "os.rename" else 1]:
            if isinstance(path, (str, bytes)) and not _lies_in(os.fsdecode(path), inside):
                self.wrong.append(f"{event} {path!r}")
        self.inside = inside


def _lies_in(path: str, folders: tuple[str, ...]) -> bool:
    """Whether *path* is written plainly, and leads where it says."""
    folder, name = os.path.split(path)
    real = os.path.join(os.path.realpath(folder), name)
    return real == path and any(f"{path}/".startswith(f"{f}/") for f in folders)


WATCH = Watch()
sys.addaudithook(lambda event, args: WATCH.hear(event, args))


@contextmanager
def watching(folders: tuple[str, ...]) -> Iterator[None]:
    WATCH.touches, WATCH.wrong = 0, []
    WATCH.thread, WATCH.inside = threading.get_ident(), folders
    try:
        yield
    finally:
        WATCH.inside = ()


Build = Callable[[tuple[Tree, ...], int], Files]


class Guest:
    """One seed: its folders, its memory, and what it does."""

    def __init__(
        self,
        seed: int,
        folder: Path,
        store: wasmtime.Store,
        build: Build = Files,
        tree: type[Tree] = Tree,
    ) -> None:
        self.dice = Random(seed)
        self.folder = Path(os.path.realpath(folder))
        self.hoards = self.dice.random() < 0.1
        """Whether it opens all that it can."""
        self.quota = self.dice.choice((0, 1, 4096, 10_000, 65_536, 1 << 20, 1 << 20, 1 << 28))
        self.malice = 0.005 if self.hoards else self.dice.choice((0.005, 0.05, 0.5))
        """How often it does what no program does by mistake; the patient ones get further."""
        self.most_output = self.dice.choice((0, 10, 5000))
        inputs = _lay_out(self.folder)
        out, tmp = self.folder / "out", self.folder / "tmp"
        trees = (tree("/in", None, inputs), tree("/out", out), tree("/tmp", tmp))
        self.folders = tuple(map(str, (*inputs.values(), out, tmp)))
        self.handles = _open_handles()
        self.memory = Memory(store)
        self.fuel = 0
        self.wasi = Wasi(
            ("task", "ä", "x" * 500),
            (("A", "b"),),
            build(trees, self.quota),
            seed=bytes(16),
            t0_ns=self.dice.choice((0, 1_700_000_000 * 10**9, TIME_MAX)),
            stdout_max=self.most_output,
            fuel_used=lambda: self.fuel,
        )
        self.told = blake2b(digest_size=16)
        self.answers: Counter[tuple[str, str]] = Counter()
        self.slowest = 0.0

    # --- what it asks -------------------------------------------------------------------------

    def run(self, calls: int = CALLS) -> str:
        """All its calls; a digest of all that came of them."""
        often = OFTEN | ({"path_open": 2000} if self.hoards else {})
        names, weights = list(ROLES), [often.get(name, 1) for name in ROLES]
        try:
            for number in range(calls):
                name = self.dice.choices(names, weights)[0]
                args = [value for role in ROLES[name] for value in self.argument(role, name)]
                self._call(number, name, tuple(args))
                if number % LOOK_EVERY == 0:
                    self._look(f"call {number}, {name}")
        finally:
            self.wasi.files.close_all()
        self._look("the end")
        _check(_open_handles() == self.handles, "descriptors of this machine stay open")
        self.told.update(self.memory.written.digest())
        return self.told.hexdigest()

    def _call(self, number: int, name: str, args: tuple[int, ...]) -> None:
        self.fuel += self.dice.choice((0, 1, 1000, 1 << 40))
        self.memory.touches = self.memory.bytes = 0
        before, began = self.wasi.last_ns, time.thread_time()
        # As wasmtime hands them over: signed.
        signed = (_signed(v, kind) for v, kind in zip(args, SIGNATURES[name], strict=True))
        try:
            with watching(self.folders):
                answer = Errno(self.wasi.call(name, self.memory, tuple(signed))).name
        except Exit as end:
            is_asked = name == "proc_exit" and end.code == args[0] % (1 << 32)
            _check(is_asked, f"{name} ends it with {end.code}")
            answer = "exit"
        except Exception as error:
            raise Broken(f"call {number}, {name}{args}: {type(error).__name__}: {error}") from error
        self.slowest = max(self.slowest, time.thread_time() - began)
        what = f"call {number}, {name}{args} = {answer}"
        _check(not WATCH.wrong, f"{what}: outside of its folders: {WATCH.wrong[:3]}")
        self._keeps_bounds(what)
        _check(before <= self.wasi.last_ns <= TIME_MAX, f"{what}: time runs backwards")
        self.answers[name, answer] += 1
        self.told.update(f"{name} {answer} {self.wasi.files.used} {self.wasi.last_ns}\n".encode())

    def argument(self, role: str, name: str) -> tuple[int, ...]:
        """One, two or three numbers: sensible more often than not."""
        dice = self.dice
        if dice.random() < self.malice / 5:
            return tuple(self._odd() for _ in range({"n": 2, "b": 2, "v": 2, "s": 3}.get(role, 1)))
        match role:
            case "f":
                return (self._descriptor(name),)
            case "n":
                return self._place(self._path())
            case "b":
                most = 4 if dice.random() > self.malice else len(EDGES)
                return dice.randrange(self.memory.size // 2), dice.choice(EDGES[-most:])
            case "v":
                return self._vectors()
            case "s":
                return self._subscriptions()
            case "p":
                edge = self.memory.size - dice.randrange(24)
                return (edge if dice.random() < self.malice else dice.choice((64, 4096)),)
            case "O":
                far = (self.quota, self.quota + 1, (1 << 64) - 5, (1 << 62) + 1, 1 << 63)
                return (dice.choice(far if dice.random() < self.malice else (0, 1, 100, 5000)),)
            case "h":
                return (dice.choice((0, 0, 1, 1, 1, 1, 1, 2, 5, 9, dice.randrange(16))),)
            case "r":
                return (dice.choice((*[(1 << 30) - 1] * 4, 0, dice.getrandbits(64))),)
            case "k":
                return (dice.choice((0, 0, 1, 2, 3, 9)),)
            case "g":
                return (dice.choice((0, 0, 1, 31)),)
            case _:  # clocks, flags, whence and what else is small
                return (dice.randrange(6),)

    def _descriptor(self, name: str) -> int:
        """As a rule of the kind that the call wants; what it began with is seldom closed."""
        held = self.wasi.files.descriptors
        if self.dice.random() < self.malice:
            return self.dice.choice((*held, 99))
        kind = Folder if name.startswith("path_") or name == "fd_readdir" else File
        least = 6 if name in ("fd_close", "fd_renumber") else 0
        fitting = [n for n, found in held.items() if isinstance(found, kind) and n >= least]
        own = [4, 5] if kind is Folder else []
        return self.dice.choice([*fitting, *own] or [4])

    def _odd(self) -> int:
        dice = self.dice
        near = dice.choice((0, 1 << 16, self.memory.size, 1 << 31, 1 << 32, 1 << 62, 1 << 63))
        return (near + dice.randrange(-3, 4)) % (1 << 64)

    def _path(self) -> bytes:
        dice = self.dice
        if dice.random() < self.malice / 4:
            return dice.choice(ABROAD)
        few = NAMES if dice.random() < self.malice else NAMES[:KNOWN]
        parts = 1 if self.hoards else dice.choice((1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 14))
        path = b"/".join(dice.choice(few) for _ in range(parts))
        return path + (dice.choice((b"/", b"/.")) if dice.random() < self.malice else b"")

    def _place(self, data: bytes) -> tuple[int, int]:
        at = self.dice.choice((8192, 16384, self.memory.size - len(data)))
        self.memory.write(at, data)
        return at, len(data)

    def _vectors(self) -> tuple[int, int]:
        dice = self.dice
        count = dice.choice((0, 1, 1, 1, 2, 5, VECTORS_MAX, VECTORS_MAX + 1))
        top = self.memory.size
        places = (0, 9, top - 9, top) if dice.random() < self.malice else (0, 9, 1 << 16)
        few = [
            struct.pack("<II", dice.choice(places), dice.choice((0, 3, 9, 9, 4000, top)))
            for _ in range(min(count, 8))
        ]
        return self._place(b"".join(few) * (count // 8 or 1))[0], count

    def _subscriptions(self) -> tuple[int, int, int]:
        dice = self.dice
        count = dice.choice((0, 1, 1, 3, 1024, 1025))
        few = [
            struct.pack(
                "<QBxxxxxxxIxxxxQQHxxxxxx",
                dice.getrandbits(64),
                dice.choice((0, 0, 0, 0, 0, 0, 1, 2, 3, 255)),
                dice.choice((0, 0, 0, 0, 1, 1, 1, 2, 3, 4)),
                dice.choice((0, 1, 10**9, TIME_MAX, (1 << 64) - 1)),
                0,
                dice.randrange(3),
            )
            for _ in range(min(count, 4))
        ]
        return self._place(b"".join(few) * (count // 4 or 1))[0], dice.choice((0, 1 << 17)), count

    # --- what must hold -----------------------------------------------------------------------

    def _keeps_bounds(self, what: str) -> None:
        memory, files = self.memory, self.wasi.files
        _check(memory.touches <= TOUCHES_MAX, f"{what}: {memory.touches} looks at memory")
        _check(memory.bytes <= BYTES_MAX, f"{what}: moves {memory.bytes} bytes")
        _check(WATCH.touches <= TOUCHES_MAX, f"{what}: {WATCH.touches} acts on files")
        _check(len(files.descriptors) <= DESCRIPTORS_MAX, f"{what}: too many descriptors")
        _check(0 <= files.used <= self.quota, f"{what}: uses {files.used} of {self.quota}")
        for output in (self.wasi.stdout, self.wasi.stderr):
            _check(len(output.data) <= self.most_output, f"{what}: too much output")

    def _look(self, what: str) -> None:
        """At the disk: what lies there is what was counted, and nothing else changed."""
        files, found = self.wasi.files, [*_walk(self.folder / "out"), *_walk(self.folder / "tmp")]
        sizes = sum(os.lstat(path).st_size for path in found if not os.path.isdir(path))
        _check(files.entries == len(found), f"{what}: {files.entries} counted, {len(found)} there")
        used = sizes + ENTRY_COST * len(found)
        _check(files.used == used, f"{what}: {files.used} bytes counted, {used} there")
        deepest = max((path.count("/") for path in found), default=0)
        _check(deepest <= str(self.folder).count("/") + 1 + DEPTH_MAX, f"{what}: too deep")
        opened = sum(isinstance(held, File) for held in files.descriptors.values())
        _check(_open_handles() == self.handles + opened, f"{what}: handles were lost")
        _check(_describe(self.folder) == OUTSIDE, f"{what}: something outside was changed")


def _signed(value: int, kind: str) -> int:
    bits = 32 if kind == "i" else 64
    value %= 1 << bits
    return value - (1 << bits) if value >> (bits - 1) else value


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(what)


# --- its folders ------------------------------------------------------------------------------

OUTSIDE = [("inputs/a", b"input"), ("inputs/deep/inner", b"below"), ("outside/secret", b"secret")]
"""What lies beside the guest's own folders, and must stay as it is."""


def _lay_out(folder: Path) -> dict[str, Path]:
    """The inputs, by name; with all that can be in a folder of a stranger's."""
    for name in ("out", "tmp", "outside", "inputs/deep"):
        (folder / name).mkdir(parents=True)
    for name, data in OUTSIDE:
        (folder / name).write_bytes(data)
    (folder / "inputs/deep/link").symlink_to(folder / "outside/secret")
    (folder / "inputs/deep/out").symlink_to(folder / "outside")
    os.mkfifo(folder / "inputs/deep/pipe")
    return {"a": folder / "inputs/a", "deep": folder / "inputs/deep"}


def _describe(folder: Path) -> list[tuple[str, bytes]]:
    found = [path for name in ("inputs", "outside") for path in _walk(folder / name)]
    files = sorted(path for path in found if os.path.isfile(path) and not os.path.islink(path))
    return [(str(Path(path).relative_to(folder)), Path(path).read_bytes()) for path in files]


def _walk(folder: Path) -> list[str]:
    return [
        os.path.join(at, name) for at, folders, files in os.walk(folder) for name in folders + files
    ]


def _open_handles() -> int:
    return len(os.listdir("/dev/fd"))


# --- the tool ---------------------------------------------------------------------------------


def play(seed: int, store: wasmtime.Store, build: Build = Files, tree: type[Tree] = Tree) -> Guest:
    """One guest from its first call to its last. Raises Broken."""
    gc.collect()  # handles that others forgot must not be closed, and missed, meanwhile
    with tempfile.TemporaryDirectory() as folder:
        guest = Guest(seed, Path(folder), store, build, tree)
        guest.run()
        return guest


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    options = parser.parse_args(argv)
    until = time.monotonic() + options.seconds
    seed, answers, slowest = options.seed, Counter[tuple[str, str]](), 0.0
    while True:
        # A store keeps its memories for as long as it lives.
        try:
            guest = play(seed, wasmtime.Store())
        except Broken as found:
            print(f"seed {seed}: {found}")
            return 1
        answers += guest.answers
        slowest = max(slowest, guest.slowest)
        seed += 1
        if time.monotonic() >= until:
            break
    for name in sorted(ROLES):
        told = {answer: n for (called, answer), n in sorted(answers.items()) if called == name}
        each = " ".join(f"{answer} {n}" for answer, n in told.items())
        print(f"{name:24} {sum(told.values()):>9}  {each}")
    print(f"seeds {options.seed} to {seed - 1}: {answers.total()} calls, all laws held")
    print(f"the slowest call took {slowest * 1000:.1f} ms of processor")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
