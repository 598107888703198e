"""A sale: what is in motion about one open task. Volatile; a restart begins a new one. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from attrs import Factory, define, frozen

from mesh.ids import PeerId, TaskId
from mesh.market.offers import Heard, why_unfit
from mesh.market.order import Order, TaskRecord, paid_so_far, work_left
from mesh.market.policy import Policy
from mesh.market.scoring import tie_break, virtual_deadline
from mesh.messages import Ask, Award, Bid, Done, Release, Saved
from mesh.sansio import Action, WakeAt, Woken


@frozen
class Sealed:
    """A bid of the current round, its price and what it is worth to the buyer, µcr."""

    bid: Bid
    price: int
    worth: int

    @property
    def why_best(self) -> str:
        """Why it won, for people."""
        odds = f"P(on time) {self.bid.p_on_time / 10:.0f} %"
        return f"best score {self.worth} µcr: at most {self.price} µcr, {odds}"


@define
class Sale:
    """One open task's auctions and lease, as its auctioneer follows them."""

    deadline_at: float
    asked: tuple[PeerId, ...] = ()
    bids: dict[PeerId, Sealed] = Factory(dict)
    refused: set[PeerId] = Factory(set)
    busy: set[PeerId] = Factory(set)
    """Who refused for lack of room: their next offer is worth another ask."""
    opened_at: float = -1e9
    misses: int = 0
    """Rounds in a row without an award that held."""
    winners: int = 0
    promise: int = 0
    """The winner's P(on time), thousandths."""
    avoid: set[PeerId] = Factory(set)
    """Who just lost this task."""
    granted_until: float = 0.0
    late: int = 0
    """Renewals in a row that came when half of the lease was over: one before each was lost."""
    award: Award | None = None
    award_at: float = 0.0
    """When it is repeated next."""
    award_until: float = 0.0
    ask_at: float = 0.0
    done: Done | None = None
    """The bill of a run whose results are being collected."""
    saving: Saved | None = None
    """The bill of a state that is being collected."""
    leaving: str = ""
    """Why the executor was asked to give the task back, until it has."""
    keeper: PeerId | None = None
    """Who has its last state ready: is always asked."""
    only: PeerId | None = None
    """Whom its client wants to run it next; asked alone, once."""

    @staticmethod
    def resumed(record: TaskRecord, wall_ms: int, now: float) -> Sale:
        """Of a task that a restart interrupted: with what is left until its deadline."""
        gone_s = (wall_ms - record.submitted_ms) / 1000
        left_s = max(0.0, record.order.deadline_ms / 1000 - max(0.0, gone_s))
        return Sale(deadline_at=now + left_s)

    def open(self, asked: tuple[PeerId, ...], now: float) -> None:
        """Forget the last round."""
        self.asked = asked
        self.bids, self.refused, self.busy = {}, set(), set()
        self.winners, self.award, self.done = 0, None, None
        self.opened_at = now

    def grant(self, record: TaskRecord, policy: Policy, now: float) -> Action:
        """The lease runs from now; not before ttl + margin may it be given to another."""
        self.granted_until = now + (policy.ttl_ms + policy.margin_ms) / 1000
        return WakeAt(self.granted_until, Woken("lease", record.order.task, record.fence))

    def renew(self, record: TaskRecord, policy: Policy, now: float) -> Action:
        """Its holder was heard: the lease runs from now."""
        left_s = self.granted_until - policy.margin_ms / 1000 - now
        self.late = self.late + 1 if left_s < policy.ttl_ms / 2000 else 0
        return self.grant(record, policy, now)

    def repeat_award(self, record: TaskRecord, policy: Policy, now: float) -> Action:
        """When the award is repeated next."""
        self.award_at = now + policy.award_every_ms / 1000
        return WakeAt(self.award_at, Woken("award", record.order.task, record.fence))

    def end_lease(self, executor: PeerId) -> None:
        """*executor* is out: elsewhere next, if possible."""
        self.avoid = {executor}
        self.done, self.saving, self.leaving, self.late = None, None, "", 0

    def awaits(self, peer: PeerId) -> bool:
        """Whether *peer* was asked in this round and has not answered yet."""
        return peer in self.asked and peer not in self.bids and peer not in self.refused

    @property
    def is_complete(self) -> bool:
        return len(self.bids) + len(self.refused) >= len(self.asked)

    def ranking(self, task: TaskId, round_: int) -> list[PeerId]:
        """Bidders, the best first; the order can be recomputed by anybody who has the bids."""
        return sorted(
            self.bids, key=lambda peer: (-self.bids[peer].worth, tie_break(task, round_, peer))
        )

    def release(self, record: TaskRecord) -> list[tuple[PeerId, Release]]:
        """Let the other bidders go, each with the reason."""
        verdicts = {answer.peer: answer.verdict for answer in record.answers}
        losers, self.bids = list(self.bids), {}
        task, round_ = record.order.task, record.round
        return [
            (peer, Release(task, round_, verdicts.get(peer, "another bid was better")))
            for peer in losers
        ]

    def is_news(self, heard: Heard, order: Order) -> bool:
        """Whether *heard* is a reason to ask again: room or a price that was not there before."""
        offer, before = heard.offer, heard.before
        if offer.peer in self.avoid or why_unfit(offer, order.work):
            return False
        return (
            before is None
            or offer.peer in self.busy
            or why_unfit(before, order.work) != ""
            or offer.price < before.price
        )


def ask_for(record: TaskRecord, sale: Sale, *, ttl_ms: int, window_ms: int) -> Ask:
    """The ask of the record's current round, the same for every candidate."""
    order = record.order
    return Ask(
        task=order.task,
        round=record.round,
        work=work_left(record),
        priority=order.priority,
        deadline_ms=int((sale.deadline_at - sale.opened_at) * 1000),
        fee=order.fee,
        max_price=max(order.fee, order.max_price - paid_so_far(record)),
        ttl_ms=ttl_ms,
        window_ms=window_ms,
    )


def most_pressing(open_: Iterable[tuple[Order, float]], waiting: set[TaskId]) -> list[TaskId]:
    """The *waiting* of the *open_* (order, deadline) by priority, then virtual deadline."""
    orders = list(open_)
    if not waiting:
        return []
    reference = median((order.fee + 1) / max(1, order.work.fuel) for order, _ in orders)
    ranked = [
        (
            -order.priority,
            virtual_deadline(deadline_at, order.fee, order.work.fuel, reference),
            order.task,
        )
        for order, deadline_at in orders
        if order.task in waiting
    ]
    return [task for _, _, task in sorted(ranked)]


def why_no_bid(record: TaskRecord, sale: Sale) -> str:
    """Counted reasons of a round without a bid, for people."""
    reasons = [answer.reason for answer in record.answers if answer.round == record.round]
    silent = len(sale.asked) - len(reasons)
    reasons += ["did not answer"] * silent
    counted = {reason: reasons.count(reason) for reason in sorted(reasons)}
    why = " · ".join(f"{count} {reason}" for reason, count in counted.items())
    return f"no bid from {len(sale.asked)} asked: {why}"
