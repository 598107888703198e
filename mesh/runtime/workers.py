"""Worker processes as the supervisor holds them: forked, heard, signalled, reaped."""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

import mesh
from mesh.errors import Unavailable
from mesh.runtime.frames import (
    HEADER,
    Report,
    RunJob,
    Word,
    decode_report,
    encode_run,
    encode_word,
    frame_length,
)
from mesh.runtime.template_wire import ANSWER, FORK, REAP, REQUEST

START_S = 60.0
"""The longest a template may take to come up, on a machine however busy."""
ANSWER_S = 30.0
"""The longest it may take to answer; then it is replaced."""
_PIECE = 1 << 16


class WorkerLost(Unavailable):
    """A worker died or fell silent by no fault of its task: run it again, here or elsewhere."""


class WorkerDied(WorkerLost):
    """Nothing more will be heard of a worker; `Worker.end` knows how it ended."""


class Template:
    """The one template process. It is started when first needed, and again when it has died."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = trio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: trio.socket.SocketType | None = None
        self.starts = 0

    async def fork(self, what: bytes = FORK) -> Worker:
        """A new worker. Raises WorkerLost where the machine has none to give."""
        async with self._lock:
            for _ in range(2):
                try:
                    return await self._fork(what)
                except (OSError, EOFError):
                    await self._stop()
        raise WorkerLost("the template of workers does not start; see template.log")

    async def reap(self, worker: Worker) -> str:
        """Wait for the end of a worker that is dying; how it ended. Never raises."""
        async with self._lock:
            if worker.generation != self.starts or self._socket is None:
                return "its template died"
            try:
                code = await self._ask(REAP, worker.pid)
            except (OSError, EOFError):
                await self._stop()
                return "its template died"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def is_current(self, worker: Worker) -> bool:
        """Whether *worker*'s pid is still its own: its template holds it until it is reaped."""
        return worker.generation == self.starts and self._socket is not None

    async def _fork(self, what: bytes) -> Worker:
        if self._socket is None:
            await self._start()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                pid = await self._ask(what, 0, theirs.fileno())
        except BaseException:
            ours.close()
            raise
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        return Worker(self, pid, self.starts, stream)

    async def _ask(self, what: bytes, pid: int, handle: int | None = None) -> int:
        """One request and its answer, not to be torn apart by a cancellation."""
        assert self._socket is not None
        rights = [] if handle is None else [_rights(handle)]
        with trio.move_on_after(ANSWER_S) as scope:
            scope.shield = True
            await self._socket.sendmsg([REQUEST.pack(what, pid)], rights)
            return await self._answer()
        raise EOFError

    async def _answer(self) -> int:
        assert self._socket is not None
        data = b""
        while len(data) < ANSWER.size:
            piece = await self._socket.recv(ANSWER.size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return int(ANSWER.unpack(data)[0])

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = _spawn(theirs.fileno(), self._folder / "template.log")
        self._socket = trio.socket.from_stdlib_socket(ours)
        self.starts += 1
        try:
            with trio.move_on_after(START_S):
                await self._answer()
                return
            raise EOFError
        except BaseException:
            await self._stop()  # half a greeting must never be taken for an answer
            raise

    async def _stop(self) -> None:
        """Its workers die with it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._process.wait)
            self._process = None

    async def aclose(self) -> None:
        """End it, and every worker that there still is."""
        with trio.CancelScope(shield=True):
            async with self._lock:
                await self._stop()


class Worker:
    """One worker process and what it says."""

    def __init__(
        self, template: Template, pid: int, generation: int, stream: trio.SocketStream
    ) -> None:
        self._template = template
        self._stream = stream
        self._heard = bytearray()
        self._how: str | None = None
        self.pid = pid
        self.generation = generation

    async def send(self, run: RunJob) -> None:
        """Give it its job. Raises WorkerDied."""
        await self.send_frames(encode_run(run))

    async def say(self, word: Word) -> None:
        """Tell it more. Raises WorkerDied."""
        await self.send_frames(encode_word(word))

    async def send_frames(self, frames: bytes) -> None:
        """Raises WorkerDied."""
        try:
            await self._stream.send_all(frames)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise WorkerDied from None

    async def report(self) -> Report:
        """What it says next; nothing is lost by a cancellation. Raises WorkerDied, PeerError."""
        await self._hear(HEADER)
        length = frame_length(bytes(self._heard[:HEADER]))
        await self._hear(HEADER + length)
        body = bytes(self._heard[HEADER : HEADER + length])
        del self._heard[: HEADER + length]
        return decode_report(body)

    async def _hear(self, length: int) -> None:
        while len(self._heard) < length:
            try:
                piece = await self._stream.receive_some(_PIECE)
            except trio.BrokenResourceError:
                piece = b""
            if not piece:
                raise WorkerDied
            self._heard += piece

    def signal(self, number: signal.Signals) -> None:
        """Signal its whole process group."""
        if self._template.is_current(self):
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)  # it may not have its group yet
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def end(self) -> str:
        """Kill it and wait until it is gone; how it had ended. Once is enough, twice no harm."""
        if self._how is None:
            with trio.CancelScope(shield=True):
                self.signal(signal.SIGKILL)
                await self._stream.aclose()
                self._how = await self._template.reap(self)
        return self._how


def _spawn(handle: int, log: Path) -> subprocess.Popen[bytes]:
    """The template, with nothing of this process but one socket."""
    root = str(Path(next(iter(mesh.__path__))).parent)
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-s", "-P", "-m", "mesh.runtime.template", str(handle)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={"PYTHONPATH": root, "LC_ALL": "C.UTF-8"},
            pass_fds=[handle],
            cwd="/",
            start_new_session=True,
        )


def _rights(handle: int) -> tuple[int, int, bytes]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [handle]).tobytes()


@asynccontextmanager
async def open_template(folder: Path) -> AsyncIterator[Template]:
    """A template whose log is in *folder*."""
    template = Template(folder)
    try:
        yield template
    finally:
        await template.aclose()
