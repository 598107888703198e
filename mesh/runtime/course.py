"""The course of one run, as its supervisor holds it: paused, continued, held, let go.

To be held is asked for and answered at the guest's next check, or never: then it is withdrawn.
While it is held the guest stands still and shows all that it is; what it shows is a stranger's.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import trio
from attrs import define, evolve, field, frozen

from mesh.errors import Corruption, MeshError, PeerError
from mesh.ids import RAW, Cid, cid_of
from mesh.migration.snapshot import REGION, Shared, Snapshot, decode_head
from mesh.runtime.frames import IMAGE, Go, Hold, Still, Unmoved, Withdraw
from mesh.runtime.manifest import Job, encode
from mesh.runtime.stopwatch import Stopwatch
from mesh.runtime.workers import Worker, WorkerDied

HOLD_S = 5.0
"""The longest that a guest may run on before it stands still; then it is not held after all."""


@frozen
class Held:
    """A guest that stands still. Its folders and its memory are files of the supervisor's."""

    snapshot: Snapshot
    head: bytes
    """*snapshot*, encoded."""
    changed: frozenset[int]
    """Regions of the memory that are others than in the last state that was kept."""
    image: Path
    """Its memory, where it ever was another than a fresh instance's."""
    out: Path
    tmp: Path


@frozen
class Kept:
    """A state of a run that goes on."""

    state: Cid
    fuel: int
    """Burnt up to there, since the task began."""


@frozen
class Suspended:
    """How a run ended that was taken out alive."""

    state: Cid
    fuel: int
    run_ms: int


@frozen
class Stays:
    """Why a run could not be kept or taken out: it goes on."""

    reason: str
    is_for_good: bool
    """Whether asking again is no use."""


@frozen
class Beginning:
    """A state to go on from, laid out in files that become the run's own."""

    snapshot: Path
    out: Path
    tmp: Path
    fuel: int
    """Burnt up to there."""
    shared: tuple[Shared, ...] = ()
    """What the snapshot leaves out, since the state before has it that a standby has."""


Keep: TypeAlias = Callable[[Held], Awaitable[Cid]]
"""Turns what is held into a state. Raises MeshError."""


@define(eq=False)
class Course:
    """A run that has not ended."""

    scratch: Path
    watch: Stopwatch
    keep: Keep | None
    worker: Worker | None = None
    has_started: bool = False
    can_move: bool = False
    fuel: int = 0
    memory: int = 0
    suspended: Suspended | None = None
    """Set when its state is safe; its worker then dies."""
    _turn: trio.Lock = field(factory=trio.Lock)
    """Who holds it."""
    _is_asked: bool = False
    _is_held: bool = False
    _changed: set[int] = field(factory=set)
    _answers: tuple[
        trio.MemorySendChannel[Held | Stays], trio.MemoryReceiveChannel[Held | Stays]
    ] = field(factory=lambda: trio.open_memory_channel[Held | Stays](1))

    def pause(self) -> None:
        self.watch.pause()
        if self.worker is not None:
            self.worker.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.watch.go_on()
        if self.worker is not None:
            self.worker.signal(signal.SIGCONT)

    # --- what its worker says -----------------------------------------------------------------

    async def answer(self, report: Still | Unmoved, job: Job) -> None:
        """Hand on what the worker answered. Raises PeerError where that cannot be."""
        if not self._is_asked:
            raise PeerError("a worker that answers what nobody asked")
        match report:
            case Still():
                found: Held | Stays = await trio.to_thread.run_sync(self._held, report, job)
            case Unmoved(reason=reason):
                found = Stays(reason, is_for_good=False)
        self._is_asked = False
        self._answers[0].send_nowait(found)

    def _held(self, still: Still, job: Job) -> Held:
        snapshot = decode_head(still.head)
        is_sane = (
            (snapshot.module, snapshot.job) == (job.module, cid_of(RAW, encode(job)))
            and self.fuel <= snapshot.fuel <= job.fuel
            and snapshot.size <= job.memory
            and all(number * REGION < snapshot.size for number in still.changed)
        )
        if not is_sane:
            raise PeerError("a worker that shows another task than its own")
        self._changed.update(still.changed)
        return Held(
            snapshot,
            still.head,
            frozenset(self._changed),
            self.scratch / IMAGE,
            self.scratch / "out",
            self.scratch / "tmp",
        )

    # --- what is asked of it ------------------------------------------------------------------

    async def checkpoint(self) -> Kept | Stays:
        """Keep it as it is at its next check; it goes on while that is done."""
        async with self._turn, self._holding() as held:
            if isinstance(held, Stays):
                return held
            folder = self.scratch / "copy"
            try:
                copied = await trio.to_thread.run_sync(_copied, held, folder)
                await self._let_go()
                state = await self._kept(copied)
            except OSError as error:
                return Stays(f"its files could not be kept: {error}", is_for_good=False)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(_remove, folder)
            return state if isinstance(state, Stays) else Kept(state, held.snapshot.fuel)

    async def suspend(self) -> Suspended | Stays:
        """Take it out at its next check: then it ends as `suspended`, once its state is safe."""
        async with self._turn, self._holding() as held:
            if isinstance(held, Stays):
                return held
            try:
                state = await self._kept(held)
            except OSError as error:
                return Stays(f"its files could not be kept: {error}", is_for_good=False)
            if isinstance(state, Stays):
                return state
            run_ms = round(self.watch.elapsed * 1000)
            self.suspended = Suspended(state, held.snapshot.fuel, run_ms)
            return self.suspended

    def close(self) -> None:
        """It has ended: whoever waits for it to stand still waits no longer."""
        self._answers[0].close()

    async def settled(self) -> None:
        """Wait until nobody holds it; it has ended."""
        self.close()
        async with self._turn:
            pass

    @asynccontextmanager
    async def _holding(self) -> AsyncIterator[Held | Stays]:
        """Let it stand still, if it can. Afterwards it goes on, or dies where it is suspended."""
        with trio.CancelScope(shield=True):  # of bounded length: no answer is left unheard
            held = await self._ask()
        self._is_held = isinstance(held, Held)
        try:
            yield held
        finally:
            if self.suspended is not None and self.worker is not None:
                self.worker.signal(signal.SIGKILL)
            else:
                with trio.CancelScope(shield=True):
                    await self._let_go()

    async def _ask(self) -> Held | Stays:
        if self.worker is None or not self.has_started:
            return Stays("it has not begun to run, or is over", is_for_good=False)
        if not self.can_move:
            return Stays("its module was not made to be moved", is_for_good=True)
        if self.keep is None:
            return Stays("its module is not one that is moved here", is_for_good=True)
        if self.watch.is_paused:
            return Stays("it is paused", is_for_good=False)
        self._is_asked = True
        try:
            await self.worker.say(Hold())
            with trio.move_on_after(HOLD_S):
                return await self._answers[1].receive()
            await self.worker.say(Withdraw())
            return await self._answers[1].receive()
        except (WorkerDied, trio.EndOfChannel):
            return Stays("it is over", is_for_good=False)

    async def _let_go(self) -> None:
        if self._is_held and self.worker is not None:
            self._is_held = False
            with suppress(WorkerDied):
                await self.worker.say(Go())

    async def _kept(self, held: Held) -> Cid | Stays:
        assert self.keep is not None
        try:
            state = await self.keep(held)
        except Corruption:
            raise
        except MeshError as error:
            return Stays(str(error), is_for_good=False)
        self._changed.clear()
        return state


def _copied(held: Held, folder: Path) -> Held:
    """With folders of its own, which the guest that goes on does not touch. Raises OSError."""
    folder.mkdir(mode=0o700)
    for path in (held.out, held.tmp):
        shutil.copytree(path, folder / path.name, symlinks=True)
    return evolve(held, out=folder / held.out.name, tmp=folder / held.tmp.name)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
