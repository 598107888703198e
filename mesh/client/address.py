"""Where the node is: an address as people write it, or the running node of this machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

from mesh.client.errors import BadRequest, Unreachable
from mesh.paths import Home

ADDRESS_VARIABLE = "MESH_ADDR"


def find_target(address: str | None, environ: Mapping[str, str], home: Home) -> str:
    """The gRPC target of *address*, of MESH_ADDR, or of the node that runs here, in this order.

    Raises BadRequest for an address that cannot be one, Unreachable when no node runs here.
    """
    given = address or environ.get(ADDRESS_VARIABLE)
    if given:
        return parse_address(given)
    if not home.socket.exists():
        raise Unreachable(
            f"no node runs here (no socket at {home.socket})",
            "start one: mesh join · or name one: --node HOST:PORT, MESH_ADDR",
        )
    return unix_target(str(home.socket))


def unix_target(path: str) -> str:
    """gRPC reads the name of a socket as a URI, so that `%`, `#` and `?` need quoting."""
    return "unix:" + quote(path)


def parse_address(text: str) -> str:
    """The gRPC target of `HOST:PORT`, `grpc://HOST:PORT` or `unix:PATH`. Raises BadRequest."""
    if text.startswith(("unix:", "/")):
        return unix_target(text.removeprefix("unix:").removeprefix("//"))
    parts = urlsplit(text if "://" in text else f"grpc://{text}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "grpc" or not parts.hostname or port is None:
        raise BadRequest(
            f"{text!r} is not the address of a node",
            "write HOST:PORT, grpc://HOST:PORT or unix:PATH",
        )
    if not _is_loopback(parts.hostname):
        raise BadRequest(
            f"{parts.hostname} is another machine, and gRPC here is not encrypted",
            f"tunnel it: ssh -L {port}:127.0.0.1:{port} {parts.hostname}"
            f", then --node 127.0.0.1:{port}",
        )
    return f"[{parts.hostname}]:{port}" if ":" in parts.hostname else f"{parts.hostname}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
