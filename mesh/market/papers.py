"""Papers: a buyer's entries as its seller checks them, before anything rests on them. Pure."""

from __future__ import annotations

from collections.abc import Collection

from ledger.chain import check_entry
from ledger.errors import BadEntry
from ledger.keys import terms_message
from ledger.model import Body, Entry, Kind, Terms
from ledger.quorum import Certificate, Position, Quorum
from mesh.errors import PeerError
from mesh.ids import EntryId, PeerId
from mesh.market.lease import Tenancy
from mesh.market.terms import void_terms
from mesh.messages import Award, Declined
from mesh.sansio import Identity


def check_award(identity: Identity, net: bytes, buyer: PeerId, award: Award) -> tuple[Entry, Terms]:
    """The ALLOC of an award of *buyer* to us. Raises PeerError."""
    entry = _decode(award.entry)
    try:
        body = check_entry(entry, identity.verify)
        terms = Terms.decode(body.terms)
    except BadEntry as error:
        raise PeerError(f"a bad award: {error}") from None
    named = (body.net, body.kind, body.author, body.peer, terms.nonce, terms.fence)
    if named != (net, Kind.ALLOC, buyer, identity.peer, award.task, award.fence):
        raise PeerError("an award for something else")
    return entry, terms


def certificate_flaw(
    identity: Identity, quorum: Quorum | None, entry: Entry, certificate: bytes
) -> str:
    """Why *certificate* does not show that our *quorum* voted for *entry*; empty if it does, or if
    we ask for none."""
    if quorum is None:
        return ""
    if not certificate:
        return "no certificate of this node's witnesses"
    try:
        found = Certificate.decode(certificate)
        quorum.check(found, identity.verify)
    except BadEntry as error:
        return f"a bad certificate: {error}"
    return "" if found.position == Position.of(entry) else "a certificate of something else"


def check_about(identity: Identity, tenancy: Tenancy, data: bytes, kinds: Collection[Kind]) -> Body:
    """The buyer's entry about what we run for it. Raises PeerError."""
    entry = _decode(data)
    try:
        body = check_entry(entry, identity.verify, kinds)
    except BadEntry as error:
        raise PeerError(f"a bad entry about a run: {error}") from None
    named = (body.author, body.peer, body.deal.ref)
    if named != (tenancy.buyer, identity.peer, tenancy.alloc_id):
        raise PeerError("an entry about something else")
    return body


def decline(identity: Identity, award: Award, entry: Entry, terms: Terms, reason: str) -> Declined:
    """Our "no" to an award; signed VOID terms free its money."""
    data = void_terms(terms, EntryId(entry.id)).encode()
    signature = identity.sign(terms_message(data))
    return Declined(award.task, award.fence, reason, data, signature)


def _decode(data: bytes) -> Entry:
    try:
        return Entry.decode(data)
    except BadEntry as error:
        raise PeerError(f"a bad entry: {error}") from None
