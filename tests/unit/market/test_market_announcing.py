"""Announcing: often enough to be believed alive, never so often as to be a burden."""

from __future__ import annotations

from random import Random

import pytest
from attrs import evolve
from market_players import POLICY, SHOP, Seller, cid

from mesh import codec
from mesh.market.announcing import Announcer
from mesh.messages import Offer, Outlook, Quantiles, SignedOffer
from mesh.resources.capacity import Capacity
from mesh.sansio import Action, Gossip, WakeAt, Woken
from mesh.sim.keyring import Keyring

KEYRING = Keyring(2)
IDENTITY = KEYRING.create(0)
SOLD = SHOP.sold


class Voice:
    """An announcer and what it says."""

    def __init__(self) -> None:
        self.announcer = Announcer(IDENTITY, POLICY, epoch=3)

    def due(self, now: float, free: Capacity = SOLD, **others: object) -> list[Action]:
        given = {"shop": SHOP, "free": free, "outlook": (), "modules": (), **others}
        return self.announcer.due(now, **given)  # type: ignore[arg-type]

    def said(self, now: float, free: Capacity = SOLD, **others: object) -> Offer:
        gossip, wake = self.due(now, free, **others)
        assert isinstance(gossip, Gossip)
        assert isinstance(wake, WakeAt)
        return codec.decode_offer(gossip.signed.offer)


OFFER = Woken("offer", None, 0)


def woken(actions: list[Action]) -> list[float]:
    return [wake.when for wake in actions if isinstance(wake, WakeAt) and wake.event == OFFER]


def test_an_offer_says_what_is_for_sale_and_is_signed() -> None:
    voice = Voice()
    outlook = (Outlook(300_000, Quantiles(1, 2, 3), Quantiles(4, 5, 6)),)
    offer = voice.said(5.0, outlook=outlook, modules=(cid("module"),))
    assert offer == voice.announcer.offer
    assert (offer.peer, offer.epoch, offer.seq) == (IDENTITY.peer, 3, 1)
    assert (offer.sold, offer.free, offer.price) == (SOLD, SOLD, SHOP.price)
    assert offer.cached == (cid("module")[-4:],)
    signed = SignedOffer(*_last(voice))
    assert KEYRING.verify(offer.peer, codec.offer_message(signed.offer), signed.signature)


def _last(voice: Voice) -> tuple[bytes, bytes]:
    assert voice.announcer.offer
    data = codec.encode_offer(voice.announcer.offer)
    return data, IDENTITY.sign(codec.offer_message(data))


def test_it_is_said_every_fifteen_seconds() -> None:
    voice = Voice()
    assert woken(voice.due(0.0)) == [15.0]
    assert voice.due(14.9) == []
    assert voice.said(15.0).seq == 2


def test_real_change_is_said_sooner_but_never_closer_than_the_gap() -> None:
    voice = Voice()
    voice.due(0.0)
    assert woken(voice.announcer.hurry(0.5)) == [2.0]
    assert voice.announcer.hurry(0.6) == [], "it is under way"
    assert voice.due(1.9) == []
    assert voice.said(2.0).seq == 2
    assert woken(voice.announcer.hurry(9.0)) == [9.0]
    assert voice.said(9.0).seq == 3
    assert voice.due(15.0) == [], "an old timer"
    assert voice.said(24.0).seq == 4


@pytest.mark.parametrize(
    ("free", "is_stale"),
    [
        (SOLD, False),
        (evolve(SOLD, cpu_milli=1_800), False),
        (evolve(SOLD, cpu_milli=1_799), True),
        (evolve(SOLD, memory=SOLD.memory * 8 // 10), True),
        (evolve(SOLD, slots=1), False),
        (evolve(SOLD, slots=0), True),
    ],
)
def test_more_than_a_tenth_is_real_change_and_so_is_the_last_slot(
    free: Capacity, is_stale: bool
) -> None:
    voice = Voice()
    voice.due(0.0)
    assert voice.announcer.is_stale(free, SOLD) is is_stale


def test_a_node_that_sells_nothing_can_speak_too() -> None:
    voice = Voice()
    assert voice.announcer.is_stale(Capacity(), Capacity())
    voice.due(0.0, Capacity())
    assert not voice.announcer.is_stale(Capacity(), Capacity())


def test_about_eight_greet_a_newcomer_however_many_there_are() -> None:
    rng = Random(1)
    voice = Voice()
    assert all(voice.announcer.greets(peers, rng) for peers in range(9))
    greeters = sum(voice.announcer.greets(1_000, rng) for _ in range(1_000))
    assert 2 <= greeters <= 20


def test_an_offer_fits_into_a_gossip_message() -> None:
    voice = Voice()
    modules = tuple(cid(str(number)) for number in range(64))
    steps = (Outlook(2**40, Quantiles(2**60, 2**60, 2**60), Quantiles(0, 0, 0)),) * 3
    gossip = voice.due(0.0, modules=modules, outlook=steps)[0]
    assert isinstance(gossip, Gossip)
    assert len(codec.encode_signed_offer(gossip.signed)) < codec.OFFER_MAX / 2
    assert Seller(IDENTITY).offer() != gossip.signed
