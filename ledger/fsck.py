"""Is a store what it was when it was written? Every flipped bit of an entry, every sum, every gap.

Nothing is mended and nothing is written. What is found has its way out beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from attrs import frozen

from ledger.chain import Head, check_link, origin
from ledger.errors import BadEntry, BrokenChain, Corruption
from ledger.holdings import Holding, Total
from ledger.model import Entry
from ledger.state import Accounts
from ledger.store import Store

ACCOUNTS_MAX = 1_000_000
"""Entries that are folded: about a kilobyte of memory for each deal. Of more, the rest is not."""

_FETCH = "move the file away and fetch the entries from other nodes again"
_NEVER = "do not sign with this key any more: rotate it, mesh key rotate"


@frozen
class Problem:
    """Something that is not as it should be, and the way out."""

    what: str
    hint: str


Seen = Callable[[int], None]
"""Hears how many entries were looked at."""


def examine(
    store: Store, own: Collection[bytes] = (), seen: Seen = lambda _: None
) -> Iterator[Problem]:
    """All that is wrong with *store*. The chains of the keys in *own* must be whole, too."""
    with store.snapshot():
        yield from _examine(store, own, seen)


def _examine(store: Store, own: Collection[bytes], seen: Seen) -> Iterator[Problem]:
    is_sound = True
    for damage in store.damage(seen=seen):
        is_sound = False
        yield Problem(damage.reason, damage.hint)
    if not is_sound:
        return  # what follows reads the same bytes
    try:
        for holding in store.holdings():
            yield from _counted(store, holding)
            if holding.author in own:
                yield from _own(store, holding)
        yield from _balanced(store)
    except (Corruption, BadEntry) as error:
        yield Problem(error.reason, _FETCH)


def _counted(store: Store, holding: Holding) -> Iterator[Problem]:
    """That what is held of a chain is what is said to be held."""
    if holding.low:  # some of it was pruned: `Store.damage` has compared that with its HEAD
        return
    total, seqs, last = Total(), 0, -1
    gap = False
    for seq, entry_id in store.places(holding.author, holding.net):
        total = total.plus((entry_id,))
        gap = gap or seq > last + 1
        last = seq
        seqs = seqs if gap else seq + 1
    if (total, seqs, last + 1) != (holding.total, holding.height, holding.top):
        yield Problem(f"the counts of {_name(holding)} are not those of its entries", _FETCH)


def _own(store: Store, holding: Holding) -> Iterator[Problem]:
    """That our own chain goes on from its start, and that we signed nothing twice.

    What was pruned is under the HEAD at the low mark, which `damage` has held it to.
    """
    head: Head | None = None
    for entry in store.chain(holding.author, holding.low - 1):
        body = entry.content
        if body.net != holding.net:
            continue
        if head is None and holding.low:
            head = Head.after(entry)
            continue
        alloc = store.entry(body.ref) if body.ref else None
        try:
            if head is None:
                head = _origin(store, entry)
            head = check_link(head, entry, alloc.content if alloc else None)
        except BrokenChain as error:
            is_fork = head is not None and body.seq < head.seq
            what = "forked" if is_fork else "is broken"
            told = f"our own chain {what} at seq {body.seq}: {error.reason}"
            yield Problem(told, _NEVER if is_fork else _FETCH)
            return


def _origin(store: Store, first: Entry) -> Head:
    """Where the chain begins whose first entry here is *first*. Raises BrokenChain."""
    body = first.content
    if body.seq:
        return Head.start(body.author, body.net)  # its start is missing: `check_link` says so
    return origin(body, store.entry(body.prev))


def _balanced(store: Store) -> Iterator[Problem]:
    """That on every network, what is owed is what is earned."""
    accounts: dict[bytes, Accounts] = {}
    for count, entry in enumerate(store.entries()):
        if count == ACCOUNTS_MAX:
            return
        net = entry.content.net
        if net not in accounts:
            accounts[net] = Accounts(net, store)
        accounts[net].add(entry)
    for net, folded in accounts.items():
        every = folded.all().values()
        owed = sum(account.posted_debit for account in every)
        earned = sum(account.posted_credit for account in every)
        if owed != earned:
            told = f"net {net.hex()}: {owed} µcr owed and {earned} earned do not sum to zero"
            yield Problem(told, "this is our fault: please report it, with the file")


def _name(holding: Holding) -> str:
    return f"chain {holding.author.hex()}" if holding.author else "the proofs of forks"
