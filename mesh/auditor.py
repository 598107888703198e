"""The auditor: what this node holds is checked chain by chain, and bills are run again.

A stretch of a chain is in memory at a time, with the entries elsewhere that it rests on. What is
right by itself says ledger/audit.py; here is only what is looked at when.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import aclosing, contextmanager
from functools import partial
from itertools import islice
from typing import TypeVar

import trio
from attrs import define, evolve, field, frozen

from ledger import audit
from ledger.bundle import export
from ledger.chain import GENESIS
from ledger.evidence import Rerun, check_evidence
from ledger.model import Entry, Kind
from ledger.proof import Tree
from ledger.state import PRECEDENCE, Accounts
from ledger.statements import Checkpoint
from ledger.store import Store
from mesh.api.door import AuditRequest, Finding
from mesh.errors import Exhausted
from mesh.ids import NET, EntryId, PeerId, TaskId
from mesh.rerun import Remade, Rerunner, Skipped
from mesh.tier import STATISTIC

AUDITS_MAX = 2
STRETCH = 10_000
"""Entries of a chain that are in memory at a time: some 30 MB."""
SLICE = 2_000
"""Entries that are read before others may read."""
BALANCE_MAX = 250_000
"""Entries whose balances are summed: some hundred megabytes."""
RERUNS_MAX = 100_000
TASK_ENTRIES_MAX = 1_000

T = TypeVar("T")


@frozen
class Auditor:
    """Audits the ledger of one running node."""

    me: PeerId
    ledger: Store
    """For reading alone."""
    reading: trio.CapacityLimiter
    """Held by whoever reads from *ledger*."""
    rerunner: Rerunner
    kept: Callable[[TaskId | None], Sequence[Finding]] = lambda _: ()
    """What is proven already, of a task or of all."""
    _places: trio.CapacityLimiter = field(
        factory=lambda: trio.CapacityLimiter(AUDITS_MAX), init=False
    )

    async def audit(self, request: AuditRequest) -> AsyncIterator[Finding]:
        """Every finding, as it is found. Raises Exhausted where too many are at it."""
        with self._place():
            authors = await self._read(lambda: self._authors(request.task))
            total, done = sum(authors.values()), 0
            for author in authors:
                async with aclosing(self._chain(author)) as stretches:
                    async for found, size in stretches:
                        done += size
                        for finding in found:
                            if request.task in (None, finding.task) or not finding.is_good:
                                yield evolve(finding, done=min(done, total), total=total)
            for finding in self.kept(request.task):
                yield evolve(finding, done=total, total=total)
            bills, balance = await self._survey(request)
            if balance is not None:
                yield evolve(balance, done=total, total=total)
            for number, bill_id in enumerate(bills if request.rerun else (), 1):
                for finding in await self._rerun(bill_id):
                    yield evolve(finding, done=number, total=len(bills))

    @contextmanager
    def _place(self) -> Iterator[None]:
        me = object()
        try:
            self._places.acquire_on_behalf_of_nowait(me)
        except trio.WouldBlock:
            raise Exhausted(f"{AUDITS_MAX} audits are going on already", "try again soon") from None
        try:
            yield
        finally:
            self._places.release_on_behalf_of(me)

    async def _read(self, read: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(read, limiter=self.reading)

    def _authors(self, task: TaskId | None) -> dict[bytes, int]:
        """Whose chains are looked at, ours first, and how many entries each has."""
        counts: dict[bytes, int] = {self.me: 0}
        for holding in self.ledger.holdings():
            counts[holding.author] = counts.get(holding.author, 0) + holding.total.count
        if task is None:
            return counts
        about = self.ledger.newest(TASK_ENTRIES_MAX, task)
        return {author: counts[author] for author in {e.content.author for e in about}}

    # --- chains ---------------------------------------------------------------------------------

    async def _chain(self, author: bytes) -> AsyncGenerator[tuple[list[Finding], int], None]:
        """What stretch after stretch of a chain shows, and how many entries each has."""
        entries = self.ledger.chain(author)
        before: list[Entry] = []
        trunk = _Trunk()
        while stretch := await self._read(lambda: list(islice(entries, STRETCH))):
            companions = await self._read(lambda: self._companions(stretch))
            beside = [*before, *companions]
            pruned = await self._read(partial(self._pruned_before, stretch))
            found = await trio.to_thread.run_sync(self._findings, stretch, beside, author, pruned)
            heads = await trio.to_thread.run_sync(trunk.grow, stretch)
            if before:  # in the first stretch, the findings have them
                found += heads
            last = stretch[-1].content.seq
            before = [entry for entry in (*before, *stretch) if entry.content.seq == last]
            yield found, len(stretch)

    def _companions(self, stretch: Collection[Entry]) -> list[Entry]:
        """What elsewhere the entries of *stretch* rest on, or compete with."""
        here = {entry.id for entry in stretch}
        found: dict[bytes, Entry] = {}
        for entry in stretch:
            body = entry.content
            wanted = {body.ref} - {b""}
            if body.seq == 0:  # an heir's chain begins at another's ROTATE
                wanted |= {body.prev} - {GENESIS}
            rests_on = map(self.ledger.entry, wanted - here)
            rivals = self.ledger.resolutions(body.ref) if body.kind in PRECEDENCE else ()
            found |= {each.id: each for each in (*rivals, *rests_on) if each is not None}
        return [entry for entry in found.values() if entry.id not in here]

    def _findings(
        self,
        stretch: Collection[Entry],
        beside: Collection[Entry],
        author: bytes,
        pruned: Collection[bytes],
    ) -> list[Finding]:
        whole = (author,) if author == self.me else ()
        own = {entry.id: entry for entry in stretch}
        return [
            _told(finding.check, finding.is_good, finding.detail, own.get(finding.entry_id))
            for finding in audit.findings({*stretch, *beside}, whole=whole)
            if finding.entry_id in own or (finding.check == "fork" and finding.entry_id)
            if not (finding.check == "chain" and finding.entry_id in pruned)
        ]

    def _pruned_before(self, stretch: Collection[Entry]) -> frozenset[bytes]:
        """Those of *stretch* whose entry before is no longer here, and need not be."""
        low = max((h.low for h in self.ledger.holdings() if h.author == self.me), default=0)
        bodies = [entry.content for entry in stretch if 0 < entry.content.seq <= low]
        return frozenset(
            body.id
            for body in bodies
            if body.prev in self.ledger.pruned_at(body.author, body.net, body.seq - 1)
        )

    # --- all of it ------------------------------------------------------------------------------

    async def _survey(self, request: AuditRequest) -> tuple[Collection[bytes], Finding | None]:
        """One pass: the bills to run again, by id, newest first, and whether all sums to zero."""
        wanted: deque[bytes] = deque(maxlen=request.newest or RERUNS_MAX)
        if request.task is not None:
            task = request.task
            about = await self._read(lambda: self.ledger.newest(TASK_ENTRIES_MAX, task))
            wanted.extend(e.id for e in reversed(about) if self._is_bill(e, others=True))
            return list(reversed(wanted)), None
        accounts, count = await self._read(lambda: Accounts(NET, self.ledger)), 0
        entries = self.ledger.entries()

        def fold() -> int:
            part = list(islice(entries, SLICE))
            for entry in part:
                if count < BALANCE_MAX:
                    accounts.add(entry)
                if self._is_bill(entry, others=request.others):
                    wanted.append(entry.id)
            return len(part)

        while size := await self._read(fold):
            count += size
        return list(reversed(wanted)), _balance(accounts, count)

    def _is_bill(self, entry: Entry, *, others: bool) -> bool:
        body = entry.content
        is_bill = body.kind in (Kind.SETTLE, Kind.CLAIM)
        return is_bill and (others or self.me in (body.author, body.peer))

    async def _rerun(self, bill_id: bytes) -> list[Finding]:
        """What running it again shows, and making its module again if that was made of another."""
        bill = await self._read(lambda: self.ledger.entry(bill_id))
        if bill is None:
            gone = _told("rerun", False, "its receipt was pruned meanwhile", None)
            return [evolve(gone, entry=EntryId(bill_id), is_skipped=True)]
        alloc = await self._read(lambda: self.ledger.entry(bill.content.ref))
        limit = alloc.content.deal.fuel if alloc and alloc.content.kind is Kind.ALLOC else None
        again = await self.rerunner.run(bill, limit)
        if isinstance(again, Skipped):
            return [_skipped("rerun", again, bill)]
        shown = check_evidence(again, {bill.id: bill})
        detail = shown.detail.removeprefix("run again: ")
        finding = _told("rerun", shown.is_good, detail, bill)
        return [evolve(finding, evidence=evidence_line(again)), *await self._remake(bill)]

    async def _remake(self, bill: Entry) -> Iterable[Finding]:
        match await self.rerunner.remake(bill):
            case None:
                return ()
            case Skipped() as skipped:
                return (_skipped("module", skipped, bill),)
            case Remade(is_same, detail):
                finding = _told("module", is_same, detail, bill)
                return (evolve(finding, is_note=not is_same),)


def _skipped(check: str, skipped: Skipped, about: Entry) -> Finding:
    finding = _told(check, skipped.is_final, skipped.reason, about)
    return evolve(finding, is_skipped=not skipped.is_final)


def evidence_line(again: Rerun) -> str:
    """The line of a file that says what a re-run gave."""
    file = io.StringIO()
    export([again], file)
    return file.getvalue().rstrip("\n")


def _told(check: str, is_good: bool, detail: str, about: Entry | None) -> Finding:
    task = about.content.nonce if about else b""
    return Finding(
        entry=EntryId(about.id) if about else None,
        task=TaskId(task) if task else None,
        check=check,
        is_good=is_good,
        detail=detail,
    )


def _balance(accounts: Accounts, count: int) -> Finding:
    if count > BALANCE_MAX:
        finding = _told("balance", False, f"not summed: more than {BALANCE_MAX:,} entries", None)
        return evolve(finding, is_skipped=True)
    every = accounts.all().values()
    owed, earned = (sum(a.posted_debit for a in every), sum(a.posted_credit for a in every))
    reserved = sum(account.pending_debit for account in every)
    detail = f"{owed} µcr owed, {earned} earned, {reserved} reserved ({STATISTIC})"
    return _told("balance", owed == earned and reserved >= 0, detail, None)


@define
class _Trunk:
    """A chain from its start on, as far as entry follows entry: what its HEADs are roots of."""

    tree: Tree = field(factory=Tree)
    tip: bytes = b""

    def grow(self, stretch: Collection[Entry]) -> list[Finding]:
        """Add *stretch*; what its HEADs show. Of a fork one arm is followed."""
        found = []
        for entry in stretch:
            body = entry.content
            if body.seq != len(self.tree) or (body.seq and body.prev != self.tip):
                continue
            if body.kind is Kind.HEAD:
                is_good = self.tree.root() == Checkpoint.decode(body.terms).root
                told = "has this root" if is_good else "has another root: something was removed"
                found.append(
                    _told("head", is_good, f"the tree of {body.seq} entries {told}", entry)
                )
            self.tree.append(entry.id)
            self.tip = entry.id
        return found
