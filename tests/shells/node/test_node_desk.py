"""The desk against clients that want too much, or come at a bad moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
from attrs import evolve
from node_desks import BID, MODULE, open_desk
from node_hands import PATIENCE_S, WITNESS, until

from mesh.api.faults import Closed
from mesh.broadcast import Broadcast
from mesh.desk import check_request
from mesh.errors import Exhausted, NotFound, Refused
from mesh.ids import TaskId
from mesh.notices import Progressed
from mesh.runtime import interpreters
from mesh.runtime.interpreters import PYTHON, pin_of
from mesh.storage.disk import DiskBlocks
from mesh.storage.files import add_bytes
from mesh.upkeep import unpin


async def chunks(count: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(size)


async def test_an_upload_ends_at_the_quota_and_not_at_the_end_of_the_disk(tmp_path: Path) -> None:
    async with open_desk(tmp_path, quota=1 << 20) as (desk, _):
        async with aclosing(chunks(10**6, 1 << 18)) as endless:
            with pytest.raises(Exhausted, match="quota"):
                await desk.put_file("big", endless)
        assert list((tmp_path / "scratch").iterdir()) == []
        async with aclosing(chunks(1, 1000)) as small:
            await desk.put_file("small", small)


async def test_uploads_at_the_same_moment_do_not_meet(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as (desk, _):
        roots = []

        async def put(byte: int) -> None:
            async def one() -> AsyncIterator[bytes]:
                yield bytes([byte]) * 1000

            async with aclosing(one()) as content:
                roots.append(await desk.put_file("same name", content))

        async with trio.open_nursery() as nursery:
            for byte in range(8):
                nursery.start_soon(put, byte)
        assert len(set(roots)) == 8


async def test_a_bid_that_the_end_of_the_node_overtakes_is_told_so(tmp_path: Path) -> None:
    """It met the end of its channel, which passed for a bug and left a black box."""
    async with open_desk(tmp_path) as (desk, hands):
        add_bytes(hands.blocks, WITNESS.read_bytes())
        caught = []

        async def bid() -> None:
            try:
                await desk.bid(BID)
            except Closed as error:
                caught.append(error)

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bid)
                await until(lambda: desk.driver._inbox.statistics().current_buffer_used)
                desk.broadcast.close()
        assert len(caught) == 1


async def test_what_is_published_after_the_end_reaches_nobody_and_harms_nobody() -> None:
    broadcast = Broadcast()
    async with broadcast.follow(None) as notices:
        broadcast.close()
        broadcast.publish(Progressed(TaskId(bytes(16)), 1, 1))
        with pytest.raises(trio.EndOfChannel):
            await notices.receive()


@pytest.mark.parametrize(
    ("field", "value"), [("deadline_ms", 2**62), ("features", ("x" * 513,)), ("max_price", 0)]
)
def test_a_bid_that_peers_or_our_own_journal_would_not_read_back_is_refused(
    field: str, value: object
) -> None:
    """A long feature was written to the journal, which then loaded no more: the node was lost."""
    with pytest.raises(Refused, match=field.split("_")[0]):
        check_request(evolve(BID, **{field: value}))  # type: ignore[arg-type]


def test_a_pin_goes_when_two_looks_in_a_row_found_no_need(tmp_path: Path) -> None:
    """A task's files are pinned before it is admitted: one look between took them away."""
    with DiskBlocks(tmp_path, 1 << 20) as blocks:
        root = add_bytes(blocks, b"a module").cid
        blocks.pin(root, "task t-1")
        blocks.pin(root, "task t-1")
        unneeded = unpin(blocks, set(), set())
        assert unneeded == {"task t-1"}
        assert unpin(blocks, {"task t-1"}, unneeded) == set()
        assert len(blocks.pins()) == 1
        assert unpin(blocks, set(), unpin(blocks, set(), set())) == set()
        assert blocks.pins() == ()


async def test_an_interpreters_module_is_kept_and_its_absence_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = evolve(PYTHON, module=MODULE, size=WITNESS.stat().st_size)
    monkeypatch.setattr(interpreters, "INTERPRETERS", (small,))

    async def witness() -> AsyncIterator[bytes]:
        yield WITNESS.read_bytes()

    async with open_desk(tmp_path) as (desk, hands):
        with pytest.raises(NotFound, match="not at this node yet") as caught:
            await desk.bid(BID)
        assert caught.value.hint == "mesh runtime add python"
        for _ in range(2):
            await desk.put_file("python.wasm", witness())
        assert [(pin.root, pin.reason, pin.count) for pin in hands.blocks.pins()] == [
            (MODULE, pin_of(small), 1)
        ]
        await desk.put_file("other", chunks(1, 10))
        assert len(hands.blocks.pins()) == 1
