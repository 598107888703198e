"""Bidding: what a seller takes for a task, and what it dares to promise. Pure.

Price: the owner's floor, raised by up to half as the node fills, never above what the buyer would
pay and never below the floor. Promise: the task's fuel over the node's measured speed, as
quantiles; P(on time) from them, lowered by the forecast as a price of risk (forecast.md):
P falls by s x harm, s being how far the owner's upper quantile would cut into the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from attrs import evolve, frozen

from ledger.model import INPUTS_MAX, MIGRATIONS_MAX
from mesh.errors import PeerError
from mesh.ids import Cid
from mesh.messages import Ask, Outlook, Quantiles, Result, Work
from mesh.resources.capacity import Capacity
from mesh.runtime.manifest import FUEL_MAX, WALL_MS_MAX

_HARM = 0.35
"""Of being squeezed where there is no checkpoint to fall back on."""
_START_MS = 250
"""From award to the first instruction: connect, fetch, compile."""
TTL_MS_MIN = 1_000
"""A shorter lease would be nothing but renewals."""
_TTL_MS_MAX = 3_600_000
_DEADLINE_MS_MAX = 10 * 366 * 86_400_000
_FUEL_SHARES = (0.3, 0.6, 1.0)
"""Buyers name a limit; tasks burn less. Shares of the limit at the 10, 50 and 90 % quantiles."""


@frozen
class Shop:
    """What the owner decided to sell, and how this node was measured."""

    machine: Capacity
    """All that the machine has."""
    sold: Capacity
    """What of it the owner sells."""
    price: int
    """The floor, µcr per 10^9 fuel."""
    speed: int
    """Fuel per millisecond and core."""
    features: tuple[str, ...]
    agent: str


@frozen
class Quote:
    """A price and a promise for one ask."""

    price: int
    """µcr per 10^9 fuel."""
    finish_ms: Quantiles
    p_on_time: int
    reason: str


@frozen
class NoQuote:
    """A refusal; *may_change* when it is only for lack of room now."""

    reason: str
    may_change: bool = False


def learned(shop: Shop, result: Result) -> Shop:
    """A shop whose speed a long run has corrected."""
    if result.run_ms < 1_000 or result.fuel == 0:
        return shop
    return evolve(shop, speed=max(1, (3 * shop.speed + result.fuel // result.run_ms) // 4))


def check_ask(ask: Ask) -> None:
    """That the numbers of an ask fit into terms and timers. Raises PeerError."""
    if not TTL_MS_MIN <= ask.ttl_ms <= _TTL_MS_MAX:
        raise PeerError("an ask for a lease of absurd length")
    if ask.deadline_ms > _DEADLINE_MS_MAX or ask.work.wall_ms > WALL_MS_MAX:
        raise PeerError("an ask with no end")
    if ask.work.fuel > FUEL_MAX or ask.fee > ask.max_price or len(ask.work.inputs) > INPUTS_MAX:
        raise PeerError("an ask with absurd numbers")
    check_moves(ask.work)
    if min(ask.work.needs.slots, ask.work.needs.cpu_milli) < 1:
        raise PeerError("an ask to run on nothing")


def check_moves(work: Work) -> None:
    """That a task said to have moved can have. Raises PeerError."""
    steps = [move.fuel for move in work.moves]
    if len(steps) > MIGRATIONS_MAX or steps != sorted(steps):
        raise PeerError("an ask for a task with an absurd past")
    if steps and steps[-1] + work.fuel > FUEL_MAX:
        raise PeerError("an ask with absurd numbers")


def quote(
    ask: Ask, shop: Shop, *, free: Capacity, outlook: Sequence[Outlook], cached: frozenset[Cid]
) -> Quote | NoQuote:
    """The bid for *ask* with *free* capacity left, or the reason for refusing."""
    missing = [feature for feature in ask.work.features if feature not in shop.features]
    if missing:
        return NoQuote(f"this node has no {missing[0]}")
    short = ask.work.needs.shortage_in(free)
    if short:
        is_busy = ask.work.needs.fits_in(shop.sold)
        return NoQuote(f"too little {short} {'free' if is_busy else 'for sale'}", is_busy)
    room = ask.max_price - ask.fee
    floor = bill(shop.price, ask.work.fuel)
    if room < floor:
        return NoQuote(f"price: the floor is {floor + ask.fee} µcr, your ceiling {ask.max_price}")
    price, why = _price(ask, shop, free)
    finish = _finish(ask, shop, is_cached=ask.work.module in cached)
    risk = _shortfall(ask, shop, outlook, finish.q90)
    p_on_time = int(1000 * _p_within(finish, ask.deadline_ms) * (1 - _HARM * risk))
    if p_on_time == 0:
        return NoQuote(f"would take {finish.q50} ms of the {ask.deadline_ms} ms left")
    if risk > 0:
        why += f", the owner may need {risk:.0%} of it"
    return Quote(price, finish, p_on_time, why)


def bill(price: int, fuel: int) -> int:
    """µcr for *fuel* at *price* per 10^9, rounded down: the auditor's formula without the fee."""
    return price * fuel // 10**9


def _price(ask: Ask, shop: Shop, free: Capacity) -> tuple[int, str]:
    busy = 1000 - 1000 * free.cpu_milli // max(1, shop.sold.cpu_milli)
    asking = shop.price + shop.price * busy // 2000
    room = ask.max_price - ask.fee
    if bill(asking, ask.work.fuel) <= room:
        return asking, "idle: the floor price" if busy <= 0 else f"{busy / 10:.0f} % sold"
    affordable = max(shop.price, room * 10**9 // max(1, ask.work.fuel))
    return affordable, "lowered to your ceiling"


def _finish(ask: Ask, shop: Shop, *, is_cached: bool) -> Quantiles:
    """Quantiles of the finish, ms from now."""
    cores = min(1000, max(1, ask.work.needs.cpu_milli)) / 1000
    longest = min(ask.work.fuel / (shop.speed * cores), float(ask.work.wall_ms))
    start = _START_MS // 2 if is_cached else _START_MS
    q10, q50, q90 = (start + int(longest * share) for share in _FUEL_SHARES)
    return Quantiles(q10, q50, q90)


def _p_within(finish: Quantiles, deadline_ms: int) -> float:
    """P(finish <= deadline) by straight lines through the quantiles and their continuation."""
    points = (
        (max(0.0, finish.q10 - (finish.q50 - finish.q10) / 4), 0.0),
        (float(finish.q10), 0.1),
        (float(finish.q50), 0.5),
        (float(finish.q90), 0.9),
        (finish.q90 + (finish.q90 - finish.q50) / 4 + 1, 1.0),
    )
    if deadline_ms <= points[0][0]:
        return 0.0
    for (low, p_low), (high, p_high) in pairwise(points):
        if deadline_ms < high:
            return p_low + (p_high - p_low) * (deadline_ms - low) / max(1e-9, high - low)
    return 1.0


def _shortfall(ask: Ask, shop: Shop, outlook: Sequence[Outlook], horizon_ms: int) -> float:
    """The share of the task's needs that the owner's 90 % load would take, at worst, 0 to 1."""
    owner = shop.machine.minus(shop.sold)
    worst = 0.0
    for step in outlook:
        cpu = (step.cpu_milli.q90 - owner.cpu_milli) / max(1, shop.sold.cpu_milli)
        memory = (step.memory.q90 - owner.memory) / max(1, shop.sold.memory)
        worst = max(worst, cpu, memory)
        if step.ahead_ms >= horizon_ms:
            break
    return min(1.0, max(0.0, worst))
