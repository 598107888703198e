"""The file that entries and evidence travel in, and a table for people. Pure.

JSON lines. A line with `raw` is an entry: its exact bytes in base64url, and beside them fields for
people; only the bytes count, and a field that contradicts them is a finding. Lines of one object
named `inclusion`, `consistency`, `rerun` or `certificate` are evidence. A bundle needs nothing from
outside: it verifies offline.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, TextIO

from attrs import asdict

from ledger.codec import TEXT_MAX, UINT_MAX
from ledger.errors import BadEntry, LedgerError
from ledger.evidence import Consistency, Evidence, Finding, Inclusion, Rerun, Witnessed
from ledger.model import EXIT_MAX, OUTPUTS_MAX, TERMED, Body, Entry, Kind
from ledger.proof import CONSISTENCY_MAX, PATH_MAX, Tree
from ledger.quorum import MEMBERS_MAX
from ledger.statements import Checkpoint, Dispute, ForkProof, KeyOp, Line, Refund, Statement

LINE_MAX = 64 * 1024
"""Bytes of one line of a file."""
NESTED_MAX = 256
"""Brackets that one line may open, so that no parser of JSON is put to the test."""
NUMBER_MAX = 2**53 - 1
"""What JSON can hold for every reader: a larger number is written as text, in decimal."""

_STATEMENTS: Mapping[Kind, type[Statement]] = {
    Kind.DISPUTE: Dispute,
    Kind.REFUND: Refund,
    Kind.LINE: Line,
    Kind.KEYOP: KeyOp,
    Kind.HEAD: Checkpoint,
    Kind.FORKPROOF: ForkProof,
}
_NAMES: Mapping[type[Evidence], str] = {
    Inclusion: "inclusion",
    Consistency: "consistency",
    Rerun: "rerun",
    Witnessed: "certificate",
}
_CSV_COLUMNS = (
    *("id", "kind", "net", "author", "seq", "peer", "seller", "buyer", "task", "fence", "meter"),
    *("price", "fee", "reserve", "fuel", "amount", "exit", "ref", "limit", "reason"),
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export(items: Iterable[Entry | Evidence], file: TextIO) -> int:
    """Write *items* as JSON lines; how many there were."""
    count = 0
    for item in items:
        fields = _readable(item) if isinstance(item, Entry) else _shown(item)
        file.write(json.dumps(fields) + "\n")
        count += 1
    return count


def table(entries: Iterable[Entry], file: TextIO) -> int:
    """Write *entries* as CSV, a view that no check reads; how many there were.

    A cell that a spreadsheet would take for a formula starts with an apostrophe.
    """
    writer = csv.DictWriter(file, _CSV_COLUMNS, restval="", extrasaction="ignore")
    writer.writeheader()
    count = 0
    for entry in entries:
        writer.writerow({name: _cell(value) for name, value in _readable(entry).items()})
        count += 1
    return count


def extract(entries: Iterable[Entry], wanted: Collection[bytes]) -> Iterator[Entry | Evidence]:
    """The entries whose ids are *wanted*, each with the HEAD over it and the proof of that.

    *entries* are the whole chains that they are on. The HEADs of one chain come with proofs that
    each only grew. Raises LedgerError where no HEAD is above an entry.
    """
    chains: dict[tuple[bytes, bytes], list[Entry]] = {}
    for entry in sorted(set(entries), key=lambda entry: (entry.content.seq, entry.id)):
        if entry.content.kind is Kind.FORKPROOF:
            if entry.id in wanted:
                yield entry
        else:
            chains.setdefault((entry.content.net, entry.content.author), []).append(entry)
    for chain in chains.values():
        picked = [entry for entry in chain if entry.id in wanted]
        if picked:
            yield from _extract(chain, picked)


def _extract(chain: list[Entry], picked: list[Entry]) -> Iterator[Entry | Evidence]:
    if [entry.content.seq for entry in chain] != list(range(len(chain))):
        raise LedgerError("the chain has gaps or forks", "export it whole")
    tree = Tree(entry.id for entry in chain)
    heads = [entry for entry in chain if entry.content.kind is Kind.HEAD]
    used: list[Entry] = []
    for entry in picked:
        yield entry
        place = entry.content.seq
        head = next((head for head in heads if head.content.seq > place), None)
        if head is None:
            raise LedgerError(f"no HEAD is above r-{entry.id.hex()}", "sign one, or export all")
        if head not in used:
            used.append(head)
        yield Inclusion(entry.id, head.id, tree.inclusion(place, head.content.seq))
    yield from (head for head in used if head not in picked)
    for old, new in pairwise(used):
        path = tree.consistency(old.content.seq, new.content.seq)
        yield Consistency(old.id, new.id, path)


def read(lines: Iterable[bytes]) -> Iterator[Entry | Evidence | Finding]:
    """What a file's *lines* hold, and a finding for each line that is not what it says."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield from _read_line(line)
            except BadEntry as error:
                yield Finding(b"", "encoding", False, f"line {number}: {error}")


def _read_line(line: bytes) -> Iterator[Entry | Evidence | Finding]:
    if len(line) > LINE_MAX:
        raise BadEntry(f"longer than {LINE_MAX} bytes")
    if line.count(b"[") + line.count(b"{") > NESTED_MAX:
        raise BadEntry(f"more than {NESTED_MAX} brackets")
    try:
        fields = json.loads(line.decode(), parse_constant=_refused)
    except (ValueError, RecursionError):
        raise BadEntry("not JSON") from None
    if isinstance(fields, dict):
        for name, read_evidence in _EVIDENCE.items():
            if fields.keys() == {name}:
                yield read_evidence(fields[name])
                return
    raw = fields.get("raw") if isinstance(fields, dict) else None
    if not isinstance(raw, str):
        raise BadEntry('no "raw"')
    try:
        data = base64.b64decode(raw + "=" * (-len(raw) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadEntry('"raw" is not base64url') from None
    if _base64(data) != raw:
        raise BadEntry('"raw" is not the one base64url of its bytes')
    entry = Entry.decode(data)
    told = _readable(entry)
    for name in fields.keys() & told.keys() - {"raw"}:
        if fields[name] != told[name] or isinstance(fields[name], bool):
            yield Finding(entry.id, "encoding", False, f'"{name}" is not what the bytes say')
    yield entry


def _readable(entry: Entry) -> dict[str, Any]:
    body = entry.content
    return {
        "raw": _base64(entry.encode()),
        "id": entry.id.hex(),
        "kind": body.kind.name,
        "net": body.net.hex(),
        "author": body.author.hex(),
        "seq": _plain(body.seq),
        "peer": body.peer.hex(),
        "ref": body.ref.hex(),
        **(_terms(body) if body.kind in TERMED else _statement(body)),
    }


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _terms(body: Body) -> dict[str, Any]:
    deal = body.deal
    named = ("seller", "buyer", "fence", "meter", "price", "fee", "reserve", "fuel", "amount")
    told = {name: _plain(getattr(deal, name)) for name in (*named, "exit")}
    return {"task": deal.nonce.hex(), **told}


def _statement(body: Body) -> dict[str, Any]:
    statement = _STATEMENTS[body.kind].decode(body.terms)
    names = [name for name in statement.RULES if name != "version"]
    return {name: _plain(getattr(statement, name)) for name in names}


def _shown(evidence: Evidence) -> dict[str, dict[str, Any]]:
    fields = asdict(evidence, recurse=False)
    return {_NAMES[type(evidence)]: {name: _plain(value) for name, value in fields.items()}}


def _plain(value: Any) -> Any:  # noqa: ANN401 (what JSON holds)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, int) and value > NUMBER_MAX:
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _cell(value: str | int) -> str | int:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


# Evidence from JSON: every field by its rule, none missing and none more.


def _bytes(length: int) -> Callable[[object], bytes]:
    def read_bytes(value: object) -> bytes:
        if not isinstance(value, str) or len(value) != 2 * length or not value.isascii():
            raise BadEntry(f"not {length} bytes in hexadecimal")
        try:
            data = bytes.fromhex(value)
        except ValueError:
            raise BadEntry(f"not {length} bytes in hexadecimal") from None
        if data.hex() != value:
            raise BadEntry("hexadecimal is in lower case and without spaces")
        return data

    return read_bytes


def _list(length: int, most: int) -> Callable[[object], tuple[bytes, ...]]:
    def read_list(value: object) -> tuple[bytes, ...]:
        if not isinstance(value, list) or len(value) > most:
            raise BadEntry(f"not a list of at most {most}")
        return tuple(map(_bytes(length), value))

    return read_list


def _number(top: int) -> Callable[[object], int]:
    def read_number(value: object) -> int:
        number = value
        if isinstance(value, float) and value.is_integer() and abs(value) <= NUMBER_MAX:
            number = value = int(value)  # JSON of other languages does not tell 1 from 1.0
        elif isinstance(value, str) and re.fullmatch("[1-9][0-9]{15,18}", value):
            number = int(value)
        if type(number) is not int or not 0 <= number <= top or _plain(number) != value:
            raise BadEntry(f"not a number of at most {top}")
        return number

    return read_number


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > TEXT_MAX:
        raise BadEntry(f"not a text of at most {TEXT_MAX}")
    return value


def _fields(value: object, rules: Mapping[str, Callable[[object], Any]]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != rules.keys():
        raise BadEntry(f"not the fields {', '.join(rules)}")
    return {name: rule(value[name]) for name, rule in rules.items()}


_ID = _bytes(32)
_INCLUSION = {"entry_id": _ID, "head_id": _ID, "path": _list(32, PATH_MAX)}
_CONSISTENCY = {"old_id": _ID, "new_id": _ID, "path": _list(32, CONSISTENCY_MAX)}
_RERUN = {
    "entry_id": _ID,
    "job": _bytes(36),
    "meter": _text,
    "fuel": _number(UINT_MAX),
    "exit": _number(EXIT_MAX),
    "outputs": _list(36, OUTPUTS_MAX),
}
_CERTIFICATE = {
    "entry_id": _ID,
    "members": _list(32, MEMBERS_MAX),
    "votes": _list(96, MEMBERS_MAX),
}
_EVIDENCE: Mapping[str, Callable[[object], Evidence]] = {
    "inclusion": lambda value: Inclusion(**_fields(value, _INCLUSION)),
    "consistency": lambda value: Consistency(**_fields(value, _CONSISTENCY)),
    "rerun": lambda value: Rerun(**_fields(value, _RERUN)),
    "certificate": lambda value: Witnessed(**_fields(value, _CERTIFICATE)),
}
