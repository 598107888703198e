"""What anybody can check of a pile of entries, and the file that they travel in. Pure.

A finding is good or it is not; which entries are at hand decides what can be shown, so a gap is
a finding that is not good and says that something is missing. A file is JSON lines: `raw` holds an
entry's exact bytes in base64url, the fields beside it are for people. Only the bytes count, and a
field that contradicts them is a finding.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TextIO

from attrs import frozen

from ledger import keys
from ledger.chain import (
    GENESIS,
    Head,
    check_deal,
    check_order,
    check_resolution,
    check_signatures,
    check_totals,
)
from ledger.errors import BadEntry, BrokenChain
from ledger.keys import Verify
from ledger.model import Entry, Kind
from ledger.state import Deal, deal_of, fold, resolution_of

LINE_MAX = 64 * 1024
"""Bytes of one line of a file."""


@frozen
class Finding:
    """One thing that was looked at."""

    entry_id: bytes
    """Empty where no single entry is meant."""
    check: str
    """ "encoding", "signatures", "amount", "chain", "totals", "resolution", "fork" or "balance" """
    is_good: bool
    detail: str


def findings(
    entries: Iterable[Entry],
    verify: Verify = keys.verify,
    *,
    whole: Collection[bytes] | None = None,
) -> Iterator[Finding]:
    """Everything that *entries*, in any order, show or fail to show. They are held in memory.

    An entry that is invalid by itself is not looked at any further, nor counted. *whole* names the
    authors whose chains are to be here without a gap, by default all; of the others, such as a
    seller's buyers, only what is here is looked at.
    """
    valid: dict[bytes, Entry] = {}
    for entry in _in_order(set(entries)):
        own = [_signatures(entry, verify), _amount(entry)]
        if all(finding.is_good for finding in own):
            valid[entry.id] = entry
        yield from own
    yield from _chains(valid, whole)
    yield from _resolutions(valid)
    yield from _forks(valid)
    yield from _balances(valid)


def export(entries: Iterable[Entry], file: TextIO) -> int:
    """Write *entries* as JSON lines; how many there were."""
    count = 0
    for entry in entries:
        file.write(json.dumps(_readable(entry)) + "\n")
        count += 1
    return count


def read(lines: Iterable[bytes]) -> Iterator[Entry | Finding]:
    """The entries of a file's *lines*, and a finding for each line that is not what it says."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield from _read_line(line)
            except BadEntry as error:
                yield Finding(b"", "encoding", False, f"line {number}: {error}")


def _read_line(line: bytes) -> Iterator[Entry | Finding]:
    if len(line) > LINE_MAX:
        raise BadEntry(f"longer than {LINE_MAX} bytes")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise BadEntry("not JSON") from None
    raw = fields.get("raw") if isinstance(fields, dict) else None
    if not isinstance(raw, str):
        raise BadEntry('no "raw"')
    try:
        data = base64.b64decode(raw + "=" * (-len(raw) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadEntry('"raw" is not base64url') from None
    entry = Entry.decode(data)
    told = _readable(entry)
    for name in fields.keys() & told.keys() - {"raw"}:
        if fields[name] != told[name]:
            yield Finding(entry.id, "encoding", False, f'"{name}" is not what the bytes say')
    yield entry


def _readable(entry: Entry) -> Mapping[str, str | int]:
    body = entry.content
    deal = body.deal
    return {
        "raw": base64.urlsafe_b64encode(entry.encode()).decode().rstrip("="),
        "id": entry.id.hex(),
        "kind": body.kind.name,
        "net": body.net.hex(),
        "author": body.author.hex(),
        "seq": body.seq,
        "seller": deal.seller.hex(),
        "task": deal.nonce.hex(),
        "fence": deal.fence,
        "meter": deal.meter,
        "price": deal.price,
        "fee": deal.fee,
        "reserve": deal.reserve,
        "fuel": deal.fuel,
        "amount": deal.amount,
        "exit": deal.exit,
        "ref": deal.ref.hex(),
    }


def _in_order(entries: Iterable[Entry]) -> list[Entry]:
    def place(entry: Entry) -> tuple[bytes, bytes, int, bytes, bytes]:
        body = entry.content
        return (body.net, body.author, body.seq, entry.id, entry.sig)

    return sorted(entries, key=place)


def _signatures(entry: Entry, verify: Verify) -> Finding:
    try:
        check_signatures(entry, verify)
    except BadEntry as error:
        return Finding(entry.id, "signatures", False, str(error))
    return Finding(entry.id, "signatures", True, "buyer and seller signed")


def _amount(entry: Entry) -> Finding:
    body = entry.content
    try:
        check_deal(body)
    except BadEntry as error:
        return Finding(entry.id, "amount", False, str(error))
    if body.kind is Kind.ALLOC:
        return Finding(entry.id, "amount", True, f"ALLOC reserves {body.deal.reserve} µcr")
    return Finding(entry.id, "amount", True, f"{body.kind.name} of {body.deal.amount} µcr")


def _chains(valid: Mapping[bytes, Entry], whole: Collection[bytes] | None) -> Iterator[Finding]:
    for entry in valid.values():
        body = entry.content
        if body.seq == 0 and body.prev == GENESIS:
            head = Head.start(body.author, body.net)
        elif body.prev in valid:
            head = Head.after(valid[body.prev])
        elif whole is None or body.author in whole:
            yield Finding(entry.id, "chain", False, f"seq {body.seq}: the entry before is missing")
            continue
        else:
            continue
        yield from _link(head, entry, valid)


def _link(head: Head, entry: Entry, valid: Mapping[bytes, Entry]) -> Iterator[Finding]:
    body = entry.content
    try:
        check_order(head, entry)
    except BrokenChain as error:
        yield Finding(entry.id, "chain", False, str(error))
        return
    yield Finding(entry.id, "chain", True, f"seq {body.seq} follows")
    alloc = valid.get(body.deal.ref)
    try:
        check_totals(head, entry, alloc.content if alloc else None)
    except BrokenChain as error:
        yield Finding(entry.id, "totals", False, str(error))
    else:
        yield Finding(entry.id, "totals", True, f"{body.posted} µcr posted, {body.pending} pending")


def _resolutions(valid: Mapping[bytes, Entry]) -> Iterator[Finding]:
    rivals: dict[Deal, list[Entry]] = {}
    for entry in valid.values():
        if entry.content.kind is not Kind.ALLOC:
            rivals.setdefault(deal_of(entry), []).append(entry)
    for deal, several in rivals.items():
        alloc = valid.get(deal[0])
        first, *others = sorted(several, key=resolution_of)
        for entry in several:
            try:
                check_resolution(entry.content, alloc.content if alloc else None)
            except BrokenChain as error:
                yield Finding(entry.id, "resolution", False, str(error))
                continue
            if entry in others:
                detail = f"resolved by r-{first.id.hex()}: this one does not count"
                yield Finding(entry.id, "resolution", False, detail)
            else:
                yield Finding(entry.id, "resolution", True, f"resolves r-{deal[0].hex()}")


def _forks(valid: Mapping[bytes, Entry]) -> Iterator[Finding]:
    places: dict[tuple[bytes, bytes, int], list[bytes]] = {}
    for entry in valid.values():
        body = entry.content
        places.setdefault((body.net, body.author, body.seq), []).append(entry.id)
    for (_, author, seq), (first, *others) in places.items():
        for other in others:
            detail = f"{author.hex()} signed seq {seq} twice: also r-{other.hex()}"
            yield Finding(first, "fork", False, detail)


def _balances(valid: Mapping[bytes, Entry]) -> Iterator[Finding]:
    for net in sorted({entry.content.net for entry in valid.values()}):
        accounts = fold(valid.values(), net).values()
        owed = sum(account.posted_debit for account in accounts)
        earned = sum(account.posted_credit for account in accounts)
        reserved = sum(account.pending_debit for account in accounts)
        detail = f"net {net.hex()}: {owed} µcr owed, {earned} earned, {reserved} reserved"
        yield Finding(b"", "balance", owed == earned and reserved >= 0, detail)
