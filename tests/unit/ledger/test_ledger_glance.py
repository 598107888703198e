"""A glance at an entry reads its place, or refuses it."""

from __future__ import annotations

import pytest
from ledger_deals import ALICE, BOB, CAROL, Chain

from ledger.codec import Value, pack
from ledger.errors import BadEntry
from ledger.glance import Glance, opened, runs

SIG = bytes(64)
BODY: list[Value] = [1, b"testnet1", 3, bytes(32), 0, bytes(32), 7, 0, 0, b"", b"", b"", ()]


def glance(**changes: Value) -> Glance:
    names = ("version", "net", "kind", "author", "seq", "prev", "hlc")
    body = [changes.get(name, value) for name, value in zip(names, BODY, strict=False)]
    return Glance.of(pack((*body, *BODY[7:])), SIG)


def test_only_the_place_is_looked_at() -> None:
    seen = glance(kind="anything")
    assert (seen.key, seen.seq, seen.prev, seen.hlc) == ((bytes(32), b"testnet1"), 0, bytes(32), 7)
    assert glance(author=b"").key[0] == b""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("version", b"\x01"),
        ("net", b"short"),
        ("net", 8),
        ("author", bytes(31)),
        ("author", "text"),
        ("seq", b"0"),
        ("seq", ()),
        ("prev", bytes(33)),
        ("prev", 0),
        ("hlc", b""),
    ],
)
def test_a_place_that_is_none_is_refused(field: str, value: Value) -> None:
    with pytest.raises(BadEntry, match="not what a body begins with"):
        glance(**{field: value})


@pytest.mark.parametrize("body", [pack(7), pack(()), pack(tuple(BODY[:12])), pack((*BODY, 1))])
def test_a_body_of_another_shape_is_refused(body: bytes) -> None:
    with pytest.raises(BadEntry, match="not what a body begins with"):
        Glance.of(body, SIG)


@pytest.mark.parametrize(
    "envelope",
    [
        pack(()),
        pack(7),
        pack((b"", SIG, b"")),
        pack((b"", SIG[1:])),
        pack(("", SIG)),
        pack((b"", 64)),
    ],
)
def test_an_envelope_of_another_shape_is_refused(envelope: bytes) -> None:
    with pytest.raises(BadEntry, match="not a body and a signature"):
        opened(envelope)


def test_a_run_goes_on_while_entries_link() -> None:
    bob, carol = Chain(BOB), Chain(CAROL)
    first, second = bob.alloc(ALICE), bob.alloc(ALICE)
    fork = bob.fork()
    third, arm, other = bob.alloc(ALICE), fork.alloc(CAROL), carol.alloc(ALICE)
    glances = [Glance.decode(e.encode()) for e in (first, second, third, arm, other)]
    assert list(runs(glances)) == [glances[:3], glances[3:4], glances[4:]]
    assert list(runs([])) == []
