"""What a set of valid entries amounts to: a fold that no order and no duplicate can change. Pure.

Every debit that both parties signed counts, on all arms of a fork and across gaps: a fork freezes
its author's spending, it never shrinks its debt. An ALLOC resolves once: SETTLE goes before VOID,
the larger amount before the smaller (or merging could shrink a debt), among equals the smallest id.
A resolution concerns the two parties that signed it and nobody else,
so one that names another's ALLOC leaves that alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from attrs import evolve, frozen

from ledger.model import Entry, Kind

PRECEDENCE: Mapping[Kind, int] = {Kind.SETTLE: 0, Kind.VOID: 1}
"""Which of several resolutions of one ALLOC counts: the lowest."""

Deal: TypeAlias = tuple[bytes, bytes, bytes]
"""(id of the ALLOC, buyer, seller)"""


@frozen
class Account:
    """What one key owes, is owed and has reserved: µcr."""

    posted_debit: int = 0
    posted_credit: int = 0
    pending_debit: int = 0
    forked: bool = False
    """It signed two entries for one place of its chain: proven, and for ever."""


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


def fold(entries: Iterable[Entry], net: bytes) -> Mapping[bytes, Account]:
    """The account of every key that *entries* of network *net* name; all must be valid."""
    accounts = Accounts(net)
    for entry in entries:
        accounts.add(entry)
    return accounts.all()


def deal_of(entry: Entry) -> Deal:
    """Which deal *entry* opens or resolves."""
    body = entry.content
    return (body.deal.ref or entry.id, body.author, body.peer)


def resolution_of(entry: Entry) -> Resolution:
    """What a SETTLE or VOID says of its ALLOC."""
    body = entry.content
    return Resolution(PRECEDENCE[body.kind], -body.deal.amount, entry.id)


class Accounts:
    """The fold, kept up to date entry by entry. Its memory grows with the entries."""

    def __init__(self, net: bytes) -> None:
        self.net = net
        self._accounts: dict[bytes, Account] = {}
        self._reserves: dict[Deal, int] = {}
        self._resolutions: dict[Deal, Resolution] = {}
        self._places: dict[tuple[bytes, int], bytes] = {}

    def add(self, entry: Entry) -> None:
        """Count the valid *entry*; one of another network, or counted before, changes nothing."""
        body = entry.content
        if body.net != self.net:
            return
        if self._places.setdefault((body.author, body.seq), entry.id) != entry.id:
            self._accounts[body.author] = evolve(self.account(body.author), forked=True)
        if body.kind is Kind.ALLOC:
            self._reserve(deal_of(entry), body.deal.reserve)
        else:
            self._resolve(deal_of(entry), resolution_of(entry))

    def account(self, key: bytes) -> Account:
        """The account of *key*, known or not."""
        return self._accounts.get(key, Account())

    def all(self) -> Mapping[bytes, Account]:
        """Every account, by key."""
        return dict(sorted(self._accounts.items()))

    def resolution(self, alloc: Entry) -> Resolution | None:
        """How *alloc* ended, if it did."""
        return self._resolutions.get(deal_of(alloc))

    def _reserve(self, deal: Deal, reserve: int) -> None:
        if deal not in self._reserves:
            self._reserves[deal] = reserve
            self._move(deal, pending=0 if deal in self._resolutions else reserve)

    def _resolve(self, deal: Deal, new: Resolution) -> None:
        old = self._resolutions.get(deal)
        if old is None:
            self._resolutions[deal] = new
            self._move(deal, posted=new.amount, pending=-self._reserves.get(deal, 0))
        elif new < old:
            self._resolutions[deal] = new
            self._move(deal, posted=new.amount - old.amount)

    def _move(self, deal: Deal, *, posted: int = 0, pending: int = 0) -> None:
        _, buyer, seller = deal
        payer, payee = self.account(buyer), self.account(seller)
        self._accounts[buyer] = evolve(
            payer,
            posted_debit=payer.posted_debit + posted,
            pending_debit=payer.pending_debit + pending,
        )
        self._accounts[seller] = evolve(payee, posted_credit=payee.posted_credit + posted)
