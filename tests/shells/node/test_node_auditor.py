"""The auditor over a real ledger: every fraud is named, bills are run again, memory is bounded."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import evolve
from ledger_bundles import forked, history, wrong_root
from ledger_deals import ALICE, BOB, CAROL, Chain, Party, alloc_terms, cid, settle_terms
from nacl.signing import SigningKey
from node_hands import PATIENCE_S, WITNESS, Hands, Library, open_hands, open_peer, work_in

from ledger import chain
from ledger.audit import findings
from ledger.bundle import read
from ledger.chain import Head
from ledger.evidence import Rerun
from ledger.fsck import examine
from ledger.keys import terms_message
from ledger.model import Entry, amount_of
from ledger.state import fold
from mesh import auditor as auditors
from mesh.api.door import AuditRequest, Finding
from mesh.auditor import Auditor
from mesh.errors import Exhausted
from mesh.ids import NET, EntryId, PeerId, TaskId
from mesh.market.agreement import WALL_LIMIT
from mesh.market.terms import CANCELLED_EXIT
from mesh.messages import Result, Work
from mesh.publishing import Publishing
from mesh.rerun import Rerunner
from mesh.runtime.manifest import METER, exit_status
from mesh.storage.blocks import MemoryBlocks

ME = PeerId(BOB.key)


@asynccontextmanager
async def open_auditor(folder: Path, me: PeerId = ME) -> AsyncIterator[tuple[Auditor, Hands]]:
    async with open_hands(folder) as hands:
        publishing = Publishing(hands.blocks, folder / "scratch", folder / "publishing")
        rerunner = Rerunner(me, hands.workshop, hands.performer.fetch, publishing)
        yield Auditor(me, hands.ledger, trio.CapacityLimiter(1), rerunner), hands


async def found_by(auditor: Auditor, request: AuditRequest = AuditRequest()) -> list[Finding]:  # noqa: B008
    with trio.fail_after(PATIENCE_S):
        return [finding async for finding in auditor.audit(request)]


def bad(found: Sequence[Finding]) -> set[str]:
    return {f.check for f in found if not (f.is_good or f.is_skipped or f.is_note)}


# --- what was signed


async def test_a_ledger_with_every_kind_of_entry_holds(tmp_path: Path) -> None:
    async with open_auditor(tmp_path) as (auditor, hands):
        hands.ledger.add(history())
        found = await found_by(auditor)
    assert bad(found) == set()
    checks = {(f.entry, f.check, f.detail) for f in found if f.entry}
    whole = {
        (f.entry_id, f.check, f.detail) for f in findings(history(), whole=(ME,)) if f.entry_id
    }
    assert checks == whole, "it finds what an auditor of the whole pile finds"
    (balance,) = [f for f in found if f.check == "balance"]
    assert "0 reserved (sums over receipts: a statistic, never credit to spend)" in balance.detail
    assert (found[-1].done, found[-1].total) == (len(history()), len(history()))


@pytest.mark.parametrize("stretch", [1, 2, 3, 7])
async def test_a_stretch_of_any_length_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stretch: int
) -> None:
    monkeypatch.setattr(auditors, "STRETCH", stretch)
    async with open_auditor(tmp_path) as (auditor, hands):
        hands.ledger.add([*history(), *forked()[1:]])
        found = await found_by(auditor)
    whole = findings([*history(), *forked()[1:]], whole=(ME,))
    expected = {(f.entry_id, f.check, f.is_good) for f in whole if f.entry_id}
    missed = expected - {(f.entry, f.check, f.is_good) for f in found}
    assert {check for _, check, _ in missed} <= {"head", "use"}, "only over an arm, or across cuts"
    assert bad(found) == {"fork"}


async def test_a_head_that_leaves_an_entry_out_is_found_across_stretches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stretch in (2, 100):
        monkeypatch.setattr(auditors, "STRETCH", stretch)
        folder = tmp_path / str(stretch)
        folder.mkdir()
        async with open_auditor(folder) as (auditor, hands):
            hands.ledger.add(wrong_root())
            assert bad(await found_by(auditor)) == {"head"}


async def test_a_gap_in_our_own_chain_is_bad_and_in_anothers_is_not(tmp_path: Path) -> None:
    entries = history()
    async with open_auditor(tmp_path) as (auditor, hands):
        hands.ledger.add(entries[2:3] + entries[10:12])
        assert "chain" in bad(await found_by(auditor))
    other = tmp_path / "other"
    other.mkdir()
    async with open_auditor(other, PeerId(CAROL.key)) as (auditor, hands):
        hands.ledger.add(entries[2:3])
        assert "chain" not in bad(await found_by(auditor))


def pruned(hands: Hands) -> int:
    """BOB's chain with a HEAD over two deals that are over, which go; one stays open above it."""
    bob = Chain(BOB, net=NET)
    over = []
    for number in range(2):
        alloc = bob.alloc(ALICE, nonce=bytes([number]) * 16)
        over += [alloc, bob.settle(ALICE, alloc)]
    head = bob.checkpoint(over)
    hands.ledger.append_own([*over, head, bob.alloc(ALICE)])
    return hands.ledger.prune(head.id)


async def test_what_was_pruned_is_no_gap_and_still_counts(tmp_path: Path) -> None:
    async with open_auditor(tmp_path) as (auditor, hands):
        assert pruned(hands) == 4
        found = await found_by(auditor, AuditRequest(rerun=True))
        assert list(examine(hands.ledger, (ME,))) == []
    assert bad(found) == set()
    (balance,) = [f for f in found if f.check == "balance"]
    assert "7080 µcr owed, 7080 earned, 5040 reserved" in balance.detail


async def test_a_gap_beside_what_was_pruned_is_still_a_gap(tmp_path: Path) -> None:
    async with open_auditor(tmp_path) as (auditor, hands):
        pruned(hands)
        bob = Chain(BOB, Head.after(list(hands.ledger.chain(BOB.key))[-1]))
        bob.alloc(ALICE)
        hands.ledger.add([bob.alloc(ALICE)])
        assert bad(await found_by(auditor)) == {"chain"}
        (problem,) = examine(hands.ledger, (ME,))
        assert "our own chain is broken at seq 7" in problem.what


async def test_one_task_is_looked_at_alone(tmp_path: Path) -> None:
    task = TaskId(b"another task, 16")
    bob = Chain(BOB)
    mine = bob.alloc(ALICE, nonce=task)
    async with open_auditor(tmp_path) as (auditor, hands):
        hands.ledger.append_own([mine, bob.alloc(ALICE)])
        found = await found_by(auditor, AuditRequest(task=task))
        assert await found_by(auditor, AuditRequest(task=TaskId(bytes(16)))) == []
    assert {(f.entry, f.task) for f in found} == {(EntryId(mine.id), task)}


async def test_audits_are_few_at_a_time(tmp_path: Path) -> None:
    async with open_auditor(tmp_path) as (auditor, hands):
        hands.ledger.append_own([Chain(BOB).alloc(ALICE)])
        async with (
            aclosing(auditor.audit(AuditRequest())) as one,
            aclosing(auditor.audit(AuditRequest())) as two,
        ):
            assert (await anext(one)).is_good
            assert (await anext(two)).is_good
            with pytest.raises(Exhausted, match="audits"):
                await anext(auditor.audit(AuditRequest()))
        assert bad(await found_by(auditor)) == set()


async def test_more_balances_than_fit_are_said_not_to_be_summed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditors, "BALANCE_MAX", 3)
    async with open_auditor(tmp_path) as (auditor, hands):
        hands.ledger.add(history())
        found = await found_by(auditor)
    (balance,) = [f for f in found if f.check == "balance"]
    assert (balance.is_skipped, balance.is_good) == (True, False)


# --- what was run


def billed(buyer: Party, seller: Party, work: Work, result: Result, **lie: object) -> list[Entry]:
    """The ALLOC and the SETTLE of that run; *lie* is what the seller says otherwise."""
    terms = alloc_terms(
        seller,
        buyer,
        job=work.job,
        module=work.module,
        inputs=work.inputs,
        fuel=work.fuel,
        meter=METER,
    )
    head, alloc = chain.alloc(
        chain.Head.start(buyer.key, NET),
        terms.encode(),
        seller.sign(terms_message(terms.encode())),
        wall_ms=1,
        sign=buyer.sign,
    )
    run = {
        "outputs": (result.output, result.stdout, result.stderr),
        "exit": exit_status(result.status, result.exit_code),
    }
    told = evolve(settle_terms(alloc, result.fuel), **(run | lie))  # type: ignore[arg-type]
    bill = evolve(told, amount=amount_of(told)).encode()
    _, settle = chain.settle(
        head,
        bill,
        seller.sign(terms_message(bill)),
        alloc=alloc,
        wall_ms=2,
        sign=buyer.sign,
    )
    return [alloc, settle]


async def run(hands: Hands) -> tuple[Work, Result]:
    work = work_in(hands.blocks, WITNESS.read_bytes())
    return work, await hands.workshop.execute(work, None, "first", lambda _: None)


def reruns(found: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.check == "rerun"]


@pytest.mark.slow
async def test_a_bill_is_run_again_from_the_receipt_alone(tmp_path: Path) -> None:
    """No record of the task is here: the auditor had no part in it."""
    async with open_auditor(tmp_path, PeerId(CAROL.key)) as (auditor, hands):
        work, result = await run(hands)
        hands.ledger.add(billed(BOB, ALICE, work, result))
        assert reruns(await found_by(auditor, AuditRequest(rerun=True))) == []
        (again,) = reruns(await found_by(auditor, AuditRequest(rerun=True, others=True)))
    assert (again.is_good, again.detail) == (True, f"{result.fuel} fuel, outputs equal")
    assert (again.done, again.total) == (1, 1)


@pytest.mark.slow
async def test_a_wrong_bill_is_named_with_evidence_that_a_third_party_verifies(
    tmp_path: Path,
) -> None:
    async with open_auditor(tmp_path) as (auditor, hands):
        work, result = await run(hands)
        entries = billed(BOB, ALICE, work, result, fuel=result.fuel + 10**8)
        hands.ledger.append_own(entries)
        (again,) = reruns(await found_by(auditor, AuditRequest(rerun=True)))
    assert not again.is_good
    assert "differs in fuel" in again.detail
    (evidence,) = read([again.evidence.encode()])
    assert isinstance(evidence, Rerun)
    assert json.loads(again.evidence)["rerun"]["fuel"] == result.fuel
    told = findings(entries, evidence=[evidence])
    assert [f.check for f in told if not f.is_good] == ["bill"]


@pytest.mark.slow
async def test_outputs_that_the_seller_made_up_are_found(tmp_path: Path) -> None:
    async with open_auditor(tmp_path) as (auditor, hands):
        work, result = await run(hands)
        fake = (cid(b"made up"), result.stdout, result.stderr)
        hands.ledger.append_own(billed(BOB, ALICE, work, result, outputs=fake))
        (again,) = reruns(await found_by(auditor, AuditRequest(rerun=True)))
    assert (again.is_good, "differs in outputs" in again.detail) == (False, True)


@pytest.mark.slow
async def test_a_bill_whose_blocks_are_gone_is_neither_good_nor_bad(tmp_path: Path) -> None:
    async with open_auditor(tmp_path) as (auditor, hands):
        work, result = await run(hands)
        hands.ledger.append_own(billed(BOB, ALICE, work, result))
        hands.blocks.delete(work.job)
        (again,) = reruns(await found_by(auditor, AuditRequest(rerun=True)))
    assert (again.is_good, again.is_skipped, again.evidence) == (False, True, "")
    assert "could not be run again" in again.detail


@pytest.mark.slow
async def test_what_is_not_here_is_fetched_from_a_party_of_the_deal(tmp_path: Path) -> None:
    blocks = MemoryBlocks()
    library = Library(blocks)
    library.is_open.set()
    async with open_auditor(tmp_path, PeerId(CAROL.key)) as (auditor, hands):
        work, result = await run(hands)
        work_in(blocks, WITNESS.read_bytes())
        for gone in list(hands.blocks.cids()):
            hands.blocks.delete(gone)
        async with open_peer(2, library.serve) as buyer:
            await hands.network.connect(buyer.addresses()[0])
            real = Party(SigningKey(bytes([2]) * 32))
            assert real.key == buyer.peer
            hands.ledger.add(billed(real, ALICE, work, result))
            request = AuditRequest(rerun=True, others=True)
            (again,) = reruns(await found_by(auditor, request))
    assert (again.is_good, library.asked.is_set()) == (True, True), again.detail


@pytest.mark.slow
async def test_two_audits_run_one_bill_in_turn(tmp_path: Path) -> None:
    """They met in one folder, and the node ended."""
    async with open_auditor(tmp_path) as (auditor, hands):
        work, result = await run(hands)
        hands.ledger.append_own(billed(BOB, ALICE, work, result))
        found: list[Finding] = []

        async def audit() -> None:
            found.extend(reruns(await found_by(auditor, AuditRequest(rerun=True))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(audit)
            nursery.start_soon(audit)
    assert [finding.is_good for finding in found] == [True, True]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"exit": CANCELLED_EXIT}, "cancelled"),
        ({"exit": exit_status(WALL_LIMIT, 0)}, WALL_LIMIT),
    ],
)
async def test_what_no_machine_can_run_again_is_billed_as_reported(
    tmp_path: Path, told: dict[str, int], why: str
) -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    async with open_auditor(tmp_path) as (auditor, hands):
        hands.ledger.append_own([alloc, bob.settle(ALICE, alloc, **told)])
        (again,) = reruns(await found_by(auditor, AuditRequest(rerun=True)))
    assert (again.is_good, again.is_skipped) == (True, False)
    assert again.detail == f"{why}: not re-runnable, billed as reported"


async def test_another_meters_bill_is_not_judged_by_ours(tmp_path: Path) -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE, meter="wasmtime-99/fuel")
    async with open_auditor(tmp_path) as (auditor, hands):
        hands.ledger.append_own([alloc, bob.settle(ALICE, alloc)])
        (again,) = reruns(await found_by(auditor, AuditRequest(rerun=True)))
    assert (again.is_good, again.is_skipped) == (False, True)
    assert "it was metered by wasmtime-99/fuel" in again.detail


async def test_content_that_is_none_of_ours_is_not_looked_for(tmp_path: Path) -> None:
    """A stranger's terms may name any CID; one with a codec that we do not have ended the node."""
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE, job=b"\x01\x71\x12\x20" + bytes(32), meter=METER)
    async with open_auditor(tmp_path) as (auditor, hands):
        hands.ledger.append_own([alloc, bob.settle(ALICE, alloc)])
        (again,) = reruns(await found_by(auditor, AuditRequest(rerun=True)))
    assert "no content of ours" in again.detail


async def test_the_newest_bills_are_run_again_first(tmp_path: Path) -> None:
    bob = Chain(BOB)
    pairs = []
    for number in range(4):
        alloc = bob.alloc(ALICE, nonce=bytes([number]) * 16)
        pairs += [alloc, bob.settle(ALICE, alloc, exit=CANCELLED_EXIT)]
    async with open_auditor(tmp_path) as (auditor, hands):
        hands.ledger.append_own(pairs)
        some = reruns(await found_by(auditor, AuditRequest(rerun=True, newest=2)))
        every = reruns(await found_by(auditor, AuditRequest(rerun=True)))
        task = TaskId(bytes([1]) * 16)
        one = reruns(await found_by(auditor, AuditRequest(task=task, rerun=True)))
    assert [f.task for f in some] == [TaskId(bytes([n]) * 16) for n in (3, 2)]
    assert [f.task for f in every] == [TaskId(bytes([n]) * 16) for n in (3, 2, 1, 0)]
    assert [f.task for f in one] == [task]
    assert fold(pairs, pairs[0].content.net)[BOB.key].pending_debit == 0
