"""The world of one seed: a heap of things to come, and every fault at its drawn time.

Two phases. In the first everything may fail and nothing wrong may happen (safety). Then the mesh
heals: links mend, nodes come back or stay dead for good, and what was promised must come about
(liveness). Everything that happens goes into one hash: the same seed gives the same hash.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from functools import partial
from hashlib import blake2b

from attrs import evolve, frozen

from mesh import codec
from mesh.errors import PeerError
from mesh.ids import PeerId, TaskId, format_task
from mesh.market.order import State
from mesh.messages import Award, Message, Renewed, SignedOffer
from mesh.notices import Hosted
from mesh.sansio import (
    Action,
    CancelRequested,
    Checkpointed,
    Event,
    MoveRequested,
    Notify,
    OfferReceived,
    Received,
    Run,
    RunEnded,
    RunLost,
    RunProgressed,
    Submitted,
    Suspended,
    Unmoved,
    Woken,
)
from mesh.sim.checkers import Checkers, Violation
from mesh.sim.council import Council
from mesh.sim.faults import Faults
from mesh.sim.keyring import Keyring
from mesh.sim.liar import Liar
from mesh.sim.network import Network
from mesh.sim.node import Node
from mesh.sim.options import Options, stream
from mesh.sim.workload import Plan, draw_copies, draw_modest_plans, draw_plans, draw_shop

_CENSUS_S = 5.0
_MODEST_TASKS = 2
_MODEST_AFTER_S = 40.0
"""After healing: offers have gone round again."""
_QUIET_S = 140.0
"""How long everything must have ended before accounts must be closed: two slow repetitions."""
_EVENTS_KEPT = 400
_EVENTS_MAX = 400_000
"""Of one seed: a mesh that talks this much has a livelock."""


@frozen
class Outcome:
    """What became of one seed."""

    options: Options
    promise: str
    """The broken promise, or the empty string."""
    detail: str
    virtual_s: float
    events: int
    trace: str
    """Hash of everything that happened."""
    tasks: int
    done: int
    counters: tuple[tuple[str, int], ...]
    last_events: tuple[tuple[float, int, Event], ...]
    """(world time, node, event), the newest last; only of a failed seed."""


class World:
    """One mesh. `run` plays it to its end."""

    def __init__(self, options: Options, *, on_event: Callable[[str], None] | None = None) -> None:
        self.options = options
        self.now = 0.0
        self.plans: dict[TaskId, Plan] = {}
        self.healed_at: float | None = None
        self.network = Network(options, stream(options.seed, "network"))
        self.counters: dict[str, int] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._pushed = 0
        self._events = 0
        self._is_over = False
        self._quiet_at: float | None = None
        self._trace = blake2b(digest_size=16)
        self._on_event = on_event
        self._recent: deque[tuple[float, int, Event]] = deque(maxlen=_EVENTS_KEPT)
        self._wire = stream(options.seed, "wire")
        self._gossip = stream(options.seed, "gossip")
        keyring = Keyring(options.seed)
        rng = stream(options.seed, "council")
        self.council = Council(keyring, options.witnesses, options.mute, rng)
        self.policy = evolve(options.policy, witnesses=self.council.members)
        self.checkers = Checkers(options, keyring, self.plans, self.council.members)
        self.nodes: list[Node] = []
        self._liars: dict[int, Liar] = {}
        shops = stream(options.seed, "shops")
        for index in range(options.nodes):
            identity = keyring.create(index)
            node = Node(index, identity, draw_shop(shops), self, self.checkers)
            self.nodes.append(node)
            if index < options.byzantine:
                self._liars[index] = Liar(identity, stream(options.seed, "liar", index))
            else:
                self.checkers.watch(node)
        self._by_peer = {node.peer: node for node in self.nodes}
        self._faults = Faults(self)

    def run(self) -> Outcome:
        """Play the seed. Never raises Violation: it is in the outcome."""
        promise = detail = ""
        try:
            self._begin()
            while self._heap and not self._is_over:
                self._step()
        except Violation as violation:
            promise, detail = violation.promise, violation.detail
        records = [record for node in self._honest() for record in node.kernel.records.values()]
        return Outcome(
            options=self.options,
            promise=promise,
            detail=detail,
            virtual_s=self.now,
            events=self._events,
            trace=self._trace.hexdigest(),
            tasks=len(self.checkers.admitted),
            done=sum(record.state is State.DONE for record in records),
            counters=tuple(sorted(self.counters.items())),
            last_events=tuple(self._recent) if promise else (),
        )

    # --- what nodes can do ----------------------------------------------------------------------

    def schedule(self, at: float, act: Callable[[], None]) -> None:
        """Do something at world time *at*; among equals the first scheduled goes first."""
        self._pushed += 1
        heapq.heappush(self._heap, (max(at, self.now), self._pushed, act))

    def transmit(self, source: Node, target: PeerId, message: Message) -> None:
        """Carry a message, as well as the network can."""
        node = self._by_peer.get(target)
        if node is None:
            self.count("sent to nobody")
            return
        if node is source:
            told = f"node {source.index} sends {type(message).__name__} to itself"
            raise Violation("wiring", told)
        self.count(type(message).__name__)
        self._faults.ambush(source)
        if isinstance(message, Award):
            self._faults.snare(source, node, chances=3)
        elif isinstance(message, Renewed):
            self._faults.snare(source, node, chances=1)
        liar = self._liars.get(source.index)
        if liar is not None:
            for frame in liar.say(message):
                self.carry(source, node, frame)
        elif self._wire.random() < self.options.wire:
            self.carry(source, node, codec.encode(message))
        else:
            for at in self.network.arrivals(source.index, node.index, self.now):
                self.schedule(at, lambda: self._deliver(source, node, message))

    def carry(self, source: Node, target: Node, frame: bytes) -> None:
        """Carry encoded bytes: what the receiver cannot decode, it drops."""
        for at in self.network.arrivals(source.index, target.index, self.now):
            self.schedule(at, lambda: self._deliver_frame(source, target, frame))

    def publish(self, source: Node, signed: SignedOffer) -> None:
        """Gossip: eventually to most."""
        self._trace.update(signed.signature[:8])
        liar = self._liars.get(source.index)
        for node in self.nodes:
            if node is source:
                continue
            at = self.network.gossip_arrival(source.index, node.index, self.now)
            if at is not None:
                event = OfferReceived(liar.publish(signed) if liar else signed)
                self.schedule(at, partial(node.post, event))

    def can_reach(self, source: Node, peer: PeerId) -> bool:
        """Whether *source* can fetch from *peer* now: inputs of a run, or its results."""
        other = self._by_peer.get(peer)
        if other is None or not other.is_up:
            return False
        there = self.network.reaches(source.index, other.index)
        return there and self.network.reaches(other.index, source.index)

    def can_fetch(self, source: Node, run: Run) -> bool:
        """Whether *source* can fetch what *run* needs from its buyer."""
        if not self.can_reach(source, run.buyer):
            return False
        buyer = self._by_peer[run.buyer]
        missing = [move.state for move in run.work.moves[-1:] if move.state not in buyer.states]
        if missing and self.checkers.is_watched(buyer):
            told = f"node {buyer.index} awards {format_task(run.task)} from a state it has not got"
            raise Violation("S10", told)
        return not missing

    def crashed(self, source: Node, event: Event, error: Exception) -> None:
        """A kernel raised: its own broken invariant, or a peer's garbage that was not caught."""
        self._recent.append((self.now, source.index, event))
        told = f"node {source.index} on {type(event).__name__}: {type(error).__name__}: {error}"
        raise Violation("crash", told) from error

    def wrote(self, source: Node) -> None:
        """A node wrote to its disk, and nothing waits for it yet."""
        self._faults.ambush(source)

    def handled(self, source: Node, event: Event, actions: list[Action]) -> None:
        """Write down what happened: into the hash, the counters and the last events."""
        self._events += 1
        if self._events > _EVENTS_MAX:
            raise Violation("livelock", f"more than {_EVENTS_MAX} events")
        line = f"{self.now:.6f} {source.index} {_describe(event)} -> {len(actions)}"
        self._trace.update(line.encode())
        self._recent.append((self.now, source.index, event))
        for action in actions:
            if isinstance(action, Notify) and isinstance(action.notice, Hosted):
                self.count(f"hosted: {action.notice.what}")
        if self._on_event is not None:
            self._on_event(line)

    def count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1

    # --- what the faults need -------------------------------------------------------------------

    def inject(self, source: Node, target: Node) -> None:
        """A liar says something out of turn."""
        frame = self._liars[source.index].repeat()
        if frame is not None:
            self.count("injected")
            self.carry(source, target, frame)

    # --- supporting -----------------------------------------------------------------------------

    def _begin(self) -> None:
        options = self.options
        rng = stream(options.seed, "workload")
        for node in self.nodes:
            self.schedule(rng.uniform(0.0, 3.0), node.start)
        for drawn in draw_plans(options, [node.peer for node in self.nodes], rng):
            plan = draw_copies(drawn, options)
            self._plan(plan)
            self._move_at_times(plan)
            if rng.random() < options.resubmits:
                self._submit_at(plan.at + rng.uniform(0.0, 60.0), plan)
            if rng.random() < options.cancels:
                task, node = plan.order.task, self.nodes[plan.buyer]
                at = plan.at + rng.uniform(0.0, 60.0)
                self.schedule(at, partial(node.post, CancelRequested(task)))
        self._faults.begin()
        self.schedule(options.chaos_s, self._heal)
        self.schedule(_CENSUS_S, self._take_census)

    def _plan(self, plan: Plan) -> None:
        self.plans.update((copy.order.task, copy) for copy in plan.copies())
        self._submit_at(plan.at, plan)

    def _move_at_times(self, plan: Plan) -> None:
        """Its client wants it elsewhere now and then, and does not always say where."""
        rng = stream(self.options.seed, "moves", plan.order.task.hex())
        at = plan.at
        while self.options.moves and (at := at + rng.expovariate(self.options.moves / 60)):
            if at >= self.options.chaos_s:
                break
            to = rng.choice((None, rng.choice(self.nodes).peer))
            event = MoveRequested(plan.order.task, to)
            self.schedule(at, partial(self.nodes[plan.buyer].post, event))

    def _submit_at(self, at: float, plan: Plan) -> None:
        node = self.nodes[plan.buyer]

        def submit() -> None:
            if plan.order.task not in node.disk.read().records:  # else the door answers from files
                node.post(Submitted(plan.order))

        self.schedule(at, submit)

    def _heal(self) -> None:
        self._faults.heal()
        self.network.heal()
        self.healed_at = self.now
        rng = stream(self.options.seed, "modest")
        alive = [node.index for node in self._honest()]
        peers = [node.peer for node in self.nodes]
        at = self.now + _MODEST_AFTER_S
        for plan in draw_modest_plans(_MODEST_TASKS, at, peers, alive, rng):
            self._plan(plan)

    def _step(self) -> None:
        at, _, act = heapq.heappop(self._heap)
        assert at >= self.now
        self.now = self.checkers.now = at
        act()

    def _deliver(self, source: Node, target: Node, message: Message) -> None:
        if target.index in self._liars:
            self._liars[target.index].hear(message)
        target.post(Received(source.peer, message))

    def _deliver_frame(self, source: Node, target: Node, frame: bytes) -> None:
        try:
            message = codec.decode(frame)
        except PeerError:
            if source.index not in self._liars:
                raise Violation("codec", "an honest message does not decode") from None
            self.count("undecodable")
            return
        self._deliver(source, target, message)

    def _honest(self) -> list[Node]:
        """Honest nodes that are up."""
        return [node for node in self.nodes if self.checkers.is_watched(node) and node.is_up]

    def _take_census(self) -> None:
        """Look at what should have come about, and whether there is anything left to wait for."""
        self.checkers.check_progress(self.nodes, self.healed_at)
        self.schedule(self.now + _CENSUS_S, self._take_census)
        if self.healed_at is None or not self._has_ended():
            self._quiet_at = None
        elif self._quiet_at is None:
            self._quiet_at = self.now
        elif self.now - self._quiet_at > _QUIET_S:
            self.checkers.check_quiet(self.nodes)
            self.checkers.check_ledger(self.nodes)
            self.checkers.check_bills()
            self._check_modest()
            self._is_over = True

    def _has_ended(self) -> bool:
        """Whether every task of an honest node has ended, and nothing runs on one."""
        assert self.healed_at is not None
        if self.now < self.healed_at + _MODEST_AFTER_S + _CENSUS_S + 5.0:
            return False
        return all(
            not node.runtime.workers
            and all(record.state.is_final for record in node.kernel.records.values())
            for node in self._honest()
        )

    def _check_modest(self) -> None:
        """L1, the stronger half: what was easy to do in a healed mesh of honest nodes, was done."""
        if self.options.byzantine or self.options.is_short_of_credit:
            return
        for plan in self.plans.values():
            if not plan.is_modest:
                continue
            record = self.nodes[plan.buyer].kernel.records.get(plan.order.task)
            if record is not None and record.state is not State.DONE:
                told = format_task(plan.order.task)
                raise Violation("L1", f"{told} was easy, and {record.state}: {record.reason}")


def _describe(event: Event) -> str:
    """One event in a few words, for people and for the hash."""
    match event:
        case Received(peer, message):
            fence = getattr(message, "fence", getattr(message, "round", 0))
            task = message.task.hex()[:8]
            return f"{type(message).__name__} {task}/{fence} from {peer.hex()[:8]}"
        case Woken(timer, subject, mark):
            return f"{timer} due {subject.hex()[:8] if subject else ''} {mark}"
        case (
            RunProgressed(task, fence)
            | RunEnded(task, fence)
            | RunLost(task, fence)
            | Checkpointed(task, fence)
            | Suspended(task, fence)
            | Unmoved(task, fence)
        ):
            return f"{type(event).__name__} {task.hex()[:8]}/{fence}"
        case OfferReceived(signed):
            return f"OfferReceived {signed.signature.hex()[:8]}"
        case Submitted(order):
            return f"Submitted {order.task.hex()[:8]}"
        case CancelRequested(task):
            return f"CancelRequested {task.hex()[:8]}"
        case _:
            return type(event).__name__
