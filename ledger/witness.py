"""A witness: it votes for at most one entry at each place of an author's chain, ever. Pure.

It is shown entries that start right after what it has voted for, checks each as an auditor would,
and votes for the last of them, which binds all before it. So it never skips a place, and an entry
that it voted for has a sound prefix: valid, linked, totals that add up, HEADs with the right root.
What it votes for is in its `Book` before anybody hears of it. It has no clock, and no opinion about
money: it makes forks useless, and its own lies are bounded by the quorum (quorum.py).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

from attrs import evolve, field, frozen

from ledger import keys
from ledger.chain import Head, check_entry, check_link, origin, rotated_to
from ledger.errors import BadEntry, BrokenChain, Corruption
from ledger.keys import Sign, Verify
from ledger.model import KINDS_KNOWN, Body, Entry, Kind
from ledger.proof import Frontier
from ledger.quorum import Certificate, Position, Quorum, Tally, Vote, sign_vote
from ledger.statements import Checkpoint, KeyOp, Op

__all__ = [
    "AUTHORS_KEPT_MAX",
    "RUN_MAX",
    "Answer",
    "Ballot",
    "Behind",
    "Book",
    "Certificate",
    "Position",
    "Quorum",
    "Refused",
    "Tally",
    "Vote",
    "Voted",
    "Witness",
]

RUN_MAX = 64
"""Entries that one question may bring."""
AUTHORS_KEPT_MAX = 1024
"""Authors whose ballot is kept in memory; the others' are in the book."""

LOST = "give up this witness's key: who votes again from less than it knew, votes twice"
"""The way out of a damaged book."""

CHAINED = KINDS_KNOWN - {Kind.FORKPROOF}
_CLOSING = (Kind.SETTLE, Kind.VOID)


@frozen
class Ballot:
    """What a witness has voted for on one chain: the last entry, and with it all before."""

    author: bytes
    net: bytes
    last: Entry | None = None
    tree: Frontier = field(factory=Frontier)
    """Over all entries up to the last: what the next HEAD has to sign."""
    retired: bool = False
    """The chain itself says that its key signs nothing any more."""
    rival: Entry | None = None
    """An entry that the author signed for a place for which another got the vote."""

    @property
    def seq(self) -> int:
        """The place that follows."""
        return self.tree.size


class Book(Protocol):
    """What a witness must never forget (votes.py). Every method may raise LedgerError."""

    def ballot(self, author: bytes, net: bytes) -> Ballot | None:
        """What was recorded last."""

    def voted(self, author: bytes, net: bytes, seq: int) -> Entry | None:
        """The entry at that place, if it was voted for."""

    def entry(self, entry_id: bytes) -> Entry | None:
        """An entry that was voted for."""

    def is_closed(self, alloc_id: bytes) -> bool:
        """Whether a SETTLE or VOID of that ALLOC was voted for."""

    def record(self, ballot: Ballot, entries: Sequence[Entry]) -> None:
        """Keep *ballot* and the *entries* that are new in it: durable when it returns."""


@frozen
class Voted:
    """The vote for the last entry of the run, now or before."""

    vote: Vote


@frozen
class Behind:
    """The witness lacks what is before: it wants the chain from *seq* on."""

    author: bytes
    net: bytes
    seq: int


@frozen
class Refused:
    """No vote. The *evidence*, if any, is two entries that prove a fork (`prove_fork`)."""

    reason: str
    evidence: tuple[Entry, ...] = ()


Answer: TypeAlias = Voted | Behind | Refused
Refusal: TypeAlias = Callable[[bytes, bytes], str]
"""(author, net) -> why the caller knows that it gets no vote, such as its accounts; or empty."""


class Witness:
    """Answers questions one at a time. Its memory is bounded, its book grows with its votes."""

    def __init__(
        self,
        key: bytes,
        sign: Sign,
        book: Book,
        *,
        verify: Verify = keys.verify,
        refusal: Refusal = lambda author, net: "",
    ) -> None:
        self.key = key
        self._sign = sign
        self._book = book
        self._verify = verify
        self._refusal = refusal
        self._ballots: OrderedDict[tuple[bytes, bytes], Ballot] = OrderedDict()
        self._counts: Counter[str] = Counter()

    def ask(self, run: Sequence[bytes]) -> Answer:
        """What it says of these encoded entries of one chain, in order. Raises LedgerError.

        Only where its book fails does it raise: then it has not voted.
        """
        try:
            answer = self._answer(_chained(run))
        except (BadEntry, BrokenChain) as error:
            answer = Refused(str(error))
        self._counts[type(answer).__name__.lower()] += 1
        return answer

    def statistics(self) -> Mapping[str, int]:
        """How many answers of each kind there were, forks found, and ballots put aside."""
        return dict(self._counts)

    def _answer(self, entries: Sequence[Entry]) -> Answer:
        first = entries[0].content
        if why := self._refusal(first.author, first.net):
            return Refused(why)
        ballot = self._ballot(first.author, first.net)
        if ballot.rival is not None:
            return self._forked(ballot, ballot.rival)
        if first.seq > ballot.seq:
            return Behind(first.author, first.net, ballot.seq)
        old, new = entries[: ballot.seq - first.seq], entries[ballot.seq - first.seq :]
        for entry in old:
            if self._held(ballot, entry).id != entry.id:
                return self._catch(ballot, entry)
        if new:
            if _is_elsewhere(ballot, old, new[0]):
                return Behind(first.author, first.net, ballot.seq - 1)
            self._record(self._follow(ballot, new), new)
        return Voted(sign_vote(Position.of(entries[-1]), self.key, self._sign))

    def _follow(self, ballot: Ballot, entries: Sequence[Entry]) -> Ballot:
        """The ballot after *entries*. Raises BadEntry and BrokenChain."""
        allocs: dict[bytes, Entry] = {}
        closed: set[bytes] = set()
        for entry in entries:
            body = check_entry(entry, self._verify, CHAINED)
            alloc = allocs.get(body.ref) or self._known(body)
            if body.kind is Kind.ALLOC:
                allocs[entry.id] = entry
            elif body.kind in _CLOSING:
                if body.ref in closed or self._book.is_closed(body.ref):
                    raise BrokenChain("the ALLOC is resolved already")
                closed.add(body.ref)
            last = ballot.last
            # An heir's chain begins at a ROTATE that this witness voted for, or at nothing.
            head = Head.after(last) if last else origin(body, self._book.entry(body.prev))
            ballot = _after(ballot, head, entry, alloc)
        return ballot

    def _known(self, body: Body) -> Entry | None:
        """The ALLOC of this author's that *body* is about, where that decides what follows."""
        needs = body.kind in (*_CLOSING, Kind.USE)
        return self._book.entry(body.ref) if needs else None

    def _record(self, ballot: Ballot, entries: Sequence[Entry]) -> None:
        key = ballot.author, ballot.net
        # If the book fails, what was kept in memory may be less than what is on the disk.
        self._ballots.pop(key, None)
        self._book.record(ballot, entries)
        self._keep(ballot)

    def _catch(self, ballot: Ballot, entry: Entry) -> Answer:
        """*entry* is not what the vote at its place was for: a fork, if its author signed it."""
        body = entry.content
        if not self._verify(body.author, keys.entry_message(entry.id), entry.sig):
            raise BadEntry("the author's signature is not its own")
        self._record(evolve(ballot, rival=entry), ())
        self._counts["forks"] += 1
        return self._forked(ballot, entry)

    def _forked(self, ballot: Ballot, rival: Entry) -> Refused:
        return Refused("it forked its chain", (self._held(ballot, rival), rival))

    def _held(self, ballot: Ballot, entry: Entry) -> Entry:
        """The entry that got the vote at the place of *entry*."""
        held = self._book.voted(ballot.author, ballot.net, entry.content.seq)
        if held is None:
            raise Corruption("the book lacks an entry below its ballot", LOST)
        return held

    def _ballot(self, author: bytes, net: bytes) -> Ballot:
        found = self._ballots.get((author, net)) or self._book.ballot(author, net)
        ballot = found or Ballot(author, net)
        self._keep(ballot)
        return ballot

    def _keep(self, ballot: Ballot) -> None:
        key = ballot.author, ballot.net
        self._ballots[key] = ballot
        self._ballots.move_to_end(key)
        if len(self._ballots) > AUTHORS_KEPT_MAX:
            self._ballots.popitem(last=False)
            self._counts["evicted"] += 1


def _chained(run: Sequence[bytes]) -> list[Entry]:
    """The entries of *run*, which are to be of one chain, seq by seq. Raises BadEntry."""
    if not 0 < len(run) <= RUN_MAX:
        raise BadEntry(f"{len(run)} entries where 1 to {RUN_MAX} are allowed")
    entries = [Entry.decode(data) for data in run]
    first = entries[0].content
    if first.kind is Kind.FORKPROOF:
        raise BadEntry("a FORKPROOF is on no chain")
    for place, entry in enumerate(entries, first.seq):
        body = entry.content
        if (body.author, body.net, body.seq) != (first.author, first.net, place):
            raise BadEntry("the entries are not of one chain, seq by seq")
    return entries


def _is_elsewhere(ballot: Ballot, old: Sequence[Entry], new: Entry) -> bool:
    """Whether *new* follows from an entry that is not here, at a place that got its vote."""
    return not old and ballot.last is not None and new.content.prev != ballot.last.id


def _after(ballot: Ballot, head: Head, entry: Entry, alloc: Entry | None) -> Ballot:
    """The ballot that *entry*, valid by itself, makes. Raises BadEntry and BrokenChain."""
    body = entry.content
    if ballot.retired:
        raise BrokenChain("its key is retired")
    check_link(head, entry, alloc.content if alloc else None)
    if body.kind is Kind.HEAD and Checkpoint.decode(body.terms).root != ballot.tree.root():
        raise BrokenChain("the HEAD has another root")
    return evolve(ballot, last=entry, tree=ballot.tree.plus(entry.id), retired=_retires(entry))


def _retires(entry: Entry) -> bool:
    """Whether the author says by *entry* that it signs nothing any more."""
    body = entry.content
    if body.kind is not Kind.KEYOP:
        return False
    is_own = body.peer == body.author
    return bool(rotated_to(entry)) or (is_own and KeyOp.decode(body.terms).op is Op.REVOKE)
