"""Settlement: how a lease ends, on its auctioneer's side, and how a task does.

A run that ended is collected before it is paid: what only a dead executor holds would be paid and
lost. A run that was given back, or whose executor is lost, is paid up to the last state that we
hold, and the task is auctioned again from there; where we hold none it begins anew and nothing is
owed.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve

from mesh.ids import EntryId, PeerId, TaskId, short_peer
from mesh.market.accounts import Accounts
from mesh.market.billing import Billing
from mesh.market.lease import Clock
from mesh.market.order import (
    State,
    TaskRecord,
    burnt_before,
    moved_on,
    owed_for_states,
    with_saved,
)
from mesh.market.policy import Policy
from mesh.market.register import REASON_MAX, Register
from mesh.market.scoring import Calibration
from mesh.market.terms import CANCELLED, MOVED
from mesh.messages import Done, Lost, Saved
from mesh.sansio import Action, Collect, Collected, PersistTask, Send

Reopen = Callable[[TaskId, float], list[Action]]
"""(task, now): auction it again."""


class Settlement:
    """Ends leases and tasks."""

    def __init__(
        self,
        accounts: Accounts,
        register: Register,
        billing: Billing,
        calibration: Calibration,
        *,
        policy: Policy,
        clock: Clock,
        reopen: Reopen,
    ) -> None:
        self._accounts = accounts
        self._register = register
        self._billing = billing
        self._calibration = calibration
        self._policy = policy
        self._clock = clock
        self._reopen = reopen

    def done(self, peer: PeerId, done: Done, now: float) -> list[Action]:
        """Close the account of a run that ended, and the task with it. Raises PeerError."""
        key = (done.task, done.fence)
        if closing := self._accounts.closing(peer, key):
            return [Send(peer, closing)]
        record = self._register.held_by(peer, done.task, done.fence)
        if record is None or not self._accounts.is_open(peer, key):
            return self._billing.revoke(peer, done.task, done.fence)
        if not self._accounts.is_writable:
            return []  # it says so again
        self._accounts.check(peer, done)
        sale = self._register.sales.get(done.task)
        if sale is None:
            is_cancelled = (record.state, done.result.status) == (State.CANCELLED, CANCELLED)
            if is_cancelled or done.result == record.result:
                return self._settle(record, done, now)
            return self._billing.revoke(peer, done.task, done.fence)
        if sale.done is not None:
            return []
        sale.done = done
        roots = (done.result.output, done.result.stdout, done.result.stderr)
        is_state = done.result.status == MOVED
        collect = Collect(done.task, done.fence, peer, roots, is_state)
        return [collect, sale.grant(record, self._policy, now)]

    def collected(self, event: Collected, now: float) -> list[Action]:
        """What it left is here: pay, and end the task, or go on elsewhere from its state.
        If not, the executor will say Done again."""
        task, fence, reason = event.task, event.fence, event.reason
        record, sale = self._register.find(task)
        if not record or not sale or not sale.done or sale.done.fence != fence:
            return []
        if sale.done.result.output != event.root:
            return []  # a state on the way
        done, sale.done = sale.done, None
        is_live = record.fence == fence and record.state in (State.AWARDED, State.RUNNING)
        if not is_live or not self._accounts.is_writable:
            return []
        if reason:
            why = f"results not here yet: {reason}"
            self._register.records[task] = evolve(record, reason=why[:REASON_MAX])
            return []
        if done.result.status != MOVED:
            return self._settle(record, done, now)
        saved = Saved(task, fence, done.result, done.terms, done.signature)
        assert record.executor is not None
        self._register.records[task] = with_saved(record, record.executor, saved)
        reason = f"given back by {short_peer(record.executor)}: {done.result.detail}"
        return self._end_lease(task, reason, now)

    def lost(self, peer: PeerId, lost: Lost, now: float) -> list[Action]:
        """The executor gave it up: free the money and auction it again at once."""
        key = (lost.task, lost.fence)
        if closing := self._accounts.closing(peer, key):
            return [Send(peer, closing)]
        if not self._accounts.is_writable:
            return []
        record = self._register.held_by(peer, *key)
        is_live = record is not None and record.state in (State.AWARDED, State.RUNNING)
        if record and is_live and any(bill.saved.fence == lost.fence for bill in record.saved):
            return self.lose(lost.task, lost.reason, now)  # paid for the state that we hold
        actions = self._accounts.void(peer, lost, self._clock.wall_ms(now))
        if not actions:
            return self._billing.revoke(peer, *key)
        if is_live:
            actions += self.lose(lost.task, lost.reason, now)
        return actions

    def lose(self, task: TaskId, reason: str, now: float) -> list[Action]:
        """The executor is lost: auction the task again, from the last state that we hold."""
        executor = self._register.records[task].executor
        assert executor is not None
        return self._end_lease(task, f"lost by {short_peer(executor)}: {reason}", now)

    def _end_lease(self, task: TaskId, reason: str, now: float) -> list[Action]:
        """Nobody holds it any more: pay for the state that it goes on from, and ask again."""
        record, sale = self._register.records[task], self._register.sales[task]
        assert record.executor is not None
        sale.end_lease(record.executor)
        record, paid = self._billing.pay_saved(moved_on(record), now)
        freed = self._register.move(evolve(record, state=State.WAITING, reason=reason))
        return [*freed, *paid, *self._reopen(task, now)]

    def _settle(self, record: TaskRecord, done: Done, now: float) -> list[Action]:
        """Pay for a run, and end its task unless it has ended already."""
        task, executor = done.task, record.executor
        assert executor is not None
        entry, paid = self._accounts.settle(executor, done, self._clock.wall_ms(now))
        settled = evolve(
            record,
            amount=record.amount + entry.content.deal.amount,
            settle=EntryId(entry.id),
            result=done.result,
            fuel=burnt_before(record) + done.result.fuel,
        )
        self._register.records[task] = settled
        if settled.state.is_final:
            self._register.forget()
            return [PersistTask(settled), *paid]
        sale = self._register.sales[task]
        self._calibration.record(executor, sale.promise, was_kept=now <= sale.deadline_at)
        state = State.DONE if done.result.status == "exited" else State.FAILED
        reason = done.result.detail or f"exit code {done.result.exit_code}"
        return [*self.finish(task, state, reason, now), *paid]

    def finish(self, task: TaskId, state: State, reason: str, now: float) -> list[Action]:
        """End the task; whoever still runs it is told, and whether it is owed for that."""
        record, paid = self._billing.pay_saved(self._register.records[task], now)
        record = evolve(record, amount=record.amount + owed_for_states(record))
        self._register.records[task] = record
        actions = [*self._register.end(task, state, reason), *paid]
        executor, fence = record.executor, record.fence
        if record.settle is None and executor and self._accounts.is_open(executor, (task, fence)):
            actions += self._billing.revoke(executor, task, fence)
        return actions
