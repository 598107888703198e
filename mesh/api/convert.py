"""The door's values as protobuf messages, and a client's requests as the door's values.

Pure. What a client wrote wrongly is a `FieldError` that names the field; every number that a peer
may have sent fits into an int64 (mesh/codec.py sees to that), so the other way cannot fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar, assert_never

from mesh import ids, messages, notices
from mesh.api.door import (
    AuditRequest,
    BidRequest,
    Finding,
    ForkView,
    Form,
    Intake,
    LedgerView,
    LineView,
    NodeView,
    Numbered,
    PeerView,
    Piece,
    ReceiptView,
)
from mesh.api.faults import FieldError
from mesh.ids import Cid, EntryId, PeerId, TaskId
from mesh.market.order import COPIES_MAX, Answer, State, TaskRecord, paid_so_far, saved_up_to
from mesh.resources.capacity import Capacity
from mesh.v1 import (
    ledger_pb2,
    market_pb2,
    node_pb2,
    notice_pb2,
    offer_pb2,
    order_pb2,
    tasks_pb2,
)

KEY_MAX = 64
"""Bytes of an idempotency key."""
ENTRIES_MAX = 256
"""Of each list in a bid: arguments, variables, inputs, features."""

T = TypeVar("T")


# What clients send


def read_task(text: str, field: str = "task_id") -> TaskId:
    """Raises FieldError."""
    return _parse(ids.parse_task, text, field)


def read_task_or_all(text: str) -> TaskId | None:
    """The empty string means every task. Raises FieldError."""
    return read_task(text) if text else None


def read_cid(text: str, field: str = "cid") -> Cid:
    """Raises FieldError."""
    return _parse(ids.parse_cid, text, field)


def read_bid(request: market_pb2.MarketBidRequest) -> BidRequest:
    """Raises FieldError. Whether the node wants such a task is for the door to say."""
    key = request.idempotency_key
    if not 1 <= len(key) <= KEY_MAX:
        raise FieldError(
            "idempotency_key",
            f"is {len(key)} bytes long, not 1 to {KEY_MAX}",
            "draw 16 random bytes for each task and send the same ones when you try again",
        )
    for field in ("args", "env", "inputs", "features"):
        if len(getattr(request, field)) > ENTRIES_MAX:
            raise FieldError(field, f"has more than {ENTRIES_MAX} entries")
    return BidRequest(
        idempotency_key=key,
        name=request.name,
        module=read_cid(request.module, "module"),
        args=tuple(request.args),
        env=tuple(sorted(request.env.items())),
        inputs=_read_inputs(request.inputs),
        cpu_milli=_read_positive(request.cpu_milli, "cpu_milli"),
        memory=_read_positive(request.memory, "memory"),
        disk=_read_natural(request.disk, "disk"),
        fuel=_read_positive(request.fuel, "fuel"),
        wall_ms=_read_positive(request.wall_ms, "wall_ms"),
        deadline_ms=_read_positive(request.deadline_ms, "deadline_ms"),
        max_price=_read_natural(request.max_price, "max_price"),
        fee=_read_natural(request.fee, "fee"),
        priority=_read_natural(request.priority, "priority"),
        features=tuple(request.features),
        redundancy=_read_redundancy(request.redundancy),
    )


def _read_redundancy(count: int) -> int:
    if not 0 <= count <= COPIES_MAX:
        raise FieldError("redundancy", f"is {count}, not 1 to {COPIES_MAX}")
    return count or 1


def read_audit(request: ledger_pb2.LedgerAuditRequest) -> AuditRequest:
    """Raises FieldError."""
    return AuditRequest(
        task=read_task_or_all(request.task_id),
        rerun=request.rerun or request.rerun_newest > 0,
        newest=_read_natural(request.rerun_newest, "rerun_newest"),
        others=request.others,
    )


def read_form(form: ledger_pb2.ExportForm.ValueType) -> Form:
    """Raises FieldError."""
    if form not in _FORMS:
        raise FieldError("form", "is not given", "EXPORT_FORM_BUNDLE verifies offline")
    return _FORMS[form]


def read_target(request: tasks_pb2.TasksMigrateRequest) -> PeerId | None:
    """Where a task is wanted, if its client says. Raises FieldError."""
    return _parse(ids.parse_peer, request.to, "to") if request.to else None


def read_line(request: ledger_pb2.LedgerSetLineRequest) -> tuple[PeerId, int]:
    """The buyer and its limit. Raises FieldError."""
    buyer = _parse(ids.parse_peer, request.buyer, "buyer")
    return buyer, _read_natural(request.limit, "limit")


_FORMS = {
    ledger_pb2.EXPORT_FORM_BUNDLE: Form.BUNDLE,
    ledger_pb2.EXPORT_FORM_JSONL: Form.JSONL,
    ledger_pb2.EXPORT_FORM_CSV: Form.CSV,
}


def _read_inputs(inputs: Mapping[str, str]) -> tuple[tuple[str, Cid], ...]:
    return tuple((name, read_cid(cid, f"inputs[{name!r}]")) for name, cid in sorted(inputs.items()))


def _read_natural(value: int, field: str) -> int:
    if value < 0:
        raise FieldError(field, f"is {value}, not 0 or more")
    return value


def _read_positive(value: int, field: str) -> int:
    if value < 1:
        raise FieldError(field, f"is {value}, not 1 or more")
    return value


def _parse(parse: Callable[[str], T], text: str, field: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise FieldError(field, str(error) if text else "is missing") from None


# What clients get


_STATES: dict[State, order_pb2.TaskState.ValueType] = {
    State.WAITING: order_pb2.TASK_STATE_WAITING,
    State.ASKING: order_pb2.TASK_STATE_ASKING,
    State.AWARDED: order_pb2.TASK_STATE_AWARDED,
    State.RUNNING: order_pb2.TASK_STATE_RUNNING,
    State.DONE: order_pb2.TASK_STATE_DONE,
    State.FAILED: order_pb2.TASK_STATE_FAILED,
    State.CANCELLED: order_pb2.TASK_STATE_CANCELLED,
}
assert len(_STATES) == len(State)


def _peer(peer: PeerId | None) -> str:
    return "" if peer is None else ids.format_peer(peer)


def _entry(entry: EntryId | None) -> str:
    return "" if entry is None else ids.format_entry(entry)


def _task(task: TaskId | None) -> str:
    return "" if task is None else ids.format_task(task)


def _capacity(capacity: Capacity) -> offer_pb2.Capacity:
    return offer_pb2.Capacity(
        cpu_milli=capacity.cpu_milli,
        memory=capacity.memory,
        disk=capacity.disk,
        slots=capacity.slots,
    )


def _quantiles(quantiles: messages.Quantiles) -> offer_pb2.Quantiles:
    return offer_pb2.Quantiles(q10=quantiles.q10, q50=quantiles.q50, q90=quantiles.q90)


def _offer(offer: messages.Offer) -> offer_pb2.Offer:
    return offer_pb2.Offer(
        peer=_peer(PeerId(offer.peer)),
        epoch=offer.epoch,
        seq=offer.seq,
        sold=_capacity(offer.sold),
        free=_capacity(offer.free),
        outlook=[
            offer_pb2.Outlook(
                ahead_ms=outlook.ahead_ms,
                cpu_milli=_quantiles(outlook.cpu_milli),
                memory=_quantiles(outlook.memory),
            )
            for outlook in offer.outlook
        ],
        price=offer.price,
        speed=offer.speed,
        features=offer.features,
        agent=offer.agent,
    )


def _result(result: messages.Result) -> order_pb2.Result:
    return order_pb2.Result(
        status=result.status,
        exit_code=result.exit_code,
        detail=result.detail,
        fuel=result.fuel,
        run_ms=result.run_ms,
        output=ids.format_cid(result.output),
        stdout=ids.format_cid(result.stdout),
        stderr=ids.format_cid(result.stderr),
    )


def _answer(answer: Answer) -> order_pb2.Answer:
    return order_pb2.Answer(
        round=answer.round,
        peer=_peer(answer.peer),
        price=answer.price,
        p_on_time=answer.p_on_time,
        finish_ms=answer.finish_ms,
        score=answer.score,
        is_bid=answer.is_bid,
        reason=answer.reason,
        verdict=answer.verdict,
    )


def _work(work: messages.Work) -> order_pb2.Work:
    return order_pb2.Work(
        job=ids.format_cid(work.job),
        module=ids.format_cid(work.module),
        inputs=[ids.format_cid(cid) for cid in work.inputs],
        needs=_capacity(work.needs),
        fuel=work.fuel,
        wall_ms=work.wall_ms,
        features=work.features,
    )


def task(record: TaskRecord, *, with_answers: bool = True) -> order_pb2.Task:
    """The record as clients see it; without answers it is small enough for long lists."""
    order = record.order
    return order_pb2.Task(
        task_id=ids.format_task(order.task),
        name=order.name,
        state=_STATES[record.state],
        reason=record.reason,
        work=_work(order.work),
        max_price=order.max_price,
        fee=order.fee,
        priority=order.priority,
        deadline_ms=order.deadline_ms,
        submitted_ms=record.submitted_ms,
        round=record.round,
        fence=record.fence,
        executor=_peer(record.executor),
        answers=[_answer(answer) for answer in record.answers] if with_answers else (),
        fuel=record.fuel,
        moves=record.moves,
        alloc=_entry(record.alloc),
        settle=_entry(record.settle),
        amount=paid_so_far(record),
        result=None if record.result is None else _result(record.result),
        path=[_move(move) for move in record.path],
        saved_fuel=saved_up_to(record),
    )


def _move(move: messages.Move) -> order_pb2.Move:
    return order_pb2.Move(
        fuel=move.fuel, source=_peer(move.source), state=ids.format_cid(move.state)
    )


def notice(numbered: Numbered) -> notice_pb2.Notice:
    """One line of the market's story, numbered."""
    seq = numbered.seq
    match numbered.notice:
        case notices.OfferHeard(offer):
            heard = notice_pb2.OfferHeard(offer=_offer(offer))
            return notice_pb2.Notice(seq=seq, offer_heard=heard)
        case notices.OfferAged(peer):
            return notice_pb2.Notice(seq=seq, offer_aged=notice_pb2.OfferAged(peer=_peer(peer)))
        case notices.Asked() as it:
            return notice_pb2.Notice(seq=seq, asked=_asked(it))
        case notices.Answered(task, answer):
            told = notice_pb2.Answered(task_id=ids.format_task(task), answer=_answer(answer))
            return notice_pb2.Notice(seq=seq, answered=told)
        case notices.Awarded() as it:
            return notice_pb2.Notice(seq=seq, awarded=_awarded(it))
        case notices.Moved() as it:
            return notice_pb2.Notice(seq=seq, moved=_moved(it))
        case notices.Progressed(task, fence, fuel):
            progress = notice_pb2.Progressed(task_id=ids.format_task(task), fence=fence, fuel=fuel)
            return notice_pb2.Notice(seq=seq, progressed=progress)
        case notices.Hosted() as it:
            return notice_pb2.Notice(seq=seq, hosted=_hosted(it))
        case notices.Forked(peer):
            return notice_pb2.Notice(seq=seq, forked=notice_pb2.Forked(peer=_peer(peer)))
        case never:
            assert_never(never)


def _asked(asked: notices.Asked) -> notice_pb2.Asked:
    return notice_pb2.Asked(
        task_id=ids.format_task(asked.task),
        round=asked.round,
        candidates=[_peer(peer) for peer in asked.candidates],
    )


def _awarded(awarded: notices.Awarded) -> notice_pb2.Awarded:
    return notice_pb2.Awarded(
        task_id=ids.format_task(awarded.task),
        fence=awarded.fence,
        winner=_peer(awarded.winner),
        price=awarded.price,
        reason=awarded.reason,
        alloc=_entry(awarded.alloc),
    )


def _moved(moved: notices.Moved) -> notice_pb2.Moved:
    return notice_pb2.Moved(
        task_id=ids.format_task(moved.task),
        state=_STATES[moved.state],
        fence=moved.fence,
        executor=_peer(moved.executor),
        reason=moved.reason,
        result=None if moved.result is None else _result(moved.result),
        settle=_entry(moved.settle),
    )


def _hosted(hosted: notices.Hosted) -> notice_pb2.Hosted:
    return notice_pb2.Hosted(
        task_id=ids.format_task(hosted.task),
        fence=hosted.fence,
        buyer=_peer(hosted.buyer),
        what=hosted.what,
        reason=hosted.reason,
    )


def status(view: NodeView) -> node_pb2.NodeStatusResponse:
    """This node, now."""
    return node_pb2.NodeStatusResponse(
        peer=_peer(view.peer),
        agent=view.agent,
        addresses=view.addresses,
        uptime_ms=view.uptime_ms,
        sold=_capacity(view.sold),
        free=_capacity(view.free),
        offer=None if view.offer is None else _offer(view.offer),
        tasks_waiting=view.tasks_waiting,
        tasks_running=view.tasks_running,
        tasks_hosted=view.tasks_hosted,
        peers=view.peers,
        posted=view.posted,
        pending=view.pending,
        earned=view.earned,
        tier=view.tier,
        storage=view.storage,
        counters=dict(view.counters),
        draining=view.draining,
    )


def peer(view: PeerView) -> node_pb2.Peer:
    """A peer, as seen from here."""
    return node_pb2.Peer(
        peer=_peer(view.peer),
        addresses=view.addresses,
        connected=view.connected,
        offer=None if view.offer is None else _offer(view.offer),
        offer_age_ms=view.offer_age_ms,
    )


def receipt(view: ReceiptView) -> ledger_pb2.Receipt:
    """A ledger entry, readable, and its exact bytes."""
    return ledger_pb2.Receipt(
        receipt_id=_entry(view.entry),
        kind=view.kind,
        author=_peer(view.author),
        task_id=_task(view.task),
        fence=view.fence,
        buyer=_peer(view.buyer),
        seller=_peer(view.seller),
        amount=view.amount,
        reserve=view.reserve,
        fuel=view.fuel,
        price=view.price,
        fee=view.fee,
        exit_code=view.exit_code,
        meter=view.meter,
        module="" if view.module is None else ids.format_cid(view.module),
        outputs=[ids.format_cid(cid) for cid in view.outputs],
        seq=view.seq,
        wall_ms=view.wall_ms,
        signatures_good=view.signatures_good,
        signatures_needed=view.signatures_needed,
        says=view.says,
        raw=view.raw,
    )


def finding(found: Finding) -> ledger_pb2.LedgerAuditResponse:
    """One thing that an audit looked at."""
    return ledger_pb2.LedgerAuditResponse(
        receipt_id=_entry(found.entry),
        task_id=_task(found.task),
        check=found.check,
        is_good=found.is_good,
        detail=found.detail,
        is_skipped=found.is_skipped,
        evidence=found.evidence,
        done=found.done,
        total=found.total,
        is_note=found.is_note,
    )


def ledger(view: LedgerView) -> ledger_pb2.LedgerStatusResponse:
    """What is held, and by what promise."""
    return ledger_pb2.LedgerStatusResponse(
        tier=view.tier,
        promise=view.promise,
        digest=view.digest,
        entries=view.entries,
        pruned=view.pruned,
        is_archive=view.is_archive,
        chains=view.chains,
        forked=[_peer(peer) for peer in view.forked],
        frozen=[_peer(peer) for peer in view.frozen],
        posted=view.posted,
        pending=view.pending,
        earned=view.earned,
        counters=dict(view.counters),
    )


def fork(view: ForkView) -> ledger_pb2.LedgerForksResponse:
    """One who forked, and the proof."""
    return ledger_pb2.LedgerForksResponse(peer=_peer(view.peer), seq=view.seq, lines=view.lines)


def line(view: LineView) -> ledger_pb2.Line:
    """A buyer, as a debtor of this node."""
    return ledger_pb2.Line(
        buyer=_peer(view.buyer),
        owed=view.owed,
        reserved=view.reserved,
        limit=view.limit,
        is_frozen=view.is_frozen,
    )


def piece(part: Piece) -> ledger_pb2.LedgerExportResponse:
    """Of a file, and how far it is."""
    return ledger_pb2.LedgerExportResponse(
        chunk=part.data, entries=part.entries, left_out=part.left_out
    )


def intake(taken: Intake) -> ledger_pb2.LedgerImportResponse:
    """What became of entries from elsewhere."""
    return ledger_pb2.LedgerImportResponse(
        added=taken.added,
        known=taken.known,
        refused=taken.refused,
        early=taken.early,
        over_budget=taken.over_budget,
    )
