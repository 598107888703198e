"""`mesh submit` from a process of its own: exit codes, and a clear reason for each failure."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from process_nodes import (
    HOSTILE,
    PATIENCE_S,
    SPIN,
    Node,
    environment,
    open_mesh,
    run_mesh,
    wait_for,
)

BIG = ("--memory", "32MiB", "--fuel", "1000G", "--max-price", "100")
SMALL = ("--memory", "8MiB", "--disk", "1MiB", "--fuel", "1G")
MODULE = str(HOSTILE)


@pytest.fixture(scope="module")
def buyer() -> Iterator[Node]:
    """A node that only buys, among two that sell."""
    with open_mesh() as mesh:
        node, *_ = mesh.start(3, buyers=1)
        mesh.meet()
        yield node


def test_a_task_that_does_its_work_is_exit_code_0(buyer: Node) -> None:
    done = buyer.command("submit", "--json", *SMALL, "--", MODULE, "exit", "0")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["schema"] == "mesh.task/v1"
    assert facts["state"] == "done"
    assert facts["result"]["exit_code"] == 0
    assert facts["result"]["fuel"] > 0
    assert facts["settle"]
    assert "following t-" in done.stderr


def test_two_nodes_that_run_one_task_agree(buyer: Node) -> None:
    done = buyer.command("submit", "--json", "--redundancy", "2", *SMALL, "--", MODULE, "exit", "0")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["agreement"]["verdict"] == "agreed"
    copies = [json.loads(buyer.command("inspect", "--json", id_).stdout) for id_ in facts["copies"]]
    assert len({copy["executor"] for copy in copies}) == 2
    assert len({copy["work"]["job"] for copy in copies}) == 1
    assert len({(copy["fuel"], copy["result"]["output"]) for copy in copies}) == 1


MISDEEDS = {
    "exit 7": "exit code 7",
    "loop": "burnt all of",
    "memory-abort": "bytes of 8388608 in use",
    "output": "bytes of output",
    "disk": "bytes of disk",
    "abort": "unreachable code reached (abort)",
    "divide": "integer division by zero",
    "bounds": "memory access out of bounds",
    "recurse": "stack overflow",
}


@pytest.mark.slow
def test_each_misdeed_of_a_task_is_exit_code_1_with_a_reason_of_its_own(buyer: Node) -> None:
    for mode, reason in MISDEEDS.items():
        done = buyer.command("submit", *SMALL, "--", MODULE, *mode.split())
        assert done.returncode == 1, (mode, done.stderr)
        error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
        assert reason in error, mode
        assert "Traceback" not in done.stderr
    assert buyer.client.status().tasks_running == 0
    assert buyer.complaints() == []


NOT_PLACED = {
    ("--memory", "4GiB"): "2 too little memory",
    ("--cpus", "64"): "2 too little cpu",
    ("--max-price", "0.0001"): "price",
    ("--feature", "quantum"): "quantum",
}


@pytest.mark.parametrize("wish", NOT_PLACED, ids=" ".join)
def test_what_nobody_takes_is_exit_code_3_and_says_why(buyer: Node, wish: tuple[str, ...]) -> None:
    done = buyer.command("submit", *wish, "--deadline", "1s", "--", MODULE, "exit", "0")
    assert done.returncode == 3, done.stderr
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith("error: t-")
    assert NOT_PLACED[wish] in error
    assert hint.startswith("hint: ")


def test_a_node_that_does_not_answer_is_exit_code_4(buyer: Node) -> None:
    done = buyer.command("submit", "--node", "127.0.0.1:9", "--", MODULE)
    assert done.returncode == 4
    assert done.stderr.startswith("error: no node answers at 127.0.0.1:9")


def test_a_task_that_nobody_knows_is_exit_code_7(buyer: Node) -> None:
    done = buyer.command("inspect", "t-" + "0" * 32)
    assert done.returncode == 7
    assert "is no task of this node" in done.stderr


def test_a_module_that_is_none_is_exit_code_2(buyer: Node) -> None:
    done = buyer.command("submit", "--", __file__)
    assert done.returncode == 2
    assert "does not begin with the magic number of WebAssembly" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_time_out_is_exit_code_124_and_the_task_goes_on(buyer: Node) -> None:
    words = ("submit", *BIG, "--timeout", "1s", "--", MODULE, "loop")
    done = buyer.command(*words)
    assert done.returncode == 124, done.stderr
    assert buyer.client.task("@last").state in ("awarded", "running")
    assert buyer.command("cancel", "@last").returncode == 0
    assert buyer.command("wait", "@last").returncode == 1


@pytest.mark.slow
def test_ctrl_c_is_exit_code_130_and_the_task_goes_on(buyer: Node) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mesh", "submit", *BIG, "--", MODULE, "spin", SPIN],
        cwd=buyer.folder,
        env=environment(buyer.folder),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("following "):
                task = line.split()[1]
                wait_for(buyer.client, task, "running")
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        assert process.wait(PATIENCE_S) == 130, rest
    assert f"hint: mesh wait {task}" in rest
    assert buyer.client.task(task).result(PATIENCE_S).result.exit_code == 0
    done = run_mesh(buyer.folder, "wait", task, "-o", "id")
    assert (done.returncode, done.stdout) == (0, f"{task}\n")
