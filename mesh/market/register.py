"""The register: the record of every task of this node's clients, and the sale of each open one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attrs import evolve

from mesh.ids import PeerId, TaskId
from mesh.market.copies import awaited, taken
from mesh.market.order import (
    COPIES_MAX,
    Answer,
    Order,
    State,
    TaskRecord,
    is_unpaid,
    with_answer,
    with_verdict,
)
from mesh.market.policy import Policy
from mesh.market.sale import Sale, Sealed, most_pressing
from mesh.notices import Answered, moved
from mesh.sansio import Action, Notify, PersistTask

REASON_MAX = 512
"""Characters: a reason may quote a peer's, which is as long as a message allows."""


class Register:
    """Bounded: open tasks by admission, ended ones by forgetting the oldest."""

    def __init__(self, policy: Policy, records: Sequence[TaskRecord]) -> None:
        self.records: dict[TaskId, TaskRecord] = {record.order.task: record for record in records}
        self.sales: dict[TaskId, Sale] = {}
        self._policy = policy

    def has_room(self, count: int) -> bool:
        return len(self.sales) + count <= self._policy.tasks_open_max

    def sizes(self) -> dict[str, tuple[int, int]]:
        open_max, ended_max = self._policy.tasks_open_max, self._policy.tasks_ended_max
        ended, unpaid = len(self._ended()), sum(map(is_unpaid, self.records.values()))
        copies = len(self.records) - len(self.sales) - ended - unpaid
        return {
            "tasks_open": (len(self.sales), open_max),
            "tasks_ended": (ended, ended_max),
            "tasks_unpaid": (unpaid, self._policy.allocs_max),
            "copies_ended": (copies, open_max * (COPIES_MAX - 1)),
        }

    def taken(self, order: Order) -> tuple[PeerId, ...]:
        """Who runs, or ran, another copy of this."""
        return taken(order, self.records)

    def waiting(self) -> list[TaskId]:
        """Waiting tasks, the most pressing first."""
        waiting = {task for task in self.sales if self.records[task].state is State.WAITING}
        orders = [(self.records[task].order, sale.deadline_at) for task, sale in self.sales.items()]
        return most_pressing(orders, waiting)

    def asking(self, peer: PeerId, task: TaskId, round_: int) -> Sale | None:
        """The open auction that *peer* was asked in and has not answered yet."""
        record, sale = self.records.get(task), self.sales.get(task)
        if not record or not sale or record.state is not State.ASKING or record.round != round_:
            return None
        return sale if sale.awaits(peer) else None

    def find(self, task: TaskId) -> tuple[TaskRecord | None, Sale | None]:
        """The record and the open sale of *task*, as far as there are any."""
        return self.records.get(task), self.sales.get(task)

    def held_by(self, peer: PeerId, task: TaskId, fence: int) -> TaskRecord | None:
        """The record, if *peer* is the executor of its newest fence."""
        record = self.records.get(task)
        if record is None or record.fence != fence or record.executor != peer:
            return None
        return record

    def executors(self) -> dict[tuple[TaskId, int], PeerId]:
        """Whom each open task was awarded to, by task and fence."""
        records = [self.records[task] for task in self.sales]
        return {
            (record.order.task, record.fence): record.executor
            for record in records
            if record.executor is not None
        }

    def note(self, record: TaskRecord, answer: Answer) -> list[Action]:
        """Keep an answer on record, the newest only."""
        self.records[record.order.task] = with_answer(record, answer)
        return [Notify(Answered(record.order.task, answer))]

    def judge(self, task: TaskId, peer: PeerId, verdict: str) -> None:
        """The auctioneer's word on a bid."""
        self.records[task] = with_verdict(self.records[task], peer, verdict[:REASON_MAX])

    def decide(
        self, task: TaskId, ranking: Sequence[PeerId], bids: Mapping[PeerId, Sealed], best: Sealed
    ) -> str:
        """The verdict on each of a *ranking*, the first of which won; of the others, for people."""
        winner, *losers = ranking
        for loser in losers:
            self.judge(task, loser, f"score {bids[loser].worth} below {best.worth}")
        self.judge(task, winner, "won")
        return f", {len(losers)} others lost" if losers else ""

    def move(self, record: TaskRecord) -> list[Action]:
        """Change state, durably and visibly."""
        record = evolve(record, reason=record.reason[:REASON_MAX])
        self.records[record.order.task] = record
        return [PersistTask(record), Notify(moved(record))]

    def correct(self, records: Iterable[TaskRecord]) -> list[Action]:
        """Put in order what the ledger knows better than a record does."""
        actions: list[Action] = []
        for record in records:
            task = record.order.task
            if record == self.records[task]:
                continue
            self.records[task] = record
            is_over = record.state.is_final and task in self.sales
            actions += self.end(task, record.state, record.reason) if is_over else self.move(record)
        self.forget()
        return actions

    def end(self, task: TaskId, state: State, reason: str) -> list[Action]:
        """Close the sale for good."""
        assert state.is_final
        del self.sales[task]
        actions = self.move(evolve(self.records[task], state=state, reason=reason))
        self.forget()
        return actions

    def forget(self) -> None:
        """The oldest ended records make room."""
        ended = self._ended()
        for key in ended[: max(0, len(ended) - self._policy.tasks_ended_max)]:
            del self.records[key]

    def _ended(self) -> list[TaskId]:
        """What has ended and may be forgotten, oldest first: not while another copy is open, nor
        before it is paid."""
        kept = awaited([self.records[task] for task in self.sales])
        return [
            task
            for task, record in self.records.items()
            if task not in self.sales and task not in kept and not is_unpaid(record)
        ]
