"""An entry as the store files it: its bytes, and what they are found by. Pure."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from ledger.glance import Glance
from ledger.holdings import ChainKey
from ledger.model import AnyBody, Entry
from ledger.shapes import terms_shape
from ledger.validity import check_deal, flaw_of_deal


class Filed(Struct, frozen=True, gc=False):
    """An entry and what it is filed under; no *task* and *ref* for a vouched one."""

    id: bytes
    key: ChainKey
    seq: int
    hlc: int
    is_checked: bool
    task: int | None
    """`number` of the task's first 4 bytes."""
    ref: int | None
    """`number` of the first 4 bytes of the ALLOC's id."""
    body: bytes
    sig: bytes

    def raw(self) -> bytes:
        """The bytes: those of a smaller signature are smaller."""
        return self.id + self.sig + self.body


Draft: TypeAlias = tuple[Filed, AnyBody]
"""An entry on its way into the store, and its body: sound, but for its signatures."""


def draft(glance: Glance) -> Draft:
    """The entry, if it is one by its bytes alone; who signed is not looked at. Raises BadEntry."""
    body = glance.shape
    if body is not None:
        deal = terms_shape(body.terms)
        if deal is not None and not flaw_of_deal(body, deal):
            return _filed(glance, True, deal.nonce, deal.ref), body
    content = glance.entry().content
    check_deal(content)
    return _filed(glance, True, content.nonce, content.ref), content


def checked(entry: Entry) -> Filed:
    body = entry.content
    glance = Glance(
        entry.id, (body.author, body.net), body.seq, body.prev, body.hlc, entry.body, entry.sig
    )
    return _filed(glance, True, body.nonce, body.ref)


def vouched(glance: Glance) -> Filed:
    return _filed(glance, False, b"", b"")


def better(one: Filed, other: Filed) -> Filed:
    """Of two with one id the checked one; of two checked ones that of the smaller signature."""
    return min(one, other, key=lambda filed: (not filed.is_checked, filed.sig))


def number(data: bytes) -> int:
    """Bytes, as something that is cheaper to look for."""
    return int.from_bytes(data, "big", signed=True)


def _filed(glance: Glance, is_checked: bool, nonce: bytes, ref: bytes) -> Filed:
    return Filed(
        glance.id,
        glance.key,
        glance.seq,
        glance.hlc,
        is_checked,
        number(nonce[:4]) if nonce else None,
        number(ref[:4]) if ref else None,
        glance.body,
        glance.sig,
    )
