"""Terms: what seller and buyer sign, made from what was asked and from what was run. Pure.

The bytes are the ledger's (ledger/model.py). A seller signs ALLOC terms as its bid, SETTLE terms
when the run has ended, VOID terms when it cannot or may not go on; the buyer closes each on its
own chain. What a peer signs is compared field by field with what it should have signed.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve

from ledger.errors import BadEntry
from ledger.keys import Verify, terms_message
from ledger.model import MIGRATIONS_MAX, Migration, Terms, accrued, amount_of, reserve_of
from mesh.errors import PeerError
from mesh.ids import DAG_PB, RAW, EntryId, PeerId, cid_of
from mesh.messages import Ask, Bid, Move, Result
from mesh.runtime.manifest import METER, STATUSES, exit_status

UNIT = "uC/Gfuel"
EMPTY_FILE = cid_of(RAW, b"")
EMPTY_DIR_BLOCK = b"\x0a\x02\x08\x01"
EMPTY_DIR = cid_of(DAG_PB, EMPTY_DIR_BLOCK)
CANCELLED = "cancelled"
"""The status of a run that its buyer took back; beside runtime.manifest.STATUSES."""
CANCELLED_EXIT = 254
MOVED = "moved"
"""The status of a run that was taken out alive, for another executor to go on with."""
MOVED_EXIT = 253
VOID_EXIT = 255
"""The exit of terms under which nothing ran to an end."""


def alloc_terms(
    ask: Ask, *, seller: PeerId, buyer: PeerId, price: int, wall_ms: int, grace_ms: int
) -> Terms:
    """What a bidder signs: *price* µcr per 10^9 fuel, at most `reserve` altogether."""
    return Terms(
        nonce=ask.task,
        fence=ask.round,
        seller=seller,
        buyer=buyer,
        job=ask.work.job,
        module=ask.work.module,
        inputs=ask.work.inputs,
        outputs=(),
        meter=METER,
        unit=UNIT,
        price=price,
        fee=ask.fee,
        reserve=reserve_of(price, ask.work.fuel, ask.fee),
        fuel=ask.work.fuel,
        amount=0,
        exit=0,
        escalations=(),
        migrations=migrations_of(ask.work.moves, seller),
        start_ms=wall_ms,
        end_ms=wall_ms,
        deadline_ms=wall_ms + ask.deadline_ms,
        grace_ms=grace_ms,
        arbiter=b"",
        ref=b"",
    )


def migrations_of(moves: Sequence[Move], seller: PeerId) -> tuple[Migration, ...]:
    """The moves that brought a task to *seller*, as receipts have them."""
    targets = [*[move.source for move in moves[1:]], seller]
    steps = [
        (move.fuel, bytes(move.source), bytes(target), bytes(move.state))
        for move, target in zip(moves, targets, strict=False)
    ]
    return tuple(steps[-MIGRATIONS_MAX:])


def settle_terms(alloc: Terms, alloc_id: EntryId, result: Result, wall_ms: int) -> Terms:
    """What the seller signs when the run has ended."""
    terms = evolve(
        alloc,
        outputs=(result.output, result.stdout, result.stderr),
        fuel=min(result.fuel, alloc.fuel),
        exit=_exit(result),
        end_ms=max(wall_ms, alloc.start_ms),
        ref=alloc_id,
    )
    return evolve(terms, amount=amount_of(terms))


def use_terms(alloc: Terms, alloc_id: EntryId, fuel: int, wall_ms: int) -> Terms:
    """What the seller signs on the way: so much was burnt so far."""
    terms = evolve(
        alloc, fuel=min(fuel, alloc.fuel), end_ms=max(wall_ms, alloc.start_ms), ref=alloc_id
    )
    return evolve(terms, amount=accrued(terms))


def void_terms(alloc: Terms, alloc_id: EntryId) -> Terms:
    """What the seller signs to claim nothing: the buyer's reserve is free again."""
    return evolve(alloc, fuel=0, amount=0, exit=VOID_EXIT, ref=alloc_id)


def check_bid(bid: Bid, ask: Ask, *, seller: PeerId, buyer: PeerId, verify: Verify) -> Terms:
    """The terms of a bid, if they answer *ask* and its promise is one. Raises PeerError."""
    terms = _decode(bid.terms)
    expected = alloc_terms(
        ask,
        seller=seller,
        buyer=buyer,
        price=terms.price,
        wall_ms=terms.start_ms,
        grace_ms=terms.grace_ms,
    )
    if terms != expected:
        raise PeerError("a bid whose terms are not those of the ask")
    if terms.reserve > ask.max_price:
        raise PeerError("a bid above the ceiling")
    if not verify(seller, terms_message(bid.terms), bid.signature):
        raise PeerError("a bid with a bad signature")
    finish = bid.finish_ms
    if bid.p_on_time > 1000 or not finish.q10 <= finish.q50 <= finish.q90:
        raise PeerError("a promise that is no probability")
    return terms


def check_settle(data: bytes, alloc: Terms, alloc_id: EntryId, result: Result) -> Terms:
    """SETTLE terms, if they follow from the ALLOC and the result. Raises PeerError."""
    if result.status not in (*STATUSES, CANCELLED, MOVED):
        raise PeerError("a result of unknown status")
    terms = _decode(data)
    if terms != evolve(settle_terms(alloc, alloc_id, result, 0), end_ms=terms.end_ms):
        raise PeerError("settle terms that do not follow from the award and the result")
    if result.fuel > alloc.fuel:
        raise PeerError("more fuel than was allowed")
    return terms


def check_use(data: bytes, alloc: Terms, alloc_id: EntryId) -> Terms:
    """USE terms of the ALLOC. Raises PeerError."""
    terms = _decode(data)
    expected = use_terms(alloc, alloc_id, terms.fuel, terms.end_ms)
    if terms != evolve(expected, end_ms=terms.end_ms):
        raise PeerError("use terms that do not follow from the award")
    return terms


def check_void(data: bytes, alloc: Terms, alloc_id: EntryId) -> Terms:
    """VOID terms of the ALLOC. Raises PeerError."""
    terms = _decode(data)
    if terms != void_terms(alloc, alloc_id):
        raise PeerError("void terms that are not those of the award")
    return terms


def _exit(result: Result) -> int:
    if result.status in (CANCELLED, MOVED):
        return CANCELLED_EXIT if result.status == CANCELLED else MOVED_EXIT
    return exit_status(result.status, result.exit_code)


def _decode(data: bytes) -> Terms:
    try:
        return Terms.decode(data)
    except BadEntry as error:
        raise PeerError(f"bad terms: {error}") from None
