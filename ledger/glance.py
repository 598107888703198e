"""An entry at a glance: its place on its author's chain, before anything else of it is looked at.

Enough to see what links to what: an id is a hash, so an author's signature of one entry vouches
for every entry below it. Whether an entry is valid takes `Entry.decode` and `chain.check_entry`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any, cast

from msgspec import Struct

from ledger.codec import BODY_MAX, ENTRY_MAX, unpack
from ledger.errors import BadEntry
from ledger.holdings import ChainKey
from ledger.keys import SIGNATURE_LENGTH
from ledger.model import VERSION, Entry
from ledger.shapes import BodyShape, body_shape, entry_shape

_FIELDS = 13
_TYPES = (bytes, bytes, int, bytes, int)


class Glance(Struct, frozen=True, gc=False):
    """Canonical bytes whose first fields are those of a body; the rest may be anything."""

    id: bytes
    key: ChainKey
    """(author, net)"""
    seq: int
    prev: bytes
    hlc: int
    body: bytes
    sig: bytes
    shape: BodyShape | None = None
    """The whole body, if it is one of the common ones."""

    @staticmethod
    def decode(data: bytes) -> Glance:
        """The entry that *data* encodes. Raises BadEntry."""
        envelope = entry_shape(data) or opened(data)
        return Glance.of(envelope.body, envelope.sig)

    @staticmethod
    def of(body: bytes, sig: bytes) -> Glance:
        """The entry of these two. Raises BadEntry."""
        if (shape := body_shape(body)) is not None:
            key = (shape.author, shape.net)
            entry_id = sha256(body).digest()
            return Glance(entry_id, key, shape.seq, shape.prev, shape.hlc, body, sig, shape)
        fields = unpack(body, BODY_MAX)
        if type(fields) is tuple and len(fields) == _FIELDS and fields[0] == VERSION:
            _, net, _, author, seq, prev, hlc, *_ = cast(tuple[Any, ...], fields)
            types = (type(net), type(author), type(seq), type(prev), type(hlc))
            if types == _TYPES and len(net) == 8 and len(author) in (0, 32) and len(prev) == 32:
                return Glance(sha256(body).digest(), (author, net), seq, prev, hlc, body, sig)
        raise BadEntry("body: not what a body begins with")

    def entry(self) -> Entry:
        """The entry; its content is yet to be decoded."""
        return Entry(self.body, self.sig)

    def follows(self, before: Glance) -> bool:
        """Whether it says that *before* is the entry before it."""
        return self.prev == before.id and self.seq == before.seq + 1 and self.key == before.key


def opened(data: bytes) -> Entry:
    """The entry that *data*, at most `ENTRY_MAX` bytes, encodes; its content is yet to be decoded.

    Raises BadEntry.
    """
    fields = unpack(data, ENTRY_MAX)
    if type(fields) is tuple and tuple(map(type, fields)) == (bytes, bytes):
        body, sig = cast(tuple[bytes, bytes], fields)
        if len(sig) == SIGNATURE_LENGTH:
            return Entry(body, sig)
    raise BadEntry("entry: not a body and a signature")


def runs(glances: Iterable[Glance]) -> Iterator[list[Glance]]:
    """*glances* in runs, each as long as can be, of entries that follow one another."""
    run: list[Glance] = []
    for glance in glances:
        if run and not glance.follows(run[-1]):
            yield run
            run = []
        run.append(glance)
    if run:
        yield run
