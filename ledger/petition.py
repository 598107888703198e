"""An author's way to a certificate: which entries to show which witness next. Pure.

Time is the caller's: it puts the `question` for a witness to it, again if no answer comes, and says
what it `hear`s. A witness that is behind is brought up to date in runs; one that lies can only
waste as many answers as it takes to tell, and is then passed over.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field

from ledger import keys
from ledger.answers import RUN_MAX, Answer, Behind, Refused, Voted
from ledger.keys import Verify
from ledger.model import Entry
from ledger.quorum import Certificate, Position, Quorum, Tally, Vote


@define
class Petition:
    """One entry, which is to be certified by one quorum."""

    quorum: Quorum
    entry: Entry
    verify: Verify = keys.verify
    certificate: Certificate | None = None
    refusals: dict[bytes, str] = field(factory=dict)
    """By witness: why it gives no vote, or is not listened to any more."""
    evidence: tuple[Entry, ...] = ()
    """Two entries of the author's that prove that its chain forked, if a witness had them."""
    _stands: dict[bytes, int] = field(factory=dict)
    _heard: dict[bytes, int] = field(factory=dict)
    _tally: Tally = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._tally = Tally(self.quorum, Position.of(self.entry), self.verify)

    @staticmethod
    def of(
        quorum: Quorum,
        entry: Entry,
        stands: Mapping[bytes, int],
        verify: Verify = keys.verify,
    ) -> Petition:
        """With what an earlier petition learned of where each witness *stands*."""
        return Petition(quorum, entry, verify, stands=dict(stands))

    @property
    def stands(self) -> Mapping[bytes, int]:
        """By witness: the first seq of the chain that it may lack."""
        return dict(self._stands)

    @property
    def is_over(self) -> bool:
        """Whether it has its certificate, or too few witnesses are left to give one."""
        left = len(self.quorum.members) - len(self.refusals)
        return self.certificate is not None or left < self.quorum.needed

    def question(self, witness: bytes) -> range | None:
        """The seqs of the entries to show *witness* next; None if there is nothing to ask it."""
        if self.is_over or witness in self.refusals or witness not in self._tally.missing():
            return None
        last = self.entry.content.seq
        start = min(self._stands.get(witness, last), last)
        return range(start, min(start + RUN_MAX, last + 1))

    def hear(self, witness: bytes, answer: Answer) -> None:
        """Take in what *witness*, whoever that is, answered."""
        if self.question(witness) is None:
            return
        self._heard[witness] = self._heard.get(witness, 0) + 1
        match answer:
            case Voted(vote):
                self._voted(witness, vote)
            case Behind(author, net, seq):
                body = self.entry.content
                if (author, net) == (body.author, body.net) and seq < body.seq:
                    self._stands[witness] = seq
            case Refused(reason, evidence):
                self.refusals[witness] = reason
                if self._is_fork(evidence):
                    self.evidence = evidence
        if self.question(witness) is not None and self._heard[witness] >= self._answers_max():
            self.refusals[witness] = "it answers without end and does not vote"

    def _voted(self, witness: bytes, vote: Vote) -> None:
        mine, theirs = self._tally.position, vote.position
        if vote.witness != witness or (theirs.author, theirs.net) != (mine.author, mine.net):
            return
        if theirs.seq < mine.seq and vote.is_signed(self.verify):
            self._stands[witness] = theirs.seq + 1
            return
        self.certificate = self._tally.add(vote) or self.certificate
        if witness not in self._tally.missing():
            self._stands[witness] = mine.seq + 1

    def _answers_max(self) -> int:
        """Enough for a witness that starts from nothing, and to be told so twice."""
        return self.entry.content.seq // RUN_MAX + 4

    def _is_fork(self, evidence: tuple[Entry, ...]) -> bool:
        if len(evidence) != 2:
            return False
        places = {(e.content.author, e.content.net, e.content.seq) for e in evidence}
        one, other = evidence
        is_one_place = len(places) == 1 and one.id != other.id
        author = self.entry.content.author
        return is_one_place and all(
            entry.content.author == author
            and self.verify(author, keys.entry_message(entry.id), entry.sig)
            for entry in evidence
        )
