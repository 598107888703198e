"""Witnesses with books in memory, and what an author tells them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ledger_deals import Party

from ledger.model import Entry
from ledger.quorum import Certificate, Position, Quorum, Tally, sign_vote
from ledger.votes import VoteBook
from ledger.witness import Refusal, Voted, Witness

WITNESSES = [Party.named(f"witness {number}") for number in range(10)]

_opened: list[VoteBook] = []


def book_of(party: Party) -> VoteBook:
    """A book in memory. `close_books` closes it."""
    book = VoteBook.open(Path(":memory:"), party.key)
    _opened.append(book)
    return book


def close_books() -> None:
    """Close every book that was made here."""
    while _opened:
        _opened.pop().close()


def witness_of(
    party: Party, book: VoteBook | None = None, refusal: Refusal | None = None
) -> Witness:
    """The witness with that key, from its book if it has one."""
    return Witness(
        party.key,
        party.sign,
        book or book_of(party),
        refusal=refusal or (lambda author, net: ""),
    )


def ask(witness: Witness, *entries: Entry) -> object:
    """What *witness* answers to a run of these."""
    return witness.ask([entry.encode() for entry in entries])


def quorum_of(count: int) -> Quorum:
    return Quorum.of(party.key for party in WITNESSES[:count])


def certify(quorum: Quorum, entry: Entry, parties: Sequence[Party]) -> Certificate | None:
    """The certificate that votes of *parties* for *entry* make, whatever they should vote for."""
    tally, position = Tally(quorum, Position.of(entry)), Position.of(entry)
    found = [tally.add(sign_vote(position, party.key, party.sign)) for party in parties]
    return next(filter(None, reversed(found)), None)


def is_vote_for(answer: object, entry: Entry) -> bool:
    """Whether *answer* is a signed vote for *entry*."""
    if not isinstance(answer, Voted):
        return False
    return answer.vote.position == Position.of(entry) and answer.vote.is_signed()
