"""Check a file of entries offline, with no node and no mesh.

    python -m ledger verify FILE           every check, one finding a line
    python -m ledger audit FILE            what is not good, the accounts, and proofs of fraud
    python -m ledger csv FILE              a table of the entries, for a spreadsheet
    python -m ledger extract FILE ID...    those entries with the proofs that they stand alone
    python -m ledger fsck FILE.sqlite      whether a node's ledger is what was written, bit by bit

Exit 0: all good. 6: something is not as it should be. 2: wrong usage, or nothing to check.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TextIO

from attrs import frozen

from ledger.audit import findings
from ledger.bundle import LINE_MAX, export, extract, read, table
from ledger.errors import Corruption, LedgerError
from ledger.evidence import Evidence, Finding
from ledger.fsck import examine
from ledger.model import Entry, Kind
from ledger.state import Accounts
from ledger.store import Store
from ledger.validity import prove_fork

GOOD, USAGE, BAD = 0, 2, 6
USAGE_TEXT = "usage: python -m ledger verify|audit|csv|fsck FILE, or extract FILE ID...\n"
PROOFS_MAX = 100
"""Forks of which `audit` writes the proof down."""


@frozen
class _Content:
    """What a file holds."""

    entries: list[Entry]
    evidence: list[Evidence]
    misread: list[Finding]

    def findings(self, sound: list[Entry] | None = None) -> Iterator[Finding]:
        """What is good and what is not; *sound* takes the entries that are valid by themselves."""
        yield from self.misread
        yield from findings(self.entries, evidence=self.evidence, sound=sound)


def main(arguments: Sequence[str], out: TextIO, err: TextIO) -> int:
    """Do what the *arguments* say; the exit code."""
    match arguments:
        case [("verify" | "audit" | "csv") as verb, name]:
            wanted: list[str] = []
        case ["extract" as verb, name, _, *_]:
            wanted = list(arguments[2:])
        case ["fsck", name]:
            return _fsck(Path(name), out)
        case _:
            err.write(USAGE_TEXT)
            return USAGE
    try:
        content = _content(Path(name))
    except OSError as error:
        err.write(f"{name}: {error.strerror}\n")
        return USAGE
    if not content.entries and not content.evidence and not content.misread:
        err.write(f"{name}: no entries in it\n")
        return USAGE
    match verb:
        case "verify":
            return _verify(content, out)
        case "audit":
            return _audit(content, out)
        case "csv":
            table(content.entries, out)
            return _misread(content, err)
        case _:
            return _extract(content, wanted, out, err)


def _fsck(path: Path, out: TextIO) -> int:
    problems = 0
    try:
        with Store.view(path) as store:
            count = store.total().count
            for problem in examine(store):
                problems += 1
                out.write(f"BAD  {problem.what}\n     {problem.hint}\n")
    except LedgerError as error:
        out.write(f"BAD  {path}: {error.reason}\n     {error.hint}\n")
        return BAD if isinstance(error, Corruption) else USAGE
    out.write(f"{count} entries, {problems} problems\n")
    return BAD if problems else GOOD


def _content(path: Path) -> _Content:
    content = _Content([], [], [])
    for item in read(_lines(path)):
        match item:
            case Entry():
                content.entries.append(item)
            case Finding():
                content.misread.append(item)
            case _:
                content.evidence.append(item)
    return content


def _verify(content: _Content, out: TextIO) -> int:
    checks = bad = 0
    for finding in content.findings():
        checks += 1
        bad += not finding.is_good
        out.write(_told(finding))
    out.write(f"{len(content.entries)} entries, {checks} findings, {bad} not good\n")
    return BAD if bad else GOOD


def _audit(content: _Content, out: TextIO) -> int:
    sound: list[Entry] = []
    found = list(content.findings(sound))
    bad = [finding for finding in found if not finding.is_good]
    for finding in bad:
        out.write(_told(finding))
    for net in sorted({entry.content.net for entry in sound}):
        accounts = Accounts(net)
        for entry in sound:
            accounts.add(entry)
        out.write(f"net {net.hex()}, in µcr: owes, is owed, reserved, of that claimed\n")
        for key, account in accounts.all().items():
            marks = " FORKED" * account.forked + " RETIRED" * account.retired
            owes, owed = account.posted_debit, account.posted_credit
            rest = f"{account.pending_debit} {account.claimed_debit}{marks}"
            out.write(f"  {key.hex()} {owes} {owed} {rest}\n")
    _write_forks(sound, out)
    out.write(f"{len(content.entries)} entries, {len(found)} findings, {len(bad)} not good\n")
    return BAD if bad else GOOD


def _write_forks(entries: Sequence[Entry], out: TextIO) -> None:
    """The proof of each fork: one line that anybody can verify alone."""
    places: dict[tuple[bytes, bytes, int], dict[bytes, Entry]] = {}
    for entry in entries:
        body = entry.content
        if body.kind is not Kind.FORKPROOF:
            places.setdefault((body.net, body.author, body.seq), {})[entry.id] = entry
    forks = (pair for arms in places.values() for pair in combinations(arms.values(), 2))
    for count, (one, other) in enumerate(forks):
        if count == PROOFS_MAX:
            out.write("more forks are not written down\n")
            return
        proof = prove_fork(one, other)
        export([proof] if proof else [one, other], out)


def _misread(content: _Content, err: TextIO) -> int:
    for finding in content.misread:
        err.write(_told(finding))
    return BAD if content.misread else GOOD


def _extract(content: _Content, wanted: Sequence[str], out: TextIO, err: TextIO) -> int:
    ids = {entry.id for entry in content.entries}
    try:
        chosen = {bytes.fromhex(name.removeprefix("r-")) for name in wanted}
    except ValueError:
        err.write(USAGE_TEXT)
        return USAGE
    if not chosen <= ids:
        err.write("not every one of these entries is in the file\n")
        return USAGE
    try:
        export(list(extract(content.entries, chosen)), out)
    except LedgerError as error:
        err.write(f"{error}\n")
        return BAD
    return _misread(content, err)


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of the file, none of them longer than one byte above what is allowed."""
    with path.open("rb") as file:
        while line := file.readline(LINE_MAX + 1):
            yield line


def _told(finding: Finding) -> str:
    verdict = "good" if finding.is_good else "BAD "
    name = f"r-{finding.entry_id.hex()}" if finding.entry_id else "-"
    return f"{verdict} {finding.check:<10} {name} {finding.detail}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdout, sys.stderr))
