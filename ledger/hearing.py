"""What a witness is asked and what it answers, as bytes. Pure.

    question = [entry, ...]      encoded entries of one chain, in order
    answer   = [0, vote] or [1, author, net, seq] or [2, reason] or [2, reason, entry, entry]

Canonical as everything of the ledger's (codec.py), though nobody signs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from ledger.codec import ENTRY_MAX, TEXT_MAX, pack, unpack
from ledger.errors import BadEntry
from ledger.fields import KEY, UINT, exactly, record, sized
from ledger.model import Entry
from ledger.quorum import Vote
from ledger.witness import RUN_MAX, Answer, Behind, Refused, Voted

QUESTION_MAX = RUN_MAX * (ENTRY_MAX + 3) + 3
ANSWER_MAX = 2 * ENTRY_MAX + 512

_VOTED, _BEHIND, _REFUSED = 0, 1, 2
_BEHIND_RULES = {"kind": exactly(_BEHIND), "author": KEY, "net": sized(8), "seq": UINT}


def encode_question(run: Sequence[bytes]) -> bytes:
    """Ask about *run*: 1 to `RUN_MAX` encoded entries."""
    assert 0 < len(run) <= RUN_MAX, len(run)
    return pack(tuple(run))


def decode_question(data: bytes) -> tuple[bytes, ...]:
    """The run asked about; what is in it is for the witness to look at. Raises BadEntry."""
    run = unpack(data, QUESTION_MAX)
    if type(run) is not tuple or not 0 < len(run) <= RUN_MAX:
        raise BadEntry(f"question: not 1 to {RUN_MAX} entries")
    entries = [entry for entry in run if type(entry) is bytes]
    if len(entries) != len(run):
        raise BadEntry("question: not bytes")
    return tuple(entries)


def encode_answer(answer: Answer) -> bytes:
    """What the witness says; a reason is cut to what a text may be."""
    match answer:
        case Voted(vote):
            return pack((_VOTED, vote.encode()))
        case Behind(author, net, seq):
            return pack((_BEHIND, author, net, seq))
        case Refused(reason, evidence):
            told = reason.encode("ascii", "replace")[:TEXT_MAX].decode()
            return pack((_REFUSED, told, *(entry.encode() for entry in evidence)))
        case _:
            assert_never(answer)


def decode_answer(data: bytes) -> Answer:
    """The inverse of `encode_answer`; nothing in it is checked yet. Raises BadEntry."""
    match unpack(data, ANSWER_MAX):
        case (0, bytes(vote)):
            return Voted(Vote.decode(vote))
        case (1, *_) as behind:
            fields = record("behind", behind, _BEHIND_RULES)
            return Behind(fields["author"], fields["net"], fields["seq"])
        case (2, str(reason)):
            return Refused(reason)
        case (2, str(reason), bytes(one), bytes(other)):
            return Refused(reason, (Entry.decode(one), Entry.decode(other)))
        case _:
            raise BadEntry("answer: none that a witness gives")
