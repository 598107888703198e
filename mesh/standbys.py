"""Standbys: workers that wait for tasks that may come here, as far as there is room for them.

A state that is kept for a task is laid into a worker's memory while the task still runs elsewhere,
so that it stands still for less when it comes. Nothing is promised and nothing paid: a standby has
what memory is not sold, and goes when that is, or when nobody has brought a newer state for long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import trio
from attrs import define, field

from mesh.errors import Corruption, MeshError
from mesh.ids import PeerId, TaskId, format_task
from mesh.messages import Work
from mesh.runtime.execution import Prepared, Workshop
from mesh.runtime.manifest import Job
from mesh.runtime.supervisor import WorkerLost
from mesh.sansio import KeepState

STANDBY_S = 900.0
"""After so long without a newer state it goes."""
LOOK_S = 5.0
"""Between two looks whether there is room. A hold for its own task passes in less."""


@define(eq=False)
class _Waiting:
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    memory: int = 0
    prepared: Prepared | None = None
    """None while it is made, and where it cannot be: that is not tried again."""


class Standbys:
    """One for each task of which a state is kept, at most."""

    def __init__(
        self, nursery: trio.Nursery, workshop: Callable[[], Workshop], room: Callable[[], int]
    ) -> None:
        """*room* says how many bytes of memory are neither sold nor used by the owner."""
        self._nursery, self._workshop, self._room = nursery, workshop, room
        self._waiting: dict[tuple[PeerId, TaskId], _Waiting] = {}
        self.used = 0
        """How many were lent to a run."""

    def __len__(self) -> int:
        return sum(one.prepared is not None for one in self._waiting.values())

    async def keep(self, asked: KeepState) -> None:
        """Let a standby have that state, which is here."""
        key = (asked.buyer, asked.task)
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = waiting = _Waiting()
            self._nursery.start_soon(self._stand_by, key, waiting, asked)
        elif waiting.prepared is not None:
            waiting.scope.deadline = trio.current_time() + STANDBY_S
            try:
                await self._workshop().advance(waiting.prepared, asked.buyer, asked.state)
            except Corruption:
                raise
            except MeshError:
                if self._waiting.get(key) is waiting:
                    waiting.scope.cancel()

    def drop(self, buyer: PeerId, task: TaskId) -> None:
        waiting = self._waiting.pop((buyer, task), None)
        if waiting is not None:
            waiting.scope.cancel()

    @contextmanager
    def lent(self, work: Work) -> Iterator[Prepared | None]:
        """The one for *work*, which is then nobody else's, and goes with the block."""
        for key, waiting in self._waiting.items():
            prepared = None if waiting.scope.cancel_called else waiting.prepared
            if prepared is not None and prepared.cid == work.job:
                del self._waiting[key]
                waiting.scope.deadline = float("inf")
                self.used += 1
                try:
                    yield prepared
                finally:
                    waiting.scope.cancel()
                return
        yield None

    async def _stand_by(
        self, key: tuple[PeerId, TaskId], waiting: _Waiting, asked: KeepState
    ) -> None:
        def has_room(job: Job) -> bool:
            waiting.memory = job.memory
            return self._fits()

        name = f"standby-{format_task(asked.task)}-{asked.buyer.hex()}"
        opening = self._workshop().prepared(
            asked.buyer, asked.state, name, bytes_max=asked.bytes_max, has_room=has_room
        )
        with waiting.scope:
            try:
                async with opening as waiting.prepared:
                    waiting.scope.deadline = trio.current_time() + STANDBY_S
                    await self._stay(key, waiting)
            except Corruption:
                raise
            except WorkerLost:
                waiting.memory, waiting.prepared = 0, None
                return  # what is lost once is not tried again, until it is dropped
            except MeshError:
                pass
        with suppress(KeyError):
            if self._waiting[key] is waiting:
                del self._waiting[key]

    async def _stay(self, key: tuple[PeerId, TaskId], waiting: _Waiting) -> None:
        """Until there was no room at two looks in a row."""
        has_room = True
        while (fits := self._fits()) or has_room or self._waiting.get(key) is not waiting:
            has_room = fits
            await trio.sleep(LOOK_S)

    def _fits(self) -> bool:
        return sum(one.memory for one in self._waiting.values()) <= self._room()
