"""Manifests: one form for one job, and nothing but PeerError for anything else."""

from __future__ import annotations

import random

import msgpack
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import PeerError, Refused
from mesh.ids import DAG_PB, RAW, cid_of
from mesh.runtime.manifest import (
    ARGS_MAX,
    EXIT_CODE_MAX,
    JOB_BYTES_MAX,
    METER,
    STATUSES,
    STDOUT_MAX,
    Job,
    decode,
    encode,
    exit_status,
)

JOB = Job(
    module=cid_of(RAW, b"module"),
    args=("eins", "zwei", "ß"),
    env=(("LANG", "C.UTF-8"), ("EMPTY", "")),
    inputs=(("text", cid_of(RAW, b"text")), ("folder", cid_of(DAG_PB, b"folder"))),
    fuel=10**12,
    memory=64 << 20,
    disk=1 << 30,
    wall_ms=60_000,
    seed=bytes(range(16)),
    t0_ns=1_700_000_000_000_000_000,
    stdout_max=1 << 16,
)


def test_a_job_comes_back_from_its_manifest() -> None:
    assert decode(encode(JOB)) == JOB


def test_the_form_of_a_manifest_is_pinned() -> None:
    """Receipts name its hash: whoever changes it needs a new version."""
    value = msgpack.unpackb(encode(JOB))
    assert value[:3] == [1, "job", JOB.module]
    assert len(value) == 13
    assert cid_of(RAW, encode(JOB)).hex().startswith("01551220")
    assert encode(JOB) == encode(evolve(JOB))


@pytest.mark.parametrize(
    "change",
    [
        {"fuel": 0},
        {"fuel": 1 << 63},
        {"memory": 1000},
        {"memory": 5 << 30},
        {"disk": -1},
        {"wall_ms": 0},
        {"t0_ns": -1},
        {"stdout_max": STDOUT_MAX + 1},
        {"seed": b"short"},
        {"args": ("nul\0",)},
        {"args": ("\ud800",)},
        {"args": ("x",) * (ARGS_MAX + 1)},
        {"args": ("x" * JOB_BYTES_MAX,)},
        {"args": ("x" * 30000,) * 3},
        {"env": (("", "x"),)},
        {"env": (("A=B", "x"),)},
        {"env": (("A", "x\0"),)},
    ],
)
def test_a_job_that_cannot_be_run_is_refused_with_its_field(change: dict[str, object]) -> None:
    with pytest.raises(Refused) as caught:
        encode(evolve(JOB, **change))  # type: ignore[arg-type]
    assert next(iter(change)) in caught.value.reason or "manifest" in caught.value.reason


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\0b", "a\nb", "x" * 256, "\ud800"])
def test_an_input_cannot_be_named_like_a_path(name: str) -> None:
    with pytest.raises(Refused, match="inputs"):
        encode(evolve(JOB, inputs=((name, JOB.module),)))


def test_two_inputs_cannot_share_a_name() -> None:
    with pytest.raises(Refused, match="twice"):
        encode(evolve(JOB, inputs=(("a", JOB.module), ("a", JOB.module))))


@pytest.mark.parametrize("at", range(13))
@pytest.mark.parametrize("value", [None, True, -1, 1.5, "x", b"x", [], [[]], [["x"]], [[1, 2]], {}])
def test_a_field_of_another_kind_is_the_peers_error(at: int, value: object) -> None:
    fields = msgpack.unpackb(encode(JOB))
    if fields[at] == value or (at in (3, 4, 5) and value == []):
        return
    fields[at] = value
    try:
        decode(msgpack.packb(fields))
    except PeerError:
        return
    assert at in (3, 9, 11), "only args, and numbers within their bounds, may be so"


def test_another_form_of_the_same_job_is_the_peers_error() -> None:
    fields = msgpack.unpackb(encode(JOB))
    with pytest.raises(PeerError):
        decode(msgpack.packb(fields)[:-1] + b"\xce\x00\x01\x00\x00")
    with pytest.raises(PeerError):
        decode(encode(JOB) + b"\0")
    with pytest.raises(PeerError):
        decode(msgpack.packb(fields, use_single_float=True, use_bin_type=False))


def test_a_manifest_beyond_its_size_is_not_even_parsed() -> None:
    with pytest.raises(PeerError, match="long"):
        decode(bytes(JOB_BYTES_MAX + 1))


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_job_or_the_peers_error(data: bytes) -> None:
    with pytest.raises(PeerError):
        decode(data)


def test_a_damaged_manifest_is_another_job_or_the_peers_error() -> None:
    chance = random.Random(7)
    whole = encode(JOB)
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            job = decode(bytes(data))
        except PeerError:
            continue
        assert encode(job) == bytes(data)


def test_only_success_is_zero_and_no_two_endings_share_a_number() -> None:
    assert exit_status("exited", 0) == 0
    assert [exit_status("exited", code) for code in (1, 127, 128, 2**32 - 1)] == [1, 127, 127, 127]
    numbers = [exit_status(status, 0) for status in STATUSES[1:]]
    assert sorted(set(numbers)) == numbers
    assert min(numbers) > EXIT_CODE_MAX
    assert max(numbers) < 255


def test_the_meter_names_its_version() -> None:
    assert METER == "wasmtime-50.0.1/fuel/unrolled-1"
