"""The examples: each says and leaves what an independent computation in Python says it must."""

from __future__ import annotations

import runpy
from collections.abc import AsyncIterator
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
import trio
from runtime_jobs import PATIENCE, ROOT, run, tree

from mesh.runtime.module import check_module
from mesh.runtime.origin import Origin, read_origin
from mesh.runtime.rewrite import Policy
from mesh.runtime.supervisor import Supervisor, open_supervisor
from mesh.storage.unixfs import import_file

EXAMPLES = ROOT / "mesh/examples"
MANDELBROT, COLLATZ = EXAMPLES / "mandelbrot.wasm", EXAMPLES / "collatz.wasm"


def twin(module: Path) -> Path:
    """The one that can be moved."""
    return module.with_suffix(".movable.wasm")


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    with trio.fail_after(PATIENCE):
        async with open_supervisor(tmp_path / "node", workers_max=1) as opened:
            yield opened


def mandelbrot(size: int, most: int) -> tuple[list[str], bytes, str]:
    """Lines, picture and area: complex numbers multiplied out as the standard library does not."""
    lines, picture, members, sum_ = [], f"P5 {size} {size} 255\n".encode(), 0, 0xCBF29CE484222325
    for row in range(size):
        inside = 0
        for column in range(size):
            cx, cy = -2.0 + 2.5 * (column + 0.5) / size, -1.25 + 2.5 * (row + 0.5) / size
            x = y = 0.0
            n = 0
            while n < most and x * x + y * y <= 4:
                x, y = x * x - y * y + cx, 2 * x * y + cy
                n += 1
            inside += n == most
            sum_ = (sum_ ^ n) * 0x100000001B3 % 2**64
            picture += bytes([0 if n == most else 255 - n % 256])
        members += inside
        lines.append(f"row {row + 1} of {size}: {inside} members, {sum_:016x}")
    area = f"{members * 6.25 / size**2:.9f}"
    return [*lines, f"area {area}, {members} members of {size**2} points"], picture, area


@pytest.mark.parametrize("module", [MANDELBROT, twin(MANDELBROT)], ids=lambda path: path.name)
async def test_the_area_of_the_mandelbrot_set_is_counted_point_by_point(
    supervisor: Supervisor, module: Path
) -> None:
    outcome = await run(supervisor, "a", module, "32", "300")
    lines, picture, area = mandelbrot(32, 300)
    assert outcome.status == "exited"
    assert outcome.stdout.decode().splitlines() == lines
    assert tree(outcome.out) == {"mandelbrot.pgm": picture, "area.txt": f"{area}\n".encode()}


def collatz(below: int) -> tuple[list[str], str]:
    """Every sequence in full, nothing kept: the records, and the last line."""
    records, longest, best, total = [], 0, 0, 0
    for start in range(1, below):
        walk = [start]
        while walk[-1] != 1:
            walk.append(walk[-1] // 2 if walk[-1] % 2 == 0 else 3 * walk[-1] + 1)
        total += len(walk)
        if len(walk) > best:
            longest, best = start, len(walk)
            records.append(f"{start} {best} {max(walk)}")
    return records, f"{total} numbers in {below - 1} sequences, the longest from {longest}: {best}"


@pytest.mark.parametrize("module", [COLLATZ, twin(COLLATZ)], ids=lambda path: path.name)
async def test_the_longest_collatz_sequences_are_found(
    supervisor: Supervisor, module: Path
) -> None:
    outcome = await run(supervisor, "a", module, "5000")
    records, last = collatz(5000)
    told = outcome.stdout.decode().splitlines()
    assert (outcome.status, told[-1]) == ("exited", last)
    assert len(told) == 20
    assert told[0] == "below 250: the longest begins at 231, 128 numbers"
    assert tree(outcome.out) == {"records.txt": "".join(f"{r}\n" for r in records).encode()}


async def test_its_hash_maps_random_seeds_change_no_answer(supervisor: Supervisor) -> None:
    seen = [await run(supervisor, str(n), COLLATZ, "3000", seed=bytes([n]) * 16) for n in range(2)]
    assert seen[0].stdout == seen[1].stdout
    assert tree(seen[0].out) == tree(seen[1].out)


@pytest.mark.parametrize("args", [("0",), ("x",), ("-3",), ("4097",)], ids=str)
@pytest.mark.parametrize("module", [MANDELBROT, COLLATZ], ids=lambda path: path.stem)
async def test_a_size_that_is_none_is_a_usage_error(
    supervisor: Supervisor, module: Path, args: tuple[str, ...]
) -> None:
    if (module, args) == (COLLATZ, ("4097",)):
        return  # a size like any other
    outcome = await run(supervisor, "a", module, *args)
    assert (outcome.exit_code, outcome.stdout) == (1, b"")
    assert b"usage" in outcome.stderr


def pi(count: int) -> str:
    """By Machin's formula, with a hundred digits to spare."""
    with localcontext() as context:
        context.prec = count + 100

        def arctan_of_one_by(n: int) -> Decimal:
            total, term, k = Decimal(0), Decimal(1) / n, 1
            while abs(term) > Decimal(10) ** -(count + 90):
                total += term / k
                term, k = -term / (n * n), k + 2
            return total

        value = 4 * (4 * arctan_of_one_by(5) - arctan_of_one_by(239))
    return str(value).replace(".", "")[:count]


def test_the_digits_of_pi_are_those_of_another_formula(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(EXAMPLES / "digits.py"))["main"]
    assert main(["995", str(tmp_path)]) == 0
    lines = (tmp_path / "pi.txt").read_text().splitlines()
    assert "".join(lines) == pi(995)
    assert [len(line) for line in lines] == [*[10] * 99, 5]
    assert capsys.readouterr().out.splitlines()[-1] == f"{lines[-1]}  : 995"


@pytest.mark.parametrize("plain", [MANDELBROT, COLLATZ], ids=lambda path: path.stem)
def test_each_has_a_movable_twin_that_says_so(plain: Path) -> None:
    source, made = plain.read_bytes(), twin(plain).read_bytes()
    assert (check_module(source), check_module(made)) == (False, True)
    cid = import_file([source], lambda cid, data: None).cid
    assert read_origin(made) == Origin(cid, "mesh-5/binaryen-116", Policy.OUTER)
