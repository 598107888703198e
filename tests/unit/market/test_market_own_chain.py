"""Our chain only grows where peers say that it ends, and a restart knows all that it says."""

from __future__ import annotations

from functools import partial

from attrs import evolve
from ledger_deals import ALICE, BOB, NET, Chain
from market_players import NET as HALL_NET
from market_players import POLICY, RESULT, Hall, one, some

from ledger import chain as chains
from ledger.chain import Head
from ledger.model import Entry, Kind
from ledger.proof import Tree
from ledger.statements import Checkpoint
from mesh.ids import PeerId
from mesh.market.order import State
from mesh.market.own_chain import UNCONFIRMED, OwnChain, read_past
from mesh.messages import Ask, Settled
from mesh.sansio import AppendEntry, ChainConfirmed, Collected, LineSet, Send, Started, Submitted

US = PeerId(ALICE.key)
LEASE_S = (POLICY.ttl_ms + POLICY.margin_ms) / 1000


def own(chain: list[Entry], **changes: object) -> OwnChain:
    given = {"head_every": 1_024, "is_confirmed": True, **changes}
    return OwnChain(read_past(US, NET, chain), ALICE.sign, **given)  # type: ignore[arg-type]


def test_the_past_is_what_is_open_and_the_last_of_what_is_closed() -> None:
    buyer = Chain(ALICE)
    first, second = (buyer.alloc(BOB, nonce=bytes([n]) * 16) for n in range(2))
    settle, use = buyer.settle(BOB, first), buyer.use(BOB, second)
    theirs = Chain(BOB).alloc(ALICE)
    claim, line = buyer.claim(theirs), buyer.line(BOB, 70)
    entries = [first, second, settle, use, claim, line]
    past = read_past(US, NET, entries)
    assert past.head == Head.after(line)
    assert past.allocs == (second.encode(),)
    assert past.uses == (use.encode(),)
    assert past.closings == (settle.encode(),)
    assert past.claims == (theirs.id,)
    assert past.lines == ((BOB.key, 70),)
    assert past.frontier.root() == Tree(entry.id for entry in entries).root()


def test_a_head_over_everything_is_signed_every_so_many_entries() -> None:
    chain = own([], head_every=3)
    appended: list[Entry] = []
    for limit in range(7):
        _, actions = chain.append(partial(_line, limit), 1)
        appended += [Entry.decode(action.entry) for action in some(actions, AppendEntry)]
    kinds = [entry.content.kind for entry in appended]
    assert kinds.count(Kind.HEAD) == 3
    for place, entry in enumerate(appended):
        if entry.content.kind is Kind.HEAD:
            root = Tree(before.id for before in appended[:place]).root()
            assert Checkpoint.decode(entry.content.terms).root == root
    assert read_past(US, NET, appended).frontier == chain._frontier, "a restart goes on the same"


def _line(limit: int, head: Head, wall_ms: int) -> tuple[Head, Entry]:
    return chains.line(head, limit, BOB.key, wall_ms=wall_ms, sign=ALICE.sign)


def test_a_chain_that_is_not_confirmed_says_why_it_does_not_grow() -> None:
    assert own([], is_confirmed=False).why_not() == UNCONFIRMED


def test_only_what_follows_is_taken_up() -> None:
    buyer = Chain(ALICE)
    first, second, third = (buyer.alloc(BOB, nonce=bytes([n]) * 16) for n in range(3))
    chain = own([first])
    assert not chain.take_up(third)
    assert chain.take_up(second)
    assert chain.head == Head.after(second)


# --- the kernel -----------------------------------------------------------------------------------


def restored(hall: Hall, kept: int, now: float) -> tuple[bytes, ...]:
    """The buyer's node starts from a backup that has only so many entries; what it lacks."""
    player = hall.buyer
    lost = tuple(entry.encode() for entry in player.entries[kept:])
    del player.entries[kept:]
    player._head = read_past(player.peer, HALL_NET, player.entries).head
    player.boot(is_confirmed=False)
    player.told(Started(), now)
    return lost


def confirmed(hall: Hall, lost: tuple[bytes, ...], now: float) -> list[object]:
    """Peers held them: they are durable again, and the kernel hears of them."""
    for data in lost:
        hall.buyer._append(Entry.decode(data), is_own=True)
    return list(hall.buyer.told(ChainConfirmed(lost), now))


def test_nothing_is_asked_or_awarded_before_the_chain_is_confirmed() -> None:
    hall = Hall()
    hall.buyer.boot(is_confirmed=False)
    hall.buyer.told(Started(), 0.0)
    for seller in hall.sellers:
        hall.offers(seller, 0.0)
    assert some(hall.buyer.told(Submitted(hall.order), 1.0), Ask) == []
    assert (hall.record.state, hall.record.reason) == (State.WAITING, UNCONFIRMED)
    assert some(hall.buyer.told(ChainConfirmed(()), 2.0), Ask), "at once, not in a minute"
    assert hall.buyer.told(ChainConfirmed(()), 3.0) == [], "once"


def test_a_lease_does_not_end_while_what_became_of_it_cannot_be_heard() -> None:
    """Nothing can be awarded yet, so waiting costs nothing: a finished run would be thrown away."""
    hall = Hall()
    award = hall.running()
    (seller, *_) = hall.sellers
    lost = restored(hall, kept=1, now=1.0)
    assert some(hall.got(seller, seller.done(award), 2.0), Send) == []
    later = 1.0 + LEASE_S
    hall.buyer.woken("lease", hall.task, 1, later)
    assert hall.record.state is State.RUNNING
    asked = [action.message for action in some(confirmed(hall, lost, later + 1.0), Send)]
    assert asked == [award], "it may say so again only when its lease has long run out"
    hall.buyer.woken("lease", hall.task, 1, later + LEASE_S)
    assert hall.record.state is State.RUNNING, "from now on it has time for the answer"
    hall.got(seller, seller.done(award), later + LEASE_S)
    hall.buyer.told(Collected(hall.task, 1, RESULT.output, ""), later + LEASE_S)
    assert (hall.record.state, hall.record.moves) == (State.DONE, 0)


def test_a_winner_that_declines_after_a_restart_makes_room_for_another_at_once() -> None:
    hall = Hall()
    award = hall.award()
    (seller, other, *_) = hall.sellers
    confirmed(hall, restored(hall, kept=1, now=1.0), 2.0)
    hall.offers(other, 2.5)
    hall.got(seller, seller.declined(award), 3.0)
    assert hall.record.state is State.WAITING
    hall.buyer.woken("ask", hall.task, hall.record.round, 3.0 + POLICY.retry_pause_s(0))
    assert hall.record.state is State.ASKING
    assert hall.kinds == [Kind.ALLOC, Kind.VOID]


def test_a_node_of_an_old_backup_goes_on_where_its_chain_really_ends() -> None:
    hall = Hall()
    award = hall.running()
    (seller, *_) = hall.sellers
    lost = restored(hall, kept=0, now=1.0)
    assert some(hall.got(seller, seller.done(award), 2.0), Send) == []
    confirmed(hall, lost, 3.0)
    assert hall.buyer.kernel.head.pending == Entry.decode(award.entry).content.pending
    hall.got(seller, seller.done(award), 4.0)
    hall.buyer.told(Collected(hall.task, 1, RESULT.output, ""), 5.0)
    assert hall.record.state is State.DONE
    assert hall.kinds == [Kind.ALLOC, Kind.SETTLE]


def test_a_payment_that_the_backup_lacks_is_known_again_and_not_made_twice() -> None:
    hall = Hall()
    award = hall.running()
    (seller, *_) = hall.sellers
    hall.got(seller, seller.done(award), 1.0)
    hall.buyer.told(Collected(hall.task, 1, RESULT.output, ""), 2.0)
    lost = restored(hall, kept=1, now=3.0)
    confirmed(hall, lost, 4.0)
    assert hall.record.settle is not None
    assert one(hall.got(seller, seller.done(award), 5.0), Settled).entry == lost[0]
    assert hall.kinds == [Kind.ALLOC, Kind.SETTLE]


def test_an_award_that_the_backup_lacks_burns_its_fence() -> None:
    hall = Hall()
    hall.running()
    old = evolve(hall.record, state=State.WAITING, round=0, fence=0, executor=None)
    hall.buyer.records = {hall.task: old}
    lost = restored(hall, kept=0, now=1.0)
    for seller in hall.sellers:
        hall.offers(seller, 8.0)
    asks = some(confirmed(hall, lost, 9.0), Ask)
    assert {ask.round for ask in asks} == {2}, "the first one is on the chain"


def test_a_line_is_set_by_an_entry_and_only_on_a_confirmed_chain() -> None:
    hall = Hall()
    buyer = PeerId(BOB.key)
    one(hall.buyer.told(LineSet(buyer, 5), 1.0), AppendEntry)
    assert hall.buyer.kernel.credit.limit(buyer) == 5
    hall.buyer.boot(is_confirmed=False)
    hall.buyer.told(Started(), 2.0)
    assert hall.buyer.told(LineSet(buyer, 6), 2.0) == []
    assert hall.buyer.told(LineSet(hall.buyer.peer, 6), 2.0) == [], "nor for oneself"
