"""Tasks that several nodes run, from the command line and the SDK: waited for, compared, told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from test_cli_verbs import Node, running_node

from mesh.client import NotPlaced, VerificationFailed, connect
from mesh.ids import format_task
from mesh.market.order import Group
from mesh.paths import find_home

THREE = "--redundancy=3"


@pytest.fixture
async def node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> AsyncIterator[Node]:
    monkeypatch.delenv("MESH_ADDR", raising=False)
    monkeypatch.chdir(tmp_path)
    async with running_node(tmp_path) as running:
        yield running


def ids_in(node: Node) -> list[str]:
    """Of the copies of the only task there is."""
    group = next(iter(node.door.records.values())).order.group
    assert isinstance(group, Group)
    return [format_task(task) for task in group.members]


async def test_copies_that_agree_are_one_result(node: Node) -> None:
    result = await node.mesh("submit", THREE, "-O", "counts.txt", "--", node.module("ok"))
    assert result.exit_code == 0, result.stderr
    assert node.door.requests[0].redundancy == 3
    assert "copies    all 3 copies agree" in result.stdout
    assert node.read("counts.txt") == b"the 7\n"
    assert all(record.state.is_final for record in node.door.records.values()), "all waited for"


async def test_copies_that_disagree_are_exit_code_6_and_the_command_that_proves_it(
    node: Node,
) -> None:
    result = await node.mesh("submit", THREE, "-O", "counts.txt", "--", node.module("dissent"))
    first, second, third = ids_in(node)
    assert result.exit_code == 6
    assert f"the 3 copies of {first} disagree: {second} against 2" in result.stderr
    proves = (
        f"hint: mesh audit --task {second} --rerun --export evidence.jsonl proves it to anybody"
    )
    assert proves in result.stderr
    assert f"alike      {first}  {third}" in result.stdout
    assert f"dissents   {second}" in result.stdout
    assert f"run again  {second[:10]} by …" in result.stdout
    assert "proven wrong: differs in fuel" in result.stdout
    assert not (node.folder / "counts.txt").exists(), "whose output it would be is not known"
    assert (await node.mesh("wait", "@last")).exit_code == 6
    told = await node.json("inspect", "@last")
    assert told["agreement"]["verdict"] == "disagreed"
    assert told["agreement"]["dissenters"] == [second]


async def test_a_copy_that_nobody_took_leaves_the_result_unverified(node: Node) -> None:
    result = await node.mesh("submit", THREE, "--", node.module("short"))
    first, second, _ = ids_in(node)
    assert result.exit_code == 6
    assert f"{first} is not verified: 2 of 3 copies came to an end" in result.stderr
    assert f"mesh inspect {second} says why" in result.stderr


async def test_what_went_wrong_with_every_copy_keeps_its_own_exit_code(node: Node) -> None:
    assert (await node.mesh("submit", THREE, "--", node.module("fail"))).exit_code == 1
    assert (await node.mesh("submit", THREE, "--", node.module("nobody"))).exit_code == 3


async def test_ps_tells_copies_from_tasks(node: Node) -> None:
    await node.mesh("submit", THREE, "--", node.module("ok"))
    first, *_ = ids_in(node)
    shown = await node.mesh("ps")
    assert "done, all 3 copies agree" in shown.stdout
    for number in (2, 3):
        assert f"done, copy {number} of 3 of {first[:10]}" in shown.stdout
    alone = await node.mesh("wait", ids_in(node)[1])
    assert alone.exit_code == 0, "another copy speaks for itself alone"


async def test_more_copies_than_there_may_be_are_a_usage_error(node: Node) -> None:
    result = await node.mesh("submit", "--redundancy=9", "--", node.module("ok"))
    assert result.exit_code == 2
    assert "1<=x<=8" in result.stderr


async def test_the_sdk_raises_what_is_not_verified(node: Node) -> None:
    def use() -> None:
        home = find_home({"MESH_HOME": str(node.folder / "home")})
        with connect(home=home, environ={}) as client:
            agreed = client.submit(node.module("ok"), redundancy=2).result(timeout=30)
            assert len(agreed.copies) == 2
            with pytest.raises(VerificationFailed, match="disagree: no majority"):
                client.submit(node.module("dissent"), redundancy=2).result(timeout=30)
            with pytest.raises(NotPlaced):
                client.submit(node.module("nobody"), redundancy=2).result(timeout=30)

    await trio.to_thread.run_sync(use)
