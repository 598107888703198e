"""Where a chain starts: at nothing, or at the ROTATE by which its key took another's place.

Pure.
"""

from __future__ import annotations

from attrs import evolve

from ledger.chain import GENESIS, Head
from ledger.model import Entry, Kind
from ledger.statements import KeyOp, Op


def is_rotate(entry: Entry) -> bool:
    """Whether *entry* hands its author's place on."""
    body = entry.content
    return body.kind is Kind.KEYOP and KeyOp.decode(body.terms).op is Op.ROTATE


def heir(rotate: Entry) -> Head:
    """The head of the chain, without entries, of the key that *rotate* names: it owes nothing."""
    assert is_rotate(rotate), rotate
    body = rotate.content
    return evolve(Head.start(body.peer, body.net), prev=rotate.id, hlc=body.hlc)


def start(first: Entry, before: Entry | None) -> Head:
    """What *first*, of seq 0, must follow; *before* is the entry of the id that its `prev` is."""
    body = first.content
    if body.prev != GENESIS and before is not None and is_rotate(before):
        inherited = heir(before)
        if (inherited.author, inherited.net) == (body.author, body.net):
            return inherited
    return Head.start(body.author, body.net)
