"""Quantities as people write them: sizes, durations, money, cores. Exact; never through a float.

Bytes, milliseconds, micro-credits (µcr) and thousandths of a core inside; text only at the edges.
Every `parse_*` raises ValueError with a sentence that says what would be right.
"""

from __future__ import annotations

import re
from decimal import Decimal

CREDIT = 1_000_000
"""Micro-credits in a credit."""

_NUMBER = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)", re.ASCII)
_SIZES = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
_DURATIONS = {"ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_COUNTS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE_STEPS = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
_DURATION_STEPS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000))


def _scaled(text: str, units: dict[str, int], what: str) -> int:
    match = _NUMBER.fullmatch(text.strip())
    if match is None or match[2] not in units:
        raise ValueError(f"{text!r} is not {what}")
    exact = Decimal(match[1]) * units[match[2]]
    if exact != exact.to_integral_value():
        raise ValueError(f"{text!r} is finer than {what} can be")
    return int(exact)


def parse_size(text: str) -> int:
    """Bytes: `4GiB`, `500 MB`, `1.5KiB`, or a bare number of bytes."""
    return _scaled(text, _SIZES, "a size (512MiB, 4GiB, 500MB)")


def format_size(size: int) -> str:
    """Exact: the largest unit that divides *size*."""
    for unit, step in _SIZE_STEPS:
        if size >= step and size % step == 0:
            return f"{size // step}{unit}"
    return f"{size}B"


def show_size(size: int) -> str:
    """For people: three digits and a unit."""
    for unit, step in _SIZE_STEPS:
        if size >= step:
            return f"{size / step:.3g} {unit}" if size < 1000 * step else f"{size // step} {unit}"
    return f"{size} B"


def parse_duration(text: str) -> int:
    """Milliseconds: `250ms`, `90s`, `1.5h`, `7d`. A bare number is refused: of what?"""
    return _scaled(text, _DURATIONS, "a duration (250ms, 90s, 5m, 2h, 7d)")


def format_duration(ms: int) -> str:
    """Exact: the largest unit that divides *ms*."""
    for unit, step in _DURATION_STEPS:
        if ms >= step and ms % step == 0:
            return f"{ms // step}{unit}"
    return f"{ms}ms"


def show_duration(ms: int) -> str:
    """For people: `840 ms`, `12.3 s`, `4 min`, `2 h 5 min`."""
    if ms < 1000:
        return f"{ms} ms"
    seconds = ms // 1000
    if seconds < 60:
        return f"{ms / 1000:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60} min"
    if seconds < 86_400:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86_400} d {seconds % 86_400 // 3600} h"


def parse_money(text: str) -> int:
    """µcr from credits: `0.0400` is 40,000 µcr. At most six decimals."""
    return _scaled(text.removesuffix("cr"), {"": CREDIT}, "an amount of credits (0.0400)")


def format_money(ucr: int) -> str:
    """Credits with at least four decimals, more only where they matter; no unit."""
    sign, ucr = ("-", -ucr) if ucr < 0 else ("", ucr)
    whole, rest = divmod(ucr, CREDIT)
    decimals = f"{rest:06d}"
    return f"{sign}{whole}.{decimals[:4]}{decimals[4:].rstrip('0')}"


def show_money(ucr: int) -> str:
    """Credits with their unit: `0.0400 cr`."""
    return f"{format_money(ucr)} cr"


def parse_cores(text: str) -> int:
    """Thousandths of a core: `2`, `0.5`."""
    return _scaled(text, {"": 1000}, "a number of cores (2, 0.5)")


def format_cores(milli: int) -> str:
    """`2`, `0.5`."""
    whole, rest = divmod(milli, 1000)
    return f"{whole}.{rest:03d}".rstrip("0").rstrip(".")


def parse_count(text: str) -> int:
    """A plain number with an optional decimal multiple: `1000000`, `50M`, `2G`. Units of fuel."""
    return _scaled(text, _COUNTS, "a number (1000000, 50M, 2G)")
