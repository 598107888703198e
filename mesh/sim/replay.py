"""The black box: what a crashed node's kernel was made of and every event since, run once more.

A file of JSON lines: first the facts, then {"now": seconds, "event": …}. The key does not leave the
node, so a replayed kernel signs with a stand-in and takes its own signatures for good; everybody
else's are verified as they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from random import Random
from typing import Any, cast

from attrs import frozen

from ledger import keys
from mesh.errors import PeerError
from mesh.ids import PeerId
from mesh.kernel import Kernel
from mesh.market.bidding import Shop
from mesh.market.credit import Books
from mesh.market.order import TaskRecord
from mesh.market.own_chain import Past
from mesh.market.policy import Policy
from mesh.sansio import Action, Event, Identity, PersistTenancy
from mesh.sim.transcript import Json, as_event, dump, load, read_line, write_line


@frozen
class Facts:
    """What a kernel was built from. *seed* is that of its `random.Random`."""

    peer: PeerId
    policy: Policy
    seed: int
    past: Past
    books: Books
    is_confirmed: bool
    records: tuple[TaskRecord, ...]
    tenancies: tuple[PersistTenancy, ...]
    epoch: int
    epoch_ms: int
    shop: Shop

    def build(self, identity: Identity) -> Kernel:
        """The kernel, as it was when the node started."""
        return Kernel(
            identity,
            self.policy,
            Random(self.seed),  # noqa: S311 - repeats what the node drew
            past=self.past,
            books=self.books,
            is_confirmed=self.is_confirmed,
            records=self.records,
            tenancies=self.tenancies,
            epoch=self.epoch,
            epoch_ms=self.epoch_ms,
            shop=self.shop,
        )


@frozen
class Step:
    """One event and what the kernel made of it."""

    now: float
    event: Event
    actions: tuple[Action, ...]


@frozen
class BlackBox:
    """What a node had recorded. *dropped* counts the events that the ring no longer held."""

    facts: Facts
    dropped: int
    events: tuple[tuple[float, Event], ...]


def write_black_box(
    facts: Facts, events: Iterable[tuple[float, Event]], *, dropped: int
) -> Iterator[str]:
    """The lines of a black box, without line breaks."""
    fields: dict[str, Json] = {
        name: dump(getattr(facts, name)) for name in Facts.__annotations__ if name != "shop"
    }
    yield write_line({"kind": "blackbox", "dropped": dropped, "shop": dump(facts.shop), **fields})
    for now, event in events:
        yield write_line({"now": now, "event": dump(event)})


def read_black_box(lines: Sequence[str]) -> BlackBox:
    """The inverse of `write_black_box`. Raises PeerError."""
    header = read_line(lines[0]) if lines else None
    if not isinstance(header, dict) or header.get("kind") != "blackbox":
        raise PeerError("not a black box")
    try:
        values = {name: load(header[name]) for name in Facts.__annotations__}
        facts = Facts(**cast(dict[str, Any], values))
        events = tuple(_read_step(line) for line in lines[1:])
        return BlackBox(facts, int(cast(int, header["dropped"])), events)
    except (KeyError, TypeError, ValueError) as error:
        raise PeerError(f"not a black box: {error!r:.80}") from None


def replay(box: BlackBox) -> Iterator[Step]:
    """Run the events again. What crashed the node is raised again. Raises PeerError.

    A box whose first events are gone cannot be run: the kernel would not be the one that it was.
    """
    if box.dropped:
        raise PeerError(f"the first {box.dropped} events are gone: it can be read, but not run")
    kernel = box.facts.build(_stand_in(box.facts.peer))
    for now, event in box.events:
        yield Step(now, event, tuple(kernel.handle(event, now)))


def _read_step(line: str) -> tuple[float, Event]:
    data = read_line(line)
    if not isinstance(data, dict):
        raise PeerError("not a step of a black box")
    return float(cast(float, data["now"])), as_event(load(data["event"]))


def _stand_in(peer: PeerId) -> Identity:
    def verify(key: bytes, message: bytes, signature: bytes) -> bool:
        return key == peer or keys.verify(key, message, signature)

    return Identity(peer, lambda message: blake2b(message, key=peer).digest(), verify)
