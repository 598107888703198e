"""Copies of one task: admitted together, never with one seller, and compared to the last bit."""

from __future__ import annotations

from itertools import permutations

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from market_players import POLICY, RESULT, SHOP, STATE, G, Player, Table, cid, order, some

from mesh.ids import PeerId, TaskId, copy_id, task_id
from mesh.market.agreement import Agreement, Verdict, compare, outcome_of
from mesh.market.copies import RUNS_ANOTHER, copies_of, executors, recent
from mesh.market.order import COPIES_MAX, Group, Order, State, TaskRecord
from mesh.messages import Ask, Move, Release, Result
from mesh.resources.capacity import Capacity
from mesh.sansio import CancelRequested, MoveRequested, PersistTask, Submitted

BUYER = PeerId(bytes(32))
FIRST = task_id(BUYER, b"k")


def submit(table: Table, copies: int, **changes: object) -> tuple[TaskId, ...]:
    """A task that so many nodes are to run."""
    buyer = table["A"]
    wanted = order(buyer.peer, **({"max_price": copies * 20_000} | changes))  # type: ignore[arg-type]
    group = Group(wanted.task, copies)
    table.tell(buyer, Submitted(evolve(wanted, group=group)))
    table.run(0.0)
    return group.members


def ran(player: Player, task: TaskId) -> tuple[PeerId, ...]:
    return executors(player.task(task))


# --- admission


def test_the_ids_of_copies_are_all_different_and_begin_with_the_tasks_own() -> None:
    members = Group(FIRST, COPIES_MAX).members
    assert members[0] == FIRST
    assert len(set(members)) == COPIES_MAX
    assert {copy_id(members[1], 1), copy_id(FIRST, 1)} == {copy_id(members[1], 1), members[1]}


@given(st.integers(2, COPIES_MAX), st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_ceiling_of_the_whole_is_never_exceeded_by_its_copies(
    copies: int, rest: int, fee: int
) -> None:
    whole = order(BUYER, max_price=fee + rest, fee=fee, group=Group(FIRST, copies))
    shares = copies_of(whole)
    assert len(shares) == copies
    assert 0 <= whole.max_price - sum(share.max_price for share in shares) < copies
    assert all(share.fee <= share.max_price for share in shares)
    assert {share.work for share in shares} == {whole.work}, "one job, byte for byte"


def test_all_copies_are_written_in_one_batch_before_anybody_is_asked() -> None:
    table = Table(4)
    wanted = evolve(order(table["A"].peer), group=Group(order(table["A"].peer).task, 3))
    actions = table["A"].told(Submitted(wanted))
    kinds = [type(action) for action in actions if isinstance(action, PersistTask)]
    assert len(kinds) == 3
    first_ask = next(at for at, action in enumerate(actions) if some([action], Ask))
    last_write = max(at for at, action in enumerate(actions) if isinstance(action, PersistTask))
    assert last_write < first_ask


def test_copies_for_which_there_is_no_room_are_not_admitted_at_all() -> None:
    table = Table(3, policy=evolve(POLICY, tasks_open_max=2))
    assert submit(table, 3)[0] not in table["A"].kernel.records
    assert "3 more" in table["A"].kernel.why_full(3)
    assert submit(table, 2)[1] in table["A"].kernel.records


# --- who runs them


def test_copies_run_on_different_nodes() -> None:
    table = Table(4)
    tasks = submit(table, 3)
    table.run(2.0)
    names = sorted(table.executor(task).name for task in tasks)
    assert names == ["B", "C", "D"]


def test_a_copy_waits_rather_than_go_to_who_runs_another() -> None:
    table = Table(3)
    tasks = submit(table, 3)
    table.run(70.0)
    states = [table["A"].task(task).state for task in tasks]
    assert sorted(states) == [State.RUNNING, State.RUNNING, State.WAITING]
    (waiting,) = [task for task in tasks if table["A"].task(task).state is State.WAITING]
    assert RUNS_ANOTHER in table["A"].task(waiting).reason


def test_who_ran_a_copy_to_its_end_does_not_get_another() -> None:
    table = Table(2)
    one, two = submit(table, 2)
    table.run(2.0)
    table.finish(table["B"], one)
    table.run(200.0)
    assert table["A"].task(one).state is State.DONE
    assert table["A"].task(two).state is State.WAITING
    assert table["A"].task(two).reason == f"1 offers seen: 1 {RUNS_ANOTHER}"


def test_nobody_is_asked_in_vain_for_a_copy_that_it_may_not_have() -> None:
    table = Table(2)
    _, two = submit(table, 2)
    table.run(2.0)
    before = len(table.log)
    table.run(120.0)
    asked = [ask for _, _, _, acts in table.log[before:] for ask in some(acts, Ask)]
    assert [ask for ask in asked if ask.task == two] == []


def test_a_bidder_that_got_another_copy_meanwhile_is_let_go_with_the_reason() -> None:
    table = Table(4)
    submit(table, 2)
    table.run(2.0)
    reasons = [r.reason for _, _, _, acts in table.log for r in some(acts, Release)]
    assert RUNS_ANOTHER in reasons


def test_who_ran_the_copy_before_it_moved_does_not_get_another() -> None:
    table = Table(4)
    one, two = submit(table, 2)
    table.run(2.0)
    source, other = table.executor(one), table.executor(two)
    (free,) = {"B", "C", "D"} - {source.name, other.name}
    table.tell(table["A"], MoveRequested(one, None))
    table.suspend(source, one, STATE, 3 * G)
    table.run(5.0)
    assert table.executor(one).name == free
    assert ran(table["A"], one) == (source.peer, table[free].peer)
    table.crash(other)
    table.run(60.0)
    assert table["A"].task(two).executor is None
    assert table["A"].task(two).state is State.WAITING


def test_a_copy_is_not_moved_to_who_runs_another() -> None:
    table = Table(3)
    one, two = submit(table, 2)
    table.run(2.0)
    there = table.executor(two).peer
    assert RUNS_ANOTHER in table["A"].kernel.migrator.why_not(one, there)
    assert table.tell(table["A"], MoveRequested(one, there)) == []


def test_a_restarted_buyer_still_knows_who_ran_what() -> None:
    table = Table(2, policy=evolve(POLICY, tasks_ended_max=1))
    one, two = submit(table, 2)
    table.run(2.0)
    table.finish(table["B"], one)
    for number in range(3):
        other = table.submit(table["A"], key=b"%d" % number)
        table.run(2.0)
        table.finish(table["B"], other)
    assert one in table["A"].kernel.records, "its other copy is still open"
    table.restart(table["A"])
    table.run(200.0)
    assert table["A"].task(two).state is State.WAITING
    table.tell(table["A"], CancelRequested(two))
    assert one not in table["A"].kernel.records


def test_cancelling_the_first_copy_cancels_all_and_another_only_itself() -> None:
    table = Table(4)
    one, two, three = submit(table, 3)
    table.run(2.0)
    table.tell(table["A"], CancelRequested(three))
    states = [table["A"].task(task).state for task in (one, two, three)]
    assert states == [State.RUNNING, State.RUNNING, State.CANCELLED]
    table.tell(table["A"], CancelRequested(one))
    assert {table["A"].task(task).state for task in (one, two, three)} == {State.CANCELLED}


def test_copies_on_nodes_of_one_slot_are_all_placed() -> None:
    """Each is asked for all of them at once, and has room for one."""
    narrow = evolve(SHOP, sold=Capacity(1_000, 2 * G, 50 * G, 1))
    nothing = evolve(SHOP, sold=Capacity(), features=())
    table = Table(4, shops=[nothing, narrow, narrow, narrow])
    tasks = submit(table, 3)
    table.run(60.0)
    assert sorted(table.executor(task).name for task in tasks) == ["B", "C", "D"]


def test_what_is_open_is_remembered_with_its_ended_copies_and_some_of_the_rest() -> None:
    plain = [_record(order(BUYER, bytes([n])), State.DONE) for n in range(4)]
    one, two = (
        _record(copy, state)
        for copy, state in zip(
            copies_of(order(BUYER, group=Group(FIRST, 2))),
            (State.DONE, State.RUNNING),
            strict=True,
        )
    )
    assert recent([one, *plain, two], 2) == (one, *plain[2:], two)
    assert recent([*plain, two], 0) == (two,)
    awarded = {plain[0].order.task, one.order.task}
    assert recent([*plain, two], 1, awarded) == (plain[0], plain[3], two)


# --- what they came to


def _record(wanted: Order, state: State, result: Result | None = None) -> TaskRecord:
    fuel = result.fuel if result else 0
    return TaskRecord(wanted, state, 0, result=result, fuel=fuel)


OTHERS = (
    {"status": "trapped"},
    {"exit_code": 1},
    {"output": cid("forged")},
    {"stdout": cid("forged")},
    {"stderr": cid("forged")},
    {"fuel": RESULT.fuel + 1},
)
"""Each alone makes a copy differ."""


def group_of(*results: Result | None, state: State = State.DONE) -> Agreement:
    group = Group(FIRST, len(results))
    copies = copies_of(order(BUYER, group=group))
    records = [
        _record(copy, state if result else State.FAILED, result)
        for copy, result in zip(copies, results, strict=True)
    ]
    return compare(group, {record.order.task: record for record in records})


def test_copies_that_came_to_the_same_agree() -> None:
    members = Group(FIRST, 3).members
    assert group_of(RESULT, RESULT, RESULT) == Agreement(Verdict.AGREED, members)
    assert group_of(RESULT, RESULT, evolve(RESULT, run_ms=1, detail="x")).verdict is Verdict.AGREED


def test_any_difference_is_a_dissent_and_the_smaller_side_is_doubted() -> None:
    one, two, three = Group(FIRST, 3).members
    for change in OTHERS:
        told = group_of(RESULT, evolve(RESULT, **change), RESULT)  # type: ignore[arg-type]
        assert told == Agreement(Verdict.DISAGREED, (one, three), (two,)), change


def test_without_a_majority_all_are_doubted() -> None:
    lie = evolve(RESULT, fuel=1)
    one, two, *_ = members = Group(FIRST, 4).members
    assert group_of(RESULT, lie) == Agreement(Verdict.DISAGREED, (), (one, two))
    assert group_of(RESULT, lie, lie, RESULT) == Agreement(Verdict.DISAGREED, (), members)


def test_a_copy_without_an_outcome_makes_the_others_too_few_and_hides_no_dissent() -> None:
    one, two, three = Group(FIRST, 3).members
    assert group_of(RESULT, None, RESULT) == Agreement(Verdict.SHORT, (one, three), (), (two,))
    assert group_of(None, None, None) == Agreement(Verdict.SHORT, (), (), (one, two, three))
    told = group_of(RESULT, evolve(RESULT, fuel=1), None)
    assert told == Agreement(Verdict.DISAGREED, (), (one, two), (three,))


def test_what_depends_on_the_machine_is_compared_with_nothing() -> None:
    for status in ("wall-limit", "cancelled"):
        assert group_of(RESULT, evolve(RESULT, status=status)).verdict is Verdict.SHORT
    assert group_of(RESULT, RESULT, state=State.CANCELLED).verdict is Verdict.SHORT


def test_nothing_is_said_before_all_have_ended_nor_of_what_is_forgotten() -> None:
    group = Group(FIRST, 2)
    one, two = copies_of(order(BUYER, group=group))
    done = _record(one, State.DONE, RESULT)
    running = _record(two, State.RUNNING)
    records = {FIRST: done, two.task: running}
    assert compare(group, records) == Agreement(Verdict.OPEN, missing=(two.task,))
    assert compare(group, {FIRST: done}).verdict is Verdict.FORGOTTEN


def test_of_a_moved_copy_the_fuel_of_all_its_executors_counts() -> None:
    one, two = copies_of(order(BUYER, group=Group(FIRST, 2)))
    last = evolve(RESULT, fuel=RESULT.fuel - 3 * G)
    moved = evolve(
        _record(two, State.DONE, last), fuel=RESULT.fuel, path=(Move(3 * G, BUYER, STATE),)
    )
    records = {FIRST: _record(one, State.DONE, RESULT), two.task: moved}
    assert compare(Group(FIRST, 2), records).verdict is Verdict.AGREED


@given(st.lists(st.sampled_from([None, 0, 1, 2]), min_size=2, max_size=COPIES_MAX))
def test_every_copy_is_on_one_side_and_the_verdict_says_how_they_lie(
    lies: list[int | None],
) -> None:
    results = [None if lie is None else evolve(RESULT, fuel=RESULT.fuel + lie) for lie in lies]
    told = group_of(*results)
    members = Group(FIRST, len(lies)).members
    assert sorted((*told.majority, *told.dissenters, *told.missing)) == sorted(members)
    spoken = [lie for lie in lies if lie is not None]
    assert (told.verdict is Verdict.DISAGREED) == (len(set(spoken)) > 1)
    assert (told.verdict is Verdict.AGREED) == (len(set(lies)) == 1 and None not in lies)
    if told.majority:
        assert len(told.majority) * 2 > len(spoken)
        assert len({lies[members.index(task)] for task in told.majority}) == 1


def test_the_order_of_the_copies_says_nothing() -> None:
    lie = evolve(RESULT, fuel=1)
    for results in permutations((RESULT, RESULT, lie)):
        told = group_of(*results)
        (dissenter,) = told.dissenters
        assert results[Group(FIRST, 3).members.index(dissenter)] == lie


def test_a_task_that_has_not_ended_has_no_outcome() -> None:
    running = _record(order(BUYER), State.RUNNING, RESULT)
    assert outcome_of(running) is None
