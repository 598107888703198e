"""The words of the ledger: terms, bodies and entries, and their bytes.

    entry = [body, sig]                     id = SHA-256(body)
    body  = [the fields of `Body`]          in their order
    terms = [the fields of `Terms`]         in their order, or of a statement (statements.py)

Decoding checks every length and range; who signed, and whether terms and body agree, is
validity.py's. Money is integer micro-credits (µcr), work is fuel of the named meter.

Forward compatibility: version 1 knows the kinds below, one unit and no ext. Anything else is
refused whole: not stored, not counted, not relayed. Nothing else is lost by that, since the fold
(state.py) needs no unbroken chain; a node that learns the kind later fetches it by repair.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from typing import TypeAlias

from attrs import asdict, astuple, fields_dict, frozen
from msgspec import structs

from ledger.codec import BODY_MAX, ENTRY_MAX, Value, pack, unpack
from ledger.errors import BadEntry
from ledger.fields import (
    CID,
    HASH,
    KEY,
    NAME,
    SIGNATURE,
    UINT,
    Rule,
    at_most,
    exactly,
    many,
    record,
    row,
    sized,
    uint,
)
from ledger.shapes import BodyShape, TermsShape, body_shape, entry_shape, terms_shape
from ledger.statements import Dispute, Refund
from ledger.vocabulary import (
    DEALINGS,
    ESCALATIONS_MAX,
    EXIT_MAX,
    FUEL_PER_PRICE,
    INPUTS_MAX,
    KINDS_KNOWN,
    MIGRATIONS_MAX,
    OUTPUTS_MAX,
    TERMED,
    TERMS_MAX,
    UNIT,
    VERSION,
    VOCABULARY,
    Kind,
)

__all__ = [
    "DEALINGS",
    "ESCALATIONS_MAX",
    "EXIT_MAX",
    "FUEL_PER_PRICE",
    "INPUTS_MAX",
    "KINDS_KNOWN",
    "MIGRATIONS_MAX",
    "OUTPUTS_MAX",
    "TERMED",
    "TERMS_MAX",
    "UNIT",
    "VERSION",
    "VOCABULARY",
    "AnyBody",
    "AnyTerms",
    "Body",
    "Entry",
    "Escalation",
    "Kind",
    "Migration",
    "Terms",
    "accrued",
    "amount_of",
    "burnt_before",
    "reserve_of",
]

_CID_PREFIX = bytes.fromhex("0181041220")  # CIDv1, codec messagepack (0x0201), sha2-256

Escalation: TypeAlias = tuple[int, int, int, int]
"""(hlc, tier from, tier to, price from then on)"""
Migration: TypeAlias = tuple[int, bytes, bytes, bytes]
"""(fuel burnt until then by all executors, key of the one left, key of the one reached, CID of the
state that went along)"""


@frozen(kw_only=True)
class Terms:
    """What the seller signs: as its bid (ALLOC), as its bill (SETTLE, CLAIM), as its waiver (VOID)
    or on the way (USE); and what an arbiter makes of it (RULING)."""

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
    """Empty in ALLOC and USE."""
    meter: str
    """What counted the fuel, with its version: "wasmtime-50.0.1/fuel/unrolled-1"."""
    unit: str = UNIT
    price: int
    """µcr per 10^9 fuel."""
    fee: int
    """µcr on top, if exit is 0."""
    reserve: int
    """µcr: the most that the whole bill can be."""
    fuel: int
    """ALLOC: the limit. SETTLE, CLAIM: burnt. USE: burnt so far. VOID: not billed."""
    amount: int
    """µcr: in SETTLE and CLAIM `amount_of` these terms, in USE `accrued`, in RULING what is owed,
    else 0."""
    exit: int
    """How the run ended: 0 is success, everything else is not; the codes are the meter's.
    0 in ALLOC and USE."""
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
    """The id of the ALLOC that all the others are about; empty in ALLOC."""

    def encode(self) -> bytes:
        """The canonical bytes, which are what is signed."""
        return pack(astuple(self, recurse=False))

    @staticmethod
    def decode(data: bytes) -> Terms:
        """The terms in *data*. Raises BadEntry."""
        if (shape := terms_shape(data)) is not None:
            return Terms(**structs.asdict(shape))
        return Terms.explain(data)

    @staticmethod
    def explain(data: bytes) -> Terms:
        """As `decode`, rule by rule: slower, and it finds the reason. Raises BadEntry."""
        return Terms(**record("terms", unpack(data, TERMS_MAX), _TERMS_RULES))


def reserve_of(price: int, fuel_limit: int, fee: int) -> int:
    """The most that *fuel_limit* at *price* can cost, µcr; the caller holds it to its ceiling."""
    return price * fuel_limit // FUEL_PER_PRICE + fee


def amount_of(terms: AnyTerms) -> int:
    """The bill of SETTLE terms, µcr: rounded down, the fee on success only, never above reserve."""
    fee = terms.fee if terms.exit == 0 else 0
    return min(reserve_of(terms.price, terms.fuel, fee), terms.reserve)


def burnt_before(terms: AnyTerms) -> int:
    """The fuel that other executors burnt until the seller of *terms* went on with the run."""
    return terms.migrations[-1][0] if terms.migrations else 0


def accrued(terms: AnyTerms) -> int:
    """The bill of USE terms so far, µcr: as `amount_of`, but nobody knows yet of success."""
    return min(reserve_of(terms.price, terms.fuel, fee=0), terms.reserve)


@frozen(kw_only=True)
class Body:
    """The signed content of an entry, as its author wrote it."""

    version: int = VERSION
    net: bytes
    """Which network, 8 bytes: an entry of one is nothing in another."""
    kind: Kind
    author: bytes
    """Whose chain it is on: Ed25519 public key, 32 bytes; empty in FORKPROOF."""
    seq: int
    """Place on the author's chain, from 0; 0 in FORKPROOF, as are the totals and the clock."""
    prev: bytes
    """Id of the entry before it; 32 zero bytes for the first."""
    hlc: int
    """Hybrid logical clock: 48 bits of Unix milliseconds, 16 bits of counter; rises on a chain."""
    posted: int
    """µcr the author owes by its SETTLEs and REFUNDs, after this entry."""
    pending: int
    """µcr the author has reserved by unresolved ALLOCs, after this entry."""
    peer: bytes
    """The other party's key: the seller's where the buyer writes, the buyer's where the seller or
    an arbiter does, a KEYOP's subject; empty in HEAD and FORKPROOF."""
    terms: bytes
    """Encoded `Terms`, or the statement of the kind."""
    peer_sig: bytes
    """The peer's signature of the terms (`validity.peer_message`); empty where none is asked."""
    ext: tuple[Value, ...] = ()

    @cached_property
    def id(self) -> bytes:
        """SHA-256 of the encoded body."""
        return sha256(self.encode()).digest()

    @cached_property
    def deal(self) -> Terms:
        """The terms, decoded. Raises BadEntry, as it does for a kind that has none."""
        if self.kind not in TERMED:
            raise BadEntry(f"a {self.kind.name} has no terms")
        return Terms.decode(self.terms)

    @property
    def nonce(self) -> bytes:
        """The task that the entry is about, empty if about none. Raises BadEntry."""
        return self.deal.nonce if self.kind in TERMED else b""

    @property
    def ref(self) -> bytes:
        """The id of the ALLOC that the entry is about, empty if about none. Raises BadEntry."""
        if self.kind in TERMED:
            return self.deal.ref
        match self.kind:
            case Kind.DISPUTE:
                return Dispute.decode(self.terms).ref
            case Kind.REFUND:
                return Refund.decode(self.terms).ref
            case _:
                return b""

    def encode(self) -> bytes:
        """The canonical bytes."""
        fields = asdict(self, recurse=False) | {"kind": int(self.kind)}
        return pack(tuple(fields.values()))

    @staticmethod
    def decode(data: bytes) -> Body:
        """The body in *data*; its terms stay bytes. Raises BadEntry."""
        if (shape := body_shape(data)) is not None:
            return Body(**structs.asdict(shape))
        return Body.explain(data)

    @staticmethod
    def explain(data: bytes) -> Body:
        """As `decode`, rule by rule: slower, and it finds the reason. Raises BadEntry."""
        fields = record("body", unpack(data, BODY_MAX), _BODY_RULES)
        kind = _kind(fields["kind"])
        for name, rule in _PARTY_RULES.get(kind, _TWO_SIGN).items():
            if not rule.holds(fields[name]):
                raise BadEntry(f"body.{name}: not {rule.want}")
        return Body(**fields | {"kind": kind})


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
        if (shape := entry_shape(data)) is not None:
            entry = Entry(shape.body, shape.sig)
        else:
            entry = Entry.explain(data)
        _ = entry.content
        return entry

    @staticmethod
    def explain(data: bytes) -> Entry:
        """The entry in *data*, and nothing of its body; for the reason. Raises BadEntry."""
        return Entry(**record("entry", unpack(data, ENTRY_MAX), _ENTRY_RULES))


AnyBody: TypeAlias = Body | BodyShape
"""A body, or what is as good as one where only its fields are read."""
AnyTerms: TypeAlias = Terms | TermsShape


def _kind(number: int) -> Kind:
    try:
        return Kind(number)
    except ValueError:
        raise BadEntry(f"kind {number} is not known to version 1") from None


# What each field may hold, in wire order.


_ENTRY_RULES = {"body": at_most(ENTRY_MAX), "sig": SIGNATURE}
_BODY_RULES = {
    "version": exactly(VERSION),
    "net": sized(8),
    "kind": UINT,
    "author": sized(0, 32),
    "seq": UINT,
    "prev": HASH,
    "hlc": UINT,
    "posted": UINT,
    "pending": UINT,
    "peer": sized(0, 32),
    "terms": at_most(TERMS_MAX),
    "peer_sig": sized(0, 64),
    "ext": exactly(()),
}
_NOBODY = sized(0)
_TWO_SIGN: Mapping[str, Rule] = {"author": KEY, "peer": KEY, "peer_sig": SIGNATURE}
_ONE_SIGNS: Mapping[str, Rule] = {"author": KEY, "peer": KEY, "peer_sig": _NOBODY}
_PARTY_RULES: Mapping[Kind, Mapping[str, Rule]] = {
    Kind.CLAIM: _ONE_SIGNS,
    Kind.DISPUTE: _ONE_SIGNS,
    Kind.RULING: _ONE_SIGNS,
    Kind.REFUND: _ONE_SIGNS,
    Kind.LINE: _ONE_SIGNS,
    Kind.KEYOP: {"author": KEY, "peer": KEY},
    Kind.HEAD: {"author": KEY, "peer": _NOBODY, "peer_sig": _NOBODY},
    Kind.FORKPROOF: {"author": _NOBODY, "peer": _NOBODY, "peer_sig": _NOBODY},
}
"""Who is named and who signs, where it is not both."""
_TERMS_RULES = {
    "version": exactly(VERSION),
    "nonce": sized(16),
    "fence": UINT,
    "seller": KEY,
    "buyer": KEY,
    "job": CID,
    "module": CID,
    "inputs": many(CID, INPUTS_MAX),
    "outputs": many(CID, OUTPUTS_MAX),
    "meter": NAME,
    "unit": exactly(UNIT),
    "price": UINT,
    "fee": UINT,
    "reserve": UINT,
    "fuel": UINT,
    "amount": UINT,
    "exit": uint(EXIT_MAX),
    "escalations": many(row(UINT, UINT, UINT, UINT), ESCALATIONS_MAX),
    "migrations": many(row(UINT, KEY, KEY, CID), MIGRATIONS_MAX),
    "start_ms": UINT,
    "end_ms": UINT,
    "deadline_ms": UINT,
    "grace_ms": UINT,
    "arbiter": sized(0, 32),
    "ref": sized(0, 32),
}
for _words, _rules in ((Entry, _ENTRY_RULES), (Body, _BODY_RULES), (Terms, _TERMS_RULES)):
    assert list(fields_dict(_words)) == list(_rules)
