"""Every verb that asks a node, over the real gRPC door: results, schemas, exit codes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from cli_door import HOSTILE, MOVES, MemoryDoor
from click.testing import CliRunner, Result

from mesh import ids
from mesh.api.server import ApiServer, open_api
from mesh.cli.main import cli
from mesh.cli.words import clean, short_cid
from mesh.client import (
    BadRequest,
    Limits,
    NotFound,
    NotPlaced,
    TaskFailed,
    TimedOut,
    VerificationFailed,
    connect,
)
from mesh.ids import RAW, cid_of
from mesh.paths import find_home
from mesh.runtime.interpreters import PYTHON
from mesh.v1 import ledger_pb2, node_pb2, order_pb2

KEY = "--key=one"


class Node:
    """A node in memory behind the real door, and a shell that runs `mesh` against it."""

    def __init__(self, door: MemoryDoor, folder: Path, server: ApiServer) -> None:
        self.door = door
        self.folder = folder
        self.server = server

    async def mesh(self, *args: str, stdin: bytes = b"") -> Result:
        runner = CliRunner(env={"MESH_HOME": str(self.folder / "home")})
        return await trio.to_thread.run_sync(
            lambda: runner.invoke(cli, args, stdin, prog_name="mesh", catch_exceptions=False)
        )

    async def json(self, *args: str) -> Any:
        result = await self.mesh(*args, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def module(self, does: str) -> str:
        path = self.folder / f"{does}.wasm"
        path.write_text(f"{does} it")
        return str(path)


@asynccontextmanager
async def running_node(folder: Path) -> AsyncIterator[Node]:
    door = MemoryDoor()
    home = find_home({"MESH_HOME": str(folder / "home")})
    with trio.fail_after(60):
        async with open_api(door, address="127.0.0.1:0", socket=home.socket) as server:
            yield Node(door, folder, server)


@pytest.fixture
async def node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> AsyncIterator[Node]:
    monkeypatch.delenv("MESH_ADDR", raising=False)
    monkeypatch.chdir(tmp_path)
    async with running_node(tmp_path) as running:
        yield running


# --- submit


async def test_submit_tells_the_story_and_ends_with_the_tasks_exit_code(node: Node) -> None:
    book = node.folder / "book.txt"
    book.write_text("the the the")
    result = await node.mesh(
        "submit", "-i", f"book={book}", "-O", "counts.txt=got.txt", "--", node.module("ok"), "/in/b"
    )
    assert result.exit_code == 0, result.stderr
    told = result.stderr.splitlines()
    assert told[2] == "auction 1: asked 2 nodes"
    assert any("bid" in line and "0.0400 cr" in line and "98 % on time" in line for line in told)
    assert any("won" in line and "best score" in line for line in told)
    assert any(line.startswith("running on …") for line in told)
    assert "12,345,678 fuel in 840 ms" in result.stdout
    assert "0.000494 cr of at most 1.0000" in result.stdout
    assert "r-" + "bb" * 32 in result.stdout
    assert node.read("got.txt") == b"the 7\n"


async def test_what_was_asked_for_is_what_the_node_is_asked_for(node: Node) -> None:
    result = await node.mesh(
        "submit", "--cpus=0.5", "--memory=1GiB", "--disk=2MiB", "--fuel=5M", "--wall=30s",
        "--deadline=2m", "--max-price=0.05", "--fee=0.01", "--priority=7", "--feature=wasm",
        "-e", "LANG=C", KEY, "--", node.module("ok"), "-x", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    (request,) = node.door.requests
    assert request.idempotency_key == b"one"
    assert request.name == "ok -x --json"
    assert request.args == ("-x", "--json")
    assert request.env == (("LANG", "C"),)
    asked = (request.cpu_milli, request.memory, request.disk, request.fuel, request.wall_ms)
    assert asked == (500, 1 << 30, 2 << 20, 5_000_000, 30_000)
    bid = (request.deadline_ms, request.max_price, request.fee, request.priority, request.features)
    assert bid == (120_000, 50_000, 10_000, 7, ("wasm",))


# --- modules that move


async def test_a_module_is_made_movable_where_the_node_can(node: Node) -> None:
    node.door.has_binaryen = True
    result = await node.mesh("submit", "--", node.module("ok"))
    assert result.exit_code == 0, result.stderr
    (request,) = node.door.requests
    assert node.door.blocks[request.module] == b"ok it" + MOVES
    source = ids.format_cid(ids.cid_of(ids.RAW, b"ok it"))
    said = f"can be moved: made of {short_cid(source)} by mesh-5/binaryen-116 (outer)"
    assert result.stderr.splitlines()[0] == f"the module {said}"
    assert f"module {said}" in " ".join((await node.mesh("inspect", "@last")).stdout.split())
    facts = (await node.json("inspect", "@last"))["module"]
    assert (facts["is_movable"], facts["source"], facts["policy"]) == (True, source, "outer")


async def test_where_it_cannot_it_is_submitted_as_it_is_and_the_reason_told(node: Node) -> None:
    result = await node.mesh("submit", "--", node.module("ok"))
    assert result.exit_code == 0, result.stderr
    (request,) = node.door.requests
    assert node.door.blocks[request.module] == b"ok it"
    told = f"the module cannot be moved: no Binaryen is here {clean(HOSTILE)}"
    assert result.stderr.splitlines()[0] == told
    shown = await node.mesh("inspect", "@last")
    assert clean(f"cannot be moved: no Binaryen is here {HOSTILE}") in shown.stdout


async def test_who_insists_is_told_the_way_out_and_nothing_is_submitted(node: Node) -> None:
    result = await node.mesh("submit", "--movable=yes", "--", node.module("ok"))
    assert result.exit_code == 2
    assert "error: no Binaryen is here" in result.stderr
    assert "hint: install wasm-opt" in result.stderr
    assert node.door.requests == []


async def test_who_does_not_want_it_gets_the_module_as_it_is(node: Node) -> None:
    node.door.has_binaryen = True
    result = await node.mesh("submit", "--movable=no", "--", node.module("ok"))
    assert "moved" not in result.stderr
    (request,) = node.door.requests
    assert node.door.blocks[request.module] == b"ok it"


async def test_a_module_made_movable_by_hand_goes_as_it_is(node: Node) -> None:
    node.door.has_binaryen = True
    made = await node.json("module", "instrument", "--policy=all", node.module("ok"))
    assert (made["schema"], made["is_movable"], made["policy"]) == ("mesh.module/v1", True, "all")
    node.door.has_binaryen = False
    shown = await node.mesh("module", "show", f"cid:{made['module']}")
    assert f"source   {made['source']}" in shown.stdout
    result = await node.mesh("submit", "--movable=yes", "--", f"cid:{made['module']}")
    assert result.exit_code == 0, result.stderr
    assert [ids.format_cid(each.module) for each in node.door.requests] == [made["module"]]


async def test_the_sdk_does_the_same(node: Node) -> None:
    node.door.has_binaryen = True
    home = find_home({"MESH_HOME": str(node.folder / "home")})

    def submit() -> None:
        with connect(home=home, environ={}) as client:
            client.submit(node.module("ok"))
            client.submit(node.module("ok"), movable="no")
            with pytest.raises(BadRequest, match="perhaps"):
                client.submit(node.module("ok"), movable="perhaps")

    await trio.to_thread.run_sync(submit)
    modules = [node.door.blocks[request.module] for request in node.door.requests]
    assert modules == [b"ok it" + MOVES, b"ok it"]


async def test_a_failed_task_is_exit_code_1_and_still_prints_its_record(node: Node) -> None:
    result = await node.mesh("submit", "--json", "--", node.module("fail"))
    assert result.exit_code == 1
    assert json.loads(result.stdout)["result"]["exit_code"] == 3
    assert "failed: exit code 3" in result.stderr
    assert "hint: what it wrote: mesh logs" in result.stderr


async def test_a_task_that_nobody_takes_is_exit_code_3_with_counted_reasons(node: Node) -> None:
    result = await node.mesh("submit", "--max-price=0.000001", "--", node.module("nobody"))
    assert result.exit_code == 3
    assert "2 × price: the floor is 40000 µcr" in result.stderr
    assert "raise --max-price (now 0.000001 cr)" in result.stderr


async def test_a_task_that_nobody_takes_in_time_is_not_placed_yet_and_goes_on(node: Node) -> None:
    result = await node.mesh("submit", "--timeout=300ms", "--", node.module("wait"))
    assert result.exit_code == 3
    assert "it goes on: mesh wait t-" in result.stderr
    assert not node.door.cancelled


async def test_a_module_that_the_node_refuses_is_a_usage_error_with_the_nodes_hint(
    node: Node,
) -> None:
    result = await node.mesh("submit", "--", node.module("refuse"))
    assert result.exit_code == 2
    assert result.stderr.endswith(
        "error: module: it imports wasi_threads\nhint: build it without threads\n"
    )


async def test_a_full_node_is_exit_code_8(node: Node) -> None:
    assert (await node.mesh("submit", "--", node.module("full"))).exit_code == 8


async def test_a_module_that_is_not_there_is_a_usage_error(node: Node) -> None:
    result = await node.mesh("submit", "--", "none.wasm")
    assert result.exit_code == 2
    assert "none.wasm: No such file" in result.stderr


async def test_detached_the_id_is_printed_and_is_last(node: Node) -> None:
    result = await node.mesh("submit", "--detach", "-o", "id", KEY, "--", node.module("wait"))
    task = result.stdout.strip()
    assert task.startswith("t-")
    assert len(task) == 34
    assert (await node.json("inspect", "@last"))["task_id"] == task


async def test_the_same_key_is_the_same_task(node: Node) -> None:
    ids = {
        (await node.mesh("submit", "--detach", "-o", "id", KEY, "--", node.module("wait"))).stdout
        for _ in range(2)
    }
    assert len(ids) == 1


async def test_what_bidders_say_cannot_reach_the_terminal(node: Node) -> None:
    result = await node.mesh("submit", "--", node.module("ok"))
    assert HOSTILE not in result.stderr + result.stdout
    assert "cheap\N{REPLACEMENT CHARACTER}[2J" in result.stderr


# --- tasks


async def test_ps_inspect_and_wait_agree(node: Node) -> None:
    await node.mesh("submit", KEY, "--", node.module("ok"))
    listed = await node.json("ps")
    assert listed["schema"] == "mesh.tasks/v1"
    (row,) = listed["tasks"]
    record = await node.json("inspect", row["task_id"][:8])
    assert record["schema"] == "mesh.task/v1"
    module = record.pop("module")
    assert (module["module"], module["is_movable"]) == (record["work"]["module"], False)
    assert list(record)[1:] == [field.name for field in order_pb2.Task.DESCRIPTOR.fields]
    assert record["state"] == "done"
    assert [answer["verdict"] for answer in record["answers"]] == ["won", "dearer by 10000 µcr"]
    assert await node.json("wait", "@last") == record
    table = await node.mesh("ps")
    assert "0.000494" in table.stdout
    assert table.stderr == "1 task: 0 waiting, 0 running, 1 done, 0 failed\n"


async def test_tasks_are_named_by_unique_prefixes(node: Node) -> None:
    tasks = [
        (
            await node.mesh("submit", "--detach", "-oid", f"--key={n}", "--", node.module("wait"))
        ).stdout.strip()
        for n in range(3)
    ]
    for task in tasks:
        assert (await node.mesh("inspect", "-oid", task[:12])).stdout.strip() == task
    assert (await node.mesh("inspect", "0123456789abcdef")).exit_code == 7
    assert (await node.mesh("inspect", "t-" + "0" * 32)).exit_code == 7
    assert (await node.mesh("inspect", "12")).exit_code == 2


async def test_logs_are_byte_for_byte_on_their_own_streams(node: Node) -> None:
    await node.mesh("submit", "--", node.module("ok"))
    result = await node.mesh("logs", "@last")
    assert (result.stdout, result.stderr) == ("counted 7 words\n", "one odd byte\n")


async def test_logs_of_a_running_task_come_with_its_end(node: Node) -> None:
    await node.mesh("submit", "--detach", "--", node.module("wait"))
    assert (await node.mesh("logs", "@last")).exit_code == 7


async def test_get_downloads_one_file_or_all(node: Node) -> None:
    await node.mesh("submit", "--", node.module("ok"))
    one = await node.mesh("get", "@last", "more/deep.txt")
    assert one.stdout == "deep.txt\n"
    assert node.read("deep.txt") == b"deep"
    every = await node.mesh("get", "@last", "--to", "all")
    assert every.stdout.splitlines() == ["all/counts.txt", "all/more/deep.txt"]
    assert node.read("all/more/deep.txt") == b"deep"
    assert (await node.mesh("get", "@last", "none.txt")).exit_code == 7


async def test_get_takes_a_content_id(node: Node) -> None:
    await node.mesh("submit", "--", node.module("ok"))
    cid = (await node.json("inspect", "@last"))["result"]["stdout"]
    assert (await node.mesh("get", cid, "--to", "said")).stdout == "said\n"
    assert node.read("said") == b"counted 7 words\n"


async def test_cancel_takes_a_task_back(node: Node) -> None:
    await node.mesh("submit", "--detach", "--", node.module("wait"))
    result = await node.mesh("cancel", "@last")
    assert result.exit_code == 0
    assert "is cancelled" in result.stderr
    assert (await node.mesh("wait", "@last")).exit_code == 1


async def test_waiting_too_long_for_a_task_is_not_cancelling_it(node: Node) -> None:
    await node.mesh("submit", "--detach", "--", node.module("wait"))
    result = await node.mesh("wait", "@last", "--timeout", "300ms")
    assert result.exit_code == 3  # nobody has it yet
    assert not node.door.cancelled


async def test_without_any_task_last_is_not_found(node: Node) -> None:
    assert (await node.mesh("inspect", "@last")).exit_code == 7


# --- node and money


async def test_status_shows_money_with_its_unit_and_the_tier(node: Node) -> None:
    shown = (await node.mesh("status")).stdout
    assert "paid     0.000494 cr" in shown
    assert "pending  0.0400 cr" in shown
    assert "credit   T0: no seller is owed more than the line it set" in shown
    assert "1.5 cores · 4 GiB RAM · 20 GiB disk · 2 slots" in shown
    assert "frames_dropped" not in shown
    assert "frames_dropped 4" in (await node.mesh("status", "-o", "wide")).stdout
    facts = await node.json("status")
    fields = [field.name for field in node_pb2.NodeStatusResponse.DESCRIPTOR.fields]
    assert list(facts) == ["schema", *fields]
    assert facts["schema"] == "mesh.status/v1"


async def test_peers_shows_what_they_sell(node: Node) -> None:
    listed = await node.json("peers")
    assert listed["schema"] == "mesh.peers/v1"
    assert [peer["offer"] is None for peer in listed["peers"]] == [False, True]
    result = await node.mesh("peers", "-o", "wide")
    assert "0.0400" in result.stdout
    assert result.stderr == "2 peers, 1 with an offer\n"


async def test_receipts_are_listed_with_their_signatures(node: Node) -> None:
    assert "0 receipts" in (await node.mesh("receipts")).stderr
    await node.mesh("submit", "--", node.module("ok"))
    listed = await node.json("receipts", "--task", "@last")
    (receipt,) = listed["receipts"]
    assert list(receipt) == [field.name for field in ledger_pb2.Receipt.DESCRIPTOR.fields]
    assert receipt["raw"] == "0102"
    table = await node.mesh("receipts", "-o", "wide")
    assert "2 of 2" in table.stdout
    assert "2023-11-14T22:13:21Z" in table.stdout
    assert "credit T0: no seller is owed more than the line it set" in table.stderr


async def test_an_audit_that_holds_is_exit_code_0(node: Node) -> None:
    result = await node.mesh("audit", "--rerun")
    assert result.exit_code == 0
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [
        ["ok", "signatures"],
        ["ok", "totals"],
        ["ok", "rerun"],
        ["skip", "rerun"],
    ]
    assert result.stderr.splitlines() == [
        "4 checks, 3 good, 0 bad, 1 not possible",
        "credit T0: no seller is owed more than the line it set",
    ]
    verdict = await node.json("audit")
    assert (verdict["schema"], verdict["is_good"]) == ("mesh.audit/v1", True)
    assert len(verdict["findings"]) == 2


async def test_a_module_that_is_not_what_it_says_is_noted_and_no_bill_is_wrong(node: Node) -> None:
    node.door.notes = 1
    result = await node.mesh("audit", "--rerun")
    assert result.exit_code == 0, result.stderr
    assert "note module" in result.stdout
    assert "5 checks, 3 good, 0 bad, 1 not possible, 1 to note" in result.stderr
    found = (await node.json("audit", "--rerun"))["findings"]
    (note,) = [each for each in found if each["is_note"]]
    assert (note["check"], note["is_good"], note["is_skipped"]) == ("module", False, False)


async def test_an_audit_that_does_not_hold_is_exit_code_6(node: Node) -> None:
    node.door.bad_findings = 1
    result = await node.mesh("audit", "--rerun", "--json")
    assert result.exit_code == 6
    assert json.loads(result.stdout)["is_good"] is False
    assert "error: rerun: differs in fuel" in result.stderr


async def test_the_node_may_be_named_by_its_tcp_address(node: Node) -> None:
    address = f"grpc://127.0.0.1:{node.server.port}"
    assert (await node.mesh("--node", address, "status", "-o", "id")).exit_code == 0
    assert (await node.mesh("status", "--node", address, "-o", "id")).exit_code == 0


async def test_doctor_sees_the_running_node(node: Node) -> None:
    shown = (await node.mesh("doctor")).stdout
    assert "answers, 2 peer(s)" in shown


# --- the SDK


async def test_the_sdk_waits_downloads_and_raises_what_went_wrong(node: Node) -> None:
    def use() -> None:
        home = find_home({"MESH_HOME": str(node.folder / "home")})
        with connect(home=home, environ={}) as client:
            done = client.submit(node.module("ok"), limits=Limits.read(cpus="0.5"))
            # Nobody watches: the door tells the story to the first who waits.
            assert done.result(timeout=30).amount == 494
            assert done.state == "done"
            assert done.download("counts.txt", node.folder / "x")[0].read_bytes() == b"the 7\n"
            assert client.task("@last") == done
            with pytest.raises(TaskFailed) as failed:
                client.submit(node.module("fail")).result(timeout=30)
            assert failed.value.exit_code == 3
            with pytest.raises(NotPlaced):
                client.submit(node.module("nobody")).result(timeout=30)
            waiting = client.submit(node.module("wait"))
            with pytest.raises(TimedOut):
                waiting.wait(timeout=0.2)
            waiting.cancel()
            with pytest.raises(TaskFailed, match="cancelled"):
                waiting.result(timeout=30)
            with pytest.raises(NotFound):
                client.record("t-" + "0" * 32)
            assert len(list(client.tasks())) == 4
            assert client.put(node.module("ok")) == client.put(node.module("ok"))

    await trio.to_thread.run_sync(use)


async def test_content_that_is_known_already_is_not_sent_again(node: Node) -> None:
    def use() -> str:
        home = find_home({"MESH_HOME": str(node.folder / "home")})
        with connect(home=home, environ={}) as client:
            cid = client.put(node.module("ok"))
            client.submit(f"cid:{cid}", name="again")
            return cid

    await trio.to_thread.run_sync(use)
    assert node.door.requests[0].name == "again"


@pytest.mark.parametrize("source", ["-", "lines.txt"])
async def test_what_a_program_reads_is_a_file_or_our_own_standard_input(
    node: Node, source: str
) -> None:
    (node.folder / "lines.txt").write_text("from a file\n")
    words = ("submit", "--stdin", source, "--", node.module("ok"))
    result = await node.mesh(*words, stdin=b"from a pipe\n")
    assert result.exit_code == 0, result.stderr
    (request,) = node.door.requests
    said = b"from a pipe\n" if source == "-" else b"from a file\n"
    assert dict(request.inputs) == {"stdin": cid_of(RAW, said)}


async def test_there_is_one_standard_input(node: Node) -> None:
    result = await node.mesh("submit", "--stdin", "-", "-i", "stdin=x", "--", node.module("ok"))
    assert result.exit_code == 2
    assert "--stdin and --input stdin=… exclude one another" in result.stderr
    assert node.door.requests == []


# --- runtimes


async def test_a_program_is_submitted_as_an_input_of_its_runtime(node: Node) -> None:
    node.door.blocks[PYTHON.module] = b"ok"
    program = node.folder / "prog.py"
    program.write_text("print(1)")
    words = ("submit", "--runtime", "python", "-i", f"data={program}", "--", str(program), "-x")
    result = await node.mesh(*words)
    assert result.exit_code == 0, result.stderr
    (request,) = node.door.requests
    assert request.module == PYTHON.module
    assert request.name == "prog -x"
    assert request.args == ("/in/main.py", "-x")
    assert [name for name, _ in request.inputs] == ["data", "main.py"]
    assert dict(request.inputs)["main.py"] == cid_of(RAW, b"print(1)")
    unknown = await node.mesh("submit", "--runtime", "ruby", "--", str(program))
    assert unknown.exit_code == 2
    assert "hint: one of: python" in unknown.stderr


async def test_runtimes_are_listed_with_whether_they_are_here(node: Node) -> None:
    (row,) = (await node.json("runtime", "list"))["runtimes"]
    assert (row["name"], row["is_here"]) == ("python", False)
    node.door.folders[PYTHON.module] = {"": b""}
    (row,) = (await node.json("runtime", "list"))["runtimes"]
    assert row["is_here"]


async def test_only_the_very_module_is_added_as_a_runtime(node: Node) -> None:
    wrong = await node.mesh("runtime", "add", "python", node.module("ok"))
    assert wrong.exit_code == 2
    assert "and not CPython 3.12.0" in wrong.stderr
    assert "hint: that is bafy" in wrong.stderr
    absent = await node.mesh("runtime", "add", "python", "none.wasm")
    assert absent.exit_code == 2
    assert "none.wasm: No such file" in absent.stderr
    unknown = await node.mesh("runtime", "add", "ruby")
    assert unknown.exit_code == 2
    assert node.door.blocks == {}


def double(number: int) -> int:
    return 2 * number


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 200_000, b"\xff", b"1" * 100_000])
async def test_a_value_that_a_stranger_made_is_json_or_nothing(node: Node, data: bytes) -> None:
    node.door.blocks[PYTHON.module] = b"ok"

    def use() -> None:
        home = find_home({"MESH_HOME": str(node.folder / "home")})
        with connect(home=home, environ={}) as client:
            node.door.output = {"value.json": b"42"}
            assert client.call(double, 21).value(timeout=30) == 42
            node.door.output = {"value.json": data}
            with pytest.raises(VerificationFailed, match="not JSON"):
                client.call(double, 21).value(timeout=30)
            node.door.output = {}
            with pytest.raises(NotFound):
                client.call(double, 21).value(timeout=30)

    await trio.to_thread.run_sync(use)
    (asked, question), (named, _) = node.door.requests[0].inputs
    assert (asked, named) == ("call.json", "main.py")
    assert json.loads(node.door.blocks[question]) == {"args": [21], "named": {}}
