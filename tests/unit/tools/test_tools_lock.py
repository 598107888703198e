"""config/requirements.lock: made from pyproject.toml, for everybody, with nothing of its maker."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
LOCK = (ROOT / "config" / "requirements.lock").read_text()
PINS = re.compile(r"^([a-z0-9.-]+)==(\S+)", re.MULTILINE)


@pytest.fixture(scope="module")
def wanted(tool: Callable[[str], ModuleType]) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: list[str] = tool("lock").requirements(project)
    return found


def test_every_package_that_the_project_names_is_pinned(wanted: list[str]) -> None:
    pinned = {name for name, _ in PINS.findall(LOCK)}
    names = {re.split(r"[^A-Za-z0-9._-]", name)[0].lower() for name in wanted}
    assert names - pinned == set(), "run tools/lock.py"


def test_a_version_that_the_project_fixes_is_the_locked_one(wanted: list[str]) -> None:
    pinned = set(PINS.findall(LOCK))
    fixed = {tuple(name.split("==", 1)) for name in wanted if "==" in name}
    assert fixed
    assert fixed <= pinned, "run tools/lock.py"


def test_every_pin_has_a_hash() -> None:
    blocks = re.split(r"^(?=[a-z])", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) > 100
    assert all("--hash=sha256:" in block for block in blocks)


def test_the_lock_tells_nothing_of_where_it_was_made() -> None:
    assert "://" not in LOCK
    assert not re.search(r"(?m)^\s*#.*(/|\.txt|\.in\b)", LOCK.replace("tools/lock.py", ""))
    assert not re.search(r"(?m)^-", LOCK)
