"""How entries from others get into the store: what is cheap is checked first, and once.

size → id → *have it already?* → strict decode and terms → signatures, in threads → one writer.
Whatever arrives from elsewhere may be wrong in any way: it is refused and counted, never raised.

Two things here are policy of this replica and no rule about entries, or replicas would differ for
ever: an entry from the future waits in a bounded queue, and a chain that forked, whose author can
make entries without end, has a budget.

In a cold start a chain comes as runs of entries that link. The signature of a run's last entry is
checked, and vouches for all before it; what is vouched for waits in the store for `check`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from types import TracebackType
from typing import TypeAlias, TypeVar

from attrs import asdict, frozen, mutable

from ledger import keys
from ledger.chain import check_signatures
from ledger.errors import BadEntry
from ledger.filed import Draft, Filed, draft, vouched
from ledger.glance import Glance, runs
from ledger.holdings import ChainKey
from ledger.keys import Verify, entry_message
from ledger.model import AnyBody, Entry
from ledger.shapes import BodyShape
from ledger.store import Store
from ledger.validity import peer_message

CHUNK = 64
"""Entries whose signatures one thread checks at a time: few enough to share, enough to be worth a
hop to another thread."""
THREADS = 2
"""That check signatures, if nobody else lends any. More than there are cores cost up to 8 %
more: they only wake one another."""
FUTURE_MAX_MS = 5 * 60_000
"""How far ahead of ours an entry's clock may be."""
EARLY_MAX = 1024
"""Entries from the future that wait; the farthest go first."""
FORKED_PER_HOUR = 256
"""Entries of one forked chain that are taken in an hour."""
FORKED_KEPT_MAX = 4096
"""Forked chains whose hour is remembered, and authors whose word is not taken."""

_HOUR_MS = 3_600_000

V = TypeVar("V")
Spread: TypeAlias = Callable[
    [Callable[[Sequence[Draft]], list[bool]], Sequence[Sequence[Draft]]], Iterable[list[bool]]
]
"""As the built-in `map`: of each chunk of entries, which ones are signed; in threads or not."""


@frozen
class Merged:
    """What became of a batch."""

    entries: tuple[Entry, ...] = ()
    """New, checked and durable: what to fold, and to tell others."""
    vouched: int = 0
    """New and durable, to be checked later."""
    known: int = 0
    early: int = 0
    """From the future: they wait."""
    refused: int = 0
    over_budget: int = 0
    """Of a chain that forked: not taken this hour."""


@mutable
class _Tally:
    """What became of the rest of a batch."""

    vouched: int = 0
    known: int = 0
    early: int = 0
    refused: int = 0
    over_budget: int = 0


class Merger:
    """The one writer of others' entries. Give it a `Store` of its own; close it when done.

    Every method blocks, for as long as the signatures and the disk take: run it in a thread. Times
    are Unix milliseconds by our own clock. *spread* runs the signature checks; the default is
    threads of its own. Raises LedgerError where the store does.
    """

    def __init__(
        self, store: Store, *, spread: Spread | None = None, verify: Verify = keys.verify
    ) -> None:
        self.store = store
        self._pool = ThreadPoolExecutor(THREADS) if spread is None else None
        self._spread: Spread = spread or self._in_pool
        self._verify = verify
        self._counts: Counter[str] = Counter()
        self._early: dict[bytes, Filed] = {}
        self._hours: OrderedDict[ChainKey, tuple[int, int]] = OrderedDict()
        self._liars: OrderedDict[ChainKey, None] = OrderedDict()

    def close(self) -> None:
        """Let the threads go; the store stays open."""
        if self._pool:
            self._pool.shutdown()

    def __enter__(self) -> Merger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def merge(self, wires: Iterable[bytes], now_ms: int) -> Merged:
        """Take in encoded entries, each one checked in full."""
        tally = _Tally()
        return self._merge(self._read(wires, tally), now_ms, tally)

    def merge_cold(self, wires: Iterable[bytes], now_ms: int) -> Merged:
        """Take in encoded entries, chains in order: the last of each run is checked in full.

        What needs a closer look gets it: runs of one, chains that forked, authors whose word was
        no good before, and clocks from the future.
        """
        tally = _Tally()
        return self._merge_cold(self._read(wires, tally), now_ms, tally)

    def merge_glances(self, glances: Sequence[Glance], now_ms: int, *, cold: bool) -> Merged:
        """As `merge_cold` or `merge`, of what was glanced at already."""
        tally = _Tally()
        if cold:
            return self._merge_cold(glances, now_ms, tally)
        return self._merge(glances, now_ms, tally)

    def release(self, now_ms: int) -> Merged:
        """Take in what waited for its time, as far as that has come."""
        tally = _Tally()
        due = [f for f in self._early.values() if not _is_early(f.hlc, now_ms)]
        self.store.file(due)
        for filed in due:
            del self._early[filed.id]
        return self._told(due, tally)

    def check(self, limit: int) -> Merged:
        """Look closely at up to *limit* entries that were only vouched for; forget the bad ones.

        Call it again as long as it finds any: then the store holds nothing unchecked.
        """
        return self.check_these(self.store.vouched(limit))

    def check_these(self, glances: Sequence[Glance]) -> Merged:
        """As `check`, before these are told to others."""
        tally = _Tally()
        good = self._signed(self._sound(glances, tally), tally)
        self.store.file(good)
        kept = {filed.id for filed in good}
        bad = [glance for glance in glances if glance.id not in kept]
        self.store.drop_vouched(glance.id for glance in bad)
        for glance in bad:
            _remember(self._liars, glance.key, None)
        return self._told(good, tally)

    def statistics(self) -> Mapping[str, int]:
        """Entries by what became of them, since the start; how many wait."""
        return {**self._counts, "waiting": len(self._early)}

    def _merge(self, glances: Sequence[Glance], now_ms: int, tally: _Tally) -> Merged:
        due = self._due(self._fresh(glances, tally), now_ms, tally)
        self.store.file(due)
        return self._told(due, tally)

    def _merge_cold(self, glances: Iterable[Glance], now_ms: int, tally: _Tally) -> Merged:
        closely: list[Glance] = []
        loosely: list[list[Glance]] = []
        for run in runs(glances):
            if len(run) > 1 and self._takes_word_of(run, now_ms):
                loosely.append(run)
                closely.append(run[-1])
            else:
                closely += run
        due = self._due(self._fresh(closely, tally), now_ms, tally)
        before = self._vouched(loosely, {filed.id for filed in due}, tally)
        tally.vouched = self.store.file([*due, *map(vouched, before)]) - len(due)
        tally.known += len(before) - tally.vouched
        return self._told(due, tally)

    def _read(self, wires: Iterable[bytes], tally: _Tally) -> list[Glance]:
        good = []
        for wire in wires:
            try:
                good.append(Glance.decode(wire))
            except BadEntry:
                tally.refused += 1
        return good

    def _fresh(self, glances: Sequence[Glance], tally: _Tally) -> list[Glance]:
        """Those that the store has not, each once."""
        unique = {glance.id: glance for glance in glances}
        known = self.store.which(list(unique)) | self._early.keys()
        fresh = [glance for entry_id, glance in unique.items() if entry_id not in known]
        tally.known += len(glances) - len(fresh)
        return fresh

    def _due(self, glances: Iterable[Glance], now_ms: int, tally: _Tally) -> list[Filed]:
        """Those that are good in every way, and whose time has come."""
        sound = self._sound(glances, tally)
        affordable = self._affordable(sound, now_ms)
        tally.over_budget += len(sound) - len(affordable)
        due = []
        for filed in self._signed(affordable, tally):
            if _is_early(filed.hlc, now_ms):
                self._hold(filed)
                tally.early += 1
            else:
                due.append(filed)
        return due

    def _sound(self, glances: Iterable[Glance], tally: _Tally) -> list[Draft]:
        """Those that are entries by the bytes, but for their signatures."""
        sound = []
        for glance in glances:
            try:
                sound.append(draft(glance))
            except BadEntry:
                tally.refused += 1
        return sound

    def _signed(self, drafts: Sequence[Draft], tally: _Tally) -> list[Filed]:
        """Those that everybody signed who has to."""
        chunks = [drafts[at : at + CHUNK] for at in range(0, len(drafts), CHUNK)]
        verdicts = chain.from_iterable(self._spread(self._are_signed, chunks))
        signed = [filed for (filed, _), good in zip(drafts, verdicts, strict=True) if good]
        tally.refused += len(drafts) - len(signed)
        return signed

    def _are_signed(self, chunk: Sequence[Draft]) -> list[bool]:
        """Runs in another thread: touches nothing but the entries."""
        return [self._is_signed(filed, body) for filed, body in chunk]

    def _is_signed(self, filed: Filed, body: AnyBody) -> bool:
        if isinstance(body, BodyShape):
            return self._verify(body.peer, peer_message(body), body.peer_sig) and self._verify(
                body.author, entry_message(filed.id), filed.sig
            )
        try:
            check_signatures(Entry(filed.body, filed.sig), self._verify)
        except BadEntry:
            return False
        return True

    def _vouched(
        self, loosely: Iterable[Sequence[Glance]], good: set[bytes], tally: _Tally
    ) -> list[Glance]:
        """What the last entry of each run vouches for, if that one is good, now or before."""
        vouched: list[Glance] = []
        for *before, last in loosely:
            if last.id in good or self.store.entry(last.id) is not None:
                vouched += before
            else:
                tally.refused += len(before)
        return vouched

    def _takes_word_of(self, run: Sequence[Glance], now_ms: int) -> bool:
        key = run[0].key
        if key in self._liars or _is_early(max(glance.hlc for glance in run), now_ms):
            return False
        return key[0] != b"" and not self.store.holding(*key).forked

    def _affordable(self, drafts: Sequence[Draft], now_ms: int) -> Sequence[Draft]:
        """Those of chains that never forked, or that have some of this hour's budget left.

        What proves a fork is not yet of a forked chain. Entries without an author, proofs of
        forks, have one budget together: the two arms of a fork prove it without them.
        """
        costly = {
            key
            for key in {filed.key for filed, _ in drafts}
            if key[0] == b"" or self.store.holding(*key).forked
        }
        if not costly:
            return drafts
        return [d for d in drafts if d[0].key not in costly or self._spends(d[0].key, now_ms)]

    def _spends(self, key: ChainKey, now_ms: int) -> bool:
        hour, spent = self._hours.get(key, (0, 0))
        if hour != now_ms // _HOUR_MS:
            hour, spent = now_ms // _HOUR_MS, 0
        _remember(self._hours, key, (hour, spent + 1))
        return spent < FORKED_PER_HOUR

    def _hold(self, filed: Filed) -> None:
        self._early[filed.id] = filed
        if len(self._early) > EARLY_MAX:
            farthest = max(self._early.values(), key=lambda f: (f.hlc, f.id))
            del self._early[farthest.id]
            self._counts["early_dropped"] += 1

    def _told(self, good: Sequence[Filed], tally: _Tally) -> Merged:
        counts = asdict(tally)
        self._counts.update(counts | {"entries": len(good)})
        return Merged(entries=tuple(Entry(filed.body, filed.sig) for filed in good), **counts)

    def _in_pool(
        self, verify: Callable[[Sequence[Draft]], list[bool]], chunks: Sequence[Sequence[Draft]]
    ) -> Iterable[list[bool]]:
        assert self._pool is not None
        return self._pool.map(verify, chunks)


def _is_early(hlc: int, now_ms: int) -> bool:
    return (hlc >> 16) > now_ms + FUTURE_MAX_MS


def _remember(kept: OrderedDict[ChainKey, V], key: ChainKey, value: V) -> None:
    """The newest `FORKED_KEPT_MAX`."""
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > FORKED_KEPT_MAX:
        kept.popitem(last=False)
