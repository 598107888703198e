"""`mesh devnet`: a mesh of real nodes on this machine, each a process with a home of its own.

Nothing outlives the command: children are stopped on every way out, and on Linux the kernel itself
signals them should this process be killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
from attrs import field, frozen

import mesh
from mesh.cli.options import DURATION, with_output
from mesh.cli.render import Column, Listing, Story, show_listing
from mesh.cli.words import short_peer
from mesh.errors import Unavailable
from mesh.paths import Home, find_home

if TYPE_CHECKING:
    from mesh.client import Client

NODES_MAX = 32
"""More real nodes than this say nothing about one machine."""
PRICES = ("0.0400", "0.0350", "0.0450", "0.0380", "0.0420")
"""Asking prices of the nodes, in turn: so that there is something to choose from."""
_STOP_S = 20.0
_POLL_S = 0.1
_LOG_TAIL = 20
_PR_SET_PDEATHSIG = 1


class DevnetFailed(Unavailable):
    """A node did not come up, or they did not find one another."""

    def __init__(self, why: str, hint: str = "", log: str = "") -> None:
        super().__init__(why)
        self.hint = hint
        self.log = log
        """What the nodes wrote last."""


@frozen
class Member:
    """One node: its process and its folder."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes] = field(eq=False)

    @property
    def home(self) -> Home:
        return find_home({"MESH_HOME": str(self.folder)})

    @property
    def log(self) -> Path:
        return self.folder / "node.log"

    def facts(self) -> dict[str, Any] | None:
        """What the node wrote about itself once it was up; None before."""
        try:
            read = json.loads(self.home.facts.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        assert isinstance(read, dict)
        return read

    def tail(self) -> str:
        """The end of its log."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return "\n".join(lines[-_LOG_TAIL:])


@frozen
class Devnet:
    """Nodes that know one another. Made by `run_devnet`."""

    members: tuple[Member, ...]
    facts: tuple[dict[str, Any], ...]
    clients: tuple[Client, ...]

    def name_of(self, peer: str) -> str:
        """`node-2` for the peer id of the second node."""
        for member, facts in zip(self.members, self.facts, strict=True):
            if facts["peer"] == peer:
                return member.name
        return short_peer(peer)


@contextmanager
def run_devnet(nodes: int, story: Story, timeout: float) -> Iterator[Devnet]:
    """Start *nodes* nodes on loopback, wait until all see all offers; stop them at the end.

    Raises DevnetFailed after *timeout* seconds, or as soon as a node ends.
    """
    deadline = time.monotonic() + timeout
    with ExitStack() as stack:
        stack.enter_context(_signals_end_it())
        folder = Path(tempfile.mkdtemp(prefix="mesh-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        members: list[Member] = []
        stack.callback(_stop, members)
        try:
            facts = _bring_up(members, folder, nodes, story, deadline)
            clients = tuple(stack.enter_context(_connect(member)) for member in members)
            _wait_for_offers(members, clients, story, deadline)
        except DevnetFailed as error:
            story.tell(error.log)
            raise
        yield Devnet(tuple(members), tuple(facts), clients)


def _bring_up(
    members: list[Member], folder: Path, nodes: int, story: Story, deadline: float
) -> list[dict[str, Any]]:
    """Start them all, the first one first; what they say of themselves."""
    members.append(_start(folder, 1, ()))
    story.pass_by("node-1 is starting")
    first = _wait_for_facts(members, story, deadline)[0]
    members.extend(  # one by one: those that did start are stopped should another fail
        _start(folder, number, first["addresses"][:1]) for number in range(2, nodes + 1)
    )
    return _wait_for_facts(members, story, deadline)


def _connect(member: Member) -> Client:
    """Only once all have started: grpc's threads do not mix with forking."""
    from mesh.client import connect

    return connect(f"unix:{member.home.socket}", home=member.home)


def _start(folder: Path, number: int, bootstrap: Sequence[str]) -> Member:
    name = f"node-{number}"
    home = folder / name
    home.mkdir()
    command = [sys.executable, "-m", "mesh", "join", "--name", name, "--host", "127.0.0.1"]
    command += ["--port", "0", "--grpc-port", "0", "--websocket-port", "0", "--no-mdns"]
    command += ["--cpus", "1", "--memory", "512MiB", "--disk", "256MiB", "--quota", "1GiB"]
    # To each of them the others' tasks would be the owner's load: they share one machine.
    command += ["--no-yields", "--slots", "2", "--price", PRICES[(number - 1) % len(PRICES)]]
    for address in bootstrap:
        command += ["--bootstrap", address]
    with (home / "node.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  (our own interpreter and module)
            command,
            cwd=home,
            env=_environment(home),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to pass on, once
            preexec_fn=_dies_with_us(),
        )
    return Member(name, home, process)


def _environment(home: Path) -> dict[str, str]:
    """Ours without MESH_*, with the folder this very mesh was imported from."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")}
    assert mesh.__file__ is not None
    source = str(Path(mesh.__file__).parents[1])
    paths = [source, *filter(None, [inherited.get("PYTHONPATH")])]
    return inherited | {"MESH_HOME": str(home), "PYTHONPATH": os.pathsep.join(paths)}


def _dies_with_us() -> Callable[[], None] | None:
    """For the child: on Linux, be terminated when the parent dies, however it dies."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def ask_for_it() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask_for_it


def _wait_for_facts(
    members: Sequence[Member], story: Story, deadline: float
) -> list[dict[str, Any]]:
    while True:
        known = [member.facts() for member in members]
        up = [facts for facts in known if facts is not None]
        if len(up) == len(members):
            return up
        story.pass_by(f"{len(up)} of {len(members)} nodes are up")
        _pause(members, deadline, "nodes did not come up")


def _wait_for_offers(
    members: Sequence[Member], clients: Sequence[Client], story: Story, deadline: float
) -> None:
    """Until every node has an offer of every other."""
    wanted = len(members) - 1
    while True:
        seen = [sum(peer.HasField("offer") for peer in client.peers()) for client in clients]
        if min(seen) >= wanted:
            return
        story.pass_by(f"{sum(seen)} of {wanted * len(members)} offers have been heard")
        _pause(members, deadline, "nodes did not hear one another's offers")


def _pause(members: Sequence[Member], deadline: float, what: str) -> None:
    """Wait a moment. Raises DevnetFailed past *deadline*, or where a node has ended."""
    for member in members:
        if member.process.poll() is not None:
            why = f"{member.name} ended with exit code {member.process.returncode}"
            raise DevnetFailed(why, "its last words are above; mesh doctor", member.tail())
    if time.monotonic() > deadline:
        tails = "\n".join(f"{member.name}: {member.tail()}" for member in members)
        raise DevnetFailed(f"{what} in time", "a loaded machine? give it more: --timeout", tails)
    time.sleep(_POLL_S)


def _stop(members: Sequence[Member]) -> None:
    """Ask all to leave, then make them."""
    for member in members:
        if member.process.poll() is None:
            member.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + _STOP_S
    for member in members:
        try:
            member.process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):  # the second ^C: at once
            deadline = 0.0
            os.killpg(member.process.pid, signal.SIGKILL)
            member.process.wait()


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, so that nobody is left behind."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def keep(devnet: Devnet, story: Story, show: Callable[[], None] = lambda: None) -> None:
    """*show* what is there, and leave it running until Ctrl-C, or until one of the nodes ends."""
    first = devnet.facts[0]["grpc"]
    try:
        show()  # whoever reads that we are up may tell us to stop at once
        sys.stdout.flush()
        story.tell(f"it goes on: mesh --node {first} status · mesh --node {first} peers")
        story.tell("^C stops all of it")
        while all(member.process.poll() is None for member in devnet.members):
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        story.tell("stopping")
        return
    ended = [member.name for member in devnet.members if member.process.poll() is not None]
    raise DevnetFailed(f"{', '.join(ended)} ended", "mesh doctor")


_COLUMNS = (
    Column("NODE", lambda node: node["name"]),
    Column("PEER", lambda node: short_peer(node["peer"])),
    Column("gRPC", lambda node: node["grpc"]),
    Column("WEBSOCKET", lambda node: str(node["websocket"])),
    Column("PID", lambda node: str(node["pid"]), is_right=True),
    Column("ADDRESS", lambda node: node["addresses"][0], is_wide=True),
    Column("HOME", lambda node: node["home"], is_wide=True),
)


@click.command()
@click.option("--nodes", type=click.IntRange(2, NODES_MAX), default=3, show_default=True)
@click.option("--keep", "is_kept", is_flag=True, help="Leave it running until Ctrl-C.")
@click.option("--timeout", type=DURATION, default="120s", show_default=True, help="To come up.")
@with_output
def devnet(*, form: str, nodes: int, is_kept: bool, timeout: int) -> None:
    """A mesh of real nodes on this machine: up, all offers seen by all; with --keep it stays."""
    story = Story()
    with run_devnet(nodes, story, timeout / 1000) as running:
        rows = [
            {"name": member.name, "home": str(member.folder), **facts}
            for member, facts in zip(running.members, running.facts, strict=True)
        ]
        story.clear()
        footer = f"{nodes} nodes, each sees the offers of all the others"

        def show() -> None:
            show_listing(Listing("node", "nodes", "peer", rows, _COLUMNS, footer), form)

        if is_kept:
            keep(running, story, show)
        else:
            show()
