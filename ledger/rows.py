"""The rows of the store's file as entries, each held to its id. Pure."""

from __future__ import annotations

from typing import TypeAlias

from ledger.database import RESTORE
from ledger.errors import BadEntry, Corruption
from ledger.filed import number
from ledger.glance import Glance
from ledger.model import Entry

Row: TypeAlias = tuple[int, bytes]
"""(n, what `Filed.raw` makes of an entry)"""


def found_by(entry_id: bytes) -> tuple[int, bytes]:
    return (number(entry_id[:8]), entry_id)


def _cut(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """(id, body, sig)"""
    return raw[:32], raw[96:], raw[32:96]


def entry_of(row: Row) -> Entry:
    entry_id, body, sig = _cut(row[1])
    entry = Entry(body, sig)
    if entry.id != entry_id:
        raise Corruption(f"entry r-{entry_id.hex()} does not hash to its id", RESTORE)
    return entry


def glance_of(row: Row) -> Glance:
    entry_id, body, sig = _cut(row[1])
    try:
        glance = Glance.of(body, sig)
    except BadEntry:
        glance = None
    if glance is None or glance.id != entry_id:
        raise Corruption(f"entry r-{entry_id.hex()} does not hash to its id", RESTORE)
    return glance
