"""An audit: what is wrong is found and named, what is right is said to be, offline and alone."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from attrs import evolve
from ledger_bundles import history, witnessed
from ledger_deals import ALICE, BOB, CAROL, Chain

from ledger.__main__ import BAD, GOOD, USAGE, USAGE_TEXT, main
from ledger.audit import LINE_MAX, Finding, export, findings, read
from ledger.keys import entry_message
from ledger.model import Body, Entry

ROOT = Path(__file__).parents[3]


def deals() -> list[Entry]:
    bob, carol = Chain(BOB), Chain(CAROL)
    alloc, other, theirs = bob.alloc(ALICE), bob.alloc(CAROL), carol.alloc(ALICE)
    return [
        alloc,
        other,
        theirs,
        bob.settle(ALICE, alloc),
        bob.void(CAROL, other),
        carol.settle(ALICE, theirs, fuel=0, exit=137),
    ]


def bad(entries: Iterable[Entry]) -> set[tuple[bytes, str]]:
    return {(f.entry_id, f.check) for f in findings(entries) if not f.is_good}


def resigned(body: Body) -> Entry:
    return Entry(body.encode(), BOB.sign(entry_message(body.id)))


def lines(entries: Iterable[Entry]) -> list[bytes]:
    file = io.StringIO()
    export(entries, file)
    return file.getvalue().encode().splitlines(keepends=True)


def test_sound_entries_are_found_good_in_every_respect() -> None:
    found = list(findings(deals()))
    assert all(finding.is_good for finding in found)
    checks = [finding.check for finding in found]
    assert {check: checks.count(check) for check in checks} == {
        "signatures": 6,
        "amount": 6,
        "chain": 6,
        "totals": 6,
        "resolution": 3,
        "balance": 1,
    }
    assert found[-1].detail.endswith("3540 µcr owed, 3540 earned, 0 reserved")


def test_findings_do_not_depend_on_order_or_copies() -> None:
    entries = deals()
    assert list(findings(entries)) == list(findings(entries[::-1] + entries))


def test_a_bad_signature_is_found_and_its_debt_not_counted() -> None:
    *rest, last = deals()
    forged = Entry(last.body, bytes(64))
    assert bad([*rest, forged]) == {(last.id, "signatures")}
    assert bad([*rest, last, forged]) == {(last.id, "signatures")}


def test_an_inflated_bill_is_found() -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    settle = bob.settle(ALICE, alloc)
    body = settle.content
    inflated = resigned(evolve(body, terms=evolve(body.deal, amount=body.deal.amount + 1).encode()))
    assert (inflated.id, "amount") in bad([alloc, inflated])


def test_lying_totals_are_found() -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    lie = resigned(evolve(bob.settle(ALICE, alloc).content, posted=1))
    assert bad([alloc, lie]) == {(lie.id, "totals")}


def test_a_clock_that_stands_still_is_found() -> None:
    bob = Chain(BOB)
    first = bob.alloc(ALICE)
    late = resigned(evolve(bob.alloc(ALICE).content, hlc=first.content.hlc))
    assert bad([first, late]) == {(late.id, "chain")}


def test_a_seller_misses_nothing_of_the_chains_that_it_holds_only_a_part_of() -> None:
    """ALICE has of BOB's chain what names her, and none of it is suspicious to her."""
    hers = [entry for entry in deals() if entry.content.peer == ALICE.key]
    assert {check for _, check in bad(hers)} == {"chain"}
    assert all(finding.is_good for finding in findings(hers, whole=(ALICE.key,)))
    assert not all(finding.is_good for finding in findings(hers, whole=(BOB.key,)))


def test_a_gap_is_told_and_is_no_accusation() -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    middle, last = bob.alloc(ALICE), bob.settle(ALICE, alloc)
    assert bad([alloc, last]) == {(last.id, "chain")}
    assert bad([middle, last]) == {
        (middle.id, "chain"),
        (last.id, "totals"),
        (last.id, "resolution"),
    }


def test_a_second_resolution_is_found() -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    bob.alloc(CAROL)
    settle, void = bob.settle(ALICE, alloc), bob.void(ALICE, alloc)
    assert (void.id, "resolution") in bad([alloc, settle, void])
    assert (settle.id, "resolution") not in bad([alloc, settle, void])


def test_a_fork_is_found_and_names_both_entries() -> None:
    bob = Chain(BOB)
    fork = bob.fork()
    pair = sorted([bob.alloc(ALICE), fork.alloc(CAROL)], key=lambda entry: entry.id)
    assert bad(pair) == {(pair[0].id, "fork")}
    (fork_found,) = (f for f in findings(pair) if not f.is_good)
    assert pair[1].id.hex() in fork_found.detail


def test_an_exported_file_comes_back_as_the_same_entries() -> None:
    entries = deals()
    assert export(entries, io.StringIO()) == len(entries)
    assert list(read(lines(entries))) == entries
    assert json.loads(lines(entries)[3])["amount"] == 3540


def test_a_field_that_contradicts_the_bytes_is_found() -> None:
    entry = deals()[3]
    fields = json.loads(lines([entry])[0]) | {"amount": 1, "remark": "ours"}
    finding, told = read([json.dumps(fields).encode()])
    assert told == entry
    assert finding == Finding(entry.id, "encoding", False, '"amount" is not what the bytes say')


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 50_000, "more than 256 brackets"),
        (b"[]", 'no "raw"'),
        (b"{}", 'no "raw"'),
        (b'{"raw": 1}', 'no "raw"'),
        (b'{"raw": "*"}', "not base64url"),
        (b'{"raw": "a"}', "not base64url"),
        ('{"raw": "é"}'.encode(), "not base64url"),
        (b'{"raw": "kA"}', "entry: not an array of 2"),
        (b" " * LINE_MAX + b"{}", "longer than"),
    ],
    ids=repr,
)
def test_a_line_that_is_no_entry_is_a_finding(line: bytes, reason: str) -> None:
    (finding,) = read([b"\n", line])
    assert isinstance(finding, Finding)
    assert not finding.is_good
    assert finding.detail.startswith("line 2: ")
    assert reason in finding.detail


def verified(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return main(arguments, out, err), out.getvalue(), err.getvalue()


def test_the_command_says_good_or_bad_by_its_exit_code(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"".join(lines(deals())))
    code, out, _ = verified("verify", str(path))
    assert code == GOOD == 0
    assert out.endswith("6 entries, 28 findings, 0 not good\n")
    path.write_bytes(b"".join(lines(deals())[1:]) + b"{}\n")
    code, out, _ = verified("verify", str(path))
    assert code == BAD == 6
    assert 'BAD  encoding   - line 6: no "raw"' in out


def test_the_command_tells_how_it_is_used(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for arguments in ((), ("verify",), ("frobnicate", "x"), ("verify", "a", "b")):
        assert verified(*arguments)[::2] == (USAGE, USAGE_TEXT)
    assert verified("verify", str(tmp_path / "nothing"))[0] == USAGE == 2
    assert "no entries" in verified("verify", str(empty))[2]


def test_an_auditor_needs_neither_mesh_nor_its_libraries(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"".join(lines(deals())))
    program = (
        "import runpy, sys, ledger.store\n"
        f"sys.argv = ['ledger', 'verify', {str(path)!r}]\n"
        "try: runpy.run_module('ledger', run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "foreign = {'mesh', 'trio', 'asyncio', 'libp2p', 'grpc', 'cryptography', 'base58'} & tops\n"
        "sys.exit(str(foreign) if foreign else code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (GOOD, "")
    assert "0 not good" in done.stdout


def test_a_witnessed_head_is_told_from_a_witnessed_entry() -> None:
    entries = history()
    evidence = [
        witnessed(entry, members) for entry, members in zip(entries[3:5], (4, 7), strict=True)
    ]
    found = [f for f in findings(entries, evidence=evidence) if f.check == "certificate"]
    assert [(f.entry_id, f.is_good, f.detail) for f in found] == [
        (entries[3].id, True, "witnessed: by 3 of 4, 3 are needed"),
        (entries[4].id, True, "a witnessed HEAD: by 5 of 7, 5 are needed"),
    ]


def test_a_certificate_makes_no_gap_good() -> None:
    """What its witnesses saw of the chain, the reader of the file has not."""
    entries = history()[1:5]
    evidence = [witnessed(entries[-1])]
    found = {(f.entry_id, f.check, f.is_good) for f in findings(entries, evidence=evidence)}
    assert (entries[-1].id, "certificate", True) in found
    assert (entries[0].id, "chain", False) in found
