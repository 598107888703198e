"""The measurement of a move: it moves for real, and ends there as it would have ended here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

HEAP = Path(__file__).parents[2] / "guests" / "heap.movable.wasm"


@pytest.mark.long
async def test_a_task_is_moved_between_two_processes_and_timed(
    tool: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    downtime = tool("downtime")
    limits = {"memory": 8 << 20, "after": 100_000_000}
    cold = await downtime.move(
        HEAP, ("4", "30000"), tmp_path / "cold", copies=0, waits=True, **limits
    )
    result, stdout = cold.end
    assert (result.status, result.exit_code) == ("exited", 0)
    assert stdout == b"4 MiB, 30000 rounds: a673d997bb8b7ed8\n", "as heap.wasm says, unmoved"
    copied = await downtime.move(HEAP, ("4", "1000000000"), tmp_path / "copied", copies=2, **limits)
    assert 0 < copied.suspend_ms < copied.downtime_ms
    assert copied.moved < cold.moved / 2 < copied.copied[0]
