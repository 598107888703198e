"""The kernel: one node as one state machine. It routes; the cores decide.

An event goes to the core it concerns; what cores have to tell one another (an offer heard, the room
a run left) is routed here within the same call, so the wiring is simulated too. A peer's fault
becomes a `Penalize` action; a broken invariant is an assertion and ends the node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import assert_never

from ledger import chain
from ledger.chain import Head
from ledger.model import Entry
from mesh.errors import PeerError
from mesh.forecast.forecaster import Forecaster
from mesh.ids import PeerId, TaskId
from mesh.market import scoring
from mesh.market.announcing import Announcer
from mesh.market.auctioneer import Auctioneer
from mesh.market.bidding import Shop
from mesh.market.credit import Books, Credit
from mesh.market.lease import Clock
from mesh.market.offers import OfferBook
from mesh.market.order import TaskRecord
from mesh.market.own_chain import OwnChain, Past
from mesh.market.policy import Policy
from mesh.market.tenancy import Tenancies
from mesh.messages import (
    Accepted,
    Ask,
    Award,
    Bid,
    Declined,
    Done,
    Handover,
    Keep,
    Lost,
    Message,
    Offer,
    Outlook,
    Refusal,
    Release,
    Renew,
    Renewed,
    Revoked,
    Saved,
    Settled,
    SignedOffer,
    Slice,
    Sliced,
    Stays,
)
from mesh.migration.departures import Departures
from mesh.migration.keeping import Keeping
from mesh.migration.migrator import Migrator
from mesh.notices import Forked, OfferAged, OfferHeard
from mesh.resources.capacity import NOTHING, Capacity
from mesh.sansio import (
    Action,
    AppendEntry,
    CancelRequested,
    Certified,
    ChainConfirmed,
    Checkpointed,
    Collected,
    DrainSet,
    Event,
    Identity,
    Learned,
    LineSet,
    LoadSampled,
    MoveRequested,
    Notify,
    OfferReceived,
    Penalize,
    PersistTenancy,
    Received,
    RunEnded,
    RunLost,
    RunProgressed,
    Started,
    Submitted,
    Suspended,
    Unmoved,
    Woken,
)

NO_BOOKS = Books()
FAULTS_MAX = 64
"""Kinds of fault that are counted apart."""


class Kernel:
    """All state of a node. `handle` is its only mutator."""

    def __init__(
        self,
        identity: Identity,
        policy: Policy,
        rng: Random,
        *,
        past: Past,
        books: Books = NO_BOOKS,
        is_confirmed: bool = True,
        records: Sequence[TaskRecord] = (),
        tenancies: Sequence[PersistTenancy] = (),
        epoch: int,
        epoch_ms: int,
        shop: Shop,
    ) -> None:
        """*past* and *books* are what the ledger says; a chain that is not *confirmed* waits for
        ChainConfirmed before anything is signed on it."""
        clock = Clock(epoch_ms)
        self.identity = identity
        self.faults: Counter[str] = Counter()
        self._rng = rng
        self._policy = policy
        self._book = OfferBook(identity, policy)
        self._forecaster = Forecaster()
        self._owner = Capacity()
        self._announcer = Announcer(identity, policy, epoch)
        self._clock = clock
        self._own = OwnChain(
            past, identity.sign, head_every=policy.head_every, is_confirmed=is_confirmed
        )
        self.credit = Credit(
            identity.peer,
            books,
            {PeerId(buyer): limit for buyer, limit in past.lines},
            net=past.head.net,
            default_line=policy.credit_line,
        )
        self._tenancies = Tenancies(
            identity,
            policy,
            shop,
            clock,
            tuple(tenancies),
            own=self._own,
            credit=self.credit,
            claimed=frozenset(past.claims),
        )
        self._keeping = Keeping(policy)
        self._departures = Departures(identity, policy, clock, self._tenancies)
        self._auctioneer = Auctioneer(
            identity,
            policy,
            clock,
            rng,
            self._book,
            own=self._own,
            past=past,
            records=records,
        )
        self.migrator = Migrator(policy, self._auctioneer, self._book)

    # --- what shells and checkers may read ------------------------------------------------------

    @property
    def records(self) -> Mapping[TaskId, TaskRecord]:
        """The tasks of this node's clients."""
        return self._auctioneer.records

    @property
    def book(self) -> OfferBook:
        """The offers heard."""
        return self._book

    @property
    def offer(self) -> Offer | None:
        """Our own, as last gossiped."""
        return self._announcer.offer

    @property
    def head(self) -> Head:
        """The end of our chain, not yet durable entries included."""
        return self._own.head

    @property
    def tier(self) -> str:
        """How overspending is met here: "T0", "T1" or "T2"."""
        return "T2" if self._policy.witnesses else self._policy.tier

    @property
    def is_confirmed(self) -> bool:
        """Whether peers have confirmed where our chain ends: before that it does not grow."""
        return self._own.is_confirmed

    @property
    def is_closed(self) -> bool:
        """Whether its owner wants it empty."""
        return self._tenancies.is_closed

    def why_full(self, count: int = 1) -> str:
        """Why no *count* further tasks can be admitted, or the empty string."""
        return self._auctioneer.why_full(count)

    def leases(self) -> tuple[tuple[TaskId, int], ...]:
        """The leases this node holds as an executor, now."""
        return self._tenancies.leases()

    def answers_for(self) -> frozenset[TaskId]:
        """Tasks this node runs, or whose account as an executor is still open."""
        return self._tenancies.answers_for()

    def hosted(self) -> int:
        """Tasks that occupy this node as an executor."""
        return self._tenancies.hosted()

    def leaving(self) -> int:
        """Runs on their way to other nodes, until they are settled."""
        return self._departures.leaving()

    def sold(self) -> Capacity:
        return self._tenancies.pool.sold

    def reserved(self) -> Capacity:
        return self._tenancies.pool.reserved

    def free(self) -> Capacity:
        """What is for sale now: neither reserved nor taken by the owner's own load."""
        if self._tenancies.is_closed:
            return NOTHING
        return self._tenancies.pool.free.minus(self._pressure())

    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """Every table: how full, and its bound (promise S7)."""
        return {
            "offers": (len(self._book.listings), self._policy.offers_max),
            "calibration": (len(self._auctioneer.calibration), scoring.BOUND),
            "faults": (len(self.faults), FAULTS_MAX + 1),
            **self._auctioneer.sizes(),
            **self._tenancies.sizes(),
            **self.credit.sizes(),
            **self._keeping.sizes(),
        }

    def statistics(self) -> Mapping[str, int]:
        """Bounds reached and faults met."""
        return {
            "offers_evicted": self._book.evicted,
            "holds_lapsed": self._tenancies.holds.lapsed,
            "answers_given_up": self._tenancies.unanswered,
            **self.credit.tally,
            **{f"fault_{reason}": count for reason, count in sorted(self.faults.items())},
        }

    # --- the one mutator ------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """What is to be done about *event*, in order. *now* is monotonic seconds."""
        before = self.free()
        actions = self._route(event, now)
        for action in actions:
            if isinstance(action, AppendEntry):
                self.credit.see(Entry.decode(action.entry))
        if self.free() != before and self._announcer.is_stale(self.free(), self.sold()):
            actions += self._announcer.hurry(now)
        return actions

    def _route(self, event: Event, now: float) -> list[Action]:
        match event:
            case Started():
                return [
                    *self._auctioneer.start(now),
                    *self._tenancies.start(now),
                    *self._offer_due(now),
                ]
            case Received(peer, message):
                return self._blaming(peer, lambda: self._receive(peer, message, now))
            case OfferReceived(signed):
                return self._hear(signed, now)
            case Submitted(order):
                return self._auctioneer.submit(order, now)
            case CancelRequested(task):
                return self._auctioneer.cancel(task, now)
            case MoveRequested():
                return self.migrator.request(event)
            case DrainSet():
                return [*self._departures.drain(event), *self._announcer.hurry(now)]
            case LoadSampled(cpu_milli, memory):
                self._forecaster.observe((cpu_milli, memory), now)
                self._owner = Capacity(cpu_milli=cpu_milli, memory=memory)
                shop, outlook = self._tenancies.shop, self._outlook(now)
                return self._departures.pressed(shop, self._owner, outlook)
            case RunProgressed(task, fence, fuel):
                return self._tenancies.run_progressed(task, fence, fuel, now)
            case RunEnded(task, fence, result):
                return self._tenancies.run_ended(task, fence, result, now)
            case RunLost(task, fence, reason):
                return self._tenancies.run_lost(task, fence, reason, now)
            case Checkpointed():
                return self._departures.checkpointed(event, now)
            case Suspended():
                return self._departures.suspended(event, now)
            case Unmoved():
                return self._departures.unmoved(event, now)
            case Collected():
                ended = self._auctioneer.settlement.collected(event, now)
                return [*self.migrator.collected(event), *ended]
            case Certified():
                return self._auctioneer.certified(event, now)
            case ChainConfirmed(lost):
                return self._confirm([Entry.decode(data) for data in lost], now)
            case Learned(entries, forked):
                return self._learn([Entry.decode(data) for data in entries], forked)
            case LineSet(buyer, limit):
                return self._set_line(buyer, limit, now)
            case Woken():
                return self._wake(event, now)
            case _:
                assert_never(event)

    def _receive(self, peer: PeerId, message: Message, now: float) -> list[Action]:
        auctioneer, tenancies = self._auctioneer, self._tenancies
        match message:
            case Ask():
                owner = self._pressure()
                answer = tenancies.ask(peer, message, owner, self._outlook(now), now)
                return [*answer, *self._departures.preempt(message, owner, now)]
            case Bid():
                return auctioneer.bid(peer, message, now)
            case Refusal():
                return auctioneer.refusal(peer, message, now)
            case Award():
                begun = tenancies.award(peer, message, now)
                return [*begun, *self._departures.arrived(peer, message, now)]
            case Accepted():
                return auctioneer.accepted(peer, message)
            case Declined():
                return auctioneer.declined(peer, message, now)
            case Release():
                return tenancies.holds.release(peer, message)
            case Renew():
                return [
                    *auctioneer.renew(peer, message, now),
                    *self.migrator.renewed(peer, message, now),
                ]
            case Renewed():
                return tenancies.renewed(peer, message, now)
            case Revoked():
                return tenancies.revoked(peer, message, now)
            case Done():
                return auctioneer.settlement.done(peer, message, now)
            case Lost():
                return auctioneer.settlement.lost(peer, message, now)
            case Settled():
                return tenancies.settled(peer, message)
            case Slice():
                return auctioneer.billing.slice(peer, message, now)
            case Sliced():
                return tenancies.sliced(peer, message, now)
            case Saved():
                return self.migrator.saved(peer, message)
            case Handover():
                return self._departures.handover(peer, message)
            case Keep():
                return [] if self.is_closed else self._keeping.keep(peer, message, now)
            case Stays():
                return self.migrator.stays(peer, message)
            case _:
                assert_never(message)

    def _wake(self, event: Woken, now: float) -> list[Action]:
        auctioneer, tenancies = self._auctioneer, self._tenancies
        if event.timer == "offer":
            return self._offer_due(now)
        if event.timer == "accounts":
            return auctioneer.billing.due(now)
        task, mark = event.subject, event.mark
        assert task is not None, event
        match event.timer:
            case "window":
                return auctioneer.window_due(task, mark, now)
            case "award":
                return auctioneer.award_due(task, mark, now)
            case "lease":
                return auctioneer.lease_due(task, now)
            case "ask":
                return auctioneer.ask_due(task, now)
            case "deadline":
                return auctioneer.deadline_due(task, now)
            case "hold":
                return tenancies.holds.due(task, mark)
            case "renew":
                return tenancies.renew_due(task, mark, now)
            case "expire":
                return tenancies.expire_due(task, mark, now)
            case "orphan":
                return tenancies.orphan_due(task, mark, now)
            case "keep":
                return self._keeping.due(task, now)
            case "save":
                return self._departures.save_due(tenancies.hosted_as(task, mark), now)
            case "claim":
                return tenancies.claim_due(task, mark, now)
            case "answer":
                return tenancies.answer_due(task, mark, now)
            case _:
                assert_never(event.timer)

    def _confirm(self, lost: Sequence[Entry], now: float) -> list[Action]:
        """Peers told where our chain ends: from now on it may grow."""
        if self._own.is_confirmed:
            return []
        for entry in lost:
            self.credit.see(entry)
        self._own.is_confirmed = True
        return self._auctioneer.confirmed(lost, now)

    def _learn(self, entries: Sequence[Entry], forked: Sequence[PeerId]) -> list[Action]:
        """What replication brought: it changes what buyers owe us, and whom we trust."""
        for entry in entries:
            self.credit.see(entry)
        frozen = self.credit.freeze(forked)
        for peer in frozen:
            self._book.drop(peer)
        return [Notify(Forked(peer)) for peer in frozen]

    def _set_line(self, buyer: PeerId, limit: int, now: float) -> list[Action]:
        if buyer == self.identity.peer or self._own.why_not():
            return []
        sign = self.identity.sign

        def write(head: Head, wall_ms: int) -> tuple[Head, Entry]:
            return chain.line(head, limit, buyer, wall_ms=wall_ms, sign=sign)

        return self._own.append(write, self._clock.wall_ms(now))[1]

    def _hear(self, signed: SignedOffer, now: float) -> list[Action]:
        """A gossiped offer. Whoever passed it on is not to blame for what stands in it."""
        try:
            heard = self._book.hear(signed, now)
        except PeerError as error:
            self._count(error)
            return []
        if heard is None:
            return []
        if self.credit.is_frozen(heard.offer.peer):
            self._book.drop(heard.offer.peer)
            return []
        actions: list[Action] = [Notify(OfferHeard(heard.offer))]
        # In a full book everybody who was evicted looks new: greeting them would be a storm.
        is_new = heard.before is None and not self._book.is_full
        if is_new and self._announcer.greets(len(self._book.listings), self._rng):
            actions += self._announcer.hurry(now)
        return actions + self._auctioneer.offer_heard(heard, now)

    def _offer_due(self, now: float) -> list[Action]:
        silent = self._book.age(now)
        return [
            *self._announcer.due(
                now,
                shop=self._tenancies.shop,
                free=self.free(),
                outlook=self._outlook(now),
                modules=self._tenancies.modules,
            ),
            *[Notify(OfferAged(peer)) for peer in silent],
        ]

    def _pressure(self) -> Capacity:
        """What the owner needs now of what he sells."""
        shop = self._tenancies.shop
        return self._owner.minus(shop.machine.minus(shop.sold))

    def _outlook(self, now: float) -> tuple[Outlook, ...]:
        return self._forecaster.outlook(now)

    def _blaming(self, peer: PeerId, act: Callable[[], list[Action]]) -> list[Action]:
        try:
            return act()
        except PeerError as error:
            self._count(error)
            return [Penalize(peer, str(error))]

    def _count(self, error: PeerError) -> None:
        """Under the rule that was broken; what peers put into the rest of the text is endless."""
        rule = str(error).partition(":")[0]
        self.faults[rule if rule in self.faults or len(self.faults) < FAULTS_MAX else "others"] += 1
