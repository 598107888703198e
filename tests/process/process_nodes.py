"""Real nodes for tests: processes on loopback that die with the test, however it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
from attrs import define, field

import mesh
from ledger.model import Kind
from ledger.store import Store
from mesh.cli.devnet import Member
from mesh.client import Client, Limits, TimedOut, Unreachable, connect
from mesh.client.facts import state_word
from mesh.v1 import ledger_pb2, order_pb2

T = TypeVar("T")

PATIENCE_S = 180.0
"""Far more than anything here takes; tests wait for events, not for time."""
GUESTS = Path(__file__).parents[1] / "guests"
HOSTILE, WITNESS = GUESTS / "hostile.wasm", GUESTS / "witness.wasm"
SPIN = "42000"
"""Keeps a core busy for some seconds, on any machine: nearly all that the guest can count to."""
SPIN_LIMITS = Limits(memory=32 << 20, disk=1 << 20, fuel=10**12, max_price=10**8)
SMALL = Limits(memory=32 << 20, disk=1 << 20, fuel=10**9, max_price=10**6)
SOURCE = str(Path(mesh.__file__ or "").parents[1])
_TICK_S = 0.05
_BUSY_S = 0.2
# A child that asks the kernel to be killed with its parent, then becomes the node. No preexec_fn:
# that would fork under grpc's threads.
_LAUNCH = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.executable, [sys.executable, "-m", "mesh", *sys.argv[2:]])
"""
_NODE = (
    *("--host", "127.0.0.1", "--port", "0", "--grpc-port", "0", "--websocket-port", "0"),
    *("--no-mdns", "--no-yields", "--cpus", "1", "--memory", "512MiB", "--disk", "256MiB"),
    *("--slots", "4", "--quota", "1GiB"),
)
"""To each of them the others' tasks would be the owner's load: they share one machine."""


def eventually(
    condition: Callable[[], T], what: str, seconds: float = PATIENCE_S, tick_s: float = _TICK_S
) -> T:
    """What *condition* gives once it is true; the test fails after a generous while."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        pause.wait(tick_s)
    return found


def environment(home: Path, **more: str) -> dict[str, str]:
    """Ours without MESH_*, for a process whose MESH_HOME is *home*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return kept | {"MESH_HOME": str(home), "PYTHONPATH": SOURCE} | more


@define(eq=False)
class Node:
    """One node with its home. It may be killed and started again."""

    name: str
    folder: Path
    flags: Sequence[str]
    settings: Mapping[str, str]
    member: Member = field(init=False)
    known: dict[str, Any] = field(factory=dict)
    _client: Client | None = None

    def start(self) -> None:
        """Start it; `wait_up` waits."""
        if self._client is not None:
            self._client.close()
            self._client = None
        self.folder.mkdir(exist_ok=True)
        (self.folder / "run" / "node.json").unlink(missing_ok=True)
        flags = ["join", "--name", self.name, *_NODE, *self.flags]
        with (self.folder / "node.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH, str(os.getpid()), *flags],
                cwd=self.folder,
                env=environment(self.folder, **self.settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.member = Member(self.name, self.folder, process)

    def wait_up(self) -> None:
        """Until it serves."""

        def is_up() -> bool:
            code = self.member.process.poll()
            assert code is None, f"{self.name} ended with exit code {code}\n{self.member.tail()}"
            return self.member.facts() is not None

        eventually(is_up, f"{self.name} is up")
        facts = self.member.facts()
        assert facts is not None
        self.known = facts

    @property
    def peer(self) -> str:
        return str(self.known["peer"])

    @property
    def client(self) -> Client:
        if self._client is None:
            home = self.member.home
            self._client = connect(f"unix:{home.socket}", home=home)
        return self._client

    def kill(self) -> None:
        """kill -9, as the machine's end would be: it, and what it had started, is gone."""
        self.member.process.send_signal(signal.SIGSTOP)  # now, not once its children are found
        started = psutil.Process(self.member.process.pid).children(recursive=True)
        self.member.process.kill()
        self.member.process.wait(PATIENCE_S)
        eventually(
            lambda: not any(_lives(process) for process in started), f"{self.name} left nothing"
        )

    def leave(self) -> int:
        """Ctrl-C; its exit code."""
        self.member.process.send_signal(signal.SIGINT)
        return self.member.process.wait(PATIENCE_S)

    def restart(self) -> None:
        """Start it on the home that it had."""
        self.start()
        self.wait_up()

    def stop(self) -> None:
        """Whatever it does, end it."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self.member.process.poll() is None:
            self.member.process.kill()
        self.member.process.wait(PATIENCE_S)

    def offers(self) -> set[str]:
        """Whose offers it has."""
        return {peer.peer for peer in self.client.peers() if peer.HasField("offer")}

    def spin(self, key: bytes = b"", size: str = SPIN) -> str:
        """Submit a task that runs for some seconds; its id."""
        task = self.client.submit(HOSTILE, ["spin", size], limits=SPIN_LIMITS, key=key)
        return task.id

    def complaints(self) -> list[str]:
        """What its audit finds wrong."""
        findings = self.client.audit(timeout=PATIENCE_S)
        return [f"{found.check}: {found.detail}" for found in findings if not found.is_good]

    def is_computing(self) -> bool:
        """Whether a task burns its processor time by now: in a worker, its template's child."""
        for template in psutil.Process(self.member.process.pid).children():
            for worker in template.children():
                try:
                    if worker.cpu_times().user > _BUSY_S:
                        return True
                except psutil.NoSuchProcess:
                    continue
        return False

    def command(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """`mesh WORDS` as its owner, in a process of its own."""
        return run_mesh(self.folder, *words, **more)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run_mesh(home: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """`mesh WORDS` with MESH_HOME=*home*, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mesh", *words],
        cwd=home,
        env=environment(home, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


class Mesh:
    """Some nodes that know one another through the first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: list[Node] = []

    def start(self, count: int, *, buyers: int = 0, **settings: str) -> list[Node]:
        """*count* nodes up, the first *buyers* of which sell nothing; not yet acquainted."""
        for number in range(1, count + 1):
            flags = ["--no-sell"] if number <= buyers else ["--price", f"0.0{number % 9 + 1}"]
            if self.nodes:
                flags += ["--bootstrap", self.nodes[0].known["addresses"][0]]
            node = Node(f"node-{number}", self.folder / f"node-{number}", flags, settings)
            node.start()
            self.nodes.append(node)
            if number == 1:
                node.wait_up()
        for node in self.nodes:
            node.wait_up()
        return self.nodes

    def meet(self) -> None:
        """Until each has the offer of every other that sells."""
        sellers = {node.peer for node in self.nodes if "--no-sell" not in node.flags}

        def all_see_all() -> bool:
            return all(node.offers() >= sellers - {node.peer} for node in self.nodes)

        eventually(all_see_all, "every offer is heard by everybody")

    def node_of(self, peer: str) -> Node:
        (found,) = [node for node in self.nodes if node.peer == peer]
        return found

    def executor_of(self, buyer: Node, task: str) -> Node:
        """Who runs *task*, once it does compute."""
        node = self.node_of(wait_for(buyer.client, task, "running").executor)
        eventually(node.is_computing, f"{node.name} computes {task}")
        return node

    def show_logs(self) -> None:
        """For a test that fails: pytest shows it then only."""
        for node in self.nodes:
            print(f"--- {node.name}, exit code {node.member.process.poll()}")
            print(node.member.tail())


@contextmanager
def open_mesh() -> Iterator[Mesh]:
    """An empty mesh; its nodes and their homes are gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="mesh-"))  # short: sockets have short paths
    nodes = Mesh(folder)
    try:
        yield nodes
    finally:
        nodes.show_logs()
        for node in nodes.nodes:
            node.stop()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(client: Client, task: str, *states: str) -> order_pb2.Task:
    """The record of *task* once it is in one of *states*; fails when it ends in another."""
    for event in client.watch(task, PATIENCE_S):
        if event.WhichOneof("event") == "task":
            state = state_word(event.task.state)
        elif event.notice.WhichOneof("kind") == "moved":
            state = state_word(event.notice.moved.state)
        else:
            continue
        if state in states:
            return client.record(task)
        assert state not in ("done", "failed", "cancelled"), client.record(task)
    raise AssertionError(f"{task} was never {states}: {client.record(task)}")


def wait_for_end(node: Node, task: str) -> order_pb2.Task:
    """The final record, over restarts of the node."""

    def ended() -> order_pb2.Task | None:
        try:
            return node.client.task(task).wait(PATIENCE_S)
        except Unreachable:
            return None
        except TimedOut:
            raise AssertionError(f"it never ends: {node.client.record(task)}") from None

    record = eventually(ended, f"{task} ends")
    assert record is not None
    return record


def kinds_of(receipts: Sequence[ledger_pb2.Receipt]) -> list[tuple[str, int]]:
    """(kind, fence) of each, oldest first."""
    return [(receipt.kind.lower(), receipt.fence) for receipt in reversed(receipts)]


def settles_on_disk(node: Node, task: str) -> int:
    """SETTLE entries for *task* in the ledger of a node that does not run any more."""
    with Store.open(node.member.home.state / "ledger.sqlite") as store:
        bodies = [entry.content for entry in store.entries()]
    return sum(
        body.kind is Kind.SETTLE and body.deal.nonce.hex() == task.removeprefix("t-")
        for body in bodies
    )
