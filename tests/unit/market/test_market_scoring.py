"""Scoring: what a promise is worth, corrected by how the last ones turned out."""

from __future__ import annotations

import pytest
from attrs import evolve
from market_players import G, Seller, ask

from mesh.ids import PeerId, TaskId
from mesh.market.scoring import BOUND, Calibration, score, tie_break, virtual_deadline
from mesh.messages import Bid, Quantiles
from mesh.sim.keyring import Keyring

PEER = PeerId(bytes(32))
TASK = TaskId(bytes(16))
BID = Seller(Keyring(1).create(1)).bid(PEER, ask(TASK))
SURE = evolve(BID, p_on_time=1_000, finish_ms=Quantiles(100, 100, 100))


def worth(bid: Bid, *, value: int = 10_000, price: int = 4_000, factor: float = 1.0) -> int:
    return score(bid, value=value, price=price, deadline_ms=100_000, factor=factor)


def test_a_sure_promise_is_worth_the_value_without_the_price() -> None:
    assert worth(SURE) == 6_000


def test_a_promise_is_worth_what_it_is_likely_to_be() -> None:
    assert worth(evolve(SURE, p_on_time=500)) == 1_000
    assert worth(SURE, factor=0.5) == 1_000


def test_a_bid_may_cost_more_than_it_gives() -> None:
    assert worth(evolve(SURE, p_on_time=100)) == -3_000


def test_who_cannot_say_when_pays_for_it() -> None:
    wide = evolve(SURE, finish_ms=Quantiles(0, 50_000, 100_000))
    wider = evolve(SURE, finish_ms=Quantiles(0, 50_000, 10**12))
    assert worth(wide) == worth(wider) == 6_000 - 500


def test_a_newcomer_is_believed() -> None:
    assert Calibration().factor(PEER) == 1.0


def test_one_failure_does_not_end_a_newcomer_and_many_do() -> None:
    record = Calibration()
    record.record(PEER, 900, was_kept=False)
    assert record.factor(PEER) == pytest.approx(4 / 4.9)
    for _ in range(200):
        record.record(PEER, 900, was_kept=False)
    assert 0.05 <= record.factor(PEER) < 0.07


def test_keeping_more_than_was_promised_is_no_credit_for_more() -> None:
    record = Calibration()
    for _ in range(10):
        record.record(PEER, 100, was_kept=True)
    assert record.factor(PEER) == 1.0


def test_an_honest_half_is_believed_as_it_is() -> None:
    record = Calibration()
    for number in range(100):
        record.record(PEER, 500, was_kept=number % 2 == 0)
    assert record.factor(PEER) == pytest.approx(1.0, abs=0.05)


def test_old_promises_fade() -> None:
    record = Calibration()
    for _ in range(64):
        record.record(PEER, 1_000, was_kept=False)
    low = record.factor(PEER)
    for _ in range(300):
        record.record(PEER, 1_000, was_kept=True)
    assert record.factor(PEER) > 0.9 > low


def test_records_are_bounded_and_the_stalest_goes() -> None:
    record = Calibration()
    peers = [PeerId(number.to_bytes(32, "big")) for number in range(BOUND + 10)]
    record.record(peers[0], 1_000, was_kept=False)
    for peer in peers[1:BOUND]:
        record.record(peer, 1_000, was_kept=False)
    record.record(peers[0], 1_000, was_kept=False)  # fresh again
    for peer in peers[BOUND:]:
        record.record(peer, 1_000, was_kept=False)
    assert len(record) == BOUND
    assert record.factor(peers[0]) < 1.0
    assert record.factor(peers[1]) == 1.0


def test_ties_are_broken_by_what_nobody_can_choose() -> None:
    peers = [PeerId(bytes([number]) * 32) for number in range(8)]
    orders = {
        tuple(sorted(peers, key=lambda peer: tie_break(TASK, round_, peer))) for round_ in range(20)
    }
    assert len(orders) > 15, "another order in every round"


def test_paying_twice_as_much_is_worth_a_quarter_of_an_hour() -> None:
    density = 100 / (10 * G)
    assert virtual_deadline(5_000.0, 99, 10 * G, density) == 5_000.0
    assert virtual_deadline(5_000.0, 199, 10 * G, density) == 4_100.0
    assert virtual_deadline(5_000.0, 49, 10 * G, density) == 5_900.0


def test_a_task_without_fee_or_fuel_has_a_place_too() -> None:
    assert virtual_deadline(5_000.0, 0, 0, 1.0) == 5_000.0
