"""Modules: what may run is decided before a compiler sees it, and for a reason."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest
from runtime_modules import (
    HEAD,
    MEMORY,
    function_import,
    leb,
    module,
    name,
    section,
)

from mesh.errors import Refused
from mesh.runtime.module import MODULE_BYTES_MAX, check_module

ROOT = Path(__file__).resolve().parents[3]
GUESTS = sorted([*ROOT.glob("tests/guests/*.wasm"), *ROOT.glob("mesh/examples/*.wasm")])


def reason_of(wasm: bytes) -> str:
    with pytest.raises(Refused) as caught:
        check_module(wasm)
    return caught.value.reason


def test_the_least_command_may_run() -> None:
    check_module(module())


@pytest.mark.parametrize("path", GUESTS, ids=lambda path: path.stem)
def test_every_guest_of_ours_may_run(path: Path) -> None:
    check_module(path.read_bytes())


def test_an_import_from_wasi_is_fine_and_shifts_functions() -> None:
    imports = section(2, function_import("wasi_snapshot_preview1", "random_get", 1))
    exports = section(7, name("_start") + b"\0\x01", name("memory") + b"\x02\0")
    check_module(module(imports=imports, exports=exports))
    assert "takes arguments" in reason_of(module(imports=imports))


@pytest.mark.parametrize(
    ("wasm", "reason"),
    [
        (b"", "magic"),
        (b"\x7fELF\0\0\0\0", "magic"),
        (b"\0asm", "version"),
        (b"\0asm\x02\0\0\0", "version"),
        (b"\0asm\x0d\0\x01\0", "component"),
        (HEAD, "_start"),
        (module(exports=section(7, name("memory") + b"\x02\0")), "_start"),
        (module(exports=section(7, name("_start") + b"\0\0")), "memory"),
        (module(exports=section(7, name("_start") + b"\x03\0")), "_start"),
        (module(exports=section(7, name("_start") + b"\0\x05")), "_start"),
        (module(functions=section(3, b"\x01")), "takes arguments"),
        (module(functions=section(3, b"\x07")), "type does not exist"),
        (module(types=section(1, b"\x5f\0")), "garbage collection"),
        (module(types=section(1, b"\x60\x01\x6e\0")), "value types"),
        (module(memory=b""), "memory"),
        (module(memory=section(5, b"\0\x01", b"\0\x01")), "2 memories"),
        (module(memory=section(5, b"\x03\x01\x02")), "threads"),
        (module(memory=section(5, b"\x04\x01")), "64-bit"),
        (module(memory=section(5, b"\x08\x01\0")), "64 KiB"),
        (module(memory=section(5, b"\0" + leb(65537))), "4 GiB"),
        (module(tables=section(4, b"\x70\0" + leb(100_001))), "table"),
        (module(tables=section(4, *[b"\x70\0\x01"] * 5)), "list of 5"),
        (module(tables=section(4, b"\x40\0\x70\0\x01")), "table"),
        (module(start=b"\x08\x01\0"), "start function"),
        (module(more=b"\x0d\x01\0"), "exceptions"),
        (module(more=b"\x0e\x01\0"), "unknown"),
        (module(more=MEMORY), "out of order"),
        (module(imports=section(2, function_import("env", "f", 0))), "env.f"),
        (module(imports=section(2, function_import("wasi_unstable", "f", 0))), "wasi_unstable"),
        (module(imports=section(2, name("env") + name("memory") + b"\x02\0\x01")), "memory"),
        (module(imports=section(2, name("env") + name("g") + b"\x03\x7f\0")), "env.g"),
        (
            module(
                imports=section(2, function_import("wasi_snapshot_preview1", "thread_spawn", 0))
            ),
            "thread_spawn",
        ),
        (
            module(imports=section(2, function_import("wasi_snapshot_preview1", "fd_close", 1))),
            "signature",
        ),
        (module(types=b"\x01\xff\xff\xff\xff\xff\x01\0"), "too long"),
        (module(types=b"\x01\xff\xff\xff\xff\x7f\0"), "too large"),
        (module(types=section(1) + b""), "type does not exist"),
        (module(types=b"\x01" + leb(4) + leb(2_000_000) + b"\0"), "list of 2000000"),
        (module(more=b"\0\x7f"), "cut short"),
    ],
)
def test_what_may_not_run_is_refused_for_its_reason(wasm: bytes, reason: str) -> None:
    assert reason in reason_of(wasm)


def test_a_module_beyond_its_size_is_not_read() -> None:
    assert "the most is" in reason_of(HEAD + bytes(MODULE_BYTES_MAX))


@pytest.mark.parametrize("path", GUESTS, ids=lambda path: path.stem)
def test_a_truncated_module_is_refused_or_fine_never_a_crash(path: Path) -> None:
    """What is cut in the code that policy does not read is left to the compiler."""
    wasm = path.read_bytes()
    for length in [*range(200), *range(200, len(wasm), 997)]:
        try:
            check_module(wasm[:length])
        except Refused:
            continue
        raise AssertionError(f"{length} bytes of {len(wasm)} passed")


def test_a_damaged_module_is_refused_or_fine_never_a_crash() -> None:
    chance = random.Random(3)
    wasm = GUESTS[0].read_bytes()
    for _ in range(1500):
        data = bytearray(wasm)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(1000)] = chance.randrange(256)
        with suppress(Refused):
            check_module(bytes(data))
