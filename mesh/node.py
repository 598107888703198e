"""The composition root: builds a node from its configuration, runs it, and takes it down.

The only file that knows every shell. Up: folders, key, files, kernel, network, sandbox, doors.
Down: runs given up with their reason, doors, sandbox, network, files.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from secrets import randbits
from time import time_ns

import trio
from attrs import define, evolve, field, frozen

import mesh
from ledger.errors import BadEntry, BrokenChain, LedgerError
from ledger.merge import Merger
from ledger.state import Accounts
from ledger.store import Store
from mesh import codec
from mesh.api.monitor import open_monitor
from mesh.api.server import open_api
from mesh.auditor import Auditor
from mesh.bookkeeper import Bookkeeper, Tier
from mesh.broadcast import Broadcast
from mesh.config import Config
from mesh.desk import Desk
from mesh.driver import Driver
from mesh.errors import ConfigError, Corruption, MeshError, PeerError, Unavailable
from mesh.identity.custody import why_retired
from mesh.identity.keys import SETTING, NodeKey, identity, load, load_or_create, lock
from mesh.ids import NET, PeerId, format_peer
from mesh.kernel import Kernel
from mesh.market.bidding import Shop
from mesh.market.credit import read_books
from mesh.market.own_chain import read_past
from mesh.market.policy import Policy
from mesh.market.terms import EMPTY_DIR, EMPTY_DIR_BLOCK, EMPTY_FILE
from mesh.network.network import BLOCKS, Network, NetworkConfig, open_network
from mesh.paths import Home
from mesh.performer import Performer
from mesh.rerun import Rerunner
from mesh.resources.probe import Probe, ThisMachine, watch
from mesh.runtime.execution import Workshop
from mesh.runtime.supervisor import open_supervisor
from mesh.sansio import OfferReceived, Received
from mesh.sim.replay import Facts, write_black_box
from mesh.storage.disk import DiskBlocks
from mesh.storage.journal import Journal, open_journal
from mesh.storage.transfer import serve
from mesh.upkeep import advertise, sweep

_log = logging.getLogger("mesh.node")

SPEED = 500_000
"""Fuel per ms and core that a node claims before its own runs have corrected it."""
LEAVE_S = 2.0
SERVING_MAX = 4
"""Threads that peers' requests for blocks may occupy."""

_ROOM = "free some of its disk, then start again: nothing acknowledged is lost"

Announce = Callable[[Mapping[str, object]], None]


class Stopped(Unavailable):
    """The node had to stop: why, and the way out."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.hint = hint


def main(config: Config, home: Home, *, announce: Announce) -> int:
    """Run a node until it is told to stop; the exit code.

    *announce* hears once what runs where. Raises MeshError for what a person must mend. A broken
    invariant of our own leaves a record that `mesh sim --replay` takes, and is raised.
    """
    try:
        trio.run(_run, config, home, announce)
    except (BaseExceptionGroup, LedgerError, OSError) as error:
        raise _first(error) from None
    return 0


def _first(error: BaseException) -> BaseException:
    """What went wrong first: a person's mistake before its consequences."""
    leaves = [_told(leaf) for leaf in _leaves(error)]
    for kind in (KeyboardInterrupt, MeshError):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return error


def _told(error: BaseException) -> BaseException:
    """*error* as a person is to read it, where a person can mend it."""
    match error:
        case BadEntry() | BrokenChain():
            return error  # of what we made ourselves: a bug
        case LedgerError():
            return Stopped(f"the ledger: {error.reason}", error.hint)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return Stopped("the disk is full", f"{_ROOM}; or move MESH_HOME")
        case _:
            return error


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


async def _run(config: Config, home: Home, announce: Announce) -> None:
    with _open_files(config, home) as files:
        facts = _gather(config, home, files)
        kernel = facts.build(identity(files.key))
        driver = Driver(kernel)
        try:
            await _serve(config, home, files, kernel, driver, announce)
        except BaseExceptionGroup as group:
            expected = MeshError | KeyboardInterrupt
            if not all(isinstance(_told(leaf), expected) for leaf in _leaves(group)):
                _record_crash(home, facts, driver)
            raise


@frozen
class _Files:
    """All that is on disk."""

    key: NodeKey
    is_new_key: bool
    key_path: Path
    journal: Journal
    ledger: Store
    reader: Store
    """The same file, for whoever reads for long."""
    merger: Merger
    """The same file, for whoever brings entries from elsewhere."""
    blocks: DiskBlocks
    scratch: Path
    epoch: int


@contextmanager
def _open_files(config: Config, home: Home) -> Iterator[_Files]:
    with ExitStack() as stack:
        try:
            files = _open_all(config, home, stack)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ConfigError(
                "MESH_HOME", f"{error.filename}: {error.strerror}", "mend it, or choose another"
            ) from None
        yield files


def _open_all(config: Config, home: Home, stack: ExitStack) -> _Files:
    for folder in (home.state, home.data, home.run):
        _make_private(folder)
    key_path = Path(config.identity.key_file) if config.identity.key_file else home.key_file
    is_new_key = not config.identity.key_file and not key_path.exists()
    key = load(key_path) if config.identity.key_file else load_or_create(key_path)
    blocks = DiskBlocks(home.data / "blocks", config.storage.quota)
    stack.callback(blocks.close)
    stack.callback(os.close, lock(key_path))
    scratch = home.data / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)  # ours alone: the store's lock is held
    _make_private(scratch)
    blocks.put(EMPTY_FILE, b"")  # what most runs leave: never worth a fetch
    blocks.put(EMPTY_DIR, EMPTY_DIR_BLOCK)
    journal = stack.enter_context(open_journal(home.state / "node.sqlite"))
    ledger, reader, writer = [
        stack.enter_context(Store.open(home.state / "ledger.sqlite")) for _ in range(3)
    ]
    merger = stack.enter_context(Merger(writer))
    if reason := why_retired(ledger, key.peer):
        raise ConfigError(SETTING, reason, "finish it: mesh key rotate; or name another key")
    epoch = journal.next_epoch()
    return _Files(
        key, is_new_key, key_path, journal, ledger, reader, merger, blocks, scratch, epoch
    )


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(
            "MESH_HOME", f"{folder} cannot be made: {error.strerror}", "choose another folder"
        ) from None


def _gather(config: Config, home: Home, files: _Files) -> Facts:
    """What the kernel is built from."""
    machine = Probe(ThisMachine(), trio.current_time).capacity(home.data)
    policy = evolve(
        Policy(),
        candidates=config.market.candidates,
        window_ms=config.market.window_ms,
        ttl_ms=config.market.lease_ttl_s * 1000,
    )
    sold = config.sell.capacity(machine)
    shop = Shop(
        # An owner who does not want it back leaves us what is sold, whatever else the machine does.
        machine=machine if config.sell.yields else machine + sold,
        sold=sold,
        price=config.sell.price,
        speed=SPEED,
        features=("wasm",) if config.sell.enabled else (),
        agent=_agent(),
    )
    peer = files.key.peer
    past = read_past(peer, NET, (e for e in files.ledger.chain(peer) if e.content.net == NET))
    if past.head.seq == 0:  # an heir's chain begins at the ROTATE
        past = evolve(past, head=files.ledger.head(peer, NET))
    return Facts(
        peer=files.key.peer,
        policy=policy,
        seed=randbits(64),
        past=past,
        books=read_books(peer, Accounts(NET), files.ledger.entries()),
        is_confirmed=True,
        records=tuple(files.journal.tasks(policy.tasks_ended_max)),
        tenancies=tuple(files.journal.tenancies()),
        epoch=files.epoch,
        epoch_ms=time_ns() // 10**6 - int(trio.current_time() * 1000),
        shop=shop,
    )


def _record_crash(home: Home, facts: Facts, driver: Driver) -> None:
    """Leave what `mesh sim --replay` takes."""
    path = home.state / f"crash-{facts.epoch}.jsonl"
    try:
        with path.open("w") as file:
            for line in write_black_box(facts, driver.black_box, dropped=driver.forgotten):
                file.write(line + "\n")
    except OSError as error:
        sys.stderr.write(f"the node crashed, and its last events cannot be kept: {error}\n")
        return
    sys.stderr.write(f"the node crashed; its last events: mesh sim --replay {path}\n")


async def _serve(
    config: Config, home: Home, files: _Files, kernel: Kernel, driver: Driver, announce: Announce
) -> None:
    async with AsyncExitStack() as stack:
        alarm = _Alarm()
        network = await stack.enter_async_context(_join(config, home, files, driver, alarm))
        supervisor = await stack.enter_async_context(
            open_supervisor(home.data / "runtime", workers_max=max(1, kernel.sold().slots) + 1)
        )
        nursery = await stack.enter_async_context(trio.open_nursery())
        broadcast = Broadcast()
        performer = Performer(
            driver=driver,
            network=network,
            blocks=files.blocks,
            journal=files.journal,
            ledger=files.ledger,
            records=kernel.records,
            broadcast=broadcast,
            nursery=nursery,
        )
        workshop = Workshop(files.blocks, supervisor, performer.bring, files.scratch)
        performer.workshop = workshop
        reading = trio.CapacityLimiter(1)
        bookkeeper = Bookkeeper(
            me=files.key.peer,
            ledger=files.reader,
            reading=reading,
            merger=files.merger,
            driver=driver,
            credit=kernel.credit,
            tier=Tier(),
        )
        rerunner = Rerunner(files.key.peer, files.blocks, workshop, performer.fetch)
        auditor = Auditor(files.key.peer, files.reader, reading, rerunner)
        desk = Desk(
            kernel=kernel,
            driver=driver,
            broadcast=broadcast,
            performer=performer,
            workshop=workshop,
            network=network,
            blocks=files.blocks,
            quota=config.storage.quota,
            bookkeeper=bookkeeper,
            auditor=auditor,
            scratch=files.scratch,
            agent=_agent(),
            started_at=trio.current_time(),
            doors=[],
        )
        for service in (
            alarm.heard,
            performer.gossip,
            partial(sweep, files.blocks, kernel),
            partial(watch, Probe(ThisMachine(), trio.current_time), driver.post),
            partial(advertise, network, kernel),
            partial(driver.drive, persist=performer.persist, perform=performer.perform),
        ):
            nursery.start_soon(service)
        facts = await _open_doors(config, home, stack, desk, network)
        _write_facts(home, facts)
        stack.callback(home.facts.unlink, missing_ok=True)
        announce({**facts, **_boast(config, files, kernel)})
        await _until_told(performer)
        broadcast.close()
        nursery.cancel_scope.cancel()


def _boast(config: Config, files: _Files, kernel: Kernel) -> dict[str, object]:
    """What a person wants to read first, beside where the node listens."""
    return {
        "key": str(files.key_path),
        "is_new_key": files.is_new_key,
        "sold": kernel.sold(),
        "price": config.sell.price,
        "storage": "embedded store",
    }


@define(eq=False)
class _Alarm:
    """How a task that is not ours, and would keep an error to itself, ends the node."""

    error: MeshError | None = None
    _rung: trio.Event = field(factory=trio.Event)

    def ring(self, error: MeshError) -> None:
        self.error = self.error or error
        self._rung.set()

    async def heard(self) -> None:
        await self._rung.wait()
        assert self.error is not None
        raise self.error


@asynccontextmanager
async def _join(
    config: Config, home: Home, files: _Files, driver: Driver, alarm: _Alarm
) -> AsyncIterator[Network]:
    """The network, its frames and offers posted to the driver."""
    met: list[Network] = []

    def blame(peer: PeerId, error: PeerError) -> None:
        for network in met:
            network.penalize(peer, str(error))

    def on_frame(peer: PeerId, frame: bytes) -> None:
        try:
            driver.post_nowait(Received(peer, codec.decode(frame)), len(frame))
        except PeerError as error:
            blame(peer, error)

    def on_offer(peer: PeerId, data: bytes) -> None:
        try:
            driver.post_nowait(OfferReceived(codec.decode_signed_offer(data)), len(data))
        except PeerError as error:
            blame(peer, error)

    serving = trio.CapacityLimiter(SERVING_MAX)

    async def serve_blocks(peer: PeerId, request: bytes) -> bytes:
        try:
            return await trio.to_thread.run_sync(serve, files.blocks, request, limiter=serving)
        except Corruption as error:
            alarm.ring(error)
            raise Unavailable("its store is damaged") from None  # where it lies is our affair

    settings = config.network
    family = "ip6" if ":" in settings.listen_host else "ip4"
    async with open_network(
        NetworkConfig(
            seed=files.key.seed,
            listen=(f"/{family}/{settings.listen_host}/tcp/{settings.listen_port}",),
            bootstrap=settings.bootstrap,
            mdns=settings.mdns,
            psk=_read_psk(settings.psk_file),
            state_folder=home.state,
            agent=_agent(),
        ),
        rng=Random(),  # noqa: S311  (jitter, nothing secret)
        on_frame=on_frame,
        on_offer=on_offer,
        serve={BLOCKS: serve_blocks},
    ) as network:
        met.append(network)
        yield network


def _read_psk(path: str) -> str | None:
    if not path:
        return None
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "network.psk_file", f"{path}: {error}", "name a file with 64 hex digits"
        ) from None


async def _open_doors(
    config: Config, home: Home, stack: AsyncExitStack, desk: Desk, network: Network
) -> dict[str, object]:
    settings = config.network
    host = f"[{settings.grpc_host}]" if ":" in settings.grpc_host else settings.grpc_host
    api = await stack.enter_async_context(
        open_api(desk, address=f"{host}:{settings.grpc_port}", socket=home.socket)
    )
    monitor = await stack.enter_async_context(
        open_monitor(desk, host=settings.grpc_host, port=settings.websocket_port)
    )
    desk.doors.extend((api.statistics, monitor.statistics))
    return {
        "peer": format_peer(network.peer),
        "addresses": list(network.addresses()),
        "grpc": f"{host}:{api.port}",
        "socket": str(home.socket),
        "websocket": f"ws://{host}:{monitor.port}",
        "pid": os.getpid(),
    }


def _write_facts(home: Home, facts: Mapping[str, object]) -> None:
    """node.json, whole or not at all: others wait for it."""
    draft = home.facts.with_suffix(".tmp")
    draft.write_text(json.dumps(facts, indent=1) + "\n")
    draft.replace(home.facts)


async def _until_told(performer: Performer) -> None:
    """Wait for a signal; give up what runs here, so that others take it at once."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await anext(signals)
        async with trio.open_nursery() as leaving:
            leaving.start_soon(_leave, performer, leaving.cancel_scope)
            await anext(signals)  # the second one: at once
            leaving.cancel_scope.cancel()


async def _leave(performer: Performer, waiting: trio.CancelScope) -> None:
    if await performer.give_up("its executor leaves the mesh"):
        await trio.sleep(LEAVE_S)  # for the last messages to get out
    waiting.cancel()


def _agent() -> str:
    return f"mesh/{mesh.__version__}"
