"""CPython, a large real program, in the real worker: what works at home works here, and is metered.

It needs CPython's module: MESH_PYTHON names it (tools/python_wasm.py fetches it).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from runtime_jobs import ROOT, ignore, job_of, tree

from mesh.ids import RAW, cid_of
from mesh.runtime.interpreters import PROGRAM, arguments
from mesh.runtime.manifest import STDIN
from mesh.runtime.supervisor import Outcome, open_supervisor

GUESTS = ROOT / "tests/guests"
MODULE = Path(os.environ.get("MESH_PYTHON", ""))
pytestmark = pytest.mark.skipif(
    not MODULE.is_file(), reason="MESH_PYTHON names no module of CPython"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one supervisor after the other finds the module compiled."""
    return tmp_path_factory.mktemp("python")


class Ran:
    """How a program ended, what it said, and what it left in /out."""

    def __init__(self, outcome: Outcome) -> None:
        self.status, self.code, self.fuel = outcome.status, outcome.exit_code, outcome.fuel
        self.out = outcome.stdout.decode()
        self.err = outcome.stderr.decode()
        self.detail = outcome.detail
        self.files = tree(outcome.out)

    def all(self) -> tuple[object, ...]:
        return self.status, self.code, self.fuel, self.out, self.err, self.files


async def play(
    folder: Path, program: str, *args: str, stdin: bytes | None = None, **limits: object
) -> Ran:
    """*program*, in a worker."""
    path = folder / PROGRAM
    path.write_text(program)
    values: dict[str, object] = {"memory": 64 << 20, "disk": 4 << 20, "fuel": 10**11} | limits
    files = {PROGRAM: path}
    if stdin is not None:
        files[STDIN] = folder / STDIN
        files[STDIN].write_bytes(stdin)
    inputs = tuple((name, cid_of(RAW, path.read_bytes())) for name, path in files.items())
    job = job_of(MODULE, *arguments(args), inputs=inputs, **values)
    async with open_supervisor(folder / "runs", workers_max=1) as supervisor:
        outcome = await supervisor.run("a", job, MODULE, files, on_progress=ignore)
        return Ran(outcome)


async def test_a_program_says_what_it_says_at_home(folder: Path) -> None:
    """The oracle is the Python that runs this test."""
    program = GUESTS / "at_home.py"
    ran = await play(folder, program.read_text())
    home = await trio.run_process(
        [sys.executable, "-X", "utf8", str(program)], capture_stdout=True, capture_stderr=True
    )
    assert ran.err == ""
    assert ran.out == home.stdout.decode()
    assert (ran.status, ran.code) == ("exited", 0)


async def test_standard_input_is_read_as_at_home(folder: Path) -> None:
    program = "import sys\nprint(input(), sum(map(int, sys.stdin)), sys.stdin.isatty())\n"
    told = "ü\n1\n2\n39\n".encode()
    ran = await play(folder, program, stdin=told)
    home = await trio.run_process(
        [sys.executable, "-X", "utf8", "-c", program], stdin=told, capture_stdout=True
    )
    assert (ran.err, ran.out) == ("", home.stdout.decode())
    empty = await play(folder, "input()")
    assert (empty.code, empty.err.splitlines()[-1]) == (1, "EOFError: EOF when reading a line")


async def test_files_are_files_in_out_and_tmp_alone(folder: Path) -> None:
    ran = await play(folder, (GUESTS / "files.py").read_text())
    assert ran.err == ""
    lines = ran.out.splitlines()
    assert lines == [
        "['main.py'] False /",
        "'first\\n' 6 6",
        "True []",
        "(1000, 999000) []",
        "/out ['deep'] ['base.db', 'ü']",
        "/out/deep ['er'] []",
        "/out/deep/er [] ['bytes']",
        "/in/new Read-only file system",
        "/in/main.py Read-only file system",
        "/etc/passwd No such file or directory",
        "/in/../x Capabilities insufficient",
        "No space left on device",
    ]
    assert sorted(ran.files) == ["base.db", "deep/er/bytes", "ü"]
    assert ran.files["ü"] == b"first\n"
    assert (ran.status, ran.code) == ("exited", 0)


@pytest.mark.parametrize(
    ("program", "code", "err"),
    [
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit('no such thing')", 1, "no such thing\n"),
        ("import os; os._exit(3)", 3, ""),
        ("print('ok'", 1, "SyntaxError: '(' was never closed\n"),
        ("def f():\n    raise ValueError('why')\nf()", 1, "ValueError: why\n"),
        ("def f(n):\n    return f(n + 1)\nf(0)", 1, "recursion depth exceeded\n"),
        ("x = []\nfor _ in range(10**5): x = [x]\nrepr(x)", 1, "the repr of an object\n"),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", 1, "MemoryError\n"),
        ("x = []\nwhile True: x.append([])", 1, "MemoryError\n"),
        ("import numpy", 1, "ModuleNotFoundError: No module named 'numpy'\n"),
        ("import threading; threading.Thread(target=print).start()", 1, "can't start new thread\n"),
        ("import subprocess; subprocess.run(['ls'])", 1, "does not support processes.\n"),
    ],
)  # fmt: skip
async def test_how_a_program_ends_is_told(folder: Path, program: str, code: int, err: str) -> None:
    ran = await play(folder, program)
    assert (ran.status, ran.code) == ("exited", code)
    assert ran.err.endswith(err)
    assert ("/in/main.py" in ran.err) == ("Error" in ran.err)


async def test_recursion_through_c_ends_at_the_modules_own_stack(folder: Path) -> None:
    """512 KiB of it, some sixty levels: a trap, and no exception; but the same one each time."""
    program = "def f(n):\n    print(n, flush=True)\n    return list(map(f, [n + 1]))\nf(0)"
    first, second = await play(folder, program), await play(folder, program)
    assert first.all() == second.all()
    assert first.status == "trapped"
    assert "memory access out of bounds" in first.detail
    assert 50 < int(first.out.split()[-1]) < 100


async def test_a_program_without_end_burns_what_was_bought(folder: Path) -> None:
    ran = await play(folder, "while True: pass", fuel=10**9)
    assert (ran.status, ran.fuel) == ("out-of-fuel", 10**9)


async def test_arguments_variables_and_an_empty_stdin_are_as_at_home(folder: Path) -> None:
    program = (
        "import os, sys\n"
        "print(sys.argv, os.environ['NAME'], repr(sys.stdin.read()), sys.stdout.isatty())\n"
        "print('to err', file=sys.stderr)\n"
        "input()\n"
    )
    ran = await play(folder, program, "ä", "--x", "", env=(("NAME", "ü = 1"),))
    assert ran.out == "['/in/main.py', 'ä', '--x', ''] ü = 1 '' False\n"
    assert ran.err.startswith("to err\nTraceback")
    assert ran.err.endswith("EOFError: EOF when reading a line\n")


async def test_two_runs_are_one_byte_for_byte(folder: Path) -> None:
    """With all that differs at home from one run to the next."""
    program = (GUESTS / "chance.py").read_text()
    first, second = await play(folder, program), await play(folder, program)
    assert first.err == ""
    assert first.all() == second.all()
    assert "(2023, 11, 14, 23, 13, 20" in first.out
    other = await play(folder, program, seed=bytes(16))
    assert other.out != first.out


COMPILE = """
import sys
import wasmtime
from pathlib import Path
from mesh.runtime import worker
from mesh.runtime.engine import compile_wasm, open_engine
worker.COMPILE_CPU_S = 2
worker.limit_compiling()
compile_wasm(open_engine(), Path(sys.argv[1]).read_bytes())
"""


def test_a_compiler_is_ended_by_its_processor_time() -> None:
    """CPython takes 15 s and more: with a bound of two it never gets there."""
    ended = subprocess.run(
        [sys.executable, "-c", COMPILE, str(MODULE)], check=False, env={"PYTHONPATH": str(ROOT)}
    )
    assert ended.returncode == -signal.SIGXCPU
