"""An entry as the store files it: its bytes, and what they are found by. Pure."""

from __future__ import annotations

from attrs import frozen

from ledger.glance import Glance
from ledger.holdings import ChainKey
from ledger.model import Entry


@frozen
class Filed:
    """An entry and what it is filed under; *task* and *ref* are empty for a vouched one."""

    id: bytes
    key: ChainKey
    seq: int
    hlc: int
    is_checked: bool
    task: bytes
    ref: bytes
    body: bytes
    sig: bytes


def checked(entry: Entry) -> Filed:
    body = entry.content
    task, ref = body.nonce[:4], body.ref[:4]
    key = body.author, body.net
    return Filed(entry.id, key, body.seq, body.hlc, True, task, ref, entry.body, entry.sig)


def vouched(glance: Glance) -> Filed:
    return Filed(
        glance.id, glance.key, glance.seq, glance.hlc, False, b"", b"", glance.body, glance.sig
    )


def better(one: Filed, other: Filed) -> Filed:
    """Of two with one id the checked one; of two checked ones that of the smaller signature."""
    return min(one, other, key=lambda filed: (not filed.is_checked, filed.sig))
