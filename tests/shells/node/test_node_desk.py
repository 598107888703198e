"""The desk against clients that want too much, or come at a bad moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from attrs import evolve
from ledger_deals import ALICE, BOB, Chain
from market_players import NET, POLICY, SHOP, order
from node_hands import PATIENCE_S, WITNESS, Hands, open_hands, until, work_in

from mesh import desk as desks
from mesh.api.door import BidRequest
from mesh.api.faults import Closed
from mesh.broadcast import Broadcast
from mesh.desk import Desk, check_request
from mesh.driver import Driver
from mesh.errors import Exhausted, Refused
from mesh.identity.keys import NodeKey, identity
from mesh.ids import EntryId, PeerId, TaskId
from mesh.kernel import Kernel
from mesh.market.order import State, TaskRecord
from mesh.market.own_chain import read_past
from mesh.notices import Progressed
from mesh.storage.blocks import MemoryBlocks
from mesh.storage.disk import DiskBlocks
from mesh.storage.files import add_bytes
from mesh.upkeep import unpin

KEY = NodeKey(bytes(32))
MODULE = add_bytes(MemoryBlocks(), WITNESS.read_bytes()).cid
BID = BidRequest(
    idempotency_key=b"k",
    name="a task",
    module=MODULE,
    args=(),
    env=(),
    inputs=(),
    cpu_milli=1000,
    memory=1 << 20,
    disk=1 << 20,
    fuel=10**9,
    wall_ms=1000,
    deadline_ms=60_000,
    max_price=1000,
    fee=0,
    priority=0,
    features=(),
)


@asynccontextmanager
async def open_desk(folder: Path, quota: int = 64 << 20) -> AsyncIterator[tuple[Desk, Hands]]:
    """A desk whose driver is not driven: nothing is admitted until a test says so."""
    async with open_hands(folder, quota=quota) as hands:
        kernel = Kernel(
            identity(KEY),
            POLICY,
            Random(1),
            past=read_past(KEY.peer, NET, ()),
            epoch=1,
            epoch_ms=0,
            shop=SHOP,
        )
        yield (
            Desk(
                kernel=kernel,
                driver=Driver(kernel),
                broadcast=Broadcast(),
                performer=hands.performer,
                workshop=hands.workshop,
                network=hands.network,
                blocks=hands.blocks,
                quota=quota,
                ledger=hands.ledger,
                scratch=folder / "scratch",
                agent="test",
                started_at=0.0,
                doors=[],
            ),
            hands,
        )


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


async def test_audits_are_few_at_a_time_and_of_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desks, "AUDIT_ENTRIES_MAX", 2)
    async with open_desk(tmp_path) as (desk, hands):
        chain = Chain(BOB)
        hands.ledger.append_own([chain.alloc(ALICE, nonce=bytes([n]) * 16) for n in range(2)])
        async with (
            aclosing(desk.audit(None, False)) as one,
            aclosing(desk.audit(None, False)) as two,
        ):
            assert (await anext(one)).is_good
            assert (await anext(two)).is_good
            with pytest.raises(Exhausted, match="audits"):
                await anext(desk.audit(None, False))
        hands.ledger.append_own([chain.alloc(ALICE, nonce=bytes([9]) * 16)])
        with pytest.raises(Exhausted, match="more than the 2 entries"):
            await anext(desk.audit(None, False))


@pytest.mark.slow
async def test_one_task_is_run_again_by_two_audits_in_turn(tmp_path: Path) -> None:
    """They met in one folder, and the node ended."""
    async with open_desk(tmp_path) as (desk, hands):
        work = work_in(hands.blocks, WITNESS.read_bytes())
        result = await hands.workshop.execute(work, None, "first", lambda _: None)
        chain = Chain(BOB)
        settle = chain.settle(ALICE, chain.alloc(ALICE))
        record = TaskRecord(
            evolve(order(PeerId(BOB.key)), work=work),
            State.DONE,
            submitted_ms=1,
            settle=EntryId(settle.id),
            result=result,
        )
        found = []

        async def rerun() -> None:
            found.append(await desk._rerun(record, {settle.id: settle}))

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rerun)
                nursery.start_soon(rerun)
        assert [finding.detail for finding in found] == ["differs in receipt"] * 2


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
