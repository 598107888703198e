"""Three nodes run one task, some of them lie: real markets, a real sandbox, and what is proven.

Only the wire is left out: the kernels' messages are handed over as they are.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from attrs import define, evolve
from ledger_deals import ALICE, BOB, Chain
from market_players import NET, POLICY, SHOP
from node_desks import BID, KEY, open_desk
from node_hands import PATIENCE_S, WITNESS, Hands, until

from ledger.__main__ import BAD
from ledger.__main__ import main as ledger
from ledger.audit import findings
from ledger.bundle import export, read
from ledger.evidence import Finding as Shown
from ledger.evidence import Rerun
from ledger.model import Entry
from mesh.api.door import AuditRequest
from mesh.desk import Desk
from mesh.driver import Driver
from mesh.errors import Exhausted, Refused
from mesh.identity.keys import NodeKey, identity
from mesh.ids import PeerId, TaskId, cid_of, format_task
from mesh.kernel import Kernel
from mesh.market.agreement import Verdict, compare
from mesh.market.order import Group
from mesh.market.own_chain import read_past
from mesh.messages import Result
from mesh.prosecutor import Prosecutor
from mesh.sansio import (
    Action,
    Collect,
    Collected,
    Gossip,
    Notify,
    OfferReceived,
    Received,
    Run,
    RunEnded,
    Send,
)
from mesh.shelf import FILES_MAX, Shelf
from mesh.storage.files import add_bytes

NODE = shutil.which("node")
VERIFIER = Path(__file__).parents[3] / "ledger" / "js" / "verify.js"
WANTED = evolve(
    BID, redundancy=3, max_price=30_000, memory=8 << 20, wall_ms=60_000, deadline_ms=600_000
)
Lie = Callable[[Result], Result]


def honest(result: Result) -> Result:
    return result


def inflate(result: Result) -> Result:
    """More fuel than was burnt."""
    return evolve(result, fuel=result.fuel + 10**7)


def forge(result: Result) -> Result:
    """An output that nothing made."""
    return evolve(result, output=cid_of(0x55, b"made up"))


@define(eq=False)
class Seller:
    """A kernel of its own, and what it makes of its results."""

    peer: PeerId
    driver: Driver
    lie: Lie


def sellers_of(lies: Sequence[Lie]) -> dict[PeerId, Seller]:
    sellers = {}
    for number, lie in enumerate(lies, 1):
        key = NodeKey(bytes([number]) * 32)
        kernel = Kernel(
            identity(key),
            POLICY,
            Random(number),
            past=read_past(key.peer, NET, ()),
            epoch=1,
            epoch_ms=0,
            shop=SHOP,
        )
        sellers[key.peer] = Seller(key.peer, Driver(kernel), lie)
    return sellers


@asynccontextmanager
async def open_market(
    folder: Path, lies: Sequence[Lie]
) -> AsyncIterator[tuple[Desk, Hands, dict[PeerId, Seller]]]:
    """A desk and its sellers, all at work."""
    sellers = sellers_of(lies)
    turn = trio.CapacityLimiter(1)
    async with open_desk(folder) as (desk, hands), trio.open_nursery() as nursery:
        add_bytes(hands.blocks, WITNESS.read_bytes())

        async def run(seller: Seller, run: Run) -> None:
            async with turn:
                key = f"{run.task.hex()}-{run.fence}"
                result = await hands.workshop.execute(run.work, None, key, lambda _: None)
            assert isinstance(result, Result)
            await seller.driver.post(RunEnded(run.task, run.fence, seller.lie(result)))

        def sell(seller: Seller) -> Callable[[Action], None]:
            def perform(action: Action) -> None:
                match action:
                    case Send(_, message):
                        desk.driver.post_nowait(Received(seller.peer, message))
                    case Gossip(signed):
                        desk.driver.post_nowait(OfferReceived(signed))
                    case Run():
                        nursery.start_soon(run, seller, action)
                    case _:
                        pass

            return perform

        def buy(action: Action) -> None:
            match action:
                case Send(peer, message):
                    sellers[peer].driver.post_nowait(Received(KEY.peer, message))
                case Collect(task, fence, _, roots):
                    desk.driver.post_nowait(Collected(task, fence, roots[0], ""))
                case Notify(notice):
                    desk.broadcast.publish(notice)
                case _:
                    pass

        async def forget(writes: Sequence[object]) -> None:
            """A seller's disk is not looked at."""

        async def drive(driver: Driver, persist: object, perform: Callable[[Action], None]) -> None:
            await driver.drive(persist=persist, perform=perform)  # type: ignore[arg-type]

        nursery.start_soon(drive, desk.driver, hands.performer.persist, buy)
        for seller in sellers.values():
            nursery.start_soon(drive, seller.driver, forget, sell(seller))
        nursery.start_soon(desk.prosecutor.run)
        yield desk, hands, sellers
        nursery.cancel_scope.cancel()


async def outcome(desk: Desk, *, is_proven: bool = True) -> Group:
    """Submit the task; wait for all copies, and for what is proven where they disagree."""
    with trio.fail_after(PATIENCE_S):
        first = await desk.bid(WANTED)
        group = Group(first, 3)
        async with desk.follow(None) as notices:
            while compare(group, desk.kernel.records).verdict is Verdict.OPEN:
                await notices.receive()
    if compare(group, desk.kernel.records).verdict is Verdict.DISAGREED and is_proven:
        await until(lambda: desk.comparison(group).proofs)
    return group


def lines_of(items: Sequence[Entry | Rerun]) -> list[str]:
    file = io.StringIO()
    export(items, file)
    return file.getvalue().splitlines()


def in_file(path: Path) -> tuple[list[Entry], list[Rerun], list[Shown]]:
    """The entries, the re-runs, and all that they show, without any node."""
    items = list(read(path.read_bytes().splitlines()))
    entries = [item for item in items if isinstance(item, Entry)]
    reruns = [item for item in items if isinstance(item, Rerun)]
    assert not [item for item in items if isinstance(item, Shown)], "every line is what it says"
    evidence = [item for item in items if not isinstance(item, Entry | Shown)]
    return entries, reruns, list(findings(entries, evidence=evidence))


def in_javascript(path: Path) -> set[tuple[str, str, bool]]:
    program = (
        f"import {{ audit }} from {json.dumps(str(VERIFIER))};"
        "import { readFileSync } from 'node:fs';"
        f" const found = await audit(readFileSync({json.dumps(str(path))}));"
        " console.log(JSON.stringify(found.map(f => [f.id ?? '', f.check, f.good])));"
    )
    command = [NODE or "", "--input-type=module", "-e", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return {(str(id_), str(check), bool(good)) for id_, check, good in json.loads(done.stdout)}


@pytest.mark.slow
async def test_copies_of_honest_nodes_agree_byte_for_byte(tmp_path: Path) -> None:
    async with open_market(tmp_path, [honest] * 3) as (desk, hands, sellers):
        group = await outcome(desk)
        comparison = desk.comparison(group)
        records = [desk.task(task) for task in group.members]
        assert await desk.bid(WANTED) == group.first, "the same key is the same task"
        assert len(desk.tasks()) == 3
        pinned = {
            pin.reason for pin in hands.blocks.pins() if pin.root == records[0].order.work.job
        }
    assert comparison.agreement.verdict is Verdict.AGREED
    assert comparison.agreement.majority == group.members
    assert {record.executor for record in records} == set(sellers), "three different nodes"
    assert len({record.order.work.job for record in records}) == 1, "one manifest for all"
    assert pinned == {f"task {format_task(task)}" for task in group.members}
    assert sum(record.order.max_price for record in records) <= WANTED.max_price
    assert (desk.prosecutor.findings(None), desk.prosecutor.shelf.tasks()) == ([], ())


@pytest.mark.slow
async def test_two_liars_of_three_are_named_and_proven_to_anybody(tmp_path: Path) -> None:
    async with open_market(tmp_path, [honest, inflate, forge]) as (desk, _, sellers):
        group = await outcome(desk)
        comparison = desk.comparison(group)
        with trio.fail_after(PATIENCE_S):
            audited = [f async for f in desk.audit(AuditRequest()) if f.check == "rerun"]
            one = [f async for f in desk.audit(AuditRequest(task=group.members[1]))]
        shelf = Shelf(tmp_path / "evidence")
        rerunner, bookkeeper = desk.auditor.rerunner, desk.bookkeeper
        fresh = Prosecutor({}, desk.broadcast, rerunner, bookkeeper, shelf)
        await fresh._read_shelf()
    peers = dict(zip((lie.__name__ for lie in (honest, inflate, forge)), sellers, strict=True))
    said = {
        proof.seller: (proof.is_good, proof.detail.split(";")[0]) for proof in comparison.proofs
    }
    assert comparison.agreement.dissenters == group.members, "no two are alike"
    assert said[peers["inflate"]] == (False, "differs in fuel")
    assert said[peers["forge"]] == (False, "differs in outputs")
    assert said[peers["honest"]][0]
    assert [f.is_good for f in audited].count(False) == 2
    assert {f.task for f in one if f.check == "rerun"} == {group.members[1]}
    assert fresh.comparison(group).proofs == comparison.proofs, "a restarted node still knows"

    path = tmp_path / "evidence" / f"{format_task(group.first)}.jsonl"
    entries, reruns, shown = in_file(path)
    bad = [finding for finding in shown if not finding.is_good]
    liars = {peers["inflate"], peers["forge"]}
    by_id = {entry.id: entry for entry in entries}
    assert {(f.check, by_id[f.entry_id].content.peer) for f in bad} == {("bill", p) for p in liars}
    assert len({(run.job, run.fuel, run.outputs) for run in reruns}) == 1, (
        "it was run once, for all"
    )
    assert ledger(["audit", str(path)], out := io.StringIO(), io.StringIO()) == BAD
    assert out.getvalue().count("BAD  bill") == 2
    if NODE is not None:
        names = {(f.entry_id.hex(), f.check, f.is_good) for f in shown}
        assert in_javascript(path) == names


@pytest.mark.slow
async def test_a_majority_that_lies_in_the_same_way_is_proven_wrong_all_the_same(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path, [forge, forge, honest]) as (desk, _, sellers):
        comparison = desk.comparison(await outcome(desk))
    (doubted,) = comparison.agreement.dissenters
    right = next(proof for proof in comparison.proofs if proof.is_good)
    assert (right.task, right.seller) == (doubted, list(sellers)[2])
    assert [proof.is_good for proof in comparison.proofs].count(False) == 2


@pytest.mark.slow
async def test_what_cannot_be_run_again_is_told_and_tried_once(tmp_path: Path) -> None:
    async with open_market(tmp_path, [inflate, honest, honest]) as (desk, hands, _):
        desk.prosecutor.records = {}  # it looks away
        group = await outcome(desk, is_proven=False)
        hands.blocks.delete(desk.task(group.first).order.work.job)
        desk.prosecutor.records = desk.kernel.records
        assert list(desk.prosecutor._untried()) == [group]
        await desk.cancel(await desk.bid(evolve(WANTED, idempotency_key=b"another")))
        await until(lambda: desk.comparison(group).note)
        comparison = desk.comparison(group)
        assert list(desk.prosecutor._untried()) == []
    assert comparison.proofs == ()
    assert "could not be run again" in comparison.note
    assert desk.prosecutor.shelf.tasks() == ()


# --- the desk


@pytest.mark.parametrize(
    ("change", "why"), [({"max_price": 2}, "shared by 3 copies"), ({"fee": 40_000}, "fee")]
)
async def test_a_price_that_is_no_price_for_each_copy_is_refused(
    tmp_path: Path, change: dict[str, int], why: str
) -> None:
    async with open_desk(tmp_path) as (desk, _):
        with pytest.raises(Refused, match=why):
            await desk.bid(evolve(WANTED, **change))  # type: ignore[arg-type]


async def test_copies_for_which_there_is_no_room_are_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_desk(tmp_path) as (desk, _):
        monkeypatch.setattr(desk.kernel._auctioneer.register, "has_room", lambda count: count < 3)
        with pytest.raises(Exhausted, match="3 more"):
            await desk.bid(WANTED)


# --- the shelf


def test_the_shelf_keeps_the_newest_and_reads_back_only_what_is_signed(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "evidence")
    assert shelf.tasks() == ()
    tasks = [TaskId(bytes([number]) * 16) for number in range(FILES_MAX + 2)]
    for number, task in enumerate(tasks):
        shelf.put(task, "not a line of evidence\n")
        os.utime(shelf.folder / f"{format_task(task)}.jsonl", ns=(number, number))
    assert shelf.tasks() == tuple(tasks[2:])
    assert list(shelf.reruns(tasks[-1])) == []
    assert list(shelf.reruns(tasks[0])) == []
    (shelf.folder / "notes.jsonl").write_text("a stranger's file is let be")
    assert shelf.tasks() == tuple(tasks[2:])


def test_evidence_about_a_forged_bill_is_not_believed(tmp_path: Path) -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    bill = bob.settle(ALICE, alloc)
    again = Rerun(bill.id, bill.content.deal.job, bill.content.deal.meter, 1, 0, ())
    forged = Entry(bill.body, bytes(64))
    shelf, task = Shelf(tmp_path), TaskId(bytes(16))
    for entry, expected in ((bill, [(bill, again)]), (forged, [])):
        shelf.put(task, "".join(f"{line}\n" for line in lines_of([alloc, entry, again])))
        assert list(shelf.reruns(task)) == expected
