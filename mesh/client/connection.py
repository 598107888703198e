"""The connection to one node, and every question that it answers."""

from __future__ import annotations

import io
import itertools
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

import grpc

from mesh import ids
from mesh.client import modules, references
from mesh.client.address import find_target
from mesh.client.errors import BadRequest, NotFound
from mesh.client.faults import told_plainly
from mesh.client.files import below, in_chunks, in_messages, open_file, write_whole
from mesh.client.limits import Limits
from mesh.client.modules import AUTO, NO, OUTER
from mesh.client.programs import QUESTION, Reply, ask, for_interpreter
from mesh.client.streams import Call, Stream
from mesh.client.task import Task
from mesh.paths import Home, find_home
from mesh.runtime.interpreters import PROGRAM
from mesh.v1 import (
    files_pb2,
    files_pb2_grpc,
    ledger_pb2,
    ledger_pb2_grpc,
    market_pb2,
    market_pb2_grpc,
    modules_pb2,
    modules_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    order_pb2,
    tasks_pb2,
    tasks_pb2_grpc,
)

T = TypeVar("T")

ANSWER_S = 30.0
"""Seconds that a plain question may take."""
UPLOAD_S = 3600.0
PAGES_MAX = 1000
"""Pages of one list: more is a node that never ends it."""


def connect(
    address: str | None = None, *, home: Home | None = None, environ: Mapping[str, str] = os.environ
) -> Client:
    """A client of the node at *address*, of MESH_ADDR, or of the node that runs on this machine.

    Nothing is sent yet. Raises BadRequest for an impossible address, Unreachable when no address
    is given and no node runs here.
    """
    home = home or find_home(environ)
    return Client(find_target(address, environ, home), home.last_task)


class Client:
    """One node, as its user sees it. A context manager; may be shared by threads.

    Every method raises the tree of mesh.client.errors and nothing else.
    """

    def __init__(self, target: str, last_task: Path) -> None:
        self.target = target
        self._last_task = last_task
        self._channel = grpc.insecure_channel(target)
        self._market = market_pb2_grpc.MarketStub(self._channel)
        self._tasks = tasks_pb2_grpc.TasksStub(self._channel)
        self._node = node_pb2_grpc.NodeStub(self._channel)
        self._files = files_pb2_grpc.FilesStub(self._channel)
        self._modules = modules_pb2_grpc.ModulesStub(self._channel)
        self._ledger = ledger_pb2_grpc.LedgerStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; tasks go on."""
        self._channel.close()

    def _stream(self, start: Callable[[], Call[T]]) -> Iterator[T]:
        stream = Stream(start)
        try:
            with told_plainly(self.target):
                yield from stream
        finally:
            stream.close()

    # --- tasks ---------------------------------------------------------------------------------

    def submit(
        self,
        module: str | Path,
        args: Sequence[str] = (),
        *,
        inputs: Mapping[str, str | Path] | None = None,
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        name: str = "",
        key: bytes = b"",
        movable: str = AUTO,
        on_module: Callable[[modules_pb2.Module], object] | None = None,
        runtime: str = "",
        redundancy: int = 1,
    ) -> Task:
        """Bid for compute: upload *module* and *inputs*, admit the task.

        *movable*, `auto`, `yes` or `no`: whether it is to be able to go on elsewhere; *on_module*
        hears what came of that, before anything is submitted.

        With *redundancy* above 1 as many different nodes run it, for max_price altogether; who
        differs from the others is run again by the node, and named.

        A module or input is a path, or `cid:…` for content that the node can find; the input named
        `stdin` is also what the program reads as its standard input. The same *key*
        gives the same task, so a repeated call never pays twice; by default each call has its own.
        With a *runtime* (`python`) the module is a program for it, and lies at /in/main.py; the
        runtime is made movable by `yes` alone: that takes minutes, once.
        """
        limits = limits or Limits()
        name = name or Path(module).stem
        if runtime:
            module, args, inputs = for_interpreter(runtime, module, args, inputs or {})
            movable = NO if movable == AUTO else movable
        prepared = self.make_movable(self.content(module), movable)
        if on_module is not None and movable != NO:
            on_module(prepared)
        request = market_pb2.MarketBidRequest(
            idempotency_key=key or secrets.token_bytes(16),
            name=name,
            module=prepared.module,
            args=args,
            env=env or {},
            inputs={name: self.content(source) for name, source in (inputs or {}).items()},
            cpu_milli=limits.cpu_milli,
            memory=limits.memory,
            disk=limits.disk,
            fuel=limits.fuel,
            wall_ms=limits.wall_ms,
            deadline_ms=limits.deadline_ms,
            max_price=limits.max_price,
            fee=limits.fee,
            priority=limits.priority,
            features=limits.features,
            redundancy=redundancy,
        )
        with told_plainly(self.target):
            task = self._market.Bid(request, timeout=ANSWER_S).task_id
        references.remember(self._last_task, task)
        return Task(self, task)

    def call(
        self,
        function: Callable[..., object],
        *args: object,
        limits: Limits | None = None,
        key: bytes = b"",
        **named: object,
    ) -> Reply:
        """Bid for a call of the Python *function*: its source travels, arguments and value as JSON.

        Raises BadRequest where it cannot travel: what it uses must be its own (imports inside).
        """
        program, question = ask(function, args, named)
        inputs = {QUESTION: self.put_bytes(QUESTION, question)}
        task = self.submit(
            self.put_bytes(PROGRAM, program),
            inputs=inputs,
            limits=limits,
            name=function.__name__,
            key=key,
            runtime="python",
        )
        return Reply(task)

    def task(self, reference: str) -> Task:
        """The task with this id, unique prefix of an id (four digits or more), or `@last`."""
        return Task(self, self.task_id(reference))

    def task_id(self, reference: str) -> str:
        """The full id that *reference* means. Raises NotFound, Ambiguous, BadRequest."""
        if reference == references.LAST:
            return references.recall(self._last_task)
        if references.is_task(reference):
            return reference
        return references.choose(reference, (task.task_id for task in self.tasks()))

    def tasks(self) -> Iterator[order_pb2.Task]:
        """Every task that this node has admitted, without their bids."""
        token = ""
        for _ in range(PAGES_MAX):
            with told_plainly(self.target):
                page = self._tasks.List(
                    tasks_pb2.TasksListRequest(page_token=token), timeout=ANSWER_S
                )
            yield from page.tasks
            token = page.next_page_token
            if not token:
                return

    def record(self, task: str) -> order_pb2.Task:
        """All that the node knows of the task with this full id."""
        with told_plainly(self.target):
            request = tasks_pb2.TasksGetRequest(task_id=task)
            return self._tasks.Get(request, timeout=ANSWER_S).task

    def outcome(self, task: str, timeout: float | None) -> order_pb2.Task:
        """The record once the task has ended, after at most *timeout* seconds."""
        with told_plainly(self.target):
            request = tasks_pb2.TasksResultRequest(task_id=task, wait=True)
            return self._tasks.Result(request, timeout=timeout).task

    def watch(
        self, task: str = "", timeout: float | None = None
    ) -> Iterator[tasks_pb2.TasksWatchResponse]:
        """Records and notices as they come, of one task until it ends, or of everything."""
        request = tasks_pb2.TasksWatchRequest(task_id=task)
        yield from self._stream(lambda: self._tasks.Watch(request, timeout=timeout))

    def cancel(self, task: str) -> None:
        """Take the task back; nothing happens to one that has ended."""
        with told_plainly(self.target):
            self._tasks.Cancel(tasks_pb2.TasksCancelRequest(task_id=task), timeout=ANSWER_S)

    def migrate(self, task: str, to: str = "") -> None:
        """Ask for the running *task* to go on at another node, at the peer *to* if that bids."""
        with told_plainly(self.target):
            request = tasks_pb2.TasksMigrateRequest(task_id=task, to=to)
            self._tasks.Migrate(request, timeout=ANSWER_S)

    # --- modules -------------------------------------------------------------------------------

    def make_movable(
        self, module: str, movable: str = AUTO, policy: str = OUTER
    ) -> modules_pb2.Module:
        """The module with this CID as it is to be submitted: made movable by the node, or as it is.

        By `auto` it stays as it is where that is not possible; the answer says why.
        """
        request = modules.request(module, movable, policy)
        if request is None:
            return modules_pb2.Module(module=module, reason=modules.NOT_ASKED)
        with told_plainly(self.target):
            return self._modules.Instrument(request, timeout=UPLOAD_S).module

    def module(self, module: str) -> modules_pb2.Module:
        """What is known of the module with this CID: whether it can be moved, and its origin."""
        request = modules_pb2.ModulesDescribeRequest(module=references.check_cid(module))
        with told_plainly(self.target):
            return self._modules.Describe(request, timeout=ANSWER_S).module

    # --- the node ------------------------------------------------------------------------------

    def status(self) -> node_pb2.NodeStatusResponse:
        """This node, now."""
        with told_plainly(self.target):
            return self._node.Status(node_pb2.NodeStatusRequest(), timeout=ANSWER_S)

    def drain(self, *, is_on: bool = True) -> None:
        """Let the node take nothing new on and move what runs there; or open it again."""
        with told_plainly(self.target):
            self._node.Drain(node_pb2.NodeDrainRequest(is_on=is_on), timeout=ANSWER_S)

    def peers(self) -> Iterator[node_pb2.Peer]:
        """Every peer that this node knows."""
        token = ""
        for _ in range(PAGES_MAX):
            with told_plainly(self.target):
                page = self._node.Peers(
                    node_pb2.NodePeersRequest(page_token=token), timeout=ANSWER_S
                )
            yield from page.peers
            token = page.next_page_token
            if not token:
                return

    def peer_id(self, reference: str) -> str:
        """The full id of a peer, given whole or by its last four characters or more.

        Raises NotFound, Ambiguous, BadRequest.
        """
        known = (peer.peer for peer in self.peers())
        return references.choose_peer(reference, itertools.chain(known, self._buyers()))

    def _buyers(self) -> Iterator[str]:
        return (line.buyer for line in self.lines())

    # --- money ---------------------------------------------------------------------------------

    def receipts(self, task: str = "", limit: int = 0) -> Sequence[ledger_pb2.Receipt]:
        """Ledger entries of this node's, newest first; of one task, or of all."""
        request = ledger_pb2.LedgerReceiptsRequest(task_id=task, limit=limit)
        with told_plainly(self.target):
            return list(self._ledger.Receipts(request, timeout=ANSWER_S).receipts)

    def audit(
        self,
        rerun: bool = False,
        task: str = "",
        timeout: float | None = None,
        *,
        newest: int = 0,
        others: bool = False,
    ) -> Iterator[ledger_pb2.LedgerAuditResponse]:
        """Findings as they are made: signatures, chain, amounts, totals; with *rerun* the bills.

        *newest* runs only so many bills again; *others* also those between other nodes.
        """
        request = ledger_pb2.LedgerAuditRequest(
            task_id=task, rerun=rerun, rerun_newest=newest, others=others
        )
        yield from self._stream(lambda: self._ledger.Audit(request, timeout=timeout))

    def ledger(self) -> ledger_pb2.LedgerStatusResponse:
        """What the node holds of the ledger, and by what promise."""
        with told_plainly(self.target):
            return self._ledger.Status(ledger_pb2.LedgerStatusRequest(), timeout=ANSWER_S)

    def forks(self) -> Iterator[ledger_pb2.LedgerForksResponse]:
        """Whoever forked, each with the lines that prove it."""
        request = ledger_pb2.LedgerForksRequest()
        yield from self._stream(lambda: self._ledger.Forks(request))

    def export(
        self, form: str = "bundle", task: str = ""
    ) -> Iterator[ledger_pb2.LedgerExportResponse]:
        """The ledger as a file, in pieces: a `bundle`, `jsonl` or `csv`; of one task, or of all."""
        request = ledger_pb2.LedgerExportRequest(task_id=task, form=_form(form))
        yield from self._stream(lambda: self._ledger.Export(request))

    def import_entries(self, entries: Iterable[bytes]) -> ledger_pb2.LedgerImportResponse:
        """Hand the node entries from elsewhere; it checks each. What became of them."""
        with told_plainly(self.target):
            return self._ledger.Import(in_messages(entries), timeout=UPLOAD_S)

    def lines(self) -> Iterator[ledger_pb2.Line]:
        """Every buyer with a credit line or a debt here."""
        token = ""
        for _ in range(PAGES_MAX):
            with told_plainly(self.target):
                request = ledger_pb2.LedgerLinesRequest(page_token=token)
                page = self._ledger.Lines(request, timeout=ANSWER_S)
            yield from page.lines
            token = page.next_page_token
            if not token:
                return

    def set_line(self, buyer: str, limit: int) -> None:
        """Let *buyer* owe and reserve up to *limit* µcr; 2^63-1 is no limit."""
        with told_plainly(self.target):
            request = ledger_pb2.LedgerSetLineRequest(buyer=buyer, limit=limit)
            self._ledger.SetLine(request, timeout=ANSWER_S)

    # --- files ---------------------------------------------------------------------------------

    def content(self, source: str | Path) -> str:
        """The CID of *source*: of `cid:…` as it stands, of a path after uploading it."""
        if isinstance(source, str) and source.startswith("cid:"):
            return references.check_cid(source.removeprefix("cid:"))
        return self.put(source)

    def put(self, path: str | Path) -> str:
        """Upload a file and pin it on the node; its CID, the same as `ipfs add --cid-version=1`."""
        path = Path(path)
        with open_file(path) as file, told_plainly(self.target):
            return self._files.Put(in_chunks(path.name, file), timeout=UPLOAD_S).cid

    def put_bytes(self, name: str, data: bytes) -> str:
        """Upload *data* as the file *name*; `cid:…`, to submit it with."""
        return self.put_stream(name, io.BytesIO(data))

    def put_stream(self, name: str, file: BinaryIO) -> str:
        """Upload what can be read from *file*, as `put_bytes` does."""
        with told_plainly(self.target):
            return f"cid:{self._files.Put(in_chunks(name, file), timeout=UPLOAD_S).cid}"

    def read(self, cid: str, path: str = "") -> Iterator[bytes]:
        """The bytes of a file, or of the file at *path* below a directory."""
        request = files_pb2.FilesGetRequest(cid=cid, path=path)
        for part in self._stream(lambda: self._files.Get(request, timeout=UPLOAD_S)):
            yield part.chunk

    def files(self, cid: str) -> Iterator[files_pb2.File]:
        """Every file below the directory *cid*."""
        token = ""
        for _ in range(PAGES_MAX):
            with told_plainly(self.target):
                request = files_pb2.FilesStatRequest(cid=cid, page_token=token)
                page = self._files.Stat(request, timeout=ANSWER_S)
            yield from page.files
            token = page.next_page_token
            if not token:
                return

    def has(self, cid: str) -> bool:
        """Whether the node has the file or directory *cid*."""
        with suppress(NotFound):
            next(self.files(cid), None)
            return True
        return False

    def get(self, cid: str, to: str | Path, path: str = "") -> list[Path]:
        """Download the file *cid* (or *path* below it) to *to*, or a whole directory into it."""
        target = Path(to)
        if path or ids.cid_codec(ids.parse_cid(references.check_cid(cid))) == ids.RAW:
            write_whole(self.read(cid, path), target)
            return [target]
        listed = [file.path for file in self.files(cid)]
        if listed == [""]:  # a file of several blocks
            write_whole(self.read(cid), target)
            return [target]
        written = [below(target, name) for name in listed]
        for name, place in zip(listed, written, strict=True):
            write_whole(self.read(cid, name), place)
        if not written:
            raise NotFound(f"{cid} is an empty directory")
        return written


def _form(form: str) -> ledger_pb2.ExportForm.ValueType:
    try:
        return ledger_pb2.ExportForm.Value(f"EXPORT_FORM_{form.upper()}")
    except ValueError:
        raise BadRequest(f"{form!r} is no form of a file", "bundle, jsonl or csv") from None
