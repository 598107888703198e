"""Bidding: never below the floor, never above the ceiling, no promise that the numbers break."""

from __future__ import annotations

import pytest
from attrs import evolve
from market_players import NEEDS, SHOP, WORK, G, ask

from mesh.ids import TaskId
from mesh.market.bidding import NoQuote, Quote, Shop, bill, quote
from mesh.messages import Ask, Outlook, Quantiles
from mesh.resources.capacity import Capacity

ASK = ask(TaskId(bytes(16)))
FLOOR = 10_000


def bid(
    asked: Ask = ASK,
    shop: Shop = SHOP,
    free: Capacity = SHOP.sold,
    outlook: tuple[Outlook, ...] = (),
    cached: bool = False,
) -> Quote:
    modules = frozenset({asked.work.module} if cached else ())
    answer = quote(asked, shop, free=free, outlook=outlook, cached=modules)
    assert isinstance(answer, Quote), answer
    return answer


def refusal(asked: Ask = ASK, shop: Shop = SHOP, free: Capacity = SHOP.sold) -> NoQuote:
    answer = quote(asked, shop, free=free, outlook=(), cached=frozenset())
    assert isinstance(answer, NoQuote), answer
    return answer


def load(cpu_milli: int, memory: int = 0, ahead_ms: int = 300_000) -> Outlook:
    return Outlook(ahead_ms, Quantiles(0, 0, cpu_milli), Quantiles(0, 0, memory))


# --- price ----------------------------------------------------------------------------------------


def test_an_idle_node_asks_its_floor() -> None:
    assert bid().price == SHOP.price
    assert bid().reason == "idle: the floor price"


def test_a_node_that_fills_asks_for_up_to_half_more() -> None:
    half = evolve(SHOP.sold, cpu_milli=1_000)
    assert bid(free=half).price == 1_250
    assert bid(evolve(ASK, work=evolve(WORK, needs=Capacity(slots=1))), free=Capacity(slots=1))
    prices = [
        bid(
            evolve(ASK, work=evolve(WORK, needs=Capacity(0, 0, 0, 1))),
            free=Capacity(free, G, G, 1),
        ).price
        for free in range(2_000, -1, -100)
    ]
    assert prices == sorted(prices)
    assert (prices[0], prices[-1]) == (1_000, 1_500)


def test_the_price_comes_down_to_the_ceiling_but_not_below_the_floor() -> None:
    half = evolve(SHOP.sold, cpu_milli=1_000)
    tight = evolve(ASK, max_price=FLOOR + 100 + 500)
    assert bid(tight, free=half).price == 1_050
    assert bid(tight, free=half).reason == "lowered to your ceiling"
    for ceiling in (FLOOR + 100, FLOOR + 101, FLOOR + 2_000, 10**9):
        answer = bid(evolve(ASK, max_price=ceiling), free=half)
        assert SHOP.price <= answer.price
        assert bill(answer.price, WORK.fuel) + ASK.fee <= ceiling


def test_a_ceiling_below_the_floor_is_refused_with_the_floor() -> None:
    answer = refusal(evolve(ASK, max_price=FLOOR + 99))
    assert answer.reason == "price: the floor is 10100 µcr, your ceiling 10099"
    assert not answer.may_change


def test_a_free_node_takes_a_free_task() -> None:
    free = evolve(SHOP, price=0)
    assert bid(evolve(ASK, max_price=0, fee=0), free).price == 0


# --- refusals -------------------------------------------------------------------------------------


def test_no_room_now_may_change_and_no_room_ever_may_not() -> None:
    busy = refusal(free=Capacity(999, 4 * G, 50 * G, 2))
    assert (busy.reason, busy.may_change) == ("too little cpu free", True)
    large = evolve(ASK, work=evolve(WORK, needs=evolve(NEEDS, memory=5 * G)))
    never = refusal(large)
    assert (never.reason, never.may_change) == ("too little memory for sale", False)


def test_a_feature_that_is_not_here_will_not_come() -> None:
    answer = refusal(evolve(ASK, work=evolve(WORK, features=("wasm", "python"))))
    assert (answer.reason, answer.may_change) == ("this node has no python", False)


def test_what_cannot_be_done_in_time_is_refused() -> None:
    answer = refusal(evolve(ASK, deadline_ms=1_000))
    assert answer.reason == "would take 12250 ms of the 1000 ms left"


# --- the promise ----------------------------------------------------------------------------------


def test_the_promise_comes_from_the_measured_speed() -> None:
    assert bid().finish_ms == Quantiles(250 + 6_000, 250 + 12_000, 250 + 20_000)
    assert bid(shop=evolve(SHOP, speed=1_000_000)).finish_ms.q90 == 250 + 10_000


def test_half_a_core_takes_twice_as_long_and_two_are_no_faster_than_one() -> None:
    for cpu_milli, q90 in ((500, 40_250), (1_000, 20_250), (2_000, 20_250)):
        work = evolve(WORK, needs=evolve(NEEDS, cpu_milli=cpu_milli))
        assert bid(evolve(ASK, work=work)).finish_ms.q90 == q90


def test_no_run_is_longer_than_its_wall_limit() -> None:
    work = evolve(WORK, fuel=100 * G)
    assert bid(evolve(ASK, work=work, max_price=10**6)).finish_ms.q90 == 60_250


def test_a_module_that_is_here_starts_sooner() -> None:
    assert bid(cached=True).finish_ms.q50 == bid().finish_ms.q50 - 125


def test_more_time_is_never_a_worse_promise() -> None:
    odds = []
    for deadline in range(3_000, 30_000, 250):
        answer = quote(
            evolve(ASK, deadline_ms=deadline), SHOP, free=SHOP.sold, outlook=(), cached=frozenset()
        )
        odds.append(answer.p_on_time if isinstance(answer, Quote) else 0)
    assert odds == sorted(odds)
    assert (odds[0], odds[-1]) == (0, 1_000)
    assert bid(evolve(ASK, deadline_ms=6_250)).p_on_time == 100
    assert bid(evolve(ASK, deadline_ms=12_250)).p_on_time == 500
    assert bid(evolve(ASK, deadline_ms=20_250)).p_on_time == 900


# --- the owner's load as a price of risk ----------------------------------------------------------


def test_an_owner_who_keeps_to_his_own_part_is_no_risk() -> None:
    assert bid(outlook=(load(2_000, 4 * G),)).p_on_time == 1_000


def test_the_more_he_may_need_the_less_is_promised() -> None:
    odds = [bid(outlook=(load(cpu),)).p_on_time for cpu in (2_000, 2_500, 3_000, 4_000, 9_000)]
    assert odds == [1_000, 912, 825, 650, 650]
    assert "the owner may need 25% of it" in bid(outlook=(load(2_500),)).reason


def test_memory_is_a_risk_too() -> None:
    assert bid(outlook=(load(0, 6 * G),)).p_on_time == 825


def test_what_comes_after_the_run_does_not_matter() -> None:
    steps = (load(2_000, ahead_ms=300_000), load(9_000, ahead_ms=900_000))
    assert bid(outlook=steps).p_on_time == 1_000
    long = evolve(ASK, work=evolve(WORK, fuel=300 * G, wall_ms=10**6), max_price=10**7)
    patient = evolve(long, deadline_ms=10**7)
    assert bid(patient, outlook=steps).p_on_time == 650


@pytest.mark.parametrize("fuel", [0, 1, 2**62])
def test_extreme_fuel_breaks_nothing(fuel: int) -> None:
    work = evolve(WORK, fuel=fuel)
    asked = evolve(ASK, work=work, max_price=2**63 - 1)
    answer = bid(asked, evolve(SHOP, price=1))
    assert bill(answer.price, fuel) + ASK.fee <= asked.max_price
