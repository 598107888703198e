"""The node's key: made once, private, never replaced, never printed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from ledger.keys import verify
from mesh.errors import ConfigError
from mesh.identity.keys import SIZE_MAX, NodeKey, identity, load, load_or_create

SEED = bytes(range(32))


def pem_of(
    key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey,
    protection: KeySerializationEncryption | None = None,
) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection or NoEncryption())


def put(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def complaint(act: Callable[[Path], NodeKey], path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        act(path)
    assert caught.value.key == "identity.key_file"
    return caught.value


def test_the_first_run_makes_a_key_and_the_next_ones_find_it(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "node.key"
    made = load_or_create(path)
    assert load_or_create(path) == load(path) == made


def test_two_nodes_never_get_one_key(tmp_path: Path) -> None:
    one, other = (load_or_create(tmp_path / name / "node.key") for name in "ab")
    assert one.peer != other.peer
    assert one.seed != other.seed


def test_nobody_else_can_read_a_new_key_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "node.key"
    before = os.umask(0)
    try:
        load_or_create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_making_a_key_leaves_nothing_else_behind(tmp_path: Path) -> None:
    load_or_create(tmp_path / "keys" / "node.key")
    assert [found.name for found in (tmp_path / "keys").iterdir()] == ["node.key"]


async def test_nodes_that_start_at_the_same_moment_share_the_first_ones_key(
    tmp_path: Path,
) -> None:
    path, keys = tmp_path / "keys" / "node.key", []

    async def start() -> None:
        keys.append(await trio.to_thread.run_sync(load_or_create, path))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(start)
    assert len({key.peer for key in keys}) == 1


def test_the_file_is_pkcs8_that_other_tools_read_and_write(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.from_private_bytes(SEED)
    loaded = load(put(tmp_path / "node.key", pem_of(key)))
    assert loaded.seed == SEED
    assert loaded.peer == key.public_key().public_bytes_raw()
    assert load_or_create(tmp_path / "new.key").seed != SEED
    assert (tmp_path / "new.key").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")


def test_it_signs_as_rfc_8032_says(tmp_path: Path) -> None:
    key = NodeKey(SEED)
    assert key.sign(b"offer") == Ed25519PrivateKey.from_private_bytes(SEED).sign(b"offer")
    assert verify(key.peer, b"offer", key.sign(b"offer"))
    assert not verify(key.peer, b"other", key.sign(b"offer"))


def test_an_identity_signs_and_verifies_as_its_key() -> None:
    me = identity(NodeKey(SEED))
    assert me.peer == NodeKey(SEED).peer
    assert me.verify(me.peer, b"bid", me.sign(b"bid"))
    assert not me.verify(NodeKey(bytes(32)).peer, b"bid", me.sign(b"bid"))


def test_a_key_never_prints_its_secret() -> None:
    key = NodeKey(SEED)
    for text in (repr(key), str(key), f"{key}", repr(identity(key))):
        assert SEED.hex() not in text
        assert repr(SEED)[2:-1] not in text


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o660, 0o601])
def test_a_key_that_others_can_touch_is_refused_with_the_fix(tmp_path: Path, mode: int) -> None:
    path = put(tmp_path / "my key", pem_of(Ed25519PrivateKey.generate()), mode)
    for act in (load, load_or_create):
        refusal = complaint(act, path)
        assert f"permissions {mode:04o}" in refusal.why
        assert "too open" in refusal.why
        assert refusal.hint == f"chmod 600 '{path}'"


def test_a_configured_key_must_be_there(tmp_path: Path) -> None:
    refusal = complaint(load, tmp_path / "absent.key")
    assert "there is no key at" in refusal.why
    assert "have one made" in refusal.hint
    assert list(tmp_path.iterdir()) == []


def test_a_missing_disk_is_no_first_run(tmp_path: Path) -> None:
    refusal = complaint(load_or_create, tmp_path / "usb" / "keys" / "node.key")
    assert f"{tmp_path / 'usb'} does not exist" in refusal.why
    assert f"mkdir -p {tmp_path / 'usb'}" in refusal.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"-----BEGIN PRIVATE KEY-----\n", b"\0" * 200, b"x" * (SIZE_MAX + 1)],
    ids=["empty", "cut off", "zeros", "huge"],
)
def test_a_damaged_key_is_reported_and_never_replaced(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "node.key", content)
    refusal = complaint(load_or_create, path)
    assert str(path) in refusal.why
    assert "backup" in refusal.hint
    assert path.read_bytes() == content


def test_a_key_of_another_kind_is_named_as_such(tmp_path: Path) -> None:
    path = put(tmp_path / "node.key", pem_of(ec.generate_private_key(ec.SECP256R1())))
    assert "not an Ed25519 key" in complaint(load, path).why


def test_a_key_under_a_passphrase_is_named_as_such(tmp_path: Path) -> None:
    locked = pem_of(Ed25519PrivateKey.generate(), BestAvailableEncryption(b"secret"))
    refusal = complaint(load, put(tmp_path / "node.key", locked))
    assert "passphrase" in refusal.why
    assert "openssl pkey" in refusal.hint


def test_a_pipe_or_a_folder_is_no_key(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(0o700)
    assert "not a regular file" in complaint(load_or_create, tmp_path / "pipe").why
    assert "folder" in complaint(load_or_create, tmp_path / "folder").why


def test_a_file_in_the_place_of_the_folder_is_reported(tmp_path: Path) -> None:
    put(tmp_path / "keys", b"")
    assert "Not a directory" in complaint(load_or_create, tmp_path / "keys" / "node.key").why
