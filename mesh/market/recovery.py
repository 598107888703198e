"""Recovery: what the ledger knows better than a task's record after a crash. Pure.

A record is written before the payment that it tells of, so a crash between the two leaves a task
that calls itself paid and is not: its seller asks again and is paid. The reverse, a payment whose
record is missing, is only found beside an older journal; then the receipt tells how the task ended.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import evolve

from ledger.model import Terms, burnt_before
from mesh.ids import Cid, EntryId, PeerId, TaskId
from mesh.market.accounts import Accounts
from mesh.market.order import State, TaskRecord, is_unpaid, paid_so_far
from mesh.market.terms import CANCELLED, CANCELLED_EXIT
from mesh.messages import Result
from mesh.runtime.manifest import EXIT_CODE_MAX, STATUSES


def recovered(records: Iterable[TaskRecord], accounts: Accounts) -> list[TaskRecord]:
    """The records as the ledger would have them."""
    paid = accounts.paid()
    return [_recovered(record, accounts, paid) for record in records]


def _recovered(
    record: TaskRecord, accounts: Accounts, paid: dict[TaskId, tuple[EntryId, Terms]]
) -> TaskRecord:
    key = (record.order.task, record.fence)
    if record.settle and record.executor and accounts.is_open(record.executor, key):
        bill = accounts.bill_of(key, record.result) if record.result else 0
        return evolve(record, settle=None, amount=record.amount - bill)
    if record.order.task not in paid:
        return record
    entry, deal = paid[record.order.task]
    if record.state.is_final:
        amount = record.amount + deal.amount
        return evolve(record, settle=entry, amount=amount) if is_unpaid(record) else record
    result = _result_of(deal)
    return evolve(
        record,
        state=State.DONE if result.status == "exited" else State.FAILED,
        round=max(record.round, deal.fence),
        fence=deal.fence,
        executor=PeerId(deal.seller),
        fuel=burnt_before(deal) + deal.fuel,
        amount=paid_so_far(record) + deal.amount,
        settle=entry,
        result=result,
        reason="as its receipt says",
    )


def _result_of(deal: Terms) -> Result:
    """How a run ended, of all that its SETTLE terms say."""
    output, stdout, stderr = (Cid(cid) for cid in deal.outputs)
    status, exit_code = _ending_of(deal.exit)
    return Result(
        status=status,
        exit_code=exit_code,
        detail="as its receipt says",
        fuel=deal.fuel,
        run_ms=0,
        output=output,
        stdout=stdout,
        stderr=stderr,
    )


def _ending_of(exit_: int) -> tuple[str, int]:
    """Status and exit code of a receipt's one number (manifest.exit_status)."""
    if exit_ <= EXIT_CODE_MAX:
        return "exited", exit_
    return (CANCELLED if exit_ == CANCELLED_EXIT else STATUSES[exit_ - EXIT_CODE_MAX]), 0
