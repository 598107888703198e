"""The market's constants of time and size: every one a bound or a duration, in one place."""

from __future__ import annotations

from attrs import frozen

_URGENT_S = 1_800.0


@frozen
class Policy:
    """Durations in milliseconds. The defaults suit a LAN and a continent alike."""

    candidates: int = 8
    """Peers asked in a first round (market.md: eight bids reach the value of seeing everything)."""
    candidates_wide: int = 32
    """Peers asked after a failed round; after the next failure, all that fit."""
    candidates_at_random: int = 2
    window_ms: int = 300
    """Bids are awaited this long, or until all candidates have answered."""
    window_max_ms: int = 900
    """…or this long, when the window closed without a single bid."""
    hold_ms: int = 2_000
    """A bidder holds the capacity this long; longer than window_max_ms and an award's way."""
    award_every_ms: int = 300
    """An unanswered award is repeated at this pace until the hold must have ended."""
    winners_max: int = 3
    """Winners tried in one round."""
    ttl_ms: int = 15_000
    """Of a lease; renewed at a third of it."""
    margin_ms: int = 1_000
    """What the grantor waits beyond the ttl: covers clocks whose rates differ."""
    orphan_ms: int = 30_000
    """A tenant whose grantor stays silent this long after expiry finishes on its own account."""
    grace_ms: int = 30_000
    """A task that misses its deadline by this much is reported failed."""
    ask_again_ms: int = 180_000
    ask_again_urgent_ms: int = 60_000
    """…when less than half an hour is left."""
    ask_again_at_least_ms: int = 1_000
    """An offer that shows room brings a new auction at once, but never closer than this."""
    offer_every_ms: int = 15_000
    offer_gap_ms: int = 2_000
    """Offers of one node are never closer than this."""
    offer_ages_ms: int = 50_000
    """An offer unheard for this long leaves the book: three were missed."""
    resend_ms: int = 1_000
    """First repetition of an unanswered Done or Lost; doubles up to resend_max_ms."""
    resend_max_ms: int = 60_000

    tier: str = "T1"
    """How overspending is met, for people: "T0", "T1"; "T2" where there are witnesses."""
    witnesses: tuple[bytes, ...] = ()
    """Keys of the quorum without whose certificate no award is made, nor taken on (T2)."""
    credit_line: int = 1_000_000_000
    """µcr that a buyer may owe us and have reserved with us, unless its own line says otherwise."""
    slices: int = 8
    """A long task is signed for in at most about this many parts…"""
    slice_at_least: int = 100_000
    """…of so many µcr or more: what a seller works for beyond what its buyer has signed for."""
    head_every: int = 1_024
    """Entries of our own chain between two that sign all before them."""
    save_at_least_ms: int = 10_000
    """The state of a run is kept no more often than this…"""
    save_at_most_ms: int = 600_000
    """…and no more seldom."""
    states_kept_max: int = 8
    """States of tasks that run elsewhere, kept in case they come here…"""
    state_kept_bytes_max: int = 1 << 30
    """…each of at most so many bytes…"""
    state_kept_ms: int = 1_800_000
    """…until nobody has brought a newer one for so long."""
    preempt_times: int = 2
    """A run makes room for one whose buyer would pay so many times its price…"""
    preempt_gap_ms: int = 60_000
    """…and not for the next one before so long: asking costs nothing."""
    late_max: int = 3
    """A run is asked back, for another place, when so many renewals in a row came late…"""
    late_gap_ms: int = 60_000
    """…and not the next one before so long: where all are late it is we who are hard to reach."""
    leave_ahead_ms: int = 600_000
    """Runs make room so long before the owner is expected to need it."""
    claim_ms: int = 600_000
    """A bill or a slice that stays unsigned so long is claimed on the seller's own word."""

    offers_max: int = 1_024
    tasks_open_max: int = 1_024
    tasks_ended_max: int = 1_024
    """Ended tasks kept in memory; all of them stay in the node's files."""
    holds_max: int = 64
    tenancies_max: int = 256
    allocs_max: int = 4_096
    """Open ALLOC entries of ours: awards neither settled nor void."""

    def ask_pause_s(self, left_s: float) -> float:
        """How long a task with so much time left waits before it is asked about again."""
        urgent, usual = self.ask_again_urgent_ms, self.ask_again_ms
        return (urgent if left_s < _URGENT_S else usual) / 1000

    def retry_pause_s(self, misses: int) -> float:
        """How long what may work again any moment waits, after so many failed rounds."""
        return self.ask_again_at_least_ms / 1000 * float(2 ** min(misses, 8))

    def width(self, misses: int) -> int:
        """How many to ask after so many failed rounds."""
        return (self.candidates, self.candidates_wide, self.offers_max)[min(misses, 2)]
