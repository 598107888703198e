"""Tenancy: the executor's side of a lease. Hold, take, renew, stop oneself, answer for it.

Rules:
1. A hold reserves capacity from the sending of a bid and ends by itself; an award that comes later
   is declined, whatever else is free. A declined fence is never accepted afterwards.
2. The lease counts from the moment *asked*: the bid's sending, then each Renew's sending. The
   grantor counts from the moment it granted, so the holder always stops first.
3. At expiry the run is paused, not lost: the grantor may be slow, and if it re-awarded meanwhile it
   will say so. A grantor silent for `orphan_ms` more is taken for dead: the run goes on without the
   lease, and its result waits for whoever may accept it.
4. A long run stops at a slice that its buyer has not signed for (slicing.py), and goes on once it
   has. What stays unsigned for `claim_ms` is claimed on our own chain: one side's word.
5. Nobody gets a bid whose bill would exceed its credit line (credit.py), or whose key forked.
6. A run that ended (Done) or cannot go on (Lost) is answered for until the buyer's entry arrives.
   What was burnt under a lease that was taken away with `is_owed` is billed; else it is void.
"""

from __future__ import annotations

from collections.abc import Collection

from ledger.model import Kind
from ledger.quorum import Quorum
from mesh.errors import PeerError
from mesh.ids import Cid, PeerId, TaskId
from mesh.market import slicing
from mesh.market.bidding import TTL_MS_MIN, Shop, check_ask, learned
from mesh.market.claims import Claims
from mesh.market.credit import Credit
from mesh.market.holds import Holds
from mesh.market.lease import Clock, Phase, Tenancy, restored
from mesh.market.own_chain import OwnChain
from mesh.market.papers import certificate_flaw, check_about, check_award, decline
from mesh.market.policy import Policy
from mesh.market.terms import CANCELLED, MOVED
from mesh.messages import (
    Accepted,
    Ask,
    Award,
    Done,
    Lost,
    Outlook,
    Refusal,
    Renew,
    Renewed,
    Result,
    Revoked,
    Settled,
    Sliced,
)
from mesh.notices import Hosted
from mesh.resources.capacity import Capacity
from mesh.resources.pool import Pool
from mesh.sansio import (
    Action,
    AppendEntry,
    ContinueRun,
    ForgetTenancy,
    Identity,
    Notify,
    PauseRun,
    PersistTenancy,
    Run,
    Send,
    StopRun,
    WakeAt,
    Woken,
)

CLOSES = (Kind.SETTLE, Kind.VOID)
_RENEWS_OPEN_MAX = 8
_PATIENCE = 8
"""An answer repeated so often without an echo (two minutes) may make room for new work."""
_MODULES_MAX = 64


class Tenancies:
    """All tasks this node holds capacity for, hosts, or still answers for."""

    def __init__(
        self,
        identity: Identity,
        policy: Policy,
        shop: Shop,
        clock: Clock,
        saved: tuple[PersistTenancy, ...],
        *,
        own: OwnChain,
        credit: Credit,
        claimed: Collection[bytes] = (),
    ) -> None:
        """*claimed* are the ids of the ALLOCs that our chain claims already."""
        self.shop = shop
        self.pool: Pool[TaskId] = Pool(shop.sold)
        self.holds = Holds(identity, policy, clock, credit, self.pool)
        self.unanswered = 0
        """Answers given up because their buyers were gone and the table was full."""
        self._identity = identity
        self._own = own
        self._claims = Claims(identity, policy, clock, own)
        self.is_closed = False
        """Whether nothing new is taken on."""
        self._policy = policy
        self._quorum = Quorum.of(policy.witnesses) if policy.witnesses else None
        self._clock = clock
        self._tenancies: dict[tuple[TaskId, int], Tenancy] = {}
        self._modules: dict[Cid, None] = {}
        for record in saved:
            tenancy = restored(record, policy.ttl_ms, identity.sign)
            tenancy.is_claimed = tenancy.alloc_id in claimed
            self._tenancies[tenancy.task, tenancy.fence] = tenancy

    @property
    def modules(self) -> tuple[Cid, ...]:
        """Modules run lately: likely to be compiled and stored here."""
        return tuple(self._modules)

    def leases(self) -> tuple[tuple[TaskId, int], ...]:
        """The (task, fence) of every lease held now."""
        return tuple(key for key, tenancy in self._tenancies.items() if tenancy.is_held)

    def answers_for(self) -> frozenset[TaskId]:
        """Tasks with an open tenancy, running or not."""
        return frozenset(task for task, _ in self._tenancies)

    def open(self) -> Collection[Tenancy]:
        """What runs here, or is not settled yet."""
        return self._tenancies.values()

    def hosted_as(self, task: TaskId, fence: int, buyer: PeerId | None = None) -> Tenancy | None:
        """A tenancy that has not ended; of *buyer*, if one is named."""
        tenancy = self._tenancies.get((task, fence))
        if tenancy is None or tenancy.phase is Phase.ENDED:
            return None
        return tenancy if buyer in (None, tenancy.buyer) else None

    def close(self, *, is_closed: bool) -> None:
        """Take nothing new on, not even what was bid for; or do so again."""
        self.is_closed = is_closed
        if is_closed:
            self.holds.drop_all()

    def hosted(self) -> int:
        """Tasks that occupy capacity here."""
        return sum(tenancy.phase is not Phase.ENDED for tenancy in self._tenancies.values())

    def sizes(self) -> dict[str, tuple[int, int]]:
        return {
            "holds": (len(self.holds), self._policy.holds_max),
            "tenancies": (len(self._tenancies), self._policy.tenancies_max),
            "modules": (len(self._modules), _MODULES_MAX),
        }

    def start(self, now: float) -> list[Action]:
        """After a restart: answer for what was hosted before."""
        actions: list[Action] = []
        for tenancy in self._tenancies.values():
            actions += [*self._send_answer(tenancy, now), self._claims.timer(tenancy, now)]
        return actions

    # --- the auction ----------------------------------------------------------------------------

    def ask(
        self, peer: PeerId, ask: Ask, owner: Capacity, outlook: tuple[Outlook, ...], now: float
    ) -> list[Action]:
        """Bid and hold, or refuse with the reason. A repeated ask gets the same bid.

        *owner* is what the owner needs now of what is for sale. Raises PeerError for an ask that
        nobody could mean.
        """
        check_ask(ask)
        if known := self.holds.repeated(peer, ask):
            return [Send(peer, known)]
        room = self._make_room()
        refusal = self.holds.why_not(peer, ask) or self._why_not(ask)
        if refusal:
            return [*room, Send(peer, Refusal(ask.task, ask.round, refusal, may_change=True))]
        bid = self.holds.bid(
            peer,
            ask,
            self.shop,
            owner=owner,
            outlook=outlook,
            cached=frozenset(self._modules),
            now=now,
        )
        return [*room, *bid]

    def award(self, peer: PeerId, award: Award, now: float) -> list[Action]:
        """Take the lease if its hold still stands, else decline. Raises PeerError."""
        entry, terms = check_award(self._identity, self._own.head.net, peer, award)
        if known := self._tenancies.get((award.task, award.fence)):
            if known.alloc_id != entry.id:
                return []  # an old award come again
            if known.answer:  # its buyer may have restarted since it was told
                return self._send_answer(known, now)
            return [Send(peer, Accepted(award.task, award.fence))] if known.is_held else []
        if award.ttl_ms < TTL_MS_MIN:
            raise PeerError("an award of a lease of absurd length")
        if flaw := certificate_flaw(self._identity, self._quorum, entry, award.certificate):
            return [Send(peer, decline(self._identity, award, entry, terms, flaw))]
        hold = self.holds.take(award, terms.encode(), now)
        if hold is None:
            reason = "the hold had ended"
            return [Send(peer, decline(self._identity, award, entry, terms, reason))]
        ttl = min(award.ttl_ms, hold.ask.ttl_ms)
        tenancy = Tenancy(
            task=award.task,
            fence=award.fence,
            buyer=peer,
            alloc=entry,
            terms=terms,
            work=hold.ask.work,
            ttl_ms=ttl,
            expires_at=hold.sent_at + ttl / 1000,
            is_held=True,
            phase=Phase.RUNNING,
        )
        self._tenancies[award.task, award.fence] = tenancy
        return [
            AppendEntry(award.entry, is_own=False),
            tenancy.record(),
            Send(peer, Accepted(award.task, award.fence)),
            Run(award.task, award.fence, peer, hold.ask.work),
            self.tell(tenancy, "held", f"for {ttl} ms at a time"),
            *self._renew_timers(tenancy, now),
        ]

    # --- the lease ------------------------------------------------------------------------------

    def renewed(self, peer: PeerId, renewed: Renewed, now: float) -> list[Action]:
        """Extend the lease from the moment we asked."""
        tenancy = self._of(peer, renewed.task, renewed.fence)
        if tenancy is None:
            return []
        asked_at = tenancy.asked.pop(renewed.seq, None)
        if asked_at is None or tenancy.phase is Phase.ENDED:
            return []
        expires_at = asked_at + min(renewed.ttl_ms, tenancy.ttl_ms) / 1000
        if expires_at <= max(now, tenancy.expires_at if tenancy.is_held else now):
            return []
        tenancy.expires_at = expires_at
        actions: list[Action] = [WakeAt(expires_at, Woken("expire", tenancy.task, tenancy.fence))]
        if not tenancy.is_held:
            tenancy.is_held = True
            actions.append(self.tell(tenancy, "held", "the grantor is back"))
        if tenancy.phase is Phase.PAUSED:
            tenancy.phase = Phase.RUNNING
            actions += self._go_on(tenancy)
        return actions

    def revoked(self, peer: PeerId, revoked: Revoked, now: float) -> list[Action]:
        """The lease is gone: stop, free the capacity, and close the account."""
        tenancy = self._of(peer, revoked.task, revoked.fence)
        if tenancy is None:
            return []
        actions: list[Action] = []
        if tenancy.phase is not Phase.ENDED:
            actions.append(StopRun(tenancy.task, tenancy.fence))
            actions.append(self.tell(tenancy, "revoked", revoked.reason))
        if isinstance(tenancy.answer, Lost):
            return [*actions, *self._forget(tenancy)]
        if not revoked.is_owed:
            return [
                *actions,
                *self.end(tenancy, tenancy.lost(revoked.reason, self._identity.sign), now),
            ]
        if isinstance(tenancy.answer, Done) and tenancy.answer.result.status == CANCELLED:
            return [*actions, *self._send_answer(tenancy, now)]
        done = tenancy.cancelled(revoked.reason, self._clock.wall_ms(now), self._identity.sign)
        return [*actions, *self.end(tenancy, done, now)]

    def settled(self, peer: PeerId, settled: Settled) -> list[Action]:
        """The buyer closed the account: of a run that goes on by the bill of a state that we gave,
        since we were taken for lost. Raises PeerError."""
        tenancy = self._of(peer, settled.task, settled.fence)
        if tenancy is None or not (tenancy.answer or tenancy.saved_fuel):
            return []
        body = check_about(self._identity, tenancy, settled.entry, CLOSES)
        # We signed its terms, though perhaps not last: a Settled may cross a Revoked on its way.
        what = "settled" if body.kind is Kind.SETTLE else "void"
        runs = tenancy.phase is not Phase.ENDED
        return [
            *([StopRun(tenancy.task, tenancy.fence)] if runs else []),
            AppendEntry(settled.entry, is_own=False),
            self.tell(tenancy, what, f"{body.deal.amount} µcr"),
            *self._forget(tenancy),
        ]

    # --- the run --------------------------------------------------------------------------------

    def run_progressed(self, task: TaskId, fence: int, fuel: int, now: float) -> list[Action]:
        """Remember how far it is; the next Renew tells the buyer, who signs for each slice."""
        tenancy = self._tenancies.get((task, fence))
        if tenancy is None or tenancy.phase is Phase.ENDED:
            return []
        tenancy.fuel = max(tenancy.fuel, min(fuel, tenancy.terms.fuel))
        actions = self._ask_to_sign(tenancy, now)
        if slicing.is_spent(tenancy, self._policy) and not tenancy.is_unsigned:
            tenancy.is_unsigned = True
            told = f"{tenancy.fuel - tenancy.signed_fuel} fuel that its buyer has not signed for"
            if tenancy.phase is Phase.RUNNING:
                actions.append(PauseRun(task, fence))
            actions += [self.tell(tenancy, "unsigned", told), self._claims.timer(tenancy, now)]
        return actions

    def sliced(self, peer: PeerId, sliced: Sliced, now: float) -> list[Action]:
        """The buyer signed for a slice: on we go. Raises PeerError."""
        tenancy = self._of(peer, sliced.task, sliced.fence)
        if tenancy is None or tenancy.phase is Phase.ENDED:
            return []
        fuel = check_about(self._identity, tenancy, sliced.entry, (Kind.USE,)).deal.fuel
        if fuel <= tenancy.signed_fuel:
            return []
        tenancy.signed_fuel, tenancy.slice = fuel, None
        actions: list[Action] = [AppendEntry(sliced.entry, is_own=False)]
        if tenancy.is_unsigned and not slicing.is_spent(tenancy, self._policy):
            tenancy.is_unsigned = False
            actions += [self.tell(tenancy, "signed", f"{fuel} fuel"), *self._go_on(tenancy)]
        return actions + self._ask_to_sign(tenancy, now)

    def run_ended(self, task: TaskId, fence: int, result: Result, now: float) -> list[Action]:
        """The task came to its end: bill it."""
        tenancy = self._tenancies.get((task, fence))
        if tenancy is None or tenancy.phase is Phase.ENDED:
            return []
        self._learn(tenancy, result)
        done = tenancy.done(result, self._clock.wall_ms(now), self._identity.sign)
        return [
            self.tell(tenancy, "ended", result.detail or result.status),
            *self.end(tenancy, done, now),
        ]

    def run_lost(self, task: TaskId, fence: int, reason: str, now: float) -> list[Action]:
        """It cannot go on, and that is our fault: claim nothing."""
        tenancy = self._tenancies.get((task, fence))
        if tenancy is None or tenancy.phase is Phase.ENDED:
            return []
        return [
            self.tell(tenancy, "lost", reason),
            *self.end(tenancy, tenancy.lost(reason, self._identity.sign), now),
        ]

    # --- time -----------------------------------------------------------------------------------

    def renew_due(self, task: TaskId, fence: int, now: float) -> list[Action]:
        """Ask for more time, held or not: only the grantor can tell what became of the lease."""
        tenancy = self._tenancies.get((task, fence))
        if tenancy is None or tenancy.phase is Phase.ENDED:
            return []
        tenancy.seq += 1
        tenancy.asked[tenancy.seq] = now
        if len(tenancy.asked) > _RENEWS_OPEN_MAX:
            del tenancy.asked[next(iter(tenancy.asked))]
        return [
            Send(tenancy.buyer, Renew(task, fence, tenancy.seq, tenancy.fuel)),
            *([Send(tenancy.buyer, tenancy.slice)] if tenancy.slice else []),
            WakeAt(now + tenancy.ttl_ms / 3000, Woken("renew", task, fence)),
        ]

    def expire_due(self, task: TaskId, fence: int, now: float) -> list[Action]:
        """Stop oneself: from here on the grantor may give the task to another."""
        tenancy = self._tenancies.get((task, fence))
        if tenancy is None or not tenancy.is_held or now < tenancy.expires_at:
            return []
        tenancy.is_held = False
        if tenancy.phase is not Phase.RUNNING:
            return []
        tenancy.phase = Phase.PAUSED
        tenancy.orphan_at = now + self._policy.orphan_ms / 1000
        return [
            PauseRun(task, fence),
            self.tell(tenancy, "fenced", "the lease ran out unrenewed; paused"),
            WakeAt(tenancy.orphan_at, Woken("orphan", task, fence)),
        ]

    def orphan_due(self, task: TaskId, fence: int, now: float) -> list[Action]:
        """The grantor is taken for dead: finish, and keep the result for whoever may accept it."""
        tenancy = self._tenancies.get((task, fence))
        if tenancy is None or tenancy.phase is not Phase.PAUSED or now < tenancy.orphan_at:
            return []
        tenancy.phase = Phase.RUNNING
        return [
            *self._go_on(tenancy),
            self.tell(tenancy, "orphaned", "the grantor is silent; finishing without it"),
        ]

    def answer_due(self, task: TaskId, fence: int, now: float) -> list[Action]:
        tenancy = self._tenancies.get((task, fence))
        if tenancy is None or tenancy.answer is None or now < tenancy.resend_at:
            return []
        return self._send_answer(tenancy, now)

    def claim_due(self, task: TaskId, fence: int, now: float) -> list[Action]:
        """What its buyer has not signed for by now, we claim on our own word."""
        tenancy = self._tenancies.get((task, fence))
        if tenancy is None or now < tenancy.claim_at:
            return []
        if tenancy.phase is not Phase.ENDED:
            return self._give_up(tenancy, now) if tenancy.is_unsigned else []
        return self._claim(tenancy, now)

    # --- supporting -----------------------------------------------------------------------------

    def _ask_to_sign(self, tenancy: Tenancy, now: float) -> list[Action]:
        if not slicing.is_due(tenancy, self._policy):
            return []
        tenancy.slice = slicing.propose(tenancy, self._clock.wall_ms(now), self._identity.sign)
        return [Send(tenancy.buyer, tenancy.slice)]

    def _go_on(self, tenancy: Tenancy) -> list[Action]:
        return [ContinueRun(tenancy.task, tenancy.fence)] if tenancy.may_run else []

    def _give_up(self, tenancy: Tenancy, now: float) -> list[Action]:
        """A buyer that signs nothing gets nothing more: bill what was burnt, and claim it."""
        reason = "its buyer signs for nothing"
        done = tenancy.cancelled(reason, self._clock.wall_ms(now), self._identity.sign)
        return [
            StopRun(tenancy.task, tenancy.fence),
            self.tell(tenancy, "given up", reason),
            *self.end(tenancy, done, now),
            *self._claim(tenancy, now),
        ]

    def _claim(self, tenancy: Tenancy, now: float) -> list[Action]:
        was_claimed = tenancy.is_claimed
        actions = self._claims.claim(tenancy, now)
        if tenancy.is_claimed == was_claimed:
            return actions
        return [*actions, self.tell(tenancy, "claimed", "its buyer is silent: our word alone")]

    def _why_not(self, ask: Ask) -> str:
        if self.is_closed:
            return "this node is being emptied"
        if any(task == ask.task for task, _ in self._tenancies):
            return "this node still answers for an earlier run of this task"
        if len(self._tenancies) + len(self.holds) >= self._policy.tenancies_max:
            return "too many unsettled tasks"
        return ""

    def _make_room(self) -> list[Action]:
        """A full table forgets the answer that its buyer has ignored longest: work for nothing."""
        if len(self._tenancies) + len(self.holds) < self._policy.tenancies_max:
            return []
        for tenancy in self._tenancies.values():
            if tenancy.phase is Phase.ENDED and tenancy.resends >= _PATIENCE:
                self.unanswered += 1
                return [self.tell(tenancy, "unpaid", "its buyer is gone"), *self._forget(tenancy)]
        return []

    def _of(self, peer: PeerId, task: TaskId, fence: int) -> Tenancy | None:
        tenancy = self._tenancies.get((task, fence))
        return tenancy if tenancy and tenancy.buyer == peer else None

    def _renew_timers(self, tenancy: Tenancy, now: float) -> list[Action]:
        return [
            WakeAt(now + tenancy.ttl_ms / 3000, Woken("renew", tenancy.task, tenancy.fence)),
            WakeAt(tenancy.expires_at, Woken("expire", tenancy.task, tenancy.fence)),
        ]

    def end(self, tenancy: Tenancy, answer: Done | Lost, now: float) -> list[Action]:
        """Free the capacity and answer, durably, until the account is closed."""
        tenancy.phase = Phase.ENDED
        tenancy.answer = answer
        tenancy.resends = 0
        if isinstance(answer, Lost) or answer.result.status == MOVED:
            tenancy.is_held = False
        self.pool.release(tenancy.task)
        claim = [self._claims.timer(tenancy, now)] if isinstance(answer, Done) else []
        return [tenancy.record(), *self._send_answer(tenancy, now), *claim]

    def _send_answer(self, tenancy: Tenancy, now: float) -> list[Action]:
        assert tenancy.answer is not None
        tenancy.resends += 1
        wait_ms = min(
            self._policy.resend_ms << min(tenancy.resends - 1, 16), self._policy.resend_max_ms
        )
        tenancy.resend_at = now + wait_ms / 1000
        return [
            Send(tenancy.buyer, tenancy.answer),
            WakeAt(tenancy.resend_at, Woken("answer", tenancy.task, tenancy.fence)),
        ]

    def _forget(self, tenancy: Tenancy) -> list[Action]:
        del self._tenancies[tenancy.task, tenancy.fence]
        self.pool.release(tenancy.task)
        return [ForgetTenancy(tenancy.task, tenancy.fence)]

    def _learn(self, tenancy: Tenancy, result: Result) -> None:
        """Keep the module in mind, and let long runs correct the measured speed."""
        module = Cid(tenancy.terms.module)
        self._modules.pop(module, None)
        self._modules[module] = None
        if len(self._modules) > _MODULES_MAX:
            del self._modules[next(iter(self._modules))]
        self.shop = learned(self.shop, result)

    def tell(self, tenancy: Tenancy, what: str, reason: str) -> Notify:
        """Whoever watches this node, what became of a tenancy."""
        return Notify(Hosted(tenancy.task, tenancy.fence, tenancy.buyer, what, reason))
