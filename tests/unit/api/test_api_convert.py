"""Nothing is lost between the door's values and the messages, and wrong fields are named."""

from __future__ import annotations

from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import attrs
import pytest
from google.protobuf.message import Message

from mesh import ids
from mesh.api import convert
from mesh.api.copies import copies
from mesh.api.door import (
    AuditRequest,
    Comparison,
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
from mesh.ids import RAW, Cid, EntryId, PeerId, TaskId, cid_of
from mesh.market.order import State, TaskRecord
from mesh.messages import Offer
from mesh.notices import Notice
from mesh.v1 import ledger_pb2, market_pb2, order_pb2

SAMPLES: dict[object, object] = {
    int: 7,
    str: "said",
    bool: True,
    bytes: b"\x05" * 32,
    PeerId: PeerId(b"\x01" * 32),
    TaskId: TaskId(b"\x02" * 16),
    EntryId: EntryId(b"\x03" * 32),
    Cid: cid_of(RAW, b"x"),
}


def sample(hint: Any) -> Any:
    """A value of type *hint* in which nothing is empty or zero."""
    if hint in SAMPLES:
        return SAMPLES[hint]
    if attrs.has(hint):
        hints = get_type_hints(hint)
        return hint(**{field.name: sample(hints[field.name]) for field in attrs.fields(hint)})
    if isinstance(hint, type) and issubclass(hint, Enum):
        return next(iter(hint))
    if get_origin(hint) is tuple:
        items = get_args(hint)
        return tuple(map(sample, items if items[-1] is not Ellipsis else items[:1]))
    if get_origin(hint) in (Union, UnionType):
        return sample(next(each for each in get_args(hint) if each is not type(None)))
    raise AssertionError(hint)


def unset(message: Message, path: str = "") -> list[str]:
    """Every field below *message* that has its default value: a field that nobody filled."""
    empty: list[str] = []
    filled = {field.name: value for field, value in message.ListFields()}
    for field in message.DESCRIPTOR.fields:
        name = f"{path}{field.name}"
        value = filled.get(field.name)
        if value is None:
            if field.containing_oneof is None:
                empty.append(name)
        elif isinstance(value, Message):
            empty += unset(value, name + ".")
        elif field.message_type and not field.message_type.GetOptions().map_entry:
            empty += [each for item in value for each in unset(item, name + ".")]
    return empty


@pytest.mark.parametrize("kind", get_args(Notice), ids=lambda kind: kind.__name__)
def test_every_notice_is_told_whole(kind: type) -> None:
    notice = convert.notice(Numbered(3, sample(kind)))
    assert notice.seq == 3
    told = notice.WhichOneof("kind")
    assert told is not None
    assert told.replace("_", "") == kind.__name__.lower()
    assert unset(notice) == []


def told_of_copies(record: TaskRecord) -> order_pb2.Task:
    """A record as it is shown where it has copies."""
    assert record.order.group is not None
    shown = convert.task(record)
    shown.MergeFrom(copies(record.order.group, sample(Comparison)))
    return shown


@pytest.mark.parametrize(
    ("show", "kind"),
    [
        (told_of_copies, TaskRecord),
        (convert.status, NodeView),
        (convert.peer, PeerView),
        (convert.receipt, ReceiptView),
        (convert.finding, Finding),
        (convert.ledger, LedgerView),
        (convert.fork, ForkView),
        (convert.line, LineView),
        (convert.piece, Piece),
        (convert.intake, Intake),
    ],
    ids=lambda it: it.__name__,
)
def test_every_field_of_a_view_is_told(show: Any, kind: type) -> None:
    assert unset(show(sample(kind))) == []


@pytest.mark.parametrize("state", State)
def test_every_state_has_its_name(state: State) -> None:
    record = attrs.evolve(sample(TaskRecord), state=state)
    name = convert.order_pb2.TaskState.Name(convert.task(record).state)
    assert name == f"TASK_STATE_{state.name}"


def test_what_is_not_known_stays_empty() -> None:
    bare = attrs.evolve(sample(TaskRecord), executor=None, alloc=None, settle=None, result=None)
    task = convert.task(bare)
    assert (task.executor, task.alloc, task.settle) == ("", "", "")
    assert not task.HasField("result")
    assert not convert.peer(attrs.evolve(sample(PeerView), offer=None)).HasField("offer")
    assert convert.finding(Finding(None, None, "totals", True, "")).receipt_id == ""


def test_the_largest_numbers_of_a_peer_fit() -> None:
    """The codec lets numbers through to 2**63 - 1."""
    largest = 2**63 - 1
    offer = attrs.evolve(sample(Offer), price=largest, seq=largest, speed=largest)
    view = attrs.evolve(sample(PeerView), offer=offer)
    assert convert.peer(view).offer.price == largest
    record = sample(TaskRecord)
    result = attrs.evolve(record.result, exit_code=largest, fuel=largest)
    assert convert.task(attrs.evolve(record, result=result)).result.exit_code == largest


def test_a_short_task_has_no_answers() -> None:
    assert not convert.task(sample(TaskRecord), with_answers=False).answers


def bid(**changes: Any) -> market_pb2.MarketBidRequest:
    module = ids.format_cid(cid_of(RAW, b"m"))
    fields: dict[str, Any] = {
        "idempotency_key": b"k",
        "module": module,
        "cpu_milli": 1,
        "memory": 1,
        "fuel": 1,
        "wall_ms": 1,
        "deadline_ms": 1,
    }
    return market_pb2.MarketBidRequest(**(fields | changes))


def test_no_redundancy_is_a_redundancy_of_one() -> None:
    assert [convert.read_bid(bid(redundancy=count)).redundancy for count in (0, 1, 8)] == [1, 1, 8]


def test_a_bid_is_read_in_an_order_of_its_own() -> None:
    module = ids.format_cid(cid_of(RAW, b"m"))
    request = convert.read_bid(bid(env={"b": "2", "a": "1"}, inputs={"y": module, "x": module}))
    assert request.env == (("a", "1"), ("b", "2"))
    assert [name for name, _ in request.inputs] == ["x", "y"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"idempotency_key": b""}, "idempotency_key"),
        ({"idempotency_key": b"x" * 65}, "idempotency_key"),
        ({"module": ""}, "module"),
        ({"module": "QmSomething"}, "module"),
        ({"inputs": {"a": "?"}}, "inputs['a']"),
        ({"cpu_milli": 0}, "cpu_milli"),
        ({"redundancy": -1}, "redundancy"),
        ({"redundancy": 9}, "redundancy"),
        ({"memory": -1}, "memory"),
        ({"disk": -1}, "disk"),
        ({"fuel": 0}, "fuel"),
        ({"wall_ms": 0}, "wall_ms"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"max_price": -1}, "max_price"),
        ({"fee": -1}, "fee"),
        ({"priority": -1}, "priority"),
        ({"env": {str(number): "" for number in range(257)}}, "env"),
        ({"features": ["x"] * 257}, "features"),
    ],
)
def test_a_wrong_field_of_a_bid_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        convert.read_bid(bid(**changes))
    assert caught.value.field == field


def test_ids_are_read_or_explained() -> None:
    assert convert.read_task_or_all("") is None
    with pytest.raises(FieldError, match="task_id: is missing"):
        convert.read_task("")
    with pytest.raises(FieldError, match="is not a task id"):
        convert.read_task("t-12")
    with pytest.raises(FieldError, match="cid: "):
        convert.read_cid("bafy")


def test_a_number_of_bills_asks_for_their_re_run() -> None:
    request = ledger_pb2.LedgerAuditRequest(rerun_newest=3, others=True)
    assert convert.read_audit(request) == AuditRequest(None, rerun=True, newest=3, others=True)
    assert convert.read_audit(ledger_pb2.LedgerAuditRequest(rerun=True)) == AuditRequest(rerun=True)
    with pytest.raises(FieldError, match="rerun_newest"):
        convert.read_audit(ledger_pb2.LedgerAuditRequest(rerun_newest=-1))


def test_every_form_of_a_file_has_its_name() -> None:
    names = ledger_pb2.ExportForm.keys()[1:]
    forms = [convert.read_form(ledger_pb2.ExportForm.Value(name)) for name in names]
    assert forms == list(Form)
    assert names == [f"EXPORT_FORM_{form.name}" for form in Form]
    with pytest.raises(FieldError, match="form: is not given"):
        convert.read_form(ledger_pb2.EXPORT_FORM_UNSPECIFIED)


def test_a_line_names_its_buyer_and_is_not_negative() -> None:
    buyer = sample(PeerId)
    request = ledger_pb2.LedgerSetLineRequest(buyer=ids.format_peer(buyer), limit=2**63 - 1)
    assert convert.read_line(request) == (buyer, 2**63 - 1)
    for field, wrong in (("buyer", {"buyer": "12D3"}), ("limit", {"limit": -1})):
        with pytest.raises(FieldError) as caught:
            convert.read_line(
                ledger_pb2.LedgerSetLineRequest(**{"buyer": ids.format_peer(buyer)} | wrong)  # type: ignore[arg-type]
            )
        assert caught.value.field == field


def test_what_is_about_no_task_and_nobody_stays_empty() -> None:
    bare = attrs.evolve(
        sample(ReceiptView), author=None, task=None, buyer=None, seller=None, module=None
    )
    told = convert.receipt(bare)
    assert (told.author, told.task_id, told.buyer, told.seller, told.module) == ("",) * 5
