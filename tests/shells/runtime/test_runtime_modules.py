"""Hostile modules: each ends for its own reason, and its neighbour never knows."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
from runtime_jobs import PATIENCE, WITNESS, ignore, job_of, run, tree
from runtime_modules import (
    HEAD,
    TYPES,
    function,
    function_import,
    leb,
    module,
    name,
    program,
    section,
)

from mesh.runtime import supervisor as supervisor_module
from mesh.runtime.manifest import STATUSES
from mesh.runtime.supervisor import Outcome, Supervisor, open_supervisor

FUEL = 10**7
NOTHING = function(b"")
FOREVER = b"\x03\x40\x0c\0\x0b"
GROW = b"\x03\x40\x41\x01\x40\0\x41\x7f\x47\x0d\0\x0b"
"""Ask for one page more until that is denied."""


def blocks(count: int) -> bytes:
    return b"\x02\x40" * count + b"\x0b" * count


def jumps(targets: int) -> bytes:
    """A table of jumps, all out of one block."""
    return b"\x02\x40\x41\0\x0e" + leb(targets) + b"\0" * (targets + 1) + b"\x0b"


def many_locals(count: int) -> bytes:
    return b"\x01" + leb(count) + b"\x7e"


def data_at(offset: int) -> bytes:
    return section(11, b"\0\x41" + leb(offset) + b"\x0b\x01x")


ENDS: dict[str, tuple[bytes, str, str]] = {
    # what runs, and is stopped
    "a loop without end": (program(function(FOREVER)), "out-of-fuel", "it burnt all"),
    "a recursion without end": (program(function(b"\x10\0")), "trapped", "stack overflow"),
    "all memory, page by page": (program(function(GROW)), "exited", ""),
    "all memory, then abort": (program(function(GROW + b"\0")), "out-of-memory", "unreachable"),
    "a fill beyond its memory": (
        program(function(b"\x41\0\x41\0\x41\x80\x80\x08\xfc\x0b\0")),
        "trapped",
        "memory access out of bounds",
    ),
    # what is hard to compile
    "a huge function": (program(function(b"\x41\0\x1a" * 100_000)), "exited", ""),
    "many functions": (program(*[NOTHING] * 10_000), "exited", ""),
    "many locals": (program(function(b"", many_locals(49_999))), "exited", ""),
    "more locals than may be": (
        program(function(b"", many_locals(0xFFFFFFFF))),
        "refused",
        "too many locals",
    ),
    "blocks in blocks": (program(function(blocks(20_000))), "exited", ""),
    "loops in loops": (program(function(b"\x03\x40" * 2_000 + b"\x0b" * 2_000)), "exited", ""),
    "a huge table of jumps": (program(function(jumps(60_000))), "exited", ""),
    "a table of jumps beyond all bounds": (
        program(function(jumps(70_000))),
        "refused",
        "br_table",
    ),
    "a function of many arguments": (
        module(types=section(1, b"\x60\0\0", b"\x60" + leb(1001) + b"\x7f" * 1001 + b"\0")),
        "refused",
        "a list of 1001 entries",
    ),
    "a list longer than the file": (
        module(functions=b"\x03\x05" + leb(0xFFFFFFFF)),
        "refused",
        "entries; the most is",
    ),
    # what does not start
    "a start function": (module(start=b"\x08\x01\0"), "refused", "start function"),
    "more memory than was bought": (
        module(memory=section(5, b"\0" + leb(1 << 16))),
        "out-of-memory",
        "it starts with 4294967296 bytes",
    ),
    "data outside of its memory": (
        program(NOTHING, more=data_at(1 << 20)),
        "refused",
        "cannot be instantiated",
    ),
    "a table that is filled beyond its end": (
        program(
            NOTHING,
            tables=section(4, b"\x70\0\x01"),
            start=section(9, b"\0\x41\x05\x0b\x01\0"),
        ),
        "refused",
        "cannot be instantiated",
    ),
    # what belongs to features that are switched off
    "threads": (module(memory=section(5, b"\x03\x01\x01")), "refused", "threads"),
    "atomic instructions": (program(function(b"\xfe\x03\0")), "refused", "threads"),
    "64-bit memory": (module(memory=section(5, b"\x04\x01")), "refused", "64-bit memory"),
    "two memories": (module(memory=section(5, b"\0\x01", b"\0\x01")), "refused", "2 memories"),
    "pages of another size": (
        module(memory=section(5, b"\x08\x01\0")),
        "refused",
        "pages of another size",
    ),
    "tail calls": (program(function(b"\x12\0")), "refused", "tail calls"),
    "exceptions": (program(function(b"\x08\0")), "refused", "exceptions"),
    "tags of exceptions": (
        module(memory=section(5, b"\0\x01") + section(13, b"\0\0")),
        "refused",
        "exceptions",
    ),
    "garbage collection": (program(function(b"\xfb\x1c\x1a")), "refused", "gc support"),
    "types of garbage collection": (
        module(types=section(1, b"\x60\0\0", b"\x5f\0")),
        "refused",
        "garbage collection",
    ),
    "references to functions": (
        program(function(b"\xd0\0\xd4\x1a")),
        "refused",
        "function references",
    ),
    "relaxed vectors": (
        program(function(b"\xfd\x0c" + bytes(16) + b"\xfd\x0c" + bytes(16) + b"\xfd\x80\x02\x1a")),
        "refused",
        "relaxed SIMD",
    ),
    "wide arithmetic": (
        program(function(b"\x42\0" * 4 + b"\xfc\x13\x1a\x1a")),
        "refused",
        "wide arithmetic",
    ),
    "a component": (b"\0asm\x0d\0\x01\0", "refused", "it is a component"),
    # what asks for, or offers, something else
    "an import that there is not": (
        module(imports=section(2, function_import("env", "system", 0))),
        "refused",
        "it imports env.system",
    ),
    "an import of another kind": (
        module(imports=section(2, name("env") + name("memory") + b"\x02\0\x01")),
        "refused",
        "imports its memory",
    ),
    "an import of another signature": (
        module(imports=section(2, function_import("wasi_snapshot_preview1", "fd_write", 0))),
        "refused",
        "signature that is not that of WASI",
    ),
    "no _start": (
        module(exports=section(7, name("memory") + b"\x02\0")),
        "refused",
        "does not export the function _start",
    ),
    "a _start that is no function": (
        module(exports=section(7, name("_start") + b"\x02\0", name("memory") + b"\x02\0")),
        "refused",
        "does not export the function _start",
    ),
    "a _start with arguments": (
        module(types=TYPES, functions=section(3, b"\x01"), code=section(10, function(b"\x41\0"))),
        "refused",
        "takes arguments or returns results",
    ),
    "no memory to be seen": (
        module(exports=section(7, name("_start") + b"\0\0")),
        "refused",
        "does not export its memory",
    ),
    "an export twice": (
        module(exports=section(7, *[name("_start") + b"\0\0"] * 2, name("memory") + b"\x02\0")),
        "refused",
        "duplicate export",
    ),
    "a body of another type": (program(function(b"\x41\0")), "refused", "type mismatch"),
    "nothing": (b"", "refused", "magic number"),
    "only a head": (HEAD, "refused", "does not export"),
}


def facts(outcome: Outcome) -> tuple[object, ...]:
    ended = (outcome.status, outcome.exit_code, outcome.detail, outcome.fuel)
    return (*ended, outcome.stdout, outcome.stderr, tree(outcome.out))


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    with trio.fail_after(PATIENCE):
        async with open_supervisor(tmp_path / "node", workers_max=2) as opened:
            yield opened


async def run_beside_a_neighbour(
    supervisor: Supervisor, folder: Path, modules: dict[str, bytes], look: Callable[..., None]
) -> None:
    """Run each of *modules*, and a good task again and again meanwhile, which must not change."""
    expected = facts(await run(supervisor, "before", WITNESS))
    is_over = False
    seen = 0

    async def be_the_neighbour() -> None:
        nonlocal seen
        while not is_over:
            assert facts(await run(supervisor, "neighbour", WITNESS)) == expected
            await supervisor.discard("neighbour")
            seen += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(be_the_neighbour)
        for what, wasm in modules.items():
            path = folder / "module.wasm"
            path.write_bytes(wasm)
            job = job_of(path, fuel=FUEL)
            outcome = await supervisor.run(what, job, path, {}, on_progress=ignore)
            look(what, outcome)
            await supervisor.discard(what)
        is_over = True
    assert seen > 0
    assert supervisor.statistics().lost == 0
    assert supervisor.statistics().template_starts == 1


async def test_every_hostile_module_ends_for_its_own_reason(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    def look(what: str, outcome: Outcome) -> None:
        _, status, reason = ENDS[what]
        assert (what, outcome.status) == (what, status), outcome.detail
        assert reason in outcome.detail, (what, outcome.detail)
        assert outcome.exit_code == 0, what
        assert outcome.status != "refused" or outcome.fuel == 0, what

    modules = {what: wasm for what, (wasm, _, _) in ENDS.items()}
    await run_beside_a_neighbour(supervisor, tmp_path, modules, look)


async def test_a_module_cut_short_or_damaged_ends_in_one_of_the_ways_there_are(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    good, chance = WITNESS.read_bytes(), random.Random(11)
    modules = {f"cut at {at}": good[:at] for at in range(9, len(good), len(good) // 12)}
    for number in range(25):
        damaged = bytearray(good)
        for _ in range(1 + number % 3):
            damaged[chance.randrange(8, len(good))] ^= 1 << chance.randrange(8)
        modules[f"damaged {number}"] = bytes(damaged)
    ends: list[str] = []

    def look(what: str, outcome: Outcome) -> None:
        assert outcome.status in STATUSES
        assert outcome.status == "refused" or "cut" not in what, what
        ends.append(outcome.status)

    await run_beside_a_neighbour(supervisor, tmp_path, modules, look)
    assert len(set(ends)) > 1


async def test_what_takes_too_long_to_compile_is_refused_and_its_worker_killed(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "COMPILE_S", 1.0)
    path = tmp_path / "bomb.wasm"
    path.write_bytes(program(*[function(b"\x41\0\x1a" * 20_000)] * 200))
    outcome = await run(supervisor, "a", path)
    assert (outcome.status, outcome.fuel) == ("refused", 0)
    assert "compiling it takes over 1 s" in outcome.detail
    assert supervisor.statistics().pids == ()
    monkeypatch.undo()
    assert (await run(supervisor, "b", WITNESS)).status == "exited"
