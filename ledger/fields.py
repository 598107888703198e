"""What a field of the ledger's words may hold: each rule says what it wants, for the error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from attrs import frozen

from ledger.codec import UINT_MAX, Value
from ledger.errors import BadEntry

NAME_MAX = 64
"""Characters of a name, such as a meter's."""
CID_LENGTH = 36
CID_PREFIXES = frozenset(bytes((1, codec, 0x12, 0x20)) for codec in range(0x80))
"""How a CIDv1 begins, whatever its codec: the digest is SHA-256."""


@frozen
class Rule:
    """One field's: *want* completes "not ..."."""

    want: str
    holds: Callable[[Any], bool]


def uint(top: int = UINT_MAX) -> Rule:
    """An integer of 0 to *top*."""
    return Rule(f"an integer of at most {top}", lambda value: type(value) is int and value <= top)


def sized(*lengths: int) -> Rule:
    """Bytes, of one of these lengths."""
    want = "bytes, " + " or ".join(map(str, lengths)) + " of them"
    return Rule(want, lambda value: type(value) is bytes and len(value) in lengths)


def at_most(length: int) -> Rule:
    """Bytes, not more than *length*."""
    return Rule(
        f"at most {length} bytes", lambda value: type(value) is bytes and len(value) <= length
    )


def exactly(wanted: Value) -> Rule:
    """That value and no other."""
    return Rule(f"{wanted!r}", lambda value: type(value) is type(wanted) and value == wanted)


def many(rule: Rule, most: int) -> Rule:
    """An array of things alike."""
    return Rule(
        f"at most {most}, each {rule.want}",
        lambda value: type(value) is tuple and len(value) <= most and all(map(rule.holds, value)),
    )


def row(*rules: Rule) -> Rule:
    """An array of these, in this order."""
    return Rule(
        "[" + ", ".join(rule.want for rule in rules) + "]",
        lambda value: (
            type(value) is tuple
            and len(value) == len(rules)
            and all(rule.holds(item) for rule, item in zip(rules, value, strict=True))
        ),
    )


def _is_name(value: object) -> bool:
    # ASCII: what NFC makes of younger characters depends on each replica's Unicode tables.
    return (
        type(value) is str
        and 0 < len(value) <= NAME_MAX
        and value.isascii()
        and value.isprintable()
    )


def _is_cid(value: object) -> bool:
    return type(value) is bytes and len(value) == CID_LENGTH and value[:4] in CID_PREFIXES


UINT = uint()
KEY = sized(32)
HASH = sized(32)
SIGNATURE = sized(64)
CID = Rule(f"a CIDv1 with sha2-256 of {CID_LENGTH} bytes", _is_cid)
CID_OR_NONE = Rule("a CIDv1 or no bytes", lambda value: value == b"" or _is_cid(value))
NAME = Rule(f"1 to {NAME_MAX} printable ASCII characters", _is_name)


def record(what: str, value: Value, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """The fields of *value* by name. Raises BadEntry."""
    if type(value) is not tuple or len(value) != len(rules):
        raise BadEntry(f"{what}: not an array of {len(rules)}")
    fields = dict(zip(rules, value, strict=True))
    for name, rule in rules.items():
        if not rule.holds(fields[name]):
            raise BadEntry(f"{what}.{name}: not {rule.want}")
    return cast(dict[str, Any], fields)
