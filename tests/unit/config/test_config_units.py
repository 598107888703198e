"""Sizes, durations, money and cores: exact both ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import units


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 << 30),
        ("512 MiB", 512 << 20),
        ("1.5KiB", 1536),
        ("500MB", 500_000_000),
        ("1TiB", 1 << 40),
        ("12", 12),
        ("12B", 12),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "4gib", "GiB", "-1GiB", "1e3", "0.3B", "4 GiB 2", "٤GiB"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "ms"), [("250ms", 250), ("90s", 90_000), ("1.5h", 5_400_000), ("7d", 604_800_000)]
)
def test_a_duration_is_read(text: str, ms: int) -> None:
    assert units.parse_duration(text) == ms


@pytest.mark.parametrize("text", ["90", "1w", "0.5ms", "soon"])
def test_a_duration_without_a_known_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "ucr"), [("0.0400", 40_000), ("1", 1_000_000), ("0.000001", 1), ("2.5 cr", 2_500_000)]
)
def test_money_is_read_in_credits_and_kept_in_micro_credits(text: str, ucr: int) -> None:
    assert units.parse_money(text) == ucr


@pytest.mark.parametrize("text", ["0.0000001", "-1", "1e-3", "1,5", "€1"])
def test_money_finer_than_a_micro_credit_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        units.parse_money(text)


def test_money_shows_four_decimals_and_more_only_where_they_matter() -> None:
    shown = [units.format_money(ucr) for ucr in (0, 40_000, 400, 1, 1_234_567, -50_000)]
    assert shown == ["0.0000", "0.0400", "0.0004", "0.000001", "1.234567", "-0.0500"]
    assert units.show_money(40_000) == "0.0400 cr"


def test_counts_of_fuel_may_be_multiples() -> None:
    assert [units.parse_count(text) for text in ("7", "50M", "2G", "1.5k")] == [
        7,
        50_000_000,
        2_000_000_000,
        1500,
    ]


def test_people_see_short_sizes_and_durations() -> None:
    assert [units.show_size(n) for n in (12, 18_637, 6_012_954_214)] == [
        "12 B",
        "18.2 KiB",
        "5.6 GiB",
    ]
    assert [units.show_duration(n) for n in (840, 12_340, 240_000, 7_500_000, 90_000_000)] == [
        "840 ms",
        "12.3 s",
        "4 min",
        "2 h 5 min",
        "1 d 1 h",
    ]


@given(st.integers(0, 1 << 50))
def test_every_size_survives_being_written(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == size


@given(st.integers(0, 10**12))
def test_every_duration_survives_being_written(ms: int) -> None:
    assert units.parse_duration(units.format_duration(ms)) == ms


@given(st.integers(0, 10**15))
def test_every_amount_survives_being_written(ucr: int) -> None:
    assert units.parse_money(units.format_money(ucr)) == ucr


@given(st.integers(1, 10**7))
def test_every_number_of_cores_survives_being_written(milli: int) -> None:
    assert units.parse_cores(units.format_cores(milli)) == milli
