"""`mesh audit`: whether what was signed holds; what was run, run again; the evidence, as a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from attrs import define, field

from mesh.cli.exits import Exit
from mesh.cli.options import DURATION, open_client, with_output
from mesh.cli.render import Story, print_json, say
from mesh.cli.words import Facts, clean, credit_tier

if TYPE_CHECKING:
    from mesh.client import Client
    from mesh.v1 import ledger_pb2

ALL = "all"
SHOWN_MAX = 100
"""Entries of which each good check is a line of its own; of more, only what is bad or is run."""
_EACH_ENTRY = ("amount", "chain", "head", "resolution", "signatures", "totals", "use")


class Reruns(click.ParamType[int]):
    """How many bills to run again: 0 is all."""

    name = "N|all"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        if value == ALL:
            return 0
        if not value.isdecimal() or not 1 <= int(value) <= 2**31 - 1:
            self.fail(f"{value!r} is neither a number of 1 or more nor {ALL}", param, ctx)
        return int(value)


@click.command()
@click.option("--task", default="", help="Of one task: an id, a prefix, or @last.")
@click.option(
    "--rerun",
    type=Reruns(),
    is_flag=False,
    flag_value=ALL,
    help="Run the newest N bills again, or all (also --rerun alone); compare outputs and fuel.",
)
@click.option("--others", is_flag=True, help="With --rerun: also bills between other nodes.")
@click.option("--export", "to", type=click.Path(path_type=Path), help="Write it to this file.")
@click.option(
    "--as",
    "kind",
    type=click.Choice(("bundle", "jsonl", "csv")),
    default="bundle",
    show_default=True,
    help="bundle verifies offline, alone; jsonl is every entry; csv is for a spreadsheet.",
)
@click.option("--verify", "file", type=click.Path(path_type=Path), help="Check a file, no node.")
@click.option("--timeout", type=DURATION, help="Give up after this long.")
@click.option("--node", metavar="ADDRESS", help="The node to ask; default: the one here.")
@with_output
def audit(
    *,
    form: str,
    task: str,
    rerun: int | None,
    others: bool,
    to: Path | None,
    kind: str,
    file: Path | None,
    timeout: int | None,
    node: str | None,
) -> Exit:
    """Check signatures, chain, amounts and totals; with --rerun run the bills again, and make
    movable modules again from what they say they were made of.

    Exit code 6 when anything does not hold. With --export the ledger is written down too, a
    bundle with what the re-runs gave: anybody checks it by `mesh audit --verify FILE` or
    `python -m ledger verify FILE`, without a node.
    """
    report = Report(form)
    if file is not None:
        if task or rerun is not None or others or to is not None:
            raise click.UsageError("--verify looks at a file alone")
        for finding in verify(file):
            report.add(finding)
        return report.end("")
    seconds = None if timeout is None else timeout / 1000
    with open_client(node or click.get_current_context().obj) as client:
        task_id = client.task_id(task) if task else ""
        for found in client.audit(
            rerun is not None, task_id, seconds, newest=rerun or 0, others=others
        ):
            report.add(found)
        if to is not None:
            write(client, to, kind, task_id, report)
            if kind == "bundle":
                report.written = str(to)
        return report.end(credit_tier(client.status().tier))


def verify(path: Path) -> Iterator[ledger_pb2.LedgerAuditResponse]:
    """What the file at *path* shows, without any node. Raises BadRequest."""
    from ledger.audit import findings
    from ledger.evidence import Evidence, Finding
    from ledger.model import Entry
    from mesh.client.errors import BadRequest
    from mesh.client.files import read_bundle
    from mesh.ids import EntryId, format_entry
    from mesh.v1 import ledger_pb2

    entries: list[Entry] = []
    evidence: list[Evidence] = []
    misread: list[Finding] = []
    for item in read_bundle(path):
        match item:
            case Entry():
                entries.append(item)
            case Finding():
                misread.append(item)
            case _:
                evidence.append(item)
    if not entries and not evidence and not misread:
        raise BadRequest(f"{path}: no entries in it", "mesh audit --export FILE writes one")
    for finding in (*misread, *findings(entries, evidence=evidence)):
        yield ledger_pb2.LedgerAuditResponse(
            receipt_id=format_entry(EntryId(finding.entry_id)) if finding.entry_id else "",
            check=finding.check,
            is_good=finding.is_good,
            detail=finding.detail,
            total=len(entries),
        )


def write(client: Client, path: Path, kind: str, task_id: str, report: Report) -> None:
    """Write the ledger to *path*; into a bundle, what the re-runs gave."""
    from mesh.client.files import write_whole

    tally = {"entries": 0, "left_out": 0}

    def pieces() -> Iterator[bytes]:
        for piece in client.export(kind, task_id):
            tally.update(entries=piece.entries, left_out=piece.left_out)
            report.story.pass_by(f"{piece.entries} entries written")
            yield piece.chunk
        if kind == "bundle":
            yield from (f"{line}\n".encode() for line in report.evidence)

    size = write_whole(pieces(), path)
    count = len(report.evidence) if kind == "bundle" else 0
    reruns = f"{count} re-run{'s' * (count != 1)}"
    report.story.tell(f"{path}: {tally['entries']} entries, {reruns}, {size:,} bytes")
    if tally["left_out"]:
        report.story.tell(
            f"{tally['left_out']} entries are left out: their chains have gaps here, and a gap"
            " verifies nowhere (--as jsonl takes them all)"
        )


@define
class Report:
    """What was found, told as it comes."""

    form: str
    story: Story = field(factory=Story)
    evidence: dict[str, None] = field(factory=dict)
    """What re-runs gave, each once, for others to check."""
    written: str = ""
    """The bundle that holds all this."""
    _kept: list[Facts] = field(factory=list)
    _checks: int = 0
    _bad: int = 0
    _skipped: int = 0
    _notes: int = 0
    _first_bad: Facts | None = None

    def add(self, found: ledger_pb2.LedgerAuditResponse) -> None:
        """One finding more."""
        from mesh.client.facts import facts_of

        facts = facts_of(found)
        self._checks += 1
        self._skipped += found.is_skipped
        self._notes += found.is_note
        if not (found.is_good or found.is_skipped or found.is_note):
            self._bad += 1
            self._first_bad = self._first_bad or facts
        if found.evidence:
            self.evidence[found.evidence] = None
        if self.form == "json":
            self._kept.append(facts)
        elif self.form == "jsonl":
            click.echo(json.dumps({"schema": "mesh.finding/v1", **facts}, ensure_ascii=False))
        elif self.form == "id":
            click.echo(facts["receipt_id"])
        elif self.form == "wide" or not _is_dull(facts):
            self.story.clear()
            click.echo(finding_line(facts))
        if found.total:
            what = "bills run again" if found.check in ("rerun", "module") else "entries"
            self.story.pass_by(f"{found.done:,} of {found.total:,} {what}")

    def end(self, tier: str) -> Exit:
        """The verdict, and its exit code."""
        self.story.clear()
        if self.form == "json":
            verdict = {"is_good": not self._bad, "findings": self._kept}
            print_json({"schema": "mesh.audit/v1", **verdict})
        good = self._checks - self._bad - self._skipped - self._notes
        skipped = f", {self._skipped} not possible" if self._skipped else ""
        notes = f", {self._notes} to note" if self._notes else ""
        say(f"{self._checks} checks, {good} good, {self._bad} bad{skipped}{notes}")
        if tier:
            say(f"credit {tier}")
        if self._first_bad is None:
            return Exit.OK
        say(f"error: {self._first_bad['check']}: {clean(self._first_bad['detail'])}")
        if self.written:
            say(f"hint: mesh audit --verify {self.written} shows it to anybody, offline")
        elif self._first_bad["evidence"]:
            say("hint: --export FILE writes it as evidence that anybody can check offline")
        else:
            say("hint: mesh receipts -o json has the signed bytes: they are the evidence")
        return Exit.NOT_VERIFIED


def _is_dull(finding: Facts) -> bool:
    """Whether it is one of very many that are as they should be."""
    is_plain = finding["is_good"] and finding["check"] in _EACH_ENTRY
    return is_plain and finding["total"] > SHOWN_MAX


def finding_line(finding: Facts) -> str:
    """One check on one line."""
    about = finding["receipt_id"][:10] or finding["task_id"][:10]
    marks = {"is_good": "ok  ", "is_skipped": "skip", "is_note": "note"}
    verdict = next((mark for name, mark in marks.items() if finding[name]), "FAIL")
    return f"{verdict} {finding['check']:<10} {about:<10}  {clean(finding['detail'])}".rstrip()
