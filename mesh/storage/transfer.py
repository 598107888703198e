"""Getting a DAG from another party by its root CID, over any request and reply of up to 1 MiB."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio
from attrs import define, field

from mesh.errors import MeshError, Unavailable
from mesh.ids import RAW, Cid, cid_codec
from mesh.storage.blocks import Blocks
from mesh.storage.exchange import (
    IN_FLIGHT_MAX,
    Plan,
    Tally,
    decode_reply,
    encode_request,
    serve,
)
from mesh.storage.unixfs import children

__all__ = ["Request", "Tally", "fetch", "serve"]

Request: TypeAlias = Callable[[bytes], Awaitable[bytes]]
"""One request to the party, and its reply. Raises Unavailable where there is none in time."""


async def fetch(
    root: Cid,
    blocks: Blocks,
    request: Request,
    *,
    bytes_max: int,
    blocks_max: int,
    tally: Tally | None = None,
) -> int:
    """Get *root* and all below it into *blocks*, skipping what is here; bytes received.

    Each block is checked before it is stored, so that what is there after an error is good, and a
    new fetch goes on from it. Raises Refused above *bytes_max* or *blocks_max*; Unavailable after
    three requests in a row that brought nothing; PeerError if the peer lies or sends what nobody
    can read; and what `Blocks.put` raises.
    """
    fetching = _Fetch(blocks, request, Plan(bytes_max, blocks_max, tally or Tally()))
    fetching.plan.learn([root])
    failure: MeshError | None = None
    async with trio.open_nursery() as nursery:
        try:
            await fetching.run(nursery)
        except MeshError as error:  # raised below, where no exception group wraps it
            failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return fetching.plan.received


@define
class _Outcome:
    """How one request ended: links to follow, or the error that ends the fetch."""

    links: tuple[Cid, ...] = ()
    error: MeshError | None = None


@define
class _Fetch:
    """One fetch: a loop that owns the plan, and a task for each request in flight."""

    blocks: Blocks
    request: Request
    plan: Plan
    in_flight: int = 0
    _outcomes: tuple[trio.MemorySendChannel[_Outcome], trio.MemoryReceiveChannel[_Outcome]] = field(
        factory=lambda: trio.open_memory_channel[_Outcome](IN_FLIGHT_MAX)
    )

    async def run(self, nursery: trio.Nursery) -> None:
        while True:
            while found := self.plan.next_unlooked():
                missing, links = await trio.to_thread.run_sync(self._look, found)
                self.plan.looked(missing)
                self.plan.learn(links)
            while self.in_flight < IN_FLIGHT_MAX and (asked := self.plan.next_ask()):
                self.in_flight += 1
                nursery.start_soon(self._ask, asked)
            if self.in_flight == 0:
                return
            outcome = await self._outcomes[1].receive()
            self.in_flight -= 1
            if outcome.error is not None:
                raise outcome.error
            self.plan.learn(outcome.links)

    async def _ask(self, asked: list[Cid]) -> None:
        try:
            outcome = _Outcome(links=await self._bring(asked))
        except MeshError as error:
            outcome = _Outcome(error=error)
        await self._outcomes[0].send(outcome)

    async def _bring(self, asked: list[Cid]) -> tuple[Cid, ...]:
        """Ask for blocks and store those that come; what they link to."""
        try:
            data = await self.request(encode_request(asked))
        except Unavailable as error:
            self.plan.missed(asked, str(error))
            return ()
        reply = await trio.to_thread.run_sync(decode_reply, data)
        brought = self.plan.accept(asked, reply)
        return await trio.to_thread.run_sync(self._store, brought)

    def _store(self, brought: list[tuple[Cid, bytes]]) -> tuple[Cid, ...]:
        links = tuple(link for cid, block in brought for link in children(cid, block))
        self.blocks.put_many(brought)
        return links

    def _look(self, cids: list[Cid]) -> tuple[list[Cid], list[Cid]]:
        """Which of *cids* are not here, and what those that are link to."""
        missing: list[Cid] = []
        links: list[Cid] = []
        for cid in cids:
            if not self.blocks.has(cid):
                missing.append(cid)
            elif cid_codec(cid) != RAW:
                links.extend(children(cid, self.blocks.get(cid)))
        return missing, links
