"""Golden transcripts: what three kernels say and do in eleven stories, to the letter.

After a change on purpose: python tests/support/golden_kernel.py --rewrite, and read the difference.
"""

from __future__ import annotations

import pytest
from golden_kernel import SCRIPTS, Script, path_of

from ledger.model import Kind
from mesh.market.order import State
from mesh.resources.capacity import NOTHING


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_story_goes_as_it_always_went(name: str) -> None:
    assert SCRIPTS[name]().text() == path_of(name).read_text()


MOVED = [Kind.ALLOC, Kind.SETTLE, Kind.ALLOC, Kind.SETTLE]
ENDS: dict[str, tuple[State, int, list[Kind]]] = {
    "auction-to-settlement": (State.DONE, 7_100, [Kind.ALLOC, Kind.SETTLE]),
    "executor-silent": (State.DONE, 7_100, [Kind.ALLOC, Kind.ALLOC, Kind.SETTLE, Kind.VOID]),
    "declined": (State.DONE, 7_100, [Kind.ALLOC, Kind.VOID, Kind.ALLOC, Kind.SETTLE]),
    "cancelled-while-running": (State.CANCELLED, 2_000, [Kind.ALLOC, Kind.SETTLE]),
    "auctioneer-restarts": (State.DONE, 7_100, [Kind.ALLOC, Kind.SETTLE]),
    "orphan-paid": (State.DONE, 7_100, [Kind.ALLOC, Kind.SETTLE]),
    "orphan-revoked": (State.DONE, 7_100, [Kind.ALLOC, Kind.ALLOC, Kind.VOID, Kind.SETTLE]),
    "slices": (State.DONE, 7_100, [Kind.ALLOC, Kind.USE, Kind.USE, Kind.USE, Kind.SETTLE]),
    "moved": (State.DONE, 7_100, MOVED),
    "lost-after-a-checkpoint": (State.DONE, 7_100, MOVED),
    "drained": (State.DONE, 7_100, MOVED),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_story_ends_well(name: str) -> None:
    """What a transcript cannot show at a glance: the right end, and nothing left behind."""
    script: Script = SCRIPTS[name]()
    (record,) = script.buyer.kernel.records.values()
    kinds = [entry.content.kind for entry in script.buyer.entries]
    assert (record.state, record.amount, kinds) == ENDS[name]
    assert script.buyer.kernel.head.pending == 0
    script.table.run(60.0)
    for player in script.table.players:
        assert not player.tenancies
        assert player.kernel.leases() == ()
        assert player.kernel.reserved() == NOTHING
