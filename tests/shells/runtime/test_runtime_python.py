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
from runtime_jobs import ROOT, ignore, job_of, tree

from mesh.ids import RAW, cid_of
from mesh.runtime.interpreters import PROGRAM, arguments
from mesh.runtime.supervisor import Outcome, open_supervisor

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


async def play(folder: Path, program: str, *args: str, **limits: object) -> Ran:
    """*program*, in a worker."""
    path = folder / PROGRAM
    path.write_text(program)
    values: dict[str, object] = {"memory": 64 << 20, "disk": 4 << 20, "fuel": 10**11} | limits
    inputs = ((PROGRAM, cid_of(RAW, path.read_bytes())),)
    job = job_of(MODULE, *arguments(args), inputs=inputs, **values)
    async with open_supervisor(folder / "runs", workers_max=1) as supervisor:
        outcome = await supervisor.run("a", job, MODULE, {PROGRAM: path}, on_progress=ignore)
        return Ran(outcome)


AT_HOME = '''
import collections, csv, datetime, decimal, difflib, fractions, functools, gzip, hashlib, heapq, io
import itertools, json, math, operator, random, re, sqlite3, statistics, string, struct, textwrap, zlib

print(json.dumps({"b": [1, 2.5, None, "é"], "a": {"x": True}}, sort_keys=True))
print(json.loads('{"n": 12345678901234567890, "f": 1e-7, "t": "\\\\u00e9"}'))
for name in ("md5", "sha1", "sha256", "sha3_512", "blake2b"):
    print(name, hashlib.new(name, b"mesh").hexdigest())
print(re.sub(r"(?P<a>\\w+)@(\\w+)", r"\\2 at \\g<a>", "ann@home, bob@work"), re.findall("a+?b", "aab ab"))
random.seed(7)
print(random.random(), random.sample(range(1000), 5), random.gauss(0, 1))
decimal.getcontext().prec = 50
print(decimal.Decimal(2).sqrt(), fractions.Fraction(22, 7) - fractions.Fraction(355, 113))
print(math.factorial(200), 7**777 % 10**30, round(math.pi, 15), 0.1 + 0.2, 1e300 * 1e10)
data = sqlite3.connect(":memory:")
data.execute("create table t (word text, n integer)")
data.executemany("insert into t values (?, ?)", [(w, len(w)) for w in "a bb ccc dd e".split()])
print(data.execute("select n, count(*), group_concat(word) from t group by n order by n").fetchall())
print(struct.pack("<If", 7, 1.5).hex(), zlib.crc32(b"mesh"), zlib.decompress(zlib.compress(b"x" * 999))[-3:])
print(gzip.decompress(gzip.compress(b"again" * 100))[:10])
print(sorted(collections.Counter("mississippi").items()), heapq.nsmallest(3, [5, 1, 4, 2]))
print(list(itertools.permutations("abc", 2))[:3], functools.reduce(operator.mul, range(1, 11)))
print(statistics.stdev([1, 2, 3, 4.5]), datetime.date(2024, 2, 29) + datetime.timedelta(365))
rows = io.StringIO()
csv.writer(rows).writerows([["a", 'say "b"'], [1, 2.5]])
print(repr(rows.getvalue()), textwrap.fill("many words " * 5, 30), string.Template("$x").substitute(x=1))
print("".join(difflib.unified_diff(["a\\n", "b\\n"], ["a\\n", "c\\n"], "x", "y")))


def depth(n):
    return 0 if n == 0 else 1 + depth(n - 1)


class Shape:
    def __init__(self, *sides):
        self.sides = sides

    def __repr__(self):
        match self.sides:
            case (a, b) if a == b:
                return f"square {a}"
            case (a, b):
                return f"{a=} {b=}"
        return f"{len(self.sides)} sides"


def squares():
    total = 0
    while True:
        total += (yield total) or 1


walk = squares()
print(depth(800), Shape(2, 2), Shape(2, 3), Shape(1), next(walk), walk.send(5), sorted({"b", "a", "c"}))
try:
    {}["missing"]
except* KeyError as group:
    print(group.exceptions)
'''


async def test_a_program_says_what_it_says_at_home(folder: Path) -> None:
    """The oracle is the Python that runs this test."""
    ran = await play(folder, AT_HOME)
    home = subprocess.run(
        [sys.executable, "-c", AT_HOME], capture_output=True, check=True, encoding="utf-8",
        env={"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert ran.err == ""
    assert ran.out == home.stdout
    assert (ran.status, ran.code) == ("exited", 0)


FILES = """
import os, pathlib, shutil, sqlite3, tempfile
from pathlib import Path

print(sorted(os.listdir("/in")), os.path.exists("/etc"), os.getcwd())
os.makedirs("/out/deep/er")
Path("/out/deep/er/bytes").write_bytes(bytes(5000))
with open("/out/text", "a+") as file:
    file.write("first\\n")
    file.seek(0)
    print(repr(file.read()), file.tell(), os.stat("/out/text").st_size)
os.rename("/out/text", "/out/ü")
shutil.copy("/in/main.py", "/tmp/copy.py")
shutil.copytree("/out/deep", "/tmp/deep")
shutil.rmtree("/tmp/deep")
os.unlink("/tmp/copy.py")
with tempfile.NamedTemporaryFile() as file, tempfile.TemporaryDirectory() as folder:
    file.write(b"x")
    print(file.name.startswith("/tmp/"), os.listdir(folder))
base = sqlite3.connect("/out/base.db")
base.execute("create table t (x)")
base.executemany("insert into t values (?)", ((n,) for n in range(2000)))
base.commit()
base.execute("delete from t where x % 2")
base.commit()
print(base.execute("select count(*), sum(x) from t").fetchone(), sorted(os.listdir("/tmp")))
base.close()
print([(at, sorted(folders), sorted(files)) for at, folders, files in os.walk("/out")])
for path, mode in (("/in/new", "w"), ("/in/main.py", "a"), ("/etc/passwd", "r"), ("/in/../x", "r")):
    try:
        open(path, mode)
    except OSError as error:
        print(path, error.strerror)
try:
    with open("/out/full", "wb") as file:
        while True:
            file.write(bytes(100_000))
except OSError as error:
    print(error.strerror)
os.unlink("/out/full")
"""


async def test_files_are_files_in_out_and_tmp_alone(folder: Path) -> None:
    ran = await play(folder, FILES)
    assert ran.err == ""
    lines = ran.out.splitlines()
    assert lines[:5] == [
        "['main.py'] False /",
        "'first\\n' 6 6",
        "True []",
        "(1000, 999000) []",
        "[('/out', ['deep'], ['base.db', 'ü']), ('/out/deep', ['er'], []), ('/out/deep/er', [], ['bytes'])]",
    ]
    assert lines[5:] == [
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
        ("def f(n):\n    return f(n + 1)\nf(0)", 1, "RecursionError: maximum recursion depth exceeded\n"),
        ("x = []\nfor _ in range(10**5): x = [x]\nrepr(x)", 1, "getting the repr of an object\n"),
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


CHANCE = """
import os, random, secrets, tempfile, time, uuid
began = time.monotonic()
time.sleep(3600)
assert 3600 <= time.monotonic() - began < 3601
for name in "zyx":
    open(f"/out/{name}", "w").write(name)
print({"a", "b", "c"}, hash("mesh"), random.random(), uuid.uuid4(), secrets.token_hex(8))
print(os.urandom(100_000)[-8:], id(object()), time.time(), time.gmtime()[:6], os.listdir("/out"))
print(tempfile.mktemp(), os.stat("/out/x"), os.getpid(), object())
"""


async def test_two_runs_are_one_byte_for_byte(folder: Path) -> None:
    """With all that differs at home from one run to the next."""
    first, second = await play(folder, CHANCE), await play(folder, CHANCE)
    assert first.err == ""
    assert first.all() == second.all()
    assert "(2023, 11, 14, 23, 13, 20" in first.out
    other = await play(folder, CHANCE, seed=bytes(16))
    assert other.out != first.out


COMPILE = """
import sys
import wasmtime
from pathlib import Path
from mesh.runtime import worker
from mesh.runtime.engine import open_engine
worker.COMPILE_CPU_S = 2
worker._limit_compiling()
wasmtime.Module(open_engine(), Path(sys.argv[1]).read_bytes())
"""


def test_a_compiler_is_ended_by_its_processor_time() -> None:
    """CPython takes 15 s and more: with a bound of two it never gets there."""
    ended = subprocess.run(
        [sys.executable, "-c", COMPILE, str(MODULE)], check=False, env={"PYTHONPATH": str(ROOT)}
    )
    assert ended.returncode == -signal.SIGXCPU

