"""Billing: what a buyer's node answers to sellers about money, beside awards and settlements.

It signs slices of runs that go on, pays for states that others go on from, tells who holds nothing
why not and whether it is owed, and reminds sellers of awards that came to nothing.
"""

from __future__ import annotations

from attrs import evolve

from mesh.ids import PeerId, TaskId
from mesh.market.accounts import Accounts
from mesh.market.lease import Clock
from mesh.market.order import SavedBy, State, TaskRecord, is_counted
from mesh.market.register import Register
from mesh.messages import Revoked, Slice
from mesh.sansio import Action, Send


class Billing:
    """Reads the register of tasks, writes the accounts."""

    def __init__(self, accounts: Accounts, register: Register, clock: Clock) -> None:
        self._accounts = accounts
        self._register = register
        self._clock = clock

    def slice(self, peer: PeerId, asked: Slice, now: float) -> list[Action]:
        """Sign for what a running task has burnt so far. Raises PeerError."""
        key = (asked.task, asked.fence)
        record = self._register.held_by(peer, *key)
        is_live = record is not None and record.state in (State.AWARDED, State.RUNNING)
        if not is_live or not self._accounts.is_open(peer, key):
            return self.revoke(peer, *key)
        return self._accounts.use(peer, asked, self._clock.wall_ms(now))

    def revoke(self, peer: PeerId, task: TaskId, fence: int) -> list[Action]:
        """Why *peer* holds nothing, and whether it is owed for what it burnt.

        Nothing while the end of our chain may be missing: it would be a wrong answer.
        """
        if not self._accounts.is_writable:
            return []
        closing = self._accounts.closing(peer, (task, fence))
        if closing:
            return [Send(peer, closing)]
        record = self._register.held_by(peer, task, fence)
        if record is None:
            is_known = task in self._register.records
            known = "superseded by a newer award" if is_known else "unknown task"
            return [Send(peer, Revoked(task, fence, known, is_owed=False))]
        # Whoever takes a task back pays what it burnt; who missed the deadline is owed nothing.
        is_owed = record.state is State.CANCELLED and self._accounts.is_open(peer, (task, fence))
        return [Send(peer, Revoked(task, fence, f"the task is {record.state}", is_owed=is_owed))]

    def pay_saved(self, record: TaskRecord, now: float) -> tuple[TaskRecord, list[Action]]:
        """Pay whoever gave us a state that the task went on from.

        A bill leaves the record, and its amount enters it, when it was found paid: a record is
        written before the payment that it tells of, and a crash may come between the two.
        """
        kept, actions, amount = [], [], record.amount
        for bill in record.saved:
            if not is_counted(record, bill):
                kept += [bill] if bill.saved.fence == record.fence else []
            elif not self._accounts.is_open(bill.executor, (bill.saved.task, bill.saved.fence)):
                amount += bill.amount
            else:
                kept.append(bill)
                actions += self._pay(bill, now)
        return evolve(record, saved=tuple(kept), amount=amount), actions

    def pay_again(self, now: float) -> list[Action]:
        """Pay what a record tells of and a crash kept from our chain."""
        return [
            action
            for record in self._register.records.values()
            for bill in record.saved
            if is_counted(record, bill)
            for action in self._pay(bill, now)
        ]

    def _pay(self, bill: SavedBy, now: float) -> list[Action]:
        key = (bill.saved.task, bill.saved.fence)
        if not self._accounts.is_writable or not self._accounts.is_open(bill.executor, key):
            return []
        return self._accounts.settle(bill.executor, bill.saved, self._clock.wall_ms(now))[1]

    def due(self, now: float) -> list[Action]:
        """Remind the sellers of awards that came to nothing: who does not run it declines it."""
        paid = self.pay_again(now)
        reminders = self._accounts.reminders(self._register.executors())
        return [*paid, *reminders, self._accounts.timer(now)]
