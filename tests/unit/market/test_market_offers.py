"""The offer book: only what its author signed, only the newest, only so many, only so long."""

from __future__ import annotations

from random import Random

import pytest
from attrs import evolve
from market_players import NEEDS, POLICY, SHOP, WORK, G, Seller, cid, offer

from mesh import codec
from mesh.errors import PeerError
from mesh.ids import PeerId
from mesh.market.offers import OfferBook, why_unfit
from mesh.market.policy import Policy
from mesh.market.scoring import Calibration
from mesh.messages import SignedOffer, Work
from mesh.resources.capacity import Capacity
from mesh.sim.keyring import Keyring


class Stand:
    """A book and sellers who offer."""

    def __init__(self, sellers: int = 3, policy: Policy = POLICY) -> None:
        keyring = Keyring(3)
        self.identity = keyring.create(0)
        self.book = OfferBook(self.identity, policy)
        self.sellers = [Seller(keyring.create(index)) for index in range(1, sellers + 1)]

    def ask(self, count: int, work: Work = WORK, **others: object) -> list[PeerId]:
        given = {"rng": Random(1), "calibration": Calibration(), "avoid": (), **others}
        return self.book.candidates(work, count, **given)  # type: ignore[arg-type]


def test_the_newest_offer_of_an_author_wins() -> None:
    stand, seller = Stand(), Stand().sellers[0]
    first, second = seller.offer(price=1), seller.offer(price=2)
    heard = stand.book.hear(first, 1.0)
    assert heard
    assert heard.before is None
    heard = stand.book.hear(second, 2.0)
    assert heard
    assert heard.before
    assert (heard.before.price, heard.offer.price) == (1, 2)
    assert stand.book.hear(first, 3.0) is None, "an old one, come late"
    assert stand.book.hear(second, 4.0) is None, "the same again"
    assert stand.book.listings[seller.peer].heard_at == 2.0


def test_a_restarted_author_supersedes_itself() -> None:
    stand, seller = Stand(), Stand().sellers[0]
    stand.book.hear(seller.offer(epoch=1, seq=900), 1.0)
    assert stand.book.hear(seller.offer(epoch=2, seq=1), 2.0)
    assert stand.book.hear(seller.offer(epoch=1, seq=901), 3.0) is None


def test_our_own_offer_is_none_to_us() -> None:
    stand = Stand()
    assert stand.book.hear(Seller(stand.identity).offer(), 1.0) is None


@pytest.mark.parametrize("what", ["signature", "author", "bytes"])
def test_an_offer_that_its_author_did_not_sign_is_refused(what: str) -> None:
    stand = Stand()
    good = stand.sellers[0].offer()
    forged = {
        "signature": evolve(good, signature=bytes(64)),
        "author": SignedOffer(
            codec.encode_offer(offer(stand.sellers[1].peer, seq=9)), good.signature
        ),
        "bytes": SignedOffer(b"\xc1", good.signature),
    }
    with pytest.raises(PeerError):
        stand.book.hear(forged[what], 1.0)
    assert not stand.book.listings


def test_a_full_book_drops_what_was_heard_longest_ago() -> None:
    stand = Stand(4, evolve(POLICY, offers_max=3))
    for now, seller in enumerate(stand.sellers[:3]):
        stand.book.hear(seller.offer(), now)
    stand.book.hear(stand.sellers[0].offer(), 3.0)  # heard again: no longer the oldest
    stand.book.hear(stand.sellers[3].offer(), 4.0)
    left = {stand.sellers[place].peer for place in (0, 2, 3)}
    assert set(stand.book.listings) == left
    assert stand.book.evicted == 1


def test_the_silent_leave_the_book() -> None:
    stand = Stand(2)
    silent, alive = stand.sellers
    stand.book.hear(silent.offer(), 0.0)
    stand.book.hear(alive.offer(), 0.0)
    stand.book.hear(alive.offer(), 30.0)
    assert stand.book.age(50.0) == []
    assert stand.book.age(50.1) == [silent.peer]
    assert list(stand.book.listings) == [alive.peer]


def test_an_offer_dropped_counts_again_once_it_is_renewed() -> None:
    stand = Stand(1)
    (seller,) = stand.sellers
    stand.book.hear(seller.offer(), 0.0)
    stand.book.drop(seller.peer)
    stand.book.drop(seller.peer)
    heard = stand.book.hear(seller.offer(), 1.0)
    assert heard
    assert heard.before is None


def test_all_that_fit_are_asked_when_they_are_few() -> None:
    stand = Stand(3)
    for seller in stand.sellers:
        stand.book.hear(seller.offer(), 0.0)
    assert set(stand.ask(8)) == {seller.peer for seller in stand.sellers}
    avoided = stand.sellers[0].peer
    assert avoided not in stand.ask(8, avoid={avoided})


def test_the_best_are_asked_and_two_at_random() -> None:
    stand = Stand(20)
    for place, seller in enumerate(stand.sellers):
        stand.book.hear(seller.offer(price=1_000 + place), 0.0)
    cheapest = {seller.peer for seller in stand.sellers[:6]}
    drawn: set[PeerId] = set()
    for seed in range(60):
        asked = stand.ask(8, rng=Random(seed))
        assert len(asked) == len(set(asked)) == 8
        assert cheapest < set(asked)
        drawn |= set(asked) - cheapest
    assert len(drawn) == 14, "everybody has a chance"


def test_who_broke_promises_is_asked_later() -> None:
    stand = Stand(2, evolve(POLICY, candidates_at_random=0))
    liar, honest = stand.sellers
    stand.book.hear(liar.offer(price=900), 0.0)
    stand.book.hear(honest.offer(price=1_000), 0.0)
    calibration = Calibration()
    assert stand.ask(1, calibration=calibration) == [liar.peer]
    for _ in range(10):
        calibration.record(liar.peer, 1_000, was_kept=False)
    assert stand.ask(1, calibration=calibration) == [honest.peer]


def test_who_is_slow_must_be_cheap() -> None:
    stand = Stand(2, evolve(POLICY, candidates_at_random=0))
    slow, fast = stand.sellers
    stand.book.hear(slow.offer(speed=50_000), 0.0)
    stand.book.hear(fast.offer(price=1_100), 0.0)
    assert stand.ask(1) == [fast.peer]


def test_the_same_dice_ask_the_same_peers() -> None:
    stand = Stand(20)
    for seller in stand.sellers:
        stand.book.hear(seller.offer(), 0.0)
    assert stand.ask(8, rng=Random(4)) == stand.ask(8, rng=Random(4))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"features": ("python",)}, "lack wasm"),
        ({"free": evolve(SHOP.sold, slots=0)}, "slots busy now"),
        ({"free": Capacity(999, 4 * G, G, 1)}, "cpu busy now"),
        ({"sold": Capacity(999, 4 * G, G, 1), "free": Capacity()}, "too little cpu"),
    ],
)
def test_an_offer_that_does_not_fit_says_why(changes: dict[str, object], why: str) -> None:
    stand = Stand(1)
    assert why_unfit(offer(stand.sellers[0].peer, **changes), WORK) == why


def test_why_nobody_fits_is_counted() -> None:
    stand = Stand(4)
    assert stand.book.why_nobody(WORK, ()) == "no offers heard yet"
    for seller, changes in zip(
        stand.sellers, ({}, {"free": Capacity()}, {"free": Capacity()}, {}), strict=True
    ):
        stand.book.hear(seller.offer(**changes), 0.0)
    told = stand.book.why_nobody(WORK, {stand.sellers[0].peer})
    assert told == "4 offers seen: 1 just lost this task · 2 slots busy now · 1 would fit"


def test_absurd_numbers_in_an_offer_break_nothing() -> None:
    stand = Stand(3, evolve(POLICY, candidates_at_random=0))
    worst = {"price": 2**63 - 1, "speed": 0}
    stand.book.hear(stand.sellers[0].offer(**worst), 0.0)
    stand.book.hear(stand.sellers[1].offer(speed=2**63 - 1, price=0), 0.0)
    stand.book.hear(stand.sellers[2].offer(), 0.0)
    heavy = evolve(WORK, fuel=2**62, wall_ms=0, module=cid("x"), needs=NEEDS)
    assert stand.ask(2, heavy) == [stand.sellers[1].peer, stand.sellers[2].peer]
