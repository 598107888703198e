"""The stops of a guest on its way: asked for between two slices, shown, and gone on from.

And the state that it begins with, where that is another machine's: opened inside of the walls, and
believed in nothing.
"""

from __future__ import annotations

import mmap
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from mesh.errors import PeerError, Refused
from mesh.ids import RAW, Cid, cid_of
from mesh.migration.snapshot import Pages, Snapshot, decode, encode_head
from mesh.runtime import capture
from mesh.runtime.frames import (
    HEADER,
    Go,
    Hold,
    Report,
    RunJob,
    Still,
    Unmoved,
    Withdraw,
    Word,
    decode_word,
    encode_report,
    frame_length,
)
from mesh.runtime.manifest import METER, Job
from mesh.runtime.pages import Kept
from mesh.runtime.suspension import Image, MovableGuest
from mesh.runtime.trees import HostFailure, Tree
from mesh.runtime.wasi import Wasi

NOT_REACHED = "it did not come to a place where it can stand still"
_PIECE = 4096


class Stops:
    """One guest, and the words that stop it."""

    def __init__(
        self,
        connection: socket.socket,
        guest: MovableGuest,
        wasi: Wasi,
        kept: Kept,
        names: tuple[Cid, Cid],
    ) -> None:
        """*names* are those of its module and its job."""
        self._connection = connection
        self._guest, self._wasi, self._kept, self._names = guest, wasi, kept, names
        self._heard = bytearray()
        self._is_asked = False

    def run(self, on_slice: Callable[[], None]) -> None:
        """Run it to its end, as Guest.run, with as many stops as are asked for."""

        def between() -> None:
            self._listen()
            on_slice()

        while self._guest.advance(between):
            self._show()
            self._guest.wake()

    def _listen(self) -> None:
        while (word := self._next(socket.MSG_DONTWAIT)) is not None:
            match word:
                case Hold():
                    self._guest.request()
                    self._is_asked = True
                case Withdraw():
                    if self._is_asked and self._guest.withdraw():
                        self._is_asked = False
                        self._send(Unmoved(NOT_REACHED))
                case Go():
                    raise HostFailure("the supervisor lets go whom it does not hold")

    def _show(self) -> None:
        self._is_asked = False
        try:
            still = self._still()
        except (Refused, HostFailure) as error:
            self._send(Unmoved(str(error)))
            return
        self._send(still)
        while not isinstance(self._next(0), Go):
            pass  # a Withdraw that came too late

    def _still(self) -> Still:
        calls = capture.capture(self._wasi)
        image = self._guest.image()
        self._guest.keep(self._kept)
        snapshot = Snapshot(
            module=self._names[0],
            job=self._names[1],
            meter=METER,
            fuel=image.fuel,
            size=image.size,
            variables=image.variables,
            calls=calls,
            stack=image.stack,
            stdout=bytes(self._wasi.stdout.data),
            stderr=bytes(self._wasi.stderr.data),
            regions={number: mask for number, mask in sorted(self._kept.regions.items()) if mask},
        )
        return Still(encode_head(snapshot), self._kept.take_changed())

    def _send(self, report: Report) -> None:
        self._connection.sendall(encode_report(report))

    def _next(self, flags: int) -> Word | None:
        """The next word; None where there is none and *flags* say not to wait."""
        while True:
            if len(self._heard) >= HEADER:
                end = HEADER + frame_length(bytes(self._heard[:HEADER]))
                if len(self._heard) >= end:
                    body = bytes(self._heard[HEADER:end])
                    del self._heard[:end]
                    return decode_word(body)
            try:
                piece = self._connection.recv(_PIECE, flags)
            except BlockingIOError:
                return None
            if not piece:
                raise EOFError
            self._heard += piece


def map_state(path: str) -> memoryview:
    """The bytes of a snapshot. Raises HostFailure."""
    try:
        with Path(path).open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise HostFailure(f"the state to go on from cannot be read: {error}") from error


def restored(
    run: RunJob,
    job: Job,
    state: memoryview,
    wasi: Wasi,
    trees: tuple[Tree, ...],
    enter: Callable[[Image, Iterator[Pages]], MovableGuest],
) -> MovableGuest:
    """The guest as *state* says. Raises HostFailure, since a state that lies is not its doing."""
    try:
        snapshot, pages = decode(state)
        if (snapshot.module, snapshot.job) != (job.module, cid_of(RAW, run.job)):
            raise Refused("it is another task's")
        if snapshot.fuel != run.fuel:
            raise Refused("it burnt other fuel than was told of it")
        capture.restore(wasi, trees, snapshot.calls, snapshot.stdout, snapshot.stderr)
        image = Image(snapshot.size, snapshot.variables, snapshot.stack, snapshot.fuel)
        return enter(image, pages)
    except (PeerError, Refused) as error:
        raise HostFailure(f"the state to go on from is none: {error}") from error
