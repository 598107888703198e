"""The bytes of terms, bodies and entries, and the bill that follows from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attrs import asdict, evolve
from ledger_deals import ALICE, BOB, NET, Chain, alloc_terms, cid, settle_terms
from ledger_forgeries import EVERY

from ledger.codec import BODY_MAX, UINT_MAX, Value, pack, unpack
from ledger.errors import BadEntry
from ledger.fields import NAME_MAX
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
    amount_of,
    reserve_of,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "ledger_entries.json").read_text())
GOLDEN_KINDS = json.loads((Path(__file__).parents[2] / "golden" / "ledger_kinds.json").read_text())
TERMS = alloc_terms(ALICE, BOB)
KEY = bytes(32)


def with_terms(**changes: object) -> bytes:
    """Encoded terms of which nobody checked a thing."""
    return pack(tuple((asdict(TERMS, recurse=False) | changes).values()))


def with_body(**changes: object) -> bytes:
    body = Chain(BOB).alloc(ALICE).content
    fields = asdict(body, recurse=False) | {"kind": int(body.kind)} | changes
    return pack(tuple(fields.values()))


def test_the_bytes_of_version_1_never_change() -> None:
    chain = Chain(BOB)
    alloc = chain.alloc(ALICE)
    settle = chain.settle(ALICE, alloc)
    for entry, golden in zip((alloc, settle), GOLDEN["entries"], strict=True):
        assert entry.encode().hex() == golden["entry"]
        assert entry.id.hex() == golden["id"]
        assert entry.cid().hex() == golden["cid"]
        assert entry.content.terms.hex() == golden["terms"]
        assert entry.content.deal.amount == golden["amount"]
        assert Entry.decode(bytes.fromhex(golden["entry"])) == entry


def test_the_bytes_of_the_other_kinds_never_change() -> None:
    golden = {one["kind"]: one for one in GOLDEN_KINDS}
    assert golden.keys() == {kind.name for kind in Kind}
    for kind, entry in EVERY.items():
        assert entry.encode().hex() == golden[kind.name]["entry"]
        assert entry.id.hex() == golden[kind.name]["id"]


def test_terms_come_back_from_their_bytes() -> None:
    terms = settle_terms(
        Chain(BOB).alloc(ALICE),
        escalations=((1, 2, 3, 4),),
        migrations=((1, ALICE.key, BOB.key, cid(b"state")),),
    )
    assert Terms.decode(terms.encode()) == terms


def test_a_body_comes_back_from_its_bytes() -> None:
    entry = Chain(BOB).alloc(ALICE)
    body = Body.decode(entry.body)
    assert body.encode() == entry.body
    assert body.id == entry.id
    assert body.kind is Kind.ALLOC


def test_the_longest_terms_fit_a_body() -> None:
    state = cid(b"state")
    terms = evolve(
        TERMS,
        inputs=(state,) * INPUTS_MAX,
        outputs=(state,) * OUTPUTS_MAX,
        meter="m" * NAME_MAX,
        exit=EXIT_MAX,
        escalations=((UINT_MAX,) * 4,) * ESCALATIONS_MAX,
        migrations=((UINT_MAX, KEY, KEY, state),) * MIGRATIONS_MAX,
        arbiter=KEY,
        ref=KEY,
        **dict.fromkeys(
            ("fence", "price", "fee", "reserve", "fuel", "amount", "grace_ms"), UINT_MAX
        ),
        **dict.fromkeys(("start_ms", "end_ms", "deadline_ms"), UINT_MAX),
    )
    assert Terms.decode(terms.encode()) == terms
    full = with_body(seq=UINT_MAX, hlc=UINT_MAX, posted=UINT_MAX, pending=UINT_MAX, terms=b"")
    assert len(full) + 2 + TERMS_MAX <= BODY_MAX


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("version", 0),
        ("nonce", bytes(15)),
        ("fence", b""),
        ("seller", bytes(31)),
        ("buyer", bytes(33)),
        ("job", cid(b"")[:-1]),
        ("module", b"\x01\x55\x1b\x20" + bytes(32)),
        ("module", b"\x00\x55\x12\x20" + bytes(32)),
        ("inputs", (cid(b""),) * (INPUTS_MAX + 1)),
        ("inputs", (bytes(36),)),
        ("inputs", cid(b"")),
        ("outputs", (cid(b""),) * (OUTPUTS_MAX + 1)),
        ("meter", ""),
        ("meter", "m" * (NAME_MAX + 1)),
        ("meter", "m\n"),
        ("meter", "mètre"),
        ("meter", b"meter"),
        ("unit", "uC/s"),
        ("price", "1"),
        ("fuel", ()),
        ("exit", EXIT_MAX + 1),
        ("escalations", ((1, 2, 3),)),
        ("escalations", ((1, 2, 3, b""),)),
        ("escalations", ((1, 2, 3, 4),) * (ESCALATIONS_MAX + 1)),
        ("migrations", ((1, KEY, KEY, KEY),)),
        ("migrations", ((1, KEY, KEY, cid(b"")),) * (MIGRATIONS_MAX + 1)),
        ("arbiter", bytes(31)),
        ("ref", bytes(1)),
    ],
)
def test_terms_out_of_range_are_refused_by_name(field: str, value: Value) -> None:
    with pytest.raises(BadEntry, match=f"terms.{field}: not "):
        Terms.decode(with_terms(**{field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("net", bytes(7)),
        ("kind", b"\x01"),
        ("author", bytes(31)),
        ("seq", b""),
        ("prev", b""),
        ("hlc", "now"),
        ("posted", ()),
        ("pending", b""),
        ("peer", bytes(64)),
        ("terms", ()),
        ("terms", bytes(TERMS_MAX + 1)),
        ("peer_sig", bytes(63)),
        ("ext", (1,)),
        ("ext", b""),
    ],
)
def test_a_body_out_of_range_is_refused_by_name(field: str, value: Value) -> None:
    with pytest.raises(BadEntry, match=f"body.{field}: not "):
        Body.decode(with_body(**{field: value}))


@pytest.mark.parametrize("kind", [0, 13, 255, UINT_MAX])
def test_a_kind_of_a_later_version_is_refused(kind: int) -> None:
    with pytest.raises(BadEntry, match=f"kind {kind} .*is not known to version 1"):
        Body.decode(with_body(kind=kind))


@pytest.mark.parametrize("data", [b"\x90", b"\x01", b"\xc4\x00", b"\x93\xc4\x00\xc4\x00\xc4\x00"])
def test_another_shape_is_refused(data: bytes) -> None:
    for decode in (Terms.decode, Body.decode, Entry.decode):
        with pytest.raises(BadEntry, match="not an array of"):
            decode(data)


@pytest.mark.parametrize("length", [0, 63, 65])
def test_an_entry_needs_a_signature_of_64_bytes(length: int) -> None:
    entry = Chain(BOB).alloc(ALICE)
    with pytest.raises(BadEntry, match=r"entry\.sig"):
        Entry.decode(Entry(entry.body, bytes(length)).encode())


def test_an_entry_with_a_bad_body_is_refused_when_decoded() -> None:
    with pytest.raises(BadEntry, match=r"body\.net"):
        Entry.decode(Entry(with_body(net=b""), bytes(64)).encode())
    with pytest.raises(BadEntry, match="4097 bytes where 4096 are allowed"):
        Entry.decode(Entry(bytes(BODY_MAX + 1), bytes(64)).encode())


def test_the_id_is_of_the_body_only() -> None:
    entry = Chain(BOB).alloc(ALICE)
    assert Entry(entry.body, bytes(64)).id == entry.id
    assert entry.cid() == bytes.fromhex("0181041220") + entry.id
    assert unpack(entry.encode(), 8192) == (entry.body, entry.sig)


@pytest.mark.parametrize(
    ("price", "fuel", "fee", "exit", "reserve", "amount"),
    [
        (500, 10**9, 0, 0, 10**6, 500),
        (500, 999_999_999, 0, 0, 10**6, 499),
        (1, 999_999_999, 0, 0, 10**6, 0),
        (500, 10**9, 40, 0, 10**6, 540),
        (500, 10**9, 40, 1, 10**6, 500),
        (500, 10**9, 40, 0, 510, 510),
        (500, 10**9, 40, 137, 450, 450),
        (500, 0, 40, 0, 10**6, 40),
        (UINT_MAX, UINT_MAX, 0, 0, UINT_MAX, UINT_MAX),
    ],
)
def test_the_bill_rounds_down_and_stops_at_the_reserve(
    price: int, fuel: int, fee: int, exit: int, reserve: int, amount: int
) -> None:
    terms = evolve(TERMS, price=price, fuel=fuel, fee=fee, exit=exit, reserve=reserve)
    assert amount_of(terms) == amount


def test_the_reserve_covers_every_bill_of_a_run_within_its_limit() -> None:
    assert reserve_of(500, 10**10, 40) == 5040
    for fuel in (0, 1, 10**9, 10**10):
        terms = evolve(TERMS, fuel=fuel, reserve=UINT_MAX)
        assert amount_of(terms) <= reserve_of(TERMS.price, 10**10, TERMS.fee)


def test_the_net_is_eight_bytes() -> None:
    assert len(NET) == 8
    assert Chain(BOB).alloc(ALICE).content.net == NET
