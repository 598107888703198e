"""What an instrumented module says of itself: told by its bytes alone, or a clear error."""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import PeerError
from mesh.ids import DAG_PB, RAW, cid_of
from mesh.runtime import binary
from mesh.runtime.binaryen import options
from mesh.runtime.instrument import TESTED as VERSIONS
from mesh.runtime.instrument import name_of
from mesh.runtime.module import check_module
from mesh.runtime.origin import (
    BYTES_MAX,
    SECTION,
    SECTIONS_MAX,
    TESTED,
    Origin,
    add_origin,
    read_origin,
    why_fixed,
)
from mesh.runtime.rewrite import REWRITING, Policy, add_checks
from mesh.storage.unixfs import import_file

GUESTS = Path(__file__).resolve().parents[2] / "guests"
PLAIN = (GUESTS / "hostile.wasm").read_bytes()
MOVABLE = (GUESTS / "hostile.movable.wasm").read_bytes()
SOURCE = cid_of(RAW, b"source")
ORIGIN = Origin(SOURCE, "mesh-5/binaryen-116", Policy.OUTER)
VALUES = (1, "origin", SOURCE, "mesh-5/binaryen-116", "outer")


def with_section(body: bytes, name: str = SECTION) -> bytes:
    return PLAIN + binary.section(binary.CUSTOM, binary.text(name) + body).raw


def test_a_module_that_says_nothing_of_itself_has_no_origin() -> None:
    assert read_origin(PLAIN) is None
    assert read_origin(with_section(b"x", "mesh.origins")) is None


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("codec", [RAW, DAG_PB])
def test_an_origin_comes_back_as_it_was_given(policy: Policy, codec: int) -> None:
    origin = Origin(cid_of(codec, b"x"), "mesh-9/binaryen-999999", policy)
    assert read_origin(add_origin(PLAIN, origin)) == origin


def test_a_module_with_an_origin_is_the_module_that_it_was() -> None:
    said = add_origin(PLAIN, ORIGIN)
    assert said.startswith(PLAIN)
    assert not check_module(said)
    assert check_module(MOVABLE)


def test_the_committed_guest_says_what_it_was_made_of() -> None:
    source = import_file([PLAIN], lambda cid, data: None).cid
    assert read_origin(MOVABLE) == Origin(source, "mesh-5/binaryen-116", Policy.OUTER)


def test_only_what_a_tested_instrumenter_made_is_moved() -> None:
    """Another's may cost another number of units a move, or look whether it was moved."""
    assert why_fixed(MOVABLE) == ""
    assert "does not say" in why_fixed(PLAIN)
    other = add_origin(PLAIN, Origin(SOURCE, "mesh-2/binaryen-132", Policy.OUTER))
    assert "binaryen-132, which is not tested" in why_fixed(other)
    assert "says twice" in why_fixed(add_origin(MOVABLE, ORIGIN))
    assert tuple(name_of(version) for version in VERSIONS) == TESTED


def test_the_way_of_rewriting_has_a_number_of_its_own() -> None:
    """Where this fails on purpose, REWRITING is one more: auditors tell the two ways by it."""
    digests = {policy: sha256(add_checks(PLAIN, policy)[0]).hexdigest() for policy in Policy}
    assert (REWRITING, digests, " ".join(options("-", "-"))) == (5, REWRITTEN, SAID)


SAID = (
    "- --mvp-features --enable-mutable-globals --enable-nontrapping-float-to-int --enable-simd"
    " --enable-bulk-memory --enable-sign-ext --enable-reference-types --enable-multivalue"
    " --enable-extended-const --enable-multimemory -O2 --asyncify"
    " --pass-arg=asyncify-imports@mesh.yield --pass-arg=asyncify-onlylist@moving.*"
    " --pass-arg=asyncify-in-secondary-memory@1 --pass-arg=asyncify-secondary-memory-size@64"
    " -O3 -o -"
)
"""To Binaryen."""
REWRITTEN = {
    Policy.OUTER: "216dbece342071e370dd327a1dcf7d05ee74b175aae52bf272f61292c15a3964",
    Policy.ALL: "339a855c509f6d2a208c2f918f65e8d9d87a5f6a5d979041910890aa49bbe461",
}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((2, *VALUES[1:]), "version"),
        ((1, "orison", *VALUES[2:]), "shape"),
        (VALUES[:4], "shape"),
        ((*VALUES, 1), "shape"),
        ({1: 2}, "msgpack"),
        ((True, *VALUES[1:]), "canonical"),
        ((*VALUES[:2], b"no CID", *VALUES[3:]), "CID"),
        ((*VALUES[:3], "", "outer"), "proper name"),
        ((*VALUES[:3], "two words", "outer"), "proper name"),
        ((*VALUES[:3], "x" * 65, "outer"), "proper name"),
        ((*VALUES[:3], "\x1b[2J", "outer"), "proper name"),
        ((*VALUES[:4], "inner"), "Policy"),
    ],
    ids=str,
)
def test_an_origin_that_is_none_is_a_peers_error(values: object, reason: str) -> None:
    with pytest.raises(PeerError, match=reason):
        read_origin(with_section(msgpack.packb(values, use_bin_type=True)))


def test_bytes_that_are_not_canonical_or_too_many_are_a_peers_error() -> None:
    good = msgpack.packb(VALUES, use_bin_type=True)
    assert read_origin(with_section(good)) == ORIGIN
    longer = good.replace(b"\xa5outer", b"\xd9\x05outer")
    for body, reason in (
        (longer, "canonical"),
        (good + b"\0", "msgpack"),
        (b"", "msgpack"),
        (bytes(BYTES_MAX + 1), "too long"),
    ):
        with pytest.raises(PeerError, match=reason):
            read_origin(with_section(body))


def test_a_module_that_says_two_things_is_not_believed_either() -> None:
    with pytest.raises(PeerError, match="twice"):
        read_origin(add_origin(add_origin(PLAIN, ORIGIN), ORIGIN))


def test_sections_without_end_are_not_looked_through() -> None:
    with pytest.raises(PeerError, match="sections"):
        read_origin(binary.HEADER + b"\0\0" * (SECTIONS_MAX + 1))


@given(st.binary(max_size=80), st.integers(0, 400))
def test_whatever_bytes_there_are_an_error_is_a_peers(junk: bytes, cut: int) -> None:
    said = add_origin(PLAIN, ORIGIN)
    end = said[-100:]
    for wasm in (junk, binary.HEADER + junk, with_section(junk), said[: len(said) - cut]):
        with suppress(PeerError):
            read_origin(wasm)
    changed = said[:-100] + bytes(a ^ b for a, b in zip(end, junk.ljust(100, b"\0"), strict=False))
    with suppress(PeerError):
        read_origin(changed)
