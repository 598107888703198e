"""Blocks between two parties, by CID: what is said, and what to ask for next.

A request is msgpack `[1, [cid, …]]`, at most 32 CIDs; its reply `[1, [[cid, block], …]]` holds what
fits into about 900 kB. What is missing from a reply was not there, not for the asker, or did not
fit: it may be asked again. Both stay below 1 MiB, the limit of one libp2p request and reply.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgpack
from attrs import define, field

from mesh.errors import NotFound, PeerError, Refused, Unavailable
from mesh.ids import Cid, check_cid, format_cid
from mesh.storage.blocks import BLOCK_BYTES_MAX, Blocks, matches

VERSION = 1
ASKED_MAX = 32
"""CIDs in one request."""
MESSAGE_BYTES_MAX = 1_048_576
REPLY_BYTES = 900_000
"""Blocks that one reply carries, in all, unless the first alone is longer."""
IN_FLIGHT_MAX = 4
"""Requests of one fetch that wait for their reply."""
FRUITLESS_MAX = 3
"""Replies in a row, none of which brought anything, before a fetch gives up."""
UNASKED_MAX = 32
"""Blocks that nobody asked for, before the peer is at fault."""

T = TypeVar("T")

# --- wire ---------------------------------------------------------------------------------------


def encode_request(cids: Sequence[Cid]) -> bytes:
    """Ask for *cids*."""
    assert 0 < len(cids) <= ASKED_MAX
    return bytes(msgpack.packb([VERSION, list(cids)]))


def decode_request(data: bytes) -> tuple[Cid, ...]:
    """The inverse of `encode_request`. Raises PeerError."""
    cids = tuple(_cid(item) for item in _list(_open(data), ASKED_MAX))
    if not cids or len(set(cids)) != len(cids):
        raise PeerError("a block request that asks for nothing, or for something twice")
    return cids


def encode_reply(blocks: Iterable[tuple[Cid, bytes]]) -> bytes:
    """Answer with *blocks*."""
    data = bytes(msgpack.packb([VERSION, list(blocks)]))
    assert len(data) <= MESSAGE_BYTES_MAX
    return data


def decode_reply(data: bytes) -> tuple[tuple[Cid, bytes], ...]:
    """The inverse of `encode_reply`. Raises PeerError, too, where a block is not what it claims."""
    return tuple(_block(item) for item in _list(_open(data), ASKED_MAX))


def _open(data: bytes) -> object:
    if len(data) > MESSAGE_BYTES_MAX:
        raise PeerError(f"a block message of {len(data)} bytes: at most {MESSAGE_BYTES_MAX}")
    try:
        message = msgpack.unpackb(
            data, max_array_len=ASKED_MAX, max_map_len=0, max_str_len=0, max_ext_len=0
        )
    except ValueError:  # with it, every error of msgpack's decoder
        raise PeerError("a block message that is not msgpack within its limits") from None
    match message:
        case [int(version), body] if version == VERSION and version is not True:
            return body
    raise PeerError(f"a block message that is not of version {VERSION}")


def _list(body: object, length_max: int) -> list[object]:
    if not isinstance(body, list) or len(body) > length_max:
        raise PeerError("a block message without its list")
    return body


def _cid(item: object) -> Cid:
    try:
        return check_cid(item if isinstance(item, bytes) else b"")
    except ValueError as error:
        raise PeerError(str(error)) from None


def _block(item: object) -> tuple[Cid, bytes]:
    match item:
        case [bytes(name), bytes(block)] if len(block) <= BLOCK_BYTES_MAX:
            cid = _cid(name)
        case _:
            raise PeerError("a block message with something that is no CID and block")
    if not matches(cid, block):
        raise PeerError(f"a block that is not {format_cid(cid)}, as it claims")
    return cid, block


# --- answering ----------------------------------------------------------------------------------


def everyone(_cid: Cid) -> bool:
    """Whoever knows a CID may read it."""
    return True


def serve(blocks: Blocks, request: bytes, may_read: Callable[[Cid], bool] = everyone) -> bytes:
    """The reply to *request*. Blocks: call it in a worker thread.

    Raises PeerError for a malformed request, Corruption where our own block is broken.
    """
    found: list[tuple[Cid, bytes]] = []
    length = 0
    for cid in decode_request(request):
        try:
            block = blocks.get(cid) if may_read(cid) else None
        except NotFound:
            continue
        if block is None:
            continue
        length += len(block)
        if found and length > REPLY_BYTES:
            break
        found.append((cid, block))
    return encode_reply(found)


# --- asking -------------------------------------------------------------------------------------


@define
class Tally:
    """What one party's fetches have seen; the caller keeps it and shows it."""

    received: int = 0
    """Bytes of blocks that were asked for."""
    blocks: int = 0
    unasked: int = 0
    fruitless: int = 0
    """Replies that brought nothing asked for, and requests that got no reply."""
    refused: int = 0
    """Fetches ended by a limit on bytes or blocks."""

    def statistics(self) -> dict[str, int]:
        """Counts and bytes by name."""
        return {
            "received": self.received,
            "blocks": self.blocks,
            "unasked": self.unasked,
            "fruitless": self.fruitless,
            "refused": self.refused,
        }


@define
class Plan:
    """What of one DAG is known, asked for and here. Pure: a shell asks, checks and stores.

    Breadth first. The shell first says which blocks are here already (`next_unlooked`, `looked`);
    what is not, is asked for (`next_ask`) and comes (`accept`, then `stored`) or not (`missed`).
    """

    bytes_max: int
    blocks_max: int
    tally: Tally
    received: int = 0
    _seen: set[Cid] = field(factory=set)
    _unlooked: deque[Cid] = field(factory=deque)
    _wanted: deque[Cid] = field(factory=deque)
    _fruitless: int = 0
    _unasked: int = 0

    def learn(self, cids: Iterable[Cid]) -> None:
        """These belong to the DAG. Raises Refused for too many."""
        for cid in cids:
            if cid in self._seen:
                continue
            if len(self._seen) >= self.blocks_max:
                self.tally.refused += 1
                raise Refused(
                    f"the content has more than the {self.blocks_max:,} blocks allowed for it",
                    "allow more",
                )
            self._seen.add(cid)
            self._unlooked.append(cid)

    def next_unlooked(self) -> list[Cid]:
        """Blocks of which nobody has yet looked whether they are here; empty when all were."""
        return _take(self._unlooked, 256)

    def looked(self, missing: Iterable[Cid]) -> None:
        """Of those looked for, *missing* are not here."""
        self._wanted.extend(missing)

    def next_ask(self) -> list[Cid]:
        """CIDs for one request, sharing what is wanted among those in flight; may be empty."""
        share = -(-len(self._wanted) // IN_FLIGHT_MAX)
        return _take(self._wanted, min(ASKED_MAX, share))

    def accept(
        self, asked: Sequence[Cid], reply: Sequence[tuple[Cid, bytes]]
    ) -> list[tuple[Cid, bytes]]:
        """The blocks of *reply* worth storing; the rest of *asked* will be asked for again.

        Raises Refused above the bytes allowed, Unavailable after three fruitless replies in a row,
        PeerError for too many blocks that nobody asked for.
        """
        brought = {cid: block for cid, block in reply if cid in asked}
        self._count_unasked(len(reply) - len(brought))
        received = sum(map(len, brought.values()))
        if self.received + received > self.bytes_max:
            self.tally.refused += 1
            raise Refused(
                f"the content exceeds the {self.bytes_max:,} bytes allowed for it", "allow more"
            )
        self.received += received
        self.tally.received += received
        self.tally.blocks += len(brought)
        self._wanted.extendleft(cid for cid in reversed(asked) if cid not in brought)
        if not brought:
            self._count_fruitless("the peer sends none of the blocks asked for")
        else:
            self._fruitless = 0
        return list(brought.items())

    def missed(self, asked: Sequence[Cid], why: str) -> None:
        """A request got no reply. Raises Unavailable after three of them in a row."""
        self._wanted.extendleft(reversed(asked))
        self._count_fruitless(why)

    def _count_fruitless(self, why: str) -> None:
        self._fruitless += 1
        self.tally.fruitless += 1
        if self._fruitless >= FRUITLESS_MAX:
            wanted = format_cid(self._wanted[0])
            raise Unavailable(f"{why}: {self._fruitless} times in a row, at {wanted}")

    def _count_unasked(self, count: int) -> None:
        self._unasked += count
        self.tally.unasked += count
        if self._unasked > UNASKED_MAX:
            raise PeerError(f"{self._unasked} blocks that nobody asked for")


def _take(queue: deque[T], count: int) -> list[T]:
    return [queue.popleft() for _ in range(min(count, len(queue)))]
