"""The kernel: it routes, it blames whoever broke a rule, and everything it keeps has a bound."""

from __future__ import annotations

import pytest
from attrs import evolve
from market_players import (
    NEEDS,
    RESULT,
    SHOP,
    Buyer,
    G,
    Player,
    Seller,
    Table,
    ask,
    one,
    order,
    some,
)

from ledger.model import Entry
from mesh.ids import PeerId, TaskId
from mesh.kernel import FAULTS_MAX
from mesh.market.order import State
from mesh.messages import (
    Accepted,
    Award,
    Bid,
    Declined,
    Done,
    Lost,
    Message,
    Quantiles,
    Refusal,
    Release,
    Renew,
    Renewed,
    Revoked,
    Settled,
    SignedOffer,
)
from mesh.notices import OfferAged, OfferHeard
from mesh.resources.capacity import Capacity
from mesh.sansio import (
    Action,
    CancelRequested,
    Collected,
    Gossip,
    LoadSampled,
    OfferReceived,
    Penalize,
    RunEnded,
    RunLost,
    RunProgressed,
    Send,
    Started,
    WakeAt,
    Woken,
)
from mesh.sim.keyring import Keyring

TASK = TaskId(bytes(range(16)))
STRANGER = PeerId(bytes(32))
SIGNATURE = bytes(64)
UNHEARD_OF: tuple[Message, ...] = (
    Bid(TASK, 1, b"", SIGNATURE, Quantiles(3, 2, 1), 2_000, 0, 0, ""),
    Refusal(TASK, 1, "", may_change=True),
    Accepted(TASK, 1),
    Declined(TASK, 1, "", b"", SIGNATURE),
    Release(TASK, 1, ""),
    Renewed(TASK, 1, 1, 1),
    Revoked(TASK, 1, "", is_owed=True),
    Settled(TASK, 1, b""),
)


@pytest.fixture
def player() -> Player:
    player = Player(Keyring(4), 0)
    player.told(Started(), 0.0)
    return player


@pytest.mark.parametrize("message", UNHEARD_OF, ids=lambda message: type(message).__name__)
def test_a_message_about_nothing_known_changes_nothing(player: Player, message: Message) -> None:
    assert player.got(STRANGER, message, 1.0) == []


@pytest.mark.parametrize(
    "message",
    [
        Renew(TASK, 1, 1, 1),
        Done(TASK, 1, RESULT, b"", SIGNATURE),
        Lost(TASK, 1, "", b"", SIGNATURE),
    ],
    ids=lambda message: type(message).__name__,
)
def test_who_claims_a_lease_that_is_unknown_is_told_to_stop(
    player: Player, message: Message
) -> None:
    assert player.got(STRANGER, message, 1.0) == [
        Send(STRANGER, Revoked(TASK, 1, "unknown task", is_owed=False))
    ]


def test_shell_events_about_nothing_known_change_nothing(player: Player) -> None:
    for event in (
        CancelRequested(TASK),
        RunProgressed(TASK, 1, 1),
        RunEnded(TASK, 1, RESULT),
        RunLost(TASK, 1, "killed"),
        Collected(TASK, 1, RESULT.output, ""),
    ):
        assert player.told(event, 1.0) == []


@pytest.mark.parametrize(
    "timer",
    ["window", "award", "lease", "ask", "deadline", "hold", "renew", "expire", "orphan", "answer"],
)
def test_a_wake_up_whose_subject_has_moved_on_is_ignored(player: Player, timer: str) -> None:
    assert player.woken(timer, TASK, 1, 1.0) == []


def test_who_breaks_a_rule_is_penalized_and_counted(player: Player) -> None:
    foul = Award(TASK, 1, b"\xc1", 15_000)
    penalty = one(player.got(STRANGER, foul, 1.0), Penalize)
    assert penalty.peer == STRANGER
    assert penalty.reason.startswith("a bad entry")
    assert player.kernel.statistics()["fault_a bad entry"] == 1


def test_kinds_of_faults_are_bounded_whatever_peers_put_into_them() -> None:
    keyring = Keyring(4)
    player, buyer = Player(keyring, 0), Buyer(keyring.create(1))
    player.told(Started(), 0.0)
    bid = one(player.got(buyer.peer, ask(TASK), 0.0), Bid)
    entry = Entry.decode(buyer.award(bid).entry)
    for amount in range(1, 2 * FAULTS_MAX):
        terms = evolve(entry.content.deal, amount=amount).encode()
        foul = Entry(evolve(entry.content, terms=terms).encode(), entry.sig)
        reason = one(player.got(buyer.peer, Award(TASK, 1, foul.encode(), 1), 0.0), Penalize).reason
        assert f"the amount is {amount}" in reason
    assert dict(player.kernel.faults) == {"a bad award": 2 * FAULTS_MAX - 1}


def test_who_passes_on_a_bad_offer_is_not_to_blame(player: Player) -> None:
    offer = Seller(Keyring(4).create(1)).offer()
    for bad in (evolve(offer, signature=SIGNATURE), SignedOffer(b"", SIGNATURE)):
        assert player.told(OfferReceived(bad), 1.0) == []
    assert sum(player.kernel.faults.values()) == 2


def test_a_start_opens_for_business() -> None:
    player = Player(Keyring(4), 0)
    actions = player.told(Started(), 5.0)
    assert one(actions, Gossip)
    assert player.kernel.offer
    timers = [action.event for action in some(actions, WakeAt)]
    assert Woken("offer", None, 0) in timers
    assert Woken("accounts", None, 0) in timers


def test_a_newcomer_is_greeted_with_a_fresh_offer() -> None:
    keyring = Keyring(4)
    player, newcomer = Player(keyring, 0), Seller(keyring.create(1))
    player.told(Started(), 0.0)
    actions = player.told(OfferReceived(newcomer.offer()), 7.0)
    assert one(actions, OfferHeard).offer.peer == newcomer.peer
    assert one(actions, WakeAt) == WakeAt(7.0, Woken("offer", None, 0))
    assert one(player.woken("offer", None, 0, 7.0), Gossip)


def test_a_peer_that_fell_silent_is_told_of() -> None:
    keyring = Keyring(4)
    player, silent = Player(keyring, 0), Seller(keyring.create(1))
    player.told(Started(), 0.0)
    player.told(OfferReceived(silent.offer()), 0.0)
    assert one(player.woken("offer", None, 0, 60.0), OfferAged).peer == silent.peer


def test_a_hold_that_changes_what_is_free_is_announced_soon(player: Player) -> None:
    actions: list[Action] = player.got(STRANGER, ask(TASK), 5.0)
    assert WakeAt(5.0, Woken("offer", None, 0)) in actions
    player.woken("offer", None, 0, 5.0)
    assert player.kernel.offer
    assert player.kernel.offer.free == SHOP.sold - NEEDS


def test_the_owner_comes_first(player: Player) -> None:
    # 2,000 of 4,000 thousandths and 4 of 8 GB are for sale; the other half is the owner's anyhow.
    player.told(LoadSampled(1_900, 4 * G), 1.0)
    assert player.kernel.free() == SHOP.sold
    actions = player.told(LoadSampled(3_000, 6 * G), 2.0)
    assert player.kernel.free() == Capacity(1_000, 2 * G, 50 * G, 2)
    assert player.kernel.sold() == SHOP.sold
    assert some(actions, WakeAt), "and everybody hears of it"
    player.told(LoadSampled(99_000, 99 * G), 3.0)
    assert player.kernel.free() == Capacity(0, 0, 50 * G, 2)


def test_every_table_has_a_name_and_a_bound(player: Player) -> None:
    assert set(player.kernel.sizes()) == {
        "offers", "calibration", "faults", "tasks_open", "tasks_ended", "allocs_open", "closings",
        "holds", "tenancies", "modules", "buyers", "deals_open", "deals_closed", "keys_forked",
        "keyops", "states_kept", "copies_ended", "tasks_unpaid",
    }  # fmt: skip


# --- three nodes ----------------------------------------------------------------------------------


def test_a_task_goes_all_the_way() -> None:
    table = Table()
    buyer = table["A"]
    task = table.submit(buyer)
    assert buyer.task(task).state is State.RUNNING
    seller = table.executor(task)
    table.run(5.0)
    table.finish(seller, task)
    assert (buyer.task(task).state, buyer.task(task).amount) == (State.DONE, 7_100)
    assert seller.received == buyer.entries
    assert not seller.tenancies
    table.run(120.0)
    for player in table.players:
        assert player.kernel.reserved() == Capacity()
        assert player.kernel.leases() == ()


def test_a_node_does_not_sell_to_itself() -> None:
    table = Table(1, shops=[SHOP])
    task = table.submit(table["A"])
    assert table["A"].task(task).state is State.WAITING


def test_more_tasks_than_room_wait_and_run_as_room_shows() -> None:
    table = Table(2)
    tasks = [table.submit(table["A"], key=str(number).encode()) for number in range(3)]
    states = [table["A"].task(task).state for task in tasks]
    assert states == [State.RUNNING, State.RUNNING, State.WAITING]
    table.run(3.0)
    table.finish(table["B"], tasks[0])
    table.run(3.0)
    assert table["A"].task(tasks[2]).state is State.RUNNING


def test_the_same_kernel_told_the_same_does_the_same() -> None:
    def play() -> list[object]:
        table = Table(4)
        task = table.submit(table["A"])
        table.run(20.0)
        table.finish(table.executor(task), task)
        table.run(60.0)
        return [(now, player.name, event, actions) for now, player, event, actions in table.log]

    assert play() == play()


def test_when_every_message_comes_twice_nothing_happens_twice() -> None:
    table = Table(3)
    said: list[tuple[Player, Player, Message]] = []

    def listen(source: Player, target: Player, message: Message) -> bool:
        said.append((source, target, message))
        return False

    table.is_lost = listen
    task = table.submit(table["A"])
    for _ in range(2):
        for source, target, message in said:
            target.got(source.peer, message, table.now)
        if table.runs:
            table.finish(table.executor(task), task)
    assert len(table["A"].entries) == 2
    assert table["A"].task(task).amount == 7_100


def test_an_order_names_its_buyer() -> None:
    table = Table()
    assert order(table["A"].peer).task != order(table["B"].peer).task
