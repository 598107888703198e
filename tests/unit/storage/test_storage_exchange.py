"""Blocks between two parties: what is said is bounded, and asking comes to an end."""

from __future__ import annotations

import msgpack
import pytest

from mesh.errors import Corruption, PeerError, Refused, Unavailable
from mesh.ids import DAG_PB, RAW, Cid, cid_of
from mesh.storage.blocks import BLOCK_BYTES_MAX, MemoryBlocks
from mesh.storage.exchange import (
    ASKED_MAX,
    FRUITLESS_MAX,
    IN_FLIGHT_MAX,
    MESSAGE_BYTES_MAX,
    REPLY_BYTES,
    UNASKED_MAX,
    Plan,
    Tally,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    serve,
)


def block(index: int, length: int = 10) -> bytes:
    return index.to_bytes(4, "big") + bytes(length - 4)


def name(index: int, length: int = 10) -> Cid:
    return cid_of(RAW, block(index, length))


def named(index: int, length: int = 10) -> tuple[Cid, bytes]:
    return name(index, length), block(index, length)


def plan(bytes_max: int = 1_000_000, blocks_max: int = 1_000) -> Plan:
    return Plan(bytes_max, blocks_max, Tally())


def wanting(count: int, **limits: int) -> Plan:
    """A plan that knows of *count* blocks, none of them here."""
    made = plan(**limits)
    made.learn(name(index) for index in range(count))
    while found := made.next_unlooked():
        made.looked(found)
    return made


def test_a_request_and_a_reply_survive_the_wire() -> None:
    cids = tuple(name(index) for index in range(ASKED_MAX))
    assert decode_request(encode_request(cids)) == cids
    blocks = tuple(named(index) for index in range(ASKED_MAX))
    assert decode_reply(encode_reply(blocks)) == blocks
    assert decode_reply(encode_reply([])) == ()


BAD_FRAMES: dict[str, bytes] = {
    "nothing": b"",
    "garbage": b"\xc1\xff\x00",
    "trailing bytes": msgpack.packb([1, [name(0)]]) + b"\0",
    "a number": msgpack.packb(1),
    "a map": msgpack.packb({1: 2}),
    "another version": msgpack.packb([2, [name(0)]]),
    "a version of true": msgpack.packb([True, [name(0)]]),
    "three fields": msgpack.packb([1, [name(0)], 3]),
    "no list": msgpack.packb([1, name(0)]),
    "text": msgpack.packb([1, ["cid"]]),
    "an extension": msgpack.packb([1, [msgpack.ExtType(1, b"x")]]),
    "deep nesting": b"\x91" * 5_000 + b"\x01",
    "more than may be asked": msgpack.packb([1, [name(index) for index in range(ASKED_MAX + 1)]]),
    "a long message": msgpack.packb([1, [bytes(MESSAGE_BYTES_MAX)]]),
    "a list that claims to be huge": b"\x92\x01\xdd\xff\xff\xff\xff",
}
BAD_REQUESTS = BAD_FRAMES | {
    "nothing asked": msgpack.packb([1, []]),
    "the same twice": msgpack.packb([1, [name(0), name(0)]]),
    "no CID": msgpack.packb([1, [b"x" * 36]]),
    "a pair": msgpack.packb([1, [list(named(0))]]),
}
BAD_REPLIES = BAD_FRAMES | {
    "a CID alone": msgpack.packb([1, [[name(0)]]]),
    "no pair": msgpack.packb([1, [name(0)]]),
    "no CID": msgpack.packb([1, [[b"x" * 36, b"x"]]]),
    "text for a block": msgpack.packb([1, [[name(0), "x"]]]),
    "a block of another hash": msgpack.packb([1, [[name(0), block(1)]]]),
    "a block over the limit": msgpack.packb([1, [list(named(0, BLOCK_BYTES_MAX + 1))]]),
}


@pytest.mark.parametrize("data", BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_a_malformed_request_is_the_peers_fault(data: bytes) -> None:
    with pytest.raises(PeerError):
        decode_request(data)


@pytest.mark.parametrize("data", BAD_REPLIES.values(), ids=BAD_REPLIES.keys())
def test_a_malformed_reply_is_the_peers_fault(data: bytes) -> None:
    with pytest.raises(PeerError):
        decode_reply(data)


def test_a_reply_brings_what_is_here_and_leaves_out_what_is_not() -> None:
    blocks = MemoryBlocks()
    blocks.put_many([named(0), named(2)])
    reply = serve(blocks, encode_request([name(0), name(1), name(2)]))
    assert decode_reply(reply) == (named(0), named(2))


def test_a_reply_brings_only_what_the_asker_may_read() -> None:
    blocks = MemoryBlocks()
    blocks.put_many([named(0), named(1)])
    reply = serve(blocks, encode_request([name(0), name(1)]), lambda cid: cid == name(1))
    assert decode_reply(reply) == (named(1),)


def test_a_reply_stops_where_it_is_full_and_never_exceeds_a_message() -> None:
    blocks = MemoryBlocks()
    many = [named(index, 250_000) for index in range(10)]
    blocks.put_many(many)
    reply = serve(blocks, encode_request([cid for cid, _ in many]))
    assert decode_reply(reply) == tuple(many[:3])
    assert 3 * 250_000 < len(reply) <= REPLY_BYTES + 1_000
    longest = [named(index, BLOCK_BYTES_MAX) for index in range(2)]
    blocks.put_many(longest)
    reply = serve(blocks, encode_request([cid for cid, _ in longest]))
    assert decode_reply(reply) == (longest[0],)
    assert len(reply) < MESSAGE_BYTES_MAX


def test_our_own_broken_block_is_not_served() -> None:
    class Broken(MemoryBlocks):
        def get(self, cid: Cid) -> bytes:
            raise Corruption("bit rot")

    with pytest.raises(Corruption):
        serve(Broken(), encode_request([name(0)]))


def test_what_is_wanted_is_shared_among_the_requests_in_flight() -> None:
    made = wanting(10)
    asks = [made.next_ask() for _ in range(IN_FLIGHT_MAX)]
    assert all(asks)
    assert len(wanting(900).next_ask()) == ASKED_MAX


def test_breadth_first_and_each_block_once() -> None:
    made = plan()
    made.learn([name(0), name(1), name(0)])
    assert made.next_unlooked() == [name(0), name(1)]
    made.looked([name(0)])
    made.learn([name(1), name(2)])
    assert made.next_unlooked() == [name(2)]
    made.looked([name(2)])
    assert made.next_ask() == [name(0)]
    assert made.next_ask() == [name(2)]
    assert made.next_ask() == []


def test_what_a_reply_leaves_out_is_asked_again_first() -> None:
    made = wanting(12)
    asked = made.next_ask()
    assert made.accept(asked, [named(0)]) == [named(0)]
    assert asked[1:] == made.next_ask()[: len(asked) - 1]


def test_a_lost_request_is_asked_again_first() -> None:
    made = wanting(8)
    asked = made.next_ask()
    made.missed(asked, "timed out")
    assert made.next_ask() == asked


def test_three_fruitless_replies_in_a_row_end_it() -> None:
    made = wanting(1)
    for _ in range(FRUITLESS_MAX - 1):
        assert made.accept(made.next_ask(), []) == []
    with pytest.raises(Unavailable, match="none of the blocks asked for: 3 times in a row, at baf"):
        made.accept(made.next_ask(), [])
    assert made.tally.fruitless == FRUITLESS_MAX


def test_a_fruitful_reply_forgives_the_fruitless_ones_before() -> None:
    made = wanting(3)
    for index in range(3):
        for _ in range(FRUITLESS_MAX - 1):
            made.missed(made.next_ask(), "timed out")
        made.accept(made.next_ask(), [named(index)])
    assert made.next_ask() == []
    assert made.received == 30


def test_more_bytes_than_allowed_are_refused_before_they_are_stored() -> None:
    made = wanting(8, bytes_max=19)
    asked = made.next_ask()
    with pytest.raises(Refused, match="19 bytes"):
        made.accept(asked, [named(0), named(1)])
    assert made.received == 0
    assert made.tally.refused == 1


def test_more_blocks_than_allowed_are_refused() -> None:
    made = plan(blocks_max=3)
    with pytest.raises(Refused, match="more than the 3 blocks"):
        made.learn(name(index) for index in range(4))
    assert made.tally.refused == 1


def test_blocks_that_nobody_asked_for_are_dropped_and_counted() -> None:
    made = wanting(1)
    assert made.accept(made.next_ask(), [named(0), named(7), named(7)]) == [named(0)]
    assert made.tally.statistics() == {
        "received": 10,
        "blocks": 1,
        "unasked": 2,
        "fruitless": 0,
        "refused": 0,
    }


def test_a_peer_that_keeps_sending_what_nobody_asked_for_is_at_fault() -> None:
    made = wanting(2)
    made.accept(made.next_ask(), [named(0), *(named(9) for _ in range(UNASKED_MAX))])
    with pytest.raises(PeerError, match="nobody asked for"):
        made.accept(made.next_ask(), [named(1), named(9)])


def test_a_raw_block_and_a_node_of_the_same_bytes_are_two_blocks() -> None:
    data = b"\x0a\x02\x08\x01"
    blocks = MemoryBlocks()
    blocks.put(cid_of(RAW, data), data)
    request = encode_request([cid_of(DAG_PB, data), cid_of(RAW, data)])
    assert decode_reply(serve(blocks, request)) == ((cid_of(RAW, data), data),)
