"""Copies: one order as several tasks of one auctioneer, which must have different executors. Pure.

A copy is a task like any other, with an auction, a lease and a bill of its own; only whom it may go
to depends on the others. All have one manifest, so what honest nodes return is equal byte for byte.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from attrs import evolve

from mesh.ids import PeerId, TaskId
from mesh.market.order import Order, TaskRecord

RUNS_ANOTHER = "runs another copy of this task"
"""Why a bidder is passed over."""


def copies_of(order: Order) -> tuple[Order, ...]:
    """The orders of all copies, each with its share of the price; the order itself without any."""
    group = order.group
    if group is None:
        return (order,)
    share = evolve(order, max_price=order.max_price // group.copies, fee=order.fee // group.copies)
    return tuple(evolve(share, task=task) for task in group.members)


def executors(record: TaskRecord) -> tuple[PeerId, ...]:
    """Whoever runs it now, or ran a part of it that counts."""
    sources = (move.source for move in record.path)
    return (*sources, record.executor) if record.executor else tuple(sources)


def taken(order: Order, records: Mapping[TaskId, TaskRecord]) -> tuple[PeerId, ...]:
    """The executors of the other copies: none of them may run this one."""
    if order.group is None:
        return ()
    others = (records.get(task) for task in order.group.members if task != order.task)
    return tuple(peer for other in others if other for peer in executors(other))


def awaited(open_: Sequence[TaskRecord]) -> dict[TaskId, None]:
    """The copies of what is *open*, in order: to be remembered as long as it is."""
    groups = dict.fromkeys(record.order.group for record in open_ if record.order.group)
    return dict.fromkeys(task for group in groups if group for task in group.members)


def recent(
    records: Sequence[TaskRecord], ended_max: int, awarded: Collection[TaskId] = ()
) -> tuple[TaskRecord, ...]:
    """What a node must know again of all *records*: what is open, with its copies, what is
    *awarded* by the ledger and may be unpaid, and the last *ended_max* of the others."""
    needed = {*awaited([record for record in records if not record.state.is_final]), *awarded}
    ended = [r for r in records if r.state.is_final and r.order.task not in needed]
    forgotten = {record.order.task for record in ended[: max(0, len(ended) - ended_max)]}
    return tuple(record for record in records if record.order.task not in forgotten)
