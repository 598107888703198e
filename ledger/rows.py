"""A row of the store's table of entries, and the entry that it is. Pure."""

from __future__ import annotations

from typing import TypeAlias

from ledger.database import RESTORE
from ledger.errors import BadEntry, Corruption
from ledger.glance import Glance
from ledger.model import Entry, Kind
from ledger.statements import Checkpoint

SELECT = "SELECT n, raw FROM entry "

Row: TypeAlias = tuple[int, bytes]
"""(n, what `Filed.raw` makes of an entry)"""


def cut(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """(id, body, sig)"""
    return raw[:32], raw[96:], raw[32:96]


def entry_of(row: Row) -> Entry:
    entry_id, body, sig = cut(row[1])
    entry = Entry(body, sig)
    if entry.id != entry_id:
        raise Corruption(f"entry r-{entry_id.hex()} does not hash to its id", RESTORE)
    return entry


def glance_of(row: Row) -> Glance:
    entry_id, body, sig = cut(row[1])
    try:
        glance = Glance.of(body, sig)
    except BadEntry:
        glance = None
    if glance is None or glance.id != entry_id:
        raise Corruption(f"entry r-{entry_id.hex()} does not hash to its id", RESTORE)
    return glance


def root_of(head: Entry) -> bytes:
    """What a HEAD says of the entries before it; nothing, if it is another kind of entry."""
    is_head = head.content.kind is Kind.HEAD
    return Checkpoint.decode(head.content.terms).root if is_head else b""
