"""How long a task stands still when it moves: from "suspend" here until it runs there.

Source and target are processes of their own with a store, a supervisor and a workshop each. What
moves, goes over a socket on loopback, by the requests and replies that nodes use; nothing is left
out but the market, which has decided already.

    python tools/downtime.py MODULE [ARGUMENT …] [--memory MIB] [--copies N] [--after GFUEL]
"""

from __future__ import annotations

import argparse
import base64
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import evolve, frozen

from mesh.errors import Unavailable
from mesh.ids import RAW, Cid, PeerId, cid_of
from mesh.messages import Move, Result, Work
from mesh.resources.capacity import Capacity
from mesh.runtime import manifest
from mesh.runtime.course import Kept, Suspended
from mesh.runtime.execution import Prepared, Workshop
from mesh.runtime.manifest import Job
from mesh.runtime.supervisor import Supervisor, open_supervisor
from mesh.storage.blocks import Blocks
from mesh.storage.disk import DiskBlocks
from mesh.storage.files import add_bytes, read_file
from mesh.storage.transfer import Tally, fetch, serve

QUOTA = 8 << 30
DISK = 1 << 20
SOURCE = PeerId(bytes(38))
_LENGTH = 4


@frozen
class Moved:
    """One move of one task."""

    downtime_ms: float
    copied: tuple[int, ...]
    """Bytes that each copy sent ahead brought, while the task ran."""
    moved: int
    """Bytes that had to come while it stood still."""
    suspend_ms: float
    """Until its state was safe at the source."""
    end: tuple[Result, bytes] | None
    """How it ended there, and its stdout, if that was waited for."""


@frozen
class Place:
    """What a node has that runs tasks."""

    supervisor: Supervisor
    blocks: DiskBlocks
    workshop: Workshop


@asynccontextmanager
async def open_place(
    folder: Path,
    compiled: Path,
    bring: Callable[[Cid, int, Blocks], Awaitable[None]] | None,
) -> AsyncIterator[Place]:
    """A place with its files in *folder*, that gets by *bring* what it lacks."""
    (folder / "scratch").mkdir(parents=True)
    (folder / "runtime").mkdir()
    (folder / "runtime/compiled").symlink_to(compiled)

    async def fetched(peer: PeerId, root: Cid, bytes_max: int, blocks: Blocks) -> None:
        assert bring is not None
        await bring(root, bytes_max, blocks)

    with DiskBlocks(folder / "blocks", QUOTA) as blocks:
        async with open_supervisor(folder / "runtime", workers_max=1) as supervisor:
            workshop = Workshop(blocks, supervisor, fetched, folder / "scratch")
            yield Place(supervisor, blocks, workshop)


# --- the socket -------------------------------------------------------------------------------


async def _read(stream: trio.SocketStream) -> bytes:
    """One message; empty where the other side is gone."""
    length = int.from_bytes(await _exactly(stream, _LENGTH), "big")
    return await _exactly(stream, length)


async def _exactly(stream: trio.SocketStream, length: int) -> bytes:
    data = bytearray()
    while len(data) < length and (piece := await stream.receive_some(length - len(data))):
        data += piece
    return bytes(data)


async def _write(stream: trio.SocketStream, data: bytes) -> None:
    await stream.send_all(len(data).to_bytes(_LENGTH, "big") + data)


def _serving(blocks: DiskBlocks) -> Callable[[trio.SocketStream], Awaitable[None]]:
    async def answer(stream: trio.SocketStream) -> None:
        while request := await _read(stream):
            await _write(stream, await trio.to_thread.run_sync(serve, blocks, request))

    return answer


# --- the target -------------------------------------------------------------------------------


async def be_target(folder: Path, compiled: Path, port: int) -> None:
    """Do what standard input says, and say on standard output that it is done."""
    idle: list[trio.SocketStream] = []

    async def request(payload: bytes) -> bytes:
        stream = idle.pop() if idle else await trio.open_tcp_stream("127.0.0.1", port)
        await _write(stream, payload)
        reply = await _read(stream)
        if not reply:
            raise Unavailable("the source is gone")
        idle.append(stream)
        return reply

    tally = Tally()

    async def bring(root: Cid, bytes_max: int, blocks: Blocks) -> None:
        await fetch(root, blocks, request, bytes_max=bytes_max, blocks_max=1 << 20, tally=tally)

    async with open_place(folder, compiled, bring) as place, AsyncExitStack() as stack:
        ahead: Prepared | None = None
        async for line in trio.wrap_file(sys.stdin):
            verb, work = _unpack(line)
            before = tally.received
            if verb == "go on":
                await _go_on(place, work, tally, ahead)
                continue
            if ahead is None:
                ahead = await stack.enter_async_context(_prepared(place, work))
            else:
                await place.workshop.advance(ahead, SOURCE, work.moves[-1].state)
            _say(tally.received - before)


def _prepared(place: Place, work: Work) -> AbstractAsyncContextManager[Prepared]:
    state, most = work.moves[-1].state, QUOTA
    return place.workshop.prepared(
        SOURCE, state, "ahead", bytes_max=most, has_room=lambda job: True
    )


async def _go_on(place: Place, work: Work, tally: Tally, ahead: Prepared | None) -> None:
    began: list[float] = []

    def see(fuel: int) -> None:
        if fuel > 0 and not began:
            began.append(time.monotonic())
            _say((began[0], tally.received - before))

    before = tally.received
    result = await place.workshop.execute(work, SOURCE, "moved", see, prepared=ahead)
    assert isinstance(result, Result)
    stdout = b"".join(read_file(place.blocks, result.stdout))
    _say((result, stdout))


def _pack(value: object) -> str:
    return base64.b64encode(pickle.dumps(value)).decode() + "\n"


def _unpack(line: str) -> Any:  # noqa: ANN401 - whatever was packed
    return pickle.loads(base64.b64decode(line))


def _say(value: object) -> None:
    sys.stdout.write(_pack(value))
    sys.stdout.flush()


# --- the source -------------------------------------------------------------------------------


async def move(
    module: Path,
    args: tuple[str, ...],
    folder: Path,
    *,
    memory: int,
    after: int,
    copies: int,
    waits: bool = False,
    compiled: Path | None = None,
) -> Moved:
    """Run *module* in one process until it has burnt *after*, then move it into another.

    Before it is suspended, its state is copied ahead *copies* times while it runs, into the memory
    of a worker that waits for the last. What is *compiled* is taken from there, and left there.
    """
    compiled = compiled or folder / "compiled"
    compiled.mkdir(parents=True, exist_ok=True)
    async with (
        open_place(folder / "source", compiled, None) as place,
        trio.open_nursery() as nursery,
    ):
        work = _work(place, module, args, memory)
        answer = _serving(place.blocks)
        listeners = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        target = await trio.lowlevel.open_process(
            [
                sys.executable,
                __file__,
                "--target",
                str(folder / "target"),
                str(compiled),
                str(port),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            moved = await _move(place, target, work, after, copies, waits)
        finally:
            target.kill()
            await target.wait()
            nursery.cancel_scope.cancel()
    return moved


async def _move(
    place: Place, target: trio.Process, work: Work, after: int, copies: int, waits: bool
) -> Moved:
    reached = trio.Event()
    ended: list[Result | Suspended] = []

    async def run() -> None:
        def see(fuel: int) -> None:
            if fuel >= after:
                reached.set()

        ended.append(await place.workshop.execute(work, None, "task", see))
        reached.set()

    talk = _Talk(target)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await reached.wait()
        if ended:
            sys.exit(f"it ended before it could be moved: {ended}")
        copied = []
        for _ in range(copies):
            kept = await place.supervisor.checkpoint("task")
            assert isinstance(kept, Kept), kept
            copied.append(await talk.ask("prepare", _left(work, kept)))
        since = time.monotonic()
        left = await place.supervisor.suspend("task")
        assert isinstance(left, Suspended), left
        suspended = time.monotonic()
        began, moved = await talk.ask("go on", _left(work, left))
        end = await talk.hear() if waits else None
    return Moved(
        (began - since) * 1000,
        tuple(copied),
        moved,
        (suspended - since) * 1000,
        end,
    )


def _left(work: Work, at: Kept | Suspended) -> Work:
    return evolve(work, fuel=work.fuel - at.fuel, moves=(Move(at.fuel, SOURCE, at.state),))


class _Talk:
    """With the target: one order, one answer."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._heard = b""

    async def ask(self, *order: object) -> Any:  # noqa: ANN401 - by the order
        assert self._process.stdin is not None
        await self._process.stdin.send_all(_pack(order).encode())
        return await self.hear()

    async def hear(self) -> Any:  # noqa: ANN401 - by the order
        assert self._process.stdout is not None
        while b"\n" not in self._heard:
            piece = await self._process.stdout.receive_some()
            if not piece:
                raise Unavailable("the target died")
            self._heard += piece
        line, _, self._heard = self._heard.partition(b"\n")
        return _unpack(line.decode())


def _work(place: Place, module: Path, args: tuple[str, ...], memory: int) -> Work:
    root = add_bytes(place.blocks, module.read_bytes()).cid
    job = Job(
        module=root,
        args=args,
        env=(),
        inputs=(),
        fuel=1 << 50,
        memory=memory,
        disk=DISK,
        wall_ms=600_000,
        seed=bytes(16),
        t0_ns=1_700_000_000_000_000_000,
        stdout_max=1 << 16,
    )
    data = manifest.encode(job)
    place.blocks.put(cid_of(RAW, data), data)
    needs = Capacity(1000, memory, DISK, slots=1)
    return Work(cid_of(RAW, data), root, (), needs, job.fuel, job.wall_ms, ())


def main() -> None:
    if sys.argv[1:2] == ["--target"]:
        trio.run(be_target, Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", type=Path)
    parser.add_argument("args", nargs="*")
    parser.add_argument("--memory", type=int, default=64, help="MiB")
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--after", type=float, default=0.1, help="thousand million fuel")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        moves = [
            trio.run(
                partial(
                    move,
                    memory=asked.memory << 20,
                    after=int(asked.after * 1e9),
                    copies=asked.copies,
                    compiled=folder / "compiled",
                ),
                asked.module,
                tuple(asked.args),
                folder / str(number),
            )
            for number in range(asked.times)
        ]
    for moved in moves:
        print(f"downtime {moved.downtime_ms:.0f} ms, of it {moved.suspend_ms:.0f} until suspended;")
        print(f"copied {moved.copied} bytes ahead, {moved.moved} while it stood still")
    middle = statistics.median(moved.downtime_ms for moved in moves)
    print(f"median {middle:.0f} ms, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
