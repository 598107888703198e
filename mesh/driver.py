"""The driver: runs the kernel under trio. The other shell is mesh/sim.

One task owns the kernel; everybody else posts events into a bounded inbox. Events that wait are
handled together: what they persist is committed once, before any of their sends. Timers are a heap.
The last events are kept as the black box: what replays a crash. The kernel's clock goes on while
the machine sleeps, as its peers' clocks do: a laptop that wakes up must not trust its leases.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Protocol, TypeAlias

import trio

from mesh.sansio import (
    Action,
    AppendEntry,
    Event,
    ForgetTenancy,
    PersistTask,
    PersistTenancy,
    Started,
    WakeAt,
    Woken,
)

INBOX_MAX = 4_096
BATCH_MAX = 64
BLACK_BOX_MAX = 4_096
BYTES_MAX = 16 << 20
"""Of what peers sent, in the inbox; and as many in the black box. Counts alone would let them fill
hundreds of megabytes with their longest messages."""

Durable: TypeAlias = PersistTask | PersistTenancy | ForgetTenancy | AppendEntry


class Core(Protocol):
    """What is driven."""

    def handle(self, event: Event, now: float) -> list[Action]: ...


class Driver:
    """The one writer of a kernel."""

    def __init__(self, core: Core, asleep: Callable[[], float] | None = None) -> None:
        """*asleep* tells how many seconds the machine has been suspended since it booted."""
        self._core = core
        self._asleep = asleep or seconds_asleep
        self._asleep_before = self._asleep()
        self._slept = 0.0
        self._inbox, self._events = trio.open_memory_channel[tuple[Event, int]](INBOX_MAX)
        self._timers: list[tuple[float, int, Woken]] = []
        self._order = count()
        self.dropped = 0
        """Events of peers refused because the inbox was full."""
        self.forgotten = 0
        """Events that the black box no longer holds."""
        self.black_box: deque[tuple[float, Event]] = deque()
        self._boxed: deque[int] = deque()
        self._boxed_bytes = self._waiting_bytes = 0

    def now(self) -> float:
        """The kernel's clock: monotonic seconds, sleep included."""
        self._slept = max(self._slept, round(self._asleep() - self._asleep_before, 1))
        return trio.current_time() + self._slept

    async def post(self, event: Event) -> None:
        """Queue an event; waits while the inbox is full."""
        await self._inbox.send((event, 0))

    def post_nowait(self, event: Event, size: int = 0) -> bool:
        """Queue an event that may be lost, such as a peer's message of *size* bytes; False when it
        was."""
        try:
            if self._waiting_bytes + size > BYTES_MAX:
                raise trio.WouldBlock
            self._inbox.send_nowait((event, size))
        except trio.WouldBlock:
            self.dropped += 1
            return False
        self._waiting_bytes += size
        return True

    async def drive(
        self,
        *,
        persist: Callable[[Sequence[Durable]], Awaitable[None]],
        perform: Callable[[Action], None],
    ) -> None:
        """Run for ever. *persist* returns when it is on disk; *perform* never waits."""
        await self._turn([(Started(), 0)], persist, perform)
        while True:
            await self._turn(await self._wait(), persist, perform)

    async def _wait(self) -> list[tuple[Event, int]]:
        """The next events: what is due first, since what came in may rest on it; then the inbox."""
        deadline = self._timers[0][0] - self._slept if self._timers else math.inf
        received: list[tuple[Event, int]] = []
        with trio.move_on_at(deadline):
            received.append(await self._events.receive())
        events: list[tuple[Event, int]] = []
        while self._timers and self._timers[0][0] <= self.now():
            events.append((heapq.heappop(self._timers)[2], 0))
        events += received
        while len(events) < BATCH_MAX:
            try:
                events.append(self._events.receive_nowait())
            except trio.WouldBlock:
                break
        return events

    async def _turn(
        self,
        events: Sequence[tuple[Event, int]],
        persist: Callable[[Sequence[Durable]], Awaitable[None]],
        perform: Callable[[Action], None],
    ) -> None:
        actions: list[Action] = []
        self._waiting_bytes -= sum(size for _, size in events)
        for event, size in events:
            now = self.now()
            self._remember(now, event, size)
            actions += self._core.handle(event, now)
        durable: list[Durable] = []
        effects: list[Action] = []
        for action in actions:
            match action:
                case PersistTask() | PersistTenancy() | ForgetTenancy() | AppendEntry():
                    durable.append(action)
                case WakeAt(when, woken):
                    heapq.heappush(self._timers, (when, next(self._order), woken))
                case _:
                    effects.append(action)
        if durable:
            await persist(durable)
        for effect in effects:
            perform(effect)

    def _remember(self, now: float, event: Event, size: int) -> None:
        self.black_box.append((now, event))
        self._boxed.append(size)
        self._boxed_bytes += size
        while len(self.black_box) > BLACK_BOX_MAX or self._boxed_bytes > BYTES_MAX:
            self.black_box.popleft()
            self._boxed_bytes -= self._boxed.popleft()
            self.forgotten += 1


def seconds_asleep() -> float:
    """How long this machine has been suspended since it booted; 0 where no clock tells."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return 0.0 if clock is None else time.clock_gettime(clock) - time.monotonic()
