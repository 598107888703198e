"""Which items of two sorted sets differ, for a few bytes: range-based set reconciliation. Pure.

Both sides hold rows, ordered bytes each with a mark of 32 bytes. A range of rows has a fingerprint,
SHA-256(sum of its marks mod 2^256 ‖ their count), never their XOR, in which an attacker solves for
collisions by linear algebra. Where fingerprints differ the range is split in 16, until it is short
enough to list. (A. Meyer, "Range-Based Set Reconciliation", 2023, https://arxiv.org/abs/2212.13567.)

What is listed are short names, salted by the session, so that whoever reads the list learns what
the other lacks and what itself lacks, for 8 bytes an item; names that collide do so in one session
only. The two sides alternate. A message answers only ranges that its sender was asked about, and
only by smaller ones or by lists, so every exchange ends.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import accumulate, count, pairwise
from typing import TypeAlias, TypeVar

from attrs import field, frozen, mutable

from ledger.errors import LedgerError
from ledger.holdings import Total

SPLIT = 16
"""Into how many parts a range falls that is too long to list."""
LISTED_MAX = 64
"""Names in one list: a range of no more rows is listed."""
FINGERPRINT_LENGTH = 16
NAME_LENGTH = 8
BOUND_MAX = 80
"""Bytes of a row, and so of a bound between two."""

_MOD = 1 << 256
_LAST = 255  # as the length of a bound: it is above every row
_SKIP, _ASK, _LIST = range(3)

T = TypeVar("T")
Row: TypeAlias = tuple[bytes, bytes]
"""(its place in the order, its mark of 32 bytes)"""


class RecError(LedgerError):
    """A message that no honest peer sends: theirs, not ours. End the session."""


@frozen
class Limits:
    """What one session may cost; more is the peer's fault, or the next session's work.

    A message holds at least one whole answer: 4096 bytes and 64 ranges are the least.
    """

    rounds_max: int = 16
    """Messages that may come."""
    message_max: int = 256 * 1024
    """Bytes of one message."""
    ranges_max: int = 32_768
    """Ranges in one message, those that are passed over counted."""
    found_max: int = 16_384
    """Rows that the peer lacks, and as many that we lack, that are remembered."""


@frozen
class Span:
    """The rows from *low*, to below *high*; None is above every row."""

    low: bytes
    high: bytes | None

    def holds(self, other: Span) -> bool:
        """Whether *other* lies within this."""
        return self.low <= other.low and _at_most(other.high, self.high)


@frozen
class Ask:
    """Are your rows there the ones with this fingerprint?"""

    span: Span
    fingerprint: bytes


@frozen
class List:
    """The names of all my rows there."""

    span: Span
    names: tuple[bytes, ...]


Part: TypeAlias = Ask | List


class Rows:
    """A sorted set with the sums that make the fingerprint of any range cheap. It never changes."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.places = [place for place, _ in rows]
        self.marks = [mark for _, mark in rows]
        assert all(low < high for low, high in pairwise(self.places)), "rows out of order"
        assert max(map(len, self.places), default=0) <= BOUND_MAX
        values = (int.from_bytes(mark, "big") for mark in self.marks)
        self._sums = list(accumulate(values, lambda total, mark: (total + mark) % _MOD, initial=0))

    def __len__(self) -> int:
        return len(self.places)

    def within(self, span: Span) -> range:
        """The indexes of the rows in *span*."""
        stop = len(self) if span.high is None else bisect_left(self.places, span.high)
        return range(bisect_left(self.places, span.low), stop)

    def fingerprint(self, rows: range) -> bytes:
        """That of the rows at these indexes."""
        total = (self._sums[rows.stop] - self._sums[rows.start]) % _MOD if rows else 0
        return Total(len(rows), total).fingerprint()[:FINGERPRINT_LENGTH]

    def split(self, span: Span) -> Iterator[tuple[Span, range]]:
        """*span* in `SPLIT` parts of as many rows each, as near as can be."""
        rows = self.within(span)
        cuts = [rows.start + len(rows) * part // SPLIT for part in range(1, SPLIT)]
        bounds = [span.low, *map(self._bound, cuts), span.high]
        for low, high, start, stop in zip(
            bounds, bounds[1:], (rows.start, *cuts), (*cuts, rows.stop), strict=False
        ):
            assert low is not None
            yield Span(low, high), range(start, stop)

    def _bound(self, index: int) -> bytes:
        """The shortest bytes above row *index* - 1 and not above row *index*."""
        below, above = self.places[index - 1], self.places[index]
        return next(above[:n] for n in range(1, len(above) + 1) if above[:n] > below)


@mutable
class Found:
    """What one side has learnt so far."""

    lacked: list[int] = field(factory=list)
    """Indexes of rows of ours that the peer lacks."""
    wanted: list[bytes] = field(factory=list)
    """Names of rows of the peer's that we lack."""
    left_over: int = 0
    """Differences above the limit: the next session finds them again."""


class Reconciliation:
    """One side of a session: what comes goes to `hear`, what `speak` returns goes out.

    Both sides name rows with the same *salt*. It is over when either has nothing to say and has
    heard nothing; who listed a range does not learn how it ended, who read the list does.
    """

    def __init__(self, rows: Rows, salt: bytes, limits: Limits | None = None) -> None:
        self._rows = rows
        self._salt = salt
        self._limits = limits or Limits()
        self._queue: list[Span] = []
        self._asked: list[Span] = []
        self._may_be_asked_anything = True
        self._rounds = 0
        self.found = Found()

    @property
    def rounds(self) -> int:
        """Messages heard so far that said something."""
        return self._rounds

    def open(self) -> None:
        """Have the first word: the next `speak` asks about everything."""
        self._may_be_asked_anything = False
        self._queue.append(Span(b"", None))

    def speak(self) -> bytes:
        """The next message, empty if there is nothing to say: whatever fits, the rest comes next.

        An answer to one question is never cut in two.
        """
        self._queue.sort(key=lambda span: span.low)
        message: list[Part] = []
        said = 0
        room, parts_left = self._limits.message_max, self._limits.ranges_max // 2
        for span in self._queue:
            answer = self._answer(span)
            room -= sum(map(_size, answer))
            parts_left -= len(answer)
            if room < 0 or parts_left < 0:
                break
            message += answer
            said += 1
        self._queue = self._queue[said:]
        self._asked += [part.span for part in message if isinstance(part, Ask)]
        self._asked.sort(key=lambda span: span.low)
        return encode(message)

    def hear(self, message: bytes) -> None:
        """Take in what the peer said, which `found` and the next `speak` show. Raises RecError."""
        if not message:
            return
        self._rounds += 1
        if self._rounds > self._limits.rounds_max:
            raise RecError(f"more than {self._limits.rounds_max} rounds")
        parts = decode(message, self._limits)
        if not self._may_be_asked_anything:
            self._check_progress(parts)
        self._may_be_asked_anything = False
        for part in parts:
            match part:
                case Ask(span, theirs):
                    if self._rows.fingerprint(self._rows.within(span)) != theirs:
                        self._queue.append(span)
                case List(span, names):
                    self._compare(span, names)

    def name(self, mark: bytes) -> bytes:
        """What a row of this mark is called in this session."""
        return sha256(self._salt + mark).digest()[:NAME_LENGTH]

    def _answer(self, span: Span) -> list[Part]:
        rows = self._rows.within(span)
        if len(rows) <= LISTED_MAX:
            return [List(span, tuple(self.name(self._rows.marks[row]) for row in rows))]
        parts = self._rows.split(span)
        return [Ask(part, self._rows.fingerprint(rows)) for part, rows in parts]

    def _check_progress(self, parts: Sequence[Part]) -> None:
        """Each part answers a question of ours, by less than the question; each answer is whole."""
        answered = set()
        for part in parts:
            asked = self._question(part.span)
            if asked is None:
                raise RecError("an answer that nobody asked for")
            if isinstance(part, Ask) and part.span == asked:
                raise RecError("no progress: the question comes back")
            answered.add(asked)
        self._asked = [span for span in self._asked if span not in answered]

    def _question(self, span: Span) -> Span | None:
        at = bisect_left(self._asked, span.low + b"\0", key=lambda asked: asked.low) - 1
        return self._asked[at] if at >= 0 and self._asked[at].holds(span) else None

    def _compare(self, span: Span, names: tuple[bytes, ...]) -> None:
        ours = {self.name(self._rows.marks[row]): row for row in self._rows.within(span)}
        theirs = set(names)
        self._note(self.found.lacked, [row for name, row in ours.items() if name not in theirs])
        self._note(self.found.wanted, [name for name in names if name not in ours])

    def _note(self, noted: list[T], more: Sequence[T]) -> None:
        room = self._limits.found_max - len(noted)
        noted += more[:room]
        self.found.left_over += max(0, len(more) - room)


# A message is its parts in order: upper bound (length, bytes), mode, fingerprint or names. The
# lower bound of a part is the upper one of the part before; a gap is a part that says nothing.


def encode(parts: Sequence[Part]) -> bytes:
    """The bytes of *parts*, which are in order and do not overlap."""
    message = bytearray()
    reached: bytes | None = b""
    for part in parts:
        if part.span.low != reached:
            message += _bound(part.span.low) + bytes([_SKIP])
        message += _bound(part.span.high)
        match part:
            case Ask(_, asked):
                message += bytes([_ASK]) + asked
            case List(_, names):
                message += bytes([_LIST, len(names)]) + b"".join(names)
        reached = part.span.high
    return bytes(message)


def decode(message: bytes, limits: Limits) -> list[Part]:
    """The parts of *message*, at least one, in order and disjoint. Raises RecError."""
    if len(message) > limits.message_max:
        raise RecError(f"{len(message)} bytes where {limits.message_max} are allowed")
    reader = _Reader(message)
    parts: list[Part] = []
    low: bytes | None = b""
    for ranges in count(1):
        if ranges > limits.ranges_max:
            raise RecError(f"more than {limits.ranges_max} ranges")
        high = reader.bound()
        if low is None or not _at_most(low, high) or low == high:
            raise RecError("ranges that overlap or descend")
        span = Span(low, high)
        mode = reader.byte()
        if mode == _ASK:
            parts.append(Ask(span, reader.take(FINGERPRINT_LENGTH)))
        elif mode == _LIST:
            parts.append(List(span, reader.names()))
        elif mode != _SKIP or reader.is_done():
            raise RecError(f"mode {mode} is not known here")
        low = high
        if reader.is_done():
            break
    if not parts:
        raise RecError("a message that says nothing")
    return parts


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def is_done(self) -> bool:
        return self._at == len(self._data)

    def take(self, length: int) -> bytes:
        start, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise RecError("cut short")
        return self._data[start : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def bound(self) -> bytes | None:
        length = self.byte()
        if length == _LAST:
            return None
        if length > BOUND_MAX:
            raise RecError(f"a bound of {length} bytes")
        return self.take(length)

    def names(self) -> tuple[bytes, ...]:
        length = self.byte()
        if length > LISTED_MAX:
            raise RecError(f"a list of {length} names where {LISTED_MAX} are allowed")
        names = tuple(self.take(NAME_LENGTH) for _ in range(length))
        if len(set(names)) != length:
            raise RecError("a name twice in one list")
        return names


def _bound(bound: bytes | None) -> bytes:
    return bytes([_LAST]) if bound is None else bytes([len(bound)]) + bound


def _size(part: Part) -> int:
    """Bytes of *part* at most, with a gap before it."""
    said = FINGERPRINT_LENGTH if isinstance(part, Ask) else NAME_LENGTH * len(part.names)
    return 5 + len(part.span.low) + len(part.span.high or b"") + said


def _at_most(low: bytes | None, high: bytes | None) -> bool:
    return high is None or (low is not None and low <= high)
