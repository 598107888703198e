"""Runs that are kept, taken out and gone on with, as the kernel asks for it and hears of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from attrs import evolve
from node_hands import (
    PATIENCE_S,
    TASK,
    WITNESS,
    Hands,
    Library,
    open_hands,
    open_peer,
    run_of,
    until,
    work_in,
)

from mesh.errors import PeerError
from mesh.ids import Cid, PeerId
from mesh.messages import Move, Work
from mesh.performer import hosted_state_pin, kept_state_pin, state_pin
from mesh.runtime.course import Suspended as Suspension
from mesh.runtime.execution import check_agrees
from mesh.runtime.manifest import decode
from mesh.sansio import (
    Checkpoint,
    Checkpointed,
    Collect,
    Collected,
    DropState,
    Event,
    KeepState,
    RunEnded,
    RunLost,
    RunProgressed,
    Suspend,
    Suspended,
    Unmoved,
)
from mesh.storage.blocks import Blocks, MemoryBlocks
from mesh.storage.files import add_bytes
from mesh.storage.transfer import fetch, serve
from mesh.storage.unixfs import import_dir

TRAVELLER = WITNESS.with_name("traveller.movable.wasm")
PLENTY = 1 << 28
T = TypeVar("T", bound=Event)


def travel(blocks: Blocks) -> Work:
    return work_in(blocks, TRAVELLER.read_bytes(), args=("24", "60000"), fuel=1 << 40)


async def heard(hands: Hands, kind: type[T], count: int = 1) -> T:
    """The event of that kind that comes as the *count*th."""

    def found() -> list[T]:
        return [event for event in hands.core.heard if isinstance(event, kind)]

    await until(lambda: len(found()) >= count or over(hands))
    assert len(found()) >= count, over(hands)
    return found()[count - 1]


def over(hands: Hands) -> list[Event]:
    return [event for event in hands.core.heard if isinstance(event, RunLost | RunEnded)]


def lost(hands: Hands) -> list[Event]:
    return [event for event in hands.core.heard if isinstance(event, RunLost)]


def pinned(hands: Hands, reason: str) -> list[Cid]:
    return [pin.root for pin in hands.blocks.pins() if pin.reason == reason]


async def carry(state: Cid, source: Blocks, target: Blocks) -> None:
    async def request(data: bytes) -> bytes:
        return await trio.to_thread.run_sync(partial(serve, source, data))

    await fetch(state, target, request, bytes_max=PLENTY, blocks_max=10_000)


@pytest.mark.long
async def test_a_run_that_was_kept_and_taken_out_here_ends_there(tmp_path: Path) -> None:
    """What is told of it is what was burnt here; together it is what an unmoved run costs."""
    library = Library(MemoryBlocks())
    library.is_open.set()
    work = travel(library.blocks)
    with trio.fail_after(PATIENCE_S):
        async with (
            open_hands(tmp_path / "a") as hands,
            open_peer(2, library.serve) as buyer,
        ):
            travel(hands.blocks)
            plain = await hands.workshop.execute(work, None, "plain", lambda fuel: None)
            await hands.network.connect(buyer.addresses()[0])
            hands.performer.perform(run_of(work, buyer.peer))
            await heard(hands, RunProgressed)
            hands.performer.perform(Checkpoint(TASK, 1))
            first = await heard(hands, Checkpointed)
            assert pinned(hands, hosted_state_pin(TASK)) == [first.state]
            hands.performer.perform(Suspend(TASK, 1))
            out = await heard(hands, Suspended)
            assert 0 < first.fuel < out.fuel
            assert pinned(hands, hosted_state_pin(TASK)) == [out.state]
            await until(lambda: hands.runs() == 0)
            assert list((tmp_path / "a/scratch").iterdir()) == []
            await carry(out.state, hands.blocks, library.blocks)
        step = Move(out.fuel, PeerId(b"elsewhere"), out.state)
        work = evolve(work, fuel=work.fuel - out.fuel, moves=(step,))
        async with (
            open_hands(tmp_path / "b") as hands,
            open_peer(2, library.serve) as buyer,
        ):
            await hands.network.connect(buyer.addresses()[0])
            hands.performer.perform(run_of(work, buyer.peer))
            await heard(hands, RunProgressed)
            hands.performer.perform(Checkpoint(TASK, 1))
            again = await heard(hands, Checkpointed)
            result = (await heard(hands, RunEnded)).result
            assert 0 < again.fuel < result.fuel
            assert not isinstance(plain, Suspended)
            assert result == evolve(plain, fuel=plain.fuel - out.fuel, run_ms=result.run_ms)


@pytest.mark.long
@pytest.mark.parametrize("room", [0, 1 << 30])
async def test_a_task_of_which_a_state_is_kept_comes_to_a_standby(
    tmp_path: Path, room: int
) -> None:
    """Where there is room; and where there is none, it comes all the same."""
    library = Library(MemoryBlocks())
    library.is_open.set()
    work = travel(library.blocks)
    with trio.fail_after(PATIENCE_S):
        async with open_hands(tmp_path / "a") as hands, open_peer(2, library.serve) as buyer:
            await hands.network.connect(buyer.addresses()[0])
            plain = await hands.workshop.execute(work, buyer.peer, "plain", lambda fuel: None)
            hands.performer.perform(run_of(work, buyer.peer))
            await heard(hands, RunProgressed)
            hands.performer.perform(Checkpoint(TASK, 1))
            first = await heard(hands, Checkpointed)
            hands.performer.perform(Suspend(TASK, 1))
            out = await heard(hands, Suspended)
            for state in (first.state, out.state):
                await carry(state, hands.blocks, library.blocks)
        assert not isinstance(plain, Suspension)
        step = Move(out.fuel, PeerId(b"elsewhere"), out.state)
        left = evolve(work, fuel=work.fuel - out.fuel, moves=(step,))
        async with open_hands(tmp_path / "b") as hands, open_peer(2, library.serve) as buyer:
            standbys = hands.performer.standbys

            def is_settled() -> bool:
                return len(standbys) == hands.runs() == (room > 0)

            hands.performer.room = lambda: room
            await hands.network.connect(buyer.addresses()[0])
            hands.performer.perform(KeepState(TASK, buyer.peer, first.state, PLENTY))
            await until(is_settled)
            hands.performer.perform(run_of(left, buyer.peer))
            result = (await heard(hands, RunEnded)).result
            assert result == evolve(plain, fuel=plain.fuel - out.fuel, run_ms=result.run_ms)
            await until(lambda: hands.runs() == 0)
            assert (standbys.used, len(standbys)) == (room > 0, 0)
            assert hands.workshop.supervisor.statistics().lost == 0
            hands.performer.perform(KeepState(TASK, buyer.peer, out.state, PLENTY))
            await until(is_settled)
            hands.performer.perform(DropState(TASK, buyer.peer))
            await until(lambda: hands.runs() == 0)
            assert list((tmp_path / "b/runtime/tasks").iterdir()) == []


@pytest.mark.long
async def test_a_run_that_cannot_be_moved_says_so_and_ends(tmp_path: Path) -> None:
    plain = WITNESS.with_name("hostile.wasm")
    with trio.fail_after(PATIENCE_S):
        async with open_hands(tmp_path) as hands, open_peer(2, Library(MemoryBlocks()).serve):
            work = work_in(hands.blocks, plain.read_bytes(), args=("spin", "3000"), fuel=1 << 40)
            hands.performer.perform(run_of(work, hands.network.peer))
            await heard(hands, RunProgressed)
            hands.performer.perform(Suspend(TASK, 1))
            hands.performer.perform(Checkpoint(TASK, 1))
            for count in (1, 2):
                assert (await heard(hands, Unmoved, count)).is_for_good
            assert (await heard(hands, RunEnded)).result.status == "exited"
            hands.performer.perform(Checkpoint(TASK, 1))
            await until(lambda: hands.runs() == 0)
            assert len([e for e in hands.core.heard if isinstance(e, Unmoved)]) == 2


@pytest.mark.long
async def test_a_state_that_is_none_loses_the_run_and_does_not_end_the_task(
    tmp_path: Path,
) -> None:
    with trio.fail_after(PATIENCE_S):
        async with open_hands(tmp_path) as hands:
            work = travel(hands.blocks)
            states = (
                add_bytes(hands.blocks, b"no state").cid,
                import_dir({}, hands.blocks.put).cid,
            )
            for count, state in enumerate(states, 1):
                step = Move(5, PeerId(b"elsewhere"), state)
                moved = evolve(work, fuel=work.fuel - 5, moves=(step,))
                hands.performer.perform(run_of(moved, hands.network.peer))
                await until(lambda count=count: len(lost(hands)) == count and not hands.runs())
            assert not [event for event in hands.core.heard if isinstance(event, RunEnded)]
            assert list((tmp_path / "scratch").iterdir()) == []


def test_what_is_left_and_what_was_burnt_is_what_the_job_allows() -> None:
    blocks = MemoryBlocks()
    work = travel(blocks)
    job = decode(blocks.get(work.job))
    moves = (Move(7, PeerId(b"a"), work.job), Move(9, PeerId(b"b"), work.job))
    check_agrees(evolve(work, fuel=work.fuel - 9, moves=moves), job)
    for fuel in (work.fuel, work.fuel - 7, work.fuel - 16):
        with pytest.raises(PeerError, match="fuel"):
            check_agrees(evolve(work, fuel=fuel, moves=moves), job)


@pytest.mark.long
async def test_of_states_only_the_newest_is_kept(tmp_path: Path) -> None:
    library = Library(MemoryBlocks())
    library.is_open.set()
    states = [
        import_dir({"snapshot": add_bytes(library.blocks, name)}, library.blocks.put).cid
        for name in (b"first", b"second")
    ]
    with trio.fail_after(PATIENCE_S):
        async with open_hands(tmp_path) as hands, open_peer(2, library.serve) as other:
            await hands.network.connect(other.addresses()[0])
            for count, state in enumerate(states, 1):
                hands.performer.perform(Collect(TASK, 1, other.peer, (state,), is_state=True))
                collected = await heard(hands, Collected, count)
                assert (collected.root, collected.reason) == (state, "")
                assert pinned(hands, state_pin(TASK)) == [state]
            reason = kept_state_pin(other.peer, TASK)
            for state in states:
                hands.performer.perform(KeepState(TASK, other.peer, state, PLENTY))
                await until(lambda state=state: pinned(hands, reason) == [state])
            hands.performer.perform(DropState(TASK, other.peer))
            await until(lambda: pinned(hands, reason) == [])
            assert hands.performer.states_kept == set()
