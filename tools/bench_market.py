"""Measure the market: eight real nodes on loopback, one client, one auction after another.

    python tools/bench_market.py [--quick] [--json]

lease_p50_ms, lease_p99_ms: from sending Market.Bid to hearing that the winner holds the lease and
runs, over a stream that was open before. auction_cpu_ms_per_node: processor time of the nodes
themselves (not of the workers that run the tasks) for a whole task, from bid to receipt, above what
they burn in as long an idle time; per auction and node. lease_over_echo: lease_p50_ms over the
median of a bare gRPC echo between two processes, one taken beside each auction. lease_over_fsync:
the same over appending 4 KiB to a file and waiting until they are on the nodes' disk.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import psutil
from attrs import define, field

from mesh.cli.devnet import Devnet, run_devnet
from mesh.cli.render import Story
from mesh.client import Client, ClientError
from mesh.v1 import market_pb2, market_pb2_grpc, notice_pb2, order_pb2, tasks_pb2

NODES = 8
TASK_S = 60.0
START_S = 120.0
MODULE = Path(__file__).parents[1] / "mesh" / "examples" / "wordcount.wasm"
ECHO = "/bench.Echo/Say"
ECHO_SERVER = f"""
import sys, threading, grpc
from concurrent.futures import ThreadPoolExecutor
class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)
server = grpc.server(ThreadPoolExecutor(1), handlers=[Echo()])
server.add_insecure_port(sys.argv[1])
server.start()
print("{ECHO}", flush=True)
sys.stdin.read()
"""


@define
class Moments:
    """When each step of one task was heard of, by its name; perf_counter seconds."""

    heard: dict[str, float] = field(factory=dict)
    is_over: threading.Event = field(factory=threading.Event)


class Listener:
    """Notes when each notice of a node was heard."""

    def __init__(self) -> None:
        self._tasks: dict[str, Moments] = {}

    def moments(self, task: str) -> Moments:
        """Those of *task*, which may be heard of before its id is known."""
        return self._tasks.setdefault(task, Moments())

    def listen(self, client: Client) -> None:
        """Until the node stops."""
        with suppress(ClientError):
            for event in client.watch():
                if event.WhichOneof("event") == "notice":
                    self.note(event, time.perf_counter())

    def note(self, event: tasks_pb2.TasksWatchResponse, now: float) -> None:
        """That *event* was heard *now*."""
        notice = event.notice
        kind = notice.WhichOneof("kind")
        if kind in (None, "offer_heard", "offer_aged"):
            return
        moments = self.moments(getattr(notice, kind).task_id)
        moments.heard[_step(notice, kind)] = now
        if kind == "moved" and notice.moved.settle:
            moments.is_over.set()


def _step(notice: notice_pb2.Notice, kind: str) -> str:
    if kind != "moved":
        return kind
    return order_pb2.TaskState.Name(notice.moved.state).removeprefix("TASK_STATE_").lower()


@contextmanager
def echo_server() -> Iterator[Callable[[], float]]:
    """A gRPC server that says what it is told, in a process of its own; how long it takes, ms."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as folder:
        address = f"unix:{folder}/echo"
        process = subprocess.Popen(
            [sys.executable, "-c", ECHO_SERVER, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with process, grpc.insecure_channel(address) as channel:
            assert process.stdout is not None
            process.stdout.readline()
            say: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(ECHO)

            def measure() -> float:
                start = time.perf_counter()
                say(b"x" * 100, timeout=TASK_S)
                return (time.perf_counter() - start) * 1000

            measure()  # connects
            try:
                yield measure
            finally:
                assert process.stdin is not None
                process.stdin.close()


@contextmanager
def disk() -> Iterator[Callable[[], float]]:
    """How long a small write takes to be on the disk, ms."""
    with tempfile.TemporaryFile(prefix="mesh-") as file:

        def measure() -> float:
            start = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            return (time.perf_counter() - start) * 1000

        yield measure


def bid(stub: market_pb2_grpc.MarketStub, module: str) -> tuple[str, float]:
    """Bid for one small task; its id, and when the call began."""
    request = market_pb2.MarketBidRequest(
        idempotency_key=secrets.token_bytes(16),
        name="bench",
        module=module,
        args=["/in/none"],
        cpu_milli=100,
        memory=16 << 20,
        disk=1 << 20,
        fuel=100_000_000,
        wall_ms=60_000,
        deadline_ms=600_000,
        max_price=1_000_000,
    )
    start = time.perf_counter()
    return stub.Bid(request, timeout=TASK_S).task_id, start


def processor_ms(devnet: Devnet) -> float:
    """What the node processes have burnt so far."""
    times = [psutil.Process(member.process.pid).cpu_times() for member in devnet.members]
    return sum(part.user + part.system for part in times) * 1000


def measure(devnet: Devnet, auctions: int) -> tuple[dict[str, float], dict[str, float]]:
    """Figures, and what they are to be read with."""
    client = devnet.clients[0]
    module = client.put(MODULE)
    listener = Listener()
    threading.Thread(target=listener.listen, args=(client,), daemon=True).start()
    steps: dict[str, list[float]] = {}
    echoes: list[float] = []
    syncs: list[float] = []
    with grpc.insecure_channel(client.target) as channel, echo_server() as echo, disk() as sync:
        stub = market_pb2_grpc.MarketStub(channel)

        def run() -> dict[str, float]:
            task, start = bid(stub, module)
            admitted = time.perf_counter()
            moments = listener.moments(task)
            if not moments.is_over.wait(TASK_S):
                raise SystemExit(f"{task} did not end in {TASK_S:g} s: {client.record(task)}")
            heard = {**moments.heard, "admitted": admitted}
            return {step: (when - start) * 1000 for step, when in heard.items()}

        for _ in range(2 * NODES):  # every node has the module, compiled
            run()
        burnt, began = processor_ms(devnet), time.perf_counter()
        for number in range(auctions):
            for step, taken in run().items():
                steps.setdefault(step, []).append(taken)
            echoes.append(echo())
            syncs.append(sync())
            if number % 10 == 9:
                print(f"auction {number + 1} of {auctions}", file=sys.stderr)
        busy, wall = processor_ms(devnet) - burnt, time.perf_counter() - began
        print(f"idle for {wall:.0f} s", file=sys.stderr)
        burnt = processor_ms(devnet)
        threading.Event().wait(wall)
        idle = processor_ms(devnet) - burnt
    lease, echo_ms, fsync_ms = steps["running"], statistics.median(echoes), statistics.median(syncs)
    figures = {
        "lease_p50_ms": statistics.median(lease),
        "lease_p99_ms": statistics.quantiles(lease, n=100)[98],
        "auction_cpu_ms_per_node": (busy - idle) / auctions / NODES,
        "lease_over_echo": statistics.median(lease) / echo_ms,
        "lease_over_fsync": statistics.median(lease) / fsync_ms,
    }
    context = {
        "echo_p50_ms": echo_ms,
        "fsync_p50_ms": fsync_ms,
        "idle_cpu_percent_per_node": idle / wall / 10 / NODES,
        **{f"{step}_p50_ms": statistics.median(taken) for step, taken in steps.items()},
    }
    return figures, context


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="50 auctions instead of 500")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    options = parser.parse_args()
    auctions = 50 if options.quick else 500
    story = Story()
    with run_devnet(NODES, story, START_S) as devnet:
        story.clear()
        figures, context = measure(devnet, auctions)
    figures = {name: round(value, 2) for name, value in figures.items()}
    about = {name: round(value, 2) for name, value in context.items()}
    about |= {"nodes": NODES, "auctions": auctions, "cores": os.cpu_count() or 0}
    if options.json:
        print(json.dumps({"figures": figures, "context": about}))
    else:
        for name, value in (figures | about).items():
            print(f"{name:28} {value}")


if __name__ == "__main__":
    main()
