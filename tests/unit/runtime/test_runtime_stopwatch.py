"""The stopwatch: pauses do not count."""

from __future__ import annotations

from trio.testing import MockClock

from mesh.runtime.stopwatch import Stopwatch


async def test_pauses_do_not_count(mock_clock: MockClock) -> None:
    watch = Stopwatch(is_paused=False)
    mock_clock.jump(2)
    watch.pause()
    mock_clock.jump(1000)
    assert watch.is_paused
    assert watch.elapsed == 2
    watch.pause()
    watch.go_on()
    mock_clock.jump(3)
    watch.go_on()
    assert watch.elapsed == 5


async def test_it_may_begin_with_a_pause(mock_clock: MockClock) -> None:
    watch = Stopwatch(is_paused=True)
    mock_clock.jump(7)
    assert watch.elapsed == 0
    watch.go_on()
    mock_clock.jump(1)
    assert watch.elapsed == 1
