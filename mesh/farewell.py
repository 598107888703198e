"""The farewell: how a node leaves the mesh. No task waits for the end of its lease.

What can be moved is given back alive, and goes on elsewhere from where it is; what cannot, or not
in time, is given up with the reason, and begun anew.
"""

from __future__ import annotations

import signal

import trio

from mesh.driver import Driver
from mesh.kernel import Kernel
from mesh.performer import Performer
from mesh.sansio import DrainSet

HAND_OVER_S = 15.0
"""For taking runs out, and for their buyers to fetch what is given to them."""
LEAVE_S = 2.0
_TICK_S = 0.05


async def say_farewell(kernel: Kernel, driver: Driver, performer: Performer) -> None:
    """Wait for a signal to stop, then leave; a second one cuts that short."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await anext(signals)
        async with trio.open_nursery() as leaving:
            leaving.start_soon(_leave, kernel, driver, performer, leaving.cancel_scope)
            await anext(signals)
            leaving.cancel_scope.cancel()


async def _leave(
    kernel: Kernel, driver: Driver, performer: Performer, waiting: trio.CancelScope
) -> None:
    with trio.move_on_after(HAND_OVER_S):
        await driver.post(DrainSet(is_on=True))
        while not kernel.is_closed or kernel.leaving():  # noqa: ASYNC110 - a core rings no bell
            await trio.sleep(_TICK_S)
    if await performer.give_up("its executor leaves the mesh"):
        await trio.sleep(LEAVE_S)  # for the last messages to get out
    waiting.cancel()
