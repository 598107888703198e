"""What an author and a witness say to each other, whatever carries it. Pure.

question = [1, [entry, ...]]      entries of one chain, encoded, seq by seq
answer   = [1, 1, vote]  |  [1, 2, author, net, seq]  |  [1, 3, reason, [entry, ...]]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, assert_never

from attrs import frozen

from ledger.codec import ENTRY_MAX, Value, pack, unpack
from ledger.errors import BadEntry
from ledger.fields import KEY, UINT, Rule, at_most, exactly, many, record, sized
from ledger.model import Entry
from ledger.quorum import VOTE_MAX, Vote

VERSION = 1
RUN_MAX = 64
"""Entries that one question may bring."""
EVIDENCE_MAX = 2
"""Entries that prove a fork."""
REASON_MAX = 200
"""Characters of a refusal, for people."""
QUESTION_MAX = RUN_MAX * (ENTRY_MAX + 3) + 16
"""Bytes of an encoded question."""
ANSWER_MAX = EVIDENCE_MAX * (ENTRY_MAX + 3) + 512
"""Bytes of an encoded answer."""


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

_ENTRIES = many(at_most(ENTRY_MAX), RUN_MAX)
_REASON = Rule(
    f"at most {REASON_MAX} printable ASCII characters",
    lambda value: (
        type(value) is str and len(value) <= REASON_MAX and value.isascii() and value.isprintable()
    ),
)
_QUESTION = {"version": exactly(VERSION), "run": _ENTRIES}
_VOTED = {"version": exactly(VERSION), "sort": exactly(1), "vote": at_most(VOTE_MAX)}
_BEHIND = {
    "version": exactly(VERSION),
    "sort": exactly(2),
    "author": KEY,
    "net": sized(8),
    "seq": UINT,
}
_REFUSED = {
    "version": exactly(VERSION),
    "sort": exactly(3),
    "reason": _REASON,
    "evidence": many(at_most(ENTRY_MAX), EVIDENCE_MAX),
}


def encode_question(run: Sequence[Entry]) -> bytes:
    """The canonical bytes of a question of at most `RUN_MAX` entries."""
    assert 0 < len(run) <= RUN_MAX, len(run)
    return pack((VERSION, tuple(entry.encode() for entry in run)))


def decode_question(data: bytes) -> tuple[bytes, ...]:
    """The entries of the question in *data*, for `Witness.ask`. Raises BadEntry."""
    run: tuple[bytes, ...] = record("question", unpack(data, QUESTION_MAX), _QUESTION)["run"]
    return run


def encode_answer(answer: Answer) -> bytes:
    """The canonical bytes of *answer*."""
    match answer:
        case Voted(vote):
            return pack((VERSION, 1, vote.encode()))
        case Behind(author, net, seq):
            return pack((VERSION, 2, author, net, seq))
        case Refused(reason, evidence):
            told = "".join(c if c.isascii() and c.isprintable() else "?" for c in reason)
            entries = tuple(entry.encode() for entry in evidence)
            return pack((VERSION, 3, told[:REASON_MAX], entries))
        case _:
            assert_never(answer)


def decode_answer(data: bytes) -> Answer:
    """The answer in *data*: shape only. Raises BadEntry."""
    value = unpack(data, ANSWER_MAX)
    match _sort(value):
        case 1:
            return Voted(Vote.decode(record("answer", value, _VOTED)["vote"]))
        case 2:
            fields = record("answer", value, _BEHIND)
            return Behind(fields["author"], fields["net"], fields["seq"])
        case 3:
            fields = record("answer", value, _REFUSED)
            return Refused(fields["reason"], tuple(map(Entry.decode, fields["evidence"])))
        case _:
            raise BadEntry("not an answer")


def _sort(value: Value) -> Value:
    return value[1] if type(value) is tuple and len(value) > 1 else 0
