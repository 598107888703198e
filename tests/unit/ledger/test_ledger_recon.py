"""Reconciliation: both sides learn exactly what differs, for little; a liar learns nothing else."""

from __future__ import annotations

import random
from contextlib import suppress
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from ledger.recon import (
    BOUND_MAX,
    LISTED_MAX,
    NAME_LENGTH,
    Ask,
    Limits,
    List,
    RecError,
    Reconciliation,
    Row,
    Rows,
    Span,
    decode,
    encode,
)

SALT = b"a salt"
EVERYTHING = Span(b"", None)


def row(number: int) -> Row:
    mark = sha256(number.to_bytes(8, "big")).digest()
    return mark[:8], mark


def rows(numbers: set[int]) -> Rows:
    return Rows(sorted(map(row, numbers)))


def reconciled(ours: Rows, theirs: Rows, limits: Limits | None = None) -> tuple[int, int]:
    """Messages and bytes until both are silent, having learnt the difference together."""
    sides = Reconciliation(ours, SALT, limits), Reconciliation(theirs, SALT, limits)
    sides[0].open()
    messages = size = silent = 0
    while silent < 2:
        speaker, hearer = sides[messages % 2], sides[1 - messages % 2]
        message = speaker.speak()
        hearer.hear(message)
        messages, size = messages + 1, size + len(message)
        silent = silent + 1 if not message else 0
    for one, other in (sides, sides[::-1]):
        lacked = {one._rows.marks[at] for at in one.found.lacked}
        lacked |= {mark for mark in one._rows.marks if one.name(mark) in other.found.wanted}
        assert lacked == set(one._rows.marks) - set(other._rows.marks)
    return messages - 2, size


@settings(max_examples=200)
@given(
    some.sets(some.integers(0, 400), max_size=300),
    some.sets(some.integers(0, 400), max_size=300),
)
def test_both_sides_learn_exactly_what_differs(ours: set[int], theirs: set[int]) -> None:
    messages, _ = reconciled(rows(ours), rows(theirs))
    assert messages <= 5


@pytest.mark.parametrize("differing", [0, 1, 10, 300])
def test_few_differences_among_many_cost_few_bytes(differing: int) -> None:
    common = set(range(10_000))
    extra = set(range(10_000, 10_000 + differing))
    messages, size = reconciled(rows(common), rows(common | extra))
    assert messages <= 5
    assert size <= 700 + 900 * differing


def test_what_does_not_fit_into_one_message_comes_with_the_next() -> None:
    ours, theirs = set(range(4000)), set(range(100, 4100))
    limits = Limits(rounds_max=200, message_max=4096, ranges_max=64)
    messages, _ = reconciled(rows(ours), rows(theirs), limits)
    assert messages > 10


def test_differences_above_the_limit_are_counted_and_left_to_the_next_session() -> None:
    ours, theirs = rows(set(range(50))), Rows([])
    one, other = Reconciliation(ours, SALT, Limits(found_max=20)), Reconciliation(theirs, SALT)
    other.open()
    one.hear(other.speak())
    assert len(one.found.lacked) == 20
    assert one.found.left_over == 30


def test_a_fingerprint_is_neither_a_xor_nor_blind_to_the_count() -> None:
    zero, mark = bytes(32), b"\x07" * 32
    sets = [[], [(b"a", zero)], [(b"a", mark), (b"b", mark)], [(b"a", zero), (b"b", zero)]]
    seen = {Rows(chosen).fingerprint(range(len(chosen))) for chosen in sets}
    assert len(seen) == 4


def test_names_differ_from_session_to_session() -> None:
    one, other = Reconciliation(Rows([]), b"one"), Reconciliation(Rows([]), b"other")
    assert one.name(bytes(32)) != other.name(bytes(32))
    assert len(one.name(bytes(32))) == NAME_LENGTH


def heard(message: bytes, opened: bool = True) -> Reconciliation:
    side = Reconciliation(rows(set(range(1000))), SALT)
    if opened:
        side.open()
        side.speak()
    side.hear(message)
    return side


LOW, MIDDLE, HIGH = b"\x10", b"\x50", b"\x90"
SOME = bytes(16)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\x01\x50\x01" + SOME + b"\x01\x10\x01" + SOME, "overlap or descend"),
        (b"\x01\x50\x01" + SOME + b"\x01\x50\x01" + SOME, "overlap or descend"),
        (b"\xff\x01" + SOME + b"\xff\x01" + SOME, "overlap or descend"),
        (b"\x00\x01" + SOME, "overlap or descend"),
        (b"\xff\x00", "mode 0 is not known here"),
        (b"\xff\x07", "mode 7 is not known here"),
        (b"\xff\x01" + SOME[:-1], "cut short"),
        (b"\xff", "cut short"),
        (b"\x05abc", "cut short"),
        (bytes([BOUND_MAX + 1]) + bytes(BOUND_MAX + 1) + b"\x01" + SOME, "a bound of 81 bytes"),
        (bytes([255, 2, LISTED_MAX + 1]) + bytes(9 * NAME_LENGTH), "a list of 65 names"),
        (b"\xff\x02\x02" + bytes(16), "a name twice"),
        (b"\x01\x10\x00" * 40_000, "overlap or descend"),
        (bytes(300_000), "300000 bytes where"),
    ],
)
def test_a_malformed_message_is_refused(message: bytes, reason: str) -> None:
    for opened in (True, False):
        with pytest.raises(RecError, match=reason):
            heard(message, opened)


def test_a_flood_of_ranges_is_refused() -> None:
    bounds = [number.to_bytes(3, "big") for number in range(1, 40_000)]
    message = b"".join(b"\x03" + bound + b"\x00" for bound in bounds) + b"\xff\x01" + SOME
    with pytest.raises(RecError, match="more than 32768 ranges"):
        heard(message, opened=False)


def test_the_question_coming_back_is_no_progress() -> None:
    side = Reconciliation(rows(set(range(1000))), SALT)
    side.open()
    message = side.speak()
    changed = [Ask(part.span, SOME) for part in decode(message, Limits())]
    with pytest.raises(RecError, match="no progress"):
        side.hear(encode(changed))


def test_an_answer_that_nobody_asked_for_is_refused() -> None:
    side = heard(b"")
    asked = decode(Reconciliation.speak(opened(rows(set(range(1000))))), Limits())
    across = Span(asked[0].span.low, asked[1].span.high)
    with pytest.raises(RecError, match="nobody asked"):
        side.hear(encode([List(across, ())]))
    side = heard(encode([List(asked[0].span, ())]))
    with pytest.raises(RecError, match="nobody asked"):
        side.hear(encode([List(asked[0].span, ())]))


def opened(rows: Rows) -> Reconciliation:
    side = Reconciliation(rows, SALT)
    side.open()
    return side


def test_a_short_set_is_listed_and_then_asks_nothing_more() -> None:
    side = opened(rows({1, 2, 3}))
    (part,) = decode(side.speak(), Limits())
    assert isinstance(part, List)
    with pytest.raises(RecError, match="nobody asked"):
        side.hear(encode([Ask(EVERYTHING, SOME)]))


def test_rounds_without_end_are_refused() -> None:
    side = Reconciliation(rows(set(range(100_000))), SALT, Limits(rounds_max=3))
    span = EVERYTHING
    for _ in range(3):
        side.hear(encode([Ask(span, SOME)]))
        part = decode(side.speak(), Limits())[0]
        span = Span(part.span.low + b"\x00", part.span.high)
    with pytest.raises(RecError, match="more than 3 rounds"):
        side.hear(encode([Ask(span, SOME)]))


@settings(max_examples=300)
@given(some.binary(max_size=200), some.booleans())
def test_garbage_is_refused_or_harmless(message: bytes, opened: bool) -> None:
    try:
        side = heard(message, opened)
    except RecError:
        return
    side.speak()


@settings(max_examples=200)
@given(some.randoms(use_true_random=False))
def test_a_damaged_message_is_refused_or_harmless(dice: random.Random) -> None:
    message = bytearray(opened(rows(set(range(0, 1000, 3)))).speak())
    for _ in range(3):
        message[dice.randrange(len(message))] = dice.randrange(256)
    with suppress(RecError):
        heard(bytes(message), opened=False).speak()


def test_a_message_comes_back_from_its_bytes() -> None:
    parts = [
        Ask(Span(b"", LOW), SOME),
        List(Span(LOW, MIDDLE), (b"a name 8",)),
        Ask(Span(HIGH, None), SOME),
    ]
    assert decode(encode(parts), Limits()) == parts
