"""A node's disk: a write is durable when something has waited for it; a crash takes the rest."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeAlias

from attrs import frozen

from mesh.ids import TaskId
from mesh.market.order import TaskRecord
from mesh.sansio import AppendEntry, ForgetTenancy, PersistTask, PersistTenancy

Write: TypeAlias = PersistTask | PersistTenancy | ForgetTenancy | AppendEntry


@frozen
class Contents:
    """What a restarted node finds."""

    records: dict[TaskId, TaskRecord]
    tenancies: dict[tuple[TaskId, int], PersistTenancy]
    entries: list[bytes]
    """Our own chain, in order."""
    foreign: list[bytes]
    """Entries of others that name us."""


class Disk:
    """A write-ahead log: after a crash a prefix of the writes that nobody waited for is there."""

    def __init__(self, on_durable: Callable[[Write], None]) -> None:
        self._contents = Contents({}, {}, [], [])
        self._tail: list[Write] = []
        self._on_durable = on_durable
        self.writes = 0

    def write(self, write: Write) -> None:
        """Hand a write to the operating system."""
        self._tail.append(write)
        self.writes += 1

    def sync(self) -> None:
        """Wait until every write so far is durable."""
        for write in self._tail:
            self._apply(write)
        self._tail.clear()

    def crash(self, rng: Random) -> int:
        """Lose a drawn part of the tail; how many writes went."""
        kept = rng.randint(0, len(self._tail))
        lost = len(self._tail) - kept
        del self._tail[kept:]
        self.sync()
        return lost

    def roll_back(self, entries: int) -> list[bytes]:
        """Put back an old backup of our own chain: what it lacks."""
        kept = max(0, len(self._contents.entries) - entries)
        lost = self._contents.entries[kept:]
        del self._contents.entries[kept:]
        return lost

    def bring_back(self, entries: list[bytes]) -> None:
        """What peers had kept for us, durable."""
        self._contents.entries.extend(entries)

    def read(self) -> Contents:
        """What is durable."""
        return self._contents

    def tenancy(self, task: TaskId, fence: int) -> PersistTenancy | None:
        """The newest record of a tenancy, durable or not yet."""
        for write in reversed(self._tail):
            if isinstance(write, PersistTenancy) and (write.task, write.fence) == (task, fence):
                return write
        return self._contents.tenancies.get((task, fence))

    def _apply(self, write: Write) -> None:
        contents = self._contents
        match write:
            case PersistTask(record):
                contents.records[record.order.task] = record
            case PersistTenancy(task, fence):
                contents.tenancies[task, fence] = write
            case ForgetTenancy(task, fence):
                contents.tenancies.pop((task, fence), None)
            case AppendEntry(entry, is_own):
                (contents.entries if is_own else contents.foreign).append(entry)
        self._on_durable(write)
