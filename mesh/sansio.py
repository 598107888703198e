"""What a core is: events in, actions out.

A core never waits, reads a clock, draws global randomness, or touches a socket, file, thread or
logger. Time is an argument (monotonic seconds, origin arbitrary); long work is an action that ends
in an event. A shell performs the actions *in order*, and has made every `Persist` durable before
any later `Send`. Timers are emitted and never cancelled: a core ignores a wake-up whose subject
has moved on.

Two shells run the same kernel: mesh/driver.py under trio, mesh/sim under virtual time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from attrs import frozen

from mesh.ids import Cid, EntryId, PeerId, TaskId
from mesh.market.order import Order, TaskRecord
from mesh.messages import Message, Result, SignedOffer, Work
from mesh.notices import Notice


@frozen
class Identity:
    """Who a core is. Ed25519 is deterministic, so signing is an argument and not an effect."""

    peer: PeerId
    sign: Callable[[bytes], bytes]
    """message -> signature of 64 bytes."""
    verify: Callable[[bytes, bytes, bytes], bool]
    """(key, message, signature) -> good?"""


# --- events -----------------------------------------------------------------------------------


@frozen
class Started:
    """The shell is up: open for business. Always the first event, exactly once."""


@frozen
class Received:
    """A message from *peer*, whom the transport has authenticated."""

    peer: PeerId
    message: Message


@frozen
class OfferReceived:
    """A gossiped offer; nothing in it has been verified yet."""

    signed: SignedOffer


@frozen
class Submitted:
    """A client of this node bids for compute. Submitting a known task again changes nothing."""

    order: Order


@frozen
class CancelRequested:
    """A client of this node takes its task back."""

    task: TaskId


@frozen
class LoadSampled:
    """The owner's own load, the mesh's tasks subtracted: thousandths of a core, bytes of RAM."""

    cpu_milli: int
    memory: int


@frozen
class RunProgressed:
    """A run of ours has burnt *fuel* so far."""

    task: TaskId
    fence: int
    fuel: int


@frozen
class RunEnded:
    """A run of ours came to an end by the task's own doing."""

    task: TaskId
    fence: int
    result: Result


@frozen
class RunLost:
    """A run of ours could not go on by no fault of the task (inputs unreachable, worker killed)."""

    task: TaskId
    fence: int
    reason: str


@frozen
class Checkpointed:
    """A run of ours was kept as *state*, *fuel* after we began it, and goes on."""

    task: TaskId
    fence: int
    state: Cid
    fuel: int


@frozen
class Suspended:
    """A run of ours was taken out as *state*, *fuel* after we began it; here it is over."""

    task: TaskId
    fence: int
    state: Cid
    fuel: int
    run_ms: int


@frozen
class Unmoved:
    """A run of ours could not be kept or taken out; it goes on."""

    task: TaskId
    fence: int
    reason: str
    is_for_good: bool
    """Whether asking again is no use: of its module, not of the moment."""


@frozen
class Collected:
    """What a Collect asked for is here, whole and verified; or, with a *reason*, is not."""

    task: TaskId
    fence: int
    root: Cid
    """The first that was asked for."""
    reason: str


@frozen
class MoveRequested:
    """A client of this node wants its running task elsewhere: at *to*, if that will have it."""

    task: TaskId
    to: PeerId | None


@frozen
class DrainSet:
    """Our owner wants this node empty, or open again: no new work, and what runs is moved."""

    is_on: bool


@frozen
class ChainConfirmed:
    """Peers were asked where our own chain ends; until then we sign nothing on it."""

    lost: tuple[bytes, ...]
    """Entries of ours that others held and our disk did not, encoded, in chain order; durable."""


@frozen
class Certified:
    """What a Certify asked for is here; or, with a *reason*, is not."""

    task: TaskId
    fence: int
    alloc: EntryId
    """Of which entry: winners of one round share its fence."""
    certificate: bytes
    """ledger.quorum.Certificate, encoded."""
    reason: str


@frozen
class Learned:
    """What replication brought: new, checked and durable entries of others that concern us."""

    entries: tuple[bytes, ...]
    """Encoded: those that name us as a party, and KEYOPs."""
    forked: tuple[PeerId, ...]
    """Authors of whom a fork is now proven."""


@frozen
class LineSet:
    """Our owner lets *buyer* owe and reserve up to *limit* µcr with us."""

    buyer: PeerId
    limit: int


Timer: TypeAlias = Literal[
    "window",
    "award",
    "lease",
    "ask",
    "deadline",
    "hold",
    "renew",
    "expire",
    "orphan",
    "answer",
    "claim",
    "save",
    "keep",
    "accounts",
    "offer",
]


@frozen
class Woken:
    """A timer that some core asked for. *subject* and *mark* say whose and which."""

    timer: Timer
    subject: TaskId | None
    mark: int


Event: TypeAlias = (
    Started
    | Received
    | OfferReceived
    | Submitted
    | CancelRequested
    | LoadSampled
    | RunProgressed
    | RunEnded
    | RunLost
    | Checkpointed
    | Suspended
    | Unmoved
    | Collected
    | MoveRequested
    | DrainSet
    | Certified
    | ChainConfirmed
    | Learned
    | LineSet
    | Woken
)

# --- actions ----------------------------------------------------------------------------------


@frozen
class Send:
    """Put *message* in the bounded outbox of *peer*. May be lost, delayed or repeated."""

    peer: PeerId
    message: Message


@frozen
class Gossip:
    """Publish this node's offer to everybody."""

    signed: SignedOffer


@frozen
class PersistTask:
    """Make the auctioneer's record of a task durable."""

    record: TaskRecord


@frozen
class PersistTenancy:
    """Make durable that we host a task for *buyer*."""

    task: TaskId
    fence: int
    buyer: PeerId
    alloc: bytes
    """The encoded ALLOC entry: the proof that we were asked to."""
    answer: bytes
    """The encoded Done or Lost that still waits for its Settled, or nothing."""


@frozen
class ForgetTenancy:
    """The tenancy is closed; drop its durable record."""

    task: TaskId
    fence: int


@frozen
class AppendEntry:
    """Make a ledger entry durable: our own (chain order) or one that names us as the seller."""

    entry: bytes
    is_own: bool


@frozen
class Run:
    """Fetch the work from *buyer* and run it, from its last state on, if it has been moved.

    Ends in RunEnded, RunLost or Suspended, unless stopped.
    """

    task: TaskId
    fence: int
    buyer: PeerId
    work: Work


@frozen
class PauseRun:
    """Stop the clock of a run without losing its state."""

    task: TaskId
    fence: int


@frozen
class ContinueRun:
    """Undo PauseRun."""

    task: TaskId
    fence: int


@frozen
class StopRun:
    """Kill a run; nothing of it is wanted any more. No event follows."""

    task: TaskId
    fence: int


@frozen
class Checkpoint:
    """Keep a run as it is at its next check, and let it go on. Ends in Checkpointed or Unmoved,
    unless the run ends before or is stopped."""

    task: TaskId
    fence: int


@frozen
class Suspend:
    """Take a run out at its next check. Ends in Suspended or Unmoved, unless the run ends before
    or is stopped."""

    task: TaskId
    fence: int


@frozen
class Collect:
    """Fetch what a run left from its *executor*, and keep it. Ends in Collected."""

    task: TaskId
    fence: int
    executor: PeerId
    roots: tuple[Cid, ...]
    is_state: bool = False
    """Whether it is a state to go on from: it takes the place of the one before."""


@frozen
class KeepState:
    """Fetch a state from its auctioneer and keep it, in place of the last. Nothing follows."""

    task: TaskId
    buyer: PeerId
    state: Cid
    bytes_max: int


@frozen
class DropState:
    """A task's state need not be kept any longer."""

    task: TaskId
    buyer: PeerId


@frozen
class Certify:
    """Ask the witnesses to vote for our *entry*, the award of a task. Ends in Certified."""

    task: TaskId
    fence: int
    entry: bytes


@frozen
class Penalize:
    """A peer broke the protocol: its fault is counted against it."""

    peer: PeerId
    reason: str


@frozen
class Notify:
    """Tell whoever watches this node."""

    notice: Notice


@frozen
class WakeAt:
    """Deliver *event* back at *when* (monotonic seconds). Never cancelled."""

    when: float
    event: Woken


Action: TypeAlias = (
    Send
    | Gossip
    | PersistTask
    | PersistTenancy
    | ForgetTenancy
    | AppendEntry
    | Run
    | PauseRun
    | ContinueRun
    | StopRun
    | Checkpoint
    | Suspend
    | Collect
    | KeepState
    | DropState
    | Certify
    | Penalize
    | Notify
    | WakeAt
)
