"""The arrival of a task that was moved: its state, put into a fresh guest, and gone on from.

What comes is another machine's: opened inside of the walls, and believed in nothing. A state may
come ahead, while its task still runs elsewhere; the last one then brings what has changed since.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import assert_never

from attrs import define

from mesh.errors import PeerError, Refused
from mesh.ids import RAW, cid_of
from mesh.migration.snapshot import Laid, Shared, decode_since
from mesh.runtime import capture
from mesh.runtime.frames import REST, Begin, InPlace, Lay, Report, RunJob, decode_order
from mesh.runtime.manifest import Job
from mesh.runtime.suspension import Image, MovableGuest
from mesh.runtime.trees import HostFailure, Tree
from mesh.runtime.wasi import Wasi


@define(eq=False)
class Arrival:
    """One guest, fresh as yet, and the states that come for it."""

    run: RunJob
    job: Job
    guest: MovableGuest
    wasi: Wasi
    trees: tuple[Tree, ...]

    def wait(self, hear: Callable[[], bytes], say: Callable[[Report], None]) -> int:
        """Do what it is told, until the guest is what it was elsewhere; how much of a core it may
        take. Raises HostFailure, since a state that lies is not its doing."""
        laid: Laid | None = None
        try:
            while True:
                match decode_order(hear()):
                    case Lay(shared=shared):
                        laid = self._lay(laid, shared)
                        say(InPlace())
                    case Begin(shared=shared, fuel=fuel, cpu_milli=cpu_milli):
                        self._begin(self._lay(laid, shared), fuel)
                        return cpu_milli
                    case other:
                        assert_never(other)
        except (PeerError, Refused) as error:
            raise HostFailure(f"the state to go on from is none: {error}") from error

    def _lay(self, before: Laid | None, shared: tuple[Shared, ...]) -> Laid:
        try:
            with Path(self.run.scratch, REST).open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise HostFailure(f"the state to go on from cannot be read: {error}") from error
        with data, memoryview(data) as view:
            laid, pages = decode_since(before, view, shared)
            snapshot = laid.snapshot
            if (snapshot.module, snapshot.job) != (self.job.module, cid_of(RAW, self.run.job)):
                raise Refused("it is another task's")
            self.guest.lay(snapshot.size, pages, before.snapshot.regions if before else {})
        return laid

    def _begin(self, laid: Laid, fuel: int) -> None:
        s = laid.snapshot
        if s.fuel != fuel:
            raise Refused("it burnt other fuel than was told of it")
        capture.restore(self.wasi, self.trees, s.calls, s.stdout, s.stderr)
        self.guest.become(Image(s.size, s.variables, s.stack, s.fuel))
