"""Kernels at one table: real market cores with fast keys, messages passed by hand, virtual time.

A `Player` is one kernel and what its shell would have on disk; `told` makes it handle one event.
A `Table` carries their messages and fires their timers, in order, and writes everything down.
A `Buyer` or `Seller` is played by the test itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from random import Random
from typing import TypeVar

from attrs import evolve, frozen

from ledger import chain
from ledger.chain import Head, check_entry, check_link
from ledger.keys import terms_message, use_message
from ledger.model import KINDS_KNOWN, Body, Entry, Kind, Terms
from ledger.state import Accounts
from mesh import codec
from mesh.ids import RAW, Cid, EntryId, PeerId, TaskId, cid_of, task_id
from mesh.kernel import Kernel
from mesh.market.bidding import Shop
from mesh.market.copies import recent
from mesh.market.credit import read_books
from mesh.market.order import Order, TaskRecord
from mesh.market.own_chain import Past, read_past
from mesh.market.policy import Policy
from mesh.market.terms import (
    EMPTY_DIR,
    EMPTY_FILE,
    MOVED,
    alloc_terms,
    settle_terms,
    use_terms,
    void_terms,
)
from mesh.messages import (
    Accepted,
    Ask,
    Award,
    Bid,
    Declined,
    Done,
    Lost,
    Message,
    Offer,
    Quantiles,
    Result,
    Saved,
    Settled,
    SignedOffer,
    Slice,
    Sliced,
    Work,
)
from mesh.notices import Awarded, Notice
from mesh.resources.capacity import Capacity
from mesh.sansio import (
    Action,
    AppendEntry,
    Collect,
    Collected,
    Event,
    ForgetTenancy,
    Gossip,
    Identity,
    Notify,
    OfferReceived,
    PersistTask,
    PersistTenancy,
    Received,
    Run,
    RunEnded,
    Send,
    Started,
    StopRun,
    Submitted,
    Suspended,
    WakeAt,
    Woken,
)
from mesh.sim.keyring import Keyring

NET = b"testnet1"
WALL_MS = 1_790_000_000_000
G = 10**9
POLICY = Policy()
SHOP = Shop(
    machine=Capacity(4_000, 8 * G, 100 * G, 4),
    sold=Capacity(2_000, 4 * G, 50 * G, 2),
    price=1_000,
    speed=500_000,
    features=("wasm",),
    agent="test",
)
NEEDS = Capacity(1_000, G, G, 1)
WORK = Work(
    job=cid_of(RAW, b"job"),
    module=cid_of(RAW, b"module"),
    inputs=(cid_of(RAW, b"input"),),
    needs=NEEDS,
    fuel=10 * G,
    wall_ms=60_000,
    features=("wasm",),
)
RESULT = Result(
    status="exited",
    exit_code=0,
    detail="",
    fuel=7 * G,
    run_ms=14_000,
    output=cid_of(RAW, b"out"),
    stdout=EMPTY_FILE,
    stderr=EMPTY_FILE,
)
STATE = cid_of(RAW, b"state")
NOTHING_RUN = evolve(RESULT, output=EMPTY_DIR, fuel=0, run_ms=0)
T = TypeVar("T")


def order(buyer: PeerId, key: bytes = b"k", **changes: object) -> Order:
    """10^10 fuel for at most 20,000 µcr, within ten minutes."""
    given = Order(
        task=task_id(buyer, key),
        name=key.decode(),
        work=WORK,
        max_price=20_000,
        fee=100,
        priority=0,
        deadline_ms=600_000,
    )
    return evolve(given, **changes)  # type: ignore[arg-type]


def ask(task: TaskId, **changes: object) -> Ask:
    """The first ask of such an order."""
    given = Ask(
        task=task,
        round=1,
        work=WORK,
        priority=0,
        deadline_ms=600_000,
        fee=100,
        max_price=20_000,
        ttl_ms=POLICY.ttl_ms,
        window_ms=POLICY.window_ms,
    )
    return evolve(given, **changes)  # type: ignore[arg-type]


def some(actions: Iterable[object], kind: type[T]) -> list[T]:
    """The actions of that kind, or the sent messages and notices of that kind."""
    found: list[object] = []
    for action in actions:
        inner = action
        if isinstance(action, Send):
            inner = action.message
        elif isinstance(action, Notify):
            inner = action.notice
        found += {id(action): action, id(inner): inner}.values()
    return [item for item in found if isinstance(item, kind)]


def one(actions: Iterable[object], kind: type[T]) -> T:
    """The only one."""
    (found,) = some(actions, kind)
    return found


class Player:
    """One node: a kernel, its disk, and the chain that its entries must make."""

    def __init__(
        self,
        keyring: Keyring,
        index: int,
        policy: Policy = POLICY,
        shop: Shop = SHOP,
    ) -> None:
        self.name = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[index]
        self.identity = keyring.create(index)
        self.peer = self.identity.peer
        self.policy = policy
        self.shop = shop
        self.records: dict[TaskId, TaskRecord] = {}
        self.tenancies: dict[tuple[TaskId, int], PersistTenancy] = {}
        self.entries: list[Entry] = []
        self.received: list[Entry] = []
        self.boots = 0
        self.is_up = False
        self.now = 0.0
        self._verify = keyring.verify
        self._head = Head.start(self.peer, NET)
        self._bodies: dict[bytes, Body] = {}
        self.boot()

    def boot(self, *, is_confirmed: bool = True) -> None:
        """A new kernel from what is on disk; `told(Started())` opens it."""
        self.boots += 1
        self.is_up = True
        self.kernel = Kernel(
            self.identity,
            self.policy,
            Random(self.boots),
            past=(past := read_past(self.peer, NET, self.entries)),
            books=read_books(self.peer, Accounts(NET), [*self.entries, *self.received]),
            is_confirmed=is_confirmed,
            records=self._recent(past),
            tenancies=tuple(self.tenancies.values()),
            epoch=self.boots,
            epoch_ms=WALL_MS,
            shop=self.shop,
        )

    def _recent(self, past: Past) -> tuple[TaskRecord, ...]:
        """What a journal would give back: all open tasks, and so many of the ended ones."""
        records = list(self.records.values())
        return recent(records, self.policy.tasks_ended_max, past.awarded())

    def told(self, event: Event, now: float | None = None) -> list[Action]:
        """What the kernel does about *event*; writes are on disk when this returns."""
        self.now = max(self.now, self.now if now is None else now)
        actions = self.kernel.handle(event, self.now)
        for action in actions:
            self._write(action)
        self.check_bounds()
        return actions

    def got(self, sender: PeerId, message: Message, now: float | None = None) -> list[Action]:
        """What the kernel does about a message."""
        return self.told(Received(sender, message), now)

    def lose_entries(self, after: int) -> None:
        """What a power cut between two files may do: the end of our chain was not written."""
        del self.entries[after:]
        self._head = Head.after(self.entries[-1])

    def woken(self, timer: str, task: TaskId | None, mark: int, now: float) -> list[Action]:
        return self.told(Woken(timer, task, mark), now)  # type: ignore[arg-type]

    def task(self, task: TaskId) -> TaskRecord:
        return self.kernel.records[task]

    def check_bounds(self) -> None:
        """S6 and S7."""
        assert self.kernel.reserved().fits_in(self.kernel.sold())
        for name, (size, bound) in self.kernel.sizes().items():
            assert size <= bound, name

    def _write(self, action: Action) -> None:
        match action:
            case PersistTask(record):
                self.records[record.order.task] = record
            case PersistTenancy(task, fence):
                self.tenancies[task, fence] = action
            case ForgetTenancy(task, fence):
                del self.tenancies[task, fence]
            case AppendEntry(data, is_own):
                self._append(Entry.decode(data), is_own)
            case _:
                pass

    def _append(self, entry: Entry, is_own: bool) -> None:
        body = check_entry(entry, self._verify, KINDS_KNOWN)
        if not is_own:
            assert body.peer == self.peer, "somebody else's entry"
            self.received.append(entry)
            return
        alloc = self._bodies.get(body.ref)
        self._head = check_link(self._head, entry, alloc)
        self._bodies[entry.id] = body
        self.entries.append(entry)


@frozen(order=True)
class Alarm:
    """A timer of one boot of a player."""

    at: float
    order: int
    player: str
    boot: int
    event: Event


class Table:
    """Players, whose messages arrive at once and in order unless `is_lost` says otherwise."""

    def __init__(
        self,
        players: int = 3,
        *,
        policy: Policy = POLICY,
        shops: Sequence[Shop] = (),
        sellers: bool = True,
    ) -> None:
        keyring = Keyring(1)
        nothing = evolve(SHOP, sold=Capacity(), features=())
        default = [nothing] + [SHOP if sellers else nothing] * (players - 1)
        self.keyring = keyring
        self.players = [
            Player(keyring, index, policy, shop) for index, shop in enumerate(shops or default)
        ]
        self.by_peer = {player.peer: player for player in self.players}
        self.now = 0.0
        self.is_lost: Callable[[Player, Player, Message], bool] = lambda *_: False
        self.delay_s: Callable[[Player, Player, Message], float] = lambda *_: 0.0
        self.log: list[tuple[float, Player, Event, list[Action]]] = []
        self.runs: dict[tuple[str, TaskId, int], Run] = {}
        self.can_collect = True
        self._alarms: list[Alarm] = []
        self._order = count()
        for player in self.players:
            self.tell(player, Started())
        self.run(0.0)

    def __getitem__(self, name: str) -> Player:
        return next(player for player in self.players if player.name == name)

    def tell(self, player: Player, event: Event) -> list[Action]:
        """An event, and all that follows from it at once."""
        actions = player.told(event, self.now)
        self.log.append((self.now, player, event, actions))
        for action in actions:
            self._perform(player, action)
        return actions

    def submit(self, player: Player, **changes: object) -> TaskId:
        wanted = order(player.peer, **changes)  # type: ignore[arg-type]
        self.tell(player, Submitted(wanted))
        self.run(0.0)
        return wanted.task

    def run(self, seconds: float) -> None:
        """Let that much time pass."""
        end = self.now + seconds
        while self._alarms and self._alarms[0].at <= end:
            alarm = heapq.heappop(self._alarms)
            self.now = max(self.now, alarm.at)
            player = self[alarm.player]
            if player.is_up and player.boots == alarm.boot:
                self.tell(player, alarm.event)
        self.now = end

    def crash(self, player: Player) -> None:
        player.is_up = False
        for key in [key for key in self.runs if key[0] == player.name]:
            del self.runs[key]

    def restart(self, player: Player) -> None:
        player.boot()
        self.tell(player, Started())
        self.run(0.0)

    def executor(self, task: TaskId) -> Player:
        """Who runs it."""
        ((name, _, _),) = [key for key in self.runs if key[1] == task]
        return self[name]

    def finish(self, player: Player, task: TaskId, result: Result = RESULT) -> list[Action]:
        """A run comes to its end."""
        (fence,) = [key[2] for key in self.runs if key[:2] == (player.name, task)]
        del self.runs[player.name, task, fence]
        actions = self.tell(player, RunEnded(task, fence, result))
        self.run(0.0)
        return actions

    def suspend(self, player: Player, task: TaskId, state: Cid, fuel: int) -> list[Action]:
        """A run is taken out alive."""
        (fence,) = [key[2] for key in self.runs if key[:2] == (player.name, task)]
        del self.runs[player.name, task, fence]
        actions = self.tell(player, Suspended(task, fence, state, fuel, 2_000))
        self.run(0.0)
        return actions

    def notices(self, player: Player) -> list[Notice]:
        return [
            action.notice
            for _, who, _, actions in self.log
            for action in actions
            if who is player and isinstance(action, Notify)
        ]

    def _perform(self, player: Player, action: Action) -> None:
        match action:
            case Send(peer, message):
                other = self.by_peer.get(peer)
                if other and not self.is_lost(player, other, message):
                    at = self.now + self.delay_s(player, other, message)
                    self._at(at, other, Received(player.peer, message))
            case Gossip(signed):
                for other in self.players:
                    if other is not player:
                        self._soon(other, OfferReceived(signed))
            case WakeAt(when, event):
                self._at(when, player, event)
            case Run(task, fence):
                self.runs[player.name, task, fence] = action
            case StopRun(task, fence):
                self.runs.pop((player.name, task, fence), None)
            case Collect(task, fence, _, roots):
                if self.can_collect:
                    self._soon(player, Collected(task, fence, roots[0], ""))
            case _:
                pass

    def _soon(self, player: Player, event: Event) -> None:
        self._at(self.now, player, event)

    def _at(self, when: float, player: Player, event: Event) -> None:
        alarm = Alarm(when, next(self._order), player.name, player.boots, event)
        heapq.heappush(self._alarms, alarm)


def offer(peer: PeerId, **changes: object) -> Offer:
    """The offer of `SHOP`, all of it free."""
    given = Offer(
        peer=peer,
        epoch=1,
        seq=1,
        sold=SHOP.sold,
        free=SHOP.sold,
        outlook=(),
        price=SHOP.price,
        speed=SHOP.speed,
        features=SHOP.features,
        cached=(),
        agent=SHOP.agent,
    )
    return evolve(given, **changes)  # type: ignore[arg-type]


def cid(name: str) -> Cid:
    return cid_of(RAW, name.encode())


class Buyer:
    """A buyer played by hand: it signs what a test tells it to."""

    def __init__(self, identity: Identity, net: bytes = NET) -> None:
        self.identity = identity
        self.peer = identity.peer
        self.head = Head.start(self.peer, net)
        self.allocs: dict[bytes, Entry] = {}

    def award(self, bid: Bid, *, ttl_ms: int = POLICY.ttl_ms) -> Award:
        self.head, entry = chain.alloc(
            self.head, bid.terms, bid.signature, wall_ms=WALL_MS, sign=self.identity.sign
        )
        self.allocs[entry.id] = entry
        return Award(bid.task, bid.round, entry.encode(), ttl_ms)

    def settle(self, done: Done) -> Settled:
        alloc = self.allocs[Terms.decode(done.terms).ref]
        self.head, entry = chain.settle(
            self.head,
            done.terms,
            done.signature,
            alloc=alloc,
            wall_ms=WALL_MS,
            sign=self.identity.sign,
        )
        return Settled(done.task, done.fence, entry.encode())

    def use(self, asked: Slice) -> Sliced:
        alloc = self.allocs[Terms.decode(asked.terms).ref]
        self.head, entry = chain.use(
            self.head,
            asked.terms,
            asked.signature,
            alloc=alloc,
            wall_ms=WALL_MS,
            sign=self.identity.sign,
        )
        return Sliced(asked.task, asked.fence, entry.encode())

    def void(self, given_up: Lost | Declined) -> Settled:
        alloc = self.allocs[Terms.decode(given_up.void_terms).ref]
        self.head, entry = chain.void(
            self.head,
            given_up.void_terms,
            given_up.signature,
            alloc=alloc,
            wall_ms=WALL_MS,
            sign=self.identity.sign,
        )
        return Settled(given_up.task, given_up.fence, entry.encode())


class Seller:
    """A seller played by hand."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.peer = identity.peer
        self.seq = 0

    def signed(self, terms: Terms) -> tuple[bytes, bytes]:
        data = terms.encode()
        return data, self.identity.sign(terms_message(data))

    def offer(self, **changes: object) -> SignedOffer:
        """The next offer, all of `SHOP`."""
        self.seq += 1
        data = codec.encode_offer(offer(self.peer, **{"seq": self.seq, **changes}))
        return SignedOffer(data, self.identity.sign(codec.offer_message(data)))

    def bid(self, buyer: PeerId, ask: Ask, *, price: int = 1_000, **changes: object) -> Bid:
        terms = alloc_terms(
            ask, seller=self.peer, buyer=buyer, price=price, wall_ms=WALL_MS, grace_ms=30_000
        )
        data, signature = self.signed(terms)
        given = Bid(
            task=ask.task,
            round=ask.round,
            terms=data,
            signature=signature,
            finish_ms=Quantiles(6_000, 12_000, 20_000),
            p_on_time=950,
            cached=0,
            hold_ms=2_000,
            reason="by hand",
        )
        return evolve(given, **changes)  # type: ignore[arg-type]

    def slice(self, award: Award, fuel: int) -> Slice:
        terms = use_terms(*_allocated(award), fuel, WALL_MS).encode()
        signature = self.identity.sign(use_message(terms))
        return Slice(award.task, award.fence, terms, signature)

    def declined(self, award: Award, reason: str = "the hold had ended") -> Declined:
        data, signature = self.signed(void_terms(*_allocated(award)))
        return Declined(award.task, award.fence, reason, data, signature)

    def lost(self, award: Award, reason: str = "the worker was killed") -> Lost:
        data, signature = self.signed(void_terms(*_allocated(award)))
        return Lost(award.task, award.fence, reason, data, signature)

    def saved(self, award: Award, fuel: int, state: Cid = STATE) -> Saved:
        done = self.given_back(award, fuel, state)
        return Saved(done.task, done.fence, done.result, done.terms, done.signature)

    def given_back(self, award: Award, fuel: int, state: Cid = STATE) -> Done:
        result = evolve(NOTHING_RUN, status=MOVED, fuel=fuel, output=state, detail="by hand")
        return self.done(award, result)

    def done(self, award: Award, result: Result = RESULT) -> Done:
        terms, entry = _allocated(award)
        data, signature = self.signed(settle_terms(terms, entry, result, WALL_MS + 20_000))
        return Done(award.task, award.fence, result, data, signature)


class Hall:
    """One auctioneer under test, its task, and sellers played by hand."""

    def __init__(self, sellers: int = 3, policy: Policy = POLICY, **changes: object) -> None:
        keyring = Keyring(8)
        nothing = evolve(SHOP, sold=Capacity(), features=())
        self.buyer = Player(keyring, 0, policy, nothing)
        self.sellers = [Seller(keyring.create(index)) for index in range(1, sellers + 1)]
        self.order = order(self.buyer.peer, **changes)  # type: ignore[arg-type]
        self.task: TaskId = self.order.task
        self.buyer.told(Started(), 0.0)
        for seller in self.sellers:
            self.offers(seller, 0.0)

    def offers(self, seller: Seller, now: float, **changes: object) -> list[Action]:
        return self.buyer.told(OfferReceived(seller.offer(**changes)), now)

    def submit(self, now: float = 0.0) -> Ask:
        asks = some(self.buyer.told(Submitted(self.order), now), Ask)
        assert len(set(asks)) == 1
        return asks[0]

    def got(self, seller: Seller, message: object, now: float) -> list[Action]:
        return self.buyer.got(seller.peer, message, now)  # type: ignore[arg-type]

    def bids(self, seller: Seller, ask: Ask, now: float, **changes: object) -> list[Action]:
        return self.got(seller, seller.bid(self.buyer.peer, ask, **changes), now)  # type: ignore[arg-type]

    def award(self, now: float = 0.0, winner: int = 0) -> Award:
        """Let every seller bid, the *winner* lowest."""
        ask = self.submit(now)
        actions: list[Action] = []
        for place, seller in enumerate(self.sellers):
            actions = self.bids(seller, ask, now, price=1_000 + 100 * (place != winner))
        assert one(actions, Awarded).winner == self.sellers[winner].peer
        return one(actions, Award)

    def running(self, now: float = 0.0) -> Award:
        award = self.award(now)
        self.got(self.sellers[0], Accepted(self.task, 1), now)
        return award

    @property
    def record(self) -> TaskRecord:
        return self.buyer.task(self.task)

    @property
    def kinds(self) -> list[Kind]:
        return [entry.content.kind for entry in self.buyer.entries]


def _allocated(award: Award) -> tuple[Terms, EntryId]:
    entry = Entry.decode(award.entry)
    return entry.content.deal, EntryId(entry.id)
