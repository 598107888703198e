"""The quick way in and the one that gives reasons let in the same bytes, with the same values."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest
from attrs import evolve
from hypothesis import example, given, settings
from hypothesis import strategies as some
from ledger_deals import ALICE, BOB, CAROL, alloc_terms, cid, settle_terms
from ledger_forgeries import EVERY, FORGERIES
from msgspec import structs

from ledger.codec import BODY_MAX, ENTRY_MAX, UINT_MAX, unpack
from ledger.errors import BadEntry
from ledger.filed import checked, draft
from ledger.glance import Glance
from ledger.model import (
    ESCALATIONS_MAX,
    EXIT_MAX,
    INPUTS_MAX,
    MIGRATIONS_MAX,
    OUTPUTS_MAX,
    TERMS_MAX,
    Body,
    Entry,
    Kind,
    Terms,
)
from ledger.shapes import BodyShape, body_shape, entry_shape, terms_shape
from ledger.validity import check_deal, check_signatures

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "canonical.json").read_text())
TWO_SIGN = (Kind.ALLOC, Kind.USE, Kind.SETTLE, Kind.VOID)
BARE = alloc_terms(ALICE, BOB)
FULL = settle_terms(
    EVERY[Kind.ALLOC],
    escalations=((1, 2, 3, 4), (UINT_MAX, 0, 0, UINT_MAX)),
    migrations=((1, ALICE.key, BOB.key, cid(b"state")),),
    arbiter=CAROL.key,
)
ENTRIES = [entry.encode() for entry in EVERY.values()]
BODIES = [entry.body for entry in EVERY.values()]
TERMS = [BARE.encode(), FULL.encode(), *(EVERY[kind].content.terms for kind in TWO_SIGN)]
FORGED = [forge() for forge, _ in FORGERIES.values()]


def explained(explain: Callable[[bytes], object], data: bytes) -> object:
    """What the decoder of rules reads, None where it gives a reason."""
    try:
        return explain(data)
    except BadEntry:
        return None


def agree_on_terms(data: bytes) -> None:
    shape = terms_shape(data)
    assert (Terms(**structs.asdict(shape)) if shape else None) == explained(Terms.explain, data)


def agree_on_body(data: bytes) -> None:
    shape, body = body_shape(data), explained(Body.explain, data)
    if isinstance(body, Body) and body.kind not in TWO_SIGN:
        body = None
    assert (Body(**structs.asdict(shape)) if shape else None) == body
    if shape is not None:
        assert type(shape.kind) is Kind


def agree_on_entry(data: bytes) -> None:
    shape = entry_shape(data)
    assert (Entry(shape.body, shape.sig) if shape else None) == explained(Entry.explain, data)


AGREE = {agree_on_terms: TERMS, agree_on_body: BODIES, agree_on_entry: ENTRIES}
CASES = [(agree, data) for agree, pile in AGREE.items() for data in pile]


def test_what_is_good_is_read_the_quick_way() -> None:
    assert all(map(terms_shape, TERMS))
    assert all(map(entry_shape, ENTRIES))
    assert [body_shape(body) is not None for body in BODIES] == [kind in TWO_SIGN for kind in EVERY]


@pytest.mark.parametrize("agree", AGREE)
def test_every_vector_of_the_encoding_gets_one_verdict(agree: Callable[[bytes], None]) -> None:
    for vector in VECTORS:
        agree(bytes.fromhex(vector["data"]))


@pytest.mark.parametrize("forged", FORGED, ids=FORGERIES.keys())
def test_every_forgery_gets_one_verdict(forged: Entry) -> None:
    agree_on_entry(forged.encode())
    agree_on_body(forged.body)
    content = explained(Body.explain, forged.body)
    if isinstance(content, Body):
        agree_on_terms(content.terms)
    agree_on_drafts(forged)


def agree_on_drafts(entry: Entry) -> None:
    """What the store files, by the quick way and by the rules; and whether it is signed."""
    glance = explained(Glance.decode, entry.encode())
    quick = explained(lambda _: draft(glance), b"") if isinstance(glance, Glance) else None
    try:
        check_deal(Body.explain(entry.body))
        slow = checked(entry)
    except BadEntry:
        assert quick is None
        return
    assert isinstance(quick, tuple)
    assert quick[0] == slow


@settings(max_examples=1500, deadline=None)
@given(some.sampled_from(CASES), some.randoms(use_true_random=False))
def test_no_changed_byte_divides_them(
    case: tuple[Callable[[bytes], None], bytes], dice: random.Random
) -> None:
    agree, data = case
    changed = bytearray(data)
    for _ in range(dice.randrange(1, 4)):
        place = dice.randrange(len(changed))
        match dice.randrange(4):
            case 0:
                changed[place] ^= 1 << dice.randrange(8)
            case 1:
                changed[place] = dice.randrange(256)
            case 2:
                changed.insert(place, dice.randrange(256))
            case _:
                del changed[place]
    agree(bytes(changed))


# Values near every edge of every rule, and of every type that the encoding has or has not.
EDGES = some.sampled_from(
    (
        *(0, 1, 2, 127, 128, 255, 256, 65_535, 65_536, EXIT_MAX, EXIT_MAX + 1, UINT_MAX),
        *(UINT_MAX + 1, 2**64 - 1, -1, -128, True, False, None, 1.0, 0.0),
        *(bytes(n) for n in (0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 36, 63, 64, 65)),
        *(b"\x01\x7f\x12\x20" + bytes(32), b"\x01\x80\x12\x20" + bytes(32), cid(b"") + b"\0"),
        *("", "m", "m" * 64, "m" * 65, "m\n", "mètre", "e\u0301", "uC/Gfuel", "uC/s", "\x7f"),
        *((), (1,), (cid(b""),), (bytes(36),), ((1, 2, 3, 4),), ((1, 2, 3),), ((1, 2, 3, -1),)),
        *((cid(b""),) * n for n in (OUTPUTS_MAX, OUTPUTS_MAX + 1, INPUTS_MAX, INPUTS_MAX + 1)),
        *(((1, 2, 3, 4),) * n for n in (ESCALATIONS_MAX, ESCALATIONS_MAX + 1)),
        *(((1, bytes(32), bytes(32), cid(b"")),) * n for n in (1, MIGRATIONS_MAX + 1)),
        *(((1, bytes(32), bytes(32), bytes(36)),), ((1.0, bytes(32), bytes(32), cid(b"")),)),
        *(
            {},
            {1: 2},
            msgpack.ExtType(1, b"x"),
            [(), ((),)],
            bytes(TERMS_MAX),
            bytes(TERMS_MAX + 1),
        ),
    )
)


@settings(max_examples=1500, deadline=None)
@given(some.sampled_from((*TERMS, *BODIES)), some.data())
def test_no_value_at_the_edge_of_a_rule_divides_them(data: bytes, draw: some.DataObject) -> None:
    fields = unpack(data, BODY_MAX)
    assert isinstance(fields, tuple)
    changed: list[object] = list(fields)
    for _ in range(draw.draw(some.integers(1, 2))):
        changed[draw.draw(some.integers(0, len(changed) - 1))] = draw.draw(EDGES)
    wire = msgpack.packb(changed)
    agree_on_terms(wire)
    agree_on_body(wire)
    agree_on_entry(msgpack.packb((wire, draw.draw(EDGES))))


@settings(max_examples=500, deadline=None)
@given(some.binary(max_size=300))
@example(b"\x92\xc4\x00\xd9\x01\xff")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
@example(b"\x91" * ENTRY_MAX)
def test_no_bytes_at_all_divide_them(data: bytes) -> None:
    for agree in AGREE:
        agree(data)


@settings(max_examples=400, deadline=None)
@given(some.sampled_from(TWO_SIGN), some.data())
def test_a_deal_is_judged_alike(kind: Kind, draw: some.DataObject) -> None:
    """Any field of a deal another value of its type: the rules find the same in both."""
    names = (
        "seller",
        "buyer",
        "arbiter",
        "ref",
        "outputs",
        "exit",
        "amount",
        "fee",
        "fuel",
        "price",
    )
    deal, body = EVERY[kind].content.deal, EVERY[kind].content
    pool = [getattr(other, name) for other in (deal, BARE, FULL) for name in names]
    name = draw.draw(some.sampled_from(names))
    value = draw.draw(some.sampled_from([v for v in pool if type(v) is type(getattr(deal, name))]))
    terms = evolve(deal, **{name: value}).encode()
    author = draw.draw(some.sampled_from((body.author, body.peer)))
    changed = evolve(body, terms=terms, author=author, kind=draw.draw(some.sampled_from(TWO_SIGN)))
    agree_on_drafts(Entry(changed.encode(), bytes(64)))


def test_signatures_of_a_shape_are_those_of_its_entry() -> None:
    for kind in TWO_SIGN:
        entry = EVERY[kind]
        _, body = draft(Glance.decode(entry.encode()))
        assert isinstance(body, BodyShape)
        check_signatures(entry)
        assert (body.author, body.peer, body.peer_sig) == (
            entry.content.author,
            entry.content.peer,
            entry.content.peer_sig,
        )


def test_a_rarer_kind_is_read_by_the_rules() -> None:
    for kind in set(Kind) - set(TWO_SIGN):
        glance = Glance.decode(EVERY[kind].encode())
        assert glance.shape is None
        assert draft(glance)[0] == checked(EVERY[kind])
