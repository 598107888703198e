"""The gRPC door as clients meet it: real server, real clients, the door's values behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import grpc
import pytest
import trio
import trio.testing
from api_client import Fault, bid_request, connected, serving
from api_door import (
    ANSWER,
    ENTRY,
    MAKER,
    MODULE,
    MOVABLE,
    OTHER,
    OWN,
    RECEIPT,
    TASK,
    MemoryDoor,
    moved,
    record,
)
from attrs import evolve
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from mesh.api.door import AuditRequest, Finding, PeerView
from mesh.api.server import ApiServer, open_api
from mesh.api.services import PIECE
from mesh.errors import ConfigError, Corruption, PeerError, Refused, Unavailable
from mesh.ids import (
    RAW,
    PeerId,
    cid_of,
    format_cid,
    format_entry,
    format_peer,
    format_task,
    task_id,
)
from mesh.market.order import Group, State
from mesh.notices import Answered, Asked, Awarded, OfferAged
from mesh.runtime.rewrite import Policy
from mesh.v1 import (
    files_pb2,
    ledger_pb2,
    market_pb2,
    modules_pb2,
    node_pb2,
    order_pb2,
    tasks_pb2,
)

# Every method


async def test_a_bid_is_admitted_once_for_each_key() -> None:
    door = MemoryDoor()
    async with serving(door) as (client, _):
        first = await client.ask(client.market.Bid, bid_request())
        again = await client.ask(client.market.Bid, bid_request())
    assert first.task_id == again.task_id == format_task(task_id(OWN, b"k"))
    assert len(door.records) == 1
    bid = door.bids[0]
    assert (bid.module, bid.args, bid.env) == (MODULE, ("-l",), (("A", "1"), ("B", "2")))
    assert (bid.inputs, bid.fee, bid.priority) == ((("text", MODULE),), 2, 1)


async def test_an_auction_is_told_from_record_to_record() -> None:
    door = MemoryDoor()
    door.records[TASK] = record()
    async with serving(door) as (client, _), trio.open_nursery() as nursery:

        async def live() -> None:
            await door.until_followed(1)
            door.tell(Asked(TASK, 1, (OTHER,)))
            door.tell(OfferAged(OTHER))
            door.tell(Answered(TASK, ANSWER))
            door.tell(Awarded(TASK, 1, OTHER, 90, "cheapest on time", ENTRY))
            door.finish(TASK)

        nursery.start_soon(live)
        request = market_pb2.MarketWatchAuctionRequest(task_id=format_task(TASK))
        events = await client.ask(lambda: list(client.market.WatchAuction(request)))
    kinds = [event.notice.WhichOneof("kind") or "task" for event in events]
    assert kinds == ["task", "asked", "answered", "awarded", "moved", "task"]
    assert events[3].notice.awarded.reason == "cheapest on time"
    assert events[0].task.state == order_pb2.TASK_STATE_WAITING
    assert events[-1].task.state == order_pb2.TASK_STATE_DONE


async def test_a_task_is_shown_as_its_record_stands() -> None:
    door = MemoryDoor()
    door.records[TASK] = evolve(record(), answers=(ANSWER,), executor=OTHER)
    async with serving(door) as (client, _):
        request = tasks_pb2.TasksGetRequest(task_id=format_task(TASK))
        task = (await client.ask(client.tasks.Get, request)).task
    assert (task.name, task.max_price, task.work.needs.cpu_milli) == ("wc", 100, 1000)
    assert (task.executor, task.answers[0].verdict) == (format_peer(OTHER), "won")


async def test_a_list_comes_in_pages_that_fit_a_message() -> None:
    door = MemoryDoor()
    for number in range(60):
        task = task_id(OWN, bytes([number]))
        door.records[task] = record(task, reason="x" * 20_000)
    async with serving(door) as (client, _):
        names: list[str] = []
        pages, token = 0, "first"
        while token:
            request = tasks_pb2.TasksListRequest(page_token=token.removeprefix("first"))
            page = await client.ask(client.tasks.List, request)
            names += [task.task_id for task in page.tasks]
            pages, token = pages + 1, page.next_page_token
    assert names == [format_task(task) for task in door.records]
    assert pages == 3


async def test_a_watch_of_everything_tells_every_notice() -> None:
    door = MemoryDoor()
    door.records[TASK] = record()
    async with serving(door) as (client, _):
        stream = client.tasks.Watch(tasks_pb2.TasksWatchRequest())
        assert (await client.ask(next, stream)).task.task_id == format_task(TASK)
        door.tell(OfferAged(OTHER))
        door.tell(moved(TASK, State.RUNNING))
        told = [(await client.ask(next, stream)).notice for _ in range(2)]
        assert [notice.seq for notice in told] == [1, 2]
        assert told[0].offer_aged.peer == format_peer(OTHER)
        stream.cancel()
        with trio.fail_after(30):
            await door.until_followed(0)


async def test_a_watch_of_an_ended_task_ends_at_once() -> None:
    door = MemoryDoor()
    door.records[TASK] = evolve(record(), state=State.FAILED)
    async with serving(door) as (client, _):
        request = tasks_pb2.TasksWatchRequest(task_id=format_task(TASK))
        events = await client.ask(lambda: list(client.tasks.Watch(request)))
    assert [event.task.state for event in events] == [order_pb2.TASK_STATE_FAILED]


async def test_a_watch_ends_even_when_its_last_notice_was_lost() -> None:
    door = MemoryDoor()
    door.records[TASK] = record()
    async with serving(door) as (client, _), trio.open_nursery() as nursery:

        async def live() -> None:
            await door.until_followed(1)
            for _ in range(300):  # more than the channel holds: the end is lost
                door.tell(moved(TASK, State.RUNNING))
            door.finish(TASK)

        nursery.start_soon(live)
        request = tasks_pb2.TasksWatchRequest(task_id=format_task(TASK))
        events = await client.ask(lambda: list(client.tasks.Watch(request)))
    assert events[-1].task.state == order_pb2.TASK_STATE_DONE


async def test_a_result_is_waited_for_or_refused() -> None:
    door = MemoryDoor()
    door.records[TASK] = record()
    async with serving(door) as (client, _), trio.open_nursery() as nursery:
        request = tasks_pb2.TasksResultRequest(task_id=format_task(TASK))
        fault = await client.fail(client.tasks.Result, request)
        assert (fault.code, fault.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REFUSED")
        assert fault.hint == "ask with wait = true"

        async def live() -> None:
            await door.until_followed(1)
            door.tell(moved(TASK, State.RUNNING))
            door.finish(TASK)

        nursery.start_soon(live)
        request.wait = True
        task = (await client.ask(client.tasks.Result, request)).task
        assert (task.state, task.reason) == (order_pb2.TASK_STATE_DONE, "it ended")


async def test_the_first_of_several_copies_is_waited_for_with_all_of_them() -> None:
    door = MemoryDoor()
    group = Group(TASK, 3)
    for copy in group.members[:2]:  # the third is forgotten
        door.records[copy] = evolve(record(copy), order=evolve(record(copy).order, group=group))
    async with serving(door) as (client, _), trio.open_nursery() as nursery:
        request = tasks_pb2.TasksResultRequest(task_id=format_task(TASK), wait=True)
        order = []

        async def live() -> None:
            for copy in group.members[:2]:
                await door.until_followed(1)
                order.append(copy)
                door.finish(copy)

        nursery.start_soon(live)
        task = (await client.ask(client.tasks.Result, request)).task
    assert order == list(group.members[:2])
    assert task.group == task.task_id == format_task(TASK)
    assert task.copies == [format_task(copy) for copy in group.members]
    assert task.agreement.verdict == order_pb2.VERDICT_FORGOTTEN
    assert task.agreement.proofs[0].detail == "differs in fuel"


async def test_cancelling_a_task_ends_it() -> None:
    door = MemoryDoor()
    door.records[TASK] = record()
    async with serving(door) as (client, _):
        request = tasks_pb2.TasksCancelRequest(task_id=format_task(TASK))
        await client.ask(client.tasks.Cancel, request)
        await client.ask(client.tasks.Cancel, request)
    assert door.records[TASK].state is State.CANCELLED


async def test_a_node_says_how_it_is_and_whom_it_knows() -> None:
    door = MemoryDoor()
    door.peer_views += [
        PeerView(PeerId(bytes([n]) * 32), (), False, None, -1) for n in range(3, 10)
    ]
    async with serving(door) as (client, _):
        status = await client.ask(client.node.Status, node_pb2.NodeStatusRequest())
        first = await client.ask(client.node.Peers, node_pb2.NodePeersRequest(page_size=5))
        rest = await client.ask(
            client.node.Peers, node_pb2.NodePeersRequest(page_token=first.next_page_token)
        )
    assert (status.peer, status.earned) == (format_peer(OWN), 70)
    assert dict(status.counters) == {"frames_dropped": 7}
    assert not status.HasField("offer")
    assert [peer.peer for peer in [*first.peers, *rest.peers]] == [
        format_peer(view.peer) for view in door.peer_views
    ]
    assert (first.peers[0].offer.price, rest.peers[0].offer_age_ms) == (700, -1)


async def test_a_file_goes_in_and_comes_out() -> None:
    door = MemoryDoor()
    data = os.urandom(3_000_000)

    def parts() -> Iterator[files_pb2.FilesPutRequest]:
        yield files_pb2.FilesPutRequest(name="data")
        for start in range(0, len(data), 500_000):
            yield files_pb2.FilesPutRequest(chunk=data[start : start + 500_000])

    async with serving(door) as (client, _):
        cid = (await client.ask(client.files.Put, parts())).cid
        request = files_pb2.FilesGetRequest(cid=cid)
        pieces = await client.ask(lambda: [part.chunk for part in client.files.Get(request)])
    assert cid == format_cid(cid_of(RAW, data))
    assert b"".join(pieces) == data
    assert max(len(piece) for piece in pieces) <= PIECE


async def test_an_upload_waits_for_the_node() -> None:
    door = MemoryDoor()
    door.upload_gate = trio.Event()
    asked: list[int] = []

    def parts() -> Iterator[files_pb2.FilesPutRequest]:
        yield files_pb2.FilesPutRequest(name="large")
        for number in range(300):
            asked.append(number)
            yield files_pb2.FilesPutRequest(chunk=bytes(500_000))

    async with serving(door) as (client, _):
        upload = client.files.Put.future(parts())
        while not door.uploading:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked(0.1)  # nothing arrives any more
        assert len(door.uploading) == 1
        assert len(asked) < 300
        upload.cancel()


async def test_a_directory_is_listed_in_pages() -> None:
    door = MemoryDoor()
    door.listed[MODULE] = [(f"{number}.txt", number, MODULE) for number in range(250)]
    async with serving(door) as (client, _):
        sizes: list[int] = []
        request = files_pb2.FilesStatRequest(cid=format_cid(MODULE))
        while True:
            page = await client.ask(client.files.Stat, request)
            sizes += [file.size for file in page.files]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    assert sizes == list(range(250))


async def test_receipts_come_with_their_exact_bytes() -> None:
    door = MemoryDoor()
    door.receipt_views = [RECEIPT] * 150
    async with serving(door) as (client, _):
        request = ledger_pb2.LedgerReceiptsRequest(task_id=format_task(TASK))
        answer = await client.ask(client.ledger.Receipts, request)
        request = ledger_pb2.LedgerReceiptsRequest(task_id=format_task(task_id(OWN, b"else")))
        assert not (await client.ask(client.ledger.Receipts, request)).receipts
        fault = await client.fail(
            client.ledger.Receipts, ledger_pb2.LedgerReceiptsRequest(limit=257)
        )
    assert len(answer.receipts) == 100
    assert (answer.receipts[0].raw, answer.receipts[0].amount) == (b"signed", 40)
    assert (fault.code, fault.field) == (grpc.StatusCode.INVALID_ARGUMENT, "limit")


async def test_receipts_that_do_not_fit_are_counted() -> None:
    door = MemoryDoor()
    door.receipt_views = [evolve(RECEIPT, raw=bytes(8_000))] * 250
    async with serving(door) as (client, _):
        request = ledger_pb2.LedgerReceiptsRequest(limit=256)
        answer = await client.ask(client.ledger.Receipts, request)
    assert 0 < len(answer.receipts) < 250
    assert len(answer.receipts) + answer.left_out == 250


async def test_an_audit_tells_each_finding() -> None:
    door = MemoryDoor()
    door.findings = [
        Finding(ENTRY, TASK, "signatures", True, "both good"),
        Finding(None, None, "totals", False, "off by one"),
    ]
    async with serving(door) as (client, _):
        request = ledger_pb2.LedgerAuditRequest()
        found = await client.ask(lambda: list(client.ledger.Audit(request)))
    assert [(each.check, each.is_good) for each in found] == [
        ("signatures", True),
        ("totals", False),
    ]
    assert (found[0].receipt_id, found[1].receipt_id) == (format_entry(ENTRY), "")


async def test_the_ledger_is_told_with_its_tier_and_promise() -> None:
    async with serving(MemoryDoor()) as (client, _):
        told = await client.ask(client.ledger.Status, ledger_pb2.LedgerStatusRequest())
    assert (told.tier, told.promise, told.digest) == ("T0", "T0: trust", b"\x0d" * 32)
    assert (list(told.forked), dict(told.counters)) == ([format_peer(OTHER)], {"sync_talks": 2})
    assert (told.entries, told.pruned, told.is_archive) == (3, 1, False)


async def test_forks_come_with_the_lines_that_prove_them() -> None:
    async with serving(MemoryDoor()) as (client, _):
        request = ledger_pb2.LedgerForksRequest()
        (fork,) = await client.ask(lambda: list(client.ledger.Forks(request)))
    assert (fork.peer, fork.seq, list(fork.lines)) == (format_peer(OTHER), 3, ["one", "other"])


async def test_an_export_comes_in_pieces_below_the_message_limit() -> None:
    async with serving(MemoryDoor()) as (client, _):
        request = ledger_pb2.LedgerExportRequest(form=ledger_pb2.EXPORT_FORM_JSONL)
        pieces = await client.ask(lambda: list(client.ledger.Export(request)))
        fault = await client.fail(
            lambda: list(client.ledger.Export(ledger_pb2.LedgerExportRequest()))
        )
    assert b"".join(piece.chunk for piece in pieces) == b"jsonl None\n" + bytes(600_000)
    assert max(len(piece.chunk) for piece in pieces) <= PIECE
    assert (pieces[-1].entries, pieces[-1].left_out) == (2, 4)
    assert (fault.code, fault.field) == (grpc.StatusCode.INVALID_ARGUMENT, "form")


async def test_an_import_is_summed_over_its_messages() -> None:
    door = MemoryDoor()
    parts = [[b"one", b"two"], [b"three"], []]
    requests = [ledger_pb2.LedgerImportRequest(entries=part) for part in parts]
    async with serving(door) as (client, _):
        told = await client.ask(lambda: client.ledger.Import(iter(requests)))
    assert door.taken_in == [b"one", b"two", b"three"]
    assert (told.added, told.known, told.refused) == (3, 3, 6)
    assert (told.early, told.over_budget) == (9, 12)


async def test_modules_are_made_movable_and_described() -> None:
    door = MemoryDoor()
    ask = modules_pb2.ModulesInstrumentRequest
    async with serving(door) as (client, _):
        request = ask(module=format_cid(MODULE), policy=modules_pb2.MODULE_POLICY_ALL)
        made = (await client.ask(client.modules.Instrument, request)).module
        request = ask(module=format_cid(MODULE), or_as_it_is=True)
        await client.ask(client.modules.Instrument, request)
        described = modules_pb2.ModulesDescribeRequest(module=format_cid(MODULE))
        plain = (await client.ask(client.modules.Describe, described)).module
        away = await client.fail(client.modules.Instrument, ask(module=format_cid(MOVABLE)))
        wrong = await client.fail(client.modules.Instrument, ask(module="baf"))
        odd = ask(module=format_cid(MODULE), policy=7)  # type: ignore[arg-type]
        unknown = await client.fail(client.modules.Instrument, odd)
    assert door.instrumented[:2] == [(MODULE, Policy.ALL, False), (MODULE, Policy.OUTER, True)]
    assert (made.module, made.is_movable) == (format_cid(MOVABLE), True)
    assert (made.source, made.instrumenter, made.policy) == (format_cid(MODULE), MAKER, "all")
    assert (plain.source, plain.reason) == ("", "it has a start function")
    assert away.code == grpc.StatusCode.NOT_FOUND
    assert [fault.field for fault in (wrong, unknown)] == ["module", "policy"]


async def test_lines_come_in_pages_and_are_set_one_by_one() -> None:
    door = MemoryDoor()
    async with serving(door) as (client, _):
        first = await client.ask(client.ledger.Lines, ledger_pb2.LedgerLinesRequest(page_size=2))
        rest = await client.ask(
            client.ledger.Lines, ledger_pb2.LedgerLinesRequest(page_token=first.next_page_token)
        )
        request = ledger_pb2.LedgerSetLineRequest(buyer=format_peer(OTHER), limit=7)
        await client.ask(client.ledger.SetLine, request)
        own = ledger_pb2.LedgerSetLineRequest(buyer=format_peer(OWN), limit=7)
        fault = await client.fail(client.ledger.SetLine, own)
    assert [line.is_frozen for line in (*first.lines, *rest.lines)] == [False, False, True]
    assert door.lines_set == [(OTHER, 7)]
    assert (fault.code, fault.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REFUSED")


async def test_an_audit_says_what_to_run_again_and_how_far_it_is() -> None:
    door = MemoryDoor()
    door.findings = [
        Finding(
            ENTRY, TASK, "rerun", False, "gone", is_skipped=True, evidence="{}", done=1, total=9
        )
    ]
    async with serving(door) as (client, _):
        request = ledger_pb2.LedgerAuditRequest(rerun_newest=9, others=True)
        (found,) = await client.ask(lambda: list(client.ledger.Audit(request)))
    assert door.audits == [AuditRequest(None, rerun=True, newest=9, others=True)]
    assert (found.is_skipped, found.evidence, found.done, found.total) == (True, "{}", 1, 9)


async def test_health_and_reflection_answer() -> None:
    async with serving(MemoryDoor()) as (client, _):
        health = health_pb2_grpc.HealthStub(client.channel)
        request = health_pb2.HealthCheckRequest(service="mesh.v1.Market")
        answer = await client.ask(health.Check, request)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        names = await client.ask(
            lambda: list(ProtoReflectionDescriptorDatabase(client.channel).get_services())
        )
    assert {f"mesh.v1.{name}" for name in ("Market", "Tasks", "Node", "Files", "Ledger")} < set(
        names
    )


# Every error


@pytest.mark.parametrize(
    ("error", "code", "reason", "hint", "retry_s"),
    [
        (Refused("too dear", "pay"), grpc.StatusCode.FAILED_PRECONDITION, "REFUSED", "pay", None),
        (Unavailable("later"), grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", "", 1),
        (PeerError("they lied"), grpc.StatusCode.UNAVAILABLE, "PEER", "", 1),
        (ConfigError("a.b", "is 3", "2"), grpc.StatusCode.INVALID_ARGUMENT, "FIELD", "2", None),
    ],
)
async def test_an_error_of_the_door_says_what_to_do(
    error: Exception, code: grpc.StatusCode, reason: str, hint: str, retry_s: int | None
) -> None:
    door = MemoryDoor()
    door.raises = error
    async with serving(door) as (client, _):
        fault = await client.fail(client.market.Bid, bid_request())
    assert (fault.code, fault.reason, fault.hint) == (code, reason, hint)
    assert (fault.message, fault.retry_s) == (str(error), retry_s)


async def test_a_bound_of_the_door_is_told_as_one() -> None:
    door = MemoryDoor()
    door.slots_max = 0
    async with serving(door) as (client, _):
        fault = await client.fail(client.market.Bid, bid_request())
    assert (fault.code, fault.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "EXHAUSTED")
    assert fault.hint == "try later"


async def test_what_is_not_here_is_not_found() -> None:
    async with serving(MemoryDoor()) as (client, _):
        task, cid = format_task(TASK), format_cid(MODULE)
        faults = [
            await client.fail(client.tasks.Get, tasks_pb2.TasksGetRequest(task_id=task)),
            await client.fail(client.files.Stat, files_pb2.FilesStatRequest(cid=cid)),
            await client.fail(
                lambda: list(client.tasks.Watch(tasks_pb2.TasksWatchRequest(task_id=task)))
            ),
            await client.fail(lambda: list(client.files.Get(files_pb2.FilesGetRequest(cid=cid)))),
        ]
    assert {(fault.code, fault.reason) for fault in faults} == {
        (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    }
    assert faults[0].hint == "mesh ps"


async def test_a_wrong_field_is_named() -> None:
    async with serving(MemoryDoor()) as (client, _):
        fields = {
            "idempotency_key": bid_request(b"k" * 65),
            "module": bid_request(module="bafy"),
            "inputs['text']": bid_request(inputs={"text": "bafy"}),
            "fuel": bid_request(fuel=-1),
            "fee": bid_request(fee=-1),
            "args": bid_request(args=["x"] * 257),
        }
        for field, request in fields.items():
            fault = await client.fail(client.market.Bid, request)
            assert (fault.code, fault.reason, fault.field) == (
                grpc.StatusCode.INVALID_ARGUMENT,
                "FIELD",
                field,
            )
        listing = tasks_pb2.TasksListRequest
        for field, page in (
            ("page_size", listing(page_size=1001)),
            ("page_token", listing(page_token="gone")),
        ):
            assert (await client.fail(client.tasks.List, page)).field == field


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ([], "name"),
        ([files_pb2.FilesPutRequest(chunk=b"x")], "name"),
        ([files_pb2.FilesPutRequest(name="a"), files_pb2.FilesPutRequest(name="b")], "chunk"),
    ],
)
async def test_an_upload_out_of_order_is_refused(
    parts: list[files_pb2.FilesPutRequest], field: str
) -> None:
    async with serving(MemoryDoor()) as (client, _):
        fault = await client.fail(client.files.Put, iter(parts))
    assert (fault.code, fault.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


async def test_an_upload_that_the_door_refuses_stops() -> None:
    door = MemoryDoor()
    door.upload_max = 1000

    def parts() -> Iterator[files_pb2.FilesPutRequest]:
        yield files_pb2.FilesPutRequest(name="large")
        for _ in range(100):
            yield files_pb2.FilesPutRequest(chunk=bytes(900))

    async with serving(door) as (client, _):
        fault = await client.fail(client.files.Put, parts())
    assert (fault.code, fault.hint) == (grpc.StatusCode.FAILED_PRECONDITION, "split it")


@pytest.mark.parametrize("bug", [ZeroDivisionError("ours"), Corruption("block 7")])
async def test_a_bug_is_internal_to_the_client_and_stops_the_node(bug: Exception) -> None:
    door = MemoryDoor()
    door.raises = bug
    faults: list[Fault] = []

    async def ask(server: ApiServer) -> None:
        with connected(f"127.0.0.1:{server.port}") as client:
            faults.append(await client.fail(client.market.Bid, bid_request()))

    async def live(nursery: trio.Nursery) -> None:
        async with open_api(door, address="127.0.0.1:0") as server:
            nursery.start_soon(ask, server)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with pytest.raises(type(bug)) as caught:
            await live(nursery)
    assert caught.value is bug
    assert (faults[0].code, faults[0].reason) == (grpc.StatusCode.INTERNAL, "BUG")
