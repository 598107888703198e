"""A quorum of witnesses: what each signs, and when enough of them did. Pure.

A witness votes for one entry at one place of an author's chain, and so for all that is before it.
Of n members f = ⌊(n-1)/3⌋ may lie and q = ⌈(n+f+1)/2⌉ make a certificate: any two quorums share an
honest member, which votes once for a place, so no two certificates are about two arms of a fork.
While q honest members answer, an honest author gets its certificates. Above f liars nothing holds.

    position    = [1, net, author, seq, id]      signed under "mesh-ledger/1/witness\\0"
    vote        = [1, net, author, seq, id, witness, sig]
    certificate = [1, net, author, seq, id, [[witness, sig], ...]]      witnesses rising
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, field, frozen

from ledger import keys
from ledger.codec import pack, unpack
from ledger.errors import BadEntry, LedgerError
from ledger.fields import HASH, KEY, SIGNATURE, UINT, exactly, many, record, row, sized
from ledger.keys import Sign, Verify
from ledger.model import Entry

VERSION = 1
MEMBERS_MAX = 64
"""Witnesses of one quorum."""
VOTE_MAX = 256
"""Bytes of one encoded vote."""
CERTIFICATE_MAX = 8192
"""Bytes of one encoded certificate."""

_POSITION_RULES = {
    "version": exactly(VERSION),
    "net": sized(8),
    "author": KEY,
    "seq": UINT,
    "entry_id": HASH,
}
_VOTE_RULES = _POSITION_RULES | {"witness": KEY, "sig": SIGNATURE}
_CERTIFICATE_RULES = _POSITION_RULES | {"votes": many(row(KEY, SIGNATURE), MEMBERS_MAX)}


@frozen
class Position:
    """An entry at its place of its author's chain."""

    net: bytes
    author: bytes
    seq: int
    entry_id: bytes

    @staticmethod
    def of(entry: Entry) -> Position:
        """Where *entry*, which has an author, says that it is."""
        body = entry.content
        assert body.author, "a FORKPROOF has no place"
        return Position(body.net, body.author, body.seq, entry.id)

    @property
    def message(self) -> bytes:
        """What a witness signs of it."""
        return keys.witness_message(pack((VERSION, *self.fields)))

    @property
    def fields(self) -> tuple[bytes, bytes, int, bytes]:
        """As they are encoded."""
        return (self.net, self.author, self.seq, self.entry_id)


@frozen
class Vote:
    """The word of one witness that it votes for no other entry at this position."""

    position: Position
    witness: bytes
    sig: bytes

    def encode(self) -> bytes:
        """The canonical bytes."""
        return pack((VERSION, *self.position.fields, self.witness, self.sig))

    @staticmethod
    def decode(data: bytes) -> Vote:
        """The vote in *data*: shape only, see `is_signed`. Raises BadEntry."""
        fields = record("vote", unpack(data, VOTE_MAX), _VOTE_RULES)
        _, *place, witness, sig = fields.values()
        return Vote(Position(*place), witness, sig)

    def is_signed(self, verify: Verify = keys.verify) -> bool:
        """Whether its witness signed it."""
        return verify(self.witness, self.position.message, self.sig)


@frozen
class Certificate:
    """Votes for one position: (witness, signature), the witnesses rising."""

    position: Position
    votes: tuple[tuple[bytes, bytes], ...]

    def encode(self) -> bytes:
        """The canonical bytes."""
        return pack((VERSION, *self.position.fields, self.votes))

    @staticmethod
    def decode(data: bytes) -> Certificate:
        """The certificate in *data*: shape only, see `Quorum.check`. Raises BadEntry."""
        fields = record("certificate", unpack(data, CERTIFICATE_MAX), _CERTIFICATE_RULES)
        _, *place, votes = fields.values()
        return Certificate(Position(*place), votes)


@frozen
class Quorum:
    """The witnesses that somebody trusts, no more than *faulty* of which may lie."""

    members: frozenset[bytes]

    @staticmethod
    def of(members: Iterable[bytes]) -> Quorum:
        """Raises LedgerError where these cannot be a quorum."""
        several = list(members)
        if not 0 < len(several) <= MEMBERS_MAX:
            raise LedgerError(f"{len(several)} witnesses", f"name 1 to {MEMBERS_MAX}")
        if len(set(several)) != len(several):
            raise LedgerError("a witness is named twice", "name each once: it has one vote")
        if not all(map(keys.key_is_sound, several)):
            raise LedgerError("a witness's key is none", "an Ed25519 public key has 32 bytes")
        return Quorum(frozenset(several))

    @property
    def faulty(self) -> int:
        """How many members may lie or be silent: f."""
        return (len(self.members) - 1) // 3

    @property
    def needed(self) -> int:
        """How many votes make a certificate: q."""
        return (len(self.members) + self.faulty + 2) // 2

    def check(self, certificate: Certificate, verify: Verify = keys.verify) -> None:
        """That enough members voted, and nobody else is named. Raises BadEntry."""
        witnesses = [witness for witness, _ in certificate.votes]
        if witnesses != sorted(set(witnesses)):
            raise BadEntry("the witnesses do not rise, or one is named twice")
        if not self.members.issuperset(witnesses):
            raise BadEntry("a witness that is not of the quorum")
        if len(witnesses) < self.needed:
            raise BadEntry(f"{len(witnesses)} votes where {self.needed} are needed")
        message = certificate.position.message
        if not all(verify(witness, message, sig) for witness, sig in certificate.votes):
            raise BadEntry("a witness's signature is not its own")

    def certifies(self, certificate: Certificate, verify: Verify = keys.verify) -> bool:
        """Whether *certificate* passes `check`."""
        try:
            self.check(certificate, verify)
        except BadEntry:
            return False
        return True


@define
class Tally:
    """The votes that an author gathers for one position: at most one of each member."""

    quorum: Quorum
    position: Position
    verify: Verify = keys.verify
    refused: int = 0
    """Votes for another position, of strangers, or not signed."""
    _votes: dict[bytes, bytes] = field(factory=dict)

    def add(self, vote: Vote) -> Certificate | None:
        """Count *vote*; the certificate, once there are enough."""
        is_ours = vote.position == self.position and vote.witness in self.quorum.members
        if not is_ours or not vote.is_signed(self.verify):
            self.refused += 1
            return None
        self._votes[vote.witness] = vote.sig
        if len(self._votes) < self.quorum.needed:
            return None
        return Certificate(self.position, tuple(sorted(self._votes.items())))

    def missing(self) -> frozenset[bytes]:
        """The members whose vote is not here."""
        return self.quorum.members - self._votes.keys()


def sign_vote(position: Position, witness: bytes, sign: Sign) -> Vote:
    """The vote of *witness*, which must have written it down before anybody sees it."""
    return Vote(position, witness, sign(position.message))
