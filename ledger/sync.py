"""Two replicas become equal over any stream of bytes: the framing, the budgets, who speaks when.

A frame is its length in 4 bytes, big-endian, and a message (turns.py). The caller opens a stream,
says hello with the fingerprint of all it holds, and hears either that it is the same (56 bytes in
all) or the first turn of an exchange. Several exchanges may follow one another on one stream.

Nothing here is of one event loop: the stream, the clock and the way into a thread are arguments. A
peer that falls silent is the caller's to give up: cancel, what was merged by then stays merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from attrs import frozen

from ledger.exchange import Exchange, Heard, Outcome
from ledger.merge import Merger
from ledger.turns import PIECE_MAX, Hello, HungUp, Piece, Scope, SyncError

EXCHANGES_MAX = 8
"""That one stream may carry."""
PIECES_MAX = 128
"""In one turn; ours have fewer."""
_LENGTH = 4
_READ = 64 * 1024
T = TypeVar("T")


class OverBudget(SyncError):
    """More than we grant one stream. What came is kept, the next stream goes on from there."""


class Stream(Protocol):
    """Bytes in order, both ways."""

    async def send_all(self, data: bytes) -> None:
        """Send all of *data*."""

    async def receive_some(self, max_bytes: int) -> bytes:
        """At least one byte and at most *max_bytes*; none at the end."""


class RunInThread(Protocol):
    """Runs a blocking function elsewhere."""

    async def __call__(self, blocking: Callable[[], T], /) -> T:
        """What *blocking* returns or raises."""


@frozen
class Budget:
    """What one stream may cost us; whatever is left is for the next one."""

    bytes_max: int = 64 * 1024 * 1024
    """Received and sent together."""
    turns_max: int = 256
    """Of ours, in one exchange."""
    seconds: float = 60.0
    """Looked at whenever something comes."""


@frozen
class Replica:
    """Our side: what is merged into, and what time it is."""

    merger: Merger
    now_ms: Callable[[], int]
    """Unix milliseconds."""
    clock: Callable[[], float]
    """Seconds that never go back."""
    run_in_thread: RunInThread
    heard: Heard = lambda _: None


@frozen
class Synced:
    """What a stream came to."""

    is_equal: bool
    """Both held the same when the last exchange began."""
    new: int
    sent: int
    refused: int
    withheld: int
    turns: int
    """Ours: round trips, where we were the caller."""
    bytes_in: int
    bytes_out: int


async def sync(
    stream: Stream,
    replica: Replica,
    scopes: Sequence[Scope] = (Scope.HEADS,),
    *,
    budget: Budget | None = None,
    cold: bool = False,
) -> Synced:
    """Compare and exchange with the replica at the other end, by each of *scopes* till it is equal.

    Now and then compare IDS too: HEADS do not tell the arms of forks. *cold*: take authors at
    their word for now, `Merger.check` later. Raises SyncError, and LedgerError where our disk does.
    """
    talk = _Talk(stream, replica, budget or Budget())
    for scope in scopes:
        if await talk.call(scope, cold=cold):
            break
    return talk.told()


async def serve(stream: Stream, replica: Replica, *, budget: Budget | None = None) -> Synced:
    """Answer a caller until it hangs up. Raises SyncError, and LedgerError where our disk does."""
    talk = _Talk(stream, replica, budget or Budget())
    for _ in range(EXCHANGES_MAX):
        if not await talk.answer():
            return talk.told()
    raise SyncError(f"more than {EXCHANGES_MAX} exchanges on one stream")


class _Talk:
    """A stream and what was said on it."""

    def __init__(self, stream: Stream, replica: Replica, budget: Budget) -> None:
        self._stream = stream
        self._replica = replica
        self._budget = budget
        self._deadline = replica.clock() + budget.seconds
        self._buffer = bytearray()
        self._in = self._out = self._turns = 0
        self._total = Outcome()
        self._is_equal = False

    def told(self) -> Synced:
        total = self._total
        return Synced(
            self._is_equal,
            total.new,
            total.sent,
            total.refused,
            total.withheld,
            self._turns,
            self._in,
            self._out,
        )

    async def call(self, scope: Scope, *, cold: bool) -> bool:
        """One exchange in which we have the first word; whether both were equal already."""
        fingerprint = await self._fingerprint()
        await self._send([Hello(scope, fingerprint).encode()])
        self._turns += 1
        first = Piece.decode(await self._must_receive(), scope)
        self._is_equal = first.is_last and first.is_idle
        if not self._is_equal:
            exchange = await self._exchange(scope, fingerprint, cold=cold)
            await self._take_turns(exchange, scope, first, was_quiet=True)
        return self._is_equal

    async def answer(self) -> bool:
        """One exchange in which the caller has the first word; False if it hung up instead."""
        data = await self._receive()
        if data is None:
            return False
        hello = Hello.decode(data)
        self._is_equal = hello.fingerprint == await self._fingerprint()
        if self._is_equal:
            await self._send([Piece().encode()])
            return True
        exchange = await self._exchange(hello.scope, hello.fingerprint, cold=False)
        exchange.open()
        await self._speak(exchange)
        await self._take_turns(exchange, hello.scope, None, was_quiet=False)
        return True

    async def _take_turns(
        self, exchange: Exchange, scope: Scope, first: Piece | None, *, was_quiet: bool
    ) -> None:
        """Hear and speak until two turns in a row have said nothing. A hello says nothing."""
        for _ in range(self._budget.turns_max):
            is_silent = await self._hear(exchange, scope, first)
            first = None
            if is_silent and was_quiet:
                break
            was_quiet = await self._speak(exchange)
            if is_silent and was_quiet:
                break
        else:
            raise OverBudget(f"more than {self._budget.turns_max} turns")
        outcome = await self._replica.run_in_thread(exchange.close)
        self._total.new += outcome.new
        self._total.sent += outcome.sent
        self._total.refused += outcome.refused
        self._total.withheld += outcome.withheld

    async def _hear(self, exchange: Exchange, scope: Scope, first: Piece | None) -> bool:
        """The peer's turn; whether it said nothing."""
        is_silent = True
        for _ in range(PIECES_MAX):
            piece = first or Piece.decode(await self._must_receive(), scope)
            first = None
            if not piece.is_idle:
                is_silent = False
                await self._replica.run_in_thread(partial(exchange.hear, piece))
            if piece.is_last:
                return is_silent
        raise SyncError(f"a turn of more than {PIECES_MAX} pieces")

    async def _speak(self, exchange: Exchange) -> bool:
        """Our turn; whether we said nothing."""
        pieces = await self._replica.run_in_thread(exchange.speak)
        await self._send([piece.encode() for piece in pieces])
        self._turns += 1
        return all(piece.is_idle for piece in pieces)

    async def _exchange(self, scope: Scope, salt: bytes, *, cold: bool) -> Exchange:
        merger, now_ms = self._replica.merger, self._replica.now_ms()
        heard = self._replica.heard
        start = partial(Exchange, merger, scope, salt, now_ms, cold=cold, heard=heard)
        return await self._replica.run_in_thread(start)

    async def _fingerprint(self) -> bytes:
        total = await self._replica.run_in_thread(self._replica.merger.store.total)
        return total.fingerprint()

    async def _send(self, messages: Sequence[bytes]) -> None:
        data = b"".join(len(message).to_bytes(_LENGTH, "big") + message for message in messages)
        self._out += len(data)
        self._check_budget()
        await self._stream.send_all(data)

    async def _must_receive(self) -> bytes:
        data = await self._receive()
        if data is None:
            raise HungUp("hung up in the middle")
        return data

    async def _receive(self) -> bytes | None:
        """The next message; None if the stream ends before it."""
        head = await self._read(_LENGTH)
        if head is None:
            return None
        length = int.from_bytes(head, "big")
        if length > PIECE_MAX:
            raise SyncError(f"a message of {length} bytes")
        data = await self._read(length)
        if data is None:
            raise HungUp("hung up in the middle")
        return data

    async def _read(self, length: int) -> bytes | None:
        """Exactly *length* bytes; None if the stream ends before the first of them."""
        while len(self._buffer) < length:
            more = await self._stream.receive_some(_READ)
            self._in += len(more)
            self._check_budget()
            if not more:
                if self._buffer:
                    raise HungUp("hung up in the middle")
                return None
            self._buffer += more
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        return data

    def _check_budget(self) -> None:
        if self._in + self._out > self._budget.bytes_max:
            raise OverBudget(f"more than {self._budget.bytes_max} bytes")
        if self._replica.clock() > self._deadline:
            raise OverBudget(f"more than {self._budget.seconds} seconds")
