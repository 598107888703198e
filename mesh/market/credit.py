"""Credit: what each buyer owes us and has reserved with us, and how much we let it. Pure.

Tier T0 of the ledger: we, the seller, sign every debit in our favour before the buyer can make it,
so no partition and no liar can raise our exposure above the line that we set (promise S9). Whoever
forked its chain, or whose key is retired, gets nothing any more.

The same sums as `ledger.state.Accounts.exposure`, kept by deal only as long as a deal is open.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from attrs import define, frozen

from ledger.authority import Authority
from ledger.model import Entry, Kind
from ledger.state import PRECEDENCE, Accounts
from ledger.statements import Line, Refund
from mesh.ids import PeerId

BUYERS_MAX = 65_536
"""Whom we know the balance of; in a full table nobody new gets credit."""
CLOSED_MAX = 4_096
"""Closed deals that are remembered one by one: their closing may come again by another way."""
OPEN_MAX = 65_536
FROZEN_MAX = 4_096
KEYOPS_MAX = 4_096

Exposure: TypeAlias = tuple[int, int, int]
"""(owed, reserved, limit), µcr"""


@frozen
class Balance:
    """What has passed between one buyer and us for good, µcr."""

    buyer: bytes
    owed: int = 0
    """By SETTLEs in our favour."""
    returned: int = 0
    """What we owe it: our REFUNDs, and our own SETTLEs less its REFUNDs."""


@frozen
class Books:
    """What a ledger says of us as a seller: what a start begins with."""

    balances: tuple[Balance, ...] = ()
    open: tuple[tuple[bytes, bytes, int], ...] = ()
    """(id of the ALLOC, buyer, reserve in µcr)"""
    closed: tuple[tuple[bytes, int], ...] = ()
    """(id of the ALLOC, amount in µcr), the last ones"""
    forked: tuple[bytes, ...] = ()
    keyops: tuple[bytes, ...] = ()
    """Encoded entries."""


def read_books(us: PeerId, accounts: Accounts, entries: Iterable[Entry]) -> Books:
    """Our books by *entries*, which are counted into *accounts*: empty, or with what was pruned."""
    allocs: dict[bytes, tuple[bytes, int]] = {}
    closed: deque[tuple[bytes, int]] = deque(maxlen=CLOSED_MAX)
    keyops: deque[bytes] = deque(maxlen=KEYOPS_MAX)
    for entry in entries:
        accounts.add(entry)
        body = entry.content
        if body.net != accounts.net:
            continue
        if body.kind is Kind.KEYOP:
            keyops.append(entry.encode())
        elif body.peer == us and body.kind is Kind.ALLOC:
            allocs[entry.id] = (body.author, body.deal.reserve)
        elif body.peer == us and body.kind in (Kind.SETTLE, Kind.VOID):
            closed.append((body.ref, body.deal.amount))
    everybody = accounts.all()
    balances = (_balance(us, key, accounts) for key in everybody if key != us)
    return Books(
        balances=tuple(each for each in balances if each.owed or each.returned),
        open=tuple(
            (alloc_id, buyer, reserve)
            for alloc_id, (buyer, reserve) in allocs.items()
            if _is_open(us, alloc_id, buyer, accounts)
        )[-OPEN_MAX:],
        closed=tuple(closed),
        forked=tuple(key for key, account in everybody.items() if account.forked)[-FROZEN_MAX:],
        keyops=tuple(keyops),
    )


def _balance(us: PeerId, buyer: bytes, accounts: Accounts) -> Balance:
    there, back = accounts.between(buyer, us), accounts.between(us, buyer)
    return Balance(buyer, there.owed, there.refunded + back.owed - back.refunded)


def _is_open(us: PeerId, alloc_id: bytes, buyer: bytes, accounts: Accounts) -> bool:
    resolution = accounts.standing((alloc_id, buyer, us)).resolution
    return resolution is None or resolution.precedence == PRECEDENCE[Kind.CLAIM]


@define
class _Ties:
    """What binds one buyer and us, µcr."""

    owed: int = 0
    returned: int = 0
    reserved: int = 0

    @property
    def exposure(self) -> int:
        return self.owed + self.reserved - self.returned


class Credit:
    """All buyers' debts to us, and their lines. Reads entries, writes nothing."""

    def __init__(
        self,
        us: PeerId,
        books: Books,
        lines: Mapping[PeerId, int],
        *,
        net: bytes,
        default_line: int,
    ) -> None:
        self.default_line = default_line
        self.earned = sum(balance.owed for balance in books.balances)
        """µcr settled in our favour."""
        self.lines = dict(lines)
        """Those that were set one by one."""
        self.tally: Counter[str] = Counter()
        self._us = us
        self._net = net
        self._ties = {
            PeerId(each.buyer): _Ties(each.owed, each.returned) for each in books.balances
        }
        self._open: dict[bytes, tuple[PeerId, int]] = {}
        self._closed: OrderedDict[bytes, int] = OrderedDict(books.closed)
        self._forked: OrderedDict[bytes, None] = OrderedDict.fromkeys(books.forked)
        self._authority = Authority()
        self._keyops = 0
        self._refunds: OrderedDict[bytes, None] = OrderedDict()
        for alloc_id, buyer, reserve in books.open:
            self._reserve(alloc_id, PeerId(buyer), reserve)
        for data in books.keyops:
            self._see_keyop(Entry.decode(data))

    def exposures(self) -> Mapping[PeerId, Exposure]:
        """What each buyer owes us net, has reserved, and may have altogether."""
        return {
            buyer: (ties.owed - ties.returned, ties.reserved, self.limit(buyer))
            for buyer, ties in self._ties.items()
            if ties.owed or ties.returned or ties.reserved or buyer in self.lines
        } | {buyer: (0, 0, limit) for buyer, limit in self.lines.items() if buyer not in self._ties}

    @property
    def frozen(self) -> frozenset[PeerId]:
        """Keys that forked: they get nothing any more, and sell us nothing."""
        return frozenset(map(PeerId, self._forked))

    def limit(self, buyer: PeerId) -> int:
        """How much *buyer* may owe us and have reserved, µcr."""
        return self.lines.get(buyer, self.default_line)

    def exposure(self, buyer: PeerId) -> int:
        """What we stand to lose by *buyer*, µcr; below 0 we owe it.

        What the keys owe in whose place it stands counts too: a line is not shed by a ROTATE.
        """
        forebears, _ = self._authority.forebears(buyer)
        inherited = sum(max(0, self._exposure(forebear)) for forebear in forebears)
        return self._exposure(buyer) + inherited

    def _exposure(self, key: bytes) -> int:
        ties = self._ties.get(PeerId(key))
        return ties.exposure if ties else 0

    def is_frozen(self, key: PeerId) -> bool:
        """Whether *key* forked or is retired."""
        return key in self._forked or self._authority.is_retired(key)

    def refusal(self, buyer: PeerId, more: int) -> str:
        """Why *buyer* may not reserve so much *more*, µcr; empty if it may."""
        if buyer in self._forked:
            return "your key forked its chain"
        if self._authority.is_retired(buyer):
            return "your key is retired"
        if len(self._ties) >= BUYERS_MAX and buyer not in self._ties:
            self.tally["credit_buyers_refused"] += 1
            return f"{BUYERS_MAX} buyers have accounts here already"
        if not self._authority.forebears(buyer)[1]:
            return "your key stands in the place of too many others"
        limit, exposure = self.limit(buyer), self.exposure(buyer)
        if limit < Line.NO_LIMIT and exposure + more > limit:
            self.tally["credit_refused"] += 1
            return f"credit: {exposure} µcr are open, {more} more exceed your line of {limit}"
        return ""

    def sizes(self) -> dict[str, tuple[int, int]]:
        return {
            "buyers": (len(self._ties), BUYERS_MAX),
            "deals_open": (len(self._open), OPEN_MAX),
            "deals_closed": (len(self._closed), CLOSED_MAX),
            "keys_forked": (len(self._forked), FROZEN_MAX),
            "keyops": (self._keyops, KEYOPS_MAX),
        }

    # --- what happens ---------------------------------------------------------------------------

    def freeze(self, forked: Iterable[PeerId]) -> list[PeerId]:
        """Trust these no more; those that were trusted until now."""
        new = [key for key in forked if key not in self._forked and key != self._us]
        for key in new:
            self._forked[key] = None
            if len(self._forked) > FROZEN_MAX:
                self._forked.popitem(last=False)
                self.tally["forked_forgotten"] += 1
        return new

    def see(self, entry: Entry) -> None:
        """Count a valid entry of ours, or one that names us; again, and it changes nothing."""
        body = entry.content
        if body.net != self._net:
            return
        match body.kind:
            case Kind.ALLOC if body.peer == self._us:
                if entry.id not in self._closed and entry.id not in self._open:
                    self._reserve(entry.id, PeerId(body.author), body.deal.reserve)
            case Kind.SETTLE | Kind.VOID if body.peer == self._us:
                self._close(body.ref, PeerId(body.author), body.deal.amount)
            case Kind.SETTLE if body.author == self._us:
                self._tie(PeerId(body.peer)).returned += body.deal.amount
            case Kind.REFUND:
                self._see_refund(entry)
            case Kind.LINE if body.author == self._us:
                self.lines[PeerId(body.peer)] = Line.decode(body.terms).limit
            case Kind.KEYOP:
                self._see_keyop(entry)
            case _:
                pass  # nothing that binds a buyer and us

    def _reserve(self, alloc_id: bytes, buyer: PeerId, reserve: int) -> None:
        if len(self._open) >= OPEN_MAX:  # of deals that we never took on: those are few
            self.tally["deals_dropped"] += 1
            return
        self._open[alloc_id] = (buyer, reserve)
        self._tie(buyer).reserved += reserve

    def _close(self, alloc_id: bytes, buyer: PeerId, amount: int) -> None:
        """Of rival closings the larger counts."""
        _, reserve = self._open.pop(alloc_id, (buyer, 0))
        more = max(0, amount - self._closed.get(alloc_id, 0))
        self._closed[alloc_id] = max(amount, self._closed.get(alloc_id, 0))
        if len(self._closed) > CLOSED_MAX:
            self._closed.popitem(last=False)
        ties = self._tie(buyer)
        ties.reserved -= reserve
        ties.owed += more
        self.earned += more

    def _see_refund(self, entry: Entry) -> None:
        body = entry.content
        if entry.id in self._refunds or self._us not in (body.author, body.peer):
            return
        self._refunds[entry.id] = None
        if len(self._refunds) > CLOSED_MAX:
            self._refunds.popitem(last=False)
        amount = Refund.decode(body.terms).amount
        if body.author == self._us:
            self._tie(PeerId(body.peer)).returned += amount
        else:
            self._tie(PeerId(body.author)).returned -= amount

    def _see_keyop(self, entry: Entry) -> None:
        if self._keyops >= KEYOPS_MAX:
            self.tally["keyops_dropped"] += 1
            return
        self._keyops += 1
        self._authority.add(entry.content)

    def _tie(self, peer: PeerId) -> _Ties:
        """The account with *peer*; in a full table one that is forgotten: it only loses credit."""
        if len(self._ties) >= BUYERS_MAX and peer not in self._ties:
            self.tally["credit_forgotten"] += 1
            return _Ties()
        return self._ties.setdefault(peer, _Ties())
