"""A standby: a worker that has an earlier state of a task in its memory, and waits for the last.

So what a move has to do while the task stands still is what has changed since, and no more. It
burns nothing and is billed to nobody; it ends with the block that it was opened for, unless a run
has taken it over by then.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import trio
from attrs import define

from mesh.errors import PeerError
from mesh.migration.snapshot import Shared
from mesh.runtime.frames import (
    REST,
    Ended,
    Failed,
    InPlace,
    Lay,
    Ready,
    RunJob,
    encode_order,
    encode_run,
)
from mesh.runtime.workers import Worker, WorkerDied, WorkerLost

LAY_S = 600.0
"""The longest that getting ready, compiling and laying may take, on a machine however busy."""


@define(eq=False)
class Standby:
    """One worker that waits. Its files are in its order's scratch."""

    order: RunJob
    worker: Worker
    on_taken: Callable[[], None]
    is_taken: bool = False
    """By a run, whose worker it then is."""

    @property
    def scratch(self) -> Path:
        return Path(self.order.scratch)

    def taken(self) -> Worker:
        """Its worker, which is a run's from now on."""
        assert not self.is_taken
        self.is_taken = True
        self.on_taken()
        return self.worker

    async def start(self, snapshot: Path) -> None:
        """Let it get ready, and take in its first state, as `lay`."""
        await self._tell(snapshot, encode_run(self.order) + encode_order(Lay(())))

    async def lay(self, snapshot: Path, shared: Iterable[Shared]) -> None:
        """Let it take in a state in the place of the last, from a file that becomes its own.

        Raises WorkerLost where it cannot.
        """
        await self._tell(snapshot, encode_order(Lay(tuple(shared))))

    async def _tell(self, snapshot: Path, frames: bytes) -> None:
        put_rest(snapshot, self.scratch)
        try:
            with trio.fail_after(LAY_S):
                await self.worker.send_frames(frames)
                await self._hear_laid()
        except trio.TooSlowError:
            raise WorkerLost(f"a standby takes over {LAY_S:.0f} s") from None
        except WorkerDied:
            raise WorkerLost(f"a standby died ({await self.worker.end()})") from None
        except PeerError as error:
            raise WorkerLost(f"a standby broke the protocol: {error}") from None
        # To remove what may be gigabytes takes long: not when the last state comes in its place.
        rest = self.scratch / REST
        await trio.to_thread.run_sync(lambda: rest.unlink(missing_ok=True))

    async def _hear_laid(self) -> None:
        while True:
            match await self.worker.report():
                case Ready():
                    pass
                case InPlace():
                    return
                case Failed(reason=reason):
                    raise WorkerLost(reason)
                case Ended(detail=detail):
                    raise WorkerLost(f"nothing to stand by for: {detail}")
                case _:
                    raise PeerError("a standby that runs")


def put_rest(snapshot: Path, scratch: Path) -> None:
    """Put a state where the worker finds it whose files are in *scratch*. Blocks."""
    rest = scratch / REST
    rest.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.move(snapshot, rest)


def put_files(folder: Path, target: Path) -> None:
    """Put what is in *folder* into *target*, which is the one that the worker may reach. Blocks."""
    for name in os.listdir(folder):
        shutil.move(folder / name, target / name)
