"""Whole nodes in this process that meet bugs, damaged disks and full ones: how they end."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest
from market_players import order

from ledger.errors import LedgerError
from ledger.store import Store
from mesh import node
from mesh.belongings import open_belongings
from mesh.cli.settings import load
from mesh.config import Config
from mesh.driver import Driver
from mesh.errors import ConfigError, Corruption, Unavailable
from mesh.ids import PeerId
from mesh.paths import Home
from mesh.sansio import Submitted, Woken
from mesh.sim import run as sim
from mesh.storage.journal import open_journal

POISON = Woken("window", None, 0)
"""An event that no shell makes: the kernel asserts that a window has a task."""


@pytest.fixture
def home() -> Iterator[tuple[Config, Home]]:
    folder = Path(mkdtemp(prefix="mesh-"))  # short: sockets have short paths
    yield at(folder)
    rmtree(folder)


def at(folder: Path, **more: str) -> tuple[Config, Home]:
    """A node's settings with its home in *folder*."""
    quiet = {
        "MESH_HOME": str(folder),
        "MESH_NETWORK__LISTEN_HOST": "127.0.0.1",
        "MESH_NETWORK__LISTEN_PORT": "0",
        "MESH_NETWORK__GRPC_PORT": "0",
        "MESH_NETWORK__WEBSOCKET_PORT": "0",
        "MESH_NETWORK__MDNS": "false",
    }
    return load(environ=quiet | more)


class Seen(Driver):
    """The driver, kept where a test can reach it."""

    newest: Driver

    def __init__(self, core: object) -> None:
        super().__init__(core)  # type: ignore[arg-type]
        Seen.newest = self


def run_until(
    home: tuple[Config, Home], monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]
) -> None:
    """Run a node and *act* once it is up."""
    monkeypatch.setattr(node, "Driver", Seen)

    def announce(facts: Mapping[str, object]) -> None:
        act()

    node.main(*home, announce=announce)


@pytest.mark.slow
def test_a_crash_leaves_what_the_simulator_replays_to_the_same_crash(
    home: tuple[Config, Home],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        run_until(home, monkeypatch, lambda: Seen.newest.post_nowait(POISON))
    assert caught.group_contains(AssertionError)
    (left,) = home[1].state.glob("crash-*.jsonl")
    assert f"mesh sim --replay {left}" in capsys.readouterr().err
    assert not home[1].facts.exists(), "who looks for the node finds none"
    assert sim.main(["--replay", str(left)]) == 1
    assert "AssertionError: Woken(timer='window', subject=None" in capsys.readouterr().out


@pytest.mark.slow
def test_a_bug_is_kept_even_where_a_full_disk_came_with_it(
    home: tuple[Config, Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    def two() -> BaseExceptionGroup[Exception]:
        return ExceptionGroup("", [AssertionError("a bug"), Unavailable("its consequence")])

    async def serve(*_: object) -> None:
        raise two()

    monkeypatch.setattr(node, "_serve", serve)
    with pytest.raises(Unavailable):
        node.main(*home, announce=lambda _: None)
    assert list(home[1].state.glob("crash-*.jsonl"))


@pytest.mark.parametrize(
    ("error", "said", "hint"),
    [
        (OSError(errno.ENOSPC, "no space"), "the disk is full", "free some"),
        (LedgerError("the disk is full: ledger", "make room"), "the ledger: the disk", "make room"),
    ],
)
def test_a_full_disk_is_one_line_and_a_hint(error: Exception, said: str, hint: str) -> None:
    told = node._told(error)
    assert isinstance(told, node.Stopped)
    assert str(told).startswith(said)
    assert hint in told.hint
    assert hint not in str(told)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["journal", "ledger"])
def test_a_disk_that_takes_no_more_stops_the_node_in_order(
    home: tuple[Config, Home], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A file that somebody holds for ever, and SQLite's own wait made short."""
    name = {"journal": "node.sqlite", "ledger": "ledger.sqlite"}[what]
    monkeypatch.setattr("ledger.database.BUSY_WAIT_S", 0.1)
    monkeypatch.setattr("mesh.storage.journal.BUSY_WAIT_S", 0.1)
    other: list[sqlite3.Connection] = []

    def jam() -> None:
        jammed = sqlite3.connect(home[1].state / name, isolation_level=None)
        jammed.execute("BEGIN IMMEDIATE")
        other.append(jammed)
        Seen.newest.post_nowait(Submitted(order(PeerId(bytes(32)))))

    if what == "ledger":
        Store.open(_made(home) / name).close()
        other.append(sqlite3.connect(home[1].state / name, isolation_level=None))
        other[0].execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="the ledger: ") as caught:
            node.main(*home, announce=lambda _: None)
    else:
        with pytest.raises(Unavailable, match="journal cannot be written") as caught:
            run_until(home, monkeypatch, jam)
    assert getattr(caught.value, "hint", "")
    other[0].close()
    assert not list(home[1].state.glob("crash-*.jsonl")), "no bug, no black box"
    assert not home[1].facts.exists()


def test_a_journal_that_does_not_load_stops_the_node(home: tuple[Config, Home]) -> None:
    with open_journal(_made(home) / "node.sqlite"):
        broken = sqlite3.connect(home[1].state / "node.sqlite", isolation_level=None)
        broken.execute("INSERT INTO task VALUES (x'00', 0, 0, x'00')")
        broken.close()
    with pytest.raises(Corruption, match="TaskRecord"):
        node.main(*home, announce=lambda _: None)


@pytest.mark.slow
def test_a_second_node_at_one_home_or_with_one_key_is_turned_away(
    home: tuple[Config, Home], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keyed = at(tmp_path, MESH_IDENTITY__KEY_FILE=str(home[1].key_file))

    def again() -> None:
        for second, why in ((home, "is open in process"), (keyed, "another node runs with")):
            with pytest.raises(ConfigError, match=why), open_belongings(*second):
                raise AssertionError(why)
        Seen.newest.post_nowait(POISON)

    with pytest.raises(BaseExceptionGroup):
        run_until(home, monkeypatch, again)


def test_a_home_that_is_none_is_the_operators_to_mend(home: tuple[Config, Home]) -> None:
    home[1].data.mkdir(parents=True)
    (home[1].data / "blocks").write_text("a file where a folder belongs")
    with pytest.raises(ConfigError) as caught, open_belongings(*home):
        raise AssertionError("opened")
    assert caught.value.key == "MESH_HOME"
    assert "blocks" in caught.value.why


def test_a_lost_scratch_and_a_clock_set_back_are_survived(home: tuple[Config, Home]) -> None:
    with open_belongings(*home) as files:
        first = files.epoch
    rmtree(files.scratch)
    with open_belongings(*home) as files:
        assert files.epoch == first + 1
        assert files.scratch.is_dir()


def _made(home: tuple[Config, Home]) -> Path:
    home[1].state.mkdir(parents=True, exist_ok=True)
    return home[1].state
