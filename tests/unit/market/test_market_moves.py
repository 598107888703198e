"""A running task moves: paid so far where it was, and gone on with elsewhere, exactly."""

from __future__ import annotations

import pytest
from attrs import evolve
from market_players import (
    NEEDS,
    NET,
    POLICY,
    RESULT,
    SHOP,
    STATE,
    WORK,
    Buyer,
    G,
    Hall,
    Player,
    Seller,
    ask,
    cid,
    one,
    some,
)

from ledger.model import MIGRATIONS_MAX, Entry, Kind, Terms
from mesh.cli.tasks import STAYS
from mesh.errors import PeerError
from mesh.ids import Cid, TaskId, task_id
from mesh.market.bidding import check_moves
from mesh.market.order import State
from mesh.market.own_chain import read_past
from mesh.market.terms import MOVED, MOVED_EXIT, migrations_of
from mesh.messages import (
    Accepted,
    Ask,
    Award,
    Bid,
    Done,
    Handover,
    Keep,
    Message,
    Move,
    Outlook,
    Quantiles,
    Refusal,
    Release,
    Renew,
    Revoked,
    Saved,
    Settled,
    Stays,
)
from mesh.migration.departures import interval_s
from mesh.notices import Hosted
from mesh.resources.capacity import NOTHING, Capacity
from mesh.sansio import (
    Action,
    CancelRequested,
    Checkpoint,
    Checkpointed,
    Collect,
    Collected,
    DrainSet,
    DropState,
    KeepState,
    LoadSampled,
    MoveRequested,
    Penalize,
    Run,
    RunEnded,
    RunProgressed,
    Send,
    Started,
    StopRun,
    Suspend,
    Suspended,
    Unmoved,
    WakeAt,
)
from mesh.sim.keyring import Keyring

SAVE_S = POLICY.save_at_most_ms / 1000

# --- the auctioneer -------------------------------------------------------------------------------


@pytest.fixture
def hall() -> Hall:
    return Hall()


def given_back(hall: Hall, fuel: int = 3 * G, now: float = 5.0) -> list[Action]:
    """The first seller runs it, and gives it back after so much fuel; it is collected."""
    award = hall.running()
    hall.got(hall.sellers[0], hall.sellers[0].given_back(award, fuel), now)
    return hall.buyer.told(Collected(hall.task, 1, STATE, ""), now + 0.1)


def test_a_move_is_asked_of_whoever_runs_it_and_again_with_each_renewal(hall: Hall) -> None:
    hall.running()
    (first, second, _) = hall.sellers
    asked = one(hall.buyer.told(MoveRequested(hall.task, None), 2.0), Handover)
    assert (asked.task, asked.fence) == (hall.task, 1)
    assert one(hall.got(first, Renew(hall.task, 1, 1, 0), 5.0), Handover) == asked
    assert some(hall.got(second, Renew(hall.task, 1, 1, 0), 5.0), Handover) == []


def late(hall: Hall, seqs: range, now: float) -> list[Action]:
    """Every second of the renewals is lost; what the buyer does at the last one."""
    actions: list[Action] = []
    for seq in seqs:
        now += 2 * POLICY.ttl_ms / 3000
        actions = hall.got(hall.sellers[0], Renew(hall.task, hall.record.fence, seq, 0), now)
    return actions


def test_a_run_is_asked_back_from_where_renewals_come_late_before_the_lease_is_lost(
    hall: Hall,
) -> None:
    hall.running()
    assert not some(late(hall, range(POLICY.late_max - 1), 0.0), Handover)
    now = (POLICY.late_max - 1) * 10.0
    asked = one(late(hall, range(1), now), Handover)
    assert (asked.fence, asked.reason) == (1, "its renewals come late from there")
    again = Renew(hall.task, 1, 9, 0)
    assert one(hall.got(hall.sellers[0], again, now + 11.0), Handover) == asked, "until it does"


def test_renewals_in_time_or_nowhere_else_to_go_leave_a_run_where_it_is(hall: Hall) -> None:
    hall.running()
    late(hall, range(POLICY.late_max - 1), 0.0)
    now = (POLICY.late_max - 1) * 10.0
    hall.got(hall.sellers[0], Renew(hall.task, 1, 7, 0), now + 5.0)
    assert not some(late(hall, range(1), now + 5.0), Handover), "one came in time between"
    for seller in hall.sellers[1:]:
        hall.offers(seller, now + 6.0, free=Capacity())
    assert not some(late(hall, range(9), now + 15.0), Handover), "nobody else has room"
    hall.offers(hall.sellers[1], now + 106.0)
    assert some(late(hall, range(1), now + 105.0), Handover)


def test_where_all_are_late_not_every_run_is_asked_back(hall: Hall) -> None:
    hall.running()
    assert some(late(hall, range(POLICY.late_max), 0.0), Handover)
    stays = Stays(hall.task, 1, "its module cannot be moved")
    hall.got(hall.sellers[0], stays, POLICY.late_max * 10.0 + 1.0)
    asked_at = POLICY.late_max * 10.0
    assert not some(late(hall, range(5), asked_at), Handover)
    assert some(late(hall, range(2), asked_at + 50.0), Handover), "a minute later it is"


def test_nobody_is_asked_to_give_back_what_does_not_run_or_runs_there_already(hall: Hall) -> None:
    assert "no such task" in hall.buyer.kernel.migrator.why_not(hall.task, None)
    hall.award()
    assert "awarded" in hall.buyer.kernel.migrator.why_not(hall.task, None)
    assert hall.buyer.told(MoveRequested(hall.task, None), 1.0) == []
    hall.got(hall.sellers[0], Accepted(hall.task, 1), 1.0)
    assert "already" in hall.buyer.kernel.migrator.why_not(hall.task, hall.sellers[0].peer)
    assert hall.buyer.told(MoveRequested(hall.task, hall.sellers[0].peer), 2.0) == []
    assert hall.buyer.kernel.migrator.why_not(hall.task, hall.sellers[1].peer) == ""


def test_a_run_given_back_is_collected_paid_and_asked_about_from_there(hall: Hall) -> None:
    award = hall.running()
    bill = hall.sellers[0].given_back(award, 3 * G)
    collect = one(hall.got(hall.sellers[0], bill, 5.0), Collect)
    assert (collect.roots[0], collect.is_state) == (STATE, True)
    assert hall.record.state is State.RUNNING, "paid and moved only once the state is here"
    actions = hall.buyer.told(Collected(hall.task, 1, STATE, ""), 5.1)
    settled = Entry.decode(one(actions, Settled).entry).content.deal
    assert (settled.fuel, settled.exit, settled.amount) == (3 * G, MOVED_EXIT, 3_000), "no fee"
    (asked,) = set(some(actions, Ask))
    assert asked.work.fuel == 7 * G
    assert asked.work.moves == (Move(3 * G, hall.sellers[0].peer, STATE),)
    assert asked.max_price == hall.order.max_price - 3_000, "the ceiling is that of the whole bill"
    asked_peers = {a.peer for a in actions if isinstance(a, Send) and a.message == asked}
    assert hall.sellers[0].peer not in asked_peers
    assert (hall.record.fuel, hall.record.moves) == (3 * G, 1)


def test_the_bill_of_a_moved_task_is_exact_and_its_receipt_tells_the_moves(hall: Hall) -> None:
    (asked, *_) = some(given_back(hall), Ask)
    second = hall.sellers[1]
    hall.bids(second, asked, 5.2)
    award = one(hall.bids(hall.sellers[2], asked, 5.2, price=1_500), Award)
    hall.got(second, Accepted(hall.task, 2), 5.3)
    hall.got(second, second.done(award, evolve(RESULT, fuel=4 * G)), 9.0)
    actions = hall.buyer.told(Collected(hall.task, 2, RESULT.output, ""), 9.1)
    deal = Entry.decode(one(actions, Settled).entry).content.deal
    assert deal.fuel == 4 * G
    assert deal.migrations == ((3 * G, hall.sellers[0].peer, second.peer, STATE),)
    assert hall.record.state is State.DONE
    assert (hall.record.fuel, hall.record.amount) == (7 * G, 3_000 + 4_000 + 100)


@pytest.mark.parametrize("restarts", [1, 2])
def test_what_earlier_executors_were_paid_is_not_forgotten_when_the_end_must_be_paid_again(
    hall: Hall, restarts: int
) -> None:
    (asked, *_) = some(given_back(hall), Ask)
    second = hall.sellers[1]
    for seller in hall.sellers[1:]:
        actions = hall.bids(seller, asked, 5.2)
    award = one(actions, Award)
    done = second.done(award, evolve(RESULT, fuel=4 * G))
    hall.got(second, Accepted(hall.task, 2), 5.3)
    hall.got(second, done, 9.0)
    hall.buyer.told(Collected(hall.task, 2, RESULT.output, ""), 9.1)
    hall.buyer.lose_entries(after=3)  # the record was written, the last payment was not
    for boot in range(restarts):
        hall.buyer.boot()
        hall.buyer.told(Started(), 20.0 + boot)
    assert (hall.record.state, hall.record.amount) == (State.DONE, 3_000)
    one(hall.got(second, done, 30.0), Settled)
    hall.buyer.boot()
    assert hall.record.amount == 3_000 + 4_000 + 100
    assert hall.kinds == [Kind.ALLOC, Kind.SETTLE, Kind.ALLOC, Kind.SETTLE]


def test_what_cannot_be_collected_is_not_moved(hall: Hall) -> None:
    award = hall.running()
    hall.got(hall.sellers[0], hall.sellers[0].given_back(award, G), 5.0)
    hall.buyer.told(Collected(hall.task, 1, STATE, "out of reach"), 6.0)
    assert (hall.record.state, hall.record.path) == (State.RUNNING, ())


def test_a_task_wanted_somewhere_is_asked_about_there_first_and_then_everywhere() -> None:
    hall = Hall(sellers=4)
    award = hall.running()
    wanted = hall.sellers[3]
    hall.buyer.told(MoveRequested(hall.task, wanted.peer), 2.0)
    hall.got(hall.sellers[0], hall.sellers[0].given_back(award, G), 3.0)
    actions = hall.buyer.told(Collected(hall.task, 1, STATE, ""), 3.1)
    asked = [a.peer for a in actions if isinstance(a, Send) and isinstance(a.message, Ask)]
    assert asked == [wanted.peer]
    hall.got(wanted, Refusal(hall.task, 2, "no room", may_change=True), 3.2)
    actions = hall.buyer.woken("ask", hall.task, 2, 63.2)
    assert len(some(actions, Ask)) > 1


def test_a_state_on_the_way_is_collected_and_counts_when_the_executor_is_lost(hall: Hall) -> None:
    award = hall.running()
    first = hall.sellers[0]
    collect = one(hall.got(first, first.saved(award, 3 * G), 5.0), Collect)
    assert collect.is_state
    hall.buyer.told(Collected(hall.task, 1, STATE, ""), 5.5)
    assert hall.record.state is State.RUNNING
    assert some(hall.buyer.told(Collected(hall.task, 1, STATE, ""), 5.6), Settled) == []
    actions = hall.buyer.woken("lease", hall.task, 1, 60.0)
    assert Entry.decode(one(actions, Settled).entry).content.deal.fuel == 3 * G
    assert {found.work.moves[-1].state for found in some(actions, Ask)} == {STATE}


def test_without_a_state_a_lost_run_begins_anew_and_is_owed_nothing(hall: Hall) -> None:
    hall.running()
    actions = hall.buyer.woken("lease", hall.task, 1, 60.0)
    assert some(actions, Settled) == []
    assert {found.work for found in some(actions, Ask)} == {WORK}
    assert hall.record.fuel == 0


def test_an_executor_that_gives_up_is_paid_for_the_state_that_it_gave(hall: Hall) -> None:
    award = hall.running()
    first = hall.sellers[0]
    hall.got(first, first.saved(award, 2 * G), 5.0)
    hall.buyer.told(Collected(hall.task, 1, STATE, ""), 5.5)
    actions = hall.got(first, first.lost(award), 6.0)
    assert Entry.decode(one(actions, Settled).entry).content.deal.fuel == 2 * G
    assert hall.record.path[-1].fuel == 2 * G
    assert one(hall.got(first, first.lost(award), 7.0), Settled), "and told so again"


def test_only_a_later_state_of_the_present_lease_is_collected_and_one_at_a_time(hall: Hall) -> None:
    award = hall.running()
    first = hall.sellers[0]
    assert some(hall.got(hall.sellers[1], first.saved(award, 2 * G), 4.0), Collect) == []
    one(hall.got(first, first.saved(award, 2 * G), 5.0), Collect)
    assert some(hall.got(first, first.saved(award, 3 * G), 5.1), Collect) == []
    hall.buyer.told(Collected(hall.task, 1, STATE, ""), 5.5)
    assert some(hall.got(first, first.saved(award, 2 * G), 6.0), Collect) == []
    later = one(hall.got(first, first.saved(award, 3 * G, cid("later")), 7.0), Collect)
    hall.buyer.told(Collected(hall.task, 1, later.roots[0], "out of reach"), 8.0)
    assert hall.record.saved[-1].saved.result.output == STATE, "the last that we hold"


def test_a_state_with_a_bill_that_does_not_follow_is_a_fault(hall: Hall) -> None:
    award = hall.running()
    first = hall.sellers[0]
    saved = first.saved(award, 2 * G)
    for forged in (
        evolve(saved, signature=bytes(64)),
        evolve(saved, result=evolve(saved.result, fuel=G)),
        evolve(saved, result=evolve(saved.result, status="exited")),
    ):
        assert one(hall.got(first, forged, 5.0), Penalize)


def test_one_of_those_who_bid_has_the_state_ready_and_is_asked_whatever_it_costs(
    hall: Hall,
) -> None:
    award = hall.running()
    first = hall.sellers[0]
    hall.got(first, first.saved(award, 2 * G), 5.0)
    actions = hall.buyer.told(Collected(hall.task, 1, STATE, ""), 5.5)
    keep = one(actions, Keep)
    keeper = next(a.peer for a in actions if isinstance(a, Send) and a.message == keep)
    assert keep.state == STATE
    assert keeper != first.peer
    for number in range(20, 40):
        hall.offers(Seller(Keyring(8).create(number)), 6.0, price=1)
    actions = hall.buyer.woken("lease", hall.task, 1, 21.0)
    asked = {a.peer for a in actions if isinstance(a, Send) and isinstance(a.message, Ask)}
    assert keeper in asked
    assert len(asked) <= POLICY.candidates + 1


def test_a_bill_of_a_state_that_a_crash_kept_from_the_chain_is_paid_at_the_next_start(
    hall: Hall,
) -> None:
    given_back(hall)
    player = hall.buyer
    player.entries.pop()  # the record was written, the payment was not
    player._head = read_past(player.peer, NET, player.entries).head
    player.boot()
    actions = hall.buyer.told(Started(), 10.0)
    assert Entry.decode(one(actions, Settled).entry).content.deal.fuel == 3 * G
    assert hall.kinds == [Kind.ALLOC, Kind.SETTLE]
    assert not hall.record.state.is_final, "one part was paid; the task goes on"


def test_what_all_parts_came_to_is_known_after_a_crash_before_the_last_payment(
    hall: Hall,
) -> None:
    (asked, *_) = some(given_back(hall), Ask)
    second = hall.sellers[1]
    hall.bids(second, asked, 5.2)
    award = one(hall.bids(hall.sellers[2], asked, 5.2, price=1_500), Award)
    hall.got(second, Accepted(hall.task, 2), 5.3)
    done = second.done(award, evolve(RESULT, fuel=4 * G))
    hall.got(second, done, 9.0)
    hall.buyer.told(Collected(hall.task, 2, RESULT.output, ""), 9.1)
    player = hall.buyer
    player.entries.pop()
    player._head = read_past(player.peer, NET, player.entries).head
    player.boot()
    player.told(Started(), 10.0)
    assert (hall.record.amount, hall.record.settle) == (3_000, None)
    hall.got(second, done, 11.0)
    assert hall.record.amount == 3_000 + 4_000 + 100


def test_a_task_cancelled_after_a_move_has_cost_what_was_burnt(hall: Hall) -> None:
    given_back(hall)
    hall.buyer.told(CancelRequested(hall.task), 6.0)
    assert (hall.record.state, hall.record.amount) == (State.CANCELLED, 3_000)


def test_who_cannot_move_it_says_why_and_is_asked_no_more(hall: Hall) -> None:
    hall.running()
    first = hall.sellers[0]
    hall.buyer.told(MoveRequested(hall.task, None), 2.0)
    hall.got(first, Stays(hall.task, 1, "its module cannot be moved"), 3.0)
    assert hall.record.reason == f"{STAYS}: its module cannot be moved", "what `mesh migrate` reads"
    assert some(hall.got(first, Renew(hall.task, 1, 1, 0), 5.0), Handover) == []


def test_a_receipt_tells_the_newest_moves_each_with_whom_it_reached() -> None:
    peers = [bytes([n]) * 32 for n in range(12)]
    moves = [Move(n * G, peers[n], STATE) for n in range(10)]  # type: ignore[arg-type]
    told = migrations_of(moves, peers[10])  # type: ignore[arg-type]
    assert len(told) == MIGRATIONS_MAX
    assert told[-1] == (9 * G, peers[9], peers[10], STATE)
    assert told[0] == (2 * G, peers[2], peers[3], STATE)


@pytest.mark.parametrize("steps", [(5, 4), tuple(range(9)), (1 << 62,)])
def test_a_task_with_an_absurd_past_is_not_bid_for(steps: tuple[int, ...]) -> None:
    moves = tuple(Move(step, bytes(32), STATE) for step in steps)  # type: ignore[arg-type]
    with pytest.raises(PeerError):
        check_moves(evolve(WORK, moves=moves))


# --- the executor ---------------------------------------------------------------------------------


class Stall:
    """One seller under test that runs a task, and its buyer, played by hand."""

    def __init__(self) -> None:
        keyring = Keyring(7)
        self.seller = Player(keyring, 0)
        self.buyer = Buyer(keyring.create(1))
        self.task: TaskId = task_id(self.buyer.peer, b"key")
        self.seller.told(Started(), 0.0)
        self.award, self.begun = self.runs(self.task)

    def runs(self, task: TaskId) -> tuple[Award, list[Action]]:
        award = self.buyer.award(one(self.got(ask(task), 0.0), Bid))
        actions = self.got(award, 1.0)
        one(actions, Accepted)
        return award, actions

    def got(self, message: Message, now: float) -> list[Action]:
        return self.seller.got(self.buyer.peer, message, now)

    def burns(self, fuel: int, now: float) -> list[Action]:
        return self.seller.told(RunProgressed(self.task, 1, fuel), now)

    def leaves(self, fuel: int, now: float) -> list[Action]:
        return self.seller.told(Suspended(self.task, 1, STATE, fuel, 2_000), now)


@pytest.fixture
def stall() -> Stall:
    return Stall()


def test_a_run_that_its_buyer_wants_back_is_taken_out_once_and_billed(stall: Stall) -> None:
    wanted = Handover(stall.task, 1, "its client wants it elsewhere")
    assert Suspend(stall.task, 1) in stall.got(wanted, 5.0)
    assert stall.got(wanted, 5.1) == []
    assert stall.seller.kernel.leases() == ((stall.task, 1),), "until it is out"
    done = one(stall.leaves(3 * G, 6.0), Done)
    assert (done.result.status, done.result.output, done.result.fuel) == (MOVED, STATE, 3 * G)
    assert Terms.decode(done.terms).amount == 3_000
    assert stall.seller.kernel.leases() == ()
    assert stall.seller.kernel.reserved() == NOTHING
    settled = stall.got(stall.buyer.settle(done), 7.0)
    assert one(settled, Hosted).what == "settled"


def test_a_strangers_wish_moves_nothing(stall: Stall) -> None:
    stranger = Keyring(3).create(5).peer
    assert stall.seller.got(stranger, Handover(stall.task, 1, "mine"), 5.0) == []
    assert stall.got(Handover(stall.task, 2, "another fence"), 5.0) == []


def test_a_run_that_ends_before_it_is_out_has_ended(stall: Stall) -> None:
    stall.got(Handover(stall.task, 1, "elsewhere"), 5.0)
    done = one(stall.seller.told(RunEnded(stall.task, 1, RESULT), 6.0), Done)
    assert done.result.status == "exited"
    assert stall.leaves(3 * G, 6.1) == []


def test_a_run_revoked_while_it_leaves_is_only_stopped(stall: Stall) -> None:
    stall.got(Handover(stall.task, 1, "elsewhere"), 5.0)
    actions = stall.got(Revoked(stall.task, 1, "superseded", is_owed=False), 5.5)
    assert StopRun(stall.task, 1) in actions
    assert stall.leaves(3 * G, 6.0) == []


def test_a_module_that_cannot_be_moved_stays_and_is_not_asked_again(stall: Stall) -> None:
    stall.got(Handover(stall.task, 1, "elsewhere"), 5.0)
    never = Unmoved(stall.task, 1, "not instrumented", is_for_good=True)
    assert one(stall.seller.told(never, 6.0), Stays).reason == "not instrumented"
    actions = stall.got(Handover(stall.task, 1, "elsewhere"), 7.0)
    assert (some(actions, Suspend), len(some(actions, Stays))) == ([], 1)
    assert some(stall.seller.woken("save", stall.task, 1, 2_000.0), Checkpoint) == []


def test_a_run_that_cannot_be_taken_out_yet_is_tried_again_and_then_stays(stall: Stall) -> None:
    """It had only just begun when its owner wanted the node empty."""
    stall.seller.told(DrainSet(is_on=True), 2.0)
    not_yet = Unmoved(stall.task, 1, "it has not begun to run", is_for_good=False)
    now = 2.1
    for _ in range(5):
        timer = one(stall.seller.told(not_yet, now), WakeAt)
        assert some(stall.seller.woken("save", stall.task, 1, timer.when - 0.1), Suspend) == []
        again = stall.seller.woken("save", stall.task, 1, timer.when)
        assert some(again, Suspend) == [Suspend(stall.task, 1)]
        assert some(stall.seller.woken("save", stall.task, 1, timer.when), Suspend) == [], "once"
        now = timer.when + 0.1
    assert one(stall.seller.told(not_yet, now), Stays).reason == "it has not begun to run"


def test_its_state_is_kept_from_time_to_time_when_it_got_further(stall: Stall) -> None:
    timer = next(a for a in some(stall.begun, WakeAt) if a.event.timer == "save")
    assert some(stall.seller.woken("save", stall.task, 1, timer.when), Checkpoint) == []
    stall.burns(G, timer.when + 1)
    actions = stall.seller.woken("save", stall.task, 1, 3 * timer.when)
    assert Checkpoint(stall.task, 1) in actions
    actions = stall.seller.told(Checkpointed(stall.task, 1, STATE, G), 3 * timer.when + 1)
    saved = one(actions, Saved)
    assert (saved.result.status, saved.result.fuel) == (MOVED, G)
    again = stall.seller.told(Checkpointed(stall.task, 1, STATE, G), 3 * timer.when + 2)
    assert some(again, Saved) == [], "nothing new"


def test_who_was_taken_for_lost_and_paid_for_its_state_stops(stall: Stall) -> None:
    stall.burns(G, 2.0)
    saved = one(stall.seller.told(Checkpointed(stall.task, 1, STATE, G), 3.0), Saved)
    bill = Done(saved.task, saved.fence, saved.result, saved.terms, saved.signature)
    actions = stall.got(stall.buyer.settle(bill), 40.0)
    assert StopRun(stall.task, 1) in actions
    assert stall.seller.kernel.answers_for() == frozenset()
    assert stall.seller.kernel.reserved() == NOTHING


def test_a_dear_task_is_kept_more_often_and_never_without_pause() -> None:
    stall = Stall()
    tenancy = stall.seller.kernel._tenancies.hosted_as(stall.task, 1)
    assert tenancy is not None
    usual = interval_s(tenancy, SHOP, POLICY)
    assert interval_s(tenancy, SHOP, evolve(POLICY, slice_at_least=100)) < usual
    assert interval_s(tenancy, evolve(SHOP, speed=10**9), POLICY) == POLICY.save_at_least_ms / 1000
    tenancy.work = evolve(WORK, needs=evolve(NEEDS, memory=100 * NEEDS.memory))
    slow = interval_s(tenancy, evolve(SHOP, speed=1), evolve(POLICY, slice_at_least=10**9))
    assert slow == SAVE_S


def test_states_are_kept_for_others_within_bounds_until_they_lapse(stall: Stall) -> None:
    def keep(number: int, state: Cid, now: float, size: int = G) -> list[Action]:
        task = task_id(stall.buyer.peer, bytes([number]))
        return stall.got(Keep(task, state, size), now)

    assert keep(0, STATE, 1.0, POLICY.state_kept_bytes_max + 1) == []
    for number in range(POLICY.states_kept_max):
        assert one(keep(number, STATE, 2.0), KeepState).state == STATE
    assert keep(99, STATE, 3.0) == [], "the table is full"
    assert one(keep(0, cid("newer"), 4.0), KeepState).state == cid("newer")
    assert some(keep(0, cid("newer"), 900.0), KeepState) == [], "it is here already"
    lapse_s = POLICY.state_kept_ms / 1000
    zero, one_ = (task_id(stall.buyer.peer, bytes([number])) for number in (0, 1))
    assert stall.seller.woken("keep", zero, 0, 2.0 + lapse_s) == []
    assert one(stall.seller.woken("keep", one_, 0, 2.0 + lapse_s), DropState).task == one_
    assert one(keep(99, STATE, 3_000.0), KeepState)


def test_a_drained_node_gives_back_what_runs_and_takes_nothing_on(stall: Stall) -> None:
    other = task_id(stall.buyer.peer, b"other")
    bid = one(stall.got(ask(other), 1.0), Bid)
    actions = stall.seller.told(DrainSet(is_on=True), 2.0)
    assert Suspend(stall.task, 1) in actions
    assert stall.seller.kernel.free() == NOTHING
    declined = stall.got(stall.buyer.award(bid), 2.5)
    assert some(declined, Run) == []
    third = task_id(stall.buyer.peer, b"third")
    assert one(stall.got(ask(third), 3.0), Refusal).reason == "this node is being emptied"
    offered = stall.seller.woken("offer", None, 0, 20.0)  # type: ignore[arg-type]
    assert offered
    stall.leaves(G, 21.0)
    stall.seller.told(DrainSet(is_on=False), 22.0)
    assert one(stall.got(ask(third, round=2), 23.0), Bid)


def test_the_owners_need_makes_the_lightest_run_leave_one_at_a_time(stall: Stall) -> None:
    light = task_id(stall.buyer.peer, b"light")
    small = evolve(WORK, needs=evolve(NEEDS, memory=G // 2))
    award = stall.buyer.award(one(stall.got(ask(light, work=small), 1.0), Bid))
    stall.got(award, 1.0)
    machine, sold = SHOP.machine, SHOP.sold
    his_own = machine.cpu_milli - sold.cpu_milli
    assert stall.seller.told(LoadSampled(his_own, 0), 2.0) == []
    leaving = some(stall.seller.told(LoadSampled(his_own + 500, 0), 3.0), Suspend)
    assert leaving == [Suspend(light, 1)]
    assert some(stall.seller.told(LoadSampled(his_own + 1_500, 0), 4.0), Suspend) == []
    stall.seller.told(Suspended(light, 1, STATE, G, 1), 5.0)
    more = some(stall.seller.told(LoadSampled(his_own + 1_500, 0), 6.0), Suspend)
    assert more == [Suspend(stall.task, 1)]


def test_a_run_makes_room_for_one_that_pays_far_more_and_not_for_every_ask(stall: Stall) -> None:
    def asked(key: bytes, now: float, **changes: object) -> list[Action]:
        return stall.got(ask(task_id(stall.buyer.peer, key), **changes), now)

    big = evolve(WORK, needs=evolve(NEEDS, cpu_milli=2_000))
    assert one(asked(b"fits", 1.0), Bid), "who finds room takes nobody's"
    stall.got(Release(task_id(stall.buyer.peer, b"fits"), 1, "another bid was better"), 1.5)
    poor = asked(b"poor", 2.0, work=big, max_price=19_999)
    assert (len(some(poor, Refusal)), some(poor, Suspend)) == (1, [])
    huge = evolve(WORK, needs=evolve(NEEDS, cpu_milli=9_000))
    assert some(asked(b"huge", 3.0, work=huge, max_price=10**9), Suspend) == []
    rich = asked(b"rich", 4.0, work=big, max_price=20_100)
    assert (len(some(rich, Refusal)), some(rich, Suspend)) == (1, [Suspend(stall.task, 1)])
    stall.leaves(G, 5.0)
    bid = one(asked(b"rich", 6.0, work=big, max_price=20_100, round=2), Bid)
    stall.got(stall.buyer.award(bid), 6.5)
    again = asked(b"richer", 7.0, work=big, max_price=10**9)
    assert some(again, Suspend) == [], "not so soon"
    gap_s = POLICY.preempt_gap_ms / 1000
    later = asked(b"richest", 4.0 + gap_s, work=big, max_price=10**9)
    assert some(later, Suspend) == [Suspend(bid.task, 2)]


def test_a_peak_that_is_only_expected_makes_room_as_well(stall: Stall) -> None:
    departures = stall.seller.kernel._departures
    peak = Quantiles(3_000, 4_000, 4_000)
    near = Outlook(POLICY.leave_ahead_ms, peak, Quantiles(0, 0, 0))
    far = evolve(near, ahead_ms=POLICY.leave_ahead_ms + 1)
    nothing = Capacity()
    assert departures.pressed(SHOP, nothing, [far]) == []
    assert some(departures.pressed(SHOP, nothing, [near]), Suspend) == [Suspend(stall.task, 1)]


def test_a_node_that_restarts_still_gives_back_what_it_had_taken_out(stall: Stall) -> None:
    stall.got(Handover(stall.task, 1, "elsewhere"), 5.0)
    done = one(stall.leaves(3 * G, 6.0), Done)
    stall.seller.boot()
    assert one(stall.seller.told(Started(), 7.0), Done) == done
    assert stall.seller.kernel.leases() == ()
