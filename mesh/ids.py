"""Names of things: peers, tasks, content and ledger entries; how people read and write them.

Inside the program an id is bytes of a fixed length; text exists only at the edges.
"""

from __future__ import annotations

import base64
from hashlib import sha256
from typing import NewType

import base58

PeerId = NewType("PeerId", bytes)
"""A node: its Ed25519 public key, 32 bytes. The libp2p peer id is the same key in base58."""
TaskId = NewType("TaskId", bytes)
"""A task: 16 bytes, derived from the buyer and the buyer's idempotency key."""
Cid = NewType("Cid", bytes)
"""Content: a binary CIDv1 with sha2-256, 36 bytes."""
EntryId = NewType("EntryId", bytes)
"""A ledger entry: SHA-256 of its body, 32 bytes."""

NET = b"mesh/1\0\0"
"""The network's name in every ledger entry, 8 bytes."""
RAW = 0x55
"""Multicodec of a raw leaf (https://github.com/multiformats/multicodec)."""
DAG_PB = 0x70
"""Multicodec of a UnixFS node."""

_PEER_PREFIX = bytes.fromhex("002408011220")  # identity multihash of a protobuf Ed25519 key
_CID_LENGTH = 36


def task_id(buyer: PeerId, key: bytes) -> TaskId:
    """The id of the task that *buyer* submits under idempotency *key*: same key, same task."""
    return TaskId(sha256(b"mesh/1/task\0" + buyer + key).digest()[:16])


def copy_id(first: TaskId, number: int) -> TaskId:
    """The id of a task's copy of that number; the first of them is the task itself."""
    if number == 0:
        return first
    return TaskId(sha256(b"mesh/1/copy\0" + first + number.to_bytes(2, "big")).digest()[:16])


def cid_of(codec: int, block: bytes) -> Cid:
    """The CID of *block* under multicodec *codec* (below 0x80: one varint byte)."""
    assert codec < 0x80
    return Cid(bytes((1, codec, 0x12, 0x20)) + sha256(block).digest())


def cid_codec(cid: Cid) -> int:
    """The multicodec of a CID that `check_cid` has passed."""
    return cid[1]


def check_cid(data: bytes) -> Cid:
    """*data* as a CID of ours: CIDv1, raw or dag-pb, sha2-256. Raises ValueError."""
    if (
        len(data) != _CID_LENGTH
        or data[0] != 1
        or data[1] not in (RAW, DAG_PB)
        or data[2:4] != b"\x12\x20"
    ):
        raise ValueError("not a CIDv1 of a raw or dag-pb block with sha2-256")
    return Cid(data)


def format_cid(cid: Cid) -> str:
    """Base32 text, as `ipfs` prints it."""
    return "b" + base64.b32encode(cid).decode().lower().rstrip("=")


def parse_cid(text: str) -> Cid:
    """The inverse of `format_cid`. Raises ValueError."""
    if not text.startswith("b"):
        raise ValueError(f"{text!r} is not a base32 CIDv1")
    body = text[1:].upper()
    try:
        data = base64.b32decode(body + "=" * (-len(body) % 8))
    except ValueError:  # binascii.Error is one; so is what text beyond ASCII raises
        raise ValueError(f"{text!r} is not a base32 CIDv1") from None
    cid = check_cid(data)
    if format_cid(cid) != text:
        raise ValueError(f"{text!r} is not a canonical CID")
    return cid


def format_peer(peer: PeerId) -> str:
    """The libp2p peer id: `12D3KooW…`."""
    return base58.b58encode(_PEER_PREFIX + peer).decode()


def parse_peer(text: str) -> PeerId:
    """The inverse of `format_peer`. Raises ValueError."""
    try:
        data = base58.b58decode(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a peer id") from None
    if len(data) != len(_PEER_PREFIX) + 32 or not data.startswith(_PEER_PREFIX):
        raise ValueError(f"{text!r} is not the peer id of an Ed25519 key")
    return PeerId(data[len(_PEER_PREFIX) :])


def short_peer(peer: PeerId) -> str:
    """The last six characters of the peer id: enough for people, never for programs."""
    return format_peer(peer)[-6:]


def format_task(task: TaskId) -> str:
    """`t-` and 32 hex digits."""
    return "t-" + task.hex()


def parse_task(text: str) -> TaskId:
    """The inverse of `format_task`. Raises ValueError."""
    return TaskId(_parse_hex(text, "t-", 16, "task id"))


def format_entry(entry: EntryId) -> str:
    """`r-` and 64 hex digits."""
    return "r-" + entry.hex()


def parse_entry(text: str) -> EntryId:
    """The inverse of `format_entry`. Raises ValueError."""
    return EntryId(_parse_hex(text, "r-", 32, "receipt id"))


def _parse_hex(text: str, prefix: str, length: int, what: str) -> bytes:
    try:
        data = bytes.fromhex(text.removeprefix(prefix))
    except ValueError:
        data = b""
    if not text.startswith(prefix) or len(data) != length or text != prefix + data.hex():
        raise ValueError(f"{text!r} is not a {what} ({prefix} and {2 * length} hex digits)")
    return data
