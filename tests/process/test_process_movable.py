"""A module made movable by its buyer's node, run by another, and made again by a third."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from process_nodes import PATIENCE_S, SMALL, WITNESS, Mesh, eventually

from mesh.errors import Refused
from mesh.runtime.instrument import VARIABLE, check_tested, find_binaryen, version_of

INSTRUMENTER = "mesh-5/binaryen-116"


@pytest.fixture(scope="module")
def binaryen(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where a Binaryen lies that is tested."""
    try:
        found = find_binaryen(tmp_path_factory.mktemp("kept"))
        check_tested(version_of(found))
    except Refused as refusal:
        pytest.skip(refusal.reason)
    return found.path


@pytest.mark.long
def test_a_movable_module_is_run_elsewhere_and_made_again_by_an_auditor(
    mesh: Mesh, binaryen: str
) -> None:
    buyer, auditor, _seller = mesh.start(3, buyers=2, **{VARIABLE: binaryen})
    mesh.meet()
    done = buyer.command("submit", "--json", "--memory=32MiB", "--", str(WITNESS), "a task")
    assert done.returncode == 0, done.stderr
    task = json.loads(done.stdout)
    told = done.stderr.splitlines()[0]
    assert told.startswith("the module can be moved: made of ")
    assert told.endswith(f" by {INSTRUMENTER} (outer)")
    shown = json.loads(buyer.command("inspect", "@last", "--json").stdout)["module"]
    assert (shown["module"], shown["is_movable"]) == (task["work"]["module"], True)
    source = buyer.client.put(WITNESS)
    assert shown["source"] == source
    eventually(
        lambda: task["settle"] in {receipt.receipt_id for receipt in auditor.client.receipts()},
        "the receipt is known to all",
    )
    audit = auditor.command("audit", "--rerun", "--others", "--json")
    assert audit.returncode == 0, audit.stderr
    found = {each["check"]: each for each in json.loads(audit.stdout)["findings"]}
    assert found["rerun"]["is_good"], found["rerun"]
    detail = f"the module is {source} by {INSTRUMENTER} (outer), made again"
    assert (found["module"]["is_good"], found["module"]["detail"]) == (True, detail)


@pytest.mark.long
def test_a_node_without_binaryen_runs_the_module_as_it_is_and_says_why(
    mesh: Mesh, tmp_path: Path
) -> None:
    buyer, _seller = mesh.start(2, buyers=1, PATH=str(tmp_path))
    mesh.meet()
    record = buyer.client.submit(WITNESS, ["a task"], limits=SMALL).result(PATIENCE_S)
    assert record.work.module == buyer.client.put(WITNESS)
    shown = buyer.command("inspect", "@last").stdout
    assert "cannot be moved: this machine has no Binaryen" in shown
    insists = buyer.command("submit", "--movable=yes", "--", str(WITNESS), "another")
    assert insists.returncode == 2
    assert "this machine has no Binaryen" in insists.stderr
    assert VARIABLE in insists.stderr
    task = buyer.spin()
    mesh.executor_of(buyer, task)
    stays = buyer.command("migrate", task)
    assert stays.returncode == 3, stays.stderr
    assert "was not moved" in stays.stderr
    buyer.client.cancel(task)
