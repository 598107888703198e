"""Kinds of settings: how a value is read from TOML, a flag or the environment, and written back.

Pure. Each `read` takes what TOML or a shell hands over, so a number may come as text.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen

from mesh import units
from mesh.ids import parse_peer

TEXT_MAX = 4096
"""Characters of any text value."""
LIST_MAX = 64
"""Items of any list value."""


@frozen
class Kind:
    """How a value is read, checked and written. `read` raises ValueError with the reason."""

    what: str
    """What a good value looks like, for the fix line."""
    read: Callable[[object], Any]
    write: Callable[[Any], str]
    """As TOML."""


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _text_of(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    if len(value) > TEXT_MAX or not value.isprintable():
        raise ValueError(f"is longer than {TEXT_MAX} characters or not printable")
    return value.strip()


def _within(number: int, low: int, high: int, show: Callable[[int], str] = str) -> int:
    if not low <= number <= high:
        raise ValueError(f"{show(number)} is not within {show(low)}…{show(high)}")
    return number


def whole(low: int, high: int, unit: str) -> Kind:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"{value!r} is not a whole number")
        if isinstance(value, str) and not re.fullmatch(r"-?[0-9]{1,18}", value.strip()):
            raise ValueError(f"{value!r} is not a whole number")
        return _within(int(value), low, high)

    return Kind(f"a whole number of {unit} from {low} to {high}", read, str)


def port() -> Kind:
    return Kind("a port from 1 to 65535, or 0 for any free one", whole(0, 65_535, "").read, str)


def _measured(
    parse: Callable[[str], int], show: Callable[[int], str], low: int, high: int, example: str
) -> Kind:
    """A quantity with a unit, written as text."""

    def read(value: object) -> int:
        return _within(parse(_text_of(value)), low, high, show)

    what = f'text with its unit, from "{show(low)}" to "{show(high)}", such as "{example}"'
    return Kind(what, read, lambda value: _quoted(show(value)))


def size(low: int, high: int, example: str) -> Kind:
    return _measured(units.parse_size, units.format_size, low, high, example)


def money(low: int, high: int) -> Kind:
    kind = _measured(units.parse_money, units.format_money, low, high, "0.0400")
    what = f'credits as text, from "{units.format_money(low)}" to "{units.format_money(high)}"'
    return Kind(what, kind.read, kind.write)


def cores(low: int, high: int) -> Kind:
    kind = _measured(units.parse_cores, units.format_cores, low, high, "2")

    def read(value: object) -> int:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return int(kind.read(str(value) if is_number else value))

    what = f"cores from {units.format_cores(low)} to {units.format_cores(high)}, such as 2 or 0.5"
    return Kind(what, read, units.format_cores)


def milliseconds(low: int, high: int) -> Kind:
    """Milliseconds: a bare whole number, or text with a unit."""
    return _timed(low, high, 1, "milliseconds")


def seconds(low: int, high: int) -> Kind:
    """Seconds: a bare whole number, or text with a unit."""
    return _timed(low, high, 1000, "seconds")


def _timed(low: int, high: int, unit_ms: int, unit: str) -> Kind:
    counted = whole(low, high, unit)

    def read(value: object) -> int:
        if not (isinstance(value, str) and value.strip()[-1:].isalpha()):
            return int(counted.read(value))
        count, rest = divmod(units.parse_duration(value), unit_ms)
        if rest:
            raise ValueError(f"{value!r} is not a whole number of {unit}")
        return _within(count, low, high)

    return Kind(counted.what, read, str)


def or_auto(kind: Kind) -> Kind:
    def read(value: object) -> object:
        return None if value == "auto" else kind.read(value)

    def write(value: object) -> str:
        return '"auto"' if value is None else kind.write(value)

    return Kind(f'"auto", or {kind.what}', read, write)


def choice(*options: str) -> Kind:
    def read(value: object) -> str:
        if value not in options:
            raise ValueError(f"{value!r} is not one of them")
        return str(value)

    return Kind("one of " + ", ".join(_quoted(option) for option in options), read, _quoted)


def _read_flag(value: object) -> bool:
    by_text = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in by_text:
        return by_text[value.strip().lower()]
    raise ValueError(f"{value!r} is neither true nor false")


def _read_host(value: object) -> str:
    host = _text_of(value)
    ipaddress.ip_address(host)
    return host


def _read_loopback(value: object) -> str:
    host = _read_host(value)
    if not ipaddress.ip_address(host).is_loopback:
        raise ValueError(f"{host} is not a loopback address: others could use this node unasked")
    return host


def _read_url(value: object) -> str:
    url = _text_of(value)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http or https URL")
    return url.rstrip("/")


def _items(value: object, what: str) -> tuple[str, ...]:
    """A list, or (from the environment) text with commas."""
    items = [item for item in value.split(",") if item] if isinstance(value, str) else value
    if not isinstance(items, Sequence) or len(items) > LIST_MAX:
        raise ValueError(f"is not a list of at most {LIST_MAX} {what}")
    return tuple(_text_of(item) for item in items)


def _read_addresses(value: object) -> tuple[str, ...]:
    addresses = _items(value, "addresses")
    for address in addresses:
        if not address.startswith("/") or "/p2p/" not in address:
            raise ValueError(f"{address!r} is not a full multiaddress")
    return addresses


def _read_listens(value: object) -> tuple[str, ...]:
    addresses = _items(value, "addresses")
    for address in addresses:
        if not address.startswith("/") or "/tcp/" not in address or "/p2p/" in address:
            raise ValueError(f"{address!r} is not a multiaddress without /p2p/")
    return addresses


def _read_peers(value: object) -> tuple[str, ...]:
    peers = _items(value, "peer ids")
    for peer in peers:
        parse_peer(peer)
    return peers


def _write_list(items: Sequence[str]) -> str:
    return "[" + ", ".join(_quoted(item) for item in items) + "]"


FLAG = Kind("true or false", _read_flag, lambda value: str(value).lower())
PATH = Kind("a path", _text_of, _quoted)
HOST = Kind('an IP address, such as "0.0.0.0"', _read_host, _quoted)
LOOPBACK = Kind('a loopback address, such as "127.0.0.1"', _read_loopback, _quoted)
URL = Kind('a URL, such as "http://localhost:5001"', _read_url, _quoted)
NAME = Kind("text", _text_of, _quoted)
ADDRESSES = Kind(
    'a list such as ["/ip4/192.0.2.7/tcp/4001/p2p/12D3KooW…"]',
    _read_addresses,
    _write_list,
)
LISTENS = Kind('a list such as ["/ip4/192.0.2.7/tcp/4001"]', _read_listens, _write_list)
PEERS = Kind('a list of peer ids such as ["12D3KooW…"]', _read_peers, _write_list)
