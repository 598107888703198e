"""The buyer's side: asks, sealed bids, one award at a time, a lease, and money that follows it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import evolve
from market_players import (
    NEEDS,
    NET,
    POLICY,
    RESULT,
    WORK,
    G,
    Hall,
    Seller,
    one,
    order,
    some,
)

from ledger.codec import UINT_MAX
from ledger.model import Entry, Kind
from mesh import codec
from mesh.ids import TaskId
from mesh.market.order import State, TaskRecord
from mesh.market.own_chain import read_past
from mesh.messages import (
    Accepted,
    Ask,
    Award,
    Lost,
    Quantiles,
    Refusal,
    Release,
    Renew,
    Renewed,
    Revoked,
    Settled,
)
from mesh.notices import Answered, Asked, Awarded, Moved, Progressed
from mesh.resources.capacity import Capacity
from mesh.sansio import (
    Action,
    AppendEntry,
    CancelRequested,
    Collect,
    Collected,
    Penalize,
    PersistTask,
    Send,
    Started,
    Submitted,
    WakeAt,
    Woken,
)
from mesh.sim.keyring import Keyring

WINDOW_S = POLICY.window_ms / 1000
LEASE_S = (POLICY.ttl_ms + POLICY.margin_ms) / 1000
OVER_S = 600.0 + POLICY.grace_ms / 1000


@pytest.fixture
def hall() -> Hall:
    return Hall()


def timers(actions: list[Action], timer: str) -> list[float]:
    return [
        action.when
        for action in some(actions, WakeAt)
        if isinstance(action.event, Woken) and action.event.timer == timer
    ]


# --- asking ---------------------------------------------------------------------------------------


def test_a_task_is_durable_before_anybody_is_asked(hall: Hall) -> None:
    actions = hall.buyer.told(Submitted(hall.order), 0.0)
    kinds = [type(action) for action in actions]
    assert kinds.index(PersistTask) < kinds.index(Send)
    asked = one(actions, Asked)
    assert set(asked.candidates) == {seller.peer for seller in hall.sellers}
    assert (hall.record.state, hall.record.round, hall.record.fence) == (State.ASKING, 1, 0)


def test_the_same_task_submitted_again_changes_nothing(hall: Hall) -> None:
    hall.submit()
    assert hall.buyer.told(Submitted(hall.order), 0.1) == []
    assert hall.buyer.told(Submitted(evolve(hall.order, max_price=1)), 0.1) == []


def test_nobody_to_ask_means_waiting_with_the_reason() -> None:
    hall = Hall(sellers=0)
    actions = hall.buyer.told(Submitted(hall.order), 0.0)
    assert hall.record.state is State.WAITING
    assert one(actions, Moved).reason == "no offers heard yet"
    assert timers(actions, "ask") == [60.0]


def test_an_offer_that_shows_room_brings_a_waiting_task_up_at_once() -> None:
    hall = Hall(sellers=1)
    (seller,) = hall.sellers
    hall.offers(seller, 0.0, free=Capacity())
    hall.buyer.told(Submitted(hall.order), 0.0)
    assert hall.record.state is State.WAITING
    assert not some(hall.offers(seller, 1.0, free=Capacity()), Ask)
    assert len(some(hall.offers(seller, 5.0), Ask)) == 1


def test_one_offer_brings_up_no_more_than_fits_into_it_the_pressing_first() -> None:
    hall = Hall(sellers=1)
    hall.offers(hall.sellers[0], 0.0, free=Capacity())
    orders = [order(hall.buyer.peer, str(n).encode(), priority=n) for n in range(4)]
    for wanted in orders:
        hall.buyer.told(Submitted(wanted), 0.0)
    asked = some(hall.offers(hall.sellers[0], 5.0), Asked)
    assert [notice.task for notice in asked] == [orders[3].task, orders[2].task]


def test_a_window_without_bids_is_extended_once(hall: Hall) -> None:
    hall.submit()
    actions = hall.buyer.woken("window", hall.task, 1, WINDOW_S)
    assert timers(actions, "window") == [POLICY.window_max_ms / 1000]
    actions = hall.buyer.woken("window", hall.task, 1, POLICY.window_max_ms / 1000)
    assert hall.record.state is State.WAITING
    assert hall.record.reason == "no bid from 3 asked: 3 did not answer"
    assert timers(actions, "ask") == [0.9 + 60.0]


def test_the_last_answer_closes_the_window_early(hall: Hall) -> None:
    ask = hall.submit()
    assert not some(hall.bids(hall.sellers[0], ask, 0.01), Award)
    no = Refusal(hall.task, 1, "too little cpu free", may_change=True)
    assert not some(hall.got(hall.sellers[1], no, 0.02), Award)
    assert some(hall.bids(hall.sellers[2], ask, 0.03), Award)
    assert hall.buyer.woken("window", hall.task, 1, WINDOW_S) == []


def test_the_window_closes_with_the_bids_it_has(hall: Hall) -> None:
    ask = hall.submit()
    hall.bids(hall.sellers[1], ask, 0.01)
    one(hall.buyer.woken("window", hall.task, 1, WINDOW_S), Award)
    assert hall.bids(hall.sellers[0], ask, 0.4) == [], "too late, and no fault"


def test_refusals_are_counted_for_people(hall: Hall) -> None:
    hall.submit()
    for seller in hall.sellers:
        hall.got(seller, Refusal(hall.task, 1, "price: too low", may_change=False), 0.1)
    assert hall.record.reason == "no bid from 3 asked: 3 price: too low"
    assert [answer.verdict for answer in hall.record.answers] == ["refused"] * 3


def test_who_was_busy_is_asked_again_when_it_offers_again(hall: Hall) -> None:
    hall.submit()
    for seller, may_change in zip(hall.sellers, (True, False, False), strict=True):
        hall.got(seller, Refusal(hall.task, 1, "no", may_change=may_change), 0.1)
    assert not some(hall.offers(hall.sellers[1], 5.0), Asked)
    assert one(hall.offers(hall.sellers[0], 6.0), Asked).round == 2


def test_rounds_are_a_second_apart_at_least(hall: Hall) -> None:
    hall.submit()
    for seller in hall.sellers:
        hall.got(seller, Refusal(hall.task, 1, "no", may_change=True), 0.1)
    actions = hall.offers(hall.sellers[0], 0.2)
    assert not some(actions, Ask)
    assert timers(actions, "ask") == [1.0]
    assert some(hall.buyer.woken("ask", hall.task, 1, 1.0), Ask)


def test_a_failed_round_asks_wider_and_soon_until_all_were_asked() -> None:
    policy = evolve(POLICY, candidates=2, candidates_wide=4, candidates_at_random=1)
    hall = Hall(sellers=6, policy=policy)
    widths, pauses, now = [], [], 0.0
    actions = hall.buyer.told(Submitted(hall.order), now)
    for round_ in (1, 2, 3, 4):
        widths.append(len(one(actions, Asked).candidates))
        now += POLICY.window_max_ms / 1000
        (ask_at,) = timers(hall.buyer.woken("window", hall.task, round_, now), "ask")
        pauses.append(ask_at - now)
        now = ask_at
        for seller in hall.sellers:
            hall.offers(seller, now - 0.1)
        actions = hall.buyer.woken("ask", hall.task, round_, now)
    assert widths == [2, 4, 6, 6]
    assert pauses == pytest.approx([1.0, 2.0, 60.0, 60.0])


def test_room_that_is_offered_while_others_are_asked_is_not_forgotten() -> None:
    hall = Hall(sellers=2)
    silent, late = hall.sellers
    hall.offers(late, 0.0, free=Capacity())
    assert one(hall.buyer.told(Submitted(hall.order), 0.1), Asked).candidates == (silent.peer,)
    assert not some(hall.offers(late, 0.5), Asked)
    actions = hall.buyer.woken("window", hall.task, 1, 1.0)
    assert timers(actions, "ask") == [2.0]
    assert late.peer in one(hall.buyer.woken("ask", hall.task, 1, 2.0), Asked).candidates


def test_who_has_lost_a_task_is_no_reason_to_ask_again_soon() -> None:
    hall = Hall(sellers=2)
    other = hall.sellers[1]
    hall.award()
    hall.buyer.woken("lease", hall.task, 1, LEASE_S)
    hall.offers(hall.sellers[0], LEASE_S + 0.1)
    assert hall.record.state is State.ASKING
    no = Refusal(hall.task, 2, "price: too low", may_change=False)
    assert timers(hall.got(other, no, LEASE_S + 0.2), "ask") == [LEASE_S + 0.2 + 60.0]


def test_the_deadline_is_far_so_it_asks_less_often() -> None:
    hall = Hall(sellers=0, deadline_ms=3_600_000)
    actions = hall.buyer.told(Submitted(hall.order), 0.0)
    assert timers(actions, "ask") == [180.0]


# --- bids -----------------------------------------------------------------------------------------


def test_the_best_score_wins_and_everybody_can_see_why(hall: Hall) -> None:
    hall.award(winner=1)
    verdicts = {answer.peer: answer.verdict for answer in hall.record.answers}
    assert verdicts[hall.sellers[1].peer] == "won"
    assert verdicts[hall.sellers[0].peer].startswith("score ")
    assert hall.record.fence == 1
    assert hall.kinds == [Kind.ALLOC]


def test_a_dearer_promise_that_is_kept_more_surely_wins(hall: Hall) -> None:
    ask = hall.submit()
    hall.bids(hall.sellers[0], ask, 0.0, price=1_000, p_on_time=300)
    hall.bids(hall.sellers[1], ask, 0.0, price=1_200, p_on_time=990)
    actions = hall.bids(hall.sellers[2], ask, 0.0, price=1_000, p_on_time=500)
    assert one(actions, Awarded).winner == hall.sellers[1].peer


def test_a_bid_counts_once_and_only_of_who_was_asked(hall: Hall) -> None:
    ask = hall.submit()
    hall.bids(hall.sellers[0], ask, 0.0)
    assert hall.bids(hall.sellers[0], ask, 0.0, price=1) == []
    stranger = Seller(Keyring(9).create(5))
    assert hall.bids(stranger, ask, 0.0) == []
    assert hall.got(hall.sellers[0], Refusal(hall.task, 1, "no", True), 0.0) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"price": 2_000}, "a bid above the ceiling"),
        ({"signature": bytes(64)}, "a bid with a bad signature"),
        ({"p_on_time": 1_001}, "a promise that is no probability"),
        ({"finish_ms": Quantiles(3, 2, 4)}, "a promise that is no probability"),
        ({"terms": b"\xc1"}, "bad terms"),
    ],
)
def test_a_foul_bid_is_its_senders_fault_and_does_not_count(
    hall: Hall, changes: dict[str, object], fault: str
) -> None:
    ask = hall.submit()
    foul = one(hall.bids(hall.sellers[0], ask, 0.0, **changes), Penalize)
    assert foul.reason.startswith(fault)
    assert hall.record.answers == ()
    assert some(hall.bids(hall.sellers[0], ask, 0.0), Answered), "it may still mend its ways"


def test_a_bid_on_another_ask_is_its_senders_fault(hall: Hall) -> None:
    ask = hall.submit()
    for other in (evolve(ask, fee=0), evolve(ask, deadline_ms=1), evolve(ask, round=2)):
        bid = hall.sellers[0].bid(hall.buyer.peer, other)
        assert some(hall.got(hall.sellers[0], evolve(bid, round=1), 0.0), Penalize)


def test_answers_on_record_are_bounded() -> None:
    policy = evolve(POLICY, candidates=50)
    hall = Hall(sellers=40, policy=policy)
    ask = hall.submit()
    for seller in hall.sellers:
        hall.bids(seller, ask, 0.0)
    assert len(hall.record.answers) == 32


# --- awards ---------------------------------------------------------------------------------------


def test_the_signed_award_is_durable_before_it_is_sent(hall: Hall) -> None:
    ask = hall.submit()
    hall.bids(hall.sellers[0], ask, 0.0)
    actions = hall.buyer.woken("window", hall.task, 1, WINDOW_S)
    kinds = [type(action) for action in actions]
    assert kinds[:3] == [PersistTask, AppendEntry, Send]
    entry = Entry.decode(one(actions, Award).entry)
    assert entry.content.deal.reserve == 10_100 == hall.buyer.kernel.head.pending


def test_an_award_is_repeated_while_the_hold_may_stand(hall: Hall) -> None:
    award = hall.award()
    actions = hall.buyer.woken("award", hall.task, 1, 0.3)
    assert one(actions, Award) == award
    assert timers(actions, "award") == [0.6]
    assert hall.buyer.woken("award", hall.task, 1, POLICY.hold_ms / 1000) == []


def test_the_next_winner_is_not_hurried_by_the_timers_of_the_first(hall: Hall) -> None:
    award = hall.award()
    hall.got(hall.sellers[0], hall.sellers[0].declined(award), 0.2)
    assert hall.buyer.woken("award", hall.task, 1, 0.3) == []
    assert timers(hall.buyer.woken("award", hall.task, 1, 0.5), "award") == [0.8]


def test_who_accepts_runs_it_and_the_losers_are_released(hall: Hall) -> None:
    hall.award()
    actions = hall.got(hall.sellers[0], Accepted(hall.task, 1), 0.1)
    assert hall.record.state is State.RUNNING
    released = {action.peer: action.message for action in some(actions, Send)}
    assert set(released) == {seller.peer for seller in hall.sellers[1:]}
    for message in released.values():
        assert isinstance(message, Release)
        assert "below" in message.reason
    assert hall.got(hall.sellers[0], Accepted(hall.task, 1), 0.2) == []
    assert hall.buyer.woken("award", hall.task, 1, 0.3) == []


def test_an_acceptance_of_anybody_else_is_nothing(hall: Hall) -> None:
    hall.award()
    assert hall.got(hall.sellers[1], Accepted(hall.task, 1), 0.1) == []
    assert hall.got(hall.sellers[0], Accepted(hall.task, 2), 0.1) == []


def test_a_winner_that_declines_frees_the_money_and_the_next_is_asked(hall: Hall) -> None:
    award = hall.award()
    actions = hall.got(hall.sellers[0], hall.sellers[0].declined(award), 0.2)
    assert hall.kinds == [Kind.ALLOC, Kind.VOID, Kind.ALLOC]
    assert one(actions, Awarded).fence == 1
    assert one(actions, Award).entry != award.entry
    assert hall.buyer.kernel.head.pending == Entry.decode(one(actions, Award).entry).content.pending
    assert hall.record.executor in {seller.peer for seller in hall.sellers[1:]}


def test_the_second_winner_of_a_round_is_paid_for_its_own_award(hall: Hall) -> None:
    first = hall.award()
    actions = hall.got(hall.sellers[0], hall.sellers[0].declined(first), 0.2)
    award = one(actions, Award)
    winner = next(seller for seller in hall.sellers if seller.peer == hall.record.executor)
    hall.got(winner, Accepted(hall.task, 1), 0.3)
    one(hall.got(winner, winner.done(award), 9.0), Collect)
    actions = hall.buyer.told(Collected(hall.task, 1, RESULT.output, ""), 10.0)
    assert Entry.decode(one(actions, Settled).entry).content.peer == winner.peer
    again = one(hall.got(winner, winner.done(award), 11.0), Settled)
    assert again == one(actions, Settled)


def test_after_three_winners_there_is_a_new_round_with_a_higher_fence() -> None:
    hall = Hall(sellers=5)
    award = hall.award()
    for _ in range(3):
        winner = next(seller for seller in hall.sellers if seller.peer == hall.record.executor)
        actions = hall.got(winner, winner.declined(award), 0.2)
        award = (some(actions, Award) or [award])[0]
    assert hall.record.state is State.WAITING
    assert hall.record.reason == "every winner declined"
    assert hall.buyer.kernel.head.pending == 0
    assert timers(actions, "ask") == [1.2], "two more had bid"
    ask = some(hall.buyer.woken("ask", hall.task, 1, 1.2), Ask)[0]
    assert ask.round == 2
    hall.bids(hall.sellers[4], ask, 1.3)
    hall.buyer.woken("window", hall.task, 2, 2.2)
    assert hall.record.fence == 2


def test_to_decline_must_be_signed(hall: Hall) -> None:
    award = hall.award()
    declined = hall.sellers[0].declined(award)
    for bad in (evolve(declined, signature=bytes(64)), evolve(declined, void_terms=b"")):
        assert some(hall.got(hall.sellers[0], bad, 0.1), Penalize)
    assert hall.got(hall.sellers[1], declined, 0.1) == []
    assert hall.kinds == [Kind.ALLOC]


def test_however_long_its_reason_the_record_can_be_read_again(hall: Hall) -> None:
    award = hall.award()
    hall.got(hall.sellers[0], hall.sellers[0].declined(award, "x" * 512), 0.1)
    for _, answer in enumerate(hall.record.answers):
        assert len(answer.verdict) <= 512
    assert codec.load(TaskRecord, codec.dump(hall.record)) == hall.record


def test_awards_unsettled_are_bounded() -> None:
    policy = evolve(POLICY, allocs_max=1)
    hall = Hall(policy=policy)
    hall.running()
    assert "unsettled" in hall.buyer.kernel.why_full()
    another = order(hall.buyer.peer, b"another")
    assert hall.buyer.told(Submitted(another), 1.0) == []


def test_totals_that_the_ledger_cannot_hold_are_not_signed() -> None:
    hall = Hall(max_price=UINT_MAX, fee=UINT_MAX - 20_000)
    hall.running()
    another = order(hall.buyer.peer, b"another", max_price=UINT_MAX, fee=UINT_MAX - 20_000)
    ask = some(hall.buyer.told(Submitted(another), 1.0), Ask)[0]
    for seller in hall.sellers:
        hall.bids(seller, ask, 1.0)
    record = hall.buyer.task(another.task)
    assert record.state is State.WAITING
    assert "ledger" in record.reason


# --- the lease ------------------------------------------------------------------------------------


def test_a_renewal_grants_from_now_and_tells_the_progress(hall: Hall) -> None:
    hall.running()
    actions = hall.got(hall.sellers[0], Renew(hall.task, 1, 4, 3 * G), 5.0)
    assert one(actions, Renewed) == Renewed(hall.task, 1, 4, POLICY.ttl_ms)
    assert one(actions, Progressed).fuel == 3 * G
    assert timers(actions, "lease") == [5.0 + LEASE_S]
    assert hall.buyer.woken("lease", hall.task, 1, LEASE_S) == [], "the first has moved on"
    assert hall.record.state is State.RUNNING


def test_a_renewal_says_that_it_was_accepted(hall: Hall) -> None:
    hall.award()
    one(hall.got(hall.sellers[0], Renew(hall.task, 1, 1, 0), 5.0), Renewed)
    assert hall.record.state is State.RUNNING


def test_who_holds_nothing_is_told_so(hall: Hall) -> None:
    hall.running()
    wrong = [
        (hall.sellers[1], Renew(hall.task, 1, 1, 0)),
        (hall.sellers[0], Renew(hall.task, 2, 1, 0)),
        (hall.sellers[0], Renew(TaskId(bytes(16)), 1, 1, 0)),
    ]
    for seller, renew in wrong:
        assert not one(hall.got(seller, renew, 5.0), Revoked).is_owed


def test_a_lease_lost_is_auctioned_again_elsewhere_with_a_higher_fence(hall: Hall) -> None:
    hall.running()
    actions = hall.buyer.woken("lease", hall.task, 1, LEASE_S)
    assert hall.sellers[0].peer not in one(actions, Asked).candidates
    assert hall.sellers[0].peer not in hall.buyer.kernel.book.listings, "until it is heard again"
    assert (hall.record.moves, hall.record.fuel, hall.record.executor) == (1, 0, None)
    ask = some(actions, Ask)[0]
    assert ask.round == 2
    for seller in hall.sellers[1:]:
        actions = hall.bids(seller, ask, LEASE_S)
    assert one(actions, Awarded).fence == 2


def test_an_award_that_nobody_answers_is_lost_too(hall: Hall) -> None:
    hall.award()
    one(hall.buyer.woken("lease", hall.task, 1, LEASE_S), Asked)
    assert hall.record.round == 2


def test_an_executor_that_gives_up_frees_the_money_and_the_task(hall: Hall) -> None:
    award = hall.running()
    actions = hall.got(hall.sellers[0], hall.sellers[0].lost(award), 3.0)
    assert hall.kinds == [Kind.ALLOC, Kind.VOID]
    assert hall.sellers[0].peer not in one(actions, Asked).candidates
    again = hall.got(hall.sellers[0], hall.sellers[0].lost(award), 4.0)
    assert one(again, Settled) == one(actions, Settled)


def test_done_for_an_old_fence_is_refused_and_then_let_go(hall: Hall) -> None:
    award = hall.running()
    actions = hall.buyer.woken("lease", hall.task, 1, LEASE_S)
    hall.bids(hall.sellers[1], some(actions, Ask)[0], LEASE_S)
    hall.buyer.woken("window", hall.task, 2, LEASE_S + 1)
    revoked = one(hall.got(hall.sellers[0], hall.sellers[0].done(award), 20.0), Revoked)
    assert not revoked.is_owed
    one(hall.got(hall.sellers[0], hall.sellers[0].lost(award), 21.0), Settled)
    assert hall.kinds == [Kind.ALLOC, Kind.ALLOC, Kind.VOID]
    assert hall.record.state is State.AWARDED


# --- the end --------------------------------------------------------------------------------------


def test_results_are_collected_before_they_are_paid(hall: Hall) -> None:
    award = hall.running()
    actions = hall.got(hall.sellers[0], hall.sellers[0].done(award), 14.0)
    collect = one(actions, Collect)
    assert collect.roots == (RESULT.output, RESULT.stdout, RESULT.stderr)
    assert collect.executor == hall.sellers[0].peer
    assert hall.kinds == [Kind.ALLOC]
    actions = hall.buyer.told(Collected(hall.task, 1, RESULT.output, ""), 15.0)
    assert hall.kinds == [Kind.ALLOC, Kind.SETTLE]
    assert (hall.record.state, hall.record.amount) == (State.DONE, 7_100)
    assert hall.record.result == RESULT
    assert hall.record.settle == hall.buyer.entries[-1].id
    kinds = [type(action) for action in actions]
    assert kinds.index(AppendEntry) < kinds.index(Send)
    assert some(actions, Moved)[-1].state.is_final


def test_results_out_of_reach_are_not_paid_but_asked_for_again(hall: Hall) -> None:
    award = hall.running()
    done = hall.sellers[0].done(award)
    hall.got(hall.sellers[0], done, 14.0)
    assert hall.got(hall.sellers[0], done, 14.5) == [], "being collected"
    assert hall.buyer.told(Collected(hall.task, 1, RESULT.output, "out of reach"), 15.0) == []
    assert "out of reach" in hall.record.reason
    assert hall.record.state is State.RUNNING
    one(hall.got(hall.sellers[0], done, 17.0), Collect)
    hall.buyer.told(Collected(hall.task, 1, RESULT.output, ""), 18.0)
    assert hall.record.state is State.DONE


def test_results_that_take_long_to_collect_are_not_lost(hall: Hall) -> None:
    award = hall.running()
    hall.got(hall.sellers[0], hall.sellers[0].done(award), 14.0)
    actions = hall.buyer.woken("lease", hall.task, 1, 14.0 + LEASE_S)
    assert timers(actions, "lease") == [14.0 + 2 * LEASE_S], "asked again while it goes on"
    hall.buyer.told(Collected(hall.task, 1, RESULT.output, ""), 60.0)
    assert hall.record.state is State.DONE


def test_results_that_cannot_be_collected_are_lost_in_the_end(hall: Hall) -> None:
    award = hall.running()
    hall.got(hall.sellers[0], hall.sellers[0].done(award), 14.0)
    hall.buyer.told(Collected(hall.task, 1, RESULT.output, "out of reach"), 15.0)
    one(hall.buyer.woken("lease", hall.task, 1, 14.0 + LEASE_S), Asked)
    assert hall.buyer.told(Collected(hall.task, 1, RESULT.output, ""), 40.0) == []


@pytest.mark.parametrize(
    ("changes", "state", "amount"),
    [
        ({"exit_code": 3}, State.DONE, 7_000),
        ({"status": "trapped", "detail": "unreachable"}, State.FAILED, 7_000),
        ({"status": "out-of-fuel", "fuel": WORK.fuel}, State.FAILED, 10_000),
    ],
)
def test_the_fee_is_for_success_only(
    hall: Hall, changes: dict[str, object], state: State, amount: int
) -> None:
    award = hall.running()
    result = evolve(RESULT, **changes)  # type: ignore[arg-type]
    hall.got(hall.sellers[0], hall.sellers[0].done(award, result), 14.0)
    hall.buyer.told(Collected(hall.task, 1, RESULT.output, ""), 15.0)
    assert (hall.record.state, hall.record.amount) == (state, amount)


def test_a_foul_bill_is_its_senders_fault_and_not_paid(hall: Hall) -> None:
    award = hall.running()
    seller = hall.sellers[0]
    good = seller.done(award)
    for bad in (
        evolve(good, signature=bytes(64)),
        evolve(good, result=evolve(RESULT, fuel=6 * G)),
        evolve(good, result=evolve(RESULT, output=WORK.module)),
        evolve(good, result=evolve(RESULT, status="splendid")),
        evolve(good, terms=seller.lost(award).void_terms),
        evolve(good, terms=b"\xc0"),
    ):
        assert some(hall.got(seller, bad, 14.0), Penalize)
    assert hall.record.state is State.RUNNING
    assert not one(hall.got(hall.sellers[1], good, 14.0), Revoked).is_owed


def test_done_without_an_acceptance_counts_too(hall: Hall) -> None:
    award = hall.award()
    one(hall.got(hall.sellers[0], hall.sellers[0].done(award), 14.0), Collect)
    hall.buyer.told(Collected(hall.task, 1, RESULT.output, ""), 15.0)
    assert hall.record.state is State.DONE


# --- cancel and deadline, in every state ----------------------------------------------------------


def _waiting(hall: Hall) -> None:
    hall.submit()
    hall.buyer.woken("window", hall.task, 1, 1.0)


def _asking(hall: Hall) -> None:
    hall.submit()


def _awarded(hall: Hall) -> None:
    hall.award()


def _running(hall: Hall) -> None:
    hall.running()


def _collecting(hall: Hall) -> None:
    hall.got(hall.sellers[0], hall.sellers[0].done(hall.running()), 5.0)


STATES: dict[State, Callable[[Hall], None]] = {
    State.WAITING: _waiting,
    State.ASKING: _asking,
    State.AWARDED: _awarded,
    State.RUNNING: _running,
}


@pytest.mark.parametrize("state", STATES)
def test_a_task_can_be_cancelled_in_every_state(hall: Hall, state: State) -> None:
    STATES[state](hall)
    assert hall.record.state is state
    actions = hall.buyer.told(CancelRequested(hall.task), 6.0)
    assert hall.record.state is State.CANCELLED
    assert [revoked.is_owed for revoked in some(actions, Revoked)] == (
        [True] if state in (State.AWARDED, State.RUNNING) else []
    )
    assert hall.buyer.told(CancelRequested(hall.task), 7.0) == []
    for timer in ("window", "award", "lease", "ask", "deadline"):
        assert hall.buyer.woken(timer, hall.task, 1, 999.0) == []


@pytest.mark.parametrize("state", STATES)
def test_every_task_ends_by_its_deadline_and_grace(hall: Hall, state: State) -> None:
    STATES[state](hall)
    runs = state in (State.AWARDED, State.RUNNING)
    actions = hall.buyer.woken("deadline", hall.task, 0, 600.0)
    if runs:
        assert timers(actions, "deadline") == [OVER_S]
        assert hall.record.state is state
        actions = hall.buyer.woken("deadline", hall.task, 1, OVER_S)
    assert hall.record.state is State.FAILED
    assert hall.record.reason.startswith(f"deadline passed {state}")
    assert len(some(actions, Revoked)) == int(runs)


def test_what_was_burnt_before_the_cancellation_is_paid(hall: Hall) -> None:
    award = hall.running()
    hall.buyer.told(CancelRequested(hall.task), 6.0)
    assert one(hall.got(hall.sellers[0], Renew(hall.task, 1, 1, G), 6.5), Revoked).is_owed
    burnt = evolve(RESULT, status="cancelled", fuel=3 * G)
    actions = hall.got(hall.sellers[0], hall.sellers[0].done(award, burnt), 7.0)
    assert hall.kinds == [Kind.ALLOC, Kind.SETTLE]
    assert (hall.record.state, hall.record.amount) == (State.CANCELLED, 3_000)
    assert not some(actions, Collect)


def test_a_run_that_ended_while_it_was_cancelled_is_asked_for_its_bill(hall: Hall) -> None:
    _collecting(hall)
    award = Entry.decode(hall.buyer.entries[0].encode())
    hall.buyer.told(CancelRequested(hall.task), 6.0)
    assert hall.buyer.told(Collected(hall.task, 1, RESULT.output, ""), 6.1) == []
    done = hall.sellers[0].done(Award(hall.task, 1, award.encode(), 0))
    actions = hall.got(hall.sellers[0], done, 7.0)
    assert one(actions, Revoked).is_owed
    assert (hall.record.state, hall.record.amount) == (State.CANCELLED, 0)


def test_results_kept_back_until_the_deadline_has_passed_are_not_paid(hall: Hall) -> None:
    award = hall.running()
    hall.buyer.woken("deadline", hall.task, 1, 700.0)
    assert hall.record.state is State.FAILED
    actions = hall.got(hall.sellers[0], hall.sellers[0].done(award), 701.0)
    assert not one(actions, Revoked).is_owed
    assert hall.record.amount == 0


def test_a_task_lost_after_its_deadline_fails(hall: Hall) -> None:
    award = hall.running()
    hall.got(hall.sellers[0], hall.sellers[0].lost(award), 601.0)
    assert hall.record.state is State.FAILED


# --- restarts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.AWARDED, State.RUNNING])
def test_a_restart_waits_for_the_lease_it_may_have_granted(hall: Hall, state: State) -> None:
    STATES[state](hall)
    hall.buyer.boot()
    actions = hall.buyer.told(Started(), 100.0)
    assert not some(actions, Ask)
    assert timers(actions, "lease") == [100.0 + LEASE_S]
    assert timers(actions, "deadline") == [600.0]
    one(hall.got(hall.sellers[0], Renew(hall.task, 1, 9, G), 105.0), Renewed)
    assert hall.record.state is State.RUNNING
    assert hall.buyer.woken("lease", hall.task, 1, 100.0 + LEASE_S) == []
    hall.buyer.woken("lease", hall.task, 1, 105.0 + LEASE_S)
    assert hall.record.moves == 1


@pytest.mark.parametrize("state", [State.WAITING, State.ASKING])
def test_a_restart_asks_again_in_a_round_of_its_own(hall: Hall, state: State) -> None:
    STATES[state](hall)
    old = hall.record.round
    hall.buyer.boot()
    actions = hall.buyer.told(Started(), 100.0)
    assert timers(actions, "ask") == [101.0]
    assert one(hall.offers(hall.sellers[0], 100.5), Asked).round > old


def test_no_round_is_asked_twice_however_often_it_restarts(hall: Hall) -> None:
    hall.submit()
    rounds = []
    for boot in range(1, 5):
        hall.buyer.boot()
        hall.buyer.told(Started(), 20.0 * boot)
        rounds.append(one(hall.offers(hall.sellers[0], 20.0 * boot), Asked).round)
    assert len(set(rounds)) == 4


def test_an_award_in_the_ledger_alone_does_not_stop_the_next(hall: Hall) -> None:
    # A crash came before its record was written, again and again.
    hall.submit()
    waiting = hall.buyer.records[hall.task]
    for boot in range(1, 4):
        hall.buyer.records[hall.task] = waiting
        hall.buyer.boot()
        hall.buyer.told(Started(), 20.0 * boot)
        ask = one(hall.offers(hall.sellers[0], 20.0 * boot), Ask)
        actions = hall.bids(hall.sellers[0], ask, 20.0 * boot)
        assert one(actions, Awarded).fence == ask.round
    assert hall.kinds == [Kind.ALLOC] * 3


def test_a_winner_is_never_paid_from_the_award_of_another(hall: Hall) -> None:
    # The record of the second winner was written, and then the power went: before its award was,
    # and before the first one's waiver.
    award = hall.award()
    hall.got(hall.sellers[0], hall.sellers[0].declined(award), 0.2)
    second = next(seller for seller in hall.sellers if seller.peer == hall.record.executor)
    hall.buyer.lose_entries(after=1)
    hall.buyer.boot()
    hall.buyer.told(Started(), 10.0)
    revoked = one(hall.got(second, second.done(award), 11.0), Revoked)
    assert not revoked.is_owed
    assert one(hall.buyer.woken("accounts", None, 0, 60.0), Award) == award


def test_a_restart_still_pays_for_what_was_done(hall: Hall) -> None:
    award = hall.running()
    hall.buyer.boot()
    hall.buyer.told(Started(), 100.0)
    one(hall.got(hall.sellers[0], hall.sellers[0].done(award), 101.0), Collect)
    hall.buyer.told(Collected(hall.task, 1, RESULT.output, ""), 102.0)
    assert hall.record.state is State.DONE


def test_a_restart_still_has_the_receipt_that_the_seller_missed(hall: Hall) -> None:
    award = hall.running()
    done = hall.sellers[0].done(award)
    hall.got(hall.sellers[0], done, 14.0)
    settled = one(hall.buyer.told(Collected(hall.task, 1, RESULT.output, ""), 15.0), Settled)
    hall.buyer.boot()
    hall.buyer.told(Started(), 100.0)
    assert one(hall.got(hall.sellers[0], done, 101.0), Settled) == settled
    assert one(hall.got(hall.sellers[0], Renew(hall.task, 1, 1, 0), 102.0), Settled) == settled


def test_a_crash_before_the_payment_is_made_good_however_many_tasks_have_ended_since() -> None:
    hall = Hall(policy=evolve(POLICY, tasks_ended_max=1))
    done = hall.sellers[0].done(hall.running())
    hall.got(hall.sellers[0], done, 14.0)
    hall.buyer.told(Collected(hall.task, 1, RESULT.output, ""), 15.0)
    paid = hall.buyer.entries.pop()  # the record was written, the payment was not
    hall.buyer._head = read_past(hall.buyer.peer, NET, hall.buyer.entries).head
    for key in (b"a", b"b", b"c"):
        hall.buyer.boot()
        hall.buyer.told(Started(), 20.0)
        assert hall.buyer.kernel.sizes()["tasks_unpaid"] == (1, POLICY.allocs_max)
        other = order(hall.buyer.peer, key)
        hall.buyer.told(Submitted(other), 21.0)
        hall.buyer.told(CancelRequested(other.task), 22.0)
    late = Renew(hall.task, 1, 1, 0)
    assert hall.got(hall.sellers[0], late, 29.0) == [], "it is owed, and says Done again"
    hall.got(hall.sellers[0], done, 30.0)
    assert hall.kinds == [Kind.ALLOC, Kind.SETTLE]
    assert hall.buyer.entries[-1].content.deal.amount == paid.content.deal.amount
    sizes = hall.buyer.kernel.sizes()
    assert (sizes["tasks_unpaid"][0], sizes["tasks_ended"]) == (0, (1, 1))


def test_a_restart_past_the_deadline_ends_the_task() -> None:
    hall = Hall()
    hall.submit()
    hall.buyer.boot()
    actions = hall.buyer.told(Started(), 700.0)
    assert timers(actions, "deadline") == [700.0]
    hall.buyer.woken("deadline", hall.task, 0, 700.0)
    assert hall.record.state is State.FAILED


def test_ended_tasks_stay_ended(hall: Hall) -> None:
    hall.submit()
    hall.buyer.told(CancelRequested(hall.task), 1.0)
    hall.buyer.boot()
    assert not some(hall.buyer.told(Started(), 2.0), WakeAt) or hall.record.state.is_final
    assert hall.record.state is State.CANCELLED


# --- accounts that stay open ----------------------------------------------------------------------


def test_the_seller_of_an_award_that_came_to_nothing_is_reminded_until_it_lets_go(
    hall: Hall,
) -> None:
    award = hall.award()
    hall.buyer.woken("lease", hall.task, 1, LEASE_S)
    actions = hall.buyer.woken("accounts", None, 0, 60.0)
    assert one(actions, Award).entry == award.entry
    hall.got(hall.sellers[0], hall.sellers[0].declined(award), 61.0)
    assert hall.kinds == [Kind.ALLOC, Kind.VOID]
    assert hall.buyer.kernel.head.pending == 0
    assert not some(hall.buyer.woken("accounts", None, 0, 120.0), Award)


def test_nobody_is_reminded_of_an_award_that_runs(hall: Hall) -> None:
    hall.running()
    assert not some(hall.buyer.woken("accounts", None, 0, 60.0), Award)


# --- bounds ---------------------------------------------------------------------------------------


def test_tasks_are_bounded_open_and_ended() -> None:
    policy = evolve(POLICY, tasks_open_max=2, tasks_ended_max=2)
    hall = Hall(sellers=0, policy=policy)
    tasks = [order(hall.buyer.peer, str(n).encode()) for n in range(4)]
    for wanted in tasks[:2]:
        hall.buyer.told(Submitted(wanted), 0.0)
    assert "open at this node already" in hall.buyer.kernel.why_full()
    assert hall.buyer.told(Submitted(tasks[2]), 0.0) == []
    for wanted in tasks:
        hall.buyer.told(Submitted(wanted), 0.0)
        hall.buyer.told(CancelRequested(wanted.task), 0.1)
    assert list(hall.buyer.kernel.records) == [wanted.task for wanted in tasks[2:]]


def test_a_forgotten_task_is_not_owed_but_let_go() -> None:
    hall = Hall(policy=evolve(POLICY, tasks_ended_max=1))
    award = hall.running()
    for key in (b"a", b"b"):
        other = order(hall.buyer.peer, key)
        hall.buyer.told(Submitted(other), 1.0)
        hall.buyer.told(CancelRequested(hall.task), 1.0)
        hall.buyer.told(CancelRequested(other.task), 1.0)
    revoked = one(hall.got(hall.sellers[0], hall.sellers[0].done(award), 5.0), Revoked)
    assert (revoked.reason, revoked.is_owed) == ("unknown task", False)
    lost: Lost = hall.sellers[0].lost(award)
    one(hall.got(hall.sellers[0], lost, 6.0), Settled)
    assert hall.buyer.kernel.head.pending == 0


def test_a_small_task_is_not_kept_waiting_by_a_large_one() -> None:
    hall = Hall(sellers=1)
    large = order(hall.buyer.peer, b"large", work=evolve(WORK, needs=evolve(NEEDS, memory=2**40)))
    hall.buyer.told(Submitted(large), 0.0)
    assert hall.buyer.task(large.task).reason == "1 offers seen: 1 too little memory"
    hall.submit()
    assert hall.record.state is State.ASKING
