"""A desk with all that it works with, real, around a kernel that is not driven."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from market_players import NET, POLICY, SHOP
from node_hands import WITNESS, Hands, open_hands

from ledger.merge import Merger
from ledger.store import Store
from mesh.api.door import BidRequest
from mesh.auditor import Auditor
from mesh.bookkeeper import Bookkeeper, Tier
from mesh.broadcast import Broadcast
from mesh.desk import Desk
from mesh.driver import Driver
from mesh.identity.keys import NodeKey, identity
from mesh.kernel import Kernel
from mesh.market.own_chain import read_past
from mesh.prosecutor import Prosecutor
from mesh.publishing import Publishing
from mesh.replication import Replication
from mesh.rerun import Rerunner
from mesh.rumours import Rumours
from mesh.shelf import Shelf
from mesh.storage.blocks import MemoryBlocks
from mesh.storage.files import add_bytes

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
        rerunner = Rerunner(KEY.peer, hands.workshop, hands.performer.fetch, publishing)
        broadcast = Broadcast()
        shelf = Shelf(folder / "evidence")
        prosecutor = Prosecutor(kernel.records, broadcast, rerunner, bookkeeper, shelf)
        auditor = Auditor(KEY.peer, hands.ledger, reading, rerunner, prosecutor.findings)
        yield (
            Desk(
                kernel=kernel,
                driver=driver,
                broadcast=broadcast,
                performer=hands.performer,
                network=hands.network,
                blocks=hands.blocks,
                quota=quota,
                bookkeeper=bookkeeper,
                auditor=auditor,
                prosecutor=prosecutor,
                publishing=publishing,
                scratch=folder / "scratch",
                agent="test",
                started_at=0.0,
                doors=[],
            ),
            hands,
        )
