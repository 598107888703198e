"""Tenancy: the executor's side of a lease. Hold, take, renew, stop oneself, answer for it.

Rules:
1. A hold reserves capacity from the sending of a bid and ends by itself; an award that comes later
   is declined, whatever else is free. A declined fence is never accepted afterwards.
2. The lease counts from the moment *asked*: the bid's sending, then each Renew's sending. The
   grantor counts from the moment it granted, so the holder always stops first.
3. At expiry the run is paused, not lost: the grantor may be slow, and if it re-awarded meanwhile it
   will say so. A grantor silent for `orphan_ms` more is taken for dead: the run goes on without the
   lease, and its result waits for whoever may accept it.
4. A run that ended (Done) or cannot go on (Lost) is answered for until the buyer's entry arrives.
   What was burnt under a lease that was taken away with `is_owed` is billed; else it is void.
"""

from __future__ import annotations

from attrs import evolve

from ledger.chain import check_entry
from ledger.errors import BadEntry
from ledger.keys import terms_message
from ledger.model import Entry, Kind, Terms
from mesh.errors import PeerError
from mesh.ids import Cid, EntryId, PeerId, TaskId
from mesh.market.bidding import TTL_MS_MIN, NoQuote, Shop, check_ask, quote
from mesh.market.lease import Clock, Hold, Phase, Tenancy, restored
from mesh.market.policy import Policy
from mesh.market.terms import CANCELLED, alloc_terms, void_terms
from mesh.messages import (
    Accepted,
    Ask,
    Award,
    Bid,
    Declined,
    Done,
    Lost,
    Outlook,
    Refusal,
    Release,
    Renew,
    Renewed,
    Result,
    Revoked,
    Settled,
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
        net: bytes,
    ) -> None:
        self.shop = shop
        self.pool: Pool[TaskId] = Pool(shop.sold)
        self.lapsed = 0
        """Holds that ended without an award or a release."""
        self.unanswered = 0
        """Answers given up because their buyers were gone and the table was full."""
        self._identity = identity
        self._net = net
        self._policy = policy
        self._clock = clock
        self._holds: dict[TaskId, Hold] = {}
        self._tenancies: dict[tuple[TaskId, int], Tenancy] = {}
        self._modules: dict[Cid, None] = {}
        for record in saved:
            tenancy = restored(record, policy.ttl_ms, identity.sign)
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

    def hosted(self) -> int:
        """Tasks that occupy capacity here."""
        return sum(tenancy.phase is not Phase.ENDED for tenancy in self._tenancies.values())

    def sizes(self) -> dict[str, tuple[int, int]]:
        return {
            "holds": (len(self._holds), self._policy.holds_max),
            "tenancies": (len(self._tenancies), self._policy.tenancies_max),
            "modules": (len(self._modules), _MODULES_MAX),
        }

    def start(self, now: float) -> list[Action]:
        """After a restart: answer for what was hosted before."""
        actions: list[Action] = []
        for tenancy in self._tenancies.values():
            actions += self._send_answer(tenancy, now)
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
        held = self._holds.get(ask.task)
        if held and held.buyer == peer and held.ask == ask:
            return [Send(peer, held.bid)]
        room = self._make_room()
        refusal = self._why_not(peer, ask)
        if refusal:
            return [*room, Send(peer, Refusal(ask.task, ask.round, refusal, may_change=True))]
        if held:
            self._drop_hold(ask.task)
        answer = quote(
            ask,
            self.shop,
            free=self.pool.free.minus(owner),
            outlook=outlook,
            cached=frozenset(self._modules),
        )
        if isinstance(answer, NoQuote):
            refused = Refusal(ask.task, ask.round, answer.reason, answer.may_change)
            return [*room, Send(peer, refused)]
        terms = alloc_terms(
            ask,
            seller=self._identity.peer,
            buyer=peer,
            price=answer.price,
            wall_ms=self._clock.wall_ms(now),
            grace_ms=self._policy.grace_ms,
        ).encode()
        bid = Bid(
            task=ask.task,
            round=ask.round,
            terms=terms,
            signature=self._identity.sign(terms_message(terms)),
            finish_ms=answer.finish_ms,
            p_on_time=answer.p_on_time,
            cached=int(ask.work.module in self._modules),
            hold_ms=self._policy.hold_ms,
            reason=answer.reason,
        )
        is_reserved = self.pool.reserve(ask.task, ask.work.needs)
        assert is_reserved, "the quote was for what is free"
        ends_at = now + self._policy.hold_ms / 1000
        self._holds[ask.task] = Hold(peer, ask, bid, sent_at=now, ends_at=ends_at)
        return [*room, Send(peer, bid), WakeAt(ends_at, Woken("hold", ask.task, ask.round))]

    def release(self, peer: PeerId, release: Release) -> list[Action]:
        """We lost; the capacity is free again."""
        hold = self._holds.get(release.task)
        if hold and hold.buyer == peer and hold.ask.round == release.round:
            self._drop_hold(release.task)
        return []

    def award(self, peer: PeerId, award: Award, now: float) -> list[Action]:
        """Take the lease if its hold still stands, else decline. Raises PeerError."""
        entry, terms = self._check_award(peer, award)
        known = self._tenancies.get((award.task, award.fence))
        if known:
            if known.alloc_id != entry.id or not known.is_held:
                return []  # an old award come again; what became of it has its own answer
            return [Send(peer, Accepted(award.task, award.fence))]
        hold = self._holds.get(award.task)
        # After a stall an award may be looked at before the timer that ends its hold.
        if hold is None or now >= hold.ends_at or hold.bid.terms != terms.encode():
            return [self._decline(peer, award, entry, terms, "the hold had ended")]
        if award.ttl_ms < TTL_MS_MIN:
            raise PeerError("an award of a lease of absurd length")
        del self._holds[award.task]
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
            self._tell(tenancy, "held", f"for {ttl} ms at a time"),
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
            actions.append(self._tell(tenancy, "held", "the grantor is back"))
        if tenancy.phase is Phase.PAUSED:
            tenancy.phase = Phase.RUNNING
            actions.append(ContinueRun(tenancy.task, tenancy.fence))
        return actions

    def revoked(self, peer: PeerId, revoked: Revoked, now: float) -> list[Action]:
        """The lease is gone: stop, free the capacity, and close the account."""
        tenancy = self._of(peer, revoked.task, revoked.fence)
        if tenancy is None:
            return []
        actions: list[Action] = []
        if tenancy.phase is not Phase.ENDED:
            actions.append(StopRun(tenancy.task, tenancy.fence))
            actions.append(self._tell(tenancy, "revoked", revoked.reason))
        if isinstance(tenancy.answer, Lost):
            return [*actions, *self._forget(tenancy)]
        if not revoked.is_owed:
            return [
                *actions,
                *self._end(tenancy, tenancy.lost(revoked.reason, self._identity.sign), now),
            ]
        if isinstance(tenancy.answer, Done) and tenancy.answer.result.status == CANCELLED:
            return [*actions, *self._send_answer(tenancy, now)]
        done = tenancy.cancelled(revoked.reason, self._clock.wall_ms(now), self._identity.sign)
        return [*actions, *self._end(tenancy, done, now)]

    def settled(self, peer: PeerId, settled: Settled) -> list[Action]:
        """The buyer closed the account. Raises PeerError."""
        tenancy = self._of(peer, settled.task, settled.fence)
        if tenancy is None or tenancy.answer is None:
            return []
        entry = _decode_entry(settled.entry)
        try:
            body = check_entry(entry, self._identity.verify)
        except BadEntry as error:
            raise PeerError(f"a bad closing entry: {error}") from None
        named = (body.author, body.peer, body.deal.ref)
        if named != (peer, self._identity.peer, tenancy.alloc_id):
            raise PeerError("a closing entry for something else")
        # We signed its terms, though perhaps not last: a Settled may cross a Revoked on its way.
        what = "settled" if body.kind is Kind.SETTLE else "void"
        return [
            AppendEntry(settled.entry, is_own=False),
            self._tell(tenancy, what, f"{body.deal.amount} µcr"),
            *self._forget(tenancy),
        ]

    # --- the run --------------------------------------------------------------------------------

    def run_progressed(self, task: TaskId, fence: int, fuel: int) -> list[Action]:
        """Remember how far it is; the next Renew tells the buyer."""
        tenancy = self._tenancies.get((task, fence))
        if tenancy:
            tenancy.fuel = max(tenancy.fuel, min(fuel, tenancy.terms.fuel))
        return []

    def run_ended(self, task: TaskId, fence: int, result: Result, now: float) -> list[Action]:
        """The task came to its end: bill it."""
        tenancy = self._tenancies.get((task, fence))
        if tenancy is None or tenancy.phase is Phase.ENDED:
            return []
        self._learn(tenancy, result)
        done = tenancy.done(result, self._clock.wall_ms(now), self._identity.sign)
        return [
            self._tell(tenancy, "ended", result.detail or result.status),
            *self._end(tenancy, done, now),
        ]

    def run_lost(self, task: TaskId, fence: int, reason: str, now: float) -> list[Action]:
        """It cannot go on, and that is our fault: claim nothing."""
        tenancy = self._tenancies.get((task, fence))
        if tenancy is None or tenancy.phase is Phase.ENDED:
            return []
        return [
            self._tell(tenancy, "lost", reason),
            *self._end(tenancy, tenancy.lost(reason, self._identity.sign), now),
        ]

    # --- time -----------------------------------------------------------------------------------

    def hold_ends(self, task: TaskId, round_: int) -> list[Action]:
        hold = self._holds.get(task)
        if hold and hold.ask.round == round_:
            self._drop_hold(task)
            self.lapsed += 1
        return []

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
            self._tell(tenancy, "fenced", "the lease ran out unrenewed; paused"),
            WakeAt(tenancy.orphan_at, Woken("orphan", task, fence)),
        ]

    def orphan_due(self, task: TaskId, fence: int, now: float) -> list[Action]:
        """The grantor is taken for dead: finish, and keep the result for whoever may accept it."""
        tenancy = self._tenancies.get((task, fence))
        if tenancy is None or tenancy.phase is not Phase.PAUSED or now < tenancy.orphan_at:
            return []
        tenancy.phase = Phase.RUNNING
        return [
            ContinueRun(task, fence),
            self._tell(tenancy, "orphaned", "the grantor is silent; finishing without it"),
        ]

    def answer_due(self, task: TaskId, fence: int, now: float) -> list[Action]:
        tenancy = self._tenancies.get((task, fence))
        if tenancy is None or tenancy.answer is None or now < tenancy.resend_at:
            return []
        return self._send_answer(tenancy, now)

    # --- supporting -----------------------------------------------------------------------------

    def _why_not(self, peer: PeerId, ask: Ask) -> str:
        held = self._holds.get(ask.task)
        if held and held.buyer != peer:
            return "held for another buyer of the same task"
        if held and held.ask.round > ask.round:
            return "a later round of this task is already held"
        if any(task == ask.task for task, _ in self._tenancies):
            return "this node still answers for an earlier run of this task"
        if len(self._holds) >= self._policy.holds_max and not held:
            return "too many open bids"
        if len(self._tenancies) + len(self._holds) >= self._policy.tenancies_max:
            return "too many unsettled tasks"
        return ""

    def _make_room(self) -> list[Action]:
        """A full table forgets the answer that its buyer has ignored longest: work for nothing."""
        if len(self._tenancies) + len(self._holds) < self._policy.tenancies_max:
            return []
        for tenancy in self._tenancies.values():
            if tenancy.phase is Phase.ENDED and tenancy.resends >= _PATIENCE:
                self.unanswered += 1
                return [self._tell(tenancy, "unpaid", "its buyer is gone"), *self._forget(tenancy)]
        return []

    def _check_award(self, peer: PeerId, award: Award) -> tuple[Entry, Terms]:
        entry = _decode_entry(award.entry)
        try:
            body = check_entry(entry, self._identity.verify)
            terms = Terms.decode(body.terms)
        except BadEntry as error:
            raise PeerError(f"a bad award: {error}") from None
        named = (body.net, body.kind, body.author, body.peer, terms.nonce, terms.fence)
        ours = (self._net, Kind.ALLOC, peer, self._identity.peer, award.task, award.fence)
        if named != ours:
            raise PeerError("an award for something else")
        return entry, terms

    def _decline(
        self, peer: PeerId, award: Award, entry: Entry, terms: Terms, reason: str
    ) -> Action:
        data = void_terms(terms, EntryId(entry.id)).encode()
        signature = self._identity.sign(terms_message(data))
        return Send(peer, Declined(award.task, award.fence, reason, data, signature))

    def _drop_hold(self, task: TaskId) -> None:
        del self._holds[task]
        self.pool.release(task)

    def _of(self, peer: PeerId, task: TaskId, fence: int) -> Tenancy | None:
        tenancy = self._tenancies.get((task, fence))
        return tenancy if tenancy and tenancy.buyer == peer else None

    def _renew_timers(self, tenancy: Tenancy, now: float) -> list[Action]:
        return [
            WakeAt(now + tenancy.ttl_ms / 3000, Woken("renew", tenancy.task, tenancy.fence)),
            WakeAt(tenancy.expires_at, Woken("expire", tenancy.task, tenancy.fence)),
        ]

    def _end(self, tenancy: Tenancy, answer: Done | Lost, now: float) -> list[Action]:
        """Free the capacity and answer, durably, until the account is closed."""
        tenancy.phase = Phase.ENDED
        tenancy.answer = answer
        tenancy.resends = 0
        if isinstance(answer, Lost):
            tenancy.is_held = False
        self.pool.release(tenancy.task)
        return [tenancy.record(), *self._send_answer(tenancy, now)]

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
        if result.run_ms >= 1_000 and result.fuel > 0:
            seen = result.fuel // result.run_ms
            self.shop = evolve(self.shop, speed=max(1, (3 * self.shop.speed + seen) // 4))

    def _tell(self, tenancy: Tenancy, what: str, reason: str) -> Notify:
        return Notify(Hosted(tenancy.task, tenancy.fence, tenancy.buyer, what, reason))


def _decode_entry(data: bytes) -> Entry:
    try:
        return Entry.decode(data)
    except BadEntry as error:
        raise PeerError(f"a bad entry: {error}") from None
