"""An order: what a client wants done, by when and for how much; and the record of its task.

The record is the auctioneer's whole memory of a task. It is persisted as it stands, shown to the
client as it stands, and bounded: bids of the last rounds only.
"""

from __future__ import annotations

from enum import StrEnum

from attrs import evolve, frozen

from ledger.model import MIGRATIONS_MAX, Terms
from mesh.ids import EntryId, PeerId, TaskId, copy_id
from mesh.messages import Bid, Move, Refusal, Result, Saved, Work

BIDS_KEPT_MAX = 32
"""Bids and refusals kept on a task's record: the newest win."""

COPIES_MAX = 8
"""Of one task."""


@frozen
class Group:
    """Copies of one task, run by as many different nodes, so that they can be compared."""

    first: TaskId
    """The first copy: by this id its client knows them all."""
    copies: int

    @property
    def members(self) -> tuple[TaskId, ...]:
        """All of them, the first one first."""
        return tuple(copy_id(self.first, number) for number in range(self.copies))


@frozen
class Order:
    """A client's bid for compute. Money in µcr; the deadline counts from admission."""

    task: TaskId
    name: str
    work: Work
    max_price: int
    fee: int
    priority: int
    deadline_ms: int
    group: Group | None = None
    """Where it is one of several copies."""


class State(StrEnum):
    """Where a task is."""

    WAITING = "waiting"
    """Nobody took it yet; its auctioneer asks again."""
    ASKING = "asking"
    """An auction is open."""
    AWARDED = "awarded"
    """A winner was chosen and has not yet accepted."""
    RUNNING = "running"
    DONE = "done"
    """It ended by itself, whatever its exit code, and is settled."""
    FAILED = "failed"
    """It broke a limit, trapped, or missed deadline and grace; the reason says which."""
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (State.DONE, State.FAILED, State.CANCELLED)


@frozen
class Answer:
    """One candidate's answer to an ask, as it stays on record."""

    round: int
    peer: PeerId
    price: int
    """The reserve of the bid: the most it would cost. 0 for a refusal."""
    p_on_time: int
    finish_ms: int
    """Median promise. 0 for a refusal."""
    score: int
    """What the award would be worth to the buyer, µcr; 0 when that is negative."""
    is_bid: bool
    reason: str
    """The bidder's own words."""
    verdict: str
    """The auctioneer's: "won", or why it lost; empty while the auction is open."""


@frozen
class SavedBy:
    """A state that its executor gave us, and its bill up to there."""

    executor: PeerId
    saved: Saved
    amount: int
    """µcr, as its terms say."""


@frozen
class TaskRecord:
    """All that its auctioneer knows of one task."""

    order: Order
    state: State
    submitted_ms: int
    """Wall clock at admission: a claim, for people."""
    round: int = 0
    fence: int = 0
    """Of the newest award; only its effects count."""
    executor: PeerId | None = None
    answers: tuple[Answer, ...] = ()
    fuel: int = 0
    """Progress as last reported, by all executors together."""
    moves: int = 0
    """Executors before this one, whether they were lost or gave it back."""
    path: tuple[Move, ...] = ()
    """The newest moves that took its state along: the next executor goes on from the last."""
    saved: tuple[SavedBy, ...] = ()
    """The last state of the run that we hold; before it, bills of states that the task went on
    from, until they are paid for sure."""
    alloc: EntryId | None = None
    settle: EntryId | None = None
    amount: int = 0
    """What was paid, µcr, to all executors together."""
    result: Result | None = None
    reason: str = ""
    """Why it is in this state, for people."""


def is_unpaid(record: TaskRecord) -> bool:
    """Whether a crash came between its end and the payment for it: its seller asks again."""
    return record.state.is_final and record.result is not None and record.settle is None


def paid_so_far(record: TaskRecord) -> int:
    """µcr, those of states included that the record does not know to be paid yet."""
    return record.amount if record.state.is_final else record.amount + owed_for_states(record)


def saved_up_to(record: TaskRecord) -> int:
    """The fuel burnt until the last state that we hold."""
    last = record.saved[-1].saved if record.saved else None
    before = burnt_before(record)
    return before + last.result.fuel if last and last.fence == record.fence else before


def with_saved(record: TaskRecord, executor: PeerId, saved: Saved) -> TaskRecord:
    """The record with a state of its present lease, in place of the one before."""
    others = tuple(kept for kept in record.saved if kept.saved.fence != saved.fence)
    bill = SavedBy(executor, saved, Terms.decode(saved.terms).amount)
    return evolve(record, saved=(*others, bill))


def burnt_before(record: TaskRecord) -> int:
    """Fuel that earlier executors burnt up to the state that the present one began with."""
    return record.path[-1].fuel if record.path else 0


def is_counted(record: TaskRecord, bill: SavedBy) -> bool:
    """Whether the task went on from the state of *bill*."""
    state = bill.saved.result.output
    return any((move.source, move.state) == (bill.executor, state) for move in record.path)


def owed_for_states(record: TaskRecord) -> int:
    """µcr of bills on *record* that are counted and not yet found paid."""
    return sum(bill.amount for bill in record.saved if is_counted(record, bill))


def moved_on(record: TaskRecord) -> TaskRecord:
    """The record of a task whose lease is over: to go on from the last state that we hold of it,
    if it has got any further with that."""
    last = record.saved[-1] if record.saved else None
    if last is None or last.saved.fence != record.fence or last.executor != record.executor:
        return evolve(record, executor=None, fuel=burnt_before(record), moves=record.moves + 1)
    result = last.saved.result
    move = Move(burnt_before(record) + result.fuel, last.executor, result.output)
    return evolve(
        record,
        executor=None,
        fuel=move.fuel,
        moves=record.moves + 1,
        path=(*record.path, move)[-MIGRATIONS_MAX:],
    )


def work_left(record: TaskRecord) -> Work:
    """What an executor would find to do now."""
    work, path = record.order.work, record.path
    return evolve(work, fuel=work.fuel - path[-1].fuel, moves=path) if path else work


def with_answer(record: TaskRecord, answer: Answer) -> TaskRecord:
    """The record with one more answer, the oldest dropped at the bound."""
    return evolve(record, answers=(*record.answers, answer)[-BIDS_KEPT_MAX:])


def with_verdict(record: TaskRecord, peer: PeerId, verdict: str) -> TaskRecord:
    """The record with the auctioneer's word on *peer*'s bid of the current round."""
    answers = tuple(
        evolve(answer, verdict=verdict)
        if answer.peer == peer and answer.round == record.round
        else answer
        for answer in record.answers
    )
    return evolve(record, answers=answers)


def bid_answer(peer: PeerId, bid: Bid, price: int, worth: int) -> Answer:
    """A bid as it stays on record; *worth* is its score."""
    return Answer(
        round=bid.round,
        peer=peer,
        price=price,
        p_on_time=bid.p_on_time,
        finish_ms=bid.finish_ms.q50,
        score=max(0, worth),
        is_bid=True,
        reason=bid.reason,
        verdict="",
    )


def refusal_answer(peer: PeerId, refusal: Refusal) -> Answer:
    """A refusal as it stays on record."""
    return Answer(
        round=refusal.round,
        peer=peer,
        price=0,
        p_on_time=0,
        finish_ms=0,
        score=0,
        is_bid=False,
        reason=refusal.reason,
        verdict="refused",
    )
