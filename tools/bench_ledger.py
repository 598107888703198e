"""Measure the ledger: merging, cold starts, sync of heads, and what an entry costs on disk.

    python tools/bench_ledger.py [--quick] [--json] [--folder FOLDER] [--others PYTHON]

Ratios are of CPU time (all threads), within one run. `merge_over_limit` is the time that the two
signature checks of every entry take alone, over the time of the whole merge, SQLite included;
`cold_over_full` is that of the full merge over that of the cold one. `heads_sync_overhead` is what
a sync sends beside the missing entries, over their bytes; `heads_sync_roundtrips` are those until
they are there. `in_sync_bytes` is the larger direction of a sync that finds nothing to do.
`certificate_p50_ms` is what an award waits for the votes of three of four witnesses: four processes
with real networks over loopback, each with its book on the disk, asked from this one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import TypeVar

import trio
from attrs import evolve
from nacl.signing import SigningKey
from trio.testing import memory_stream_pair

from ledger import chain, keys
from ledger.chain import Head
from ledger.glance import opened
from ledger.keys import terms_message
from ledger.merge import Merger
from ledger.model import Entry, Terms, amount_of, reserve_of
from ledger.quorum import Quorum
from ledger.store import Store
from ledger.sync import Budget, Replica, Synced, serve, sync
from ledger.votes import VoteBook
from mesh.certifying import Certifying, stand_witness
from mesh.errors import MeshError
from mesh.ids import NET as MESH
from mesh.ids import PeerId
from mesh.network.network import WITNESS, Network, NetworkConfig, open_network
from mesh.sansio import Identity

NET = b"benchnet"
WALL_MS = 1_790_000_000_000
PAGE = 1000
"""Entries merged at a time."""
AUTHORS = 100
WITNESSES = 4
VOTES, WARM_UP = 200, 20
"""Certificates that are measured, after some that are not."""
SYNC_AUTHORS, SYNC_BEHIND, SYNC_MISSING = 10_000, 10, 1_000
OTHERS = """
import importlib, json, os, sys, time
entries, size = int(sys.argv[1]), int(sys.argv[2])
items = [(os.urandom(32).hex(), os.urandom(size)) for _ in range(entries)]

def pycrdt(library):
    one, other = library.Doc(), library.Doc()
    held = one.get("entries", type=library.Map)
    with one.transaction():
        for key, value in items:
            held[key] = value
    update = one.get_update()
    start = time.process_time()
    other.apply_update(update)
    assert len(other.get("entries", type=library.Map)) == entries
    return time.process_time() - start

def loro(library):
    one, other = library.LoroDoc(), library.LoroDoc()
    held = one.get_map("entries")
    for key, value in items:
        held.insert(key, value)
    one.commit()
    update = one.export(library.ExportMode.Updates(library.VersionVector()))
    start = time.process_time()
    other.import_(update)
    assert len(other.get_map("entries")) == entries
    return time.process_time() - start

told = {}
for merge in (pycrdt, loro):
    try:
        library = importlib.import_module(merge.__name__)
    except ImportError:
        continue
    told[merge.__name__ + "_us"] = round(merge(library) / entries * 1e6, 2)
print(json.dumps(told))
"""
"""What two general CRDTs take an entry of the same size: in memory, nothing signed or checked."""
T = TypeVar("T")


class Party:
    """A key that buys and sells, and its chain."""

    def __init__(self, name: str, net: bytes = NET) -> None:
        self.secret = SigningKey(sha256(name.encode()).digest())
        self.key = bytes(self.secret.verify_key)
        self.head = Head.start(self.key, net)

    def sign(self, message: bytes) -> bytes:
        return self.secret.sign(message).signature

    def deal(self, seller: Party, number: int) -> list[bytes]:
        """An ALLOC and its SETTLE, encoded: every task has digests of its own."""
        task = sha256(self.key + number.to_bytes(8, "big")).digest()
        cid = b"\x01\x55\x12\x20" + task
        bid = Terms(
            nonce=task[:16],
            fence=1,
            seller=seller.key,
            buyer=self.key,
            job=cid,
            module=cid,
            inputs=(cid,),
            outputs=(),
            meter="wasmtime-50.0.1/fuel/unrolled-1",
            price=500,
            fee=40,
            reserve=reserve_of(500, 10**10, 40),
            fuel=10**10,
            amount=0,
            exit=0,
            start_ms=WALL_MS,
            end_ms=WALL_MS,
            deadline_ms=WALL_MS + 60_000,
            grace_ms=5_000,
        )
        terms = bid.encode()
        signed = seller.sign(terms_message(terms))
        self.head, alloc = chain.alloc(self.head, terms, signed, wall_ms=WALL_MS, sign=self.sign)
        bill = evolve(bid, outputs=(cid, cid, cid), fuel=7 * 10**9 + number, ref=alloc.id)
        terms = evolve(bill, amount=amount_of(bill), end_ms=WALL_MS + 900).encode()
        signed = seller.sign(terms_message(terms))
        self.head, settle = chain.settle(
            self.head, terms, signed, alloc=alloc, wall_ms=WALL_MS, sign=self.sign
        )
        return [alloc.encode(), settle.encode()]


def histories(authors: int, deals: int) -> list[list[bytes]]:
    """Encoded entries of each author, in order."""
    parties = [Party(f"party {number}") for number in range(authors)]
    return [
        [
            wire
            for number in range(deals)
            for wire in party.deal(parties[(at + 1 + number % (authors - 1)) % authors], number)
        ]
        for at, party in enumerate(parties)
    ]


def flat(chains: Sequence[Sequence[bytes]]) -> list[bytes]:
    return [wire for one in chains for wire in one]


def cpu_of(work: Callable[[], object]) -> float:
    """Seconds of all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def signatures(wires: Sequence[bytes]) -> Callable[[], None]:
    """Checks the two signatures of every entry, and does nothing else."""
    checks = []
    for wire in wires:
        entry = opened(wire)
        body = entry.content
        checks.append((body.author, keys.entry_message(entry.id), entry.sig))
        checks.append((body.peer, terms_message(body.terms), body.peer_sig))

    def check() -> None:
        assert all(keys.verify(*one) for one in checks)

    return check


def measure_merge(folder: Path, chains: Sequence[Sequence[bytes]]) -> dict[str, float]:
    """One round: the limit, a full merge and a cold one, next to each other."""
    wires = flat(chains)
    pages = [wires[at : at + PAGE] for at in range(0, len(wires), PAGE)]
    limit = cpu_of(signatures(wires))
    spent, elapsed = {}, {}
    for name in ("full", "cold"):
        path = folder / f"{name}.sqlite"
        with Store.open(path) as store, Merger(store) as merger:
            merge = merger.merge if name == "full" else merger.merge_cold
            start = time.perf_counter()
            spent[name] = cpu_of(partial(deque, (merge(page, WALL_MS) for page in pages), 0))
            elapsed[name] = time.perf_counter() - start
            assert store.total().count == len(wires)
    disk = (folder / "full.sqlite").stat().st_size  # closing a store empties its log into it
    return {
        "merge_over_limit": limit / spent["full"],
        "cold_over_full": spent["full"] / spent["cold"],
        "disk_over_wire": disk / sum(map(len, wires)),
        "limit_us": limit / len(wires) * 1e6,
        "full_us": spent["full"] / len(wires) * 1e6,
        "full_elapsed_us": elapsed["full"] / len(wires) * 1e6,
        "cold_us": spent["cold"] / len(wires) * 1e6,
    }


async def at_once(blocking: Callable[[], T]) -> T:
    return blocking()


def replica(wires: Sequence[bytes]) -> Replica:
    """In memory; entries of our own making are not checked again."""
    store = Store.open(Path(":memory:"))
    store.add(Entry.decode(wire) for wire in wires)
    return Replica(Merger(store, spread=map), lambda: WALL_MS, trio.current_time, at_once)


async def synced(caller: Replica, server: Replica) -> Synced:
    near, far = memory_stream_pair()
    budget = Budget(seconds=600)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve(far, server, budget=budget))
        told = await sync(near, caller, budget=budget)
        await near.aclose()
    return told


def measure_sync(authors: int, behind: int, missing: int) -> dict[str, float]:
    """*missing* entries of *behind* authors of *authors* are there on one side only."""
    parties = [Party(f"author {number}") for number in range(authors)]
    common = [w for at, p in enumerate(parties) for w in p.deal(parties[at - 1], 0)]
    late = [
        wire
        for at in range(0, authors, authors // behind)[:behind]
        for number in range(1, missing // behind // 2 + 1)
        for wire in parties[at].deal(parties[at - 1], number)
    ]
    ours, theirs = replica(common), replica(common + late)
    first = trio.run(synced, ours, theirs)
    assert first.new == len(late), first
    second = trio.run(synced, ours, theirs)
    assert second.is_equal, second
    payload = sum(map(len, late))
    return {
        "heads_sync_overhead": (first.bytes_in + first.bytes_out - payload) / payload,
        "heads_sync_roundtrips": first.turns - 1,  # the last turn only says that it was the last
        "in_sync_bytes": max(second.bytes_in, second.bytes_out),
    }


def serve_votes(index: int, folder: Path) -> None:
    """Be a witness until stdin ends; where it listens goes to stdout."""
    secret = SigningKey(bytes([index]) * 32)
    us = Identity(
        PeerId(bytes(secret.verify_key)),
        lambda message: secret.sign(message).signature,
        keys.verify,
    )

    def fail(error: MeshError) -> None:
        raise error

    async def run() -> None:
        judge = stand_witness(
            votes, folder, us, is_frozen=lambda _key: False, alarm=fail, learn=no_fork
        )
        async with open_peer(index, {WITNESS: judge.answer}) as network:
            print(network.addresses()[0], flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)

    with VoteBook.open(folder / f"votes-{index}.sqlite", us.peer) as votes:
        trio.run(run)


def open_peer(
    index: int, serving: Mapping[str, Callable[[PeerId, bytes], Awaitable[bytes]]]
) -> AbstractAsyncContextManager[Network]:
    return open_network(
        NetworkConfig(seed=bytes([index]) * 32),
        rng=Random(index),
        on_frame=lambda _peer, _frame: None,
        on_offer=lambda _peer, _data: None,
        serve=serving,
    )


def measure_votes(folder: Path, count: int) -> dict[str, float]:
    """Certificates of *count* awards, one after another."""
    witnesses = range(2, 2 + WITNESSES)
    command = [sys.executable, __file__, "--folder", str(folder), "--witness"]
    judges = [
        subprocess.Popen(
            [*command, str(index)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for index in witnesses
    ]
    try:
        where = [judge.stdout.readline().strip() for judge in judges if judge.stdout]
        waits = trio.run(ask_for_votes, folder, witnesses, where, count)
    finally:
        for judge in judges:
            judge.communicate()
    waits.sort()
    return {
        "certificate_p50_ms": statistics.median(waits) * 1000,
        "certificate_p95_ms": waits[len(waits) * 95 // 100] * 1000,
    }


async def ask_for_votes(
    folder: Path, witnesses: Sequence[int], where: Sequence[str], count: int
) -> list[float]:
    """Seconds that each certificate took."""
    members = [bytes(SigningKey(bytes([index]) * 32).verify_key) for index in witnesses]
    buyer, seller = Party("buyer", MESH), Party("seller", MESH)
    waits = []
    with Store.open(folder / "asking.sqlite") as store:
        async with open_peer(1, {}) as network:
            for address in where:
                await network.connect(address)
            certifying = Certifying(Quorum.of(members), store, no_fork, None, network)
            for number in range(count + WARM_UP):
                entry = Entry.decode(buyer.deal(seller, number)[0])
                buyer.head = Head.after(entry)  # its SETTLE is not asked about
                store.append_own([entry])
                start = time.perf_counter()
                await certifying.certify(entry, 10.0)
                waits.append(time.perf_counter() - start)
    return waits[WARM_UP:]


async def no_fork(wires: Sequence[bytes]) -> None:
    raise AssertionError(f"nobody forks here: {wires!r}")


def measure_others(python: Path, entries: int, size: int) -> dict[str, float]:
    """Whatever that interpreter can import: our own lock has none of them."""
    command = [str(python), "-c", OTHERS, str(entries), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told: dict[str, float] = json.loads(done.stdout)
    return told


def main() -> None:
    """Print medians over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="3 rounds, not 7, of 6,000 entries, not 20,000"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--folder", type=Path, help="on which disk (default: the temporary one)")
    parser.add_argument("--others", type=Path, help="a Python that has pycrdt or loro, to compare")
    parser.add_argument("--witness", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.witness:
        return serve_votes(options.witness, options.folder)
    rounds, entries = (3, 6_000) if options.quick else (7, 20_000)
    print(f"signing {entries} entries", file=sys.stderr)
    chains = histories(AUTHORS, entries // AUTHORS // 2)
    results = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-ledger-") as folder:
            results.append(measure_merge(Path(folder), chains))
        print(f"round {number + 1} of {rounds}: {results[-1]}", file=sys.stderr)
    medians = {name: statistics.median(r[name] for r in results) for name in results[0]}
    print(f"sync of {SYNC_AUTHORS} authors", file=sys.stderr)
    figures = {n: round(v, 3) for n, v in medians.items() if not n.endswith("_us")}
    figures |= {
        n: round(v, 4) for n, v in measure_sync(SYNC_AUTHORS, SYNC_BEHIND, SYNC_MISSING).items()
    }
    print(f"certificates of {WITNESSES} witnesses", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-ledger-") as folder:
        figures |= {n: round(v, 2) for n, v in measure_votes(Path(folder), VOTES).items()}
    wire = round(sum(map(len, flat(chains))) / entries)
    context: dict[str, float | str | None] = {
        "rounds": rounds,
        "entries": entries,
        "wire_bytes": wire,
        "sync": f"{SYNC_MISSING} entries of {SYNC_BEHIND} of {SYNC_AUTHORS} authors",
        "cores": os.cpu_count(),
        **{n: round(v, 1) for n, v in medians.items() if n.endswith("_us")},
    }
    if options.others:
        context |= measure_others(options.others, entries, wire)
    if options.json:
        print(json.dumps({"figures": figures, "context": context}))
    else:
        for name, value in (figures | context).items():
            print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
