"""Whole DAGs between two parties: lossy, forgetful and lying ones."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest
import trio

from mesh.errors import PeerError, Refused, Unavailable
from mesh.ids import DAG_PB, RAW, Cid, cid_of
from mesh.storage.blocks import Blocks, MemoryBlocks
from mesh.storage.disk import DiskBlocks
from mesh.storage.exchange import IN_FLIGHT_MAX, decode_reply, decode_request, encode_reply
from mesh.storage.files import add_bytes, add_path, read_file, write_path
from mesh.storage.transfer import Tally, fetch, serve
from mesh.storage.unixfs import import_dir

Request: TypeAlias = Callable[[bytes], Awaitable[bytes]]
BYTES_MAX = 20_000_000
BLOCKS_MAX = 5_000


def asking(blocks: Blocks, asked: list[Cid] | None = None) -> Request:
    """The honest party: it serves *blocks*, and notes in *asked* what it was asked for."""

    async def request(data: bytes) -> bytes:
        if asked is not None:
            asked.extend(decode_request(data))
        return await trio.to_thread.run_sync(partial(serve, blocks, data))

    return request


async def get(
    root: Cid, blocks: Blocks, request: Request, tally: Tally | None = None, **limits: int
) -> int:
    bounds = {"bytes_max": BYTES_MAX, "blocks_max": BLOCKS_MAX} | limits
    with trio.fail_after(60):
        return await fetch(root, blocks, request, tally=tally, **bounds)


@pytest.fixture
def seller() -> MemoryBlocks:
    return MemoryBlocks(20_000)


@pytest.fixture
def buyer() -> MemoryBlocks:
    return MemoryBlocks(20_000)


async def test_a_folder_moves_between_two_disks(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "big").write_bytes(os.urandom(3_000_000))
    for index in range(50):
        (tree / f"small {index}").write_text(str(index))
    with (
        DiskBlocks(tmp_path / "seller", BYTES_MAX) as seller,
        DiskBlocks(tmp_path / "buyer", BYTES_MAX) as buyer,
    ):
        root = add_path(seller, tree)
        tally = Tally()
        received = await get(root.cid, buyer, asking(seller), tally)
        assert received == seller.statistics()["bytes"] == tally.received
        assert sorted(buyer.cids()) == sorted(seller.cids())
        write_path(buyer, root.cid, tmp_path / "back", bytes_max=BYTES_MAX)
        buyer.pin(root.cid, "input")
    assert (tmp_path / "back" / "sub" / "big").read_bytes() == (tree / "sub" / "big").read_bytes()


@pytest.mark.parametrize("data", [b"", b"x", bytes(2_000_000)], ids=["empty", "tiny", "zeros"])
async def test_a_file_moves(seller: MemoryBlocks, buyer: MemoryBlocks, data: bytes) -> None:
    root = add_bytes(seller, data).cid
    received = await get(root, buyer, asking(seller))
    assert b"".join(read_file(buyer, root)) == data
    assert received == seller.statistics()["bytes"]


async def test_a_sharded_folder_moves(seller: MemoryBlocks, buyer: MemoryBlocks) -> None:
    names = [f"a file with quite a long name, number {index}" for index in range(3_500)]
    root = import_dir({name: add_bytes(seller, name.encode()) for name in names}, seller.put).cid
    await get(root, buyer, asking(seller))
    assert sorted(buyer.cids()) == sorted(seller.cids())


async def test_what_is_here_is_not_asked_for(seller: MemoryBlocks, buyer: MemoryBlocks) -> None:
    data = os.urandom(2_000_000)
    root = add_bytes(seller, data).cid
    add_bytes(buyer, data)
    asked: list[Cid] = []
    assert await get(root, buyer, asking(seller, asked)) == 0
    assert asked == []
    missing = cid_of(RAW, data[262_144 : 2 * 262_144])
    buyer.delete(missing)
    assert await get(root, buyer, asking(seller, asked)) == 262_144
    assert asked == [missing]


async def test_each_block_is_asked_for_once_by_a_patient_party(
    seller: MemoryBlocks, buyer: MemoryBlocks
) -> None:
    parts = {str(index): add_bytes(seller, os.urandom(1_000)) for index in range(300)}
    root = import_dir(parts, seller.put).cid
    asked: list[Cid] = []
    await get(root, buyer, asking(seller, asked))
    assert sorted(asked) == sorted(seller.cids())


async def test_no_more_requests_are_in_flight_than_allowed(
    seller: MemoryBlocks, buyer: MemoryBlocks
) -> None:
    root = add_bytes(seller, os.urandom(5_000_000)).cid
    honest = asking(seller)
    now = most = 0

    async def request(data: bytes) -> bytes:
        nonlocal now, most
        now += 1
        most = max(most, now)
        reply = await honest(data)
        now -= 1
        return reply

    await get(root, buyer, request)
    assert 1 < most <= IN_FLIGHT_MAX


async def test_lost_requests_are_asked_again(seller: MemoryBlocks, buyer: MemoryBlocks) -> None:
    data = os.urandom(5_000_000)
    root = add_bytes(seller, data).cid
    honest = asking(seller)
    count = 0

    async def request(frame: bytes) -> bytes:
        nonlocal count
        count += 1
        if count % 5 == 0:
            raise Unavailable("timed out")
        return await honest(frame)

    tally = Tally()
    await get(root, buyer, request, tally)
    assert b"".join(read_file(buyer, root)) == data
    assert tally.fruitless == count // 5 > 0


async def test_a_party_that_went_away_is_unavailable_and_what_came_stays(
    seller: MemoryBlocks, buyer: MemoryBlocks
) -> None:
    data = os.urandom(8_000_000)
    root = add_bytes(seller, data).cid
    honest = asking(seller)
    left = 5

    async def request(frame: bytes) -> bytes:
        nonlocal left
        left -= 1
        if left < 0:
            raise Unavailable("connection lost")
        return await honest(frame)

    with pytest.raises(Unavailable, match="connection lost: 3 times in a row, at baf"):
        await get(root, buyer, request)
    here = buyer.statistics()["bytes"]
    assert 0 < here < len(data)
    received = await get(root, buyer, honest)
    assert received == seller.statistics()["bytes"] - here
    assert b"".join(read_file(buyer, root)) == data


async def test_a_party_without_the_content_is_unavailable(buyer: MemoryBlocks) -> None:
    with pytest.raises(Unavailable, match="none of the blocks asked for"):
        await get(cid_of(RAW, b"x"), buyer, asking(MemoryBlocks()))
    assert list(buyer.cids()) == []


async def test_a_party_that_lacks_one_block_is_unavailable_at_that_block(
    seller: MemoryBlocks, buyer: MemoryBlocks
) -> None:
    data = os.urandom(2_000_000)
    root = add_bytes(seller, data).cid
    seller.delete(cid_of(RAW, data[:262_144]))
    with pytest.raises(Unavailable):
        await get(root, buyer, asking(seller))
    here = set(buyer.cids())  # others may have been on their way when it was missed
    assert root in here
    assert here <= set(seller.cids())


async def test_what_the_asker_may_not_read_does_not_move(
    seller: MemoryBlocks, buyer: MemoryBlocks
) -> None:
    root = add_bytes(seller, b"secret").cid

    async def request(data: bytes) -> bytes:
        return serve(seller, data, lambda cid: cid != root)

    with pytest.raises(Unavailable):
        await get(root, buyer, request)


async def test_a_forged_block_is_the_peers_fault_and_is_not_stored(
    seller: MemoryBlocks, buyer: MemoryBlocks
) -> None:
    root = add_bytes(seller, os.urandom(1_000_000)).cid
    honest = asking(seller)

    async def request(data: bytes) -> bytes:
        reply = decode_reply(await honest(data))
        return encode_reply(
            (cid, b"!" + block[1:] if cid != root else block) for cid, block in reply
        )

    with pytest.raises(PeerError, match="as it claims"):
        await get(root, buyer, request)
    assert list(buyer.cids()) == [root]


async def test_garbage_is_the_peers_fault(buyer: MemoryBlocks) -> None:
    async def request(_data: bytes) -> bytes:
        return b"\xc1 garbage"

    with pytest.raises(PeerError):
        await get(cid_of(RAW, b"x"), buyer, request)


async def test_a_malformed_node_is_the_peers_fault_and_is_not_stored(
    seller: MemoryBlocks, buyer: MemoryBlocks
) -> None:
    node = b"\x0a\x02\x08\x04"  # a symbolic link
    root = cid_of(DAG_PB, node)
    seller.put(root, node)
    with pytest.raises(PeerError, match="neither file nor folder"):
        await get(root, buyer, asking(seller))
    assert list(buyer.cids()) == []


async def test_a_party_cannot_bloat_us_with_what_nobody_asked_for(
    seller: MemoryBlocks, buyer: MemoryBlocks
) -> None:
    root = add_bytes(seller, os.urandom(3_000_000)).cid
    honest = asking(seller)
    count = 0

    async def request(data: bytes) -> bytes:
        nonlocal count
        count += 1
        junk = [os.urandom(100) for _ in range(2)]
        reply = decode_reply(await honest(data))
        return encode_reply([*reply, *((cid_of(RAW, block), block) for block in junk)])

    tally = Tally()
    await get(root, buyer, request, tally)
    assert sorted(buyer.cids()) == sorted(seller.cids())
    assert tally.unasked == 2 * count


async def test_content_larger_than_allowed_is_refused_within_the_bound(
    seller: MemoryBlocks, buyer: MemoryBlocks
) -> None:
    root = add_bytes(seller, os.urandom(5_000_000)).cid
    tally = Tally()
    with pytest.raises(Refused, match="exceeds the 2,000,000 bytes"):
        await get(root, buyer, asking(seller), tally, bytes_max=2_000_000)
    assert buyer.statistics()["bytes"] <= 2_000_000
    assert tally.refused >= 1


async def test_content_of_more_blocks_than_allowed_is_refused(
    seller: MemoryBlocks, buyer: MemoryBlocks
) -> None:
    parts = {str(index): add_bytes(seller, os.urandom(10)) for index in range(100)}
    root = import_dir(parts, seller.put).cid
    with pytest.raises(Refused, match="more than the 50 blocks"):
        await get(root, buyer, asking(seller), blocks_max=50)
    assert await get(root, buyer, asking(seller), blocks_max=101) > 0


async def test_a_full_store_ends_the_transfer_with_its_reason(seller: MemoryBlocks) -> None:
    root = add_bytes(seller, os.urandom(5_000_000)).cid
    with pytest.raises(Refused, match="the store is full"):
        await get(root, MemoryBlocks(5), asking(seller))


async def test_two_transfers_of_the_same_content_do_not_disturb_each_other(
    seller: MemoryBlocks, tmp_path: Path
) -> None:
    data = os.urandom(3_000_000)
    root = add_bytes(seller, data).cid
    with DiskBlocks(tmp_path / "buyer", BYTES_MAX) as buyer:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(get, root, buyer, asking(seller))
        assert b"".join(read_file(buyer, root)) == data
        assert buyer.statistics()["bytes"] == seller.statistics()["bytes"]


async def test_a_transfer_can_be_cancelled(seller: MemoryBlocks, buyer: MemoryBlocks) -> None:
    root = add_bytes(seller, os.urandom(1_000_000)).cid

    async def request(_data: bytes) -> bytes:
        scope.cancel()
        await trio.sleep_forever()
        raise AssertionError

    with trio.CancelScope() as scope:
        await get(root, buyer, request)
    assert scope.cancelled_caught
    assert await get(root, buyer, asking(seller)) > 0
