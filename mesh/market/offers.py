"""The offer book: who sells what, as far as this node has heard. Bounded, verified, ageing.

Rules: an offer counts only with its author's signature; of one author the newest (epoch, seq) wins;
an offer unheard of for `offer_ages_ms` leaves; a full book drops what was heard longest ago.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from random import Random

from attrs import frozen

from mesh import codec
from mesh.errors import PeerError
from mesh.ids import PeerId
from mesh.market.copies import RUNS_ANOTHER
from mesh.market.policy import Policy
from mesh.market.scoring import Calibration
from mesh.messages import Offer, SignedOffer, Work
from mesh.sansio import Identity


@frozen
class Listing:
    """An offer and when it was heard."""

    offer: Offer
    heard_at: float


@frozen
class Heard:
    """A new offer and the one it supersedes."""

    offer: Offer
    before: Offer | None


class OfferBook:
    """The book. Decides nothing but whom to ask."""

    def __init__(self, identity: Identity, policy: Policy) -> None:
        self._identity = identity
        self._policy = policy
        self._listings: dict[PeerId, Listing] = {}  # in the order heard
        self.evicted = 0

    @property
    def listings(self) -> Mapping[PeerId, Listing]:
        return self._listings

    @property
    def is_full(self) -> bool:
        return len(self._listings) >= self._policy.offers_max

    def hear(self, signed: SignedOffer, now: float) -> Heard | None:
        """Enter an offer. None when it is our own or not newer. Raises PeerError."""
        offer = codec.decode_offer(signed.offer)
        if offer.peer == self._identity.peer:
            return None
        known = self._listings.get(offer.peer)
        if known and (known.offer.epoch, known.offer.seq) >= (offer.epoch, offer.seq):
            return None
        if not self._identity.verify(
            offer.peer, codec.offer_message(signed.offer), signed.signature
        ):
            raise PeerError("an offer with a bad signature")
        self._listings.pop(offer.peer, None)
        self._listings[offer.peer] = Listing(offer, now)
        if len(self._listings) > self._policy.offers_max:
            del self._listings[next(iter(self._listings))]
            self.evicted += 1
        return Heard(offer, known.offer if known else None)

    def age(self, now: float) -> list[PeerId]:
        """Drop the silent, and say who they were."""
        oldest = now - self._policy.offer_ages_ms / 1000
        silent = [peer for peer, listing in self._listings.items() if listing.heard_at < oldest]
        for peer in silent:
            del self._listings[peer]
        return silent

    def drop(self, peer: PeerId) -> None:
        """Forget a peer's offer: it proved untrue. Its next one counts again."""
        self._listings.pop(peer, None)

    def candidates(
        self,
        work: Work,
        count: int,
        *,
        rng: Random,
        calibration: Calibration,
        avoid: Collection[PeerId],
    ) -> list[PeerId]:
        """Whom to ask for *work*: the best by price and record, and some at random.

        The random ones let newcomers be found, and keep the rich from owning the market.
        """
        fitting = list(self._fitting(work, avoid))
        if len(fitting) <= count:
            return [offer.peer for offer in fitting]
        fitting.sort(key=lambda offer: (_expectation(offer, work, calibration), offer.peer))
        at_random = min(self._policy.candidates_at_random, count)
        best, rest = fitting[: count - at_random], fitting[count - at_random :]
        return [offer.peer for offer in (*best, *rng.sample(rest, at_random))]

    def has_room(self, work: Work, avoid: Collection[PeerId]) -> bool:
        """Whether anybody but *avoid* offers room for *work* now."""
        return any(self._fitting(work, avoid))

    def _fitting(self, work: Work, avoid: Collection[PeerId]) -> Iterator[Offer]:
        for peer, listing in self._listings.items():
            if peer not in avoid and why_unfit(listing.offer, work) == "":
                yield listing.offer

    def alone(self, peer: PeerId | None, work: Work) -> list[PeerId]:
        """*peer* and nobody else, if it has offered room for *work*."""
        listing = self._listings.get(peer) if peer else None
        return [listing.offer.peer] if listing and not why_unfit(listing.offer, work) else []

    def why_nobody(
        self, work: Work, avoid: Collection[PeerId], taken: Collection[PeerId] = ()
    ) -> str:
        """Counted reasons why no candidate fits, for people."""
        if not self._listings:
            return "no offers heard yet"
        reasons: dict[str, int] = {}
        for listing in self._listings.values():
            peer, reason = listing.offer.peer, why_unfit(listing.offer, work)
            if peer in taken:
                reason = RUNS_ANOTHER
            elif not reason:
                reason = "just lost this task" if peer in avoid else "would fit"
            reasons[reason] = reasons.get(reason, 0) + 1
        counted = " · ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        return f"{len(self._listings)} offers seen: {counted}"


def why_unfit(offer: Offer, work: Work) -> str:
    """Why *offer* cannot take *work* now, or the empty string."""
    missing = [feature for feature in work.features if feature not in offer.features]
    if missing:
        return f"lack {missing[0]}"
    lasting = work.needs.shortage_in(offer.sold)
    if lasting:
        return f"too little {lasting}"
    short = work.needs.shortage_in(offer.free)
    return f"{short} busy now" if short else ""


def _expectation(offer: Offer, work: Work, calibration: Calibration) -> float:
    """Expected cost of an offer for *work*, corrected by its record; lower is better."""
    price = offer.price * work.fuel / 1e9 + 1.0
    slowness = work.fuel / max(1, offer.speed) / max(1, work.wall_ms)
    return price * (1.0 + slowness) / calibration.factor(offer.peer)
