"""One simulated node: the shell around one kernel, with a clock, a disk and workers that may fail.

Contract (sansio.py): actions are performed in order, and what was persisted is durable before any
later message leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Protocol

from attrs import define

from ledger.model import Entry
from mesh.ids import Cid, EntryId, PeerId, TaskId
from mesh.kernel import Kernel
from mesh.market.bidding import Shop
from mesh.market.policy import Policy
from mesh.messages import Message, SignedOffer
from mesh.notices import Notice
from mesh.sansio import (
    Action,
    AppendEntry,
    Certified,
    Certify,
    ChainConfirmed,
    Checkpoint,
    Collect,
    Collected,
    ContinueRun,
    DrainSet,
    DropState,
    Event,
    ForgetTenancy,
    Gossip,
    Identity,
    KeepState,
    Notify,
    PauseRun,
    Penalize,
    PersistTask,
    PersistTenancy,
    Run,
    Send,
    Started,
    StopRun,
    Suspend,
    WakeAt,
    Woken,
)
from mesh.sim.clock import Clock
from mesh.sim.council import Council
from mesh.sim.disk import Disk, Write
from mesh.sim.options import Options, stream
from mesh.sim.restart import restore
from mesh.sim.runtime import Runtime
from mesh.sim.workload import Plan

BACKLOG_MAX = 4_096
"""Events that wait for a stalled node, as in the driver's inbox."""
_ROLLED_BACK_MAX = 6
_LATENESS_S = 0.02
"""Timers fire up to this late."""


class World(Protocol):
    """What a node can do to the world around it."""

    options: Options
    now: float
    plans: dict[TaskId, Plan]
    policy: Policy
    council: Council

    def schedule(self, at: float, act: Callable[[], None]) -> None: ...
    def transmit(self, source: Node, target: PeerId, message: Message) -> None: ...
    def publish(self, source: Node, signed: SignedOffer) -> None: ...
    def can_reach(self, source: Node, peer: PeerId) -> bool: ...
    def can_fetch(self, source: Node, run: Run) -> bool: ...
    def wrote(self, source: Node) -> None: ...
    def handled(self, source: Node, event: Event, actions: list[Action]) -> None: ...
    def crashed(self, source: Node, event: Event, error: Exception) -> None: ...


class Witness(Protocol):
    """Who looks on: the checkers."""

    def saw_arrival(self, node: Node, event: Event) -> None: ...
    def saw_event(self, node: Node, actions: list[Action]) -> None: ...
    def saw_message(self, node: Node, message: Message) -> None: ...
    def saw_run(self, node: Node, run: Run) -> None: ...
    def saw_durable(self, node: Node, write: Write) -> None: ...
    def saw_penalty(self, node: Node, peer: PeerId, reason: str) -> None: ...
    def saw_notice(self, node: Node, notice: Notice) -> None: ...
    def saw_silence(self, node: Node) -> None: ...
    def saw_awakening(self, node: Node) -> None: ...


CRASHES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a bug in the kernel may raise."""


@define
class _Boot:
    """What lives from one start to the next crash."""

    kernel: Kernel
    clock: Clock
    runtime: Runtime
    reading: float


class Node:
    """A node of the simulated mesh. *index* is its number, *shop* what its owner sells."""

    def __init__(
        self, index: int, identity: Identity, shop: Shop, world: World, witness: Witness
    ) -> None:
        self.index = index
        self.peer = identity.peer
        self.identity = identity
        self.shop = shop
        self.disk = Disk(lambda write: witness.saw_durable(self, write))
        self.boots = 0
        self.handled = 0
        self.is_dead = False
        self.is_drained = False
        """Whether its owner closed it, since it was started."""
        self.is_catching_up = False
        """Handling the timers that came due in a stall: until then it has no effects."""
        self.quiet_since = 0.0
        """When it last crashed, restarted, stalled or resumed: world time."""
        self._world = world
        self._witness = witness
        self._boot: _Boot | None = None
        self._backlog: list[Event] | None = None  # a list while stalled
        self.states: set[Cid] = set()
        """Of runs, which it has collected: on its disk."""
        self._lost: list[bytes] = []  # entries of ours that our disk has not, and peers have
        rng = stream(world.options.seed, "clock", index)
        self._rate = 1.0 + rng.uniform(-1.0, 1.0) * world.options.drift
        self._wall_skew_s = rng.uniform(-1.0, 1.0) * world.options.wall_skew_s
        self._lateness = stream(world.options.seed, "lateness", index)

    @property
    def is_up(self) -> bool:
        return self._boot is not None

    @property
    def lost(self) -> tuple[bytes, ...]:
        """Entries of ours that our disk has not, and peers have."""
        return tuple(self._lost)

    @property
    def is_stalled(self) -> bool:
        return self._backlog is not None

    @property
    def kernel(self) -> Kernel:
        assert self._boot is not None, "the node is down"
        return self._boot.kernel

    @property
    def runtime(self) -> Runtime:
        assert self._boot is not None, "the node is down"
        return self._boot.runtime

    @property
    def reading(self) -> float:
        """What this node's monotonic clock shows now; never less than it showed before."""
        boot = self._boot
        assert boot is not None, "the node is down"
        boot.reading = max(boot.reading, boot.clock.read(self._world.now))
        return boot.reading

    def start(self) -> None:
        """Boot, from whatever the disk holds."""
        assert self._boot is None
        assert not self.is_dead
        world = self._world
        self.boots += 1
        self.is_drained = False
        self.quiet_since = world.now
        rng = stream(world.options.seed, "boot", self.index, self.boots)
        clock = Clock(world.now, rng.uniform(0.0, 1e6), self._rate)
        wall_ms = int((1_700_000_000 + world.now + self._wall_skew_s) * 1000)
        kernel = restore(
            self.identity,
            world.policy,
            rng,
            self.disk.read(),
            epoch=self.boots,
            epoch_ms=wall_ms - int(clock.origin * 1000),
            shop=self.shop,
            is_new=self.boots == 1,
        )
        self._boot = _Boot(kernel, clock, self._build_runtime(rng), clock.origin)
        self.post(Started())
        if not kernel.is_confirmed:  # as long as it takes to ask some peers
            self._later(world.now + rng.uniform(0.01, 3.0), self._confirm)

    def crash(self, rng: Random) -> None:
        """Power off: timers, runs and what nobody waited for are gone."""
        assert self._boot is not None
        self._boot.runtime.stop_all()
        self._boot = None
        self._backlog = None
        self.quiet_since = self._world.now
        self.disk.crash(rng)
        if rng.random() < self._world.options.restores:
            self._lost = [*self.disk.roll_back(rng.randint(1, _ROLLED_BACK_MAX)), *self._lost]
        self._witness.saw_silence(self)

    def stall(self) -> None:
        """Stop handling events; the workers and the clock go on."""
        if self._backlog is None:
            self._backlog = []
            self.quiet_since = self._world.now
            self._witness.saw_silence(self)

    def resume(self) -> None:
        """Catch up in the driver's order: one event, the timers that are due, the other events."""
        backlog = self._backlog
        self._backlog = None
        self.quiet_since = self._world.now
        if backlog is None or self._boot is None:
            return
        self.is_catching_up = True
        timers = [event for event in backlog if isinstance(event, Woken)]
        others = [event for event in backlog if not isinstance(event, Woken)]
        for event in (*others[:1], *timers):
            self.post(event)
        self.is_catching_up = False
        self._witness.saw_awakening(self)
        for event in others[1:]:
            self.post(event)

    def post(self, event: Event) -> None:
        """Something happened; a node that is down never hears of it."""
        if self._boot is None:
            return
        if self._backlog is not None:
            if len(self._backlog) < BACKLOG_MAX or isinstance(event, Woken):
                self._backlog.append(event)
            return
        self._handle(event)

    def _handle(self, event: Event) -> None:
        assert self._boot is not None
        self.handled += 1
        try:
            actions = self._boot.kernel.handle(event, self.reading)
        except CRASHES as error:
            self._world.crashed(self, event, error)
            return
        if isinstance(event, DrainSet):
            self.is_drained = event.is_on
        self._world.handled(self, event, actions)
        self._witness.saw_arrival(self, event)
        boot = self._boot
        for action in actions:
            self._perform(action)
            if self._boot is not boot:
                return  # crashed half-way
        self._witness.saw_event(self, actions)

    def _perform(self, action: Action) -> None:  # one line for each kind of action
        boot = self._boot
        assert boot is not None
        match action:
            case Send(peer, message):
                self.disk.sync()
                self._witness.saw_message(self, message)
                self._world.transmit(self, peer, message)
            case WakeAt(when, event):
                late = self._lateness.uniform(0.0, _LATENESS_S)
                at = max(self._world.now, boot.clock.when(when)) + late
                self._later(at, lambda: self.post(event))
            case Notify(notice):
                self._witness.saw_notice(self, notice)
            case Gossip(signed):
                self.disk.sync()
                self._world.publish(self, signed)
            case PersistTask() | PersistTenancy() | ForgetTenancy() | AppendEntry():
                self.disk.write(action)
                self._world.wrote(self)
            case Run():
                self._witness.saw_run(self, action)
                boot.runtime.start(action)
            case PauseRun(task, fence):
                boot.runtime.pause(task, fence)
            case ContinueRun(task, fence):
                boot.runtime.go_on(task, fence)
            case StopRun(task, fence):
                boot.runtime.stop(task, fence)
            case Checkpoint(task, fence):
                boot.runtime.keep(task, fence, is_over=False)
            case Suspend(task, fence):
                boot.runtime.keep(task, fence, is_over=True)
            case Collect():
                self._later(self._world.now + 0.1, lambda: self._collect(action))
            case KeepState(buyer=buyer, state=state):
                self._later(self._world.now + 0.1, lambda: self._keep(buyer, state))
            case DropState():
                pass  # a simulated disk is never full
            case Certify():
                self.disk.sync()
                wait = self._lateness.uniform(0.005, 0.5)
                self._later(self._world.now + wait, lambda: self._certify(action))
            case Penalize(peer, reason):
                self._witness.saw_penalty(self, peer, reason)

    def _confirm(self) -> None:
        """Peers told where our chain ends, and what we have lost of it."""
        lost, self._lost = self._lost, []
        self.disk.bring_back(lost)
        self.post(ChainConfirmed(tuple(lost)))

    def _certify(self, asked: Certify) -> None:
        chain = self.disk.read().entries
        entry = Entry.decode(asked.entry)
        certificate, why = self._world.council.certify(chain, entry)
        self.post(Certified(asked.task, asked.fence, EntryId(entry.id), certificate, why))

    def _keep(self, buyer: PeerId, state: Cid) -> None:
        if self._world.can_reach(self, buyer):
            self.states.add(state)

    def _collect(self, asked: Collect) -> None:
        is_there = self._world.can_reach(self, asked.executor)
        if is_there and asked.is_state:
            self.states.add(asked.roots[0])
        why = "" if is_there else "the executor is out of reach"
        self.post(Collected(asked.task, asked.fence, asked.roots[0], why))

    def _build_runtime(self, rng: Random) -> Runtime:
        world = self._world
        return Runtime(
            world.options,
            world.plans,
            rng,
            speed=self.shop.speed,
            clock=lambda: world.now,
            schedule=lambda wait, act: self._later(world.now + wait, act),
            post=self.post,
            can_fetch=lambda run: world.can_fetch(self, run),
        )

    def _later(self, at: float, act: Callable[[], None]) -> None:
        """Do something then, unless this boot has ended."""
        boots = self.boots

        def fire() -> None:
            if self._boot is not None and self.boots == boots:
                act()

        self._world.schedule(at, fire)
