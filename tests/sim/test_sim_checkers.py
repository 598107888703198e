"""Each checker fails on a violation made by hand, and holds its peace otherwise."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, cast

import pytest
from attrs import define, evolve, field

from ledger import chain
from ledger.chain import Head
from ledger.keys import terms_message
from ledger.model import Entry
from mesh.ids import RAW, EntryId, PeerId, TaskId, cid_of
from mesh.market.copies import copies_of
from mesh.market.order import Group, Order, State, TaskRecord
from mesh.market.terms import alloc_terms, void_terms
from mesh.messages import Ask, Award, Move, Offer, Settled
from mesh.notices import Hosted, OfferHeard
from mesh.resources.capacity import NOTHING, Capacity
from mesh.sansio import AppendEntry, PersistTask, PersistTenancy, Run
from mesh.sim.checkers import Checkers, Violation
from mesh.sim.disk import Disk
from mesh.sim.keyring import Keyring
from mesh.sim.node import Node
from mesh.sim.options import Options, calm, draw
from mesh.sim.restart import NET
from mesh.sim.workload import Plan, draw_plans, draw_shop

STATE = cid_of(RAW, b"state")
OPTIONS = evolve(calm(draw(0)), nodes=3)


@define
class Facts:
    """What a kernel shows to checkers."""

    held: tuple[tuple[TaskId, int], ...] = ()
    taken: Capacity = NOTHING
    tables: dict[str, tuple[int, int]] = field(factory=dict)
    records: dict[TaskId, TaskRecord] = field(factory=dict)
    workers: tuple[tuple[TaskId, int], ...] = ()

    def leases(self) -> tuple[tuple[TaskId, int], ...]:
        return self.held

    def reserved(self) -> Capacity:
        return self.taken

    def sold(self) -> Capacity:
        return Capacity(1000, 1000, 1000, 1)

    def sizes(self) -> dict[str, tuple[int, int]]:
        return self.tables


class Scene:
    """Three nodes of which the checkers see only what a test writes down."""

    def __init__(self, options: Options = OPTIONS) -> None:
        self.keyring = Keyring(1)
        self.identities = [self.keyring.create(index) for index in range(3)]
        peers = [identity.peer for identity in self.identities]
        self.plans = draw_plans(options, peers, Random(1))
        self.checkers = Checkers(options, self.keyring, {p.order.task: p for p in self.plans})
        self.facts = [Facts() for _ in range(3)]
        self.nodes = [self._node(index) for index in range(3)]
        self.heads = [Head.start(peer, NET) for peer in peers]

    def _node(self, index: int) -> Node:
        node = cast(Any, object.__new__(_Still))
        node.index, node.peer = index, self.identities[index].peer
        node.facts = self.facts[index]
        node.disk = Disk(lambda write: self.checkers.saw_durable(node, write))
        node.handled, node.quiet_since = 0, 0.0
        node.is_catching_up = node.is_drained = False
        node._lost = []
        node.is_on = True
        self.checkers.watch(node)
        return cast(Node, node)

    def look(self, index: int) -> None:
        """The node has handled something."""
        self.checkers.saw_event(self.nodes[index], [cast(Any, None)])

    def alloc(self, plan: Plan, seller: int, fence: int = 1) -> Entry:
        """The next entry of the buyer's chain: an award to *seller*."""
        ask = Ask(plan.order.task, fence, plan.order.work, 1, 1000, 0, 10**18, 15_000, 300)
        buyer = self.identities[plan.buyer]
        terms = alloc_terms(
            ask,
            seller=self.identities[seller].peer,
            buyer=buyer.peer,
            price=10**6,
            wall_ms=10**12,
            grace_ms=0,
        ).encode()
        signature = self.identities[seller].sign(terms_message(terms))
        self.heads[plan.buyer], entry = chain.alloc(
            self.heads[plan.buyer], terms, signature, wall_ms=10**12, sign=buyer.sign
        )
        return entry

    def keep(self, index: int, entry: Entry) -> None:
        """Make an own entry durable."""
        self.nodes[index].disk.write(AppendEntry(entry.encode(), is_own=True))
        self.nodes[index].disk.sync()

    def record(self, record: TaskRecord) -> None:
        disk = self.nodes[self.plan(record.order.task).buyer].disk
        disk.write(PersistTask(record))
        disk.sync()

    def plan(self, task: TaskId) -> Plan:
        return next(plan for plan in self.plans if plan.order.task == task)


class _Still(Node):
    """A node that does nothing by itself."""

    facts: Facts
    is_on: bool

    @property
    def kernel(self) -> Any:
        return self.facts

    @property
    def runtime(self) -> Any:
        return self.facts

    @property
    def is_up(self) -> bool:
        return self.is_on

    @property
    def is_stalled(self) -> bool:
        return False


def breaks(promise: str, act: Callable[[], object]) -> None:
    with pytest.raises(Violation) as caught:
        act()
    assert caught.value.promise == promise, caught.value.detail


def test_two_holders_of_one_task_break_s1() -> None:
    scene = Scene()
    task = scene.plans[0].order.task
    scene.facts[0].held = ((task, 1),)
    scene.look(0)
    scene.facts[0].held = ()
    scene.look(0)
    scene.facts[1].held = ((task, 2),)
    scene.look(1)
    scene.facts[2].held = ((task, 3),)
    breaks("S1", lambda: scene.look(2))


def test_a_holder_that_is_down_does_not_count() -> None:
    scene = Scene()
    task = scene.plans[0].order.task
    scene.facts[0].held = scene.facts[1].held = ((task, 1),)
    scene.look(0)
    scene.checkers.saw_silence(scene.nodes[0])
    scene.look(1)
    breaks("S1", lambda: scene.checkers.saw_awakening(scene.nodes[0]))


def test_reserving_more_than_is_sold_breaks_s6() -> None:
    scene = Scene()
    scene.facts[0].taken = Capacity(1001, 0, 0, 1)
    breaks("S6", lambda: scene.look(0))


def test_a_table_above_its_bound_breaks_s7() -> None:
    scene = Scene()
    scene.facts[0].tables = {"holds": (3, 3)}
    scene.checkers.check_sizes(scene.nodes[0])
    scene.facts[0].tables = {"holds": (4, 3)}
    breaks("S7", lambda: scene.checkers.check_sizes(scene.nodes[0]))


def test_showing_an_entry_that_is_not_durable_breaks_s2() -> None:
    scene = Scene()
    plan = scene.plans[0]
    entry = scene.alloc(plan, (plan.buyer + 1) % 3)
    award = Award(plan.order.task, 1, entry.encode(), 15_000)
    buyer = scene.nodes[plan.buyer]
    breaks("S2", lambda: scene.checkers.saw_message(buyer, award))
    scene.keep(plan.buyer, entry)
    scene.checkers.saw_message(buyer, award)


def test_a_second_entry_in_the_same_place_breaks_s3() -> None:
    scene = Scene()
    plan = scene.plans[0]
    seller = (plan.buyer + 1) % 3
    scene.keep(plan.buyer, scene.alloc(plan, seller))
    scene.heads[plan.buyer] = Head.start(scene.nodes[plan.buyer].peer, NET)
    fork = scene.alloc(plan, seller, fence=2)
    breaks("S3", lambda: scene.keep(plan.buyer, fork))


def test_running_without_the_buyers_signature_breaks_s8() -> None:
    scene = Scene()
    plan = scene.plans[0]
    seller = (plan.buyer + 1) % 3
    entry, node, task = scene.alloc(plan, seller), scene.nodes[seller], plan.order.task
    run = Run(task, 1, scene.nodes[plan.buyer].peer, plan.order.work)
    breaks("S8", lambda: scene.checkers.saw_run(node, run))
    forged = evolve(entry, sig=bytes(64))
    node.disk.write(PersistTenancy(task, 1, run.buyer, forged.encode(), b""))
    breaks("S8", lambda: scene.checkers.saw_run(node, run))
    node.disk.write(PersistTenancy(task, 1, run.buyer, entry.encode(), b""))
    breaks("S8", lambda: scene.checkers.saw_run(node, run))  # signed, but the buyer never kept it
    scene.keep(plan.buyer, entry)
    scene.checkers.saw_run(node, run)


def test_a_final_state_that_changes_breaks_s10() -> None:
    scene = Scene()
    plan = scene.plans[0]
    order = plan.order
    lost = EntryId(bytes(32))
    scene.record(TaskRecord(order, State.DONE, 0, settle=lost))  # a crash: the entry never was
    entry = scene.alloc(plan, (plan.buyer + 1) % 3)
    scene.keep(plan.buyer, entry)
    scene.record(TaskRecord(order, State.DONE, 0, settle=EntryId(entry.id)))
    breaks("S10", lambda: scene.record(TaskRecord(order, State.DONE, 0, settle=lost)))
    breaks("S10", lambda: scene.record(TaskRecord(order, State.FAILED, 0)))


def test_a_falling_fence_breaks_s10() -> None:
    scene = Scene()
    order = scene.plans[0].order
    scene.record(TaskRecord(order, State.RUNNING, 0, round=2, fence=2))
    breaks("S10", lambda: scene.record(TaskRecord(order, State.RUNNING, 0, round=2, fence=1)))


def test_a_result_that_no_run_left_breaks_s10() -> None:
    scene = Scene()
    plan = scene.plans[0]
    record = TaskRecord(
        plan.order,
        State.DONE,
        0,
        round=1,
        fence=1,
        executor=scene.nodes[(plan.buyer + 1) % 3].peer,
        result=plan.result(17),
    )
    breaks("S10", lambda: scene.record(record))


def test_two_copies_with_one_executor_break_s11() -> None:
    scene = Scene()
    plan = scene.plans[0]
    order, seller = plan.order, scene.nodes[(plan.buyer + 1) % 3].peer
    one, two, three = copies_of(evolve(order, group=Group(order.task, 3)))
    disk = scene.nodes[plan.buyer].disk

    def keep(copy: Order, **changes: Any) -> None:
        disk.write(PersistTask(TaskRecord(copy, State.RUNNING, 0, **changes)))
        disk.sync()

    keep(one, executor=scene.nodes[plan.buyer].peer, path=(Move(1, seller, STATE),))
    keep(three)
    keep(two, executor=scene.nodes[(plan.buyer + 2) % 3].peer)
    breaks("S11", lambda: keep(three, executor=seller))
    breaks("S11", lambda: keep(two, path=(Move(1, seller, STATE),)))


def _wait_for(scene: Scene, record: TaskRecord, seconds: float) -> None:
    scene.record(record)
    plan = scene.plan(record.order.task)
    scene.facts[plan.buyer].records = {record.order.task: record}
    scene.checkers.now += seconds
    scene.checkers.check_progress(scene.nodes, healed_at=0.0)


def test_a_task_that_never_ends_breaks_l1() -> None:
    order = evolve(Scene().plans[0].order, deadline_ms=60_000)
    record = TaskRecord(order, State.RUNNING, 0)
    _wait_for(Scene(), record, 85.0)
    breaks("L1", lambda: _wait_for(Scene(), record, 100.0))


def test_a_waiting_task_that_nobody_is_asked_for_breaks_l4() -> None:
    order = evolve(Scene().plans[0].order, deadline_ms=600_000)
    record = TaskRecord(order, State.WAITING, 0)
    _wait_for(Scene(), record, 60.0)
    breaks("L4", lambda: _wait_for(Scene(), record, 70.0))


def test_a_lease_of_the_dead_breaks_l3() -> None:
    scene = Scene()
    plan = scene.plans[0]
    seller = scene.nodes[(plan.buyer + 1) % 3]
    cast(Any, seller).is_on = False
    order = evolve(plan.order, deadline_ms=600_000)
    record = TaskRecord(order, State.RUNNING, 0, fence=1, round=1, executor=seller.peer)
    _wait_for(scene, record, 15.0)
    slow_s = OPTIONS.slow_s
    breaks("L3", lambda: _wait_for(scene, record, 15.0 + slow_s))


def test_what_stays_reserved_breaks_l3() -> None:
    scene = Scene()
    scene.checkers.check_quiet(scene.nodes)
    scene.facts[1].taken = Capacity(slots=1)
    breaks("L3", lambda: scene.checkers.check_quiet(scene.nodes))


def test_money_pending_for_nothing_breaks_l2() -> None:
    scene = Scene()
    plan = scene.plans[0]
    seller = (plan.buyer + 1) % 3
    entry = scene.alloc(plan, seller)
    scene.keep(plan.buyer, entry)
    breaks("L2", lambda: scene.checkers.check_quiet(scene.nodes))
    terms = void_terms(entry.content.deal, EntryId(entry.id)).encode()
    _, void = chain.void(
        scene.heads[plan.buyer],
        terms,
        scene.identities[seller].sign(terms_message(terms)),
        alloc=entry,
        wall_ms=10**12,
        sign=scene.identities[plan.buyer].sign,
    )
    scene.keep(plan.buyer, void)
    scene.checkers.check_quiet(scene.nodes)
    scene.checkers.saw_message(scene.nodes[plan.buyer], Settled(plan.order.task, 1, void.encode()))


def test_a_fork_that_somebody_kept_breaks_s3() -> None:
    scene = Scene()
    plan = scene.plans[0]
    seller = (plan.buyer + 1) % 3
    scene.keep(plan.buyer, scene.alloc(plan, seller))
    scene.checkers.check_ledger(scene.nodes)
    scene.heads[plan.buyer] = Head.start(scene.nodes[plan.buyer].peer, NET)
    fork = scene.alloc(plan, seller, fence=2)
    scene.nodes[seller].disk.write(AppendEntry(fork.encode(), is_own=False))
    scene.nodes[seller].disk.sync()
    breaks("S3", lambda: scene.checkers.check_ledger(scene.nodes))


def test_an_entry_that_its_author_does_not_count_breaks_s4() -> None:
    scene = Scene()
    plan = scene.plans[0]
    seller = (plan.buyer + 1) % 3
    scene.keep(plan.buyer, scene.alloc(plan, seller))
    later = scene.alloc(plan, seller, fence=2)
    scene.nodes[seller].disk.write(AppendEntry(later.encode(), is_own=False))
    scene.nodes[seller].disk.sync()
    breaks("S4", lambda: scene.checkers.check_ledger(scene.nodes))


def test_blaming_an_honest_peer_is_a_violation() -> None:
    scene = Scene()
    stranger = PeerId(bytes(32))
    scene.checkers.saw_penalty(scene.nodes[0], stranger, "garbage")
    breaks("honest", lambda: scene.checkers.saw_penalty(scene.nodes[0], scene.nodes[1].peer, "no"))


def test_a_lease_lost_on_a_good_day_is_a_violation() -> None:
    notice = Hosted(TaskId(bytes(16)), 1, PeerId(bytes(32)), "fenced", "")
    stormy = Scene(evolve(OPTIONS, loss=0.1))
    stormy.checkers.saw_notice(stormy.nodes[0], notice)
    scene = Scene()
    shop = draw_shop(Random(1))
    offer = Offer(scene.nodes[0].peer, 1, 1, shop.sold, shop.sold, (), 1, 1, (), (), "")
    scene.checkers.saw_notice(scene.nodes[0], OfferHeard(offer))
    breaks("calm", lambda: scene.checkers.saw_notice(scene.nodes[0], notice))
