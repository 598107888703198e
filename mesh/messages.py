"""What nodes say to one another: frozen values and the closed union `Message`.

Durations are in milliseconds and count from the moment a message is sent or received; a timestamp
never crosses the wire. Money is integer micro-credits (µcr), work is fuel of the named meter.
The bytes are in codec.py; the rules are in market/.
"""

from __future__ import annotations

from typing import TypeAlias

from attrs import frozen

from mesh.ids import Cid, PeerId, TaskId
from mesh.resources.capacity import Capacity


@frozen
class Quantiles:
    """A forecast of one quantity: the 10, 50 and 90 % quantiles, in the quantity's unit."""

    q10: int
    q50: int
    q90: int


@frozen
class Outlook:
    """The owner's own load as forecast *ahead_ms* from now: thousandths of a core, bytes."""

    ahead_ms: int
    cpu_milli: Quantiles
    memory: Quantiles


@frozen
class Offer:
    """What a node has for sale now; gossiped, signed, and its heartbeat."""

    peer: PeerId
    epoch: int
    """Rises with every start of the node: a restarted node's offers supersede its old ones."""
    seq: int
    """Rises with every offer of one epoch."""
    sold: Capacity
    """What the owner sells altogether."""
    free: Capacity
    """What of it is neither reserved nor needed by the owner now."""
    outlook: tuple[Outlook, ...]
    price: int
    """Asking price, µcr per 10^9 units of fuel."""
    speed: int
    """Fuel per millisecond that one core of this node was measured to run."""
    features: tuple[str, ...]
    cached: tuple[bytes, ...]
    """The last four bytes of the CIDs of modules it holds, at most 64."""
    agent: str


@frozen
class SignedOffer:
    """The encoded offer and its author's signature over it (codec.offer_message)."""

    offer: bytes
    signature: bytes


@frozen
class Move:
    """A step of a task from one executor to the next: up to here *source* ran it."""

    fuel: int
    """Burnt up to here, by all executors together."""
    source: PeerId
    state: Cid
    """What the task was at that moment (migration/snapshot.py), as a file of blocks."""


@frozen
class Work:
    """What an executor must know of a task to price and run it."""

    job: Cid
    """The manifest block (runtime/manifest.py): everything that a re-run needs."""
    module: Cid
    inputs: tuple[Cid, ...]
    needs: Capacity
    fuel: int
    """The most fuel it may still burn: what the job allows, less what was burnt before."""
    wall_ms: int
    """The longest it may run with one executor."""
    features: tuple[str, ...]
    moves: tuple[Move, ...] = ()
    """The newest of them, in order; the run goes on from the state of the last."""


@frozen
class Ask:
    """Auctioneer to candidate: what would you take for this?"""

    task: TaskId
    round: int
    """Counts the auctions of a task; every award of round r carries fence r."""
    work: Work
    priority: int
    deadline_ms: int
    """Time left until the buyer's deadline."""
    fee: int
    """Paid on top, on success."""
    max_price: int
    """The ceiling of the whole bill, fee included."""
    ttl_ms: int
    """The lease's time to live, should you win."""
    window_ms: int
    """How long the auctioneer waits for bids."""


@frozen
class Bid:
    """A sealed bid: seller-signed terms (ledger.model.Terms), and what is promised beside them."""

    task: TaskId
    round: int
    terms: bytes
    signature: bytes
    finish_ms: Quantiles
    """When the task would be finished, from now."""
    p_on_time: int
    """Probability of finishing by the deadline, in thousandths."""
    cached: int
    """How many of {module, inputs} are already here."""
    hold_ms: int
    """How long the capacity is held, from the sending of this bid."""
    reason: str
    """Why this price and this promise, for people."""


@frozen
class Refusal:
    """A candidate's normal "no", with its reason."""

    task: TaskId
    round: int
    reason: str
    may_change: bool
    """Whether it was for lack of room now: a later offer may make it a bid."""


@frozen
class Award:
    """The buyer's closed ALLOC entry: the signature in it is the award."""

    task: TaskId
    fence: int
    entry: bytes
    """ledger.model.Entry, encoded; embeds the seller's signed terms."""
    ttl_ms: int
    certificate: bytes = b""
    """ledger.quorum.Certificate of the entry, encoded, where the seller asks for one (T2)."""


@frozen
class Accepted:
    """The winner holds the lease of *fence* and starts."""

    task: TaskId
    fence: int


@frozen
class Declined:
    """The winner will not run it (its hold has gone); signed VOID terms free the buyer's money."""

    task: TaskId
    fence: int
    reason: str
    void_terms: bytes
    signature: bytes


@frozen
class Release:
    """To a loser: your hold is free, and why you lost."""

    task: TaskId
    round: int
    reason: str


@frozen
class Renew:
    """Lease holder to grantor: still here, this far. *seq* names the question for its answer."""

    task: TaskId
    fence: int
    seq: int
    fuel: int


@frozen
class Renewed:
    """Grantor to holder: the lease runs *ttl_ms* from the moment you sent Renew *seq*."""

    task: TaskId
    fence: int
    seq: int
    ttl_ms: int


@frozen
class Slice:
    """Holder to grantor: this much was burnt so far; sign for it (USE terms, signed by the seller).

    A run goes on only so far beyond what its buyer has signed for.
    """

    task: TaskId
    fence: int
    terms: bytes
    signature: bytes


@frozen
class Sliced:
    """Grantor to holder: signed; the USE entry."""

    task: TaskId
    fence: int
    entry: bytes


@frozen
class Revoked:
    """Grantor to holder: you hold nothing (any more); stop."""

    task: TaskId
    fence: int
    reason: str
    is_owed: bool
    """Whether the fuel burnt so far will be paid: answer with Done, else with Lost."""


@frozen
class Result:
    """What a run left behind."""

    status: str
    """One of runtime.manifest.STATUSES: "exited", "out-of-fuel", "out-of-memory", …; or
    "cancelled", or "moved": taken out alive, *output* is the state it is in."""
    exit_code: int
    detail: str
    fuel: int
    """Burnt with this executor."""
    run_ms: int
    output: Cid
    """UnixFS directory of /out."""
    stdout: Cid
    stderr: Cid


@frozen
class Done:
    """Executor to auctioneer: it ran to its end; the SETTLE terms, signed by the seller."""

    task: TaskId
    fence: int
    result: Result
    terms: bytes
    signature: bytes


@frozen
class Saved:
    """Executor to auctioneer: a state of a run that goes on, and its bill up to there.

    Both are good for the case that the executor is lost: then it is paid so far, and the next one
    goes on from here.
    """

    task: TaskId
    fence: int
    result: Result
    """Of status "moved"."""
    terms: bytes
    signature: bytes


@frozen
class Handover:
    """Auctioneer to executor: give the task back as it is, for another to go on with."""

    task: TaskId
    fence: int
    reason: str


@frozen
class Keep:
    """Auctioneer to one who bid for a task that runs elsewhere: have this state of it ready."""

    task: TaskId
    state: Cid
    bytes_max: int
    """More than the state can have."""


@frozen
class Stays:
    """Executor to auctioneer: it cannot be given back; it runs on."""

    task: TaskId
    fence: int
    reason: str


@frozen
class Lost:
    """Executor to auctioneer: by no fault of the task I cannot go on; VOID terms, signed."""

    task: TaskId
    fence: int
    reason: str
    void_terms: bytes
    signature: bytes


@frozen
class Settled:
    """Auctioneer to executor: your account of the task is closed by this SETTLE or VOID entry."""

    task: TaskId
    fence: int
    entry: bytes


Message: TypeAlias = (
    Ask
    | Bid
    | Refusal
    | Award
    | Accepted
    | Declined
    | Release
    | Renew
    | Renewed
    | Revoked
    | Done
    | Lost
    | Settled
    | Slice
    | Sliced
    | Saved
    | Handover
    | Stays
    | Keep
)
"""Everything that may arrive from a peer on the message stream."""
