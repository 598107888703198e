"""Where the doors of a node may be: loopback addresses and Unix sockets of one's own.

Off loopback a door needs TLS and login, which this version does not have.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from pathlib import Path

from mesh.errors import ConfigError
from mesh.paths import SOCKET_PATH_MAX


def check_loopback(host: str, key: str) -> str:
    """*host* as a loopback IP address. Raises ConfigError about *key*."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ConfigError(
            key,
            f"{host!r} is off loopback, which needs TLS and login; this version has neither",
            "use 127.0.0.1 and reach it from elsewhere through `ssh -L`",
        )
    return host


def split_address(address: str, key: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:50051" or "[::1]:50051". Raises ConfigError about *key*."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(key, f"{address!r} is not HOST:PORT", "write it like 127.0.0.1:50051")
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_port(host: str, port: int, key: str) -> None:
    """Raise ConfigError about *key* when *port* of *host* cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise port_error(port, key, error) from None


def port_error(port: int, key: str, error: OSError) -> ConfigError:
    """Why *port* cannot be listened on, for people."""
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            key,
            f"port {port} is in use",
            "another node may run already (mesh status); choose another port, or 0 for any",
        )
    return ConfigError(key, f"cannot listen on port {port}: {error.strerror}", "choose another")


def claim_socket(path: Path, key: str) -> None:
    """Make way for a Unix socket at *path*: its folder is ours alone, nobody answers there.

    A socket that a dead node left behind is removed. Raises ConfigError about *key*.
    """
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise ConfigError(
            key,
            f"{path} is too long for a Unix socket ({SOCKET_PATH_MAX} bytes)",
            "choose a folder with a shorter path",
        )
    _check_folder(path.parent, key)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(key, f"{path} exists and is no socket", "move it away")
    if _is_answered(path):
        raise ConfigError(key, f"a node answers at {path}", "stop it first, or use another home")
    path.unlink(missing_ok=True)


def protect_socket(path: Path) -> None:
    """Nobody but the owner may connect. Until now the folder alone saw to that."""
    path.chmod(0o600)


def release_socket(path: Path) -> None:
    """Leave nothing stale behind."""
    path.unlink(missing_ok=True)


def _check_folder(folder: Path, key: str) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise ConfigError(key, f"{folder}: {error.strerror}", "choose another folder") from None
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(key, f"others can enter {folder}", f"chmod 700 {folder}")


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:  # somebody listens and is busy
            return True
    return True
