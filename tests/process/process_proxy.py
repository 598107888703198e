"""A network that can be cut: every node is reached through a proxy of its own, in this process.

Nodes announce their proxies and nothing else, so all that they say to one another passes here. Who
dials is told by the socket at the other end: the process that owns it. Cutting a pair kills what is
piped between the two and refuses what is dialled anew, until it is healed.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil
from attrs import define, field
from process_nodes import Mesh, Node

STRANGER = "stranger"
"""Who dials and is no node of ours: the test itself."""
_CHUNK = 64 * 1024
_TRIES, _TRY_S = 40, 0.05


@define(eq=False)
class _Pipe:
    """A connection through a proxy."""

    pair: frozenset[str]
    ends: tuple[socket.socket, socket.socket]

    def close(self) -> None:
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def carry(self, source: socket.socket, target: socket.socket) -> None:
        """Until either end is gone."""
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                target.sendall(data)
        self.close()


@define(eq=False)
class Switchboard:
    """All proxies, and which pairs are cut."""

    nodes: dict[str, Node] = field(factory=dict)
    refused: int = 0
    """Connections that a cut has kept from being made."""
    _listeners: list[socket.socket] = field(factory=list)
    _pipes: set[_Pipe] = field(factory=set)
    _cut: set[frozenset[str]] = field(factory=set)
    _lock: threading.Lock = field(factory=threading.Lock)
    _owners: dict[tuple[int, int], str] = field(factory=dict)
    """Who dials from where to where, when last looked at."""
    _looking: threading.Lock = field(factory=threading.Lock)

    def open_proxy(self, name: str, target: int) -> int:
        """The port at which others reach the node *name*, which listens on *target*."""
        listener = socket.create_server(("127.0.0.1", 0))
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(name, listener, target), daemon=True).start()
        return int(listener.getsockname()[1])

    def cut(self, one_side: Iterable[Node], other_side: Iterable[Node]) -> None:
        """Nobody of *one_side* reaches anybody of *other_side*, either way."""
        others = [node.name for node in other_side]
        pairs = {frozenset((node.name, other)) for node in one_side for other in others}
        with self._lock:
            self._cut |= pairs
            doomed = [pipe for pipe in self._pipes if pipe.pair in self._cut]
        for pipe in doomed:
            pipe.close()

    def heal(self) -> None:
        """Everybody reaches everybody again."""
        with self._lock:
            self._cut.clear()

    def crossing(self, one_side: Iterable[Node], other_side: Iterable[Node]) -> int:
        """Connections between the two sides."""
        others = [node.name for node in other_side]
        pairs = {frozenset((node.name, other)) for node in one_side for other in others}
        with self._lock:
            return sum(pipe.pair in pairs for pipe in self._pipes)

    def close(self) -> None:
        for listener in self._listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for pipe in list(self._pipes):
            pipe.close()

    def _accept(self, name: str, listener: socket.socket, target: int) -> None:
        with suppress(OSError):
            while True:
                dialler, _ = listener.accept()
                threading.Thread(
                    target=self._pipe, args=(name, dialler, target), daemon=True
                ).start()

    def _pipe(self, name: str, dialler: socket.socket, target: int) -> None:
        ports = (dialler.getpeername()[1], dialler.getsockname()[1])
        owner = self._owner_of(ports)
        if owner is None:
            dialler.close()
            return
        pair = frozenset((name, owner))
        with dialler, suppress(OSError), socket.create_connection(("127.0.0.1", target)) as server:
            pipe = _Pipe(pair, (dialler, server))
            with self._lock:
                if pair in self._cut:
                    self.refused += 1
                    return
                self._pipes.add(pipe)
            try:
                back = threading.Thread(target=pipe.carry, args=(server, dialler), daemon=True)
                back.start()
                pipe.carry(dialler, server)
                back.join()
            finally:
                with self._lock:
                    self._pipes.discard(pipe)

    def _owner_of(self, ports: tuple[int, int]) -> str | None:
        """Who dials from the first of *ports* to the second; None where nobody does any more.

        A node may dial before `start` has told us of it: whoever is let in unknown is never cut.
        """
        pause = threading.Event()
        for _ in range(_TRIES):
            with self._looking:
                if ports not in self._owners:
                    self._owners = self._look()
                if owner := self._owners.pop(ports, None):
                    return owner
            pause.wait(_TRY_S)
        return None

    def _look(self) -> dict[tuple[int, int], str]:
        """Whose each connection is: one look for all who dial, or they dial again meanwhile."""
        pids = {os.getpid(): STRANGER}
        pids |= {node.member.process.pid: name for name, node in list(self.nodes.items())}
        return {ports: name for pid, name in pids.items() for ports in _connections(pid)}


def _connections(pid: int) -> list[tuple[int, int]]:
    """By both ports: several connections may leave from one."""
    with suppress(psutil.Error):
        sockets = psutil.Process(pid).net_connections("tcp")
        return [(end.laddr.port, end.raddr.port) for end in sockets if end.raddr]
    return []


@contextmanager
def open_switchboard() -> Iterator[Switchboard]:
    switchboard = Switchboard()
    try:
        yield switchboard
    finally:
        switchboard.close()


def start_behind_proxies(
    mesh: Mesh, switchboard: Switchboard, count: int, **settings: str
) -> Sequence[Node]:
    """As `Mesh.start`: *count* nodes up, each behind a proxy, bootstrapping through the first's."""
    for number in range(1, count + 1):
        name, port = f"node-{number}", _free_port()
        proxy = switchboard.open_proxy(name, port)
        flags = ["--port", str(port), "--price", f"0.0{number % 9 + 1}"]
        if mesh.nodes:
            flags += ["--bootstrap", mesh.nodes[0].known["addresses"][0]]
        own = settings | {"MESH_NETWORK__ANNOUNCE": f"/ip4/127.0.0.1/tcp/{proxy}"}
        node = Node(name, mesh.folder / name, flags, own)
        node.start()
        switchboard.nodes[name] = node
        mesh.nodes.append(node)
        if number == 1:
            node.wait_up()
    for node in mesh.nodes:
        node.wait_up()
    return mesh.nodes


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
