"""Replication: this node's ledger and the others' become equal. A thin shell around `ledger`.

Our own new entries are **pushed** by gossip. What gossip brings is merged in batches. What it did
not bring is **repaired**: now and then with the next peer of a rota, chain by chain, and entry by
entry where that cannot be enough. A round that moved entries is followed up soon: where something
was missing there is more.

Everything that blocks is done one piece at a time in a thread, on a connection of its own, and its
transactions are short: nobody holds up the performer's commits.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from random import Random
from time import time_ns
from typing import TypeVar

import trio
from attrs import define, field, frozen

from ledger.chain import Head
from ledger.errors import Corruption, LedgerError
from ledger.merge import Merged, Merger
from ledger.model import Entry, Kind
from ledger.sync import OverBudget, Replica, Synced, serve, sync
from ledger.turns import HungUp, OtherVersion, Scope, SyncError
from mesh.errors import MeshError, PeerError, Stopped, Unavailable
from mesh.forks import Forks
from mesh.ids import PeerId, short_peer
from mesh.network.calls import Call
from mesh.network.gossip import ENTRIES
from mesh.network.network import LEDGER, Network
from mesh.rota import Rota
from mesh.rumours import Rumours
from mesh.sansio import ChainConfirmed, Event, Learned

_log = logging.getLogger("mesh.replication")

FOLLOW_UPS_MAX = 3
"""In a row, each after an eighth of a period: under steady work every round moves something."""
TELL_S = 5.0
"""How long whoever decides may take to hear of what was merged, when all else ends."""
FULL_PER_S = 1000
"""Entries: who has compared so many one by one rests a second at least, 0.5 % of its time."""
CONFIRMING_MAX = 3
"""Peers that are asked where our own chain ends."""
LEARNED_MAX = 256
"""Entries in one event."""
OUTBOX_MAX = 4_096
"""Entries that wait to be published; a repair brings what is dropped."""
_FORKED_US = (
    "this node's key has signed two entries for one place of its chain: others accept no more debts"
    " of it",
    "was an old backup restored, or does another node run with this key? stop that one; then move"
    " the key file away, and start as a new node: what the old key owes stays owed",
)
_BEHIND_US = (
    "others hold entries that this node signed and has lost: nobody told in time",
    "start it again: it takes them up",
)
T = TypeVar("T")


@frozen
class ReplicationConfig:
    """Times in seconds."""

    is_bilateral: bool = False
    """T0: nothing is pushed nor repaired; peers are asked for our chain's end, and are answered."""
    repair_s: float = 30.0
    full_repair_s: float = 3600.0
    gather_s: float = 0.1
    """How long what gossip brings is gathered: a commit costs as much for one as for many."""
    batch: int = 256
    tidy_s: float = 10.0
    """How often it is looked whether entries from the future have come due."""
    confirm_s: float = 30.0
    """How long nobody may answer where our chain ends, while peers are connected."""
    company_s: float = 2.0
    """How long more peers than one are waited for."""
    retry_s: float = 1.0


@define(eq=False)
class Replication:
    """Keeps one node's ledger equal to the others'."""

    merger: Merger
    """With a store of its own."""
    rumours: Rumours
    peer: PeerId
    head: Head
    """Where our own chain ended when the node started."""
    is_confirmed: bool
    """Whether nobody has to be asked where it ends: a key that this very start made."""
    post: Callable[[Event], Awaitable[None]]
    alarm: Callable[[MeshError], None]
    """Ends the node."""
    rng: Random
    tally: Counter[str]
    config: ReplicationConfig = field(factory=ReplicationConfig)
    network: Network | None = None
    """Set once it is there."""
    _turn: trio.Lock = field(factory=trio.Lock, init=False)
    _thread: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1), init=False)
    _replica: Replica = field(init=False)
    _news: list[Entry] = field(factory=list, init=False)
    _forks: Forks = field(init=False)
    _outbox: deque[bytes] = field(factory=deque, init=False)
    _something_to_say: trio.Event = field(factory=trio.Event, init=False)
    _unseen: deque[Entry] = field(factory=lambda: deque(maxlen=OUTBOX_MAX), init=False)
    _something_to_see: trio.Event = field(factory=trio.Event, init=False)
    _is_cold: bool = field(default=False, init=False)
    """We had nothing, and nobody has told us all yet."""
    _is_unchecked: bool = field(default=True, init=False)
    """Some entries may only be vouched for."""
    _rota: Rota = field(init=False)
    _unequal: int = field(default=0, init=False)
    """Rounds in a row after which both still differed, though chains were compared twice."""
    _full_at: float = field(default=0.0, init=False)
    _rested_at: float = field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self._rota = Rota(self.rng)
        self._forks = Forks(self.merger, self.head.net, _now_ms)
        self._replica = Replica(
            self.merger, _now_ms, trio.current_time, self.in_turn, self._take_note
        )

    async def run(self) -> None:
        """Until it is cancelled."""
        await self.in_turn(self._recall)
        self._full_at = trio.current_time() + self.config.full_repair_s * self.rng.random()
        async with trio.open_nursery() as nursery:
            services = [self._look, self._tidy, self._confirm]
            if not self.config.is_bilateral:
                services += [self._say, self._merge, self._repair]
            for service in services:
                nursery.start_soon(service)

    def statistics(self) -> dict[str, int]:
        """Counters since the start, and what waits."""
        merged = {f"ledger_merged_{name}": n for name, n in self.merger.statistics().items()}
        return {**self.tally, **merged, "ledger_outbox": len(self._outbox)}

    # --- gossip -------------------------------------------------------------------------------

    def push(self, entries: Iterable[Entry]) -> None:
        """Tell everybody of *entries*, which are durable here. Never waits."""
        if self.config.is_bilateral:
            return
        for entry in entries:
            self.rumours.note([entry.id])
            self._publish(entry.encode())

    async def learn_from(self, wires: Sequence[bytes]) -> Merged:
        """Merge encoded entries that came by another way: a file, or a witness's evidence."""
        return await self._quietly(partial(self.merger.merge, wires, _now_ms()))

    def look_at(self, entries: Sequence[Entry]) -> None:
        """Others' *entries* that came by another way, and are durable here. Never waits."""
        self.rumours.note(entry.id for entry in entries)
        self._unseen.extend(entries)
        self._something_to_see.set()

    async def _look(self) -> None:
        while True:
            await self._something_to_see.wait()
            self._something_to_see = trio.Event()
            seen = [self._unseen.popleft() for _ in range(len(self._unseen))]
            await self._quietly(partial(self._looked_at, seen))

    def _looked_at(self, entries: Sequence[Entry]) -> Merged:
        return Merged(entries=tuple(self._forks.look_at(entries)))

    def _publish(self, wire: bytes) -> None:
        if len(self._outbox) >= OUTBOX_MAX:
            self.tally["ledger_unsaid"] += 1
            return
        self._outbox.append(wire)
        self._something_to_say.set()

    async def _say(self) -> None:
        while True:
            await self._something_to_say.wait()
            self._something_to_say = trio.Event()
            while self._outbox:
                try:
                    await self._ways.publish(ENTRIES, self._outbox.popleft())
                    self.tally["ledger_pushed"] += 1
                except MeshError:
                    self.tally["ledger_unsaid"] += 1

    async def _merge(self) -> None:
        while True:
            wires = await self.rumours.take(self.config.batch, self.config.gather_s)
            await self._quietly(partial(self.merger.merge, wires, _now_ms()))

    # --- what was merged ----------------------------------------------------------------------

    async def in_turn(self, blocking: Callable[[], T]) -> T:
        """Run *blocking* in the thread, then tell what it found, before anybody else's turn.

        The way to write into the merger's store without a second writer. Raises LedgerError.
        """
        async with self._turn:
            result = await trio.to_thread.run_sync(blocking, limiter=self._thread)
            # A call may be cut off here; what it brought is ours.
            with trio.CancelScope(shield=True), trio.move_on_after(TELL_S):
                await self._tell()
        return result

    async def _quietly(self, merge: Callable[[], Merged]) -> Merged:
        """What *merge* merged, in its turn; a disk that fails for now is only counted."""
        try:
            return await self.in_turn(lambda: self._note(merge()))
        except LedgerError as error:
            self.blame_disk(error)
            return Merged()

    def blame_disk(self, error: LedgerError) -> None:
        """Count a failure; one that will not pass ends the node."""
        self.tally["ledger_disk_failures"] += 1
        _log.warning("the ledger: %s", error)
        if isinstance(error, Corruption):
            self.alarm(Stopped(f"the ledger: {error.reason}", error.hint))

    def _note(self, merged: Merged) -> Merged:
        self._take_note(merged)
        return merged

    def _take_note(self, merged: Merged) -> None:
        """Remember what `_tell` is to tell. In the thread."""
        self._news += merged.entries
        self._is_unchecked = self._is_unchecked or merged.vouched > 0
        self._news += self._forks.look_at(merged.entries)

    def _recall(self) -> None:
        self._is_cold = not self.merger.store.total().count
        self._news += self._forks.recall()

    async def _tell(self) -> None:
        news, self._news = self._news, []
        forks = self._forks.take()
        self.rumours.note(entry.id for entry in news)
        for fork in forks:
            self.tally["ledger_forks"] += 1
            _log.warning("%s forked its chain", short_peer(fork.author))
            for wire in fork.proof:
                self._publish(wire)
        if any(fork.author == self.peer for fork in forks):
            self.alarm(Stopped(*_FORKED_US))
        elif self.is_confirmed and any(map(self._is_ours, news)):
            self.alarm(Stopped(*_BEHIND_US))
        ours = [entry.encode() for entry in news if self._concerns_us(entry)]
        forked = tuple(fork.author for fork in forks)
        for at in range(0, max(len(ours), bool(forked)), LEARNED_MAX):
            await self.post(Learned(tuple(ours[at : at + LEARNED_MAX]), forked))
            forked = ()

    def _is_ours(self, entry: Entry) -> bool:
        return (entry.content.author, entry.content.net) == (self.peer, self.head.net)

    def _concerns_us(self, entry: Entry) -> bool:
        body = entry.content
        if body.net != self.head.net or body.author == self.peer:
            return False  # what we wrote ourselves, `_confirm` tells of
        return body.peer == self.peer or body.kind is Kind.KEYOP

    # --- calls --------------------------------------------------------------------------------

    async def answer(self, call: Call) -> None:
        """Serve a peer's call. Raises PeerError for its faults, Unavailable."""
        try:
            synced = await serve(call, self._replica)
        except (HungUp, OverBudget, OtherVersion) as error:
            raise Unavailable(error.reason) from None
        except SyncError as error:
            raise PeerError(f"ledger: {error.reason}") from None
        except LedgerError as error:
            self.blame_disk(error)
            raise Unavailable("its ledger fails") from None
        self._count(synced)
        self.tally["ledger_rounds_served"] += 1

    async def _sync_with(self, peer: PeerId, scopes: Sequence[Scope]) -> Synced | None:
        """One call of ours; None if it came to nothing, which is counted."""
        try:
            async with self._ways.call(peer, LEDGER) as call:
                synced = await sync(call, self._replica, scopes, cold=self._is_cold)
        except (HungUp, OverBudget, OtherVersion, Unavailable) as error:
            _log.info("no sync with %s: %s", short_peer(peer), error)
            self.tally["ledger_rounds_failed"] += 1
        except SyncError as error:
            self.tally["ledger_rounds_failed"] += 1
            self._ways.penalize(peer, f"ledger: {error.reason}")
        except LedgerError as error:
            self.blame_disk(error)
        else:
            self._count(synced)
            self.tally["ledger_rounds"] += 1
            self._is_cold = False
            return synced
        return None

    def _count(self, synced: Synced) -> None:
        for name in ("new", "sent", "refused", "withheld", "bytes_in", "bytes_out"):
            self.tally[f"ledger_{name}"] += getattr(synced, name)

    @property
    def _ways(self) -> Network:
        assert self.network is not None
        return self.network

    # --- our own chain ------------------------------------------------------------------------

    async def _confirm(self) -> None:
        """Learn from others where our chain ends, before anything is signed on it.

        A backup that was restored has forgotten what was signed since: to go on from there would
        fork us.
        """
        lost: tuple[bytes, ...] | None = () if self.is_confirmed else None
        while lost is None:
            await self._wait_for_company()
            lost = await self._ask_for_our_chain()
        self.tally["ledger_lost"] += len(lost)
        await self.post(ChainConfirmed(lost))

    async def _wait_for_company(self) -> None:
        """Until somebody is connected, and then for a moment for more."""
        pause_s = self.config.retry_s / 4
        waited_s = 0.0
        while waited_s < self.config.company_s:
            company = len(self._ways.connected())
            if company >= CONFIRMING_MAX:
                break
            await trio.sleep(pause_s)
            waited_s += pause_s if company else 0.0

    async def _ask_for_our_chain(self) -> tuple[bytes, ...] | None:
        """What was lost of it; None as long as that is not known, or has a gap."""
        silent_since = trio.current_time()
        while peers := self._some_peers():
            answered = await self._ask(peers)
            await self._check_all()
            if answered or trio.current_time() >= silent_since + self.config.confirm_s:
                self.tally["ledger_unconfirmed"] += not answered
                lost = await self.in_turn(self._beyond_our_head)
                if lost is not None:
                    return lost
                _log.warning("our own chain has a gap that nobody has filled yet")
            await trio.sleep(self.config.repair_s if answered else self.config.retry_s)
        return None

    def _some_peers(self) -> list[PeerId]:
        """One, where all is to be fetched; else a few, since one may not know."""
        connected = self._ways.connected()
        most = 1 if self._is_cold else CONFIRMING_MAX
        return self.rng.sample(connected, min(most, len(connected)))

    async def _ask(self, peers: Sequence[PeerId]) -> bool:
        """Whether one of *peers* answered; the others then have little time left."""
        answered = False

        async def ask(peer: PeerId, scope: trio.CancelScope) -> None:
            nonlocal answered
            if await self._sync_with(peer, (Scope.HEADS,)) is not None:
                answered = True
                scope.deadline = min(scope.deadline, trio.current_time() + self.config.company_s)

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(ask, peer, nursery.cancel_scope)
        return answered

    def _beyond_our_head(self) -> tuple[bytes, ...] | None:
        chain = self.merger.store.chain(self.peer, self.head.seq - 1)
        lost = [entry for entry in chain if entry.content.net == self.head.net]
        seqs = [self.head.seq - 1, *(entry.content.seq for entry in lost)]
        if any(after != before + 1 for before, after in pairwise(seqs)):
            return None
        self.is_confirmed = True
        return tuple(entry.encode() for entry in lost)

    # --- repair -------------------------------------------------------------------------------

    async def _repair(self) -> None:
        while True:
            await trio.sleep(self.config.repair_s * self.rng.uniform(0.5, 1.5))
            self.tally["ledger_periods"] += 1
            for _ in range(FOLLOW_UPS_MAX):
                if not await self._repair_once():
                    break
                self.tally["ledger_follow_ups"] += 1
                await trio.sleep(self.config.repair_s / 8 * self.rng.uniform(0.5, 1.5))

    async def _repair_once(self) -> bool:
        """One round; whether it moved any entries."""
        peer = self._next_peer()
        if peer is None:
            return False
        is_full = self._is_full_due()
        scopes = (Scope.HEADS, Scope.IDS if is_full else Scope.HEADS)
        synced = await self._sync_with(peer, scopes)
        if synced is None:
            return False
        if is_full:
            await self._rest_from_full()
        self._judge(synced, is_full=is_full)
        return bool(synced.new or synced.sent)

    def _next_peer(self) -> PeerId | None:
        connected = self._ways.connected()
        return self._rota.next(connected, tuple(filter(self._ways.is_answering, connected)))

    def _is_full_due(self) -> bool:
        """By the clock, or because chains alone do not make us equal: forks have several arms."""
        now, patience = trio.current_time(), 1 if self._forks else 3
        return now >= self._full_at or (self._unequal >= patience and now >= self._rested_at)

    def _judge(self, synced: Synced, *, is_full: bool) -> None:
        self.tally["ledger_rounds_equal"] += synced.is_equal
        self._unequal = 0 if is_full or synced.is_equal else self._unequal + 1

    async def _rest_from_full(self) -> None:
        """The longer the ledger, the rarer: or one forker would have us read it all every time."""
        count = await self.in_turn(lambda: self.merger.store.total().count)
        self.tally["ledger_rounds_full"] += 1
        now = trio.current_time()
        self._full_at = now + self.config.full_repair_s
        self._rested_at = now + count / FULL_PER_S

    # --- upkeep -------------------------------------------------------------------------------

    async def _tidy(self) -> None:
        while True:
            if self.merger.statistics()["waiting"]:
                await self._quietly(partial(self.merger.release, _now_ms()))
            await self._check_all()
            await trio.sleep(self.config.tidy_s)

    async def _check_all(self) -> None:
        """Look closely at what was only vouched for, a batch at a time."""
        while self._is_unchecked:
            self._is_unchecked = False
            checked = await self._quietly(partial(self.merger.check, self.config.batch))
            self._is_unchecked = self._is_unchecked or bool(checked.entries or checked.refused)


def _now_ms() -> int:
    return time_ns() // 10**6
