"""The words of the ledger: terms, bodies and entries, and their bytes.

    entry = [body, sig]                     id = SHA-256(body)
    body  = [the fields of `Body`]          in their order
    terms = [the fields of `Terms`]         in their order

Decoding checks every length and range; who signed, and whether terms and body agree, is
chain.py's. Money is integer micro-credits (µcr), work is fuel of the named meter.

Forward compatibility: version 1 knows ALLOC, SETTLE and VOID, one unit and no ext. Anything else
is refused whole: not stored, not counted, not relayed. Nothing else is lost by that, since the
fold (state.py) needs no unbroken chain; a node that learns the kind later fetches it by repair.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import cached_property
from hashlib import sha256
from typing import Any, TypeAlias, cast

from attrs import asdict, astuple, fields_dict, frozen

from ledger.codec import BODY_MAX, ENTRY_MAX, UINT_MAX, Value, pack, unpack
from ledger.errors import BadEntry

VERSION = 1
UNIT = "uC/Gfuel"
"""The one unit of version 1: a price is in µcr per 10^9 units of fuel."""
FUEL_PER_PRICE = 10**9

TERMS_MAX = 3840
"""Bytes of encoded terms: a body of the longest terms still fits `BODY_MAX`."""
INPUTS_MAX = 48
OUTPUTS_MAX = 8
ESCALATIONS_MAX = 8
MIGRATIONS_MAX = 8
NAME_MAX = 64
"""Characters of a meter's name."""
EXIT_MAX = 2**32 - 1

_CID_PREFIX = bytes.fromhex("0181041220")  # CIDv1, codec messagepack (0x0201), sha2-256


class Kind(IntEnum):
    """What an entry does."""

    ALLOC = 1
    """The buyer reserves money for the seller's work: the award."""
    USE = 2
    SETTLE = 3
    """The buyer owes `amount`; the rest of the reserve is free."""
    VOID = 4
    """Both let an ALLOC go: nothing is owed."""
    CLAIM = 5
    DISPUTE = 6
    RULING = 7
    REFUND = 8
    LINE = 9
    KEYOP = 10
    HEAD = 11
    FORKPROOF = 12


KINDS_KNOWN = frozenset((Kind.ALLOC, Kind.SETTLE, Kind.VOID))

Escalation: TypeAlias = tuple[int, int, int, int]
"""(hlc, tier from, tier to, price from then on)"""
Migration: TypeAlias = tuple[int, bytes, bytes, bytes]
"""(hlc, key of the executor left, key of the executor reached, CID of the state moved)"""


@frozen(kw_only=True)
class Terms:
    """What the seller signs: as its bid (ALLOC), as its bill (SETTLE) or as its waiver (VOID)."""

    version: int = VERSION
    nonce: bytes
    """The task, 16 bytes."""
    fence: int
    """Which award of the task."""
    seller: bytes
    """Ed25519 public key, 32 bytes; as are *buyer* and *arbiter*."""
    buyer: bytes
    job: bytes
    """CID of the job's manifest: all that running it again needs. 36 bytes, like every CID."""
    module: bytes
    inputs: tuple[bytes, ...]
    outputs: tuple[bytes, ...]
    """Empty until SETTLE."""
    meter: str
    """What counted the fuel, with its version: "wasmtime-50.0.1/fuel"."""
    unit: str = UNIT
    price: int
    """µcr per 10^9 fuel."""
    fee: int
    """µcr on top, if exit is 0."""
    reserve: int
    """µcr: the most that the whole bill can be."""
    fuel: int
    """ALLOC: the limit. SETTLE: burnt. VOID: not billed."""
    amount: int
    """µcr: `amount_of` these terms in SETTLE, else 0."""
    exit: int
    """How the run ended: 0 is success, everything else is not; the codes are the meter's.
    0 in ALLOC."""
    escalations: tuple[Escalation, ...] = ()
    migrations: tuple[Migration, ...] = ()
    start_ms: int
    """Claims of the seller's wall clock, Unix milliseconds: *start_ms*, *end_ms*, *deadline_ms*."""
    end_ms: int
    deadline_ms: int
    grace_ms: int
    """A duration, added to the deadline."""
    arbiter: bytes = b""
    """The key of whoever may rule on a dispute; empty for nobody."""
    ref: bytes = b""
    """The id of the ALLOC that a SETTLE or VOID resolves; empty in ALLOC."""

    def encode(self) -> bytes:
        """The canonical bytes, which are what is signed."""
        return pack(astuple(self, recurse=False))

    @staticmethod
    def decode(data: bytes) -> Terms:
        """The terms in *data*. Raises BadEntry."""
        return Terms(**_record("terms", unpack(data, TERMS_MAX), _TERMS_RULES))


def reserve_of(price: int, fuel_limit: int, fee: int) -> int:
    """The most that *fuel_limit* at *price* can cost, µcr; the caller holds it to its ceiling."""
    return price * fuel_limit // FUEL_PER_PRICE + fee


def amount_of(terms: Terms) -> int:
    """The bill of SETTLE terms, µcr: rounded down, the fee on success only, never above reserve."""
    fee = terms.fee if terms.exit == 0 else 0
    return min(reserve_of(terms.price, terms.fuel, fee), terms.reserve)


@frozen(kw_only=True)
class Body:
    """The signed content of an entry, as its author wrote it."""

    version: int = VERSION
    net: bytes
    """Which network, 8 bytes: an entry of one is nothing in another."""
    kind: Kind
    author: bytes
    """The payer: Ed25519 public key, 32 bytes."""
    seq: int
    """Place on the author's chain, from 0."""
    prev: bytes
    """Id of the entry before it; 32 zero bytes for the first."""
    hlc: int
    """Hybrid logical clock: 48 bits of Unix milliseconds, 16 bits of counter; rises on a chain."""
    posted: int
    """µcr the author owes by its SETTLEs, after this entry."""
    pending: int
    """µcr the author has reserved by unresolved ALLOCs, after this entry."""
    peer: bytes
    """The seller's key."""
    terms: bytes
    peer_sig: bytes
    """The seller's signature of `keys.terms_message(terms)`."""
    ext: tuple[Value, ...] = ()

    @cached_property
    def id(self) -> bytes:
        """SHA-256 of the encoded body."""
        return sha256(self.encode()).digest()

    @cached_property
    def deal(self) -> Terms:
        """The terms, decoded. Raises BadEntry."""
        return Terms.decode(self.terms)

    def encode(self) -> bytes:
        """The canonical bytes."""
        fields = asdict(self, recurse=False) | {"kind": int(self.kind)}
        return pack(tuple(fields.values()))

    @staticmethod
    def decode(data: bytes) -> Body:
        """The body in *data*; its terms stay bytes. Raises BadEntry."""
        record = _record("body", unpack(data, BODY_MAX), _BODY_RULES)
        return Body(**{**record, "kind": _kind(record["kind"])})


@frozen
class Entry:
    """A body and its author's signature over `keys.entry_message(id)`."""

    body: bytes
    sig: bytes

    @cached_property
    def id(self) -> bytes:
        """SHA-256 of the body, 32 bytes. The signature is outside it."""
        return sha256(self.body).digest()

    @cached_property
    def content(self) -> Body:
        """The body, decoded. Raises BadEntry, but never after `decode` has passed."""
        return Body.decode(self.body)

    def cid(self) -> bytes:
        """The id as a binary CIDv1, 37 bytes."""
        return _CID_PREFIX + self.id

    def encode(self) -> bytes:
        """The canonical bytes: what travels and what is stored."""
        return pack((self.body, self.sig))

    @staticmethod
    def decode(data: bytes) -> Entry:
        """The entry in *data*: shape and ranges only, see `chain.check_entry`. Raises BadEntry."""
        entry = Entry(**_record("entry", unpack(data, ENTRY_MAX), _ENTRY_RULES))
        _ = entry.content
        return entry


def _kind(number: int) -> Kind:
    try:
        kind = Kind(number)
    except ValueError:
        raise BadEntry(f"kind {number} is not known to version 1") from None
    if kind not in KINDS_KNOWN:
        raise BadEntry(f"kind {number} ({kind.name}) is not known to version 1")
    return kind


# What each field may hold, in wire order.


@frozen
class _Rule:
    want: str
    holds: Callable[[Any], bool]


def _uint(top: int = UINT_MAX) -> _Rule:
    return _Rule(f"an integer of at most {top}", lambda value: type(value) is int and value <= top)


def _sized(*lengths: int) -> _Rule:
    want = "bytes, " + " or ".join(map(str, lengths)) + " of them"
    return _Rule(want, lambda value: type(value) is bytes and len(value) in lengths)


def _exactly(wanted: Value) -> _Rule:
    return _Rule(f"{wanted!r}", lambda value: type(value) is type(wanted) and value == wanted)


def _many(rule: _Rule, most: int) -> _Rule:
    return _Rule(
        f"at most {most}, each {rule.want}",
        lambda value: type(value) is tuple and len(value) <= most and all(map(rule.holds, value)),
    )


def _row(*rules: _Rule) -> _Rule:
    return _Rule(
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
    return (
        type(value) is bytes
        and len(value) == 36
        and value[0] == 1
        and value[1] < 0x80
        and value[2:4] == b"\x12\x20"
    )


_UINT = _uint()
_KEY = _sized(32)
_HASH = _sized(32)
_SIG = _sized(64)
_CID = _Rule("a CIDv1 with sha2-256 of 36 bytes", _is_cid)
_NAME = _Rule(f"1 to {NAME_MAX} printable ASCII characters", _is_name)

_ENTRY_RULES = {"body": _Rule("bytes", lambda value: type(value) is bytes), "sig": _SIG}
_BODY_RULES = {
    "version": _exactly(VERSION),
    "net": _sized(8),
    "kind": _UINT,
    "author": _KEY,
    "seq": _UINT,
    "prev": _HASH,
    "hlc": _UINT,
    "posted": _UINT,
    "pending": _UINT,
    "peer": _KEY,
    "terms": _Rule(
        f"at most {TERMS_MAX} bytes",
        lambda value: type(value) is bytes and len(value) <= TERMS_MAX,
    ),
    "peer_sig": _SIG,
    "ext": _exactly(()),
}
_TERMS_RULES = {
    "version": _exactly(VERSION),
    "nonce": _sized(16),
    "fence": _UINT,
    "seller": _KEY,
    "buyer": _KEY,
    "job": _CID,
    "module": _CID,
    "inputs": _many(_CID, INPUTS_MAX),
    "outputs": _many(_CID, OUTPUTS_MAX),
    "meter": _NAME,
    "unit": _exactly(UNIT),
    "price": _UINT,
    "fee": _UINT,
    "reserve": _UINT,
    "fuel": _UINT,
    "amount": _UINT,
    "exit": _uint(EXIT_MAX),
    "escalations": _many(_row(_UINT, _UINT, _UINT, _UINT), ESCALATIONS_MAX),
    "migrations": _many(_row(_UINT, _KEY, _KEY, _CID), MIGRATIONS_MAX),
    "start_ms": _UINT,
    "end_ms": _UINT,
    "deadline_ms": _UINT,
    "grace_ms": _UINT,
    "arbiter": _sized(0, 32),
    "ref": _sized(0, 32),
}
for _words, _rules in ((Entry, _ENTRY_RULES), (Body, _BODY_RULES), (Terms, _TERMS_RULES)):
    assert list(fields_dict(_words)) == list(_rules)


def _record(what: str, value: Value, rules: dict[str, _Rule]) -> dict[str, Any]:
    """The fields of *value* by name. Raises BadEntry."""
    if type(value) is not tuple or len(value) != len(rules):
        raise BadEntry(f"{what}: not an array of {len(rules)}")
    record = dict(zip(rules, value, strict=True))
    for name, rule in rules.items():
        if not rule.holds(record[name]):
            raise BadEntry(f"{what}.{name}: not {rule.want}")
    return cast(dict[str, Any], record)
