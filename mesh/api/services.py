"""The services of mesh.v1: what each method asks of the door. All of it runs on the trio side.

A method is a function of the door and the request; nothing here knows gRPC. Answers stay below
the message limit: lists come in pages, files in pieces.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any, TypeAlias, TypeVar

import trio
from attrs import asdict, evolve, frozen
from google.protobuf.message import Message

from mesh import ids
from mesh.api import convert, modules
from mesh.api.bridge import Send
from mesh.api.copies import copies
from mesh.api.door import Door, Intake, Numbered
from mesh.api.faults import Closed, FieldError, TooSlow
from mesh.errors import NotFound, Refused
from mesh.ids import TaskId, format_cid
from mesh.market.order import TaskRecord
from mesh.notices import Answered, Asked, Awarded, Moved
from mesh.v1 import files_pb2, ledger_pb2, market_pb2, node_pb2, order_pb2, tasks_pb2

PAGE_DEFAULT = 100
PAGE_MAX = 1000
PAGE_BYTES = 512 * 1024
"""A page ends at whichever comes first."""
RECEIPTS_MAX = 256
PIECE = 256 * 1024
"""Bytes of a file in one message."""

T = TypeVar("T")
M = TypeVar("M", bound=Message)


# Market


async def bid(door: Door, request: market_pb2.MarketBidRequest) -> market_pb2.MarketBidResponse:
    """Admit a task."""
    task = await door.bid(convert.read_bid(request))
    return market_pb2.MarketBidResponse(task_id=ids.format_task(task))


async def watch_auction(
    door: Door,
    request: market_pb2.MarketWatchAuctionRequest,
    send: Send[market_pb2.MarketWatchAuctionResponse],
) -> None:
    """Who was asked, who bid what and why the winner won, until the task is over."""

    async def tell(event: TaskRecord | Numbered) -> None:
        if isinstance(event, TaskRecord):
            await send(market_pb2.MarketWatchAuctionResponse(task=_shown(door, event)))
        elif isinstance(event.notice, Asked | Answered | Awarded | Moved):
            await send(market_pb2.MarketWatchAuctionResponse(notice=convert.notice(event)))

    await _follow_task(door, convert.read_task(request.task_id), tell)


# Tasks


async def get_task(door: Door, request: tasks_pb2.TasksGetRequest) -> tasks_pb2.TasksGetResponse:
    """One record."""
    record = door.task(convert.read_task(request.task_id))
    return tasks_pb2.TasksGetResponse(task=_shown(door, record))


async def list_tasks(
    door: Door, request: tasks_pb2.TasksListRequest
) -> tasks_pb2.TasksListResponse:
    """A page of records, without their answers."""
    tasks, token = _page(
        door.tasks(),
        lambda record: ids.format_task(record.order.task),
        lambda record: _shown(door, record, with_answers=False),
        request.page_size,
        request.page_token,
    )
    return tasks_pb2.TasksListResponse(tasks=tasks, next_page_token=token)


async def watch_tasks(
    door: Door, request: tasks_pb2.TasksWatchRequest, send: Send[tasks_pb2.TasksWatchResponse]
) -> None:
    """One task until it is over; or, without a task, all records and then all notices."""

    async def tell(event: TaskRecord | Numbered) -> None:
        if isinstance(event, TaskRecord):
            await send(tasks_pb2.TasksWatchResponse(task=_shown(door, event)))
        else:
            await send(tasks_pb2.TasksWatchResponse(notice=convert.notice(event)))

    task = convert.read_task_or_all(request.task_id)
    if task is None:
        await _follow_all(door, tell)
    else:
        await _follow_task(door, task, tell)


async def result(
    door: Door, request: tasks_pb2.TasksResultRequest
) -> tasks_pb2.TasksResultResponse:
    """The record of an ended task; with *wait* when it, and all its copies, have ended."""
    task = convert.read_task(request.task_id)
    record = door.task(task)
    if not record.state.is_final and not request.wait:
        raise Refused(f"the task is not over: it is {record.state}", "ask with wait = true")
    group = record.order.group
    record = await _outcome(door, task)
    if group and group.first == task and request.wait:
        for copy in group.members:
            with suppress(NotFound):  # it has ended, and is forgotten
                await _outcome(door, copy)
    return tasks_pb2.TasksResultResponse(task=_shown(door, record))


async def cancel(
    door: Door, request: tasks_pb2.TasksCancelRequest
) -> tasks_pb2.TasksCancelResponse:
    """Cancel a task; an ended one stays as it is."""
    await door.cancel(convert.read_task(request.task_id))
    return tasks_pb2.TasksCancelResponse()


async def migrate(
    door: Door, request: tasks_pb2.TasksMigrateRequest
) -> tasks_pb2.TasksMigrateResponse:
    """Ask for a task to go on elsewhere."""
    await door.migrate(convert.read_task(request.task_id), convert.read_target(request))
    return tasks_pb2.TasksMigrateResponse()


def _shown(door: Door, record: TaskRecord, *, with_answers: bool = True) -> order_pb2.Task:
    """The record, and what it and its copies came to."""
    shown, group = convert.task(record, with_answers=with_answers), record.order.group
    if group is not None:
        shown.MergeFrom(copies(group, door.comparison(group)))
    return shown


Tell: TypeAlias = Callable[[TaskRecord | Numbered], Awaitable[None]]


async def _follow_task(door: Door, task: TaskId, tell: Tell) -> None:
    """The record as it stands, every notice, and the record as it ended."""
    async with door.follow(task) as notices:
        record = door.task(task)
        await tell(record)
        if record.state.is_final:
            return
        async for numbered in notices:
            await tell(numbered)
            record = door.task(task)
            # The record is asked, not the notice: a slow reader may have missed the last one.
            if record.state.is_final and notices.statistics().current_buffer_used == 0:
                await tell(record)
                return
    raise Closed


async def _follow_all(door: Door, tell: Tell) -> None:
    """Every record as it stands and every notice; a gap ends it."""
    async with door.follow(None) as notices:
        for record in door.tasks():
            await tell(record)
        seq: int | None = None
        async for numbered in notices:
            if seq is not None and numbered.seq != seq + 1:
                raise TooSlow
            seq = numbered.seq
            await tell(numbered)
    raise Closed


async def _outcome(door: Door, task: TaskId) -> TaskRecord:
    async with door.follow(task) as notices:
        while not (record := door.task(task)).state.is_final:
            try:
                await notices.receive()
            except trio.EndOfChannel:
                raise Closed from None
        return record


# Node


async def status(door: Door, request: node_pb2.NodeStatusRequest) -> node_pb2.NodeStatusResponse:
    """This node, now."""
    return convert.status(door.status())


async def list_peers(door: Door, request: node_pb2.NodePeersRequest) -> node_pb2.NodePeersResponse:
    """A page of the peers that this node knows."""
    peers, token = _page(
        door.peers(),
        lambda view: ids.format_peer(view.peer),
        convert.peer,
        request.page_size,
        request.page_token,
    )
    return node_pb2.NodePeersResponse(peers=peers, next_page_token=token)


async def drain(door: Door, request: node_pb2.NodeDrainRequest) -> node_pb2.NodeDrainResponse:
    """Empty the node, or open it again."""
    await door.drain(is_on=request.is_on)
    return node_pb2.NodeDrainResponse()


# Files


async def put_file(
    door: Door, requests: AsyncIterator[files_pb2.FilesPutRequest]
) -> files_pb2.FilesPutResponse:
    """Import a file: its name, then its chunks."""
    first = await anext(requests, None)
    if first is None or first.WhichOneof("part") != "name":
        raise FieldError("name", "is missing", "send the name in the first message")
    cid = await door.put_file(first.name, _Chunks(requests))
    return files_pb2.FilesPutResponse(cid=ids.format_cid(cid))


class _Chunks:
    """The bytes of an upload; an iterator that needs no closing."""

    def __init__(self, requests: AsyncIterator[files_pb2.FilesPutRequest]) -> None:
        self._requests = requests

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        request = await anext(self._requests)
        if request.WhichOneof("part") != "chunk":
            raise FieldError("chunk", "is missing", "send chunks only, after the name")
        return request.chunk


async def get_file(
    door: Door, request: files_pb2.FilesGetRequest, send: Send[files_pb2.FilesGetResponse]
) -> None:
    """The bytes of a file, in pieces."""
    async with AsyncExitStack() as stack:
        chunks = await _closed_after(
            stack, door.get_file(convert.read_cid(request.cid), request.path)
        )
        async for chunk in chunks:
            for start in range(0, len(chunk), PIECE):
                await send(files_pb2.FilesGetResponse(chunk=chunk[start : start + PIECE]))


async def stat_files(
    door: Door, request: files_pb2.FilesStatRequest
) -> files_pb2.FilesStatResponse:
    """A page of what is below a directory."""
    files, token = _page(
        await door.list_files(convert.read_cid(request.cid)),
        lambda file: file[0],
        lambda file: files_pb2.File(path=file[0], size=file[1], cid=format_cid(file[2])),
        request.page_size,
        request.page_token,
    )
    return files_pb2.FilesStatResponse(files=files, next_page_token=token)


# Ledger


async def list_receipts(
    door: Door, request: ledger_pb2.LedgerReceiptsRequest
) -> ledger_pb2.LedgerReceiptsResponse:
    """The newest receipts."""
    limit = request.limit or PAGE_DEFAULT
    if not 1 <= limit <= RECEIPTS_MAX:
        raise FieldError("limit", f"is {limit}, not 1 to {RECEIPTS_MAX}")
    views = await door.receipts(convert.read_task_or_all(request.task_id), limit)
    receipts, _ = _page(
        views, lambda view: ids.format_entry(view.entry), convert.receipt, limit, token=""
    )
    return ledger_pb2.LedgerReceiptsResponse(receipts=receipts, left_out=len(views) - len(receipts))


async def audit(
    door: Door, request: ledger_pb2.LedgerAuditRequest, send: Send[ledger_pb2.LedgerAuditResponse]
) -> None:
    """Every finding, as it is found."""
    async with AsyncExitStack() as stack:
        findings = await _closed_after(stack, door.audit(convert.read_audit(request)))
        async for finding in findings:
            await send(convert.finding(finding))


async def ledger_status(
    door: Door, request: ledger_pb2.LedgerStatusRequest
) -> ledger_pb2.LedgerStatusResponse:
    """What is held, and by what promise."""
    return convert.ledger(await door.ledger())


async def forks(
    door: Door, request: ledger_pb2.LedgerForksRequest, send: Send[ledger_pb2.LedgerForksResponse]
) -> None:
    """Every fork, with its proof."""
    async with AsyncExitStack() as stack:
        async for fork in await _closed_after(stack, door.forks()):
            await send(convert.fork(fork))


async def export(
    door: Door, request: ledger_pb2.LedgerExportRequest, send: Send[ledger_pb2.LedgerExportResponse]
) -> None:
    """The ledger as a file, in pieces."""
    form = convert.read_form(request.form)
    async with AsyncExitStack() as stack:
        pieces = await _closed_after(
            stack, door.export(convert.read_task_or_all(request.task_id), form)
        )
        async for piece in pieces:
            for start in range(0, max(1, len(piece.data)), PIECE):
                part = evolve(piece, data=piece.data[start : start + PIECE])
                await send(convert.piece(part))


async def import_entries(
    door: Door, requests: AsyncIterator[ledger_pb2.LedgerImportRequest]
) -> ledger_pb2.LedgerImportResponse:
    """Take in entries, message by message; what became of them altogether."""
    total = Intake(0, 0, 0, 0, 0)
    async for request in requests:
        taken = await door.take_in(tuple(request.entries))
        sums = {name: value + getattr(taken, name) for name, value in asdict(total).items()}
        total = Intake(**sums)
    return convert.intake(total)


async def list_lines(
    door: Door, request: ledger_pb2.LedgerLinesRequest
) -> ledger_pb2.LedgerLinesResponse:
    """A page of the buyers with a line, or a debt."""
    lines, token = _page(
        door.lines(),
        lambda view: ids.format_peer(view.buyer),
        convert.line,
        request.page_size,
        request.page_token,
    )
    return ledger_pb2.LedgerLinesResponse(lines=lines, next_page_token=token)


async def set_line(
    door: Door, request: ledger_pb2.LedgerSetLineRequest
) -> ledger_pb2.LedgerSetLineResponse:
    """Let a buyer owe so much, from now on."""
    await door.set_line(*convert.read_line(request))
    return ledger_pb2.LedgerSetLineResponse()


async def _closed_after(stack: AsyncExitStack, items: AsyncIterator[T]) -> AsyncIterator[T]:
    """*items*; where it is a generator, it ends with *stack* and not when memory is collected."""
    if isinstance(items, AsyncGenerator):
        await stack.enter_async_context(aclosing(items))
    return items


def _page(
    values: Sequence[T],
    name: Callable[[T], str],
    show: Callable[[T], M],
    size: int,
    token: str,
) -> tuple[list[M], str]:
    """The page after *token* (the name of the last value before it), and the next token."""
    size = size or PAGE_DEFAULT
    if not 1 <= size <= PAGE_MAX:
        raise FieldError("page_size", f"is {size}, not 1 to {PAGE_MAX}")
    start = _after(values, name, token) if token else 0
    page: list[M] = []
    room = PAGE_BYTES
    for value in values[start : start + size]:
        message = show(value)
        room -= message.ByteSize()
        if page and room < 0:
            break
        page.append(message)
    end = start + len(page)
    return page, name(values[end - 1]) if end < len(values) else ""


def _after(values: Sequence[T], name: Callable[[T], str], token: str) -> int:
    for place, value in enumerate(values):
        if name(value) == token:
            return place + 1
    raise FieldError("page_token", "names nothing here", "start again without it")


# All of them


@frozen
class Unary:
    """One request, one answer."""

    answer: Callable[[Door, Any], Awaitable[Message]]


@frozen
class Stream:
    """One request, many messages."""

    tell: Callable[[Door, Any, Send[Any]], Awaitable[None]]
    window: int
    """Messages on their way from trio to one client, gRPC's own flow control not counted."""
    is_watch: bool = False
    """Whether it ends when its client does not keep up; otherwise it waits for the client."""


@frozen
class Upload:
    """Many requests, one answer."""

    take: Callable[[Door, AsyncIterator[Any]], Awaitable[Message]]


Method: TypeAlias = Unary | Stream | Upload

SERVICES: Mapping[str, Mapping[str, Method]] = {
    "mesh.v1.Market": {
        "Bid": Unary(bid),
        "WatchAuction": Stream(watch_auction, window=512, is_watch=True),
    },
    "mesh.v1.Tasks": {
        "Get": Unary(get_task),
        "List": Unary(list_tasks),
        "Watch": Stream(watch_tasks, window=512, is_watch=True),
        "Result": Unary(result),
        "Cancel": Unary(cancel),
        "Migrate": Unary(migrate),
    },
    "mesh.v1.Node": {
        "Status": Unary(status),
        "Peers": Unary(list_peers),
        "Drain": Unary(drain),
    },
    "mesh.v1.Files": {
        "Put": Upload(put_file),
        "Get": Stream(get_file, window=4),
        "Stat": Unary(stat_files),
    },
    "mesh.v1.Modules": {
        "Instrument": Unary(modules.instrument),
        "Describe": Unary(modules.describe),
    },
    "mesh.v1.Ledger": {
        "Receipts": Unary(list_receipts),
        "Audit": Stream(audit, window=64),
        "Status": Unary(ledger_status),
        "Forks": Stream(forks, window=8),
        "Export": Stream(export, window=4),
        "Import": Upload(import_entries),
        "Lines": Unary(list_lines),
        "SetLine": Unary(set_line),
    },
}
