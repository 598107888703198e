"""An operator's mistakes: one error line, one that says what to do, no traceback, no node."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from process_nodes import HOSTILE, Node, run_mesh

FREE = {"--port": "0", "--grpc-port": "0", "--websocket-port": "0"}
DISK = "16m"
PEER = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


def join(home: Path, *flags: str, **more: str) -> subprocess.CompletedProcess[str]:
    """`mesh join` on free ports; *flags* win."""
    free = [word for pair in FREE.items() for word in pair]
    return run_mesh(home, "join", "--host", "127.0.0.1", "--no-mdns", *free, *flags, **more)


def told(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """That it ended with one error, which has *parts*, and one hint."""
    lines = done.stderr.splitlines()
    assert done.returncode != 0
    assert done.stdout == ""
    assert [line.split(": ")[0] for line in lines] == ["error", "hint"], done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mesh-"))  # short: sockets have short paths
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("--port", "network.listen_port"),
        ("--grpc-port", "network.grpc_port"),
        ("--websocket-port", "network.websocket_port"),
    ],
)
@pytest.mark.long
def test_a_port_in_use(home: Path, flag: str, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told(join(home, flag, port), key, port, "in use", "choose another port")
    assert not (home / "run" / "node.json").exists()


def test_a_key_file_that_is_not_there(home: Path) -> None:
    told(join(home, "--key-file", "nowhere.key"), "identity.key_file", "no key at nowhere.key")


def test_a_key_that_others_can_read(home: Path) -> None:
    key = home / "node.key"
    key.write_text("secret")
    key.chmod(0o644)
    told(join(home, "--key-file", str(key)), "0644", f"chmod 600 {key}")


def test_a_key_of_the_configuration_that_is_none(home: Path) -> None:
    (home / "config.toml").write_text("[sell]\nprise = '0.04'\n")
    told(join(home), "sell.prise", str(home / "config.toml"), "did you mean sell.price?")
    (home / "config.toml").unlink()
    told(join(home, MESH_MARKET__LEASE_TTL="3"), "did you mean market.lease_ttl_s?")


def test_a_value_out_of_range(home: Path) -> None:
    told(join(home, MESH_MARKET__LEASE_TTL_S="0"), "market.lease_ttl_s", "MESH_MARKET__LEASE_TTL_S")


def test_a_bootstrap_address_that_is_none(home: Path) -> None:
    told(join(home, "--bootstrap", "example.org:4001"), "network.bootstrap", "example.org:4001")


@pytest.mark.parametrize(
    ("witnesses", "parts"),
    [
        ("", ("0 witnesses", "name 1 to 64")),
        (f"{PEER},{PEER}", ("a witness is named twice", "name each once")),
        ("alice", ("alice", "MESH_LEDGER__WITNESSES")),
    ],
    ids=["none", "one twice", "no peer id"],
)
def test_t2_without_a_quorum_to_ask(home: Path, witnesses: str, parts: tuple[str, ...]) -> None:
    done = join(home, MESH_LEDGER__TIER="T2", MESH_LEDGER__WITNESSES=witnesses)
    told(done, "ledger.witnesses", *parts)
    assert done.returncode == 2


@pytest.mark.long
def test_a_home_that_has_its_node_already(home: Path) -> None:
    node = Node("only", home, [], {})
    node.start()
    try:
        node.wait_up()
        told(join(home))
        assert node.client.status().peer == node.peer, "the first one minds nothing"
    finally:
        node.stop()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of its own for *folder*; skips where this user may not mount one."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all there is."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


@pytest.mark.long
def test_a_disk_that_is_full_before_the_start(home: Path) -> None:
    with small_disk(home):
        fill(home)
        done = join(home)
        assert done.returncode != 0
        error, hint = done.stderr.splitlines()
        assert error.startswith("error: ")
        assert "No space left on device" in error
        assert hint.startswith("hint: ")


@pytest.mark.long
def test_a_disk_that_fills_up_is_told_to_the_client_and_the_node_goes_on(home: Path) -> None:
    with small_disk(home):
        node = Node("only", home, [], {})
        node.start()
        try:
            node.wait_up()
            filler = fill(home)
            words = ("submit", "--detach", "-o", "id", "--", str(HOSTILE))
            told(node.command(*words), "is full", "free some of it")
            filler.unlink()
            done = node.command(*words)
            assert done.returncode == 0, done.stderr
            assert node.client.task("@last").id == done.stdout.strip()
            assert node.leave() == 0
        finally:
            node.stop()
