"""What a set of valid entries amounts to: a fold that no order and no duplicate can change. Pure.

Every debit that its payer signed counts, on all arms of a fork and across gaps: a fork freezes its
author's spending, it never shrinks its debt. An ALLOC resolves once: RULING goes before SETTLE,
SETTLE before VOID and VOID before CLAIM, the larger amount before the smaller (or merging could
shrink a debt), among equals the smallest id. A resolution concerns the two parties that its terms
name and nobody else, so one that names another's ALLOC leaves that alone.

A CLAIM is one side's word: it is counted as claimed, never as posted, and its ALLOC stays reserved.
It and a RULING count only beside an ALLOC whose terms they keep, which both parties signed and
which names the arbiter; a claim of a deal that never was, is nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from typing import Protocol, TypeAlias

from attrs import define, evolve, field, frozen

from ledger.authority import FOREBEARS_MAX, Authority
from ledger.model import Body, Entry, Kind, Terms
from ledger.statements import Dispute, Line, Refund
from ledger.validity import fork_of

PRECEDENCE: Mapping[Kind, int] = {Kind.RULING: 0, Kind.SETTLE: 1, Kind.VOID: 2, Kind.CLAIM: 3}
"""Which of several resolutions of one ALLOC counts: the lowest."""

Deal: TypeAlias = tuple[bytes, bytes, bytes]
"""(id of the ALLOC, buyer, seller)"""
Pair: TypeAlias = tuple[bytes, bytes]
"""(buyer, seller)"""


@frozen
class Account:
    """What one key owes, is owed and has reserved: µcr."""

    posted_debit: int = 0
    posted_credit: int = 0
    pending_debit: int = 0
    forked: bool = False
    """It signed two entries for one place of its chain: proven, and for ever."""
    claimed_debit: int = 0
    """What sellers claim of it, on their word alone: part of *pending_debit*, not of *posted*."""
    retired: bool = False
    """Its key was revoked or rotated away."""
    heirs: frozenset[bytes] = frozenset()
    """The keys that it was rotated to: more than one is a quarrel to look into."""


@frozen
class Between:
    """What one buyer owes and has reserved with one seller: µcr."""

    owed: int = 0
    reserved: int = 0
    claimed: int = 0
    """Of what is reserved."""
    refunded: int = 0
    """What the seller owes the buyer by REFUNDs."""


@frozen(order=True)
class Resolution:
    """How an ALLOC ended, by this entry; the smallest of several counts."""

    precedence: int
    credit: int
    """The amount, µcr, negative: the larger one counts."""
    entry_id: bytes

    @property
    def amount(self) -> int:
        return -self.credit

    @property
    def is_claim(self) -> bool:
        """Whether it is one side's word, which posts nothing and frees nothing."""
        return self.precedence == PRECEDENCE[Kind.CLAIM]


class Stage(Enum):
    """How far a deal is."""

    UNKNOWN = "unknown"
    ALLOCATED = "allocated"
    CLAIMED = "claimed"
    VOID = "void"
    SETTLED = "settled"
    RULED = "ruled"


_STAGES = {0: Stage.RULED, 1: Stage.SETTLED, 2: Stage.VOID, 3: Stage.CLAIMED}


@frozen
class Standing:
    """What a set of entries says of one deal."""

    stage: Stage = Stage.UNKNOWN
    resolution: Resolution | None = None
    used: int = 0
    """µcr of work that the buyer agreed to on the way, by USE."""
    disputed: bool = False


def fold(entries: Iterable[Entry], net: bytes) -> Mapping[bytes, Account]:
    """The account of every key that *entries* of network *net* name; all must be valid."""
    accounts = Accounts(net)
    for entry in entries:
        accounts.add(entry)
    return accounts.all()


def deal_of(entry: Entry) -> Deal:
    """Which deal *entry*, whose terms are `Terms`, opens or is about."""
    deal = entry.content.deal
    return (deal.ref or entry.id, deal.buyer, deal.seller)


def resolution_of(entry: Entry) -> Resolution:
    """What a RULING, SETTLE, VOID or CLAIM says of its ALLOC."""
    body = entry.content
    return Resolution(PRECEDENCE[body.kind], -body.deal.amount, entry.id)


@frozen
class Carried:
    """What entries amounted to that are no longer at hand: of *author*'s chain, with one peer."""

    author: bytes
    peer: bytes
    low: int
    """They are all below this seq."""
    owed: int = 0
    """µcr, by SETTLEs."""
    refunded: int = 0
    """µcr, by REFUNDs."""


class Past(Protocol):
    """What is left of entries that are no longer at hand (remains.py)."""

    def carried(self, net: bytes) -> Iterable[Carried]:
        """The sums."""

    def closed(self, deal: Deal) -> Resolution | None:
        """How the deal ended, if its ALLOC is among them."""

    def pruned_at(self, author: bytes, net: bytes, seq: int) -> Collection[bytes]:
        """The ids of those at one place."""


@define
class _Case:
    """All that is known of one deal."""

    alloc: Terms | None = None
    agreed: Resolution | None = None
    """The first of the SETTLEs and VOIDs, which count by themselves: both parties signed."""
    told: dict[bytes, Resolution] = field(factory=dict)
    """The first of the CLAIMs and RULINGs on each version of the ALLOC's terms."""
    used: int = 0
    disputed: bool = False

    def resolution(self) -> Resolution | None:
        told = self.told.get(_frame(self.alloc)) if self.alloc and self.told else None
        return min(filter(None, (self.agreed, told)), default=None)

    def counts(self) -> tuple[int, int, int]:
        """(owed, reserved, claimed)"""
        first = self.resolution()
        reserved = self.alloc.reserve if self.alloc else 0
        if first is None:
            return (0, reserved, 0)
        return (0, reserved, first.amount) if first.is_claim else (first.amount, 0, 0)


class Accounts:
    """The fold, kept up to date entry by entry. Its memory grows with the entries.

    It starts from nothing, or from what is left of the *past*: then it comes to the same as if the
    entries of that had been added too.
    """

    def __init__(self, net: bytes, past: Past | None = None) -> None:
        self.net = net
        self.authority = Authority()
        self._accounts: dict[bytes, Account] = {}
        self._between: dict[Pair, Between] = {}
        self._cases: dict[Deal, _Case] = {}
        self._refunds: set[bytes] = set()
        self._lines: dict[Pair, tuple[int, int]] = {}
        self._places: dict[tuple[bytes, int], bytes] = {}
        self._past = past
        self._low: dict[bytes, int] = {}
        for carried in past.carried(net) if past else ():
            self._carry(carried)

    def add(self, entry: Entry) -> None:
        """Count the valid *entry*; one of another network, or counted before, changes nothing."""
        body = entry.content
        if body.net != self.net:
            return
        if body.kind is Kind.FORKPROOF:
            self._fork(fork_of(body)[0].content.author)
            return
        if self._past and body.seq < self._low.get(body.author, 0):
            there = self._past.pruned_at(body.author, body.net, body.seq)
            if entry.id in there:
                return
            if there:
                self._fork(body.author)
        for key in filter(None, (body.author, body.peer)):
            self._accounts.setdefault(key, Account())
        if self._places.setdefault((body.author, body.seq), entry.id) != entry.id:
            self._fork(body.author)
        match body.kind:
            case Kind.LINE:
                self._set_line(body)
            case Kind.KEYOP:
                self.authority.add(body)
            case Kind.REFUND:
                self._refund(entry)
            case Kind.HEAD:
                pass
            case _:
                self._about(entry)

    def account(self, key: bytes) -> Account:
        """The account of *key*, known or not."""
        known = self._accounts.get(key, Account())
        if not self.authority.is_retired(key):
            return known
        return evolve(known, retired=True, heirs=self.authority.heirs(key))

    def owners(self, key: bytes) -> frozenset[bytes]:
        """Who owns the node key *key*, by a DELEGATE that it signed itself."""
        return self.authority.owners(key)

    def all(self) -> Mapping[bytes, Account]:
        """Every account, by key."""
        return {key: self.account(key) for key in sorted(self._accounts)}

    def resolution(self, alloc: Entry) -> Resolution | None:
        """How *alloc* ended, or is claimed to have, if so."""
        return self.standing(deal_of(alloc)).resolution

    def standing(self, deal: Deal) -> Standing:
        """How far *deal* is."""
        case = self._case(deal)
        first = case.resolution()
        stage = Stage.ALLOCATED if case.alloc else Stage.UNKNOWN
        stage = _STAGES[first.precedence] if first else stage
        return Standing(stage, first, case.used, case.disputed)

    def between(self, buyer: bytes, seller: bytes) -> Between:
        """What *buyer* owes and has reserved with *seller*."""
        return self._between.get((buyer, seller), Between())

    def exposure(self, buyer: bytes, seller: bytes) -> int:
        """What *seller* stands to lose by *buyer*, µcr: owed and reserved, less what it owes back.

        What the seller has merely reserved with the buyer is not taken off. Below 0 it is ahead.
        What the keys owe in whose place the buyer stands counts too: a line is not shed by ROTATE.
        What the seller owes those is theirs, and an heir's line gains nothing by it.
        """
        forebears, _ = self.authority.forebears(buyer)
        inherited = sum(max(0, self._exposed(forebear, seller)) for forebear in forebears)
        return self._exposed(buyer, seller) + inherited

    def _exposed(self, buyer: bytes, seller: bytes) -> int:
        """By that key alone."""
        there, back = self.between(buyer, seller), self.between(seller, buyer)
        return there.owed + there.reserved - there.refunded - back.owed + back.refunded

    def line(self, buyer: bytes, seller: bytes) -> int:
        """The credit line that *seller* last set *buyer*, µcr; 0 if it never did."""
        _, withheld = self._lines.get((buyer, seller), (0, 0))
        return -withheld

    def refusal(self, buyer: bytes, seller: bytes, reserve: int, line: int | None = None) -> str:
        """Why *seller* should not let *buyer* reserve that many µcr more; empty if it may.

        *line* goes before the published one. This is tier T0: no entry that the seller has not
        seen can raise its exposure above the line, since it signs none of the terms.
        """
        limit = self.line(buyer, seller) if line is None else line
        account = self.account(buyer)
        if account.forked:
            return "it forked its chain"
        if account.retired:
            return "its key is retired"
        if not self.authority.forebears(buyer)[1]:
            return f"it stands in the place of more than {FOREBEARS_MAX} keys"
        exposure = self.exposure(buyer, seller)
        if limit < Line.NO_LIMIT and exposure + reserve > limit:
            return f"{exposure} µcr exposed and {reserve} asked for exceed the line of {limit}"
        return ""

    def may_spend(self, buyer: bytes, seller: bytes, reserve: int, line: int | None = None) -> bool:
        """Whether there is no `refusal`."""
        return not self.refusal(buyer, seller, reserve, line)

    def _about(self, entry: Entry) -> None:
        body = entry.content
        if body.kind is Kind.DISPUTE:
            ref = Dispute.decode(body.terms).ref
            deal = (ref, body.author, body.peer)
            self._cases.setdefault(deal, self._case(deal)).disputed = True
            return
        deal = deal_of(entry)
        case = self._cases.setdefault(deal, self._case(deal))
        before = case.counts()
        match body.kind:
            case Kind.ALLOC:
                case.alloc = body.deal
            case Kind.USE:
                case.used = max(case.used, body.deal.amount)
            case Kind.SETTLE | Kind.VOID:
                case.agreed = min(filter(None, (case.agreed, resolution_of(entry))))
            case _:
                frame, new = _frame(body.deal), resolution_of(entry)
                case.told[frame] = min(case.told.get(frame, new), new)
        self._move(deal, before, case.counts())

    def _case(self, deal: Deal) -> _Case:
        """What is known of *deal*; what is left of it, is counted already."""
        known = self._cases.get(deal)
        if known is not None:
            return known
        is_old = self._past is not None and deal[1] in self._low
        return _Case(agreed=self._past.closed(deal) if self._past and is_old else None)

    def _carry(self, carried: Carried) -> None:
        author, peer = carried.author, carried.peer
        self._low[author] = carried.low
        payer, pair = self._accounts.get(author, Account()), self.between(author, peer)
        back = self.between(peer, author)
        debit = payer.posted_debit + carried.owed + carried.refunded
        self._accounts[author] = evolve(payer, posted_debit=debit)
        self._between[author, peer] = evolve(pair, owed=pair.owed + carried.owed)
        self._between[peer, author] = evolve(back, refunded=back.refunded + carried.refunded)
        self._earn(peer, carried.owed + carried.refunded)

    def _move(self, deal: Deal, before: tuple[int, int, int], after: tuple[int, int, int]) -> None:
        if before == after:
            return
        _, buyer, seller = deal
        owed, reserved, claimed = (new - old for old, new in zip(before, after, strict=True))
        payer, pair = self._accounts.get(buyer, Account()), self.between(buyer, seller)
        self._accounts[buyer] = evolve(
            payer,
            posted_debit=payer.posted_debit + owed,
            pending_debit=payer.pending_debit + reserved,
            claimed_debit=payer.claimed_debit + claimed,
        )
        self._between[buyer, seller] = evolve(
            pair,
            owed=pair.owed + owed,
            reserved=pair.reserved + reserved,
            claimed=pair.claimed + claimed,
        )
        self._earn(seller, owed)

    def _refund(self, entry: Entry) -> None:
        if entry.id in self._refunds:
            return
        self._refunds.add(entry.id)
        body = entry.content
        amount = Refund.decode(body.terms).amount
        payer, pair = self._accounts[body.author], self.between(body.peer, body.author)
        self._accounts[body.author] = evolve(payer, posted_debit=payer.posted_debit + amount)
        self._between[body.peer, body.author] = evolve(pair, refunded=pair.refunded + amount)
        self._earn(body.peer, amount)

    def _earn(self, key: bytes, amount: int) -> None:
        payee = self._accounts.get(key, Account())
        self._accounts[key] = evolve(payee, posted_credit=payee.posted_credit + amount)

    def _set_line(self, body: Body) -> None:
        # The later place on the seller's chain; on two arms of a fork the lower limit.
        pair, new = (body.peer, body.author), (body.seq, -Line.decode(body.terms).limit)
        self._lines[pair] = max(self._lines.get(pair, new), new)

    def _fork(self, key: bytes) -> None:
        self._accounts[key] = evolve(self._accounts.get(key, Account()), forked=True)


def _frame(deal: Terms) -> bytes:
    """What an ALLOC fixes of *deal*, as against what the run or an arbiter decides."""
    return evolve(
        deal,
        outputs=(),
        fuel=0,
        amount=0,
        exit=0,
        escalations=(),
        migrations=(),
        start_ms=0,
        end_ms=0,
        ref=b"",
    ).encode()
