"""What anybody can check of a pile of entries, and of the evidence beside them. Pure.

A finding is good or it is not; which entries are at hand decides what can be shown, so a gap is
a finding that is not good and says that something is missing. An entry that is proven to be under
a HEAD of its author needs nothing before it. The file that all this travels in is bundle.py's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from ledger import keys
from ledger.bundle import LINE_MAX, export, read
from ledger.chain import (
    GENESIS,
    Head,
    check_deal,
    check_order,
    check_resolution,
    check_signatures,
    check_totals,
    origin,
    rotated_to,
)
from ledger.errors import BadEntry, BrokenChain
from ledger.evidence import Evidence, Finding, Inclusion, check_evidence, heads_of
from ledger.keys import Verify
from ledger.model import TERMED, Entry, Kind
from ledger.proof import Tree
from ledger.state import PRECEDENCE, Deal, deal_of, fold, resolution_of
from ledger.statements import Checkpoint, Line, Refund
from ledger.validity import fork_of

__all__ = ["ARMS_MAX", "LINE_MAX", "Finding", "export", "findings", "read"]

ARMS_MAX = 16
"""Arms of one forked chain whose HEADs are looked at: each costs a walk to the chain's start."""


def findings(
    entries: Iterable[Entry],
    verify: Verify = keys.verify,
    *,
    whole: Collection[bytes] | None = None,
    evidence: Collection[Evidence] = (),
    sound: list[Entry] | None = None,
) -> Iterator[Finding]:
    """Everything that *entries*, in any order, show or fail to show. They are held in memory.

    An entry that is invalid by itself is not looked at any further, nor counted. *whole* names the
    authors whose chains are to be here without a gap, by default all; of the others, such as a
    seller's buyers, only what is here is looked at. *sound* takes the entries that are valid.
    """
    valid: dict[bytes, Entry] = {}
    for entry in _in_order(set(entries)):
        own = [_signatures(entry, verify), _amount(entry)]
        if all(finding.is_good for finding in own):
            valid[entry.id] = entry
        yield from own
    if sound is not None:
        sound.extend(valid.values())
    proven: set[bytes] = set()
    for item in evidence:
        finding = check_evidence(item, valid, verify)
        if finding.is_good:
            proven.update(heads_of(item), (item.entry_id,) if isinstance(item, Inclusion) else ())
        yield finding
    yield from _chains(valid, whole, proven)
    yield from _heads(valid)
    yield from _uses(valid)
    yield from _resolutions(valid)
    yield from _heirs(valid)
    yield from _forks(valid)
    yield from _balances(valid)


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
    body = entry.content
    if body.kind is Kind.FORKPROOF:
        return Finding(entry.id, "signatures", True, "the forker signed both")
    told = "author and subject signed" if body.kind is Kind.KEYOP else "buyer and seller signed"
    return Finding(
        entry.id, "signatures", True, told if body.peer_sig else "its author signed, nobody else"
    )


def _amount(entry: Entry) -> Finding:
    try:
        check_deal(entry.content)
    except BadEntry as error:
        return Finding(entry.id, "amount", False, str(error))
    return Finding(entry.id, "amount", True, _told(entry))


def _told(entry: Entry) -> str:
    body = entry.content
    match body.kind:
        case Kind.ALLOC:
            return f"ALLOC reserves {body.deal.reserve} µcr"
        case Kind.CLAIM:
            return f"CLAIM of {body.deal.amount} µcr: the seller's word alone, no debt"
        case Kind.REFUND:
            return f"REFUND of {Refund.decode(body.terms).amount} µcr"
        case Kind.LINE:
            return f"LINE of {Line.decode(body.terms).limit} µcr"
        case Kind.HEAD:
            return f"HEAD over {body.seq} entries"
        case _ if body.kind in TERMED:
            return f"{body.kind.name} of {body.deal.amount} µcr"
        case _:
            return body.kind.name


def _chains(
    valid: Mapping[bytes, Entry], whole: Collection[bytes] | None, proven: Collection[bytes]
) -> Iterator[Finding]:
    for entry in valid.values():
        body = entry.content
        if body.kind is Kind.FORKPROOF:
            continue
        before = valid.get(body.prev)
        if before is not None or (body.seq == 0 and body.prev == GENESIS):
            yield from _link(before, entry, valid)
        elif entry.id in proven:
            told = "vouches for what is proven" if body.kind is Kind.HEAD else "is proven by a HEAD"
            yield Finding(entry.id, "chain", True, f"seq {body.seq} {told}")
        elif whole is None or body.author in whole:
            yield Finding(entry.id, "chain", False, f"seq {body.seq}: the entry before is missing")


def _heads(valid: Mapping[bytes, Entry]) -> Iterator[Finding]:
    """The roots of the HEADs below which nothing is missing."""
    heads: dict[tuple[bytes, bytes], list[Entry]] = {}
    for entry in valid.values():
        if entry.content.kind is Kind.HEAD:
            heads.setdefault((entry.content.net, entry.content.author), []).append(entry)
    for several in heads.values():
        path: list[bytes] = []
        tree, arms = Tree(), 0
        for head in sorted(several, key=lambda entry: (-entry.content.seq, entry.id)):
            size = head.content.seq
            if path[size : size + 1] != [head.id] and arms < ARMS_MAX:
                arms += 1
                path = _path(head, valid)
                tree = Tree(path)
            if path[size : size + 1] == [head.id]:
                is_good = tree.root(size) == Checkpoint.decode(head.content.terms).root
                told = "has this root" if is_good else "has another root: something was removed"
                yield Finding(head.id, "head", is_good, f"the tree of {size} entries {told}")


def _path(tip: Entry, valid: Mapping[bytes, Entry]) -> list[bytes]:
    """The ids from the start of the chain to *tip*; empty where one is missing."""
    path = [tip.id]
    while (body := valid[path[-1]].content).seq > 0:
        before = valid.get(body.prev)
        if before is None or _place(before) != (body.net, body.author, body.seq - 1):
            return []
        path.append(before.id)
    return path[::-1] if len(path) == tip.content.seq + 1 else []


def _place(entry: Entry) -> tuple[bytes, bytes, int]:
    return entry.content.net, entry.content.author, entry.content.seq


def _uses(valid: Mapping[bytes, Entry]) -> Iterator[Finding]:
    """That what was used of a deal never falls along its buyer's chain."""
    most: dict[Deal, int] = {}
    for entry in valid.values():  # by seq
        if entry.content.kind is Kind.USE:
            deal, fuel = deal_of(entry), entry.content.deal.fuel
            is_good = fuel >= most.get(deal, 0)
            most[deal] = max(fuel, most.get(deal, 0))
            told = f"{fuel} fuel so far" if is_good else f"{fuel} fuel after {most[deal]}"
            yield Finding(entry.id, "use", is_good, told)


def _link(before: Entry | None, entry: Entry, valid: Mapping[bytes, Entry]) -> Iterator[Finding]:
    body = entry.content
    try:
        head = Head.after(before) if before and body.seq else origin(body, before)
        check_order(head, entry)
    except BrokenChain as error:
        yield Finding(entry.id, "chain", False, str(error))
        return
    yield Finding(entry.id, "chain", True, f"seq {body.seq} follows")
    alloc = valid.get(body.ref)
    try:
        check_totals(head, entry, alloc.content if alloc else None)
    except BrokenChain as error:
        yield Finding(entry.id, "totals", False, str(error))
    else:
        yield Finding(entry.id, "totals", True, f"{body.posted} µcr posted, {body.pending} pending")


_VOICES = {Kind.SETTLE: 0, Kind.VOID: 0, Kind.RULING: 1, Kind.CLAIM: 2}
"""Who speaks: of one voice only one resolution of a deal is to be heard."""


def _resolutions(valid: Mapping[bytes, Entry]) -> Iterator[Finding]:
    rivals: dict[Deal, list[Entry]] = {}
    for entry in valid.values():
        if entry.content.kind in PRECEDENCE:
            rivals.setdefault(deal_of(entry), []).append(entry)
    for deal, several in rivals.items():
        alloc = valid.get(deal[0])
        ranked = sorted(several, key=resolution_of)
        for entry in several:
            try:
                check_resolution(entry.content, alloc.content if alloc else None)
            except BrokenChain as error:
                yield Finding(entry.id, "resolution", False, str(error))
                continue
            yield _ranked(entry, ranked)


def _ranked(entry: Entry, ranked: list[Entry]) -> Finding:
    kind, first = entry.content.kind, ranked[0]
    same = next(each for each in ranked if _VOICES[each.content.kind] == _VOICES[kind])
    if same != entry:
        detail = f"resolved by r-{same.id.hex()}: this one does not count"
        return Finding(entry.id, "resolution", False, detail)
    if first != entry:
        return Finding(entry.id, "resolution", True, f"r-{first.id.hex()} goes before it")
    return Finding(entry.id, "resolution", True, f"resolves r-{entry.content.ref.hex()}")


def _heirs(valid: Mapping[bytes, Entry]) -> Iterator[Finding]:
    """That each key was handed to one other."""
    rotates: dict[tuple[bytes, bytes], list[tuple[Entry, bytes]]] = {}
    for entry in valid.values():
        if heir := rotated_to(entry):
            key = entry.content.net, entry.content.author
            rotates.setdefault(key, []).append((entry, heir))
    for (_, author), several in rotates.items():
        heirs = {heir for _, heir in several}
        for entry, heir in several:
            told = f"{author.hex()} was handed to {heir.hex()}"
            if len(heirs) > 1:
                told += f" and to {len(heirs) - 1} others"
            yield Finding(entry.id, "heir", len(heirs) == 1, told)


def _forks(valid: Mapping[bytes, Entry]) -> Iterator[Finding]:
    places: dict[tuple[bytes, bytes, int], list[bytes]] = {}
    for entry in valid.values():
        body = entry.content
        if body.kind is Kind.FORKPROOF:
            one, other = fork_of(body)
            detail = f"{one.content.author.hex()} signed seq {one.content.seq} twice:"
            detail += f" r-{one.id.hex()} and r-{other.id.hex()}"
            yield Finding(entry.id, "fork", False, detail)
        else:
            places.setdefault(_place(entry), []).append(entry.id)
    for (_, author, seq), (first, *others) in places.items():
        for other_id in others:
            detail = f"{author.hex()} signed seq {seq} twice: also r-{other_id.hex()}"
            yield Finding(first, "fork", False, detail)


def _balances(valid: Mapping[bytes, Entry]) -> Iterator[Finding]:
    for net in sorted({entry.content.net for entry in valid.values()}):
        accounts = fold(valid.values(), net).values()
        owed = sum(account.posted_debit for account in accounts)
        earned = sum(account.posted_credit for account in accounts)
        reserved = sum(account.pending_debit for account in accounts)
        detail = f"net {net.hex()}: {owed} µcr owed, {earned} earned, {reserved} reserved"
        yield Finding(b"", "balance", owed == earned and reserved >= 0, detail)
