"""A task that several nodes run, as protobuf: its copies, and what they came to. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from mesh import ids
from mesh.api.door import Comparison
from mesh.ids import TaskId
from mesh.market.agreement import Verdict
from mesh.market.order import Group
from mesh.v1 import order_pb2

_VERDICTS: dict[Verdict, order_pb2.Verdict.ValueType] = {
    Verdict.OPEN: order_pb2.VERDICT_OPEN,
    Verdict.AGREED: order_pb2.VERDICT_AGREED,
    Verdict.DISAGREED: order_pb2.VERDICT_DISAGREED,
    Verdict.SHORT: order_pb2.VERDICT_SHORT,
    Verdict.FORGOTTEN: order_pb2.VERDICT_FORGOTTEN,
}
assert len(_VERDICTS) == len(Verdict)


def copies(group: Group, comparison: Comparison) -> order_pb2.Task:
    """What the record of each copy tells of all of them, and nothing else of it."""
    agreement = comparison.agreement
    proofs = [
        order_pb2.Proof(
            task_id=ids.format_task(proof.task),
            settle=ids.format_entry(proof.settle),
            seller=ids.format_peer(proof.seller),
            is_good=proof.is_good,
            detail=proof.detail,
        )
        for proof in comparison.proofs
    ]
    return order_pb2.Task(
        group=ids.format_task(group.first),
        copies=_tasks(group.members),
        agreement=order_pb2.Agreement(
            verdict=_VERDICTS[agreement.verdict],
            majority=_tasks(agreement.majority),
            dissenters=_tasks(agreement.dissenters),
            missing=_tasks(agreement.missing),
            proofs=proofs,
            note=comparison.note,
        ),
    )


def _tasks(tasks: Iterable[TaskId]) -> list[str]:
    return [ids.format_task(task) for task in tasks]
