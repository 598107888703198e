"""The prosecutor: where the copies of a task disagree, their job is run once more, here.

That says who billed what it did not do, be it one or all but one; a majority proves nothing. The
bills, which their sellers signed, and what the job gave go into a file: the evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import trio
from attrs import define, evolve, field, frozen

from ledger.evidence import Rerun, check_evidence
from ledger.model import Entry, burnt_before
from mesh.api.door import Comparison, Finding, Numbered, Proof
from mesh.auditor import evidence_line
from mesh.bookkeeper import Bookkeeper
from mesh.broadcast import Broadcast
from mesh.errors import Unavailable
from mesh.ids import EntryId, PeerId, TaskId
from mesh.market.agreement import Verdict, compare
from mesh.market.order import Group, TaskRecord
from mesh.notices import Moved
from mesh.rerun import Rerunner, Skipped
from mesh.shelf import FILES_MAX, Shelf


@frozen
class _Case:
    """What was found out about the copies of one task."""

    proofs: tuple[Proof, ...] = ()
    findings: tuple[Finding, ...] = ()
    note: str = ""


@define(eq=False)
class Prosecutor:
    """Of one running node; one case after the other, each tried once between two starts."""

    records: Mapping[TaskId, TaskRecord]
    broadcast: Broadcast
    rerunner: Rerunner
    bookkeeper: Bookkeeper
    shelf: Shelf
    _cases: dict[TaskId, _Case] = field(factory=dict, init=False)

    def comparison(self, group: Group) -> Comparison:
        """What the copies of *group* came to, and what is proven of it."""
        case = self._cases.get(group.first, _Case())
        return Comparison(compare(group, self.records), case.proofs, case.note)

    def findings(self, task: TaskId | None) -> Sequence[Finding]:
        """What is proven against sellers: of *task*, or of all."""
        every = (finding for case in self._cases.values() for finding in case.findings)
        return [finding for finding in every if task in (None, finding.task)]

    async def run(self) -> None:
        """Take up what is on the shelf, then whatever disagrees; until the node ends."""
        await self._read_shelf()
        async with self.broadcast.follow(None) as notices:
            try:
                while True:
                    for group in self._untried():
                        self._cases[group.first] = await self._prosecute(group)
                    await self._hear(notices)
            except trio.EndOfChannel:
                return

    async def _read_shelf(self) -> None:
        def read() -> dict[TaskId, list[tuple[Entry, Rerun]]]:
            return {task: list(self.shelf.reruns(task)) for task in self.shelf.tasks()}

        for task, reruns in (await trio.to_thread.run_sync(read)).items():
            self._cases[task] = _case(reruns)

    async def _hear(self, notices: trio.MemoryReceiveChannel[Numbered]) -> None:
        """Return when a copy of a task has ended."""
        while True:
            notice = (await notices.receive()).notice
            if isinstance(notice, Moved) and notice.state.is_final:
                record = self.records.get(notice.task)
                if record is not None and record.order.group is not None:
                    return

    def _untried(self) -> Iterator[Group]:
        """Whose copies disagree. Of tasks that are forgotten, the newest cases stay."""
        past = [task for task in self._cases if task not in self.records]
        for task in past[:-FILES_MAX]:
            del self._cases[task]
        groups = [record.order.group for record in self.records.values()]
        for group in dict.fromkeys(group for group in groups if group):
            is_tried = group.first in self._cases
            if not is_tried and compare(group, self.records).verdict is Verdict.DISAGREED:
                yield group

    async def _prosecute(self, group: Group) -> _Case:
        agreement = compare(group, self.records)
        suspects = [self.records[task] for task in (*agreement.dissenters, *agreement.majority)]
        bills = [await self._bill_of(record) for record in suspects]
        reruns: list[tuple[Entry, Rerun]] = []
        note = "no bill of theirs is in the ledger"
        runs: dict[tuple[object, ...], Rerun | Skipped] = {}  # for equal jobs one is enough
        for record, bill in zip(suspects, bills, strict=True):
            if bill is None:
                continue
            deal = bill.content.deal
            job = (deal.job, deal.module, deal.inputs, deal.meter)
            if job not in runs:
                limit = record.order.work.fuel - burnt_before(deal)
                runs[job] = await self.rerunner.run(bill, limit)
            match runs[job]:
                case Skipped(reason):
                    note = reason
                case Rerun() as again:
                    reruns.append((bill, evolve(again, entry_id=bill.id)))
        if not reruns:
            return _Case(note=note)
        case = _case(reruns)
        try:
            text = await self.bookkeeper.case(
                [bill for bill, _ in reruns], [again for _, again in reruns]
            )
            await trio.to_thread.run_sync(self.shelf.put, group.first, text)
        except Unavailable as error:
            return evolve(case, note=f"the evidence is not kept: {error}")
        return case

    async def _bill_of(self, record: TaskRecord) -> Entry | None:
        return await self.bookkeeper.entry(record.settle) if record.settle else None


def _case(reruns: Sequence[tuple[Entry, Rerun]]) -> _Case:
    """What each of *reruns* shows of its bill."""
    proofs, findings = [], []
    for bill, again in reruns:
        shown, deal = check_evidence(again, {bill.id: bill}), bill.content.deal
        task, settle = TaskId(deal.nonce), EntryId(bill.id)
        detail = shown.detail.removeprefix("run again: ")
        proofs.append(Proof(task, settle, PeerId(deal.seller), shown.is_good, detail))
        told = f"when its copies disagreed: {detail}"
        line = evidence_line(again)
        findings.append(Finding(settle, task, "rerun", shown.is_good, told, evidence=line))
    return _Case(tuple(proofs), tuple(findings))
