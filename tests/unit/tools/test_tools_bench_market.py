"""The market's bench: its references are real, and it reads the node's story right."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from mesh.v1 import notice_pb2, order_pb2, tasks_pb2


@pytest.fixture
def bench(tool: Callable[[str], ModuleType]) -> ModuleType:
    return tool("bench_market")


def heard(bench: ModuleType, *notices: notice_pb2.Notice) -> dict[str, float]:
    """When *notices*, one second apart, are noted."""
    listener = bench.Listener()
    for second, notice in enumerate(notices):
        listener.note(tasks_pb2.TasksWatchResponse(notice=notice), float(second))
    return dict(listener.moments("t").heard)


def moved(state: order_pb2.TaskState.ValueType, settle: str = "") -> notice_pb2.Notice:
    return notice_pb2.Notice(
        moved=notice_pb2.Moved(task_id="t", state=state, settle=settle, executor="e")
    )


def test_each_step_is_noted_when_it_was_last_heard_of(bench: ModuleType) -> None:
    answered = notice_pb2.Notice(answered=notice_pb2.Answered(task_id="t"))
    assert heard(
        bench,
        notice_pb2.Notice(offer_heard=notice_pb2.OfferHeard()),
        notice_pb2.Notice(asked=notice_pb2.Asked(task_id="t")),
        answered,
        answered,
        moved(order_pb2.TASK_STATE_RUNNING),
        moved(order_pb2.TASK_STATE_DONE, settle="r"),
    ) == {"asked": 1.0, "answered": 3.0, "running": 4.0, "done": 5.0}


def test_a_task_is_over_when_it_is_settled(bench: ModuleType) -> None:
    listener = bench.Listener()
    for notice, is_over in (
        (moved(order_pb2.TASK_STATE_RUNNING), False),
        (moved(order_pb2.TASK_STATE_DONE, settle="r"), True),
    ):
        listener.note(tasks_pb2.TasksWatchResponse(notice=notice), 0.0)
        assert listener.moments("t").is_over.is_set() == is_over


@pytest.mark.slow
def test_what_it_is_compared_with_really_happens(bench: ModuleType) -> None:
    with bench.echo_server() as echo, bench.disk() as sync:
        assert all(taken > 0 for taken in (echo(), echo(), sync(), sync()))
