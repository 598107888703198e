"""Suspension: a guest that was moved hundreds of times says and costs what an unmoved one does."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import pytest
import wasmtime
from runtime_jobs import HOSTILE, ROOT

from mesh.errors import Refused
from mesh.ids import RAW, cid_of
from mesh.migration.snapshot import (
    PIECE,
    REGION,
    TREES,
    Pages,
    Snapshot,
    decode,
    encode_frame,
    encode_head,
)
from mesh.runtime import engine as engine_module
from mesh.runtime.capture import capture, restore
from mesh.runtime.engine import GuestMemory, compile_wasm, open_engine
from mesh.runtime.files import Files
from mesh.runtime.instrument import Binaryen, find_binaryen, instrument
from mesh.runtime.manifest import METER
from mesh.runtime.module import check_module
from mesh.runtime.pages import Kept
from mesh.runtime.rewrite import Policy
from mesh.runtime.suspension import Image, MovableGuest
from mesh.runtime.trees import Tree
from mesh.runtime.wasi import Exit, Wasi

MOVABLE = ROOT / "tests/guests/hostile.movable.wasm"
KERNELS = ROOT / "tools/kernels"
PLENTY = 10**9
MEMORY = 8 << 20

Still = tuple[Image, tuple[Pages, ...]]
"""A guest that was suspended."""


class Run:
    """One task, in as many guests as it takes."""

    def __init__(
        self,
        engine: wasmtime.Engine,
        module: wasmtime.Module,
        *args: str,
        trees: tuple[Tree, ...] = (),
    ) -> None:
        self.engine, self.module = engine, module
        self.fuel = PLENTY
        self.memory = MEMORY
        self.moves = 0
        self.stays = False
        """Whether it goes on in the guest that was suspended."""
        self.guest: MovableGuest | None = None
        self.wasi = Wasi(
            ("task", *args),
            (),
            Files(trees, 1 << 20),
            seed=bytes(16),
            t0_ns=0,
            stdout_max=1000,
            fuel_used=lambda: self.open().fuel_used,
        )

    def open(self) -> MovableGuest:
        assert self.guest is not None
        return self.guest

    def enter(self, still: Still | None = None) -> MovableGuest:
        def call(name: str, memory: GuestMemory, args: tuple[int, ...]) -> int:
            return self.wasi.call(name, memory, args)

        image, pages = still or (None, ())
        self.guest = MovableGuest(
            self.engine,
            self.module,
            fuel=self.fuel,
            memory=self.memory,
            call=call,
            image=image,
            pages=pages,
        )
        return self.guest

    def finish(
        self, on_slice: Callable[[], None], still: Still | None = None
    ) -> tuple[str, bytes, int]:
        """How it ends, what it said, and what that cost."""
        end = "returned"
        self.enter(still)
        try:
            while self.open().advance(on_slice):
                self.moves += 1
                if self.stays:
                    self.open().wake()
                else:
                    self.enter(still_of(self.open(), self.memory))
        except Exit as exited:
            end = f"exit {exited.code}"
        except wasmtime.Trap as trap:
            end = str(trap.trap_code)
        return end, bytes(self.wasi.stdout.data), self.open().fuel_used

    def suspend(self) -> Still:
        guest = self.enter()
        assert guest.advance(guest.request)
        return still_of(guest)


def still_of(guest: MovableGuest, memory: int = MEMORY) -> Still:
    with TemporaryDirectory() as folder:
        kept = Kept(Path(folder) / "image", memory)
        guest.keep(kept)
        return guest.image(), tuple(kept.pages())


@pytest.fixture(scope="module")
def engine() -> wasmtime.Engine:
    return open_engine()


@pytest.fixture(scope="module")
def module(engine: wasmtime.Engine) -> wasmtime.Module:
    return compile_wasm(engine, MOVABLE.read_bytes())


def test_the_committed_guest_can_be_moved_and_the_others_cannot() -> None:
    assert check_module(MOVABLE.read_bytes())
    assert not check_module(HOSTILE.read_bytes())


@pytest.mark.parametrize(
    ("args", "end"),
    [
        (("spin", "3"), "returned"),
        (("exit", "7"), "exit 7"),
        (("sleep",), None),
        (("recurse",), None),
        (("memory",), None),
    ],
)
@pytest.mark.parametrize(("size", "stays"), [(1_000_000, False), (10_007, False), (10_007, True)])
def test_output_end_and_fuel_are_those_of_an_unmoved_run(
    engine: wasmtime.Engine,
    module: wasmtime.Module,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    end: str | None,
    size: int,
    stays: bool,
) -> None:
    monkeypatch.setattr(engine_module, "SLICE", size)
    unmoved = Run(engine, module, *args)
    unmoved.fuel = 8_000_000
    expected = unmoved.finish(lambda: None)
    moved = Run(engine, module, *args)
    moved.fuel, moved.stays = 8_000_000, stays
    slices = 0

    def suspend_often() -> None:
        nonlocal slices
        slices += 1
        if moved.moves < 150:
            moved.open().request()

    assert moved.finish(suspend_often) == expected
    assert end in (None, expected[0])
    assert moved.moves >= min(slices // 2, 150)
    assert moved.moves or args[0] != "spin"


PROGRAMS = {
    "nbody": "60000",
    "sha256": "800",
    "matmul": "150",
    "sieve": "1000000",
    "sort": "40000",
    "words": "60000",
}
"""Those that are measured, at a fraction of the size."""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "times", "stays"), [(9_973, 1000, True), (100_003, 40, False)])
@pytest.mark.parametrize("program", PROGRAMS)
def test_real_programs_cost_what_unmoved_ones_do(
    engine: wasmtime.Engine,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    size: int,
    times: int,
    stays: bool,
) -> None:
    """Asked to stop at chance slices, in loops that are written out and call what can unwind."""
    made = compile_wasm(engine, (KERNELS / f"{program}.movable.wasm").read_bytes())
    monkeypatch.setattr(engine_module, "SLICE", size)
    unmoved, run = (Run(engine, made, PROGRAMS[program]) for _ in range(2))
    for one in (unmoved, run):
        one.fuel, one.memory = 1 << 50, 1 << 28
    expected = unmoved.finish(lambda: None)
    run.stays, chance = stays, Random(size)

    def suspend_now_and_then() -> None:
        if run.moves < times and chance.random() < 0.3:
            run.open().request()

    assert run.finish(suspend_now_and_then) == expected
    assert run.moves > 5


def test_it_stops_within_its_fuel_when_that_runs_out_after_a_move(
    engine: wasmtime.Engine, module: wasmtime.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "SLICE", 100_000)
    run = Run(engine, module, "spin", "3")
    run.fuel = 2_000_000
    end, _, fuel = run.finish(lambda: run.open().request())
    assert (end, fuel) == ("TrapCode.OUT_OF_FUEL", 2_000_000)
    assert run.moves > 10


def test_a_request_that_is_withdrawn_stops_nothing(
    engine: wasmtime.Engine, module: wasmtime.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Run(engine, module, "spin", "3").finish(lambda: None)
    monkeypatch.setattr(engine_module, "SLICE", 100_000)
    run = Run(engine, module, "spin", "3")

    def change_its_mind() -> None:
        run.open().request()
        run.open().withdraw()

    assert run.finish(change_its_mind) == expected
    assert run.moves == 0


def test_only_pages_that_changed_are_taken_along(
    engine: wasmtime.Engine, module: wasmtime.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "SLICE", 100_000)
    image, pages = Run(engine, module, "spin", "3").suspend()
    assert 0 < sum(len(data) for _, _, data in pages) < image.size / 2
    assert image.fuel > 100_000


def test_pages_that_are_taken_back_are_what_a_fresh_instance_has(
    engine: wasmtime.Engine, module: wasmtime.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "SLICE", 100_000)
    image, pages = Run(engine, module, "spin", "3").suspend()
    masks = {number: mask for number, mask, _ in pages}
    fresh, laid = (Run(engine, module, "spin", "3").enter() for _ in range(2))
    fresh.lay(image.size, (), {})
    laid.lay(image.size, pages, {})
    memories = [guest.memory.read(0, image.size) for guest in (fresh, laid)]
    assert memories[0] != memories[1]
    laid.lay(image.size, [(number, 0, b"") for number in masks], masks)
    assert laid.memory.read(0, image.size) == memories[0]


WAKE = """
import pickle, sys
from pathlib import Path
from typing import Any
from test_runtime_suspension import MOVABLE, Run
from mesh.runtime.engine import compile_wasm, open_engine
engine = open_engine()
run = Run(engine, compile_wasm(engine, MOVABLE.read_bytes()), "spin", "3")
still = pickle.loads(sys.stdin.buffer.read())
sys.stdout.buffer.write(pickle.dumps(run.finish(lambda: None, still)))
"""


def test_it_wakes_in_another_process(
    engine: wasmtime.Engine, module: wasmtime.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Run(engine, module, "spin", "3").finish(lambda: None)
    monkeypatch.setattr(engine_module, "SLICE", 1_000_000)
    still = Run(engine, module, "spin", "3").suspend()
    path = [str(Path(__file__).parent), str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{WAKE}"],
        input=pickle.dumps(still),
        capture_output=True,
        check=True,
    )
    assert pickle.loads(done.stdout) == expected


def test_a_snapshot_wakes_somewhere_else(
    engine: wasmtime.Engine,
    module: wasmtime.Module,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Through the bytes that travel, its system calls included, ten times."""
    monkeypatch.setattr(engine_module, "SLICE", 200_000)
    here = tuple(Tree(name, tmp_path) for name in TREES[1:])
    trees = (Tree(TREES[0], None), *here)
    expected = Run(engine, module, "spin", "3", trees=trees).finish(lambda: None)
    run = Run(engine, module, "spin", "3", trees=trees)
    still = run.suspend()
    for _ in range(10):
        data = bytes_of(still, run)
        run.wasi.files.close_all()
        woken, pages = decode(memoryview(data))
        run = Run(engine, module, "spin", "3", trees=trees)
        restore(run.wasi, trees, woken.calls, woken.stdout, woken.stderr)
        guest = run.enter((image_of(woken), tuple(pages)))
        assert guest.advance(guest.request)
        assert guest.fuel_used > woken.fuel
        still = still_of(guest)
    assert run.finish(lambda: None, still) == expected


def bytes_of(still: Still, run: Run) -> bytes:
    image, pages = still
    snapshot = Snapshot(
        module=cid_of(RAW, MOVABLE.read_bytes()),
        job=cid_of(RAW, b"job"),
        meter=METER,
        fuel=image.fuel,
        size=image.size,
        variables=image.variables,
        calls=capture(run.wasi),
        stack=image.stack,
        stdout=bytes(run.wasi.stdout.data),
        stderr=bytes(run.wasi.stderr.data),
        regions={number: mask for number, mask, _ in pages},
    )
    return b"".join((encode_head(snapshot), *(encode_frame(data) for _, _, data in pages)))


def image_of(woken: Snapshot) -> Image:
    return Image(woken.size, woken.variables, woken.stack, woken.fuel)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 1 << 16},
        {"size": (1 << 20) + 1},
        {"size": 1 << 31},
        {"variables": ()},
        {"variables": ((1, 0),)},
        {"stack": bytes(1 << 23)},
        {"fuel": PLENTY + 1},
    ],
    ids=str,
)
def test_an_image_that_is_none_of_the_module_is_refused(
    engine: wasmtime.Engine,
    module: wasmtime.Module,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
) -> None:
    monkeypatch.setattr(engine_module, "SLICE", 100_000)
    run = Run(engine, module, "spin", "3")
    image, pages = run.suspend()
    with pytest.raises(Refused):
        run.enter((attrs.evolve(image, **change), pages))


@pytest.mark.parametrize(
    "pages",
    [(-1, 1, bytes(PIECE)), (1 << 20, 1, bytes(PIECE)), (0, 1, bytes(PIECE - 1)), (0, 3, b"")],
    ids=lambda pages: str(pages[:2]),
)
def test_pages_that_are_none_of_the_memory_are_refused(
    engine: wasmtime.Engine,
    module: wasmtime.Module,
    monkeypatch: pytest.MonkeyPatch,
    pages: Pages,
) -> None:
    monkeypatch.setattr(engine_module, "SLICE", 100_000)
    run = Run(engine, module, "spin", "3")
    image, _ = run.suspend()
    with pytest.raises(Refused):
        run.enter((image, (pages,)))


def test_pages_side_by_side_and_apart_come_to_their_places(
    engine: wasmtime.Engine, module: wasmtime.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "SLICE", 100_000)
    run = Run(engine, module, "spin", "3")
    image, _ = run.suspend()
    mask = 0b1110_1101
    data = b"".join(bytes((n + 1,)) * PIECE for n in range(6))
    last = image.size // REGION - 1
    memory = run.enter((image, ((last, mask, data),))).memory
    found = memory.read(last * REGION, 8 * PIECE)
    taken = [found[n * PIECE] for n in range(8)]
    assert [one for n, one in enumerate(taken) if mask >> n & 1] == [1, 2, 3, 4, 5, 6]
    assert taken[1] not in range(2, 7)
    assert all(found[n * PIECE : (n + 1) * PIECE] == bytes((taken[n],)) * PIECE for n in (0, 3, 7))


@pytest.mark.parametrize("stack", [b"", bytes(64), b"\xff" * 64])
def test_a_stack_that_lies_ends_the_guest_and_nothing_else(
    engine: wasmtime.Engine, module: wasmtime.Module, stack: bytes
) -> None:
    engine_slice = engine_module.SLICE
    assert engine_slice > 1_000_000
    run = Run(engine, module, "spin", "3")
    run.fuel = 3_000_000
    size = run.enter().memory.size
    guest = run.enter((Image(size=size, variables=((0, 65536),), stack=stack, fuel=0), ()))
    with suppress(Refused, wasmtime.Trap, Exit):
        assert not guest.advance(lambda: None)
    assert guest.fuel_used <= run.fuel


@pytest.fixture(scope="module")
def binaryen(tmp_path_factory: pytest.TempPathFactory) -> Binaryen:
    try:
        return find_binaryen(tmp_path_factory.mktemp("kept"))
    except Refused as refusal:
        pytest.skip(refusal.reason)


@pytest.mark.parametrize("policy", Policy)
def test_what_is_instrumented_here_moves_as_well(
    engine: wasmtime.Engine, binaryen: Binaryen, monkeypatch: pytest.MonkeyPatch, policy: Policy
) -> None:
    made = compile_wasm(engine, instrument(binaryen, HOSTILE.read_bytes(), policy))
    expected = Run(engine, made, "spin", "3").finish(lambda: None)
    monkeypatch.setattr(engine_module, "SLICE", 300_000)
    run = Run(engine, made, "spin", "3")
    assert run.finish(lambda: run.open().request()) == expected
    assert run.moves > 5


def test_a_binaryen_that_fails_is_told_of(tmp_path: Path) -> None:
    for path in ("false", str(tmp_path / "none")):
        with pytest.raises(Refused, match="Binaryen"):
            instrument(Binaryen(False, path), HOSTILE.read_bytes())
    with pytest.raises(Refused, match="nothing of the module"):
        instrument(Binaryen(False, "true"), HOSTILE.read_bytes())


def test_a_machine_without_binaryen_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MESH_BINARYEN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match="no Binaryen") as refused:
        find_binaryen(tmp_path)
    assert "MESH_BINARYEN" in refused.value.hint
    monkeypatch.setenv("MESH_BINARYEN", str(tmp_path / "none"))
    with pytest.raises(Refused, match="no file"):
        find_binaryen(tmp_path)
