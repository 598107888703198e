"""Names: what people read and type is exactly what programs mean, and nothing else is taken."""

from __future__ import annotations

from hashlib import sha256

import pytest

from mesh.ids import (
    DAG_PB,
    RAW,
    EntryId,
    PeerId,
    TaskId,
    check_cid,
    cid_codec,
    cid_of,
    format_cid,
    format_entry,
    format_peer,
    format_task,
    parse_cid,
    parse_entry,
    parse_peer,
    parse_task,
    short_peer,
    task_id,
)

PEER = PeerId(bytes(range(32)))
TASK = TaskId(bytes(range(16)))
ENTRY = EntryId(bytes(range(32)))
HELLO = cid_of(RAW, b"hello\n")


def test_a_cid_is_that_of_ipfs() -> None:
    # `printf 'hello\n' | ipfs add --cid-version=1 --raw-leaves`
    assert format_cid(HELLO) == "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am"


def test_an_empty_folder_is_that_of_ipfs() -> None:
    empty = cid_of(DAG_PB, b"\x0a\x02\x08\x01")
    assert format_cid(empty) == "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"


def test_a_peer_id_is_that_of_libp2p() -> None:
    assert format_peer(PEER).startswith("12D3KooW")
    assert parse_peer(format_peer(PEER)) == PEER
    assert format_peer(PEER).endswith(short_peer(PEER))
    assert len(short_peer(PEER)) == 6


def test_every_name_is_read_as_it_was_written() -> None:
    assert parse_cid(format_cid(HELLO)) == HELLO
    assert parse_task(format_task(TASK)) == TASK
    assert parse_entry(format_entry(ENTRY)) == ENTRY


def test_a_cid_names_its_codec() -> None:
    assert cid_codec(HELLO) == RAW
    assert cid_codec(cid_of(DAG_PB, b"")) == DAG_PB


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HELLO[:-1],
        HELLO + b"\0",
        b"\0" + HELLO[1:],
        bytes((1, 0x71)) + HELLO[2:],  # dag-cbor
        HELLO[:2] + b"\x13\x40" + HELLO[4:],  # sha2-512
        sha256(b"hello\n").digest(),
    ],
)
def test_other_cids_are_not_ours(data: bytes) -> None:
    with pytest.raises(ValueError, match="CIDv1"):
        check_cid(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "hello",
        "z" + format_cid(HELLO)[1:],
        format_cid(HELLO).upper(),
        format_cid(HELLO) + "a",
        format_cid(HELLO)[:-1] + "n",  # the same bytes with stray low bits
        format_cid(HELLO)[:-1] + "1",
        "QmZULkCELmmk5XNfCgTnCyFgAVxBRBXyDHGGMVoLFLiXEN",
        "bä",
    ],
)
def test_no_other_text_is_a_cid(text: str) -> None:
    with pytest.raises(ValueError, match="CID"):
        parse_cid(text)


@pytest.mark.parametrize(
    "text", ["", "12D3", "0OIl", format_peer(PEER)[:-1], format_peer(PEER) + "1", "é"]
)
def test_no_other_text_is_a_peer(text: str) -> None:
    with pytest.raises(ValueError, match="peer id"):
        parse_peer(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        TASK.hex(),
        "t-",
        "r-" + TASK.hex(),
        "t-" + TASK.hex()[:-2],
        "t-" + TASK.hex().upper(),
        "t-" + " ".join(TASK.hex()),
        "t-" + "zz" * 16,
    ],
)
def test_no_other_text_is_a_task(text: str) -> None:
    with pytest.raises(ValueError, match="task id"):
        parse_task(text)


def test_no_other_text_is_a_receipt() -> None:
    with pytest.raises(ValueError, match="receipt id"):
        parse_entry(format_task(TASK))


def test_the_same_key_of_the_same_buyer_is_the_same_task() -> None:
    other = PeerId(bytes(32))
    assert task_id(PEER, b"key") == task_id(PEER, b"key")
    assert len({task_id(PEER, b"key"), task_id(PEER, b"yek"), task_id(other, b"key")}) == 3
