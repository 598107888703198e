"""Pruning: a node that is no archive forgets what witnesses have sealed, a little at a time.

Of other authors' chains alone: a restart reads our own whole. Below a HEAD that a quorum certifies
no fork can be certified any more; what `Store.prune` leaves out is dropped here, an archive has it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

import trio
from attrs import define, field, frozen

from ledger.errors import LedgerError
from ledger.holdings import ChainKey, Holding
from ledger.model import Entry, Kind
from ledger.store import PRUNED_MAX, Store
from ledger.sync import RunInThread
from mesh.errors import Unavailable
from mesh.ids import NET, PeerId, short_peer

_log = logging.getLogger("mesh.pruning")

KNOWN_MAX = 65_536
"""Chains of which we remember below which HEAD nothing more goes for now."""
SEALING_S = 30.0
"""How long the votes for one HEAD are waited for: nobody else waits."""


@frozen
class PruningConfig:
    """How often, and how much at a time."""

    every_s: float = 600.0
    worth: int = 1024
    """Entries that have to be new below a HEAD: a node signs one each 1024."""
    heads: int = 16
    """HEADs that are asked for in one turn; the next turn goes on with other chains."""
    steps: int = 64
    """Transactions below one HEAD in one turn; the next turn goes on."""
    batch: int = PRUNED_MAX
    """Entries, about, that one transaction prunes."""
    rest_s: float = 0.5
    """After each of them: others write too."""


@define(eq=False)
class Pruning:
    """Prunes the ledger of one running node."""

    peer: PeerId
    store: Store
    """That of the replication: used within *in_turn* alone."""
    in_turn: RunInThread
    """Runs what blocks, between two merges."""
    certify: Callable[[Entry], Awaitable[object]]
    """Returns if a quorum signs the entry. Raises Unavailable."""
    blame_disk: Callable[[LedgerError], None]
    rng: Random
    net: bytes = NET
    config: PruningConfig = field(factory=PruningConfig)
    tally: Counter[str] = field(factory=Counter)
    _below: dict[ChainKey, int] = field(factory=dict, init=False)
    """Of what was pruned to its end, since the start: the place of the HEAD."""
    _cursor: ChainKey = field(default=(b"", b""), init=False)
    """The chain that was the last one's turn."""

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await trio.sleep(self.config.every_s * self.rng.uniform(0.5, 1.5))
            try:
                await self.prune_some()
            except LedgerError as error:
                self.blame_disk(error)

    async def prune_some(self) -> None:
        """One turn. Raises LedgerError."""
        for head in await self.in_turn(self._due_heads):
            self.tally["pruning_heads_asked"] += 1
            try:
                await self.certify(head)
            except Unavailable as error:
                self.tally["pruning_heads_refused"] += 1
                _log.info("%s stays whole: %s", short_peer(PeerId(head.content.author)), error)
                continue
            self.tally["pruning_heads_certified"] += 1
            await self._prune_below(head)

    def _due_heads(self) -> list[Entry]:
        """The newest HEADs of the chains whose turn it is, where enough is new below."""
        due = sorted(h.key for h in self.store.holdings() if self._is_due(h))
        turn = [*(k for k in due if k > self._cursor), *(k for k in due if k <= self._cursor)]
        heads: list[Entry] = []
        for key in turn[: self.config.heads]:
            self._cursor = key
            height = self.store.holding(*key).height
            head = self.store.last_of(Kind.HEAD, *key, below=height)
            if head is not None and self._is_new(key, head.content.seq):
                heads.append(head)
        return heads

    def _is_due(self, holding: Holding) -> bool:
        is_others = holding.author not in (b"", self.peer) and holding.net == self.net
        return is_others and not holding.forked and self._is_new(holding.key, holding.height)

    def _is_new(self, key: ChainKey, seq: int) -> bool:
        return seq - self._below.get(key, 0) >= self.config.worth

    async def _prune_below(self, head: Entry) -> None:
        """Step by step, each a short transaction. Raises LedgerError."""
        for _ in range(self.config.steps):
            gone = await self.in_turn(partial(self.store.prune, head.id, self.config.batch))
            self.tally["pruning_entries"] += gone
            if not gone:
                self._note((head.content.author, head.content.net), head.content.seq)
                return
            await trio.sleep(self.config.rest_s)

    def _note(self, key: ChainKey, seq: int) -> None:
        if len(self._below) >= KNOWN_MAX:
            self._below.clear()  # they are asked for once more
            self.tally["pruning_forgotten"] += 1
        self._below[key] = seq
