"""Make a failing world smaller: fewer faults, fewer tasks, as long as the same promise breaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from attrs import evolve

from mesh.market.policy import Policy
from mesh.sim.options import Options
from mesh.sim.world import Outcome, World

_RATES = (
    "loss",
    "duplicates",
    "gossip_loss",
    "slow",
    "clogs",
    "partitions",
    "crashes",
    "ambushes",
    "snares",
    "deaths",
    "stalls",
    "surges",
    "drift",
    "wall_skew_s",
    "wire",
    "runs_lost",
    "cancels",
    "resubmits",
)


def shrink(outcome: Outcome) -> Outcome:
    """The smallest outcome found that breaks the same promise as *outcome*."""
    assert outcome.promise, "nothing failed"
    best, has_shrunk = outcome, True
    while has_shrunk:
        has_shrunk = False
        for options in _smaller(best.options):
            tried = World(options).run()
            if tried.promise == outcome.promise:
                best, has_shrunk = tried, True
                break
    return best


def _smaller(options: Options) -> Iterator[Options]:
    if options.policy != Policy():
        yield evolve(options, policy=Policy())
    if options.byzantine:
        yield evolve(options, byzantine=options.byzantine - 1)
    for rate in _RATES:
        if getattr(options, rate):
            yield evolve(options, **cast(dict[str, Any], {rate: 0.0}))
    if options.tasks > 1:
        yield evolve(options, tasks=options.tasks // 2)
    if options.nodes > max(2, 3 * options.byzantine + 1):
        yield evolve(options, nodes=options.nodes - 1)
    if options.chaos_s > 60.0:
        yield evolve(options, chaos_s=max(60.0, options.chaos_s / 2))
