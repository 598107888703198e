"""Runs that are stopped, paused or left, at the moments when that is easily lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from ledger_deals import ALICE
from node_hands import (
    PATIENCE_S,
    QUOTA,
    TASK,
    WITNESS,
    Deaf,
    Library,
    nobody_serves,
    open_hands,
    open_peer,
    run_of,
    until,
    work_in,
)
from node_replicas import party
from node_witnesses import AUTHOR, Judge, chain_of, quorum_of

from ledger.quorum import Certificate
from ledger.votes import VoteBook
from mesh.certifying import Certifying
from mesh.errors import Refused, Unavailable
from mesh.ids import PeerId
from mesh.sansio import Certified, Certify, ContinueRun, PauseRun, RunEnded, RunLost, StopRun
from mesh.storage.blocks import MemoryBlocks
from mesh.storage.disk import DiskBlocks
from mesh.storage.files import add_bytes


async def test_a_run_stopped_in_the_same_breath_never_begins(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE_S):
        async with open_hands(tmp_path) as hands, open_peer(2, nobody_serves) as buyer:
            work = work_in(MemoryBlocks(), WITNESS.read_bytes())
            hands.performer.perform(run_of(work, buyer.peer))
            hands.performer.perform(StopRun(TASK, 1))
            await until(lambda: hands.runs() == 0)
            assert not [event for event in hands.core.heard if isinstance(event, RunLost)]
            assert hands.performer.tally["fetches_repeated"] == 0


@pytest.mark.slow
async def test_a_run_paused_while_it_fetches_waits_and_one_continued_runs(tmp_path: Path) -> None:
    library = Library(MemoryBlocks())
    work = work_in(library.blocks, WITNESS.read_bytes())
    with trio.fail_after(PATIENCE_S):
        async with open_hands(tmp_path) as hands, open_peer(2, library.serve) as buyer:
            await hands.network.connect(buyer.addresses()[0])
            hands.performer.perform(run_of(work, buyer.peer))
            await library.asked.wait()
            hands.performer.perform(PauseRun(TASK, 1))
            library.is_open.set()
            gate = hands.performer.hostings[TASK, 1].gate
            await until(lambda: gate.held == 1)
            assert hands.workshop.supervisor.statistics().started == 0
            hands.performer.perform(ContinueRun(TASK, 1))
            await until(lambda: any(isinstance(event, RunEnded) for event in hands.core.heard))
            assert hands.workshop.supervisor.statistics().kept == 0
            assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.slow
async def test_a_run_stopped_while_it_fetches_says_nothing_more(tmp_path: Path) -> None:
    library = Library(MemoryBlocks())
    work = work_in(library.blocks, WITNESS.read_bytes())
    with trio.fail_after(PATIENCE_S):
        async with open_hands(tmp_path) as hands, open_peer(2, library.serve) as buyer:
            await hands.network.connect(buyer.addresses()[0])
            hands.performer.perform(run_of(work, buyer.peer))
            await library.asked.wait()
            hands.performer.perform(StopRun(TASK, 1))
            await until(lambda: hands.runs() == 0)
            assert not [
                event for event in hands.core.heard if isinstance(event, RunLost | RunEnded)
            ]


@pytest.mark.slow
async def test_a_store_too_full_for_results_loses_the_run_and_does_not_bill_it(
    tmp_path: Path,
) -> None:
    """It said "refused", which ends the task and blames it for our quota."""
    module = WITNESS.read_bytes()
    measuring = tmp_path / "measuring"
    with DiskBlocks(measuring, QUOTA) as blocks:
        work = work_in(blocks, module)
        needed = blocks.statistics()["bytes"]
    async with open_hands(tmp_path, quota=needed) as hands:
        work_in(hands.blocks, module)
        with trio.fail_after(PATIENCE_S), pytest.raises(Refused, match="full"):
            await hands.workshop.execute(work, None, "full", lambda _: None)
        assert hands.workshop.supervisor.statistics().kept == 0
        assert list((tmp_path / "scratch").iterdir()) == []


async def test_inputs_together_take_no_more_disk_than_was_bought(tmp_path: Path) -> None:
    async with open_hands(tmp_path) as hands:
        big = add_bytes(hands.blocks, bytes(700_000)).cid
        work = work_in(hands.blocks, WITNESS.read_bytes(), inputs=(("a", big), ("b", big)))
        result = await hands.workshop.execute(work, None, "bomb", lambda _: None)
        assert result.status == "refused"
        assert "exceeds" in result.detail
        assert list((tmp_path / "scratch").iterdir()) == []


async def test_a_block_that_went_missing_here_is_no_fault_of_the_task(tmp_path: Path) -> None:
    async with open_hands(tmp_path) as hands:
        work = work_in(hands.blocks, WITNESS.read_bytes())
        hands.blocks.delete(work.module)
        for block in list(hands.blocks.cids()):
            if block != work.job:
                hands.blocks.delete(block)
        with pytest.raises(Refused, match="not in this store"):
            await hands.workshop.execute(work, None, "gone", lambda _: None)


async def test_a_peer_that_crawls_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It held capacity, unpaid, for as long as it liked."""
    monkeypatch.setattr("mesh.performer.FETCH_S", 0.0)
    library = Library(MemoryBlocks())
    work = work_in(library.blocks, WITNESS.read_bytes())
    async with open_hands(tmp_path) as hands, open_peer(2, library.serve) as buyer:
        await hands.network.connect(buyer.addresses()[0])
        with trio.fail_after(PATIENCE_S), pytest.raises(Unavailable, match="sends less than"):
            await hands.performer.bring(buyer.peer, work.job, 1)


def some_of(core: Deaf) -> list[Certified]:
    return [event for event in core.heard if isinstance(event, Certified)]


async def test_what_was_certified_or_why_not_is_told_to_the_kernel(tmp_path: Path) -> None:
    """By the node's own witness, with its book on the disk."""
    entry = chain_of(AUTHOR).alloc(ALICE)
    asked = Certify(TASK, 1, entry.encode())
    with (
        trio.fail_after(PATIENCE_S),
        VoteBook.open(tmp_path / "votes.sqlite", party(AUTHOR).key) as votes,
    ):
        judge, quorum = Judge(votes, tmp_path, AUTHOR), quorum_of(AUTHOR)
        async with open_hands(tmp_path) as hands:
            certifying = Certifying(
                quorum, hands.ledger, judge.learn, judge.witnessing, hands.network
            )
            hands.performer.certify = certifying.certify
            hands.performer.perform(asked)
            await until(lambda: some_of(hands.core))
            judge.frozen.add(PeerId(party(AUTHOR).key))
            hands.performer.perform(asked)
            await until(lambda: len(some_of(hands.core)) == 2)
    good, bad = some_of(hands.core)
    assert good.alloc == bad.alloc == entry.id
    quorum.check(Certificate.decode(good.certificate))
    assert (good.reason, bad.certificate) == ("", b"")
    assert "its key forked or is retired" in bad.reason
