"""The template: a small process that has imported wasmtime and forks a worker per task.

It has no engine, no thread and no secret, so a fork of it is cheap and clean. It answers the
requests of template_wire.py in the order they come; the first answer, its own pid, is unasked. A
worker's pid stays taken until it is reaped, so the supervisor can never signal a stranger.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from mesh.runtime.engine import check_meter
from mesh.runtime.series_worker import serve_series
from mesh.runtime.template_wire import ANSWER, FORK, FORK_SERIES, REQUEST
from mesh.runtime.worker import serve

Service = Callable[[socket.socket, int], NoReturn]
SERVICES: dict[bytes, Service] = {FORK: serve, FORK_SERIES: serve_series}
LOG_MAX = 1 << 20
"""Bytes of what crashed workers wrote, before it starts anew."""


def answer(connection: socket.socket) -> bool:
    """Answer one request; False when there will be no more."""
    data, handles, _, _ = socket.recv_fds(connection, REQUEST.size, 1)
    while data and len(data) < REQUEST.size:
        data += connection.recv(REQUEST.size - len(data))
    if not data:
        return False
    what, pid = REQUEST.unpack(data)
    service = SERVICES.get(what)
    result = _fork(connection, handles[0], service) if service else _reap(pid)
    connection.sendall(ANSWER.pack(result))
    return True


def _fork(connection: socket.socket, handle: int, service: Service) -> int:
    if os.fstat(sys.stderr.fileno()).st_size > LOG_MAX:
        os.ftruncate(sys.stderr.fileno(), 0)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            connection.close()
            service(socket.socket(fileno=handle), parent)
        finally:
            # Only for what it did not foresee: into the log with it, and never go on as a
            # second template.
            traceback.print_exc()
            os._exit(70)
    os.close(handle)
    return pid


def _reap(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    """Serve the socket whose number is the first argument, until it closes."""
    check_meter()
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.sendall(ANSWER.pack(os.getpid()))
    gc.collect()
    gc.freeze()
    while answer(connection):
        pass


if __name__ == "__main__":
    main()
