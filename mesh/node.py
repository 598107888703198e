"""The composition root: builds a node from its configuration, runs it, and takes it down.

The only file that knows every shell. Up: folders, key, files, kernel, network, sandbox, doors.
Down: runs handed over, doors, sandbox, network, files.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from random import Random
from secrets import randbits
from time import time_ns

import trio
from attrs import evolve

import mesh
from ledger.errors import BadEntry, BrokenChain, LedgerError
from mesh import codec
from mesh.alarm import Alarm
from mesh.api.monitor import open_monitor
from mesh.api.server import open_api
from mesh.auditor import Auditor
from mesh.belongings import Belongings, open_belongings, read_our_books, read_psk
from mesh.bookkeeper import Bookkeeper, Tier
from mesh.broadcast import Broadcast
from mesh.certifying import Certifying, Witnessing, quorum_of, stand_witness
from mesh.config import Config
from mesh.desk import Desk
from mesh.driver import Driver
from mesh.errors import Corruption, MeshError, PeerError, Stopped, Unavailable
from mesh.farewell import say_farewell
from mesh.identity.keys import identity
from mesh.ids import NET, PeerId, format_peer
from mesh.kernel import Kernel
from mesh.market.bidding import Shop
from mesh.market.own_chain import read_past
from mesh.market.policy import Policy
from mesh.network.network import BLOCKS, LEDGER, WITNESS, Network, NetworkConfig, open_network
from mesh.paths import Home
from mesh.performer import Performer
from mesh.prosecutor import Prosecutor
from mesh.pruning import SEALING_S, Pruning
from mesh.replication import Replication, ReplicationConfig
from mesh.rerun import Rerunner
from mesh.resources.probe import Probe, ThisMachine, watch
from mesh.rumours import Rumours
from mesh.runtime.execution import Workshop
from mesh.runtime.supervisor import open_supervisor, walls
from mesh.sansio import OfferReceived, Received
from mesh.sim.replay import Facts, write_black_box
from mesh.storage.transfer import serve
from mesh.upkeep import advertise, scan, sweep

_log = logging.getLogger("mesh.node")

SPEED = 500_000
"""Fuel per ms and core that a node claims before its own runs have corrected it."""
SERVING_MAX = 4
"""Threads that peers' requests for blocks may occupy."""

_ROOM = "free some of its disk, then start again: nothing acknowledged is lost"

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
    with open_belongings(config, home) as files:
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


def _gather(config: Config, home: Home, files: Belongings) -> Facts:
    """What the kernel is built from."""
    machine = Probe(ThisMachine(), trio.current_time).capacity(home.data)
    policy = evolve(
        Policy(),
        candidates=config.market.candidates,
        window_ms=config.market.window_ms,
        ttl_ms=config.market.lease_ttl_s * 1000,
        save_at_least_ms=min(Policy().save_at_least_ms, config.sell.checkpoint_s * 1000),
        save_at_most_ms=config.sell.checkpoint_s * 1000,
        credit_line=config.ledger.credit_line,
        tier=config.ledger.tier,
        witnesses=tuple(quorum.members) if (quorum := quorum_of(config.ledger)) else (),
    )
    sold = config.sell.capacity(machine)
    shop = Shop(
        # An owner who does not want it back leaves us what is sold, whatever else the machine does.
        machine=machine if config.sell.yields else machine + sold,
        sold=sold,
        price=config.sell.price,
        speed=SPEED,
        features=("wasm", *walls()) if config.sell.enabled else (),
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
        books=read_our_books(files),
        is_confirmed=files.is_new_key and past.head.seq == 0,
        records=tuple(files.journal.tasks(policy.tasks_ended_max, past.awarded())),
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
    config: Config,
    home: Home,
    files: Belongings,
    kernel: Kernel,
    driver: Driver,
    announce: Announce,
) -> None:
    async with AsyncExitStack() as stack:
        alarm = Alarm()
        replication = _replicate(config, files, kernel, driver, alarm)
        witnessing = _stand_witness(home, files, kernel, alarm, replication)
        network = await stack.enter_async_context(
            _join(config, home, files, driver, alarm, replication, witnessing)
        )
        replication.network = network
        supervisor = await stack.enter_async_context(
            open_supervisor(home.data / "runtime", workers_max=max(1, kernel.sold().slots) + 1)
        )
        nursery = await stack.enter_async_context(trio.open_nursery())
        performer = Performer(
            driver=driver,
            network=network,
            blocks=files.blocks,
            journal=files.journal,
            ledger=files.ledger,
            records=kernel.records,
            broadcast=Broadcast(),
            nursery=nursery,
        )
        workshop = Workshop(files.blocks, supervisor, performer.bring, files.scratch)
        performer.workshop, performer.room = workshop, lambda: kernel.free().memory
        counters: list[Callable[[], Mapping[str, int]]] = [replication.statistics]
        pruning = _ask_witnesses(config, files, replication, witnessing, performer, counters)
        desk = _set_up_desk(
            config, files, kernel, driver, performer, network, replication, counters
        )
        performer.said, performer.received = replication.push, replication.look_at
        services: list[Callable[[], Awaitable[None]]] = [
            *([pruning.run] if pruning else []),
            *([witnessing.scan] if witnessing else []),
            alarm.heard,
            replication.run,
            partial(scan, home.state / "ledger.sqlite", alarm.ring),
            performer.gossip,
            partial(sweep, files.blocks, kernel, performer.states_kept),
            partial(watch, Probe(ThisMachine(), trio.current_time), driver.post),
            partial(advertise, network, kernel),
            desk.prosecutor.run,
            partial(driver.drive, persist=performer.persist, perform=performer.perform),
        ]
        for service in services:
            nursery.start_soon(service)
        facts = await _open_doors(config, home, stack, desk, network)
        _write_facts(home, facts)
        stack.callback(home.facts.unlink, missing_ok=True)
        announce({**facts, **_boast(config, files, kernel)})
        await say_farewell(kernel, driver, performer)
        performer.broadcast.close()
        nursery.cancel_scope.cancel()


def _stand_witness(
    home: Home, files: Belongings, kernel: Kernel, alarm: Alarm, replication: Replication
) -> Witnessing | None:
    """Ourselves as a witness, where our owner wants that."""
    if files.votes is None:
        return None
    return stand_witness(
        files.votes,
        home.state,
        kernel.identity,
        is_frozen=kernel.credit.is_frozen,
        alarm=alarm.ring,
        learn=replication.learn_from,
    )


def _ask_witnesses(
    config: Config,
    files: Belongings,
    replication: Replication,
    witnessing: Witnessing | None,
    performer: Performer,
    counters: list[Callable[[], Mapping[str, int]]],
) -> Pruning | None:
    """Before what we sign, if a quorum of them is set; and before entries of others are pruned."""
    if witnessing is not None:
        counters.append(witnessing.statistics)
    quorum, network = quorum_of(config.ledger), replication.network
    if quorum is None or network is None:
        return None
    certifying = Certifying(quorum, files.petition, replication.learn_from, witnessing, network)
    performer.certify = certifying.certify
    counters.append(lambda: certifying.tally)
    if config.ledger.archive:
        return None
    pruning = Pruning(
        peer=files.key.peer,
        store=replication.merger.store,
        in_turn=replication.in_turn,
        certify=partial(certifying.certify, patience_s=SEALING_S),
        blame_disk=replication.blame_disk,
        rng=Random(),  # noqa: S311  (jitter, nothing secret)
    )
    counters.append(lambda: pruning.tally)
    return pruning


def _set_up_desk(
    config: Config,
    files: Belongings,
    kernel: Kernel,
    driver: Driver,
    performer: Performer,
    network: Network,
    replication: Replication,
    counters: list[Callable[[], Mapping[str, int]]],
) -> Desk:
    """What answers clients."""
    assert performer.workshop is not None
    reading = trio.CapacityLimiter(1)
    bookkeeper = Bookkeeper(
        me=files.key.peer,
        ledger=files.reader,
        reading=reading,
        merge=replication.learn_from,
        publish=replication.push,
        driver=driver,
        credit=kernel.credit,
        tier=Tier.of(kernel.tier, quorum_of(config.ledger)),
        is_archive=config.ledger.archive,
    )
    me = files.key.peer
    rerunner = Rerunner(me, performer.workshop, performer.fetch, files.publishing)
    prosecutor = Prosecutor(kernel.records, performer.broadcast, rerunner, bookkeeper, files.shelf)
    return Desk(
        kernel=kernel,
        driver=driver,
        broadcast=performer.broadcast,
        performer=performer,
        network=network,
        blocks=files.blocks,
        quota=config.storage.quota,
        bookkeeper=bookkeeper,
        auditor=Auditor(me, files.reader, reading, rerunner, prosecutor.findings),
        prosecutor=prosecutor,
        publishing=files.publishing,
        scratch=files.scratch,
        agent=_agent(),
        started_at=trio.current_time(),
        doors=counters,
    )


def _boast(config: Config, files: Belongings, kernel: Kernel) -> dict[str, object]:
    """What a person wants to read first, beside where the node listens."""
    return {
        "key": str(files.key_path),
        "is_new_key": files.is_new_key,
        "sold": kernel.sold(),
        "price": config.sell.price,
        "storage": "embedded store",
    }


def _replicate(
    config: Config, files: Belongings, kernel: Kernel, driver: Driver, alarm: Alarm
) -> Replication:
    """What keeps our ledger equal to the others'; it begins to when it has a network."""
    tally: Counter[str] = Counter()
    settings = config.ledger
    return Replication(
        merger=files.merger,
        rumours=Rumours(files.index, tally),
        peer=files.key.peer,
        head=kernel.head,
        is_confirmed=kernel.is_confirmed,
        post=driver.post,
        alarm=alarm.ring,
        rng=Random(),  # noqa: S311  (jitter, nothing secret)
        tally=tally,
        config=ReplicationConfig(
            is_bilateral=settings.tier == "T0",
            repair_s=float(settings.repair_s),
            full_repair_s=float(settings.full_repair_s),
        ),
    )


@asynccontextmanager
async def _join(
    config: Config,
    home: Home,
    files: Belongings,
    driver: Driver,
    alarm: Alarm,
    replication: Replication,
    witnessing: Witnessing | None,
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
            announce=settings.announce,
            bootstrap=settings.bootstrap,
            mdns=settings.mdns,
            psk=read_psk(settings.psk_file),
            state_folder=home.state,
            agent=_agent(),
        ),
        rng=Random(),  # noqa: S311  (jitter, nothing secret)
        on_frame=on_frame,
        on_offer=on_offer,
        serve={BLOCKS: serve_blocks} | ({WITNESS: witnessing.answer} if witnessing else {}),
        topics=[] if replication.config.is_bilateral else [replication.rumours.topic],
        answers={LEDGER: replication.answer},
    ) as network:
        met.append(network)
        yield network


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


def _agent() -> str:
    return f"mesh/{mesh.__version__}"
