"""The contract of a store of blocks, held by each store there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest

from mesh.errors import NotFound, Refused
from mesh.ids import DAG_PB, RAW, Cid, cid_of
from mesh.storage.blocks import BLOCK_BYTES_MAX, Blocks, MemoryBlocks
from mesh.storage.disk import DiskBlocks

LENGTH = 1_000
Make: TypeAlias = Callable[[int], Blocks]
"""A store with room for so many blocks of 1,000 bytes."""


def block(index: int) -> tuple[Cid, bytes]:
    data = index.to_bytes(LENGTH, "big")
    return cid_of(RAW, data), data


@pytest.fixture(params=["memory", "disk"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    with ExitStack() as stack:

        def build(room: int) -> Blocks:
            if request.param == "memory":
                return MemoryBlocks(room)
            return stack.enter_context(DiskBlocks(tmp_path / "store", room * LENGTH))

        yield build


@pytest.fixture
def store(make: Make) -> Blocks:
    return make(200)


def test_a_block_that_was_put_is_there(store: Blocks) -> None:
    cid, data = block(1)
    assert not store.has(cid)
    store.put(cid, data)
    assert store.has(cid)
    assert store.get(cid) == data
    assert list(store.cids()) == [cid]


def test_a_block_that_was_not_put_is_not_found(store: Blocks) -> None:
    with pytest.raises(NotFound, match="is not in this store"):
        store.get(block(1)[0])


def test_an_empty_block_and_the_longest_are_blocks_too(make: Make) -> None:
    store = make(600)
    for data in (b"", bytes(BLOCK_BYTES_MAX)):
        store.put(cid_of(RAW, data), data)
        assert store.get(cid_of(RAW, data)) == data


def test_the_same_bytes_under_two_codecs_are_two_blocks(store: Blocks) -> None:
    data = b"\x0a\x02\x08\x01"
    store.put(cid_of(DAG_PB, data), data)
    assert not store.has(cid_of(RAW, data))
    store.put(cid_of(RAW, data), data)
    assert store.delete(cid_of(DAG_PB, data))
    assert store.get(cid_of(RAW, data)) == data


def test_putting_twice_is_putting_once(store: Blocks) -> None:
    store.put(*block(1))
    store.put(*block(1))
    store.put_many([block(1), block(1), block(2), block(2)])
    assert sorted(store.cids()) == sorted([block(1)[0], block(2)[0]])
    statistics = store.statistics()
    assert (statistics["blocks"], statistics["bytes"]) == (2, 2 * LENGTH)


def test_many_blocks_are_put_at_once(store: Blocks) -> None:
    store.put_many(block(index) for index in range(150))
    assert {cid: store.get(cid) for cid in store.cids()} == dict(map(block, range(150)))
    store.put_many([])


def test_a_block_under_a_wrong_name_is_our_own_mistake(store: Blocks) -> None:
    with pytest.raises(AssertionError):
        store.put(block(1)[0], block(2)[1])
    long = bytes(BLOCK_BYTES_MAX + 1)
    with pytest.raises(AssertionError):
        store.put(cid_of(RAW, long), long)
    assert list(store.cids()) == []


def test_a_deleted_block_is_gone_and_makes_room(make: Make) -> None:
    store = make(2)
    store.put_many([block(1), block(2)])
    assert store.delete(block(1)[0])
    assert not store.delete(block(1)[0])
    assert not store.has(block(1)[0])
    store.put(*block(3))
    assert store.statistics()["blocks"] == 2


def test_a_full_store_refuses_says_why_and_counts_it(make: Make) -> None:
    store = make(2)
    store.put_many([block(1), block(2)])
    with pytest.raises(Refused, match="the store is full") as caught:
        store.put(*block(3))
    assert caught.value.hint
    store.put(*block(1))  # is here already: costs nothing
    assert not store.has(block(3)[0])
    assert store.get(block(2)[0]) == block(2)[1]
    assert store.statistics()["refused"] == 1


def test_listing_while_blocks_come_and_go_does_not_fail(store: Blocks) -> None:
    store.put_many(block(index) for index in range(20))
    for cid in store.cids():
        store.delete(cid)
        store.put(*block(100 + cid[-1] % 50))
    assert store.statistics()["blocks"] > 0


def test_many_threads_may_put_the_same_blocks(make: Make) -> None:
    store = make(8 * 30)  # each thread may write a copy of its own before one of them is kept
    blocks = [block(index) for index in range(30)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(store.put_many, [blocks] * 8))
        found = list(threads.map(store.get, [cid for cid, _ in blocks]))
    assert found == [data for _, data in blocks]
    statistics = store.statistics()
    assert (statistics["blocks"], statistics["bytes"]) == (30, 30 * LENGTH)
