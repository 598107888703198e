"""The stops of a guest on its way: asked for between two slices, shown, and gone on from."""

from __future__ import annotations

import socket
from collections.abc import Callable

from mesh.errors import Refused
from mesh.ids import Cid
from mesh.migration.snapshot import Snapshot, encode_head
from mesh.runtime import capture
from mesh.runtime.frames import (
    HEADER,
    Go,
    Hold,
    Report,
    Still,
    Unmoved,
    Withdraw,
    Word,
    decode_word,
    encode_report,
    frame_length,
)
from mesh.runtime.manifest import METER
from mesh.runtime.pages import Kept
from mesh.runtime.suspension import MovableGuest
from mesh.runtime.trees import HostFailure
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
