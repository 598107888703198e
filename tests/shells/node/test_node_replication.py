"""Replication: pushed, merged, repaired; forks are told, and a node never forks itself."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import trio
from attrs import evolve
from ledger_deals import ALICE, BOB, CAROL, NET, WALL_MS, Chain
from node_replicas import NEVER, OFTEN, all_hear, eventually, open_node, party

from ledger.codec import pack
from ledger.model import Entry, Kind
from ledger.statements import Op
from ledger.store import Store
from ledger.validity import prove_fork
from mesh import rumours
from mesh.errors import MeshError, Stopped
from mesh.network.calls import Call
from mesh.network.gossip import ENTRIES
from mesh.network.network import LEDGER
from mesh.replication import OUTBOX_MAX
from mesh.upkeep import scan

ONE, TWO, THREE = party(1), party(2), party(3)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What time it is: that of the deals."""
    now = [WALL_MS]
    monkeypatch.setattr("mesh.replication._now_ms", lambda: now[0])
    return now


# --- push -------------------------------------------------------------------------------------


async def test_what_one_pushes_all_hold_and_who_is_concerned_learns_it(tmp_path: Path) -> None:
    own = Chain(ONE)
    async with (
        open_node(tmp_path, 1, config=NEVER) as one,
        open_node(tmp_path, 2, meets=[one], config=NEVER) as two,
        open_node(tmp_path, 3, meets=[one], config=NEVER) as three,
    ):
        await all_hear(one, two, three)
        entries = [own.alloc(TWO), own.alloc(CAROL), own.keyop(Op.DELEGATE, CAROL)]
        one.store.append_own(entries)
        one.replication.push(entries)
        await eventually(lambda: two.holds(*entries) and three.holds(*entries))
        await eventually(lambda: two.learned == {entries[0], entries[2]})
        await eventually(lambda: three.learned == {entries[2]})
        assert one.count("ledger_pushed") == 3
        assert one.learned == set()


async def test_a_forged_entry_goes_nowhere_and_counts_against_who_passes_it_on(
    tmp_path: Path,
) -> None:
    async with (
        open_node(tmp_path, 1, config=NEVER) as one,
        open_node(tmp_path, 2, meets=[one], config=NEVER) as two,
    ):
        await all_hear(one, two)
        good = Chain(BOB).alloc(ALICE)
        forged = Entry(good.body, bytes(64))
        for data in (b"junk", forged.encode(), good.encode()):
            await one.network.publish(ENTRIES, data)
        await eventually(lambda: two.holds(good))
        assert list(two.store.entries()) == [good]
        assert two.count("faults") == two.count("gossip_invalid") == 2


async def test_what_a_newer_program_says_is_passed_over_and_no_fault(tmp_path: Path) -> None:
    async with (
        open_node(tmp_path, 1, config=NEVER) as one,
        open_node(tmp_path, 2, meets=[one], config=NEVER) as two,
    ):
        await all_hear(one, two)
        newer = [pack((pack((9, NET, 1)), bytes(64))), pack((pack((1, NET, 99)), bytes(64)))]
        for data in newer:
            await one.network.publish(ENTRIES, data)
        await eventually(lambda: two.count("ledger_unreadable") == 2)
        assert two.count("faults") == 0


async def test_an_entry_that_is_there_is_neither_verified_again_nor_a_fault(
    tmp_path: Path,
) -> None:
    old, new = (chain := Chain(BOB)).alloc(ALICE), chain.alloc(ALICE)
    async with (
        open_node(tmp_path, 1, config=NEVER) as one,
        open_node(tmp_path, 2, [old], meets=[one], config=NEVER) as two,
    ):
        await all_hear(one, two)
        verified = rumours.verify.cache_info()
        for _ in range(3):
            await one.network.publish(ENTRIES, old.encode())
        await eventually(lambda: two.count("gossip_known") >= 3)
        assert rumours.verify.cache_info() == verified
        await one.network.publish(ENTRIES, new.encode())
        await eventually(lambda: two.holds(new))
        assert two.count("faults") == 0


async def test_what_waits_to_be_said_is_bounded_and_counted(tmp_path: Path) -> None:
    async with open_node(tmp_path, 1, config=NEVER) as one:
        entry = Chain(ONE).alloc(TWO)
        one.replication.push([entry] * (OUTBOX_MAX + 3))
        assert one.count("ledger_unsaid") == 3


async def test_an_entry_ahead_of_its_time_waits_and_then_is_taken(
    tmp_path: Path, clock: list[int]
) -> None:
    entry = Chain(BOB).alloc(ALICE)
    clock[0] -= 10 * 60_000
    async with (
        open_node(tmp_path, 1, config=NEVER) as one,
        open_node(tmp_path, 2, meets=[one], config=evolve(NEVER, tidy_s=0.05)) as two,
    ):
        await all_hear(one, two)
        await one.network.publish(ENTRIES, entry.encode())
        await eventually(lambda: two.count("ledger_merged_waiting") == 1)
        assert not two.holds(entry)
        clock[0] += 10 * 60_000
        await eventually(lambda: two.holds(entry))


# --- repair -----------------------------------------------------------------------------------


async def test_what_gossip_did_not_bring_is_repaired_both_ways(tmp_path: Path) -> None:
    bob, carol = Chain(BOB), Chain(CAROL)
    his, hers = [bob.alloc(ONE) for _ in range(30)], [carol.alloc(ALICE) for _ in range(20)]
    async with (
        open_node(tmp_path, 1, hers) as one,
        open_node(tmp_path, 2, his, meets=[one]) as two,
    ):
        await eventually(lambda: one.holds(*his) and two.holds(*hers))
        assert one.store.total() == two.store.total()
        await eventually(lambda: one.learned == set(his))
        await eventually(lambda: one.count("ledger_rounds_equal") > 0)
        rounds = one.count("ledger_rounds") + one.count("ledger_rounds_served")
        assert rounds > 0
        assert one.count("ledger_new") == 30


async def test_equal_nodes_spend_a_few_bytes_on_each_round(tmp_path: Path) -> None:
    bob = Chain(BOB)
    entries = [bob.alloc(ALICE) for _ in range(50)]
    async with (
        open_node(tmp_path, 1, entries) as one,
        open_node(tmp_path, 2, entries, meets=[one], config=NEVER),
    ):
        await eventually(lambda: one.count("ledger_rounds_equal") >= 3)
        rounds = one.count("ledger_rounds")
        assert one.count("ledger_bytes_in") + one.count("ledger_bytes_out") == 56 * rounds


async def test_now_and_then_entries_are_compared_one_by_one_by_the_clock(tmp_path: Path) -> None:
    config = evolve(OFTEN, full_repair_s=0.1)
    async with (
        open_node(tmp_path, 1, [Chain(BOB).alloc(ALICE)], config=config) as one,
        open_node(tmp_path, 2, meets=[one], config=NEVER),
    ):
        await eventually(lambda: one.count("ledger_rounds_full") >= 2)


async def test_forkers_do_not_have_a_long_ledger_read_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new proof each time leaves chains equal and ledgers not: a comparison of all is rested."""
    monkeypatch.setattr("mesh.replication.FULL_PER_S", 0.001)
    async with (
        open_node(tmp_path, 1, config=NEVER) as one,
        open_node(tmp_path, 2, meets=[one]) as two,
    ):
        for index in range(20, 28):
            forker = Chain(party(index))
            proof = prove_fork(forker.fork().alloc(ALICE), forker.alloc(ALICE, price=7))
            assert proof is not None
            one.store.add([proof])
            rounds = two.count("ledger_rounds")
            await eventually(lambda rounds=rounds: two.count("ledger_rounds") > rounds)
        assert two.count("ledger_rounds_full") == 1


async def test_an_empty_ledger_takes_authors_at_their_word_and_checks_them_later(
    tmp_path: Path,
) -> None:
    bob = Chain(BOB)
    entries = [bob.alloc(ALICE) for _ in range(40)]
    async with (
        open_node(tmp_path, 1, entries, config=NEVER) as one,
        open_node(tmp_path, 2, meets=[one]) as two,
    ):
        await eventually(lambda: two.holds(*entries))
        assert two.count("ledger_merged_vouched") == 39
        assert two.store.vouched(1) == ()


async def test_who_lies_in_a_call_is_blamed_and_who_hangs_up_is_not(tmp_path: Path) -> None:
    async with (
        open_node(tmp_path, 1, config=NEVER) as one,
        open_node(tmp_path, 2, meets=[one], config=NEVER) as two,
    ):
        await eventually(lambda: bool(two.network.connected()))
        async with two.network.call(one.network.peer, LEDGER) as call:
            await call.send_all(bytes(2))
        await eventually(lambda: one.count("calls_failed") == 1)
        assert one.count("faults") == 0
        async with two.network.call(one.network.peer, LEDGER) as call:
            await call.send_all((1 << 31).to_bytes(4, "big"))
            assert await call.receive_some(1) == b""
        await eventually(lambda: one.count("faults") == 1)


async def test_a_peer_that_answers_with_nonsense_is_blamed(tmp_path: Path) -> None:
    async def nonsense(call: Call) -> None:
        await call.receive_some(64)
        await call.send_all((1 << 31).to_bytes(4, "big"))
        await call.receive_some(64)

    async with open_node(tmp_path, 1, config=NEVER) as one:
        one.network._calls.answers = {LEDGER: nonsense}
        one.network._calls.register()
        async with open_node(tmp_path, 2, meets=[one]) as two:
            await eventually(lambda: two.count("faults") > 0)
            assert two.count("ledger_rounds_failed") > 0


async def test_what_a_call_brought_before_it_was_cut_off_is_told(tmp_path: Path) -> None:
    entry = Chain(BOB).alloc(ONE)
    async with open_node(tmp_path, 1, config=NEVER) as one:
        replication = one.replication

        def merge_and_be_cut_off() -> None:
            replication._note(replication.merger.merge([entry.encode()], WALL_MS))
            trio.from_thread.run_sync(scope.cancel)

        with trio.CancelScope() as scope:
            await replication.in_turn(merge_and_be_cut_off)
        assert one.learned == {entry}


# --- forks ------------------------------------------------------------------------------------


async def test_two_arms_held_by_two_nodes_become_a_fork_known_to_both(tmp_path: Path) -> None:
    bob = Chain(BOB)
    arm, other = bob.fork().alloc(ALICE), bob.alloc(ALICE, price=7)
    async with (
        open_node(tmp_path, 1, [arm]) as one,
        open_node(tmp_path, 2, [other], meets=[one]) as two,
    ):
        await eventually(lambda: one.holds(arm, other) and two.holds(arm, other))
        await eventually(lambda: one.forked == two.forked == [BOB.key])
        await eventually(lambda: one.store.total() == two.store.total())
        kinds = [entry.content.kind for entry in one.store.entries()]
        assert kinds.count(Kind.FORKPROOF) == 1
        assert one.count("ledger_forks") == 1


async def test_what_no_chain_tells_of_is_found_entry_by_entry(tmp_path: Path) -> None:
    """A proof has no author, so that comparing chains moves nothing and leaves both unequal."""
    bob, carol = Chain(BOB), Chain(CAROL)
    proof = prove_fork(bob.fork().alloc(ALICE), bob.alloc(ALICE, price=7))
    assert proof is not None
    deal = carol.alloc(ALICE)
    async with (
        open_node(tmp_path, 1, [proof, deal], config=NEVER) as one,
        open_node(tmp_path, 2, [deal], meets=[one]) as two,
    ):
        await eventually(lambda: two.holds(proof))
        await eventually(lambda: two.forked == one.forked == [BOB.key])
        await eventually(lambda: two.count("ledger_rounds_full") == 1)


async def test_who_sees_a_fork_tells_everybody(tmp_path: Path) -> None:
    """The second arm comes by a deal, to one node: the others hear of it as a proof."""
    bob = Chain(BOB)
    arm, other = bob.fork().alloc(ALICE), bob.alloc(ONE, price=7)
    async with (
        open_node(tmp_path, 1, [arm], config=NEVER) as one,
        open_node(tmp_path, 2, [arm], meets=[one], config=NEVER) as two,
    ):
        await all_hear(one, two)
        one.store.add([other])
        one.replication.look_at([other])
        await eventually(lambda: one.forked == two.forked == [BOB.key])
        assert not two.holds(other)
        assert two.count("faults") == 0


async def test_forks_are_told_again_after_a_restart(tmp_path: Path) -> None:
    bob = Chain(BOB)
    arms = [bob.fork().alloc(ALICE), bob.alloc(ALICE, price=7)]
    async with open_node(tmp_path, 1, arms, config=NEVER) as one:
        await eventually(lambda: one.forked == [BOB.key])


# --- our own chain ----------------------------------------------------------------------------


async def test_a_new_key_is_confirmed_before_anybody_is_met(tmp_path: Path) -> None:
    async with open_node(tmp_path, 1) as one:
        await eventually(lambda: one.confirmed == [()])


async def test_what_was_lost_of_our_chain_comes_back_in_order_before_we_go_on(
    tmp_path: Path,
) -> None:
    own = Chain(ONE)
    entries = [own.alloc(TWO) for _ in range(6)]
    async with (
        open_node(tmp_path, 2, entries, config=NEVER) as two,
        open_node(tmp_path, 1, entries[:2], meets=[two], is_confirmed=False) as one,
    ):
        await eventually(lambda: bool(one.confirmed))
        assert one.confirmed == [tuple(entries[2:])]
        assert one.learned == set()
        assert one.count("ledger_lost") == 4
        assert one.alarms == []


async def test_a_key_with_no_ledger_at_all_gets_its_chain_back(tmp_path: Path) -> None:
    own = Chain(ONE)
    entries = [own.alloc(TWO) for _ in range(40)]
    async with (
        open_node(tmp_path, 2, entries, config=NEVER) as two,
        open_node(tmp_path, 1, meets=[two], is_confirmed=False) as one,
    ):
        await eventually(lambda: one.confirmed == [tuple(entries)])


async def test_nothing_is_confirmed_while_nobody_is_met(tmp_path: Path) -> None:
    entries = [(own := Chain(ONE)).alloc(TWO), own.alloc(TWO)]
    async with open_node(tmp_path, 1, entries[:1], is_confirmed=False) as one:
        await eventually(lambda: one.count("ledger_periods") >= 2)
        assert one.confirmed == []
        async with open_node(tmp_path, 2, entries, config=NEVER) as two:
            await one.network.connect(two.where)
            await eventually(lambda: one.confirmed == [(entries[1],)])


async def test_where_nobody_answers_we_go_on_after_a_while_and_count_it(tmp_path: Path) -> None:
    async def hang_up(_call: Call) -> None:
        return

    async with open_node(tmp_path, 2, config=NEVER) as two:
        two.network._calls.answers = {LEDGER: hang_up}
        two.network._calls.register()
        entry = Chain(ONE).alloc(TWO)
        config = evolve(OFTEN, confirm_s=0.2)
        async with open_node(
            tmp_path, 1, [entry], meets=[two], config=config, is_confirmed=False
        ) as one:
            await eventually(lambda: one.confirmed == [()])
            assert one.count("ledger_unconfirmed") == 1
            assert one.count("faults") == 0


async def test_a_gap_in_our_own_chain_is_not_gone_on_from(tmp_path: Path) -> None:
    own = Chain(ONE)
    entries = [own.alloc(TWO) for _ in range(6)]
    async with (
        open_node(tmp_path, 2, [entries[0], entries[5]], config=NEVER) as two,
        open_node(tmp_path, 1, entries[:1], meets=[two], is_confirmed=False) as one,
    ):
        await eventually(lambda: one.holds(entries[5]))
        await eventually(lambda: one.count("ledger_rounds") >= 2)
        assert one.confirmed == []
        async with open_node(tmp_path, 3, entries, config=NEVER) as three:
            await one.network.connect(three.where)
            await eventually(lambda: one.confirmed == [tuple(entries[1:])])


async def test_a_node_whose_key_has_forked_stops_with_the_way_out(tmp_path: Path) -> None:
    own = Chain(ONE)
    arm, other = own.fork().alloc(TWO), own.alloc(THREE)
    async with (
        open_node(tmp_path, 2, [other], config=NEVER) as two,
        open_node(tmp_path, 1, [arm], meets=[two]) as one,
    ):
        await eventually(lambda: bool(one.alarms))
        assert isinstance(one.alarms[0], Stopped)
        assert "two entries for one place" in str(one.alarms[0])
        assert "move the key file away" in one.alarms[0].hint


async def test_entries_of_ours_that_come_back_too_late_stop_us_rather_than_fork_us(
    tmp_path: Path,
) -> None:
    entries = [(own := Chain(ONE)).alloc(TWO), own.alloc(TWO)]
    async with (
        open_node(tmp_path, 2, entries, config=NEVER) as two,
        open_node(tmp_path, 1, entries[:1], meets=[two]) as one,
    ):
        await eventually(lambda: bool(one.alarms))
        assert "has lost" in str(one.alarms[0])


async def test_what_our_key_signed_on_another_network_is_no_affair_of_this_one(
    tmp_path: Path,
) -> None:
    elsewhere = Chain(ONE, net=b"another1")
    arms = [elsewhere.fork().alloc(TWO), elsewhere.alloc(THREE)]
    proof = prove_fork(*arms)
    assert proof is not None
    async with (
        open_node(tmp_path, 2, [*arms, proof], config=NEVER) as two,
        open_node(tmp_path, 1, meets=[two]) as one,
    ):
        await eventually(lambda: one.holds(*arms, proof))
        await eventually(lambda: one.count("ledger_rounds_equal") > 0)
        assert (one.alarms, one.forked) == ([], [])


# --- the disk ---------------------------------------------------------------------------------


def rot(path: Path) -> None:
    """Flip a byte of the first entry's body."""
    with sqlite3.connect(path) as db:
        (raw,) = db.execute("SELECT raw FROM entry ORDER BY n LIMIT 1").fetchone()
        place = len(raw) // 2
        flipped = bytes([raw[place] ^ 1])
        db.execute(
            "UPDATE entry SET raw = ? WHERE n = 1", (raw[:place] + flipped + raw[place + 1 :],)
        )
    db.close()


async def test_rot_that_is_met_while_serving_stops_the_node(tmp_path: Path) -> None:
    entries = [(bob := Chain(BOB)).alloc(ALICE), bob.alloc(ALICE)]
    async with open_node(tmp_path, 1, entries, config=NEVER) as one:
        rot(tmp_path / "1.sqlite")
        async with open_node(tmp_path, 2, meets=[one]) as two:
            await eventually(lambda: bool(one.alarms))
            assert isinstance(one.alarms[0], Stopped)
            assert two.count("faults") == 0


async def test_a_scan_finds_rot_and_rings(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    alarms: list[MeshError] = []
    with Store.open(path) as store:
        store.add([(bob := Chain(BOB)).alloc(ALICE), bob.alloc(ALICE)])
    await scan(path, alarms.append)
    assert alarms == []
    rot(path)
    await scan(path, alarms.append)
    assert isinstance(alarms[0], Stopped)
    assert "does not hash to its id" in str(alarms[0])


async def test_a_scan_may_run_while_others_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at one moment: what is added meanwhile neither counts nor confuses it."""
    path = tmp_path / "ledger.sqlite"
    bob = Chain(BOB)
    alarms: list[MeshError] = []
    with Store.open(path) as store:
        store.add([bob.alloc(ALICE) for _ in range(5)])
        stock = rumours.keys.verify

        def verify_and_write(key: bytes, message: bytes, signature: bytes) -> bool:
            store.add([bob.alloc(ALICE)])
            return stock(key, message, signature)

        monkeypatch.setattr("mesh.upkeep.keys.verify", verify_and_write)
        await scan(path, alarms.append)
        assert alarms == []
        assert store.total().count == 10


async def test_a_scan_ends_with_its_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.upkeep.SCAN_SLICE", 1)
    monkeypatch.setattr("mesh.upkeep.SCAN_REST", 0.0)
    path = tmp_path / "ledger.sqlite"
    with Store.open(path) as store:
        store.add([(bob := Chain(BOB)).alloc(ALICE), bob.alloc(ALICE)])
    begun = trio.Event()
    stock = rumours.keys.verify

    def verify_and_cancel(key: bytes, message: bytes, signature: bytes) -> bool:
        trio.from_thread.run_sync(begun.set)
        trio.from_thread.run_sync(scope.cancel)
        return stock(key, message, signature)

    monkeypatch.setattr("mesh.upkeep.keys.verify", verify_and_cancel)
    with trio.CancelScope() as scope:
        await scan(path, lambda _: None)
    assert scope.cancelled_caught
    assert begun.is_set()
