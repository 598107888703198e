"""A tenancy as a value with its papers: what an executor knows of one task it hosts. Pure."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from attrs import Factory, define, evolve, frozen

from ledger.keys import terms_message
from ledger.model import Entry, Terms
from mesh import codec
from mesh.ids import Cid, EntryId, PeerId, TaskId
from mesh.market.terms import (
    CANCELLED,
    EMPTY_DIR,
    EMPTY_FILE,
    MOVED,
    settle_terms,
    void_terms,
)
from mesh.messages import Ask, Bid, Done, Lost, Result, Slice, Work
from mesh.sansio import PersistTenancy

Sign = Callable[[bytes], bytes]


@frozen
class Clock:
    """Monotonic seconds to wall-clock milliseconds, for the claims that receipts carry."""

    epoch_ms: int

    def wall_ms(self, now: float) -> int:
        return self.epoch_ms + int(now * 1000)


@frozen
class Hold:
    """Capacity kept for a bid."""

    buyer: PeerId
    ask: Ask
    bid: Bid
    reserve: int
    """µcr that an award of it would reserve with us."""
    sent_at: float
    ends_at: float


class Phase(Enum):
    """What the run of a tenancy is doing."""

    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"


@define
class Tenancy:
    """A task that this node hosts, or still answers for."""

    task: TaskId
    fence: int
    buyer: PeerId
    alloc: Entry
    terms: Terms
    """Of the ALLOC: what we signed as our bid."""
    work: Work | None
    """None after a restart: nothing runs then, only the answer is outstanding."""
    ttl_ms: int
    expires_at: float
    is_held: bool
    phase: Phase
    orphan_at: float = 0.0
    """While paused: when the grantor is taken for dead."""
    fuel: int = 0
    seq: int = 0
    asked: dict[int, float] = Factory(dict)
    """When each unanswered Renew was sent."""
    signed_fuel: int = 0
    """What of it the buyer has signed for."""
    slice: Slice | None = None
    """What it was asked to sign for and has not yet."""
    is_unsigned: bool = False
    """Stopped: it burnt a whole slice that its buyer has not signed for."""
    saved_fuel: int = 0
    """Of the last state of it that was kept."""
    is_saving: bool = False
    """Its state is being kept, and it goes on."""
    save_at: float = 0.0
    leaving: str = ""
    """Why it is being taken out."""
    leave_tries: int = 0
    """How often that could not be done yet."""
    is_fixed: bool = False
    """It cannot be moved."""
    claim_at: float = 0.0
    """When we claim on our own word what is still unsigned by then."""
    is_claimed: bool = False
    answer: Done | Lost | None = None
    resends: int = 0
    resend_at: float = 0.0

    @property
    def alloc_id(self) -> EntryId:
        return EntryId(self.alloc.id)

    @property
    def may_run(self) -> bool:
        """Whether neither the lease nor the buyer's signature is wanting."""
        return self.phase is Phase.RUNNING and not self.is_unsigned

    def done(self, result: Result, wall_ms: int, sign: Sign) -> Done:
        """The bill for a run that ended."""
        result = evolve(result, fuel=min(result.fuel, self.terms.fuel))
        data = settle_terms(self.terms, self.alloc_id, result, wall_ms).encode()
        return Done(self.task, self.fence, result, data, sign(terms_message(data)))

    def cancelled(self, reason: str, wall_ms: int, sign: Sign) -> Done:
        """The bill for what was burnt before the buyer took the task back."""
        result = Result(
            status=CANCELLED,
            exit_code=0,
            detail=reason,
            fuel=self.answer.result.fuel if isinstance(self.answer, Done) else self.fuel,
            run_ms=0,
            output=EMPTY_DIR,
            stdout=EMPTY_FILE,
            stderr=EMPTY_FILE,
        )
        return self.done(result, wall_ms, sign)

    def given_back(
        self, state: Cid, fuel: int, run_ms: int, reason: str, wall_ms: int, sign: Sign
    ) -> Done:
        """The bill up to *state*, for whoever goes on from there."""
        result = Result(
            status=MOVED,
            exit_code=0,
            detail=reason,
            fuel=fuel,
            run_ms=run_ms,
            output=state,
            stdout=EMPTY_FILE,
            stderr=EMPTY_FILE,
        )
        return self.done(result, wall_ms, sign)

    def lost(self, reason: str, sign: Sign) -> Lost:
        """Claiming nothing."""
        data = void_terms(self.terms, self.alloc_id).encode()
        return Lost(self.task, self.fence, reason, data, sign(terms_message(data)))

    def record(self) -> PersistTenancy:
        """What a restart must find."""
        return PersistTenancy(
            task=self.task,
            fence=self.fence,
            buyer=self.buyer,
            alloc=self.alloc.encode(),
            answer=codec.encode(self.answer) if self.answer else b"",
        )


def restored(record: PersistTenancy, ttl_ms: int, sign: Sign) -> Tenancy:
    """The tenancy of *record* after a restart: its run is gone, its answer is not."""
    alloc = Entry.decode(record.alloc)
    tenancy = Tenancy(
        task=record.task,
        fence=record.fence,
        buyer=record.buyer,
        alloc=alloc,
        terms=Terms.decode(alloc.content.terms),
        work=None,
        ttl_ms=ttl_ms,
        expires_at=0.0,
        is_held=False,
        phase=Phase.ENDED,
    )
    answer = codec.decode(record.answer) if record.answer else None
    assert answer is None or isinstance(answer, Done | Lost)
    tenancy.answer = answer or tenancy.lost("the node restarted", sign)
    return tenancy
