"""Faults: what is done to links and nodes, when. Each kind comes at its own drawn rate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Protocol

from mesh.sansio import DrainSet, LoadSampled
from mesh.sim.network import Network, split
from mesh.sim.node import Node
from mesh.sim.options import Options, stream

_MISCHIEF_PER_MIN = 20.0


class Stage(Protocol):
    """What faults act on."""

    options: Options
    now: float
    nodes: list[Node]
    network: Network

    def schedule(self, at: float, act: Callable[[], None]) -> None: ...
    def inject(self, source: Node, target: Node) -> None: ...
    def count(self, name: str) -> None: ...


class Faults:
    """Schedules the faults of one seed, and ends them."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._rng = stream(stage.options.seed, "faults")
        self._is_over = False

    def begin(self) -> None:
        """Draw the times of all faults of the safety phase."""
        options = self._stage.options
        kinds: tuple[tuple[float, Callable[[Random], None]], ...] = (
            (options.clogs, self._clog),
            (options.partitions, self._partition),
            (options.crashes, self._crash),
            (options.stalls, self._stall),
            (options.surges, self._surge),
            (options.drains, self._drain),
            (_MISCHIEF_PER_MIN * options.byzantine, self._lie),
        )
        for rate, act in kinds:
            at = 0.0
            while rate > 0:
                at += self._rng.expovariate(rate / 60)
                if at >= options.chaos_s:
                    break
                self._stage.schedule(at, partial(act, self._rng))

    def heal(self) -> None:
        """End all faults: whoever is not dead is up and awake. Lies go on for ever."""
        self._is_over = True
        for node in self._stage.nodes:
            if node.is_stalled:
                node.resume()
            if not node.is_up and not node.is_dead:
                node.start()
            if node.is_up:
                node.post(LoadSampled(0, 0))
                node.post(DrainSet(is_on=False))

    def _clog(self, rng: Random) -> None:
        source, target = rng.sample(range(len(self._stage.nodes)), 2)
        self._stage.network.clog(source, target, self._stage.now + rng.uniform(0.5, 30.0))
        self._stage.count("clogs")

    def _partition(self, rng: Random) -> None:
        links = split(len(self._stage.nodes), rng)
        self._stage.network.cut(links)
        self._stage.count("partitions")
        wait = rng.choice((1.0, 10.0, 30.0, 90.0)) * rng.uniform(0.5, 1.5)
        self._later(wait, lambda: self._stage.network.mend(links))

    def _crash(self, rng: Random) -> None:
        up = [node for node in self._stage.nodes if node.is_up]
        if not up:
            return
        node = rng.choice(up)
        node.crash(rng)
        self._stage.count("crashes")
        alive = [node for node in self._stage.nodes if not node.is_dead]
        honest = [node for node in alive if node.index >= self._stage.options.byzantine]
        if len(honest) > 2 and rng.random() < self._stage.options.deaths:
            node.is_dead = True
            self._stage.count("deaths")
            return
        self._later(rng.choice((0.1, 3.0, 30.0)) * rng.uniform(0.5, 2.0), lambda: _start(node))

    def ambush(self, node: Node) -> None:
        """*node* has just spoken or written: it may crash before it does anything else."""
        if self._is_over or self._rng.random() >= self._stage.options.ambushes:
            return

        def strike() -> None:
            if node.is_up:
                node.crash(self._rng)
                self._stage.count("ambushes")
                self._later(self._rng.uniform(0.05, 1.0), lambda: _start(node))

        wait = self._rng.choice((0.0, 0.0, 0.05, 1.0))
        if wait:
            self._later(wait, strike)
        else:
            strike()

    def snare(self, source: Node, target: Node, *, chances: int) -> None:
        """What *source* grants *target* may come late, and no answer come back: leases in doubt."""
        rng, options = self._rng, self._stage.options
        if self._is_over or rng.random() >= options.snares * chances:
            return
        lease_s = options.policy.ttl_ms / 1000
        hold_s = options.policy.hold_ms / 1000
        late = rng.choice((hold_s * rng.uniform(0.5, 1.0), lease_s * rng.uniform(0.8, 2.0)))
        self._stage.network.clog(source.index, target.index, self._stage.now + late)
        links = [(target.index, source.index)]
        self._stage.network.cut(links)
        self._stage.count("snares")
        wait = lease_s * rng.uniform(0.5, 4.0)
        self._later(wait, lambda: self._stage.network.mend(links))

    def _stall(self, rng: Random) -> None:
        up = [node for node in self._stage.nodes if node.is_up and not node.is_stalled]
        if not up:
            return
        node = rng.choice(up)
        node.stall()
        self._stage.count("stalls")
        boots = node.boots
        wait = rng.choice((0.3, 3.0, 20.0)) * rng.uniform(0.5, 2.0)
        self._later(wait, lambda: node.resume() if node.boots == boots else None)

    def _surge(self, rng: Random) -> None:
        node = rng.choice(self._stage.nodes)
        machine = node.shop.machine
        share = rng.choice((0.0, 0.3, 1.0))
        node.post(LoadSampled(int(machine.cpu_milli * share), int(machine.memory * share)))
        self._stage.count("surges")

    def _drain(self, rng: Random) -> None:
        node = rng.choice(self._stage.nodes)
        node.post(DrainSet(is_on=True))
        self._stage.count("drains")
        wait = rng.choice((1.0, 20.0, 60.0))
        self._later(wait, lambda: node.post(DrainSet(is_on=False)))

    def _lie(self, rng: Random) -> None:
        source = self._stage.nodes[rng.randrange(self._stage.options.byzantine)]
        target = rng.choice([node for node in self._stage.nodes if node is not source])
        self._stage.inject(source, target)

    def _later(self, wait: float, act: Callable[[], None]) -> None:
        """Do something, unless healing has done it already."""
        self._stage.schedule(self._stage.now + wait, lambda: None if self._is_over else act())


def _start(node: Node) -> None:
    if not node.is_up and not node.is_dead:
        node.start()
