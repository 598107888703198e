"""What a node tells those who watch it: one line of the market's story each, with its reason."""

from __future__ import annotations

from typing import TypeAlias

from attrs import frozen

from mesh.ids import EntryId, PeerId, TaskId
from mesh.market.order import Answer, State, TaskRecord
from mesh.messages import Offer, Result


@frozen
class OfferHeard:
    """A peer's offer entered the book."""

    offer: Offer


@frozen
class OfferAged:
    """A peer fell silent; its offer left the book."""

    peer: PeerId


@frozen
class Asked:
    """An auction opened: *candidates* were asked."""

    task: TaskId
    round: int
    candidates: tuple[PeerId, ...]


@frozen
class Answered:
    """A candidate bid or refused."""

    task: TaskId
    answer: Answer


@frozen
class Awarded:
    """A winner was chosen; *reason* says why, *alloc* is the buyer's signed entry."""

    task: TaskId
    fence: int
    winner: PeerId
    price: int
    reason: str
    alloc: EntryId


@frozen
class Moved:
    """The task changed state; *reason* says why. The last notice of a task has a final state."""

    task: TaskId
    state: State
    fence: int
    executor: PeerId | None
    reason: str
    result: Result | None
    settle: EntryId | None


@frozen
class Progressed:
    """A running task burnt fuel."""

    task: TaskId
    fence: int
    fuel: int


@frozen
class Hosted:
    """This node, as executor, did something with somebody's task: "held", "running", "fenced", …"""

    task: TaskId
    fence: int
    buyer: PeerId
    what: str
    reason: str


@frozen
class Forked:
    """A key is proven to have signed two entries for one place of its chain: nobody's credit."""

    peer: PeerId


Notice: TypeAlias = (
    OfferHeard | OfferAged | Asked | Answered | Awarded | Moved | Progressed | Hosted | Forked
)


def moved(record: TaskRecord) -> Moved:
    """The notice of a record's new state."""
    return Moved(
        task=record.order.task,
        state=record.state,
        fence=record.fence,
        executor=record.executor,
        reason=record.reason,
        result=record.result,
        settle=record.settle,
    )
