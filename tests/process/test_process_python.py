"""Programs in Python among real nodes: from a file, and from a function.

They need CPython's module: MESH_PYTHON names it (tools/python_wasm.py fetches it).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_nodes import Node, open_mesh

from mesh.client import BadRequest, Limits, TaskFailed
from mesh.ids import format_cid
from mesh.runtime.interpreters import PYTHON

MODULE = os.environ.get("MESH_PYTHON", "")
pytestmark = pytest.mark.skipif(not MODULE, reason="MESH_PYTHON names no module of CPython")
LIMITS = Limits(memory=64 << 20, disk=8 << 20, max_price=10**7)
BIG = ("--memory", "64MiB", "--disk", "8MiB", "--max-price", "10")
PROGRAM = """
import os, sys
from helper import double

print("in", sorted(os.listdir("/in")), "args", sys.argv[1:], "env", os.environ["WHO"])
print("stdin", repr(sys.stdin.read()), file=sys.stderr)
with open("/out/doubled.txt", "w") as file:
    file.write(str(double(21)))
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def buyer() -> Iterator[Node]:
    """A node that only buys, beside one that sells."""
    with open_mesh() as mesh:
        node, *_ = mesh.start(2, buyers=1)
        mesh.meet()
        yield node


def test_a_program_runs_as_at_home_once_the_runtime_was_added(buyer: Node, tmp_path: Path) -> None:
    program, helper, got = (tmp_path / name for name in ("prog.py", "helper.py", "got.txt"))
    program.write_text(PROGRAM)
    helper.write_text("def double(number):\n    return 2 * number\n")
    words = (
        *("submit", "--runtime", "python", *BIG, "-e", "WHO=me", "-i", f"helper.py={helper}"),
        *("-O", f"doubled.txt={got}", "--", str(program)),
    )
    early = buyer.command(*words, "0")
    assert early.returncode == 7, early.stderr
    assert "hint: mesh runtime add python" in early.stderr
    added = buyer.command("runtime", "add", "python", MODULE)
    assert added.returncode == 0, added.stderr
    assert added.stdout.strip() == format_cid(PYTHON.module)
    (listed,) = json.loads(buyer.command("runtime", "list", "--json").stdout)["runtimes"]
    assert (listed["name"], listed["is_here"]) == ("python", True)

    done = buyer.command(*words, "0", "--fast")
    assert done.returncode == 0, done.stderr
    assert got.read_text() == "42"
    logs = buyer.command("logs", "@last")
    assert logs.stdout == "in ['helper.py', 'main.py'] args ['0', '--fast'] env me\n"
    assert logs.stderr == "stdin ''\n"

    failed = buyer.command(*words, "3")
    assert failed.returncode == 1
    assert "exit code 3" in failed.stderr


def count_primes(below: int, *, least: int = 2) -> dict[str, int]:
    import math

    def is_prime(number: int) -> bool:
        return all(number % factor for factor in range(2, math.isqrt(number) + 1))

    return {"primes": sum(is_prime(number) for number in range(least, below))}


def fail(why: str) -> None:
    raise ValueError(why)


def test_a_function_is_called_somewhere_else(buyer: Node) -> None:
    assert buyer.command("runtime", "add", "python", MODULE).returncode == 0
    with buyer.client as node:
        assert node.call(count_primes, 1000, least=3, limits=LIMITS).value() == {"primes": 167}
        reply = node.call(fail, "a reason of its own", limits=LIMITS)
        with pytest.raises(TaskFailed, match="exit code 1"):
            reply.value()
        stderr = b"".join(node.read(reply.task.record.result.stderr)).decode()
        assert stderr.endswith("ValueError: a reason of its own\n")
        with pytest.raises(BadRequest, match="outside: PROGRAM"):
            node.call(lambda_like, limits=LIMITS)


def lambda_like() -> str:
    return PROGRAM
