"""The desk against clients that want too much, or come at a bad moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from attrs import evolve
from market_players import NET, POLICY, SHOP
from node_hands import PATIENCE_S, WITNESS, Hands, open_hands, until

from ledger.merge import Merger
from ledger.store import Store
from mesh.api.door import BidRequest
from mesh.api.faults import Closed
from mesh.auditor import Auditor
from mesh.bookkeeper import Bookkeeper, Tier
from mesh.broadcast import Broadcast
from mesh.desk import Desk, check_request
from mesh.driver import Driver
from mesh.errors import Exhausted, Refused
from mesh.identity.keys import NodeKey, identity
from mesh.ids import TaskId
from mesh.kernel import Kernel
from mesh.market.own_chain import read_past
from mesh.notices import Progressed
from mesh.publishing import Publishing
from mesh.replication import Replication
from mesh.rerun import Rerunner
from mesh.rumours import Rumours
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
    async with open_hands(folder, quota=quota) as hands, AsyncExitStack() as stack:
        kernel = Kernel(
            identity(KEY),
            POLICY,
            Random(1),
            past=read_past(KEY.peer, NET, ()),
            epoch=1,
            epoch_ms=0,
            shop=SHOP,
        )
        driver, reading = Driver(kernel), trio.CapacityLimiter(1)
        merger = stack.enter_context(
            Merger(stack.enter_context(Store.open(folder / "ledger.sqlite")))
        )
        index = stack.enter_context(Store.open(folder / "ledger.sqlite"))
        tally: Counter[str] = Counter()
        replication = Replication(
            merger=merger,
            rumours=Rumours(index, tally),
            peer=KEY.peer,
            head=kernel.head,
            is_confirmed=True,
            post=driver.post,
            alarm=lambda error: pytest.fail(str(error)),
            rng=Random(2),
            tally=tally,
        )
        bookkeeper = Bookkeeper(
            me=KEY.peer,
            ledger=hands.ledger,
            reading=reading,
            merge=replication.learn_from,
            publish=replication.push,
            driver=driver,
            credit=kernel.credit,
            tier=Tier(),
        )
        publishing = Publishing(hands.blocks, folder / "scratch", folder / "publishing")
        fetch = hands.performer.fetch
        rerunner = Rerunner(KEY.peer, hands.blocks, hands.workshop, fetch, publishing)
        auditor = Auditor(KEY.peer, hands.ledger, reading, rerunner)
        yield (
            Desk(
                kernel=kernel,
                driver=driver,
                broadcast=Broadcast(),
                performer=hands.performer,
                workshop=hands.workshop,
                network=hands.network,
                blocks=hands.blocks,
                quota=quota,
                bookkeeper=bookkeeper,
                auditor=auditor,
                publishing=publishing,
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
