"""When enough witnesses vouch for an entry, and what passes for their word."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import pytest
from attrs import evolve
from ledger_deals import ALICE, BOB, NET, Chain
from ledger_witnesses import WITNESSES, certify, quorum_of

from ledger.codec import Value, pack, unpack
from ledger.errors import BadEntry, LedgerError
from ledger.quorum import (
    CERTIFICATE_MAX,
    MEMBERS_MAX,
    VOTE_MAX,
    Certificate,
    Position,
    Quorum,
    Tally,
    Vote,
    sign_vote,
)

ENTRY = Chain(BOB).alloc(ALICE)
OTHER = Chain(BOB).alloc(ALICE, price=1)
POSITION = Position.of(ENTRY)
VOTE = sign_vote(POSITION, WITNESSES[0].key, WITNESSES[0].sign)


@pytest.mark.parametrize(
    ("members", "faulty", "needed"),
    [(1, 0, 1), (2, 0, 2), (3, 0, 2), (4, 1, 3), (5, 1, 4), (6, 1, 4), (7, 2, 5), (10, 3, 7)],
)
def test_a_quorum_needs_so_many_votes(members: int, faulty: int, needed: int) -> None:
    quorum = quorum_of(members)
    assert (quorum.faulty, quorum.needed) == (faulty, needed)


def test_two_quorums_share_an_honest_member_and_the_honest_suffice() -> None:
    for members in range(1, MEMBERS_MAX + 1):
        faulty = (members - 1) // 3
        needed = Quorum(frozenset(bytes([n]) * 32 for n in range(members))).needed
        assert 2 * needed - members > faulty
        assert members - faulty >= needed


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([], "0 witnesses"),
        ([b"%032d" % n for n in range(MEMBERS_MAX + 1)], "65 witnesses"),
        ([ALICE.key, BOB.key, ALICE.key], "named twice"),
        ([ALICE.key[:31]], "key is none"),
        ([(1).to_bytes(32, "little")], "key is none"),
    ],
)
def test_what_cannot_be_a_quorum_is_told(members: list[bytes], reason: str) -> None:
    with pytest.raises(LedgerError, match=reason):
        Quorum.of(members)


def test_a_vote_comes_back_from_its_bytes() -> None:
    assert Vote.decode(VOTE.encode()) == VOTE
    assert len(VOTE.encode()) < VOTE_MAX
    assert VOTE.is_signed()


def test_a_vote_is_signed_under_a_domain_of_its_own() -> None:
    assert POSITION.message == b"mesh-ledger/1/witness\0" + pack((1, NET, BOB.key, 0, ENTRY.id))


@pytest.mark.parametrize("place", range(7))
def test_a_vote_with_another_field_is_not_signed_or_no_vote(place: int) -> None:
    fields = list(unpack(VOTE.encode(), VOTE_MAX))  # type: ignore[arg-type]
    field = fields[place]
    fields[place] = field + 1 if isinstance(field, int) else bytes(len(field))
    try:
        vote = Vote.decode(pack(tuple(fields)))
    except BadEntry:
        assert place == 0
    else:
        assert not vote.is_signed()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ((2, NET, BOB.key, 0, ENTRY.id, ALICE.key, bytes(64)), "version"),
        ((1, b"", BOB.key, 0, ENTRY.id, ALICE.key, bytes(64)), "net"),
        ((1, NET, b"", 0, ENTRY.id, ALICE.key, bytes(64)), "author"),
        ((1, NET, BOB.key, b"", ENTRY.id, ALICE.key, bytes(64)), "seq"),
        ((1, NET, BOB.key, 0, b"", ALICE.key, bytes(64)), "entry_id"),
        ((1, NET, BOB.key, 0, ENTRY.id, b"", bytes(64)), "witness"),
        ((1, NET, BOB.key, 0, ENTRY.id, ALICE.key, bytes(63)), "sig"),
        ((1, NET, BOB.key, 0, ENTRY.id, ALICE.key), "not an array of 7"),
        (bytes(300), "303 bytes where 256 are allowed"),
    ],
)
def test_what_is_no_vote_is_refused(value: Value, reason: str) -> None:
    with pytest.raises(BadEntry, match=reason):
        Vote.decode(pack(value))


def test_a_certificate_comes_back_from_its_bytes() -> None:
    quorum = quorum_of(4)
    certificate = certify(quorum, ENTRY, WITNESSES[:3])
    assert certificate is not None
    assert Certificate.decode(certificate.encode()) == certificate
    assert quorum.certifies(certificate)
    largest = tuple((bytes([n]) * 32, bytes(64)) for n in range(MEMBERS_MAX))
    assert len(evolve(certificate, votes=largest).encode()) <= CERTIFICATE_MAX


def test_too_few_votes_make_no_certificate() -> None:
    quorum = quorum_of(7)
    assert certify(quorum, ENTRY, WITNESSES[:4]) is None
    assert certify(quorum, ENTRY, WITNESSES[:5]) is not None
    assert certify(quorum, ENTRY, WITNESSES[2:8]) is not None, "a stranger's is passed over"


CERTIFICATE = certify(quorum_of(4), ENTRY, WITNESSES[:3])
assert CERTIFICATE is not None
VOTES = CERTIFICATE.votes


def stranger() -> tuple[bytes, bytes]:
    vote = sign_vote(POSITION, ALICE.key, ALICE.sign)
    return vote.witness, vote.sig


FLAWS: dict[str, tuple[Callable[[], object], str]] = {
    "one less": (lambda: VOTES[1:], "2 votes where 3 are needed"),
    "one twice": (lambda: (*VOTES[:2], VOTES[1]), "do not rise"),
    "another order": (lambda: VOTES[::-1], "do not rise"),
    "a stranger": (lambda: tuple(sorted((*VOTES, stranger()))), "not of the quorum"),
    "no signature": (lambda: ((VOTES[0][0], bytes(64)), *VOTES[1:]), "not its own"),
    "another's signature": (lambda: ((VOTES[0][0], VOTES[1][1]), *VOTES[1:]), "not its own"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_certificate_with_a_flaw_certifies_nothing(flaw: str) -> None:
    make, reason = FLAWS[flaw]
    assert CERTIFICATE is not None
    bent = evolve(CERTIFICATE, votes=make())
    with pytest.raises(BadEntry, match=reason):
        quorum_of(4).check(bent)
    assert not quorum_of(4).certifies(bent)


def test_a_certificate_of_another_position_certifies_nothing() -> None:
    assert CERTIFICATE is not None
    for position in (
        Position.of(OTHER),
        evolve(POSITION, seq=1),
        evolve(POSITION, net=b"othernet"),
        evolve(POSITION, author=ALICE.key),
    ):
        assert not quorum_of(4).certifies(evolve(CERTIFICATE, position=position))


def test_a_certificate_is_one_quorums_and_no_others() -> None:
    assert CERTIFICATE is not None
    others = Quorum.of(party.key for party in WITNESSES[2:6])
    assert not others.certifies(CERTIFICATE)
    assert not quorum_of(7).certifies(CERTIFICATE), "of seven, five are needed"


def test_a_tally_counts_each_member_once_and_nobody_else() -> None:
    tally = Tally(quorum_of(4), POSITION)
    assert tally.add(VOTE) is None
    assert tally.add(VOTE) is None
    assert tally.add(evolve(VOTE, sig=bytes(64))) is None
    assert tally.add(sign_vote(POSITION, ALICE.key, ALICE.sign)) is None
    assert tally.add(sign_vote(Position.of(OTHER), VOTE.witness, WITNESSES[0].sign)) is None
    assert tally.refused == 3
    assert tally.missing() == {party.key for party in WITNESSES[1:4]}
    one, two = (sign_vote(POSITION, party.key, party.sign) for party in WITNESSES[1:3])
    assert tally.add(one) is None
    assert tally.add(two) == CERTIFICATE


def test_the_bytes_of_votes_and_certificates_never_change() -> None:
    assert CERTIFICATE is not None
    golden = [sha256(data).hexdigest()[:16] for data in (VOTE.encode(), CERTIFICATE.encode())]
    assert golden == ["81cf687cd92e0482", "b44c5b3f31ec1d27"]
