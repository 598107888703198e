"""Upkeep: what a node does now and then, whatever else it does: be found, and tidy its store."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Set
from pathlib import Path

import trio

from ledger import keys
from ledger.errors import Corruption, LedgerError
from ledger.store import Store
from mesh.errors import MeshError, NotFound, Stopped, Unavailable
from mesh.kernel import Kernel
from mesh.network.network import Network
from mesh.performer import hosted_pin, hosted_state_pin, state_pin, task_pin
from mesh.runtime.interpreters import INTERPRETERS, pin_of
from mesh.storage.disk import DiskBlocks

_log = logging.getLogger("mesh.upkeep")

ADVERTISE_AFTER_S = 5.0
ADVERTISE_EVERY_S = 600.0
SCAN_SLICE = 32
SCAN_REST = 4.0
"""Times as long as it has worked."""
SWEEP_EVERY_S = 600.0
SWEEP_GRACE_S = 3_600.0


async def scan(path: Path, alarm: Callable[[MeshError], None]) -> None:
    """Check every entry of the ledger in *path* once, at a leisurely pace; *alarm* hears of rot."""
    try:
        count = await trio.to_thread.run_sync(_scan, path, limiter=trio.CapacityLimiter(1))
        _log.info("the ledger is sound: %s entries", count)
    except Corruption as error:
        alarm(Stopped(f"the ledger: {error.reason}", error.hint))
    except LedgerError as error:
        _log.warning("the ledger was not scanned: %s", error)


def _scan(path: Path) -> int:
    if sys.platform == "linux":  # there a priority is a thread's own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    with Store.open(path) as store:
        return store.scan(_Leisure().verify)


class _Leisure:
    """Verifies a few at a time, and rests longer than that took: others want the interpreter."""

    def __init__(self) -> None:
        self._count = 0
        self._since = time.monotonic()

    def verify(self, key: bytes, message: bytes, signature: bytes) -> bool:
        self._count += 1
        if self._count % SCAN_SLICE == 0:
            trio.from_thread.check_cancelled()
            time.sleep(min(1.0, SCAN_REST * (time.monotonic() - self._since)))
            self._since = time.monotonic()
        return keys.verify(key, message, signature)


async def advertise(network: Network, kernel: Kernel) -> None:
    """Be found in the DHT by what this node can do."""
    while True:
        await trio.sleep(ADVERTISE_AFTER_S)
        for feature in kernel.offer.features if kernel.offer else ():
            try:
                await network.provide(feature)
            except MeshError as error:
                _log.info("not listed under %s: %s", feature, error)
        await trio.sleep(ADVERTISE_EVERY_S)


async def sweep(blocks: DiskBlocks, kernel: Kernel, states_kept: Set[str]) -> None:
    """Drop what nobody needs any more: unpin it now, remove it when it has lain for a while.

    A pin goes when two looks in a row found no need for it: a task is pinned before it is admitted.
    """
    unneeded: set[str] = set()
    while True:
        needed = {task_pin(task) for task in kernel.records}
        needed |= {state_pin(t) for t, r in kernel.records.items() if not r.state.is_final}
        needed |= {hosted_pin(task) for task in kernel.answers_for()}
        needed |= {pin_of(interpreter) for interpreter in INTERPRETERS}
        needed |= {hosted_state_pin(task) for task in kernel.answers_for()} | states_kept
        try:
            unneeded = await trio.to_thread.run_sync(unpin, blocks, needed, unneeded)
            await trio.to_thread.run_sync(blocks.sweep, SWEEP_GRACE_S, trio.current_time())
        except (NotFound, Unavailable) as error:
            _log.warning("nothing is removed from the store: %s", error)
        await trio.sleep(SWEEP_EVERY_S)


def unpin(blocks: DiskBlocks, needed: set[str], before: set[str]) -> set[str]:
    """Unpin what is in *before* and not *needed*; what else nobody needs."""
    unneeded = [pin for pin in blocks.pins() if pin.reason not in needed]
    for pin in unneeded:
        if pin.reason in before:
            for _ in range(pin.count):
                blocks.unpin(pin.root, pin.reason)
    return {pin.reason for pin in unneeded} - before
