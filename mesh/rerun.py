"""The re-run: a bill's job is run once more, from nothing but the receipt's own terms; and an
instrumented module is made once more, from what it says it was made of.

The job, the module and the inputs are named by CID: they are here, or come from the parties of the
deal. Whose receipt it is does not matter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import trio
from attrs import evolve, field, frozen

from ledger.evidence import Rerun
from ledger.model import Entry, Terms, burnt_before
from mesh.errors import Corruption, MeshError, PeerError, Unavailable
from mesh.ids import Cid, PeerId, check_cid, format_cid, short_peer
from mesh.market.agreement import WALL_LIMIT
from mesh.market.terms import CANCELLED_EXIT, MOVED_EXIT
from mesh.messages import Result, Work
from mesh.publishing import Publishing
from mesh.resources.capacity import Capacity
from mesh.runtime import manifest
from mesh.runtime.execution import MODULE_MAX, Workshop
from mesh.runtime.instrument import WAIT_SECONDS_MAX
from mesh.runtime.manifest import METER, Job, exit_status
from mesh.runtime.origin import Origin
from mesh.storage.blocks import not_here
from mesh.storage.unixfs import is_whole

FETCH_S = 60.0
RATE_MIN = 64 << 10
"""Bytes/s, after `FETCH_S`: an audit waits no longer for who sends slower."""
INPUT_MAX = 256 << 20
"""Bytes of one input that are fetched for an audit: they lie in a store that has other uses."""
Fetch = Callable[[PeerId, Cid, int], Awaitable[None]]


@frozen
class Skipped:
    """It was not run again: why."""

    reason: str
    is_final: bool = False
    """No machine could: how it ended is not a matter of the job."""


@frozen
class Remade:
    """An instrumented module was made once more."""

    is_same: bool
    """Whether it came out as the very bytes that were run. Where it did not, no bill is wrong: that
    is for the module that was run, whatever its maker says of it."""
    detail: str


@frozen
class Rerunner:
    """Runs bills again, one at a time: a worker beside those of the tasks sold is theirs."""

    me: PeerId
    workshop: Workshop
    fetch: Fetch
    """One try. Raises MeshError."""
    publishing: Publishing
    _turn: trio.Lock = field(factory=trio.Lock, init=False)

    async def run(self, bill: Entry, fuel_limit: int | None = None) -> Rerun | Skipped:
        """What comes out of the job of *bill*, a SETTLE or CLAIM, when it is run again.

        *fuel_limit* is that of its ALLOC, where it is known.
        """
        deal = bill.content.deal
        if reason := _unfit(deal):
            return Skipped(reason, is_final=True)
        if deal.meter != METER:
            return Skipped(f"it was metered by {deal.meter}, and here is {METER}")
        try:
            async with self._turn:
                job = await self._bring(deal)
                work = _work(deal, job, fuel_limit)
                key = f"audit-{bill.id.hex()[:32]}"
                again = await self.workshop.execute(work, None, key, lambda _: None)
                assert isinstance(again, Result), "nobody suspends it"
        except Corruption:
            raise
        except MeshError as error:
            return Skipped(f"could not be run again: {error}")
        if again.status == WALL_LIMIT:
            return Skipped("could not be run again: this machine is too slow for its time limit")
        return _rerun(bill, again, work.fuel)

    async def remake(self, bill: Entry) -> Remade | Skipped | None:
        """Whether the module of *bill* is what it says it is; None where it cannot be moved, so
        that nobody made it of another, or where it is not here."""
        deal = bill.content.deal
        try:
            module = check_cid(deal.module)
            view = await self.publishing.describe(module)
        except Corruption:
            raise
        except (MeshError, ValueError):
            return None
        if not view.is_movable:
            return None
        if view.origin is None:
            return Skipped(f"its module can be moved, and {view.reason}")
        try:
            return await self._remake(deal, module, view.origin)
        except Corruption:
            raise
        except MeshError as error:
            return Skipped(f"its module could not be made again: {error}")

    async def _remake(self, deal: Terms, module: Cid, origin: Origin) -> Remade | Skipped:
        here = await self.publishing.instrumenter()
        if origin.instrumenter != here:
            return Skipped(f"its module was made by {origin.instrumenter}, and here is {here}")
        await self._bring_source(deal, origin.source)
        made = await self.publishing.make(
            origin.source, origin.policy, WAIT_SECONDS_MAX, again=True
        )
        claim = f"{format_cid(origin.source)} by {here} ({origin.policy.value})"
        read = self.publishing.read
        if made == module or await trio.to_thread.run_sync(lambda: read(made) == read(module)):
            return Remade(True, f"the module is {claim}, made again")
        return Remade(
            False,
            f"the module is not what it says, {claim}: that is {format_cid(made)}. The bill stands:"
            " it is for the module that was run; what that computes, its source does not say",
        )

    async def _bring_source(self, deal: Terms, source: Cid) -> None:
        if await trio.to_thread.run_sync(is_whole, self.workshop.blocks, source):
            return
        why: MeshError = not_here(source)
        for party in (deal.buyer, deal.seller):
            if party != self.me:
                try:
                    return await self._fetch(PeerId(party), source, MODULE_MAX)
                except Corruption:
                    raise
                except MeshError as error:
                    why = error
        raise why

    async def _bring(self, deal: Terms) -> Job | None:
        """Get all that the run is made of; its manifest, None where that is no job.

        Raises MeshError.
        """
        try:
            return await trio.to_thread.run_sync(self._whole, deal)
        except Corruption:
            raise
        except MeshError as error:
            why = error
        for party in (deal.seller, deal.buyer):
            if party != self.me:
                try:
                    return await self._bring_from(PeerId(party), deal)
                except Corruption:
                    raise
                except MeshError as error:
                    why = error
        raise why

    def _whole(self, deal: Terms) -> Job | None:
        """The manifest, if all is here. Raises NotFound."""
        for root in _roots(deal):
            if not is_whole(self.workshop.blocks, root):
                raise not_here(root)
        return _job(self.workshop.blocks.get(Cid(deal.job)))

    async def _bring_from(self, party: PeerId, deal: Terms) -> Job | None:
        await self._fetch(party, Cid(deal.job), manifest.JOB_BYTES_MAX)
        job = _job(await trio.to_thread.run_sync(self.workshop.blocks.get, Cid(deal.job)))
        if job is not None:
            await self._fetch(party, Cid(deal.module), MODULE_MAX)
            for root in deal.inputs:
                await self._fetch(party, Cid(root), min(job.disk, INPUT_MAX))
        return job

    async def _fetch(self, party: PeerId, root: Cid, bytes_max: int) -> None:
        try:
            with trio.fail_after(FETCH_S + bytes_max / RATE_MIN):
                await self.fetch(party, root, bytes_max)
        except trio.TooSlowError:
            raise Unavailable(f"{short_peer(party)} does not send it") from None


def _unfit(deal: Terms) -> str:
    """Why nobody can run it again; empty where somebody may."""
    if deal.exit == CANCELLED_EXIT:
        return "cancelled: not re-runnable, billed as reported"
    if deal.exit == MOVED_EXIT:
        return "given back on the way: billed again with whoever went on, and checked there"
    if deal.exit == exit_status(WALL_LIMIT, 0):
        return f"{WALL_LIMIT}: not re-runnable, billed as reported"
    try:
        for cid in (deal.job, deal.module, *deal.inputs):
            check_cid(cid)
    except ValueError as error:
        return f"its terms name what is no content of ours: {error}"
    return ""


def _roots(deal: Terms) -> Iterator[Cid]:
    yield from map(Cid, (deal.job, deal.module, *deal.inputs))


def _job(data: bytes) -> Job | None:
    try:
        return manifest.decode(data)
    except PeerError:
        return None


def _work(deal: Terms, job: Job | None, fuel_limit: int | None) -> Work:
    """What the seller was asked for, by the terms, and what was burnt before it: all is run again.

    What is amiss with it, the run finds again.
    """
    if fuel_limit is not None:
        fuel_limit += burnt_before(deal)
    work = Work(
        job=Cid(deal.job),
        module=Cid(deal.module),
        inputs=tuple(map(Cid, deal.inputs)),
        needs=Capacity(cpu_milli=1000, memory=0, disk=0, slots=1),
        fuel=burnt_before(deal) + deal.fuel if fuel_limit is None else fuel_limit,
        wall_ms=0,
        features=(),
    )
    if job is None:
        return work
    needs = evolve(work.needs, memory=job.memory, disk=job.disk)
    limit = job.fuel if fuel_limit is None else fuel_limit
    return evolve(work, needs=needs, fuel=limit, wall_ms=job.wall_ms)


def _rerun(bill: Entry, again: Result, fuel_limit: int) -> Rerun:
    deal = bill.content.deal
    return Rerun(
        entry_id=bill.id,
        job=deal.job,
        meter=METER,
        fuel=min(again.fuel, fuel_limit),
        exit=exit_status(again.status, again.exit_code),
        outputs=(again.output, again.stdout, again.stderr),
    )
