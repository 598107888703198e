"""What a node does with its disk when it starts: the same as mesh/node.py, from simulated files."""

from __future__ import annotations

from random import Random

from ledger.model import Entry
from ledger.state import Accounts
from mesh.kernel import Kernel
from mesh.market.bidding import Shop
from mesh.market.copies import recent
from mesh.market.credit import read_books
from mesh.market.own_chain import read_past
from mesh.market.policy import Policy
from mesh.sansio import Identity
from mesh.sim.disk import Contents

NET = b"mesh-sim"
"""The network's name in every entry."""


def restore(
    identity: Identity,
    policy: Policy,
    rng: Random,
    contents: Contents,
    *,
    epoch: int,
    epoch_ms: int,
    shop: Shop,
    is_new: bool,
) -> Kernel:
    """A kernel that takes up where the disk left off."""
    entries = [Entry.decode(data) for data in contents.entries]
    others = [Entry.decode(data) for data in contents.foreign]
    past = read_past(identity.peer, NET, entries)
    records = list(contents.records.values())
    return Kernel(
        identity,
        policy,
        rng,
        past=past,
        books=read_books(identity.peer, Accounts(NET), [*entries, *others]),
        is_confirmed=is_new,
        records=recent(records, policy.tasks_ended_max, past.awarded()),
        tenancies=tuple(contents.tenancies.values()),
        epoch=epoch,
        epoch_ms=epoch_ms,
        shop=shop,
    )
