"""The migrator: moves of running tasks, on the side of their auctioneer.

A move is an end of a lease and not of a task: the executor takes its run out alive, signs for what
it burnt, and gives the state to the auctioneer, who holds it before it pays and before it awards
the rest to another (market/settlement.py). So every rule that fences a lease fences a move: nobody
goes on while another still may. On the way executors give states of runs that go on; the last one
that we hold counts should they be lost, and one of those who bid for the task has it ready.

A run leaves because its client wants that, or because its renewals come late: whoever can hardly be
reached loses the lease sooner or later, and what it did since its last state with it.
"""

from __future__ import annotations

from attrs import evolve

from mesh.errors import PeerError
from mesh.ids import Cid, PeerId, TaskId, short_peer
from mesh.market.auctioneer import Auctioneer
from mesh.market.copies import RUNS_ANOTHER
from mesh.market.offers import OfferBook
from mesh.market.order import State, TaskRecord, with_saved, work_left
from mesh.market.policy import Policy
from mesh.market.sale import Sale
from mesh.market.terms import MOVED
from mesh.messages import Handover, Keep, Renew, Saved, Stays
from mesh.sansio import Action, Collect, Collected, MoveRequested, PersistTask, Send


class Migrator:
    """Asks executors to give back, and keeps the states of what they run."""

    def __init__(self, policy: Policy, auctioneer: Auctioneer, book: OfferBook) -> None:
        self._policy = policy
        self._accounts = auctioneer.accounts
        self._register = auctioneer.register
        self._book = book
        self._called_at = -1e9
        """When a run was last asked back of somebody hard to reach."""

    def request(self, event: MoveRequested) -> list[Action]:
        """A client wants its task elsewhere."""
        record, sale = self._register.find(event.task)
        if not record or not sale or not record.executor or record.state is not State.RUNNING:
            return []
        if event.to == record.executor or event.to in self._register.taken(record.order):
            return []
        where = f"to {short_peer(event.to)}" if event.to else "elsewhere"
        sale.leaving, sale.only = f"its client wants it {where}", event.to
        return [Send(record.executor, Handover(event.task, record.fence, sale.leaving))]

    def renewed(self, peer: PeerId, renew: Renew, now: float) -> list[Action]:
        """Who still holds what it was asked to give back is asked again; and who is hard to reach
        for the first time, before the lease is lost over that."""
        record, sale = self._register.find(renew.task)
        if not record or not sale or record.state is not State.RUNNING:
            return []
        if (record.executor, record.fence) != (peer, renew.fence):
            return []
        if not sale.leaving and self._is_better_elsewhere(record, sale, peer, now):
            self._called_at = now
            sale.leaving, sale.late = "its renewals come late from there", 0
        if not sale.leaving:
            return []
        return [Send(peer, Handover(renew.task, renew.fence, sale.leaving))]

    def _is_better_elsewhere(
        self, record: TaskRecord, sale: Sale, executor: PeerId, now: float
    ) -> bool:
        if sale.late < self._policy.late_max:
            return False
        if now - self._called_at < self._policy.late_gap_ms / 1000:
            return False
        known = (executor, *self._register.taken(record.order))
        return self._book.has_room(work_left(record), known)

    def stays(self, peer: PeerId, stays: Stays) -> list[Action]:
        """It cannot be moved: its client sees why."""
        record = self._register.held_by(peer, stays.task, stays.fence)
        sale = self._register.sales.get(stays.task)
        if record is None or sale is None or not sale.leaving:
            return []
        sale.leaving, sale.only = "", None
        return self._register.move(evolve(record, reason=f"it stays: {stays.reason}"))

    def saved(self, peer: PeerId, saved: Saved) -> list[Action]:
        """An executor offers a state of its run: collect it. Raises PeerError."""
        record = self._register.held_by(peer, saved.task, saved.fence)
        sale = self._register.sales.get(saved.task)
        if record is None or sale is None or record.state is not State.RUNNING:
            return []
        if sale.saving or sale.done or not self._accounts.is_open(peer, (saved.task, saved.fence)):
            return []
        self._accounts.check(peer, saved)
        if saved.result.status != MOVED:
            raise PeerError("a state that is none")
        kept = record.saved[-1].saved if record.saved else None
        if kept and kept.fence == saved.fence and saved.result.fuel <= kept.result.fuel:
            return []
        sale.saving = saved
        roots = (saved.result.output,)
        return [Collect(saved.task, saved.fence, peer, roots, is_state=True)]

    def collected(self, event: Collected) -> list[Action]:
        """The state is here: from now on the task can be continued from it."""
        record, sale = self._register.find(event.task)
        saving = sale.saving if sale else None
        if not record or not sale or not saving or saving.fence != event.fence:
            return []
        if saving.result.output != event.root:
            return []
        sale.saving = None
        is_live = record.state is State.RUNNING and record.fence == event.fence
        if event.reason or not is_live or record.executor is None:
            return []
        record = with_saved(record, record.executor, saving)
        self._register.records[event.task] = record
        return [PersistTask(record), *self._have_ready(record, sale, event.root)]

    def _have_ready(self, record: TaskRecord, sale: Sale, state: Cid) -> list[Action]:
        """Whoever would have run it too has the state at hand, should it be needed."""
        listed = self._book.listings
        losers = [a for a in record.answers if a.is_bid and a.peer != record.executor]
        ready = [answer for answer in losers if answer.peer in listed]
        if not ready:
            return []
        sale.keeper = max(ready, key=lambda answer: (answer.round, answer.score)).peer
        needs = record.order.work.needs
        return [Send(sale.keeper, Keep(record.order.task, state, needs.memory + needs.disk))]

    def why_not(self, task: TaskId, to: PeerId | None) -> str:
        """Why *task* cannot be asked back now, or the empty string; for its client."""
        record, _ = self._register.find(task)
        if record is None:
            return "this node has no such task"
        if record.state is not State.RUNNING:
            return f"it is {record.state}, and only what runs can be moved"
        if to in self._register.taken(record.order):
            return f"that node {RUNS_ANOTHER}"
        return "it runs there already" if record.executor == to else ""
