"""What a witness is asked and answers, as bytes: nothing is lost, and garbage is only refused."""

from __future__ import annotations

from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_deals import ALICE, BOB, NET, Chain
from ledger_witnesses import WITNESSES

from ledger.codec import ENTRY_MAX, TEXT_MAX, UINT_MAX, Value, pack
from ledger.errors import BadEntry
from ledger.hearing import (
    ANSWER_MAX,
    QUESTION_MAX,
    decode_answer,
    decode_question,
    encode_answer,
    encode_question,
)
from ledger.quorum import Position, sign_vote
from ledger.witness import RUN_MAX, Answer, Behind, Refused, Voted

ENTRY = Chain(BOB).alloc(ALICE)
RIVAL = Chain(BOB).alloc(ALICE, price=1)
VOTE = sign_vote(Position.of(ENTRY), WITNESSES[0].key, WITNESSES[0].sign)
ANSWERS: list[Answer] = [
    Voted(VOTE),
    Behind(BOB.key, NET, 0),
    Behind(BOB.key, NET, UINT_MAX),
    Refused(""),
    Refused("its key is retired"),
    Refused("it forked its chain", (ENTRY, RIVAL)),
]
KEYS = st.binary(min_size=32, max_size=32)
SEVERAL = st.lists(st.binary(max_size=64), min_size=1, max_size=RUN_MAX)


def _composed(text: str) -> str:
    """The one form of it that is packed."""
    return normalize("NFC", text)


VALUES: st.SearchStrategy[Value] = st.recursive(
    st.integers(0, UINT_MAX) | st.binary(max_size=40) | st.text(max_size=8).map(_composed),
    lambda inner: st.lists(inner, max_size=6).map(tuple),
    max_leaves=12,
)


def refused(data: bytes) -> None:
    """That *data*, whatever it is read as, is understood or refused, and nothing else happens."""
    for decode in (decode_question, decode_answer):
        try:
            decode(data)
        except BadEntry:
            continue


# --- questions ------------------------------------------------------------------------------------


@given(SEVERAL)
def test_a_question_comes_as_it_was_asked(run: list[bytes]) -> None:
    assert decode_question(encode_question(run)) == tuple(run)


def test_the_longest_question_fits() -> None:
    run = [bytes(ENTRY_MAX)] * RUN_MAX
    data = encode_question(run)
    assert len(data) <= QUESTION_MAX
    assert decode_question(data) == tuple(run)


@pytest.mark.parametrize(
    "value",
    [(), (b"",) * (RUN_MAX + 1), (b"entry", 1), ("entry",), b"entry", 0, ((b"entry",),)],
    ids=["nothing", "too many", "a number", "a text", "bytes", "no list", "nested"],
)
def test_what_is_no_question_is_refused(value: Value) -> None:
    with pytest.raises(BadEntry, match="question"):
        decode_question(pack(value))


def test_a_question_over_its_bound_is_refused_unread() -> None:
    with pytest.raises(BadEntry):
        decode_question(pack((bytes(QUESTION_MAX),)))


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_an_answer_comes_as_it_was_given(answer: Answer) -> None:
    data = encode_answer(answer)
    assert len(data) <= ANSWER_MAX
    assert decode_answer(data) == answer


@given(KEYS, st.integers(0, UINT_MAX))
def test_where_a_witness_is_behind_comes_as_it_was_said(author: bytes, seq: int) -> None:
    answer = Behind(author, NET, seq)
    assert decode_answer(encode_answer(answer)) == answer


@given(st.text(max_size=2 * TEXT_MAX))
def test_a_reason_is_cut_to_what_a_text_may_be_and_is_always_readable(reason: str) -> None:
    told = decode_answer(encode_answer(Refused(reason)))
    assert isinstance(told, Refused)
    assert told.reason.isascii()
    assert len(told.reason) == min(len(reason), TEXT_MAX)


def test_the_longest_evidence_fits() -> None:
    chain = Chain(BOB)
    many = tuple(bytes([1, 0x55, 0x12, 0x20]) + bytes([n]) * 32 for n in range(48))
    arms = chain.fork().alloc(ALICE, inputs=many), chain.alloc(ALICE, inputs=many, price=1)
    answer = Refused("x" * TEXT_MAX, arms)
    data = encode_answer(answer)
    assert len(data) <= ANSWER_MAX
    assert decode_answer(data) == answer


@pytest.mark.parametrize(
    "value",
    [
        (),
        (0,),
        (0, b""),
        (0, VOTE.encode(), b""),
        (1, BOB.key, NET),
        (1, BOB.key[:31], NET, 0),
        (1, BOB.key, NET, b"0"),
        (2,),
        (2, b"why"),
        (2, "why", ENTRY.encode()),
        (2, "why", ENTRY.encode(), b"garbage"),
        (2, "why", ENTRY.encode(), RIVAL.encode(), RIVAL.encode()),
        (3, "why"),
        ("0", VOTE.encode()),
        b"yes",
        1,
    ],
    ids=str,
)
def test_what_no_witness_says_is_refused(value: Value) -> None:
    with pytest.raises(BadEntry):
        decode_answer(pack(value))


# --- hostile bytes --------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    refused(data)


@given(VALUES)
def test_well_made_garbage_is_refused(value: Value) -> None:
    refused(pack(value))


@given(st.sampled_from(ANSWERS), st.data())
def test_a_bent_answer_is_refused_or_says_something_else(
    answer: Answer, data: st.DataObject
) -> None:
    """No two encodings mean the same."""
    wire = bytearray(encode_answer(answer))
    at = data.draw(st.integers(0, len(wire) - 1))
    wire[at] ^= data.draw(st.integers(1, 255))
    try:
        found = decode_answer(bytes(wire))
    except BadEntry:
        return
    assert found != answer
    assert encode_answer(found) == bytes(wire)


@given(st.sampled_from(ANSWERS), st.data())
def test_half_an_answer_is_none(answer: Answer, data: st.DataObject) -> None:
    wire = encode_answer(answer)
    with pytest.raises(BadEntry):
        decode_answer(wire[: data.draw(st.integers(0, len(wire) - 1))])
