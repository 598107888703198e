"""Streams of a node's, read by a thread of their own.

Ctrl-C must not strike inside grpc: between counting a stream and starting its reader, an interrupt
leaves a channel that cannot be closed any more (grpcio 1.85). Here it strikes a queue.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

import grpc

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

WINDOW = 64
"""Messages that wait for the reader; more wait at the node, by gRPC's flow control."""
_PATIENCE_S = 0.2


class Call(Protocol[T_co]):
    """A running call that streams."""

    def __iter__(self) -> Iterator[T_co]: ...

    def cancel(self) -> object: ...


class Stream(Generic[T]):
    """The messages of the call that *start* makes. Iterate once, then `close`."""

    def __init__(self, start: Callable[[], Call[T]]) -> None:
        self._start = start
        self._messages: queue.Queue[T | grpc.RpcError | None] = queue.Queue(WINDOW)
        self._is_over = threading.Event()
        self._call: Call[T] | None = None
        threading.Thread(target=self._read, name="mesh-stream", daemon=True).start()

    def __iter__(self) -> Iterator[T]:
        """Raises grpc.RpcError."""
        while (message := self._messages.get()) is not None:
            if isinstance(message, grpc.RpcError):
                raise message
            yield message

    def close(self) -> None:
        """Cancel the call, wherever it is."""
        self._is_over.set()
        if self._call is not None:
            self._call.cancel()

    def _read(self) -> None:
        try:
            self._call = self._start()
            if self._is_over.is_set():
                self._call.cancel()
            for message in self._call:
                self._put(message)
            self._put(None)
        except grpc.RpcError as error:
            self._put(error)
        except ValueError:  # the channel was closed before the call began
            self._put(None)

    def _put(self, message: T | grpc.RpcError | None) -> None:
        while not self._is_over.is_set():
            try:
                return self._messages.put(message, timeout=_PATIENCE_S)
            except queue.Full:
                continue
