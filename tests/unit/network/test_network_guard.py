"""The guard: rates, scores, bans, and tables that stay small."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from mesh.ids import PeerId
from mesh.network.guard import Guard, GuardConfig

ALICE, BOB = PeerId(b"a" * 32), PeerId(b"b" * 32)
CONFIG = GuardConfig(
    frames_per_s=10,
    bytes_per_s=1000,
    verifications_per_s=2,
    cpu_ms_per_s=10,
    cpu_ms_all_per_s=30,
    burst_s=2,
    half_life_s=10,
    ban_score=10,
    ban_s=60,
    ban_max_s=200,
    ban_memory_s=1000,
    max_peers=4,
)


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    guard = Guard(CONFIG)
    assert [guard.delay(ALICE, 1, 0.0) for _ in range(20)] == [0.0] * 20
    assert math.isclose(guard.delay(ALICE, 1, 0.0), 0.1)
    assert guard.delay(ALICE, 1, 1.0) == 0.0


def test_many_bytes_wait_as_many_frames_do() -> None:
    guard = Guard(CONFIG)
    assert guard.delay(ALICE, 2000, 0.0) == 0.0
    assert math.isclose(guard.delay(ALICE, 500, 0.0), 0.5)


def test_one_peer_does_not_use_up_anothers_rate() -> None:
    guard = Guard(CONFIG)
    for _ in range(100):
        guard.delay(ALICE, 100, 0.0)
    assert guard.delay(BOB, 100, 0.0) == 0.0


def test_verification_has_a_budget_that_refills() -> None:
    guard = Guard(CONFIG)
    assert [guard.admits_verification(ALICE, 0.0) for _ in range(5)] == [True] * 4 + [False]
    assert guard.admits_verification(ALICE, 0.5)
    assert not guard.admits_verification(ALICE, 0.5)


def test_a_peer_takes_its_share_of_our_processor_and_no_more() -> None:
    guard = Guard(CONFIG)
    assert [guard.admits_work(ALICE, 5, 0.0) for _ in range(5)] == [True] * 4 + [False]
    assert guard.admits_work(BOB, 5, 0.0)
    assert guard.admits_work(ALICE, 5, 0.5)
    assert not guard.admits_work(ALICE, 5, 0.5)


def test_many_peers_together_take_no_more_than_is_granted_to_all() -> None:
    guard = Guard(CONFIG)
    assert [guard.admits_work(peer(n), 20, 0.0) for n in range(4)] == [True] * 3 + [False]
    assert [guard.admits_work(peer(n), 10, 1.0) for n in range(4)] == [True] * 3 + [False]


def test_a_banned_peer_verifies_nothing() -> None:
    guard = Guard(CONFIG)
    assert guard.fault(ALICE, 10, 0.0)
    assert not guard.admits_verification(ALICE, 1.0)
    assert not guard.admits_work(ALICE, 1, 1.0)


def test_faults_are_forgiven_with_time() -> None:
    guard = Guard(CONFIG)
    assert not guard.fault(ALICE, 8, 0.0)
    assert math.isclose(guard.score(ALICE, 10.0), 4.0)
    assert not guard.fault(ALICE, 5, 10.0)
    assert guard.fault(ALICE, 5, 10.0)


def test_a_ban_ends_and_the_next_is_longer_up_to_a_limit() -> None:
    guard, now = Guard(CONFIG), 0.0
    for length in (60, 120, 200, 200):
        assert guard.fault(ALICE, 10, now)
        assert guard.is_banned(ALICE, now + length - 1)
        now += length
        assert not guard.is_banned(ALICE, now)


def test_a_long_clean_time_wipes_out_earlier_bans() -> None:
    guard = Guard(CONFIG)
    guard.fault(ALICE, 10, 0.0)
    guard.fault(ALICE, 10, 100.0)
    later = 100.0 + 120.0 + 1001.0
    assert guard.fault(ALICE, 10, later)
    assert not guard.is_banned(ALICE, later + 60)


def test_only_the_fault_that_bans_says_so() -> None:
    guard = Guard(CONFIG)
    assert guard.fault(ALICE, 10, 0.0)
    assert not guard.fault(ALICE, 10, 1.0)


def test_a_ban_outlives_a_crowd_of_new_peers() -> None:
    """The table is full of strangers, and the ban still stands."""
    guard = Guard(CONFIG)
    guard.fault(ALICE, 10, 0.0)
    for number in range(50):
        guard.delay(peer(number), 1, 1.0)
    assert guard.is_banned(ALICE, 2.0)
    assert len(guard) == CONFIG.max_peers
    assert guard.forgotten == 47


def test_the_table_is_bounded_also_when_all_are_banned() -> None:
    guard = Guard(CONFIG)
    for number in range(50):
        assert guard.fault(peer(number), 10, 0.0)
    assert len(guard) == CONFIG.max_peers


def test_an_unknown_peer_has_no_score_and_no_ban() -> None:
    guard = Guard(CONFIG)
    assert guard.score(ALICE, 0.0) == 0.0
    assert not guard.is_banned(ALICE, 0.0)
    assert len(guard) == 0


steps = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 2000), st.floats(0, 1)), min_size=1, max_size=200
)


@given(steps)
def test_who_waits_as_told_never_exceeds_burst_and_rate(
    frames: list[tuple[int, int, float]],
) -> None:
    guard, now, size_sent = Guard(CONFIG), 0.0, 0
    for sent, (_, size, pause) in enumerate(frames, 1):
        now += guard.delay(ALICE, size, now) + pause
        size_sent += size
        # one frame may overdraw the bucket; its debt is waited for before the next
        assert sent <= CONFIG.frames_per_s * (now + CONFIG.burst_s) + 1 + 1e-6
        assert size_sent <= CONFIG.bytes_per_s * (now + CONFIG.burst_s) + 2000 + 1e-6


@given(steps)
def test_tables_scores_and_bans_stay_within_bounds(
    faults: list[tuple[int, int, float]],
) -> None:
    guard, now = Guard(CONFIG), 0.0
    for number, weight, pause in faults:
        now += pause
        guard.fault(peer(number), weight / 200, now)
        guard.delay(peer(number + 1), 1, now)
        assert len(guard) <= CONFIG.max_peers
        assert 0 <= guard.score(peer(number), now) < CONFIG.ban_score
        assert not guard.is_banned(peer(number), now + CONFIG.ban_max_s)
