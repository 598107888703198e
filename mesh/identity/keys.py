"""The node's own key: made once, kept where nobody else can read it, never printed.

An Ed25519 key in PKCS#8 PEM (RFC 8410), unencrypted: `openssl pkey` reads it. Its public half *is*
the node, so a key is never overwritten and never silently replaced: a file that is there but is not
good stops the node, with the reason and the way out.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import stat
import tempfile
from pathlib import Path

from attrs import field, frozen
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from nacl.bindings import crypto_sign, crypto_sign_seed_keypair

from ledger import keys
from mesh.errors import ConfigError
from mesh.ids import PeerId, short_peer
from mesh.sansio import Identity

_log = logging.getLogger("mesh.identity")

SETTING = "identity.key_file"
"""What an error names as its key."""
SIZE_MAX = 16 * 1024
"""A PEM key has some 120 bytes; whatever is much longer is not one."""
SIGNATURE_LENGTH = 64


@frozen(repr=False)
class NodeKey:
    """An Ed25519 key pair. Signing is deterministic (RFC 8032) and takes some 20 µs."""

    seed: bytes
    """The private key, 32 bytes."""
    peer: PeerId = field(init=False)
    """The public key: who this node is."""
    _expanded: bytes = field(init=False, eq=False)

    def __attrs_post_init__(self) -> None:
        public, expanded = crypto_sign_seed_keypair(self.seed)
        object.__setattr__(self, "peer", PeerId(public))
        object.__setattr__(self, "_expanded", expanded)

    def sign(self, message: bytes) -> bytes:
        """The signature of *message*, 64 bytes."""
        return crypto_sign(message, self._expanded)[:SIGNATURE_LENGTH]

    def __repr__(self) -> str:
        return f"NodeKey(…{short_peer(self.peer)})"


def identity(key: NodeKey) -> Identity:
    """Who a core is, when it is the node of *key*."""
    return Identity(key.peer, key.sign, keys.verify)


def load_or_create(path: Path) -> NodeKey:
    """The key at *path*; on the first run it is made there, in a folder of its owner's alone.

    The folder itself may be missing, but not what it is in: that is a disk which is not mounted
    rather than a first run. Raises ConfigError.
    """
    try:
        return _read(path)
    except FileNotFoundError:
        _create(path)
    return load(path)  # ours, or that of a node which started at the same moment


def load(path: Path) -> NodeKey:
    """The key at *path*, which must be there. Raises ConfigError."""
    try:
        return _read(path)
    except FileNotFoundError:
        why = f"there is no key at {path}"
        hint = f"name the file you mean, or leave {SETTING} out to have one made"
        raise ConfigError(SETTING, why, hint) from None


def create(path: Path) -> NodeKey:
    """A new key at *path*, where there must be none. Raises ConfigError."""
    if path.exists():
        raise ConfigError(str(path), "is there already: a key is never overwritten", "name another")
    _create(path)
    return load(path)


def lock(path: Path) -> int:
    """Hold the key at *path* until the descriptor is closed. Raises ConfigError.

    Two nodes with one key would fork its chain: on one machine the second is turned away.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(
            SETTING, f"another node runs with {path}", "stop it, or give each a key of its own"
        ) from None
    except OSError as error:
        _log.warning("%s cannot be locked: %s", path, error)
    return descriptor


def write_whole(path: Path, data: bytes) -> None:
    """*data* at *path*, for its owner alone: durable, and never half of it. Raises ConfigError."""
    try:
        descriptor, fresh = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            os.replace(fresh, path)
        except BaseException:
            os.unlink(fresh)
            raise
        sync_folder(path.parent)
    except OSError as error:
        why = f"cannot be written: {error.strerror}"
        raise ConfigError(str(path), why, "check the folder, and its disk") from None


def _read(path: Path) -> NodeKey:
    try:
        # Non-blocking: a pipe under this name must not stop the node for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            _check_privacy(path, os.fstat(descriptor))
            pem = file.read(SIZE_MAX + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        why = f"cannot read {path}: {error.strerror}"
        raise ConfigError(SETTING, why, "name another file, or let this one be read") from None
    return _parse(path, pem)


def _check_privacy(path: Path, status: os.stat_result) -> None:
    """Refuse, as ssh does, what others can read; a file of another owner (a service manager's
    credential, shown to us by an access list) may have group bits."""
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(SETTING, f"{path} is not a regular file")
    others = 0o077 if status.st_uid == os.geteuid() else 0o007
    if status.st_mode & others:
        mode = stat.S_IMODE(status.st_mode)
        why = f"permissions {mode:04o} for {path} are too open: others can use your private key"
        raise ConfigError(SETTING, why, f"chmod 600 {shlex.quote(str(path))}")


def _parse(path: Path, pem: bytes) -> NodeKey:
    restore = "restore it from a backup; without it move the file away, and be a new node"
    if len(pem) > SIZE_MAX:
        raise ConfigError(SETTING, f"{path} is too long to be a private key", restore)
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        hint = f"openssl pkey -in {shlex.quote(str(path))} -out PLAIN writes it without"
        raise ConfigError(SETTING, f"{path} is protected by a passphrase", hint) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(SETTING, f"{path} is damaged: not a PEM private key", restore) from None
    if not isinstance(key, Ed25519PrivateKey):
        hint = "openssl genpkey -algorithm ed25519 makes a fitting one"
        raise ConfigError(SETTING, f"{path} is not an Ed25519 key", hint)
    return NodeKey(key.private_bytes_raw())


def _create(path: Path) -> None:
    """Make a new key at *path* and make it durable; whoever comes second finds the first's.

    It is written beside its place and then linked there: the name appears with the whole key or
    not at all, and never replaces another.
    """
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    folder = path.parent
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor, fresh = tempfile.mkstemp(prefix=".new-key-", dir=folder)  # 0600, O_EXCL
        try:
            with open(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(descriptor)
            os.link(fresh, path)
        except FileExistsError:
            return
        finally:
            os.unlink(fresh)
        sync_folder(folder)
        sync_folder(folder.parent)
    except FileNotFoundError:
        why = f"{folder.parent} does not exist, so no key can be made at {path}"
        hint = f"mount it, or: mkdir -p {shlex.quote(str(folder.parent))}"
        raise ConfigError(SETTING, why, hint) from None
    except OSError as error:
        why = f"cannot make a key at {path}: {error.strerror}"
        raise ConfigError(SETTING, why, "free some space there, or set MESH_HOME") from None


def sync_folder(folder: Path) -> None:
    """Make names in *folder* durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
