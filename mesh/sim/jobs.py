"""Many seeds, on as many processes as wanted. The only file of the simulator that is not pure."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence

from mesh.sim.options import draw
from mesh.sim.world import Outcome, World


def play(seed: int) -> Outcome:
    """One seed, to its end."""
    return World(draw(seed)).run()


def play_all(seeds: Sequence[int], processes: int) -> Iterator[Outcome]:
    """Every seed, in order."""
    if processes <= 1:
        yield from map(play, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(play, seeds, chunksize=4)
