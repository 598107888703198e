"""Canonical bytes: one encoding for each value, and nothing else is accepted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ledger.codec import ARRAY_MAX, ENTRY_MAX, UINT_MAX, Value, pack, unpack
from ledger.errors import BadEntry

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "canonical.json").read_text())
GOOD = [vector for vector in VECTORS if vector["valid"]]
HOSTILE = [vector for vector in VECTORS if not vector["valid"]]


def test_there_are_enough_hostile_vectors() -> None:
    assert len(HOSTILE) >= 50


@pytest.mark.parametrize("vector", HOSTILE, ids=lambda v: v["name"])
def test_a_hostile_encoding_is_refused(vector: dict[str, str]) -> None:
    with pytest.raises(BadEntry):
        unpack(bytes.fromhex(vector["data"]), ENTRY_MAX)


@pytest.mark.parametrize("vector", GOOD, ids=lambda v: v["name"])
def test_a_canonical_encoding_comes_back_as_the_same_bytes(vector: dict[str, str]) -> None:
    data = bytes.fromhex(vector["data"])
    assert pack(unpack(data, ENTRY_MAX)) == data


def test_the_limit_is_the_callers() -> None:
    data = pack(bytes(100))
    assert unpack(data, len(data)) == bytes(100)
    with pytest.raises(BadEntry, match="102 bytes where 101 are allowed"):
        unpack(data, 101)


@pytest.mark.parametrize(
    "value",
    [True, None, 1.0, -1, UINT_MAX + 1, [1], {}, "e\u0301", (0,) * (ARRAY_MAX + 1), ((None,),)],
    ids=repr,
)
def test_packing_outside_the_subset_is_our_own_mistake(value: Value) -> None:
    with pytest.raises(AssertionError):
        pack(value)


def test_the_reason_says_what_is_wrong() -> None:
    with pytest.raises(BadEntry, match="float is not in the subset"):
        unpack(b"\x91\xcb" + bytes(8), 100)
    with pytest.raises(BadEntry, match="not the shortest encoding"):
        unpack(b"\xcc\x01", 100)
