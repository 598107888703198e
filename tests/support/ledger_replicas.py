"""Replicas that talk over streams in memory, and callers that lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import trio
from ledger_deals import WALL_MS
from trio.testing import memory_stream_pair

from ledger.merge import Merger
from ledger.model import Entry
from ledger.store import Store
from ledger.sync import Budget, Replica, Synced, serve, sync
from ledger.turns import Scope

T = TypeVar("T")
BOTH = (Scope.HEADS, Scope.IDS)


async def at_once(blocking: Callable[[], T]) -> T:
    """Runs what blocks right here."""
    return blocking()


_opened: list[Store] = []


def in_memory(*batches: Iterable[Entry]) -> Store:
    """A store that took in valid entries, batch by batch. `close_all` closes it."""
    store = Store.open(Path(":memory:"))
    _opened.append(store)
    for batch in batches:
        store.add(batch)
    return store


def close_all() -> None:
    """Close every store that was made here."""
    while _opened:
        _opened.pop().close()


def replica(entries: Iterable[Entry] = (), now_ms: int = WALL_MS) -> Replica:
    """A replica in memory that holds valid *entries*."""
    merger = Merger(in_memory(entries), spread=map)
    return Replica(merger, lambda: now_ms, trio.current_time, at_once)


def ids(one: Replica) -> set[bytes]:
    return {entry_id for _, entry_id in one.merger.store.ids()}


def held(one: Replica) -> set[Entry]:
    return set(one.merger.store.entries())


async def synced(
    caller: Replica,
    server: Replica,
    scopes: Sequence[Scope] = BOTH,
    *,
    budget: Budget | None = None,
    cold: bool = False,
) -> tuple[Synced, Synced]:
    """What each side says of one stream between them."""
    near, far = memory_stream_pair()
    told: list[Synced] = []

    async def answer() -> None:
        told.append(await serve(far, server, budget=budget))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        mine = await sync(near, caller, scopes, budget=budget, cold=cold)
        await near.aclose()
    return mine, told[0]
