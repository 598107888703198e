"""The engine: what it compiles it keeps, and how often it is looked at changes no count."""

from __future__ import annotations

from pathlib import Path

import pytest
import wasmtime
from runtime_jobs import HOSTILE, WORDCOUNT

from mesh.errors import Refused
from mesh.ids import RAW, Cid, cid_of
from mesh.runtime import compiled
from mesh.runtime import engine as engine_module
from mesh.runtime.compiled import place_of, take
from mesh.runtime.engine import Guest, GuestMemory, check_meter, load_module, open_engine
from mesh.runtime.files import Files
from mesh.runtime.preview1 import Errno
from mesh.runtime.trees import Denied, HostFailure
from mesh.runtime.wasi import Exit, Wasi

HEAD = b"\0asm\x01\0\0\0"
SHELL = (
    b"\x03\x02\x01\0",
    b"\x05\x03\x01\0\x01",
    b"\x07\x13\x02\x06_start\0\0\x06memory\x02\0",
)


def command(body: bytes, types: bytes = b"\x01\x04\x01\x60\0\0") -> bytes:
    """A module whose _start is *body*."""
    code = b"\0" + body + b"\x0b"
    return b"".join(
        (HEAD, types, *SHELL, bytes((10, len(code) + 2, 1, len(code))), code),
    )


@pytest.fixture(scope="module")
def engine() -> wasmtime.Engine:
    return open_engine()


def load(engine: wasmtime.Engine, path: Path, cache: Path) -> wasmtime.Module:
    """As worker and supervisor do it between them."""
    cid = cid_of(RAW, path.read_bytes())
    kept, fresh = place_of(cache, cid), cache / "fresh"
    module = load_module(engine, cid, path, kept, fresh)
    take(fresh, kept)
    return module


def spin(engine: wasmtime.Engine, module: wasmtime.Module, fuel: int) -> tuple[str, int, list[int]]:
    """How `hostile spin 3` ends, its fuel, and its fuel at every slice."""
    slices: list[int] = []

    def call(name: str, memory: GuestMemory, args: tuple[int, ...]) -> int:
        return wasi.call(name, memory, args)

    guest = Guest(engine, module, fuel=fuel, memory=8 << 20, call=call)
    wasi = Wasi(
        ("task", "spin", "3"),
        (),
        Files((), 0),
        seed=bytes(16),
        t0_ns=0,
        stdout_max=100,
        fuel_used=lambda: guest.fuel_used,
    )
    try:
        guest.run(lambda: slices.append(guest.fuel_used))
    except Exit as end:
        return f"exit {end.code}", guest.fuel_used, slices
    except wasmtime.Trap as trap:
        return str(trap.trap_code), guest.fuel_used, slices
    return bytes(wasi.stdout.data).decode(), guest.fuel_used, slices


@pytest.mark.parametrize("fuel", [1 << 40, 2_000_000])
def test_fuel_is_the_same_however_often_it_is_looked_at(
    engine: wasmtime.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fuel: int
) -> None:
    module = load(engine, HOSTILE, tmp_path)
    seen = []
    for size in (1 << 40, 1_000_000, 10_000, 999):
        monkeypatch.setattr(engine_module, "SLICE", size)
        end, used, slices = spin(engine, module, fuel)
        seen.append((end, used))
        assert slices == sorted(set(slices))
        assert all(at < used for at in slices)
        assert not slices if size > used else slices
    assert seen == [seen[0]] * 4
    assert (seen[0][1] == fuel) == (fuel == 2_000_000)


def test_what_was_compiled_is_used_again(
    engine: wasmtime.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(engine, WORDCOUNT, tmp_path)
    kept = list(tmp_path.iterdir())
    assert len(kept) == 1

    def fail(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(engine_module, "_compile", fail)
    load(engine, WORDCOUNT, tmp_path)
    assert list(tmp_path.iterdir()) == kept


def test_what_was_kept_for_another_machine_is_compiled_anew(
    engine: wasmtime.Engine, tmp_path: Path
) -> None:
    load(engine, WORDCOUNT, tmp_path)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    for broken in (b"", b"\x7fELF", whole[:1000]):
        kept.write_bytes(broken)
        load(engine, WORDCOUNT, tmp_path)
        assert kept.read_bytes() == whole


def test_the_oldest_make_room(
    engine: wasmtime.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "FILES_MAX", 2)
    for value in range(4):
        path = tmp_path / "module.wasm"
        path.write_bytes(command(bytes((0x41, value, 0x1A))))
        load(engine, path, tmp_path)
    assert len(list(tmp_path.glob("*.cwasm"))) == 2


def test_only_a_file_is_taken_for_a_compiled_module(tmp_path: Path) -> None:
    fresh, kept = tmp_path / "fresh", tmp_path / "kept"
    take(fresh, kept)  # nothing was compiled
    fresh.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="no file"):
        take(fresh, kept)
    assert not kept.exists()


def test_bytes_of_another_cid_are_not_compiled(engine: wasmtime.Engine, tmp_path: Path) -> None:
    with pytest.raises(HostFailure, match="CID"):
        load_module(engine, cid_of(RAW, b"other"), WORDCOUNT, tmp_path / "kept", tmp_path / "fresh")
    with pytest.raises(HostFailure, match="cannot read"):
        load_module(
            engine,
            Cid(cid_of(RAW, b"other")),
            tmp_path / "none",
            tmp_path / "kept",
            tmp_path / "fresh",
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"\x41\0\x41\0\x41\0\xfe\0\x02\0", "atomic notify"),
        (b"\x12\0", "tail call"),
        (b"\x06\x40\x0b", "exceptions"),
        (b"\xfb\x00\x00\x1a", "garbage collection"),
        (
            b"\xfd\x0c" + bytes(16) + b"\xfd\x0c" + bytes(16) + b"\xfd\x80\x02\x1a",
            "relaxed SIMD",
        ),
        (b"\x3f\x01\x1a", "a second memory"),
        (b"\x0b\x0b", "nonsense"),
    ],
)
def test_features_that_are_off_are_refused(
    engine: wasmtime.Engine, tmp_path: Path, body: bytes, why: str
) -> None:
    path = tmp_path / "module.wasm"
    path.write_bytes(command(body))
    with pytest.raises(Refused, match="the module cannot run here"):
        load(engine, path, tmp_path)


def test_guest_memory_is_its_own_and_nothing_else(engine: wasmtime.Engine, tmp_path: Path) -> None:
    path = tmp_path / "module.wasm"
    path.write_bytes(command(b"\x01"))
    module = load(engine, path, tmp_path)
    guest = Guest(engine, module, fuel=1000, memory=1 << 20, call=lambda *_: Errno.NOTSUP)
    memory = guest.memory
    assert memory.size == 1 << 16
    memory.write((1 << 16) - 3, b"end")
    assert memory.read((1 << 16) - 4, 4) == b"\0end"
    assert memory.read(1 << 16, 0) == b""
    for address, length in ((1 << 16, 1), ((1 << 16) - 3, 4), (0, 1 << 32), (1 << 40, 0), (-1, 1)):
        with pytest.raises(Denied):
            memory.read(address, length)
    with pytest.raises(Denied):
        memory.write((1 << 16) - 3, b"over")
    guest.run(lambda: None)


def test_the_meter_is_the_one_that_is_installed() -> None:
    check_meter()
