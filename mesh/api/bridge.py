"""The only crossing between the trio thread and the one asyncio thread.

`trio.run` owns the process; libraries that know only asyncio live in one thread beside it. What
crosses: calls (`call`), what they tell one by one (`stream`), what they are fed (`feed`), and, the
other way, coroutines of the asyncio side (`perform`).

Rules, each bought dearly:

- Neither thread ever waits for the other with a lock: trio is reached by `run_sync_soon`, asyncio
  by `call_soon_threadsafe`. Both queues are first in, first out, so that an answer never overtakes
  an item, nor a cancellation the call that it is meant for.
- Cancelling an asyncio task does not cross by itself: each call has a CancelScope of its own.
- Answers that come too late, to a future that was cancelled or to a loop that is closed, are
  dropped; calls that come too late are answered `Closed`.
- Nothing is buffered beyond a window: who sends waits for credit, which counts items.
- An error of mesh.errors is an answer. Anything else is a bug of ours: the client is told
  `Crashed`, and the error goes on into the nursery, so that the node stops and says why.
- Leaving: no new calls, cancel the running ones and wait for their clean-up, and only then stop
  the asyncio thread. Who serves calls must have stopped serving before (mesh/api/server.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, TypeVarTuple

import trio
from attrs import define, field

from mesh.api.faults import Closed, Crashed
from mesh.errors import Corruption, MeshError

T = TypeVar("T")
S = TypeVar("S")
Args = TypeVarTuple("Args")
S_contra = TypeVar("S_contra", contravariant=True)


class Send(Protocol[S_contra]):
    """Hands an item over; waits while the other side has a whole window of them to take."""

    async def __call__(self, item: S_contra, /) -> None: ...


class Bridge:
    """See `open_bridge`. Methods say in which thread they may be called."""

    def __init__(self) -> None:
        self.calls_begun = 0
        self.calls_cancelled = 0
        """By the asyncio side: its client left, or its deadline passed."""
        self._token = trio.lowlevel.current_trio_token()
        self._calls: trio.Nursery | None = None
        """None while no calls are taken: before the beginning, after the end."""
        self._loop: asyncio.AbstractEventLoop
        self._left: asyncio.Event

    # In the asyncio thread

    async def call(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """Run `function(*args)` in trio. Raises what it raises of mesh.errors, or Crashed."""
        call = self._begin(partial(function, *args))
        try:
            return await call.answer
        finally:
            self._leave(call)

    @asynccontextmanager
    async def stream(
        self,
        function: Callable[[*Args, Send[T]], Awaitable[None]],
        *args: *Args,
        window: int = 64,
    ) -> AsyncIterator[AsyncIterator[T]]:
        """Run `function(*args, send)` in trio; iterate over what it sends, then raise its error.

        Leaving the context cancels the function. At most *window* items are on their way.
        """
        items = _Outlet[T](self, window)
        call = self._begin(partial(function, *args, items.send))
        call.answer.add_done_callback(items.end)
        try:
            yield items
        finally:
            self._leave(call)

    async def feed(
        self,
        source: AsyncIterator[S],
        function: Callable[[*Args, AsyncIterator[S]], Awaitable[T]],
        *args: *Args,
        window: int = 8,
    ) -> T:
        """Run `function(*args, items)` in trio, *items* being those of *source*, in their order.

        *source* is asked for the next item only when there is room in the window. Its own error
        cancels the function and is raised here.
        """
        items = _Inlet[S](self, window)
        call = self._begin(partial(function, *args, items))
        pump = asyncio.create_task(items.pump(source))
        try:
            await asyncio.wait((call.answer, pump), return_when=asyncio.FIRST_COMPLETED)
            if not call.answer.done():
                await pump
            return await call.answer
        finally:
            self._leave(call)
            pump.cancel()
            await asyncio.wait((pump,))
            if not pump.cancelled():
                pump.exception()  # seen: the function's own answer came first

    def _begin(self, function: Callable[[], Awaitable[T]]) -> _Call[T]:
        call = _Call(function, self._loop.create_future())
        self._to_trio(self._spawn, call)
        return call

    def _leave(self, call: _Call[Any]) -> None:
        """Nobody waits for *call* any more."""
        if call.answer.done() and not call.answer.cancelled():
            call.answer.exception()  # seen, lest asyncio says that nobody looked
            return
        call.answer.cancel()
        with suppress(Closed):
            self._to_trio(self._abandon, call)

    # In the trio thread

    async def perform(self, function: Callable[[*Args], Coroutine[Any, Any, T]], *args: *Args) -> T:
        """Run the coroutine `function(*args)` in the asyncio thread and wait for it.

        Cancelling cancels it there and waits until it has cleaned up.
        """
        done = trio.Event()
        task: asyncio.Task[T] | None = None

        def begin() -> None:
            nonlocal task
            task = self._loop.create_task(function(*args))
            task.add_done_callback(lambda _: self._to_trio(done.set))

        def cancel() -> None:
            assert task is not None
            task.cancel()

        self._loop.call_soon_threadsafe(begin)
        try:
            await done.wait()
        except trio.Cancelled:
            self._loop.call_soon_threadsafe(cancel)
            with trio.CancelScope(shield=True):
                await done.wait()
            raise
        assert task is not None
        return task.result()

    def statistics(self) -> dict[str, int]:
        """Counters by name."""
        return {"calls_begun": self.calls_begun, "calls_cancelled": self.calls_cancelled}

    def _spawn(self, call: _Call[Any]) -> None:
        self.calls_begun += 1
        if self._calls is None:
            self._to_asyncio(call.settle, None, Closed())
        else:
            self._calls.start_soon(self._run, call)

    def _abandon(self, call: _Call[Any]) -> None:
        self.calls_cancelled += 1
        call.scope.cancel()

    async def _run(self, call: _Call[Any]) -> None:
        value: Any = None
        error: MeshError | None = Crashed()
        try:
            with call.scope:
                value = await call.function()
            error = None
        except (MeshError, trio.Cancelled, BaseExceptionGroup) as raised:
            answer = _answer_in(raised)
            if answer is None:
                error = Closed() if _is_cancelled(raised) else Crashed()
                raise
            error = answer
        finally:
            self._to_asyncio(call.settle, value, error)

    def _open(self, calls: trio.Nursery) -> None:
        self._calls = calls

    def close(self) -> None:
        """No new calls; the running ones are cancelled and answered `Closed`."""
        if self._calls is not None:
            self._calls.cancel_scope.cancel()
            self._calls = None

    # From either

    def _to_trio(self, function: Callable[[*Args], object], *args: *Args) -> None:
        try:
            self._token.run_sync_soon(function, *args)
        except trio.RunFinishedError:
            raise Closed from None

    def _to_asyncio(self, function: Callable[[*Args], object], *args: *Args) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits for this any more
            self._loop.call_soon_threadsafe(function, *args)

    # The thread

    def _live(self, started: Callable[[], None]) -> None:
        asyncio.run(self._idle(started))

    async def _idle(self, started: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = asyncio.Event()
        trio.from_thread.run_sync(started)
        await self._left.wait()

    def _leave_thread(self) -> None:
        self._to_asyncio(self._left.set)


@asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """Start the asyncio thread; on leaving cancel the calls, await their end, stop the thread.

    A bug in a call cancels the body and is raised from here. One exception alone comes out of its
    group, so that the body's own errors can be caught by name.
    """
    lone: BaseException | None = None
    try:
        async with trio.open_nursery() as thread:
            bridge = Bridge()
            started = trio.Event()
            thread.start_soon(_run_thread, bridge, started)
            await started.wait()
            try:
                async with trio.open_nursery() as calls:
                    bridge._open(calls)
                    try:
                        yield bridge
                    finally:
                        bridge.close()
            finally:
                bridge._leave_thread()
    except BaseExceptionGroup as group:
        lone = _lone(group)
        if isinstance(lone, BaseExceptionGroup):
            raise
    if lone is not None:  # raised out here, its context stays its own
        raise lone


async def _run_thread(bridge: Bridge, started: trio.Event) -> None:
    limiter = trio.CapacityLimiter(1)  # it lives as long as the node: no loan from the others
    await trio.to_thread.run_sync(bridge._live, started.set, limiter=limiter)


def _lone(error: BaseException) -> BaseException:
    """What is left of a group of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _answer_in(raised: BaseException) -> MeshError | None:
    """The error in *raised* that is an answer to the caller; None if any of it is not."""
    match raised:
        case Corruption():
            return None
        case MeshError():
            return raised
        case ExceptionGroup():
            answers = [_answer_in(each) for each in raised.exceptions]
            return None if None in answers else answers[0]
        case _:
            return None


def _is_cancelled(raised: BaseException) -> bool:
    """Whether *raised* is a cancellation and nothing else."""
    if isinstance(raised, BaseExceptionGroup):
        return raised.split(trio.Cancelled)[1] is None
    return isinstance(raised, trio.Cancelled)


@define(eq=False)
class _Call(Generic[T]):
    """One call from the asyncio side: what to run in trio, and where its answer goes."""

    function: Callable[[], Awaitable[T]]
    answer: asyncio.Future[T]
    scope: trio.CancelScope = field(factory=trio.CancelScope)

    def settle(self, value: T, error: MeshError | None) -> None:
        """In the asyncio thread."""
        if self.answer.done():
            return
        if error is None:
            self.answer.set_result(value)
        else:
            self.answer.set_exception(error)


class _Outlet(Generic[T]):
    """Items on their way from trio to asyncio."""

    def __init__(self, bridge: Bridge, window: int) -> None:
        self._bridge = bridge
        self._room = trio.Semaphore(window)
        self._items: asyncio.Queue[T | asyncio.Future[None]] = asyncio.Queue()  # room bounds it
        self._owed = 0
        self._owed_max = max(1, window // 2)

    async def send(self, item: T) -> None:
        """In trio. Cancelling it loses nothing that was not sent."""
        await self._room.acquire()
        self._bridge._to_asyncio(self._items.put_nowait, item)

    def end(self, answer: asyncio.Future[None]) -> None:
        """In asyncio: nothing comes after this."""
        self._items.put_nowait(answer)

    def __aiter__(self) -> _Outlet[T]:
        return self

    async def __anext__(self) -> T:
        item = await self._items.get()
        if isinstance(item, asyncio.Future):
            item.result()
            raise StopAsyncIteration
        self._owed += 1
        if self._owed >= self._owed_max:  # credit travels in batches: half the crossings
            self._bridge._to_trio(self._give, self._owed)
            self._owed = 0
        return item

    def _give(self, credit: int) -> None:
        for _ in range(credit):
            self._room.release()


class _Inlet(Generic[T]):
    """Items on their way from asyncio to trio."""

    def __init__(self, bridge: Bridge, window: int) -> None:
        self._bridge = bridge
        self._room = asyncio.Semaphore(window)
        self._items: deque[T] = deque()
        self._is_ended = False
        self._arrived = trio.Event()

    async def pump(self, source: AsyncIterator[T]) -> None:
        """In asyncio: everything that *source* has."""
        await self._room.acquire()
        async for item in source:
            self._bridge._to_trio(self._arrive, item)
            await self._room.acquire()
        self._bridge._to_trio(self._end)

    def _arrive(self, item: T) -> None:
        self._items.append(item)
        self._arrived.set()

    def _end(self) -> None:
        self._is_ended = True
        self._arrived.set()

    def __aiter__(self) -> _Inlet[T]:
        return self

    async def __anext__(self) -> T:
        await trio.lowlevel.checkpoint()
        while not self._items:
            if self._is_ended:
                raise StopAsyncIteration
            self._arrived = trio.Event()
            await self._arrived.wait()
        self._bridge._to_asyncio(self._room.release)
        return self._items.popleft()
