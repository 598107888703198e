"""Laws of the market's cores, for any messages whatever, in any order, from anybody."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import Any

import pytest
from any_messages import MESSAGES, TEXT, WHOLE, altered, any_value
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from market_players import (
    NEEDS,
    POLICY,
    RESULT,
    SHOP,
    STATE,
    WORK,
    Buyer,
    Player,
    Seller,
    Table,
    order,
)

from mesh import codec
from mesh.errors import PeerError
from mesh.ids import PeerId
from mesh.market.bidding import NoQuote, bill, quote
from mesh.market.offers import OfferBook
from mesh.market.order import TaskRecord
from mesh.market.scoring import Calibration, virtual_deadline
from mesh.messages import Ask, Award, Message, Offer, SignedOffer
from mesh.resources.capacity import NOTHING, Capacity
from mesh.resources.pool import Pool
from mesh.sansio import (
    CancelRequested,
    Checkpointed,
    Collected,
    DrainSet,
    LoadSampled,
    MoveRequested,
    OfferReceived,
    Received,
    RunEnded,
    RunLost,
    RunProgressed,
    Submitted,
    Suspended,
    Unmoved,
)
from mesh.sim.keyring import Keyring

# --- codec ----------------------------------------------------------------------------------------


@given(MESSAGES)
def test_what_was_said_is_what_is_heard(message: Message) -> None:
    frame = codec.encode(message)
    heard = codec.decode(frame)
    assert (type(heard), heard) == (type(message), message)
    assert codec.encode(heard) == frame


@given(any_value(TaskRecord))
def test_what_was_written_is_what_is_read(record: TaskRecord) -> None:
    assert codec.load(TaskRecord, codec.dump(record)) == record


@given(any_value(Offer), st.binary(min_size=64, max_size=64))
def test_what_was_offered_is_what_is_heard(offer: Offer, signature: bytes) -> None:
    signed = SignedOffer(codec.encode_offer(offer), signature)
    assert codec.decode_signed_offer(codec.encode_signed_offer(signed)) == signed
    assert codec.decode_offer(signed.offer) == offer


DECODERS = [
    codec.decode,
    codec.decode_offer,
    codec.decode_signed_offer,
    lambda data: codec.load(TaskRecord, data),
]


def decode_everything(data: bytes) -> None:
    for decode in DECODERS:
        with suppress(PeerError):  # the one error that may come of a peer's bytes
            decode(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_peers_fault(data: bytes) -> None:
    decode_everything(data)
    decode_everything(b"\x95\x01" + data)


@given(MESSAGES, st.data())
def test_a_damaged_message_is_a_message_or_a_peers_fault(message: Message, data: Any) -> None:
    frame = bytearray(codec.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    decode_everything(bytes(frame))
    decode_everything(bytes(frame[: data.draw(st.integers(0, len(frame)))]))


# --- capacity and pool ----------------------------------------------------------------------------

CAPACITIES = st.builds(Capacity, *[st.integers(0, 10)] * 4)


@given(CAPACITIES, CAPACITIES, CAPACITIES)
def test_capacities_are_a_vector(one: Capacity, two: Capacity, three: Capacity) -> None:
    assert one + two == two + one
    assert (one + two) + three == one + (two + three)
    assert one + NOTHING == one
    assert (one + two) - two == one == (one + two).minus(two)
    assert one.fits_in(one + two)
    assert one.minus(two).fits_in(one)
    assert one.fits_in(one.minus(two) + two)
    if one.fits_in(two):
        assert one + (two - one) == two
        assert one.fits_in(two + three), "what fits, fits into more"


class PoolMachine(RuleBasedStateMachine):
    """The pool beside a dict that is summed up every time."""

    keys = Bundle("keys")
    sold = Capacity(20, 20, 20, 20)

    def __init__(self) -> None:
        super().__init__()
        self.pool: Pool[int] = Pool(self.sold)
        self.dumb: dict[int, Capacity] = {}

    def total(self) -> Capacity:
        return sum(self.dumb.values(), start=NOTHING)

    @rule(target=keys, needs=CAPACITIES, key=st.integers())
    def reserve(self, needs: Capacity, key: int) -> int:
        if key not in self.dumb:
            fits = (self.total() + needs).fits_in(self.sold)
            assert self.pool.reserve(key, needs) is fits
            if fits:
                self.dumb[key] = needs
        return key

    @rule(key=consumes(keys))
    def release(self, key: int) -> None:
        self.pool.release(key)
        self.dumb.pop(key, None)

    @rule(key=st.integers())
    def release_anything(self, key: int) -> None:
        self.release(key)

    @invariant()
    def they_agree(self) -> None:
        assert self.pool.reserved == self.total()
        assert self.pool.free == self.sold - self.total()
        assert len(self.pool) == len(self.dumb)
        assert all(key in self.pool for key in self.dumb)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)

# --- order, price, promise ------------------------------------------------------------------------

ORDERS = st.tuples(st.floats(0, 1e7), st.integers(0, 2**53), st.integers(0, 2**62))


@given(st.lists(ORDERS, min_size=3, max_size=3), st.floats(1e-18, 1e9))
def test_the_order_of_waiting_tasks_is_transitive_and_a_fee_never_hurts(
    orders: list[tuple[float, int, int]], reference: float
) -> None:
    a, b, c = (virtual_deadline(*order, reference) for order in orders)
    if a <= b <= c:
        assert a <= c
    deadline, fee, fuel = orders[0]
    assert virtual_deadline(deadline, fee + 1, fuel, reference) <= a
    assert virtual_deadline(deadline + 1, fee, fuel, reference) >= a


@given(st.lists(ORDERS, min_size=2, max_size=2), st.floats(1e-12, 1e6), st.floats(1e-12, 1e6))
def test_the_median_fee_moves_everybody_alike(
    orders: list[tuple[float, int, int]], before: float, after: float
) -> None:
    gaps = [
        virtual_deadline(*orders[0], reference) - virtual_deadline(*orders[1], reference)
        for reference in (before, after)
    ]
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-3)


ASKS = st.builds(
    Ask,
    task=st.just(b"t" * 16),
    round=st.just(1),
    work=st.builds(
        lambda fuel, wall, cpu: evolve(
            WORK, fuel=fuel, wall_ms=wall, needs=evolve(NEEDS, cpu_milli=cpu)
        ),
        st.integers(0, 2**62),
        st.integers(0, 2**40),
        st.integers(1, 2_000),
    ),
    priority=st.just(0),
    deadline_ms=st.integers(0, 2**40),
    fee=st.integers(0, 2**53),
    max_price=st.integers(0, 2**63 - 1),
    ttl_ms=st.just(15_000),
    window_ms=st.just(300),
)


@given(ASKS, st.integers(0, 2_000), st.integers(0, 2**40), st.integers(1, 2**40))
def test_no_bid_is_below_the_floor_or_above_the_ceiling(
    ask: Ask, cpu_free: int, price: int, speed: int
) -> None:
    shop = evolve(SHOP, price=price, speed=speed)
    free = evolve(SHOP.sold, cpu_milli=cpu_free)
    answer = quote(ask, shop, free=free, outlook=(), cached=frozenset())
    if isinstance(answer, NoQuote):
        return
    assert price <= answer.price <= price + price // 2 + 1
    assert bill(answer.price, ask.work.fuel) + ask.fee <= ask.max_price
    assert 1 <= answer.p_on_time <= 1_000
    assert answer.finish_ms.q10 <= answer.finish_ms.q50 <= answer.finish_ms.q90


@given(ASKS, st.integers(0, 2**40))
def test_more_time_is_never_a_worse_promise(ask: Ask, more_ms: int) -> None:
    def odds(asked: Ask) -> int:
        answer = quote(asked, SHOP, free=SHOP.sold, outlook=(), cached=frozenset())
        return 0 if isinstance(answer, NoQuote) else answer.p_on_time

    assert odds(ask) <= odds(evolve(ask, deadline_ms=ask.deadline_ms + more_ms))


# --- the offer book -------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 9)), max_size=60),
    st.integers(1, 5),
    st.integers(0, 8),
)
def test_the_book_keeps_the_newest_of_each_and_no_more_than_its_bound(
    offers: list[tuple[int, int, int]], bound: int, count: int
) -> None:
    keyring = Keyring(1)
    sellers = [Seller(keyring.create(index)) for index in range(7)]
    book = OfferBook(sellers[0].identity, evolve(POLICY, offers_max=bound))
    dumb: dict[PeerId, tuple[int, int]] = {}
    for now, (index, epoch, seq) in enumerate(offers):
        peer = sellers[index].peer
        heard = book.hear(sellers[index].offer(epoch=epoch, seq=seq), now)
        assert (heard is not None) == ((epoch, seq) > dumb.get(peer, (0, 0)))
        if heard:
            dumb.pop(peer, None)
            dumb[peer] = (epoch, seq)
            dumb = dict(list(dumb.items())[-bound:])
        listed = {peer: (at.offer.epoch, at.offer.seq) for peer, at in book.listings.items()}
        assert listed == dumb
    asked = book.candidates(WORK, count, rng=Random(1), calibration=Calibration(), avoid=())
    assert len(asked) == len(set(asked)) == min(count, len(dumb))


# --- the kernel -----------------------------------------------------------------------------------

TIGHT = evolve(
    POLICY,
    tasks_open_max=3,
    tasks_ended_max=2,
    holds_max=2,
    tenancies_max=3,
    offers_max=3,
    allocs_max=4,
)


class KernelMachine(RuleBasedStateMachine):
    """Three nodes, honest clients, and somebody on the wire who repeats, alters and invents.

    Every event goes through `Player.told`: reservations within what is sold (S6), every table
    within its bound (S7), each chain an unbroken one (S3); and nothing may be raised.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table = Table(3, policy=TIGHT)
        self.said: dict[str, tuple[Player, Player, Message]] = {}
        """The last two messages of every kind."""
        self.table.is_lost = self._listen
        self.tasks = 0
        self.hand = Buyer(self.table.keyring.create(9))
        self.stranger = Seller(self.hand.identity)

    def _listen(self, source: Player, target: Player, message: Message) -> bool:
        kind = type(message).__name__
        if kind in self.said:
            self.said[f"{kind} before"] = self.said[kind]
        self.said[kind] = (source, target, message)
        return False

    def _up(self, index: int) -> Player | None:
        player = self.table.players[index]
        return player if player.is_up else None

    @rule(price=st.sampled_from([10, 20_000, 2**60]), seconds=st.sampled_from([1, 60, 600]))
    def submit(self, price: int, seconds: int) -> None:
        if player := self._up(0):
            self.tasks += 1
            key = str(self.tasks).encode()
            wanted = order(player.peer, key, max_price=price, fee=0, deadline_ms=seconds * 1_000)
            self.table.tell(player, Submitted(wanted))

    @rule(place=st.integers(0, 5))
    def cancel(self, place: int) -> None:
        if player := self._up(0):
            for task in list(player.kernel.records)[place:][:1]:
                self.table.tell(player, CancelRequested(task))

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 2.0, 7.0, 20.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        self.table.run(seconds)

    @rule(place=st.integers(0, 3), how=st.integers(0, 3), fuel=WHOLE, text=TEXT)
    def run_goes_on(self, place: int, how: int, fuel: int, text: str) -> None:
        for name, task, fence in list(self.table.runs)[place:][:1]:
            player, result = self.table[name], evolve(RESULT, fuel=fuel, detail=text)
            event = [
                RunProgressed(task, fence, fuel),
                RunEnded(task, fence, RESULT),
                RunEnded(task, fence, result),
                RunLost(task, fence, text),
            ][how]
            if how:
                del self.table.runs[name, task, fence]
            self.table.tell(player, event)

    @rule(index=st.integers(0, 2))
    def crash_or_restart(self, index: int) -> None:
        if player := self._up(index):
            self.table.crash(player)
        else:
            self.table.restart(self.table.players[index])

    @rule(index=st.integers(0, 2), cpu=st.integers(0, 9_000))
    def owner_works(self, index: int, cpu: int) -> None:
        if player := self._up(index):
            self.table.tell(player, LoadSampled(cpu, cpu * 10**6))

    @rule(place=st.integers(0, 25), to=st.integers(0, 2), sender=st.integers(0, 3), data=st.data())
    def repeat(self, place: int, to: int, sender: int, data: Any) -> None:
        """A message that was said, or one like it, from whoever it pleases, to whom it pleases."""
        for source, target, message in list(self.said.values())[place:][:1]:
            if data.draw(st.booleans()):
                message = data.draw(altered(message))
            peers = [self.table.players[0].peer, source.peer, target.peer, self.hand.peer]
            self._hear([target, target, *self.table.players][to], peers[sender], message)

    @rule(to=st.integers(0, 2), message=MESSAGES)
    def invent(self, to: int, message: Message) -> None:
        self._hear(self.table.players[to], self.hand.peer, message)

    def _hear(self, player: Player, peer: PeerId, message: Message) -> None:
        if player.is_up:
            self.table.tell(player, Received(peer, message))

    @rule(to=st.integers(0, 2), offer=any_value(Offer), is_own=st.booleans())
    def offer_anything(self, to: int, offer: Offer, is_own: bool) -> None:
        data = codec.encode_offer(evolve(offer, peer=self.hand.peer) if is_own else offer)
        signature = self.hand.identity.sign(codec.offer_message(data))
        if player := self._up(to):
            self.table.tell(player, OfferReceived(SignedOffer(data, signature)))

    @rule(to=st.integers(1, 2), ask=ASKS, ttl_ms=WHOLE)
    def buy_by_hand(self, to: int, ask: Ask, ttl_ms: int) -> None:
        """A stranger asks, awards whatever is bid, and is never heard of again."""
        if player := self._up(to):
            actions = self.table.tell(player, Received(self.hand.peer, ask))
            for action in actions:
                bid = getattr(action, "message", None)
                if bid is not None and hasattr(bid, "hold_ms"):
                    award: Award = self.hand.award(bid, ttl_ms=ttl_ms)
                    self.table.tell(player, Received(self.hand.peer, award))

    @rule(reason=st.sampled_from(["", "out of reach"]), fence=st.integers(0, 4))
    def collected(self, reason: str, fence: int) -> None:
        if player := self._up(0):
            for task in list(player.kernel.records):
                for root in (RESULT.output, STATE):
                    self.table.tell(player, Collected(task, fence, root, reason))

    @rule(place=st.integers(0, 3), how=st.integers(0, 3), fuel=WHOLE)
    def run_is_kept_or_leaves(self, place: int, how: int, fuel: int) -> None:
        for name, task, fence in list(self.table.runs)[place:][:1]:
            event = [
                Checkpointed(task, fence, STATE, fuel),
                Suspended(task, fence, STATE, fuel, 1),
                Unmoved(task, fence, "later", is_for_good=False),
                Unmoved(task, fence, "never", is_for_good=True),
            ][how]
            if how == 1:
                del self.table.runs[name, task, fence]
            self.table.tell(self.table[name], event)

    @rule(to=st.sampled_from([None, 0, 1, 2]))
    def want_elsewhere(self, to: int | None) -> None:
        if player := self._up(0):
            peer = None if to is None else self.table.players[to].peer
            for task in list(player.kernel.records):
                self.table.tell(player, MoveRequested(task, peer))

    @rule(index=st.integers(0, 2), is_on=st.booleans())
    def drain(self, index: int, is_on: bool) -> None:
        if player := self._up(index):
            self.table.tell(player, DrainSet(is_on))

    def teardown(self) -> None:
        """Healed and left alone, every task ends, and nothing stays pending or reserved."""
        for player in self.table.players:
            if not player.is_up:
                self.table.restart(player)
            self.table.tell(player, DrainSet(is_on=False))
        self.table.run(700.0)
        records = self.table.players[0].kernel.records.values()
        assert all(record.state.is_final for record in records)


TestKernel = KernelMachine.TestCase
TestKernel.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
