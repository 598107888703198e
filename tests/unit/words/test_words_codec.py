"""Bytes of messages: what was said is what is heard; everything else is the peer's fault."""

from __future__ import annotations

from collections.abc import Callable

import msgpack
import pytest
from attrs import evolve, frozen
from market_players import NEEDS, RESULT, WORK, ask, cid, offer, order

from mesh import codec
from mesh.errors import PeerError
from mesh.ids import EntryId, PeerId, TaskId
from mesh.market.order import Answer, State, TaskRecord
from mesh.messages import (
    Accepted,
    Award,
    Bid,
    Declined,
    Done,
    Lost,
    Message,
    Outlook,
    Quantiles,
    Refusal,
    Release,
    Renew,
    Renewed,
    Revoked,
    Settled,
    SignedOffer,
)

TASK = TaskId(bytes(range(16)))
PEER = PeerId(bytes(range(32)))
SIGNATURE = bytes(64)
MESSAGES: tuple[Message, ...] = (
    ask(TASK),
    Bid(TASK, 1, b"terms", SIGNATURE, Quantiles(1, 2, 3), 987, 1, 2_000, "idle"),
    Refusal(TASK, 1, "too little cpu free", may_change=True),
    Award(TASK, 1, b"entry", 15_000),
    Accepted(TASK, 1),
    Declined(TASK, 1, "the hold had ended", b"terms", SIGNATURE),
    Release(TASK, 1, "another bid was better"),
    Renew(TASK, 1, 7, 10**9),
    Renewed(TASK, 1, 7, 15_000),
    Revoked(TASK, 1, "cancelled", is_owed=True),
    Done(TASK, 1, RESULT, b"terms", SIGNATURE),
    Lost(TASK, 1, "the worker was killed", b"terms", SIGNATURE),
    Settled(TASK, 1, b"entry"),
)
OFFER = offer(
    PEER, outlook=(Outlook(300_000, Quantiles(1, 2, 3), Quantiles(4, 5, 6)),), cached=(b"abcd",)
)
ACCEPTED = [1, 4, bytes(16), 1]


def pack(value: object) -> bytes:
    data: bytes = msgpack.packb(value, use_bin_type=True)
    return data


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_is_heard_as_it_was_said(message: Message) -> None:
    heard = codec.decode(codec.encode(message))
    assert heard == message
    assert type(heard) is type(message)


def test_the_numbers_of_the_kinds_never_change() -> None:
    told = [msgpack.unpackb(codec.encode(message))[1] for message in MESSAGES]
    assert told == list(range(13))


def test_offers_are_heard_as_they_were_said() -> None:
    signed = SignedOffer(codec.encode_offer(OFFER), SIGNATURE)
    assert codec.decode_signed_offer(codec.encode_signed_offer(signed)) == signed
    assert codec.decode_offer(signed.offer) == OFFER


def test_a_record_is_read_as_it_was_written() -> None:
    answer = Answer(1, PEER, 10_100, 990, 12_000, 9_000, True, "idle", "won")
    open_ = TaskRecord(order(PEER), State.RUNNING, submitted_ms=5, answers=(answer,))
    ended = evolve(
        open_, state=State.DONE, executor=PEER, alloc=EntryId(PEER), result=RESULT, reason="é"
    )
    for record in (open_, ended):
        assert codec.load(TaskRecord, codec.dump(record)) == record


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        pack(None),
        pack({}),
        pack([]),
        pack([1]),
        pack("text"),
        pack([0, *ACCEPTED[1:]]),
        pack([2, *ACCEPTED[1:]]),
        pack([True, *ACCEPTED[1:]]),
        pack([1.0, *ACCEPTED[1:]]),
        pack(["1", *ACCEPTED[1:]]),
        pack([1, 13, bytes(16), 1]),
        pack([1, -1, bytes(16), 1]),
        pack([1, True, bytes(16), 1]),
        pack([1, None, bytes(16), 1]),
        pack([1, [4], bytes(16), 1]),
        pack(ACCEPTED) + b"\0",
        pack(ACCEPTED)[:-1],
    ],
)
def test_another_version_or_kind_is_the_peers_fault(frame: bytes) -> None:
    with pytest.raises(PeerError):
        codec.decode(frame)


@pytest.mark.parametrize("depth", [10, 500, 1_000, 1_023, 5_000])
def test_a_kind_nested_without_end_is_the_peers_fault(depth: int) -> None:
    with pytest.raises(PeerError):
        codec.decode(b"\x92\x01" + b"\x91" * depth + b"\x01")


@pytest.mark.parametrize(
    "fields",
    [
        [bytes(16)],
        [bytes(16), 1, 1],
        [bytes(15), 1],
        ["0123456789abcdef", 1],
        [bytes(16), -1],
        [bytes(16), 2**63],
        [bytes(16), True],
        [bytes(16), 1.0],
        [bytes(16), None],
        [bytes(16), [1]],
        [bytes(16), msgpack.ExtType(5, b"")],
        [bytes(16), msgpack.Timestamp(0)],
    ],
)
def test_fields_of_another_shape_are_the_peers_fault(fields: list[object]) -> None:
    with pytest.raises(PeerError):
        codec.decode(pack([1, 4, *fields]))


def change(message: Message, place: int, value: object) -> bytes:
    parts = msgpack.unpackb(codec.encode(message))
    parts[place] = value
    return pack(parts)


@pytest.mark.parametrize(
    ("message", "place", "value"),
    [
        (MESSAGES[2], 4, "x" * 513),  # text
        (MESSAGES[2], 4, "\U0001f600" * 513),
        (MESSAGES[2], 5, 1),  # a truth value
        (MESSAGES[3], 4, bytes(8 * 1024 + 1)),  # bytes
        (MESSAGES[0], 4, [1, 2, 3]),  # a value of another shape
        (MESSAGES[0], 4, bytes(16)),
        (MESSAGES[1], 6, [1, 2]),
        (MESSAGES[10], 4, None),
    ],
)
def test_fields_beyond_their_limits_are_the_peers_fault(
    message: Message, place: int, value: object
) -> None:
    with pytest.raises(PeerError):
        codec.decode(change(message, place, value))


def test_the_longest_text_is_allowed_in_any_script() -> None:
    refusal = Refusal(TASK, 1, "\U0001f600" * 512, may_change=False)
    assert codec.decode(codec.encode(refusal)) == refusal


def test_a_cid_of_another_kind_is_the_peers_fault() -> None:
    for wrong in (b"", WORK.job[:-1], b"\0" + WORK.job[1:], "text"):
        work = msgpack.unpackb(codec.encode(ask(TASK)))[4]
        work[0] = wrong
        with pytest.raises(PeerError):
            codec.decode(change(ask(TASK), 4, work))


def test_too_many_inputs_are_the_peers_fault() -> None:
    many = tuple(cid(str(number)) for number in range(257))
    with pytest.raises(PeerError):
        codec.decode(codec.encode(ask(TASK, work=evolve(WORK, inputs=many))))


@pytest.mark.parametrize(
    ("decode", "limit"),
    [
        (codec.decode, codec.FRAME_MAX),
        (codec.decode_offer, codec.OFFER_MAX),
        (codec.decode_signed_offer, codec.OFFER_MAX),
        (lambda data: codec.load(TaskRecord, data), codec.RECORD_MAX),
    ],
)
def test_bytes_beyond_the_limit_are_not_looked_at(
    decode: Callable[[bytes], object], limit: int
) -> None:
    with pytest.raises(PeerError, match=f"{limit + 1} bytes where at most {limit}"):
        decode(bytes(limit + 1))
    with pytest.raises(PeerError, match="version"):
        decode(pack(bytes(100)))


def test_an_unknown_state_is_no_record() -> None:
    record = codec.dump(TaskRecord(order(PEER), State.RUNNING, submitted_ms=5))
    with pytest.raises(PeerError, match="is not a State"):
        codec.load(TaskRecord, record.replace(b"\xa7running", b"\xa7runninh"))


def test_a_value_of_another_class_is_not_loaded() -> None:
    @frozen
    class Other:
        task: TaskId

    with pytest.raises(PeerError):
        codec.load(TaskRecord, codec.dump(Other(TASK)))
    with pytest.raises(PeerError):
        codec.load(Other, codec.dump(NEEDS))
