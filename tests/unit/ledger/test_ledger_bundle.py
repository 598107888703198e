"""The file of an audit: it stands alone, every fraud in it is named, no spreadsheet runs it."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve
from ledger_bundles import bundles, forked, history, lines, rerun_of
from ledger_deals import ALICE, BOB, CAROL, Chain

from ledger.__main__ import BAD, GOOD, USAGE, main
from ledger.audit import ARMS_MAX, findings
from ledger.bundle import extract, read, table
from ledger.codec import UINT_MAX
from ledger.errors import LedgerError
from ledger.evidence import Evidence, Finding, Inclusion
from ledger.model import Entry, Kind
from ledger.validity import prove_fork

ROOT = Path(__file__).parents[3]
BUNDLES = bundles()


def audited(file: list[bytes]) -> list[Finding]:
    items = list(read(file))
    entries = [item for item in items if isinstance(item, Entry)]
    misread = [item for item in items if isinstance(item, Finding)]
    evidence = [item for item in items if not isinstance(item, Entry | Finding)]
    return [*misread, *findings(entries, evidence=evidence)]


@pytest.mark.parametrize("name", BUNDLES)
def test_what_is_wrong_with_a_bundle_is_named_and_nothing_else(name: str) -> None:
    file, wrong = BUNDLES[name]
    assert {finding.check for finding in audited(file) if not finding.is_good} == wrong


def test_every_kind_has_passed_an_audit() -> None:
    entries = [item for item in read(BUNDLES["whole"][0]) if isinstance(item, Entry)]
    assert {entry.content.kind for entry in entries} == set(Kind) - {Kind.FORKPROOF}


def test_a_bundle_comes_back_as_what_was_written() -> None:
    items: list[Entry | Evidence] = [*history(), Inclusion(bytes(32), bytes(32), (bytes(32),))]
    items += [rerun_of(history()[3], fuel=UINT_MAX)]
    assert list(read(lines(items))) == items


def test_a_number_that_json_cannot_hold_is_text() -> None:
    line = json.loads(lines([Chain(ALICE).line(BOB, UINT_MAX)])[0])
    assert line["limit"] == str(UINT_MAX)
    assert json.loads(lines([Chain(ALICE).line(BOB, 2**53 - 1)])[0])["limit"] == 2**53 - 1


def test_an_extract_holds_the_entry_its_head_and_the_proof_and_no_more() -> None:
    entries = history()
    settle, *rest = extract(entries, {entries[3].id})
    head, proof = sorted(rest, key=lambda item: isinstance(item, Inclusion))
    assert settle == entries[3]
    assert head == entries[4]
    assert proof == Inclusion(entries[3].id, entries[4].id, proof.path)  # type: ignore[union-attr]
    assert entries[3].content.seq == 3


def test_no_extract_of_what_no_head_is_over() -> None:
    entries = history()
    with pytest.raises(LedgerError, match="no HEAD is above"):
        list(extract(entries, {entries[-1].id}))
    with pytest.raises(LedgerError, match="gaps or forks"):
        list(extract(entries[1:], {entries[3].id}))


def test_a_fork_proof_is_its_own_extract() -> None:
    proof = prove_fork(*forked())
    assert proof is not None
    assert list(extract([proof], {proof.id})) == [proof]


@pytest.mark.parametrize(
    "value",
    [
        b'{"inclusion": 1}',
        b'{"inclusion": {}}',
        b'{"inclusion": {"entry_id": "%s", "head_id": "%s", "path": 1}}' % (b"0" * 64, b"0" * 64),
        b'{"inclusion": {"entry_id": "%s", "head_id": "%s", "path": []}}' % (b"A" * 64, b"0" * 64),
        b'{"inclusion": {"entry_id": "%s", "head_id": "%s", "path": []}}' % (b"0 " * 32, b"0" * 64),
        b'{"inclusion": {"entry_id": "%s", "head_id": "%s", "path": [%s]}}'
        % (b"0" * 64, b"0" * 64, b",".join([b'"%s"' % (b"0" * 64)] * 65)),
        *(
            json.dumps(
                {"rerun": json.loads(lines([rerun_of(history()[3])])[0])["rerun"] | changes}
            ).encode()
            for changes in (
                {"fuel": -1},
                {"fuel": 1.5},
                {"fuel": True},
                {"fuel": "1"},
                {"fuel": 2**53},
                {"fuel": str(2**63)},
                {"exit": 2**32},
                {"meter": "m" * 257},
                {"meter": 1},
                {"more": 1},
                {"outputs": ["00" * 36] * 9},
            )
        ),
    ],
)
def test_evidence_out_of_range_is_a_finding(value: bytes) -> None:
    (finding,) = read([value])
    assert isinstance(finding, Finding)
    assert not finding.is_good


def test_no_cell_is_a_formula() -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE, meter="=HYPERLINK(1)")
    entries = [alloc, *(bob.dispute(alloc, ALICE, sign + "1") for sign in "+-@=")]
    file = io.StringIO()
    assert table(entries, file) == 5
    rows = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert rows[0]["meter"] == "'=HYPERLINK(1)"
    assert [row["reason"] for row in rows[1:]] == ["'+1", "'-1", "'@1", "'=1"]
    assert [row["seq"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert not any((cell or "").startswith(tuple("=+-@")) for row in rows for cell in row.values())


def test_the_heads_of_many_arms_cost_no_more_than_a_few_walks() -> None:
    trunk = Chain(BOB)
    first = trunk.alloc(ALICE)
    arms = [trunk.fork() for _ in range(ARMS_MAX + 4)]
    entries = [first]
    for number, arm in enumerate(arms):
        own = arm.alloc(CAROL, fence=number)
        entries += [own, arm.checkpoint([first, own])]
    found = [finding for finding in findings(entries) if finding.check == "head"]
    assert len(found) == ARMS_MAX
    assert all(finding.is_good for finding in found)


def told(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return main(arguments, out, err), out.getvalue(), err.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "bundle.jsonl"
    path.write_bytes(b"".join(BUNDLES["whole"][0]))
    return path


def test_an_audit_shows_the_accounts(path: Path) -> None:
    code, out, _ = told("audit", str(path))
    assert code == GOOD
    assert f"{BOB.key.hex()} 5540 40 0 0\n" in out
    assert f"{ALICE.key.hex()} 40 5540 0 0\n" in out
    assert out.endswith(" 0 not good\n")


def test_an_audit_of_a_fork_writes_its_proof_down(tmp_path: Path) -> None:
    path, proof = tmp_path / "fork.jsonl", tmp_path / "proof.jsonl"
    path.write_bytes(b"".join(BUNDLES["fork"][0]))
    code, out, _ = told("audit", str(path))
    assert code == BAD
    assert f"{BOB.key.hex()} 0 0 10080 0 FORKED" in out
    proof.write_text(next(line for line in out.splitlines() if line.startswith("{")))
    code, out, _ = told("verify", str(proof))
    assert code == BAD
    assert "BAD  fork" in out
    assert "signed seq 0 twice" in out


def test_an_extract_verifies_alone(path: Path, tmp_path: Path) -> None:
    settle = history()[3]
    code, out, _ = told("extract", str(path), f"r-{settle.id.hex()}", history()[0].id.hex())
    assert code == GOOD
    alone = tmp_path / "alone.jsonl"
    alone.write_text(out)
    assert told("verify", str(alone))[0] == GOOD
    alone.write_text("".join(line for line in out.splitlines(True) if "inclusion" not in line))
    assert told("verify", str(alone))[0] == BAD


def test_an_extract_that_cannot_be_made_says_why(path: Path) -> None:
    ruling = history()[-1]
    assert told("extract", str(path), ruling.id.hex())[::2] == (
        BAD,
        f"no HEAD is above r-{ruling.id.hex()} (sign one, or export all)\n",
    )
    assert told("extract", str(path), "00")[0] == USAGE
    assert told("extract", str(path), "x")[0] == USAGE
    assert told("extract", str(path))[0] == USAGE


def test_a_table_of_a_damaged_file_says_so(path: Path) -> None:
    code, out, err = told("csv", str(path))
    assert (code, err) == (GOOD, "")
    assert len(out.splitlines()) == len(history()) + 1
    path.write_bytes(path.read_bytes() + b"{}\n")
    assert told("csv", str(path))[::2] == (BAD, 'BAD  encoding   - line 17: no "raw"\n')


@pytest.mark.parametrize("verb", ["audit", "verify"])
def test_an_auditor_needs_four_packages_and_no_more(path: Path, verb: str) -> None:
    program = (
        "import runpy, sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        top = name.partition('.')[0]\n"
        "        known = sys.stdlib_module_names | {'ledger', 'attr', 'attrs', 'msgpack',"
        " 'msgspec', 'nacl', '_cffi_backend', 'cffi'}\n"
        "        if top not in known: raise ImportError('blocked: ' + name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        f"sys.argv = ['ledger', {verb!r}, {str(path)!r}]\n"
        "runpy.run_module('ledger', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (GOOD, "")
    assert "0 not good" in done.stdout


def test_a_claim_is_told_to_be_one_sides_word() -> None:
    alloc = Chain(BOB).alloc(ALICE)
    claim = Chain(ALICE).claim(alloc)
    found = {(f.entry_id, f.check): f for f in findings([alloc, claim])}
    assert all(finding.is_good for finding in found.values())
    assert "the seller's word alone, no debt" in found[claim.id, "amount"].detail
    assert found[b"", "balance"].detail.endswith("0 µcr owed, 0 earned, 5040 reserved")


def test_a_second_ruling_is_found_and_a_settle_before_a_ruling_is_not_blamed() -> None:
    bob, carol = Chain(BOB), Chain(CAROL)
    alloc = bob.alloc(ALICE, arbiter=CAROL.key)
    settle = bob.settle(ALICE, alloc)
    rulings = [carol.rule(alloc, amount) for amount in (3000, 2000)]
    found = {
        f.entry_id: f.is_good
        for f in findings([alloc, settle, *rulings])
        if f.check == "resolution"
    }
    assert found == {settle.id: True, rulings[0].id: True, rulings[1].id: False}


def test_evidence_is_what_the_bytes_say_and_no_more() -> None:
    settle = history()[3]
    again = rerun_of(settle, fuel=1)
    (bill,) = (f for f in audited(lines([*history(), again])) if f.check == "bill")
    assert bill.detail == "run again: differs in fuel; 40 µcr, not 3540"
    wild = evolve(again, fuel=UINT_MAX)
    assert not all(f.is_good for f in audited(lines([*history(), wild])))
