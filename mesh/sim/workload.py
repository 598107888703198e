"""The work of one seed: who wants what, by when and for how much, and what really happens to it.

What a task burns and leaves behind depends on the task alone, as with metered WASM; only the time
it takes depends on the node.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from random import Random

from attrs import evolve, frozen

from mesh.ids import RAW, Cid, PeerId, TaskId, cid_of, task_id
from mesh.market.bidding import Shop, bill
from mesh.market.copies import copies_of
from mesh.market.order import Group, Order
from mesh.messages import Result, Work
from mesh.resources.capacity import Capacity
from mesh.sim.options import Options, stream
from mesh.sim.trace import JOBS

MIB = 1 << 20
GIB = 1 << 30
SPEED = 100_000
"""Fuel per millisecond of an ordinary core."""
_PRICE = 400
"""An ordinary floor price, µcr per 10^9 fuel."""
_FEATURES = ("python", "arm64")


@frozen
class Plan:
    """One task: submitted at *at* (seconds of world time) to node *buyer*, and its true course."""

    at: float
    buyer: int
    order: Order
    burn: int
    """The fuel it wants; above the limit it is stopped there."""
    exit_code: int
    is_movable: bool = True
    is_modest: bool = False
    """Small, well paid and in no hurry."""

    @property
    def fuel(self) -> int:
        """What a run to the end burns."""
        return min(self.burn, self.order.work.fuel)

    def result(self, run_ms: int, burnt_before: int = 0) -> Result:
        """What a run to the end leaves, wherever it ran, and whoever began it."""
        is_stopped = self.burn > self.order.work.fuel
        task = self.order.group.first if self.order.group else self.order.task
        return Result(
            status="out-of-fuel" if is_stopped else "exited",
            exit_code=0 if is_stopped else self.exit_code,
            detail="",
            fuel=self.fuel - burnt_before,
            run_ms=run_ms,
            output=_cid("output", task),
            stdout=_cid("stdout", task),
            stderr=_cid("stderr", task),
        )

    def copies(self) -> tuple[Plan, ...]:
        """Itself as each of its copies; they do and leave the same."""
        return tuple(evolve(self, order=order) for order in copies_of(self.order))


@frozen
class Size:
    """How big a task is, before it is an order."""

    gap_s: float
    run_s: float
    cpu_milli: int
    memory: int
    priority: int
    slack: float


def draw_shop(rng: Random) -> Shop:
    """What one node's owner sells."""
    cores = rng.choice((1, 2, 2, 4, 4, 8))
    memory = cores * rng.choice((1, 2, 4)) * GIB
    share = rng.choice((0.5, 0.8, 1.0))
    machine = Capacity(cores * 1000, memory, 64 * GIB, 16)
    sold = Capacity(int(cores * 1000 * share), int(memory * share), 16 * GIB, rng.randint(1, 16))
    return Shop(
        machine=machine,
        sold=sold,
        price=int(_PRICE * rng.uniform(0.5, 2.0)),
        speed=int(SPEED * rng.uniform(0.5, 1.5)),
        features=tuple(feature for feature in _FEATURES if rng.random() < 0.7),
        agent="mesh/sim",
    )


def draw_plans(options: Options, peers: Sequence[PeerId], rng: Random) -> list[Plan]:
    """The tasks of the safety phase, in order of submission."""
    sizes = _traced(options, rng) if options.is_traced else _invented(options, rng)
    buyers = range(options.byzantine, options.nodes)  # the first ones lie; their tasks count less
    plans = []
    at = rng.uniform(1.0, 20.0)
    for number, size in enumerate(sizes):
        is_foul = options.byzantine > 0 and rng.random() < 0.25
        buyer = rng.randrange(options.byzantine) if is_foul else rng.choice(buyers)
        plans.append(_plan(at, buyer, peers[buyer], number, size, rng))
        at = min(at + size.gap_s, rng.uniform(0.5, 1.0) * options.chaos_s)
    return plans


def draw_copies(plan: Plan, options: Options) -> Plan:
    """The same task, or several copies of it, now and then more than there are sellers."""
    task = plan.order.task
    rng = stream(options.seed, "copies", task.hex())
    if rng.random() >= options.copied:
        return plan
    count = rng.choice((2, 2, 3, 4))
    order, group = plan.order, Group(task, count)
    whole = evolve(order, max_price=order.max_price * count, fee=order.fee * count, group=group)
    return evolve(plan, order=whole)


def draw_modest_plans(
    count: int, at: float, peers: Sequence[PeerId], buyers: Sequence[int], rng: Random
) -> list[Plan]:
    """Small, well-paid tasks with time to spare: once nothing fails any more these must be done."""
    plans = []
    for number in range(count):
        buyer = rng.choice(buyers)
        order = _order(
            peers[buyer],
            f"modest-{number}",
            Capacity(100, 32 * MIB, MIB, 1),
            fuel=SPEED * 4_000,
            wall_ms=600_000,
            deadline_ms=1_500_000,
            max_price=10_000_000,
            fee=0,
            priority=1,
            features=(),
        )
        wait = rng.uniform(0.0, 5.0)
        plans.append(Plan(at + wait, buyer, order, SPEED * 2_000, 0, is_modest=True))
    return plans


def _traced(options: Options, rng: Random) -> list[Size]:
    first = rng.randrange(len(JOBS) - options.tasks)
    return [
        Size(
            gap_s=float(min(job.gap_s, 30)),
            run_s=job.run_s,
            cpu_milli=job.cpu_milli,
            memory=job.memory_mib * MIB,
            priority=job.priority,
            slack=job.slack,
        )
        for job in JOBS[first : first + options.tasks]
    ]


def _invented(options: Options, rng: Random) -> list[Size]:
    return [
        Size(
            gap_s=rng.expovariate(options.tasks / (0.7 * options.chaos_s)),
            run_s=10 ** rng.uniform(-0.5, 2.0),
            cpu_milli=rng.choice((100, 250, 500, 1000, 1000, 2000, 4000)),
            memory=int(2 ** rng.uniform(5.0, 12.0)) * MIB,
            priority=rng.choice((1, 2, 4, 8)),
            slack=rng.choice((0.2, 0.8, 2.0, 5.0)),
        )
        for _ in range(options.tasks)
    ]


def _plan(at: float, buyer: int, peer: PeerId, number: int, size: Size, rng: Random) -> Plan:
    cores = min(1.0, size.cpu_milli / 1000)
    burn = max(1, int(size.run_s * 1000 * SPEED * cores))
    fuel = int(burn * rng.uniform(1.0, 3.0)) if rng.random() < 0.9 else max(1, burn // 2)
    max_price = bill(int(_PRICE * 10 ** rng.uniform(-0.3, 1.0)), fuel) + 1
    fee = rng.choice((0, 0, max_price // 10))
    order = _order(
        peer,
        f"task-{number}",
        Capacity(size.cpu_milli, size.memory, rng.choice((0, 100 * MIB)), 1),
        fuel=fuel,
        wall_ms=int(size.run_s * 1000 * rng.uniform(2.0, 6.0)) + 1000,
        deadline_ms=int(1000 * (size.run_s * (1 + size.slack) + 10 ** rng.uniform(0.5, 2.3))),
        max_price=max_price + fee,
        fee=fee,
        priority=size.priority,
        features=tuple(feature for feature in _FEATURES if rng.random() < 0.1),
    )
    is_movable = order.task[0] % 4 != 0
    return Plan(at, buyer, order, burn, rng.choice((0, 0, 0, 1)), is_movable)


def _order(
    peer: PeerId,
    name: str,
    needs: Capacity,
    *,
    fuel: int,
    wall_ms: int,
    deadline_ms: int,
    max_price: int,
    fee: int,
    priority: int,
    features: tuple[str, ...],
) -> Order:
    task = task_id(peer, name.encode())
    work = Work(
        job=_cid("job", task),
        module=_cid("module", TaskId(sha256(task[:1]).digest()[:16])),  # shared by some tasks
        inputs=(_cid("input", task),),
        needs=needs,
        fuel=fuel,
        wall_ms=wall_ms,
        features=features,
    )
    return Order(task, name, work, max_price, fee, priority, deadline_ms)


def state_of(task: TaskId, fuel: int) -> Cid:
    """What *task* is once it has burnt *fuel*, wherever it did."""
    return _cid(f"state {fuel}", task)


def _cid(what: str, task: TaskId) -> Cid:
    return cid_of(RAW, what.encode() + task)
