"""The auctioneer: asks, sealed bids, award, lease, settlement, for this node's clients.

Rules:
1. Every auction of a task has a new round, and its award carries the round as its fence. Effects
   count once, for the newest fence and the executor it was awarded to.
2. The signed ALLOC entry is the award; it is durable before it is sent.
3. A lease granted at t may be awarded again only after t + ttl + margin, or once its holder has
   declined it or given it up. After a restart t is the restart.
4. Every task ends: done, failed with its reason by deadline + grace, or cancelled.
5. An ALLOC stays open until the seller has signed for closing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from attrs import evolve

from ledger.model import Entry
from mesh.ids import EntryId, PeerId, TaskId, short_peer
from mesh.market.accounts import Accounts
from mesh.market.billing import Billing
from mesh.market.copies import RUNS_ANOTHER, copies_of
from mesh.market.lease import Clock
from mesh.market.offers import Heard, OfferBook
from mesh.market.order import (
    Order,
    State,
    TaskRecord,
    bid_answer,
    burnt_before,
    is_unpaid,
    refusal_answer,
    work_left,
)
from mesh.market.own_chain import OwnChain, Past
from mesh.market.policy import Policy
from mesh.market.recovery import recovered
from mesh.market.register import Register
from mesh.market.sale import Sale, Sealed, ask_for, why_no_bid
from mesh.market.scoring import Calibration, score
from mesh.market.settlement import Settlement
from mesh.market.terms import check_bid
from mesh.messages import (
    Accepted,
    Ask,
    Award,
    Bid,
    Declined,
    Refusal,
    Release,
    Renew,
    Renewed,
)
from mesh.notices import Asked, Awarded, Progressed
from mesh.sansio import (
    Action,
    Certified,
    Certify,
    Identity,
    Notify,
    PersistTask,
    Send,
    WakeAt,
    Woken,
)

FOREVER_S = 1e9
"""A pause that ends as that of any waiting task does: in a while, or when an offer shows room."""


class Auctioneer:
    """All tasks submitted at this node."""

    def __init__(
        self,
        identity: Identity,
        policy: Policy,
        clock: Clock,
        rng: Random,
        book: OfferBook,
        *,
        own: OwnChain,
        past: Past,
        records: Sequence[TaskRecord],
    ) -> None:
        self.accounts = Accounts(identity, policy, own, past)
        self.register = Register(policy, recovered(records, self.accounts))
        self.billing = Billing(self.accounts, self.register, clock)
        self.records = self.register.records
        self._sales = self.register.sales
        self.calibration = Calibration()
        self.settlement = Settlement(
            self.accounts,
            self.register,
            self.billing,
            self.calibration,
            policy=policy,
            clock=clock,
            reopen=self._open,
        )
        self._identity = identity
        self._policy = policy
        self._clock = clock
        self._rng = rng
        self._book = book

    def sizes(self) -> dict[str, tuple[int, int]]:
        return {**self.register.sizes(), **self.accounts.sizes()}

    def why_full(self, count: int = 1) -> str:
        """Why no *count* further tasks can be admitted, or the empty string."""
        if not self.register.has_room(count):
            more = f", and these are {count} more" if count > 1 else ""
            return f"{len(self._sales)} tasks are open at this node already{more}"
        return self.accounts.why_full()

    # --- clients --------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        """Take up the tasks that a restart interrupted."""
        actions: list[Action] = []
        newest = self.accounts.newest_fences()
        for record in list(self.records.values()):
            if not record.state.is_final:
                actions += self._resume(record, newest.get(record.order.task, 0), now)
        self.register.forget()
        return [*self.billing.pay_again(now), *actions, self.accounts.timer(now)]

    def confirmed(self, lost: Sequence[Entry], now: float) -> list[Action]:
        """Our chain ends where we know: take up what was *lost* of it, and whatever waited."""
        for entry in lost:
            self.accounts.take_up(entry)
        actions = self.register.correct(recovered(self.records.values(), self.accounts))
        actions += self.billing.pay_again(now)
        for task, sale in self._sales.items():
            actions += self._ask_holder(self.records[task], sale, now)
        newest = self.accounts.newest_fences()
        for task in self.register.waiting():
            record = self.records[task]
            self.records[task] = evolve(record, round=max(record.round, newest.get(task, 0)))
            actions += self._open_soon(task, now)
        return actions

    def submit(self, order: Order, now: float) -> list[Action]:
        """Admit a task, all copies of it or none, and auction it at once. A known task is left as
        it is."""
        orders = copies_of(order)
        if order.task in self.records or self.why_full(len(orders)):
            return []
        actions: list[Action] = []
        for copy in orders:
            record = TaskRecord(copy, State.WAITING, submitted_ms=self._clock.wall_ms(now))
            self.records[copy.task] = record
            self._sales[copy.task] = sale = Sale(deadline_at=now + order.deadline_ms / 1000)
            deadline = Woken("deadline", copy.task, 0)
            actions += [PersistTask(record), WakeAt(sale.deadline_at, deadline)]
        for copy in orders:
            actions += self._open(copy.task, now)
        return actions

    def cancel(self, task: TaskId, now: float) -> list[Action]:
        """The client takes it back, with the first copy all; what was burnt so far is paid."""
        record = self.records.get(task)
        group = record.order.group if record else None
        actions: list[Action] = []
        for each in group.members if group and group.first == task else (task,):
            if each in self._sales:
                reason = "cancelled by its client"
                actions += self.settlement.finish(each, State.CANCELLED, reason, now)
        return actions

    def offer_heard(self, heard: Heard, now: float) -> list[Action]:
        """An offer that shows new room brings waiting tasks up again, the most pressing first."""
        room = heard.offer.free
        actions: list[Action] = []
        for task in self.register.waiting():
            order = self.records[task].order
            if heard.offer.peer in self.register.taken(order):
                continue
            if order.work.needs.fits_in(room) and self._sales[task].is_news(heard, order):
                room -= order.work.needs
                actions += self._open_soon(task, now)
        return actions

    # --- the auction ----------------------------------------------------------------------------

    def bid(self, peer: PeerId, bid: Bid, now: float) -> list[Action]:
        """Enter a sealed bid; the last awaited answer closes the auction. Raises PeerError."""
        sale = self.register.asking(peer, bid.task, bid.round)
        if sale is None:
            return []
        record = self.records[bid.task]
        ask, us = self._ask(record, sale), self._identity
        terms = check_bid(bid, ask, seller=peer, buyer=us.peer, verify=us.verify)
        price, value, factor = terms.reserve, record.order.max_price, self.calibration.factor(peer)
        worth = score(bid, value=value, price=price, deadline_ms=ask.deadline_ms, factor=factor)
        sale.bids[peer] = Sealed(bid, price, worth)
        answer = bid_answer(peer, bid, price, worth)
        return [*self.register.note(record, answer), *self._close_if_complete(bid.task, now)]

    def refusal(self, peer: PeerId, refusal: Refusal, now: float) -> list[Action]:
        """Note a "no" and its reason."""
        sale = self.register.asking(peer, refusal.task, refusal.round)
        if sale is None:
            return []
        sale.refused.add(peer)
        if refusal.may_change:
            sale.busy.add(peer)
        noted = self.register.note(self.records[refusal.task], refusal_answer(peer, refusal))
        return [*noted, *self._close_if_complete(refusal.task, now)]

    def accepted(self, peer: PeerId, accepted: Accepted) -> list[Action]:
        """The winner runs it; the others are told why they lost."""
        record = self.register.held_by(peer, accepted.task, accepted.fence)
        if record is None or record.state is not State.AWARDED:
            return []
        return self._run(record, "the executor accepted")

    def certified(self, event: Certified, now: float) -> list[Action]:
        """The witnesses voted for an award: now it counts. Or they did not: another round."""
        record, sale = self.records.get(event.task), self._sales.get(event.task)
        if not record or not sale or not sale.award or not record.executor:
            return []
        if record.state is not State.AWARDED or record.alloc != event.alloc:
            return []  # of a winner before, or too late
        if event.reason:
            freed = Release(event.task, record.round, "no certificate of the award")
            pause_s = self._policy.retry_pause_s(sale.misses)
            return [
                *[Send(peer, freed) for peer in (record.executor, *sale.bids)],
                *self._wait(event.task, f"no certificate: {event.reason}", now, pause_s),
            ]
        sale.award = evolve(sale.award, certificate=event.certificate)
        return [Send(record.executor, sale.award)]

    def declined(self, peer: PeerId, declined: Declined, now: float) -> list[Action]:
        """The winner's hold had gone: free the money, ask the next best."""
        actions = self.accounts.void(peer, declined, self._clock.wall_ms(now))
        record = self.register.held_by(peer, declined.task, declined.fence)
        if record is None or record.state is not State.AWARDED:
            return actions
        self.calibration.record(peer, self._sales[declined.task].promise, was_kept=False)
        self.register.judge(declined.task, peer, f"declined: {declined.reason}")
        sale = self._sales[declined.task]
        if not sale.asked:  # of a round before our restart: the other bids are forgotten
            why, pause_s = "its winner declined", self._policy.retry_pause_s(sale.misses)
            return [*actions, *self._wait(declined.task, why, now, pause_s)]
        return [*actions, *self._award_next(declined.task, now)]

    # --- the lease ------------------------------------------------------------------------------

    def renew(self, peer: PeerId, renew: Renew, now: float) -> list[Action]:
        """Extend the lease from now, or say that there is none."""
        record = self.register.held_by(peer, renew.task, renew.fence)
        if record is not None and is_unpaid(record):
            return []  # from before its end: the Done comes again
        if record is None or record.state not in (State.AWARDED, State.RUNNING):
            return self.billing.revoke(peer, renew.task, renew.fence)
        actions = self._run(record, "renewed") if record.state is State.AWARDED else []
        record = self.records[renew.task]
        fuel = burnt_before(record) + renew.fuel
        if fuel > record.fuel:
            self.records[renew.task] = evolve(record, fuel=fuel)
            actions.append(Notify(Progressed(renew.task, renew.fence, fuel)))
        return [
            *actions,
            Send(peer, Renewed(renew.task, renew.fence, renew.seq, self._policy.ttl_ms)),
            self._sales[renew.task].renew(record, self._policy, now),
        ]

    # --- time -----------------------------------------------------------------------------------

    def window_due(self, task: TaskId, round_: int, now: float) -> list[Action]:
        """The window closes; with no bid at all it stays open a little longer, once."""
        record, sale = self.records.get(task), self._sales.get(task)
        if not record or not sale or record.state is not State.ASKING or record.round != round_:
            return []
        longest = sale.opened_at + self._policy.window_max_ms / 1000
        if not sale.bids and now < longest - 1e-6:
            return [WakeAt(longest, Woken("window", task, round_))]
        return self._award_next(task, now)

    def award_due(self, task: TaskId, fence: int, now: float) -> list[Action]:
        """Repeat an unanswered award while the winner's hold may still stand."""
        record, sale = self.records.get(task), self._sales.get(task)
        if not record or not sale or record.state is not State.AWARDED or record.fence != fence:
            return []
        award, winner = sale.award, record.executor
        if not award or not winner or not sale.award_at <= now < sale.award_until:
            return []  # the timer of a winner before, or too late
        again = [Send(winner, award)] if award.certificate or not self._policy.witnesses else []
        return [*again, sale.repeat_award(record, self._policy, now)]

    def lease_due(self, task: TaskId, now: float) -> list[Action]:
        """A lease that nobody renewed is over: its holder has stopped by now."""
        record, sale = self.records.get(task), self._sales.get(task)
        if not record or not sale or not record.executor or now < sale.granted_until:
            return []
        # It has ended, and what it left is on its way; or, after a restart, it could not say so.
        if sale.done is not None or not self.accounts.is_writable:
            return [sale.grant(record, self._policy, now)]
        if record.state is State.RUNNING:
            self.calibration.record(record.executor, sale.promise, was_kept=False)
        self._book.drop(record.executor)
        return self.settlement.lose(task, "the executor fell silent", now)

    def ask_due(self, task: TaskId, now: float) -> list[Action]:
        """A waiting task is asked again."""
        record, sale = self.records.get(task), self._sales.get(task)
        if not record or not sale or record.state is not State.WAITING or now < sale.ask_at:
            return []
        return self._open(task, now)

    def deadline_due(self, task: TaskId, now: float) -> list[Action]:
        """Past its deadline a task fails, unless it runs: then it has the grace."""
        record, sale = self.records.get(task), self._sales.get(task)
        if not record or not sale:
            return []
        over_at = sale.deadline_at + self._policy.grace_ms / 1000
        if record.state in (State.AWARDED, State.RUNNING) and now < over_at:
            return [WakeAt(over_at, Woken("deadline", task, 1))]
        reason = f"deadline passed {record.state}"
        return self.settlement.finish(
            task, State.FAILED, f"{reason}: {record.reason}".rstrip(": "), now
        )

    # --- supporting: rounds ---------------------------------------------------------------------

    def _resume(self, record: TaskRecord, newest: int, now: float) -> list[Action]:
        """*newest* is the highest fence that the ledger has an open award of."""
        order = record.order
        self._sales[order.task] = sale = Sale.resumed(record, self._clock.wall_ms(now), now)
        deadline = WakeAt(sale.deadline_at, Woken("deadline", order.task, 0))
        if record.state in (State.AWARDED, State.RUNNING):
            return [deadline, sale.grant(record, self._policy, now)]
        # The round that may have been open is burnt: answers to it belong to another time. So is
        # every fence of an award in the ledger, whether or not its record came to be written.
        round_ = max(record.round + 1, newest)
        self.records[order.task] = record = evolve(record, state=State.WAITING, round=round_)
        sale.ask_at = now + self._policy.ask_again_at_least_ms / 1000
        return [
            deadline,
            PersistTask(record),
            WakeAt(sale.ask_at, Woken("ask", order.task, round_)),
        ]

    def _ask_holder(self, record: TaskRecord, sale: Sale, now: float) -> list[Action]:
        """What became of a lease from before our restart: nobody was there to be told, and its
        holder may say it again only when the lease has long run out."""
        if record.state not in (State.AWARDED, State.RUNNING) or record.executor is None:
            return []
        asked = self.accounts.reminder(record.executor, (record.order.task, record.fence))
        return [*asked, sale.grant(record, self._policy, now)]

    def _open_soon(self, task: TaskId, now: float) -> list[Action]:
        sale = self._sales[task]
        soonest = sale.opened_at + self._policy.ask_again_at_least_ms / 1000
        if now >= soonest:
            return self._open(task, now)
        sale.ask_at = soonest
        return [WakeAt(soonest, Woken("ask", task, self.records[task].round))]

    def _open(self, task: TaskId, now: float) -> list[Action]:
        """Open the next round."""
        record, sale = self.records[task], self._sales[task]
        if now >= sale.deadline_at:
            return self.settlement.finish(
                task, State.FAILED, f"deadline passed: {record.reason}", now
            )
        if not self.accounts.is_writable:
            return self._wait(task, self.accounts.why_not(0), now)
        work = work_left(record)
        wanted, sale.only = sale.only, None
        taken = self.register.taken(record.order)
        avoid = (*sale.avoid, *taken)
        peers = self._book.alone(wanted, work) if wanted not in taken else []
        peers = peers or self._book.candidates(
            work,
            self._policy.width(sale.misses),
            rng=self._rng,
            calibration=self.calibration,
            avoid=avoid,
        )
        if peers and not wanted and sale.keeper not in (*peers, *avoid):
            peers += self._book.alone(sale.keeper, work)
        if not peers:
            why = self._book.why_nobody(work, sale.avoid, taken)
            sale.avoid.clear()
            return self._wait(task, why, now)
        sale.open(tuple(peers), now)
        record = evolve(record, state=State.ASKING, round=record.round + 1, reason="auction open")
        self.records[task] = record
        ask = self._ask(record, sale)
        closes_at = now + self._policy.window_ms / 1000
        return [
            Notify(Asked(task, record.round, sale.asked)),
            *[Send(peer, ask) for peer in peers],
            WakeAt(closes_at, Woken("window", task, record.round)),
        ]

    def _ask(self, record: TaskRecord, sale: Sale) -> Ask:
        return ask_for(record, sale, ttl_ms=self._policy.ttl_ms, window_ms=self._policy.window_ms)

    def _close_if_complete(self, task: TaskId, now: float) -> list[Action]:
        return self._award_next(task, now) if self._sales[task].is_complete else []

    def _ask_others(self, task: TaskId, why: str, now: float) -> list[Action]:
        """It waits, and not for long if anybody else has room: an offer that came while the round
        was open says so only once. Nor if there were more bids than winners may be tried."""
        record, sale = self.records[task], self._sales[task]
        tried = set(sale.asked) - set(sale.bids)
        tried |= {*sale.avoid, *self.register.taken(record.order)}
        has_others = self._book.has_room(work_left(record), tried)
        pause_s = self._policy.retry_pause_s(sale.misses) if has_others else FOREVER_S
        return self._wait(task, why, now, pause_s)

    def _wait(self, task: TaskId, why: str, now: float, pause_s: float = FOREVER_S) -> list[Action]:
        """Nobody takes it now: ask again when an offer shows room, in a while, or in *pause_s*."""
        record, sale = self.records[task], self._sales[task]
        sale.misses += 1
        sale.ask_at = now + min(pause_s, self._policy.ask_pause_s(sale.deadline_at - now))
        return [
            *self.register.move(evolve(record, state=State.WAITING, executor=None, reason=why)),
            WakeAt(sale.ask_at, Woken("ask", task, record.round)),
        ]

    def _award_next(self, task: TaskId, now: float) -> list[Action]:
        """Award to the best bid that has not declined; after three, a new round."""
        record, sale = self.records[task], self._sales[task]
        taken = self.register.taken(record.order)
        for peer in [peer for peer in sale.bids if peer in taken]:
            self.register.judge(task, peer, RUNS_ANOTHER)
        ranking = [peer for peer in sale.ranking(task, record.round) if peer not in taken]
        if sale.bids and not ranking and not sale.winners:
            return self._ask_others(task, f"whoever bid {RUNS_ANOTHER}", now)
        if not ranking and not sale.winners:
            return self._ask_others(task, why_no_bid(record, sale), now)
        if not ranking or sale.winners >= self._policy.winners_max:
            return self._ask_others(task, "every winner declined", now)
        winner = ranking[0]
        if why_not := self.accounts.why_not(sale.bids[winner].price):
            return self._wait(task, why_not, now)
        best = sale.bids.pop(winner)
        sale.winners += 1
        sale.promise = best.bid.p_on_time
        key = task, record.round
        entry, signed = self.accounts.alloc(key, best.bid, self._clock.wall_ms(now))
        alloc = EntryId(entry.id)
        sale.award = Award(task, record.round, entry.encode(), self._policy.ttl_ms)
        hold_ms = min(best.bid.hold_ms, self._policy.hold_ms)
        sale.award_until = sale.opened_at + hold_ms / 1000
        losers = self.register.decide(task, ranking, sale.bids, best)
        self.records[task] = record = evolve(
            self.records[task],
            state=State.AWARDED,
            fence=record.round,
            executor=winner,
            alloc=alloc,
            reason=f"awarded to {short_peer(winner)}: {best.why_best}{losers}",
        )
        return [
            PersistTask(record),
            *signed,
            self._send_award(winner, sale.award),
            Notify(Awarded(task, record.fence, winner, best.price, best.why_best, alloc)),
            sale.repeat_award(record, self._policy, now),
            sale.grant(record, self._policy, now),
        ]

    def _send_award(self, winner: PeerId, award: Award) -> Action:
        """At once; under T2 not before the witnesses have voted for it."""
        if self._policy.witnesses and not award.certificate:
            return Certify(award.task, award.fence, award.entry)
        return Send(winner, award)

    def _run(self, record: TaskRecord, reason: str) -> list[Action]:
        task = record.order.task
        sale = self._sales[task]
        sale.misses, sale.award = 0, None
        sale.avoid.clear()
        moved = self.register.move(evolve(record, state=State.RUNNING, reason=reason))
        return [*moved, *[Send(peer, release) for peer, release in sale.release(record)]]
