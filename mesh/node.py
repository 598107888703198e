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
from attrs import evolve, frozen

import mesh
from ledger.chain import Head
from ledger.errors import LedgerError
from ledger.store import Store
from mesh import codec
from mesh.api.monitor import open_monitor
from mesh.api.server import open_api
from mesh.broadcast import Broadcast
from mesh.config import Config
from mesh.desk import Desk, earned_by
from mesh.driver import Driver
from mesh.errors import ConfigError, MeshError, NotFound, PeerError, Unavailable
from mesh.identity.keys import NodeKey, identity, load, load_or_create
from mesh.ids import PeerId, format_peer
from mesh.kernel import Kernel
from mesh.market.accounts import open_allocs, recent_closings
from mesh.market.bidding import Shop
from mesh.market.policy import Policy
from mesh.market.terms import EMPTY_DIR, EMPTY_DIR_BLOCK, EMPTY_FILE
from mesh.network.network import BLOCKS, Network, NetworkConfig, open_network
from mesh.paths import Home
from mesh.performer import Performer, hosted_pin, task_pin
from mesh.resources.probe import Probe, ThisMachine, watch
from mesh.runtime.execution import Workshop
from mesh.runtime.supervisor import open_supervisor
from mesh.sansio import OfferReceived, Received
from mesh.sim.replay import Facts, write_black_box
from mesh.storage.disk import DiskBlocks
from mesh.storage.journal import Journal, open_journal
from mesh.storage.transfer import serve

_log = logging.getLogger("mesh.node")

NET = b"mesh/1\0\0"
"""The network's name in every ledger entry, 8 bytes."""
SPEED = 500_000
"""Fuel per ms and core that a node claims before its own runs have corrected it."""
LEAVE_S = 2.0
ADVERTISE_AFTER_S = 5.0
ADVERTISE_EVERY_S = 600.0
SWEEP_EVERY_S = 600.0
SWEEP_GRACE_S = 3_600.0

Announce = Callable[[Mapping[str, object]], None]


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
        case LedgerError():
            return Unavailable(f"the ledger: {error}")
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return Unavailable("the disk is full: free some of it, or move MESH_HOME")
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
            if not any(isinstance(_told(leaf), expected) for leaf in _leaves(group)):
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
    blocks: DiskBlocks
    scratch: Path
    epoch: int


@contextmanager
def _open_files(config: Config, home: Home) -> Iterator[_Files]:
    for folder in (home.state, home.data, home.run):
        _make_private(folder)
    key_path = Path(config.identity.key_file) if config.identity.key_file else home.key_file
    is_new_key = not config.identity.key_file and not key_path.exists()
    key = load(key_path) if config.identity.key_file else load_or_create(key_path)
    scratch = home.data / "scratch"
    with ExitStack() as stack:
        blocks = DiskBlocks(home.data / "blocks", config.storage.quota)
        stack.callback(blocks.close)
        shutil.rmtree(scratch, ignore_errors=True)  # ours alone: the store's lock is held
        _make_private(scratch)
        blocks.put(EMPTY_FILE, b"")  # what most runs leave: never worth a fetch
        blocks.put(EMPTY_DIR, EMPTY_DIR_BLOCK)
        journal = stack.enter_context(open_journal(home.state / "node.sqlite"))
        ledger = stack.enter_context(Store.open(home.state / "ledger.sqlite"))
        epoch = journal.next_epoch()
        yield _Files(key, is_new_key, key_path, journal, ledger, blocks, scratch, epoch)


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
    own = list(files.ledger.chain(files.key.peer))
    return Facts(
        peer=files.key.peer,
        policy=policy,
        seed=randbits(64),
        head=Head.after(own[-1]) if own else Head.start(files.key.peer, NET),
        records=tuple(files.journal.tasks(policy.tasks_ended_max)),
        tenancies=tuple(files.journal.tenancies()),
        allocs=tuple(entry.encode() for entry in open_allocs(own).values()),
        closings=tuple(entry.encode() for entry in recent_closings(own)),
        epoch=files.epoch,
        epoch_ms=time_ns() // 10**6 - int(trio.current_time() * 1000),
        shop=shop,
    )


def _record_crash(home: Home, facts: Facts, driver: Driver) -> None:
    """Leave what `mesh sim --replay` takes."""
    path = home.state / f"crash-{facts.epoch}.jsonl"
    with path.open("w") as file:
        for line in write_black_box(facts, driver.black_box, dropped=driver.forgotten):
            file.write(line + "\n")
    sys.stderr.write(f"the node crashed; its last events: mesh sim --replay {path}\n")


async def _serve(
    config: Config, home: Home, files: _Files, kernel: Kernel, driver: Driver, announce: Announce
) -> None:
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(_join(config, home, files, driver))
        supervisor = await stack.enter_async_context(
            open_supervisor(home.data / "runtime", workers_max=max(1, kernel.sold().slots) + 1)
        )
        nursery = await stack.enter_async_context(trio.open_nursery())
        broadcast, limiter = Broadcast(), trio.CapacityLimiter(1)
        performer = Performer(
            driver=driver,
            network=network,
            blocks=files.blocks,
            journal=files.journal,
            ledger=files.ledger,
            ledger_limiter=limiter,
            broadcast=broadcast,
            nursery=nursery,
        )
        workshop = Workshop(files.blocks, supervisor, performer.bring, files.scratch)
        performer.workshop = workshop
        performer.earned = earned_by(files.key.peer, files.ledger.entries())
        desk = Desk(
            kernel=kernel,
            driver=driver,
            broadcast=broadcast,
            performer=performer,
            workshop=workshop,
            network=network,
            blocks=files.blocks,
            ledger=files.ledger,
            ledger_limiter=limiter,
            scratch=files.scratch,
            agent=_agent(),
            started_at=trio.current_time(),
            doors=[],
        )
        nursery.start_soon(performer.gossip)
        nursery.start_soon(_sweep, files.blocks, kernel)
        nursery.start_soon(watch, Probe(ThisMachine(), trio.current_time), driver.post)
        nursery.start_soon(_advertise, network, kernel)
        nursery.start_soon(
            partial(driver.drive, persist=performer.persist, perform=performer.perform)
        )
        facts = await _open_doors(config, home, stack, desk, network)
        _write_facts(home, facts)
        stack.callback(home.facts.unlink, missing_ok=True)
        announce(
            {
                **facts,
                "key": str(files.key_path),
                "is_new_key": files.is_new_key,
                "sold": kernel.sold(),
                "price": config.sell.price,
                "storage": "embedded store",
            }
        )
        await _until_told(performer)
        broadcast.close()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _join(
    config: Config, home: Home, files: _Files, driver: Driver
) -> AsyncIterator[Network]:
    """The network, its frames and offers posted to the driver."""
    met: list[Network] = []

    def blame(peer: PeerId, error: PeerError) -> None:
        for network in met:
            network.penalize(peer, str(error))

    def on_frame(peer: PeerId, frame: bytes) -> None:
        try:
            driver.post_nowait(Received(peer, codec.decode(frame)))
        except PeerError as error:
            blame(peer, error)

    def on_offer(peer: PeerId, data: bytes) -> None:
        try:
            driver.post_nowait(OfferReceived(codec.decode_signed_offer(data)))
        except PeerError as error:
            blame(peer, error)

    async def serve_blocks(peer: PeerId, request: bytes) -> bytes:
        return await trio.to_thread.run_sync(serve, files.blocks, request)

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
        rng=Random(),  # noqa: S311  (jitter)
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
    except OSError as error:
        raise ConfigError(
            "network.psk_file", f"{path}: {error.strerror}", "name a file with 64 hex digits"
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


async def _advertise(network: Network, kernel: Kernel) -> None:
    """Be found in the DHT by what this node can do."""
    while True:
        await trio.sleep(ADVERTISE_AFTER_S)
        for feature in kernel.offer.features if kernel.offer else ():
            try:
                await network.provide(feature)
            except MeshError as error:
                _log.info("not listed under %s: %s", feature, error)
        await trio.sleep(ADVERTISE_EVERY_S)


async def _sweep(blocks: DiskBlocks, kernel: Kernel) -> None:
    """Drop what nobody needs any more: unpin it now, remove it when it has lain for a while."""
    while True:
        needed = {task_pin(task) for task in kernel.records}
        needed |= {hosted_pin(task) for task in kernel.answers_for()}
        try:
            await trio.to_thread.run_sync(_unpin_all_but, blocks, needed)
            await trio.to_thread.run_sync(blocks.sweep, SWEEP_GRACE_S, trio.current_time())
        except NotFound as error:
            _log.warning("a pinned file is gone, so nothing is removed: %s", error)
        await trio.sleep(SWEEP_EVERY_S)


def _unpin_all_but(blocks: DiskBlocks, needed: set[str]) -> None:
    for pin in blocks.pins():
        if pin.reason not in needed:
            for _ in range(pin.count):
                blocks.unpin(pin.root, pin.reason)


async def _until_told(performer: Performer) -> None:
    """Wait for a signal; give up what runs here, so that others take it at once."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            break
        if not await performer.give_up("its executor leaves the mesh"):
            return
        with trio.move_on_after(LEAVE_S):  # for the last messages to get out
            async for _ in signals:  # the second one: at once
                break


def _agent() -> str:
    return f"mesh/{mesh.__version__}"
