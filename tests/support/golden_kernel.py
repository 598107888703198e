"""Scripts for three kernels, and their whole action logs as text: tests/golden/kernel-*.txt.

    python tests/support/golden_kernel.py --rewrite     writes them anew; then read the difference

A is the buyer's node, B and C sell. A line is an event, the lines below it what the kernel did.
Signatures, jobs and other long bytes are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import attrs
from attrs import evolve
from market_players import POLICY, RESULT, STATE, G, Player, Table

from ledger.errors import BadEntry
from ledger.model import Entry, Terms
from mesh import codec
from mesh.ids import TaskId
from mesh.market.order import Order, State, TaskRecord
from mesh.market.policy import Policy
from mesh.messages import Award, Message, Offer, Quantiles, Result, SignedOffer, Work
from mesh.resources.capacity import Capacity
from mesh.sansio import (
    CancelRequested,
    Checkpointed,
    DrainSet,
    MoveRequested,
    Notify,
    Received,
    RunProgressed,
    Send,
    Unmoved,
    WakeAt,
    Woken,
)

FOLDER = Path(__file__).parents[1] / "golden"
LEFT_OUT = {"signature", "verdict", "job", "is_bid", "certificate"}


class Script:
    """A table, and what a reader is told between its lines."""

    def __init__(self, policy: Policy = POLICY) -> None:
        self.table = Table(3, policy=policy)
        self.buyer = self.table["A"]
        self._notes: list[tuple[int, str]] = []

    def note(self, text: str) -> None:
        self._notes.append((len(self.table.log), text))

    def progress(self, task: TaskId, fuel: int) -> None:
        player = self.table.executor(task)
        self.table.tell(player, RunProgressed(task, self.buyer.task(task).fence, fuel))

    def text(self) -> str:
        lines = []
        notes = dict(self._notes)
        for place, (now, player, event, actions) in enumerate(self.table.log):
            if place in notes:
                lines += ["", f"# {notes[place]}"]
            lines.append(f"{now:8.3f} {player.name} <- {self._show(event)}")
            lines += [f"             {self._show(action)}" for action in actions]
        return "\n".join(lines) + "\n"

    def _show(self, value: object) -> str:
        match value:
            case WakeAt(when, event):
                return f"wake at {when:.3f}: {self._show(event)}"
            case Woken(timer, subject, mark):
                return f"{timer} of {self._show(subject)}, {mark}" if subject else timer
            case Received(peer, message):
                return f"{self._show(peer)}: {self._show(message)}"
            case Send(peer, message):
                return f"to {self._show(peer)}: {self._show(message)}"
            case Notify(notice):
                return f"tell {self._show(notice)}"
            case Capacity():
                return f"{value.cpu_milli}m {value.memory // 10**6}M {value.slots} slots"
            case Offer():
                return f"{self._show(value.peer)} seq {value.seq}, {self._show(value.free)} free"
            case Work():
                return f"work from {value.moves[-1].fuel} fuel on" if value.moves else "work"
            case Order():
                return f"order({value.max_price} µcr, {value.deadline_ms} ms)"
            case Quantiles():
                return f"{value.q10}/{value.q50}/{value.q90}"
            case Result():
                return f"{value.status} {value.exit_code}, {value.fuel} fuel"
            case SignedOffer():
                return self._show(codec.decode_offer(value.offer))
            case State():
                return value.value
            case TaskRecord():
                told = f"{value.state} round {value.round} fence {value.fence}"
                by = f" by {self._show(value.executor)}" if value.executor else ""
                return f"{told}{by}, paid {value.amount}: {value.reason}"
            case bytes():
                return self._name(value)
            case tuple():
                return f"[{' '.join(map(self._show, value))}]"
        if attrs.has(type(value)):
            fields = [
                f"{field.name}={self._show(getattr(value, field.name))}"
                for field in attrs.fields(type(value))
                if field.name not in LEFT_OUT
            ]
            return f"{type(value).__name__}({', '.join(fields)})"
        return repr(value) if isinstance(value, str) else str(value)

    def _name(self, data: bytes) -> str:
        player = self.table.by_peer.get(data)  # type: ignore[call-overload]
        if player:
            return str(player.name)
        if len(data) == 16:
            return "task"
        for read in (self._entry, self._terms, self._answer):
            if told := read(data):
                return told
        return f"{len(data)} bytes"

    def _entry(self, data: bytes) -> str:
        try:
            body = Entry.decode(data).content
        except BadEntry:
            return ""
        sums = f"posted {body.posted} pending {body.pending}"
        return f"{body.kind.name} {body.seq} of {self._name(body.author)}, {sums}"

    def _terms(self, data: bytes) -> str:
        try:
            terms = Terms.decode(data)
        except BadEntry:
            return ""
        return f"fence {terms.fence} reserve {terms.reserve} amount {terms.amount}"

    def _answer(self, data: bytes) -> str:
        return type(codec.decode(data)).__name__ if len(data) > 64 else ""


def auction_to_settlement() -> Script:
    script = Script()
    table = script.table
    script.note("a client bids; both sellers answer; the better one runs it")
    task = table.submit(script.buyer)
    table.run(6.0)
    script.note("it says how far it is, with the next renewal")
    script.progress(task, 3 * G)
    table.run(6.0)
    script.note("it ends: the results are collected, the bill is paid")
    table.finish(table.executor(task), task)
    table.run(4.0)
    return script


def executor_silent() -> Script:
    script = Script()
    table = script.table
    task = table.submit(script.buyer)
    table.run(2.0)
    script.note("the executor's machine goes dark")
    gone = table.executor(task)
    table.crash(gone)
    table.run(16.0)
    script.note("the other one has it by now, under a higher fence, and ends it")
    table.finish(table.executor(task), task)
    table.run(2.0)
    script.note("the first one is back, gives up what it had, and its money is free")
    table.restart(gone)
    table.run(4.0)
    return script


def declined() -> Script:
    script = Script()
    table = script.table

    def delay(source: Player, target: Player, message: Message) -> float:
        return 0.5 if isinstance(message, Award) and message.fence == 1 else 0.0

    table.delay_s = delay
    script.note("awards take half a second; meanwhile the winner restarts and its hold is gone")
    task = table.submit(script.buyer)
    winner = next(player for player in table.players if player.peer == _executor(script, task))
    table.crash(winner)
    table.run(0.2)
    table.restart(winner)
    table.run(2.0)
    script.note("the next best has run it")
    table.finish(table.executor(task), task)
    table.run(1.0)
    return script


def _executor(script: Script, task: TaskId) -> bytes | None:
    return script.buyer.task(task).executor


def cancelled_while_running() -> Script:
    script = Script()
    table = script.table
    task = table.submit(script.buyer)
    table.run(7.0)
    script.progress(task, 2 * G)
    table.run(1.0)
    script.note("the client takes it back: what was burnt is paid, without the fee")
    table.tell(script.buyer, CancelRequested(task))
    table.run(3.0)
    return script


def auctioneer_restarts() -> Script:
    script = Script()
    table = script.table
    task = table.submit(script.buyer)
    table.run(6.0)
    script.note("the auctioneer's node goes down for five seconds; the run goes on")
    table.crash(script.buyer)
    table.run(5.0)
    script.note("it is back: it grants anew, and waits for the lease it may have granted")
    table.restart(script.buyer)
    table.run(8.0)
    script.note("the run ends as if nothing had been")
    table.finish(table.executor(task), task)
    table.run(3.0)
    return script


def orphan_paid() -> Script:
    script = Script()
    table = script.table
    task = table.submit(script.buyer)
    table.run(2.0)
    script.note("the auctioneer's node is dead for a minute")
    table.crash(script.buyer)
    table.run(46.0)
    script.note("paused at the end of its lease, then taken for an orphan: it finishes alone")
    table.finish(table.executor(task), task)
    table.run(12.0)
    script.note("the auctioneer is back, and pays at the next repetition")
    table.restart(script.buyer)
    table.run(10.0)
    return script


def orphan_revoked() -> Script:
    script = Script()
    table = script.table
    task = table.submit(script.buyer)
    first = table.executor(task)
    table.run(2.0)
    script.note("the auctioneer and its executor do not hear one another for a minute")
    table.is_lost = lambda source, target, _: {source, target} == {script.buyer, first}
    table.run(46.0)
    script.note("it runs elsewhere under a higher fence; the orphan finishes all the same")
    table.finish(first, task, evolve(RESULT, run_ms=40_000))
    table.run(2.0)
    script.note("they hear one another again: the old fence is refused, and let go")
    table.is_lost = lambda *_: False
    table.run(10.0)
    script.note("the newest fence is what counts")
    table.finish(table.executor(task), task)
    table.run(1.0)
    return script


def slices() -> Script:
    script = Script(evolve(POLICY, slice_at_least=2_000))
    table = script.table
    task = table.submit(script.buyer)
    table.run(4.0)
    script.note("half a slice is burnt: the buyer signs for it")
    script.progress(task, G)
    table.run(1.0)
    script.note("the buyer falls silent: a whole slice is burnt, and the run stops")
    seller = table.executor(task)
    table.is_lost = lambda source, target, _: script.buyer in (source, target)
    script.progress(task, 2 * G)
    script.progress(task, 3 * G)
    table.run(4.0)
    script.note("it is back and signs at the next renewal: on it goes, to its end")
    table.is_lost = lambda *_: False
    table.run(4.0)
    table.finish(seller, task)
    table.run(1.0)
    return script


def moved() -> Script:
    script = Script()
    table = script.table
    task = table.submit(script.buyer)
    first = table.executor(task)
    table.run(2.0)
    script.note("its client wants it elsewhere: the executor is asked to give it back")
    table.tell(script.buyer, MoveRequested(task, None))
    table.run(0.1)
    script.note("it is taken out alive; its state is collected, paid, and auctioned with the rest")
    table.suspend(first, task, STATE, 3 * G)
    table.run(0.5)
    script.note("the other one ends it, and bills what it burnt itself")
    table.finish(table.executor(task), task, evolve(RESULT, fuel=4 * G))
    table.run(1.0)
    return script


def lost_after_a_checkpoint() -> Script:
    script = Script()
    table = script.table
    task = table.submit(script.buyer)
    gone = table.executor(task)
    table.run(2.0)
    script.note("its state is kept on the way, and given to the buyer")
    table.tell(gone, Checkpointed(task, 1, STATE, 3 * G))
    table.run(1.0)
    script.note("its machine goes dark: it is paid so far, and another one goes on from there")
    table.crash(gone)
    table.run(16.0)
    table.finish(table.executor(task), task, evolve(RESULT, fuel=4 * G))
    table.run(1.0)
    script.note("it is back, gives up what it had, and finds its account closed")
    table.restart(gone)
    table.run(4.0)
    return script


def drained() -> Script:
    script = Script()
    table = script.table
    task = table.submit(script.buyer)
    first = table.executor(task)
    table.run(1.0)
    script.note("its owner wants the node empty: no new bids, and what runs leaves")
    table.tell(first, DrainSet(is_on=True))
    table.suspend(first, task, STATE, 3 * G)
    table.run(1.0)
    script.note("what can be moved no further runs on")
    second = table.executor(task)
    table.tell(second, DrainSet(is_on=True))
    fence = script.buyer.task(task).fence
    table.tell(second, Unmoved(task, fence, "its module cannot be moved", is_for_good=True))
    table.finish(second, task, evolve(RESULT, fuel=4 * G))
    table.run(1.0)
    return script


SCRIPTS: dict[str, Callable[[], Script]] = {
    "auction-to-settlement": auction_to_settlement,
    "executor-silent": executor_silent,
    "declined": declined,
    "cancelled-while-running": cancelled_while_running,
    "auctioneer-restarts": auctioneer_restarts,
    "orphan-paid": orphan_paid,
    "orphan-revoked": orphan_revoked,
    "slices": slices,
    "moved": moved,
    "lost-after-a-checkpoint": lost_after_a_checkpoint,
    "drained": drained,
}


def path_of(name: str) -> Path:
    return FOLDER / f"kernel-{name}.txt"


if __name__ == "__main__":
    assert sys.argv[1:] == ["--rewrite"], __doc__
    assert POLICY.ttl_ms == 15_000, "the scripts' seconds are those of the defaults"
    for name, play in SCRIPTS.items():
        path_of(name).write_text(play().text())
