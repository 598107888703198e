"""The verbs of the ledger over the real gRPC door: audit and its files, state, forks, lines."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from cli_door import ANN, BOB, ME
from ledger_bundles import bundles, history, inflated, lines, rerun_of
from ledger_deals import BOB as FORKER
from test_cli_verbs import Node, running_node

from mesh.api.door import AuditRequest, ForkView
from mesh.ids import PeerId, format_peer
from mesh.v1 import ledger_pb2

FILES = bundles()
FIELDS = [field.name for field in ledger_pb2.LedgerAuditResponse.DESCRIPTOR.fields]


@pytest.fixture
async def node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> AsyncIterator[Node]:
    monkeypatch.delenv("MESH_ADDR", raising=False)
    monkeypatch.chdir(tmp_path)
    async with running_node(tmp_path) as running:
        yield running


# --- audit


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ((), AuditRequest()),
        (("--rerun",), AuditRequest(rerun=True)),
        (("--rerun", "all"), AuditRequest(rerun=True)),
        (("--rerun", "--json"), AuditRequest(rerun=True)),
        (("--rerun", "3"), AuditRequest(rerun=True, newest=3)),
        (("--rerun=7", "--others"), AuditRequest(rerun=True, newest=7, others=True)),
    ],
    ids=lambda it: " ".join(it) if isinstance(it, tuple) else "",
)
async def test_so_many_bills_are_run_again(
    node: Node, options: tuple[str, ...], asked: AuditRequest
) -> None:
    assert (await node.mesh("audit", *options)).exit_code == 0
    assert node.door.audits == [asked]


@pytest.mark.parametrize("count", ["0", "1.5", "many", "99999999999"])
async def test_a_number_of_bills_that_makes_no_sense_is_a_usage_error(
    node: Node, count: str
) -> None:
    result = await node.mesh("audit", f"--rerun={count}")
    assert result.exit_code == 2
    assert "neither a number" in result.stderr


async def test_of_a_long_ledger_only_what_is_bad_or_was_run_is_a_line(node: Node) -> None:
    node.door.length = 101
    short = await node.mesh("audit", "--rerun")
    assert [line.split()[1] for line in short.stdout.splitlines()] == ["totals", "rerun", "rerun"]
    assert "4 checks, 3 good" in short.stderr
    wide = await node.mesh("audit", "--rerun", "-o", "wide")
    assert len(wide.stdout.splitlines()) == 4


async def test_findings_have_all_their_fields_as_json(node: Node) -> None:
    verdict = await node.json("audit", "--rerun")
    assert [list(finding) for finding in verdict["findings"]] == [FIELDS] * 4
    told = (await node.mesh("audit", "-o", "jsonl")).stdout.splitlines()
    assert [json.loads(line)["schema"] for line in told] == ["mesh.finding/v1"] * 2


async def test_a_wrong_bill_goes_into_the_file_as_evidence_that_others_verify(node: Node) -> None:
    """The third party has neither a node nor the job: the file says what to run."""
    settle = history()[3]
    node.door.bad_findings = 1
    node.door.evidence = lines([rerun_of(settle, fuel=1)])[0].decode().strip()
    node.door.file = lines([*history()])
    told = await node.mesh("audit", "--rerun=1")
    assert "hint: --export FILE writes it as evidence" in told.stderr
    result = await node.mesh("audit", "--rerun=1", "--export", "evidence.jsonl")
    assert result.exit_code == 6
    assert "evidence.jsonl: 16 entries, 1 re-run, " in result.stderr
    assert "hint: mesh audit --verify evidence.jsonl" in result.stderr
    checked = await node.mesh("audit", "--verify", "evidence.jsonl")
    assert checked.exit_code == 6
    (bad,) = [line for line in checked.stdout.splitlines() if line.startswith("FAIL")]
    assert bad.split()[1:3] == ["bill", f"r-{settle.id.hex()}"[:10]]
    assert "differs in fuel; 40 µcr, not 3540" in bad


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
async def test_other_forms_hold_no_evidence(node: Node, kind: str) -> None:
    node.door.evidence = "{}"
    node.door.file = [b"a line\n"]
    result = await node.mesh("audit", "--rerun", "--export", "out", "--as", kind)
    assert result.exit_code == 0
    assert node.read("out") == (b"id\r\n" if kind == "csv" else b"") + b"a line\n"


async def test_what_a_bundle_leaves_out_is_said(node: Node) -> None:
    node.door.file, node.door.left_out = lines([history()[0]]), 7
    result = await node.mesh("audit", "--export", "out")
    assert "7 entries are left out: their chains have gaps here" in result.stderr


async def test_a_file_that_cannot_be_written_is_a_usage_error(node: Node) -> None:
    (node.folder / "wall").write_text("")
    result = await node.mesh("audit", "--export", "wall/out")
    assert result.exit_code == 2
    assert "error: " in result.stderr


# --- the ledger


async def test_the_state_of_the_ledger_has_its_tier_its_forks_and_every_line(node: Node) -> None:
    node.door.forked = [ForkView(ANN, 3, ("one", "other"))]
    shown = (await node.mesh("ledger", "status")).stdout
    assert "tier     T1: lines, and forks are detected" in shown
    assert f"digest   {'d1' * 32}" in shown
    assert "entries  7 in 2 chains" in shown
    assert "archive  no: 2 entries pruned" in shown
    assert f"forked   {format_peer(ANN)}" in shown
    assert "a statistic, never credit to spend" in shown
    assert "owes 0.000494 cr, reserved 0.0400 cr, of at most 0.0500 cr, frozen" in shown
    assert "counter  sync_talks 3" in shown
    facts = await node.json("ledger", "status")
    fields = [field.name for field in ledger_pb2.LedgerStatusResponse.DESCRIPTOR.fields]
    assert list(facts) == ["schema", *fields, "lines"]
    assert (facts["schema"], facts["tier"]) == ("mesh.ledger/v1", "T1")
    assert facts["lines"][0]["limit"] == 50_000


async def test_forks_are_told_with_lines_for_a_file_and_exit_code_6(node: Node) -> None:
    assert (await node.mesh("ledger", "forks")).exit_code == 0
    proof = FILES["fork proof"][0][0].decode().strip()
    node.door.forked = [ForkView(PeerId(FORKER.key), 0, (proof,))]
    result = await node.mesh("ledger", "forks")
    assert (result.exit_code, result.stdout) == (6, f"{proof}\n")
    assert "1 fork" in result.stderr
    listed = json.loads((await node.mesh("ledger", "forks", "--json")).stdout)
    assert (listed["schema"], listed["forks"][0]["lines"]) == ("mesh.forks/v1", [proof])
    (node.folder / "proof").write_text(result.stdout)
    checked = await node.mesh("audit", "--verify", "proof")
    assert checked.exit_code == 6
    assert "signed seq 0 twice" in checked.stdout


async def test_entries_of_a_file_reach_the_node_byte_for_byte(node: Node) -> None:
    (node.folder / "bundle").write_bytes(b"".join(FILES["whole"][0]))
    result = await node.mesh("ledger", "import", "bundle")
    assert result.exit_code == 0, result.stderr
    assert node.door.taken_in == [entry.encode() for entry in history()]
    assert "added  16" in result.stdout
    facts = await node.json("ledger", "import", "bundle")
    assert (facts["schema"], facts["added"], facts["misread"]) == ("mesh.import/v1", 16, 0)


async def test_what_is_no_good_of_a_file_is_told_and_the_rest_taken(node: Node) -> None:
    (node.folder / "bundle").write_bytes(b"".join(FILES["no JSON"][0]))
    result = await node.mesh("ledger", "import", "bundle")
    assert (result.exit_code, len(node.door.taken_in)) == (6, 1)
    assert "error: line 2: not JSON" in result.stderr
    node.door.refuses = 1
    (node.folder / "bundle").write_bytes(b"".join(lines([*inflated()])))
    assert (await node.mesh("ledger", "import", "bundle")).exit_code == 6


async def test_a_file_that_is_not_there_is_a_usage_error(node: Node) -> None:
    for verb in (("ledger", "import", "none"), ("audit", "--verify", "none")):
        result = await node.mesh(*verb)
        assert (result.exit_code, "none: No such file" in result.stderr) == (2, True)


# --- lines


async def test_a_line_is_set_for_a_peer_that_is_named_by_its_end(node: Node) -> None:
    assert (await node.mesh("line", format_peer(ANN)[-6:], "0.5")).stdout.splitlines() == [
        f"buyer  {format_peer(ANN)}",
        "line   0.5000 cr",
    ]
    stranger = PeerId(b"\x09" * 32)
    assert (await node.json("line", format_peer(stranger), "none"))["limit"] == 2**63 - 1
    assert node.door.limits == {BOB: 50_000, ANN: 500_000, stranger: 2**63 - 1}


async def test_without_a_peer_all_lines_are_listed(node: Node) -> None:
    node.door.limits[ANN] = 2**63 - 1
    table = await node.mesh("line")
    assert "no limit" in table.stdout
    assert "frozen" in table.stdout
    assert table.stderr == "2 buyers, 0.000988 cr owed\n"
    listed = await node.json("line")
    assert listed["schema"] == "mesh.lines/v1"
    assert [list(row) for row in listed["lines"]] == [
        [field.name for field in ledger_pb2.Line.DESCRIPTOR.fields]
    ] * 2


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((format_peer(ME), "1"), "this node itself"),
        ((format_peer(ANN),), "AMOUNT is missing"),
        ((format_peer(ANN), "-1"), "--help"),
        ((format_peer(ANN), "much"), "amount of credits"),
        (("abc", "1"), "is no peer"),
    ],
)
async def test_a_line_that_makes_no_sense_is_a_usage_error(
    node: Node, arguments: tuple[str, ...], why: str
) -> None:
    result = await node.mesh("line", *arguments)
    assert (result.exit_code, why in result.stderr) == (2, True), result.stderr
    assert node.door.limits == {BOB: 50_000}


async def test_a_peer_that_nobody_knows_is_not_found(node: Node) -> None:
    assert (await node.mesh("line", "zzzzzz", "1")).exit_code == 7
