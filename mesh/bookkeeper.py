"""The bookkeeper: what a node shows of its ledger, writes down from it, and takes into it."""

from __future__ import annotations

import io
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from itertools import islice
from typing import TypeVar, assert_never

import trio
from attrs import define, frozen

from ledger.bundle import export, extract, table
from ledger.errors import BadEntry, LedgerError
from ledger.evidence import Evidence
from ledger.holdings import Holding
from ledger.keys import Verify, entry_message, verify
from ledger.merge import Merged
from ledger.model import TERMED, Body, Entry, Kind
from ledger.quorum import Quorum
from ledger.statements import Dispute, KeyOp, Line, Refund
from ledger.store import Store
from ledger.validity import fork_of, peer_message, prove_fork
from mesh import units
from mesh.api.door import ForkView, Form, Intake, LedgerView, LineView, Piece, ReceiptView
from mesh.driver import Driver
from mesh.errors import NotFound, Refused, Unavailable
from mesh.ids import Cid, EntryId, PeerId, TaskId, format_peer, format_task
from mesh.market.credit import Credit
from mesh.sansio import LineSet
from mesh.tier import promise

SLICE = 500
"""Entries that are read before others may read."""
TASK_ENTRIES_MAX = 1_000
EXTRACT_MAX = 100_000
"""Entries of the chain that a single task's bundle is cut from."""
FORKS_MAX = 1_000
CASE_MAX = 1 << 20
"""Bytes of a file of evidence."""
REPLICATION = ("certificates", "ledger_", "pruning_", "witness")
"""How the counters of replication, of pruning, and of witnesses, begin."""

T = TypeVar("T")


@frozen
class Tier:
    """By what an overspend is bounded: "T0" to "T2"; of how many witnesses it takes how many."""

    name: str = "T0"
    witnesses: int = 0
    quorum: int = 0

    @staticmethod
    def of(name: str, quorum: Quorum | None) -> Tier:
        return Tier(name, len(quorum.members), quorum.needed) if quorum else Tier(name)

    def promise(self) -> str:
        return promise(self.name, n=self.witnesses, q=self.quorum)


@frozen
class Bookkeeper:
    """The ledger of one running node, as its clients see it."""

    me: PeerId
    ledger: Store
    """For reading alone."""
    reading: trio.CapacityLimiter
    """Held by whoever reads from *ledger*."""
    merge: Callable[[Sequence[bytes]], Awaitable[Merged]]
    """Takes in encoded entries, and tells whom they concern."""
    publish: Callable[[Sequence[Entry]], None]
    """Tells everybody of what was new. Never waits."""
    driver: Driver
    credit: Credit
    tier: Tier
    is_archive: bool = True

    async def receipts(self, task: TaskId | None, limit: int) -> Sequence[ReceiptView]:
        """Newest first."""
        entries = await self._read(lambda: self.ledger.newest(limit, task))
        return [view_of(entry) for entry in entries]

    async def status(self, posted: int, pending: int, counters: Mapping[str, int]) -> LedgerView:
        """What is held; *counters* are all of the node's."""
        holdings = await self._read(self.ledger.holdings)
        total = await self._read(self.ledger.total)
        pruned = await self._read(self.ledger.pruned)
        proofs = await self._read(lambda: list(islice(self.ledger.chain(b""), FORKS_MAX)))
        forked = {PeerId(holding.author) for holding in holdings if holding.forked}
        forked |= {PeerId(fork_of(proof.content)[0].content.author) for proof in proofs}
        told = {name: n for name, n in counters.items() if name.startswith(REPLICATION)}
        return LedgerView(
            tier=self.tier.name,
            promise=self.tier.promise(),
            digest=total.fingerprint(),
            entries=total.count,
            pruned=pruned,
            is_archive=self.is_archive,
            chains=sum(holding.author != b"" for holding in holdings),
            forked=tuple(sorted(forked)),
            frozen=tuple(sorted(self.credit.frozen)),
            posted=posted,
            pending=pending,
            earned=self.credit.earned,
            counters=tuple(sorted(told.items())),
        )

    def lines(self) -> Sequence[LineView]:
        """Every buyer with a line or a debt here."""
        return [
            LineView(buyer, owed, reserved, limit, self.credit.is_frozen(buyer))
            for buyer, (owed, reserved, limit) in sorted(self.credit.exposures().items())
        ]

    async def set_line(self, buyer: PeerId, limit: int) -> None:
        """Raises Refused."""
        if buyer == self.me:
            raise Refused("buyer: that is this node itself", "name a peer: mesh peers -o wide")
        await self.driver.post(LineSet(buyer, limit))

    async def forks(self) -> AsyncIterator[ForkView]:
        """One proof for each who forked."""
        told: set[bytes] = set()
        for holding in await self._read(self.ledger.holdings):
            if holding.forked or holding.author == b"":
                async with aclosing(self._slices(self._pairs(holding.author))) as slices:
                    async for pairs in slices:
                        for one, other in pairs:
                            if one.content.author not in told and len(told) < FORKS_MAX:
                                told.add(one.content.author)
                                yield _fork_view(one, other)

    def _pairs(self, author: bytes) -> Iterator[tuple[Entry, Entry]]:
        """Two entries for one place of *author*'s chain; without one, those of FORKPROOFs."""
        before: dict[bytes, Entry] = {}
        seq = -1
        for entry in self.ledger.chain(author):
            body = entry.content
            if body.kind is Kind.FORKPROOF:
                yield fork_of(body)
                continue
            if body.seq != seq:
                before, seq = {}, body.seq
            twin = before.setdefault(body.net, entry)
            if twin != entry:
                yield twin, entry

    # --- what comes in --------------------------------------------------------------------------

    async def take_in(self, wires: Sequence[bytes]) -> Intake:
        """Merge entries from elsewhere. What is new on our own chain is refused: it would fork us.

        (A node that lost some of its own asks its peers for it when it starts.)
        """
        theirs = await self._read(lambda: [wire for wire in wires if not self._is_our_news(wire)])
        merged = await self.merge(theirs)
        self.publish(merged.entries)
        return Intake(
            added=len(merged.entries),
            known=merged.known,
            refused=merged.refused + len(wires) - len(theirs),
            early=merged.early,
            over_budget=merged.over_budget,
        )

    def _is_our_news(self, wire: bytes) -> bool:
        try:
            entry = Entry.decode(wire)
            is_ours = entry.content.author == self.me
        except BadEntry:
            return False  # the merger counts it
        return is_ours and self.ledger.entry(entry.id) is None

    # --- what is written down -------------------------------------------------------------------

    async def export(self, task: TaskId | None, form: Form) -> AsyncIterator[Piece]:
        """The ledger as a file, in pieces. Raises NotFound, Unavailable."""
        tally = _Written()
        if task is not None:
            yield tally.piece(await self._read(lambda: self._of_task(task, form, tally)))
            return
        source, tally.left_out = await self._read(lambda: self._source(form))
        is_first = True
        async with aclosing(self._slices(source)) as slices:
            async for entries in slices:
                tally.entries += len(entries)
                yield tally.piece(_written(entries, form, with_title=is_first))
                is_first = False
        if is_first:
            yield tally.piece(_written((), form, with_title=True))

    def _source(self, form: Form) -> tuple[Iterator[Entry], int]:
        """The entries that go into the file, and how many do not."""
        if form is not Form.BUNDLE:
            return self.ledger.entries(), 0
        if self.ledger.vouched(1):
            raise Unavailable("entries that came just now are still being checked: ask again")
        holdings = self.ledger.holdings()
        broken = {holding.author for holding in holdings if not _is_whole(holding)}
        left_out = sum(h.total.count for h in holdings if h.author in broken)
        authors = sorted({h.author for h in holdings} - broken)
        return (entry for author in authors for entry in self.ledger.chain(author)), left_out

    def _of_task(self, task: TaskId, form: Form, tally: _Written) -> str:
        about = self.ledger.newest(TASK_ENTRIES_MAX, task)[::-1]
        if not about:
            raise NotFound(f"no receipt of {format_task(task)} is here", "mesh receipts lists them")
        if form is not Form.BUNDLE:
            tally.entries = len(about)
            return _written(about, form, with_title=True)
        items = self._all_proven(about, tally)
        tally.entries = sum(isinstance(item, Entry) for item in items)
        return _lines(items)

    async def case(self, bills: Sequence[Entry], evidence: Sequence[Evidence]) -> str:
        """A bundle of *bills*, what they rest on, and *evidence* about them: others verify it.

        Where a chain has a gap here, or they exceed CASE_MAX bytes, it has the bills and their
        awards alone: that shows no less of the bills, and of the chains that something is missing.
        """

        def write() -> str:
            rests_on = [self.ledger.entry(bill.content.ref) for bill in bills]
            about = [*(entry for entry in rests_on if entry), *bills]
            tally = _Written()
            whole = _lines([*self._all_proven(about, tally), *evidence])
            is_fit = not tally.left_out and len(whole) <= CASE_MAX
            return whole if is_fit else _lines([*about, *evidence])

        return await self._read(write)

    async def entry(self, entry_id: EntryId) -> Entry | None:
        """An entry that is here, whole."""
        return await self._read(lambda: self.ledger.entry(entry_id))

    def _all_proven(self, about: Sequence[Entry], tally: _Written) -> list[Entry | Evidence]:
        """*about*, chain by chain, with what proves it."""
        items: list[Entry | Evidence] = []
        for author in dict.fromkeys(entry.content.author for entry in about):
            items += self._proven(
                author, {e.id for e in about if e.content.author == author}, tally
            )
        return items

    def _proven(
        self, author: bytes, wanted: Collection[bytes], tally: _Written
    ) -> Sequence[Entry | Evidence]:
        """The *wanted* entries of a chain, with what proves them: HEADs, or all before them."""
        chain = list(islice(self.ledger.chain(author), EXTRACT_MAX + 1))
        try:
            if len(chain) <= EXTRACT_MAX:
                return list(extract(chain, wanted))
        except LedgerError:
            pass  # no HEAD is above them, or the chain has arms
        last = max(place for place, entry in enumerate(chain) if entry.id in wanted)
        if {entry.content.seq for entry in chain[: last + 1]} != set(
            range(chain[last].content.seq + 1)
        ):
            tally.left_out += len(wanted)
            return ()
        return chain[: last + 1]

    async def _slices(self, items: Iterator[T]) -> AsyncGenerator[list[T], None]:
        """*items*, read a slice at a time."""
        while part := await self._read(lambda: list(islice(items, SLICE))):
            yield part

    async def _read(self, read: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(read, limiter=self.reading)


@define
class _Written:
    """How far a file is."""

    entries: int = 0
    left_out: int = 0

    def piece(self, text: str) -> Piece:
        return Piece(text.encode(), self.entries, self.left_out)


def _is_whole(holding: Holding) -> bool:
    """Whether all of the chain is here, from its start."""
    return holding.author == b"" or (holding.height == holding.top and holding.low == 0)


def _lines(items: Iterable[Entry | Evidence]) -> str:
    file = io.StringIO()
    export(items, file)
    return file.getvalue()


def _written(entries: Iterable[Entry], form: Form, *, with_title: bool) -> str:
    file = io.StringIO(newline="")
    if form is not Form.CSV:
        export(entries, file)
        return file.getvalue()
    table(entries, file)
    _title, _, rows = file.getvalue().partition("\r\n")
    return file.getvalue() if with_title else rows


def _fork_view(one: Entry, other: Entry) -> ForkView:
    proof = prove_fork(one, other)
    file = io.StringIO()
    export([proof] if proof else [one, other], file)
    body = one.content
    return ForkView(PeerId(body.author), body.seq, tuple(file.getvalue().splitlines()))


def view_of(entry: Entry) -> ReceiptView:
    """A ledger entry for people, of whichever kind."""
    body = entry.content
    deal = body.deal if body.kind in TERMED else None
    needed, good = _signatures(entry, verify)
    buyer, seller = _roles(body)
    return ReceiptView(
        entry=EntryId(entry.id),
        kind=body.kind.name,
        author=PeerId(body.author) if body.author else None,
        task=TaskId(deal.nonce) if deal else None,
        fence=deal.fence if deal else 0,
        buyer=buyer,
        seller=seller,
        amount=deal.amount if deal else _amount(body),
        reserve=deal.reserve if deal else 0,
        fuel=deal.fuel if deal else 0,
        price=deal.price if deal else 0,
        fee=deal.fee if deal else 0,
        exit_code=deal.exit if deal else 0,
        meter=deal.meter if deal else "",
        module=Cid(deal.module) if deal else None,
        outputs=tuple(map(Cid, deal.outputs)) if deal else (),
        seq=body.seq,
        wall_ms=body.hlc >> 16,
        signatures_good=good,
        signatures_needed=needed,
        says=_says(body),
        raw=entry.encode(),
    )


def _signatures(entry: Entry, verify: Verify) -> tuple[int, int]:
    """How many sign an entry of this kind, and how many of those did."""
    body = entry.content
    signers = [entry]
    if body.kind is Kind.FORKPROOF:
        signers = [*fork_of(body)]
    good = [verify(e.content.author, entry_message(e.id), e.sig) for e in signers]
    if body.peer_sig:
        good.append(verify(body.peer, peer_message(body), body.peer_sig))
    return len(good), sum(good)


def _roles(body: Body) -> tuple[PeerId | None, PeerId | None]:
    """(buyer, seller), where the kind has them."""
    if body.kind in TERMED:
        return PeerId(body.deal.buyer), PeerId(body.deal.seller)
    match body.kind:
        case Kind.DISPUTE:
            return PeerId(body.author), PeerId(body.peer)
        case Kind.REFUND | Kind.LINE:
            return PeerId(body.peer), PeerId(body.author)
        case _:
            return None, None


def _amount(body: Body) -> int:
    return Refund.decode(body.terms).amount if body.kind is Kind.REFUND else 0


def _says(body: Body) -> str:
    match body.kind:
        case Kind.ALLOC:
            return f"reserves {units.show_money(body.deal.reserve)}"
        case Kind.USE:
            return f"{units.show_money(body.deal.amount)} so far"
        case Kind.SETTLE | Kind.RULING:
            return f"owes {units.show_money(body.deal.amount)}"
        case Kind.VOID:
            return "owes nothing"
        case Kind.CLAIM:
            return f"claims {units.show_money(body.deal.amount)}: one side's word, no debt"
        case Kind.DISPUTE:
            return f"disputes: {Dispute.decode(body.terms).reason}"
        case Kind.REFUND:
            return f"gives back {units.show_money(_amount(body))}"
        case Kind.LINE:
            return f"line of {show_limit(Line.decode(body.terms).limit)}"
        case Kind.KEYOP:
            keyop = KeyOp.decode(body.terms)
            return f"{keyop.op.name} {format_peer(PeerId(keyop.subject))}"
        case Kind.HEAD:
            return f"signs all {body.seq} entries before it"
        case Kind.FORKPROOF:
            return f"{format_peer(PeerId(fork_of(body)[0].content.author))} forked"
        case never:
            assert_never(never)


def show_limit(limit: int) -> str:
    """A credit line for people."""
    return "no limit" if limit == Line.NO_LIMIT else units.show_money(limit)
