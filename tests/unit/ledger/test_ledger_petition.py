"""How an author gets its certificate, whatever its witnesses answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attrs import evolve
from ledger_deals import ALICE, BOB, CAROL, NET, Chain, Party
from ledger_forgeries import EVERY
from ledger_witnesses import WITNESSES, ask, close_books, quorum_of, witness_of

from ledger.answers import (
    ANSWER_MAX,
    QUESTION_MAX,
    REASON_MAX,
    RUN_MAX,
    Answer,
    Behind,
    Refused,
    Voted,
    decode_answer,
    decode_question,
    encode_answer,
    encode_question,
)
from ledger.codec import Value, pack
from ledger.errors import BadEntry
from ledger.model import Entry, Kind
from ledger.petition import Petition
from ledger.quorum import Position, sign_vote
from ledger.witness import Witness


@pytest.fixture(autouse=True)
def books() -> Iterator[None]:
    yield
    close_books()


def chain_of(length: int) -> list[Entry]:
    alice = Chain(ALICE)
    return [alice.line(BOB, number) for number in range(length)]


def put(petition: Petition, entries: list[Entry], witness: Witness) -> None:
    """One question and its answer, as bytes."""
    asked = petition.question(witness.key)
    assert asked is not None
    question = encode_question(entries[asked.start : asked.stop])
    answer = encode_answer(witness.ask(decode_question(question)))
    petition.hear(witness.key, decode_answer(answer))


def test_witnesses_that_know_nothing_are_brought_up_to_date_in_runs() -> None:
    entries = chain_of(3 * RUN_MAX)
    witnesses = [witness_of(party) for party in WITNESSES[:4]]
    petition = Petition(quorum_of(4), entries[-1])
    asked = 0
    while not petition.is_over:
        for witness in witnesses:
            if petition.question(witness.key) is not None:
                put(petition, entries, witness)
                asked += 1
    assert petition.certificate is not None
    assert quorum_of(4).certifies(petition.certificate)
    assert asked <= 4 * (1 + 3)
    assert petition.question(witnesses[3].key) is None, "three are enough"


def test_the_next_petition_asks_each_witness_for_no_more_than_it_lacks() -> None:
    entries = chain_of(RUN_MAX + 2)
    witnesses = [witness_of(party) for party in WITNESSES[:3]]
    first = Petition(quorum_of(4), entries[-2])
    while not first.is_over:
        for witness in witnesses:
            if first.question(witness.key) is not None:
                put(first, entries, witness)
    second = Petition.of(quorum_of(4), entries[-1], first.stands)
    for witness in witnesses:
        assert second.question(witness.key) == range(RUN_MAX + 1, RUN_MAX + 2)
        put(second, entries, witness)
    assert second.certificate is not None


def test_a_quorum_of_one_is_enough_for_oneself() -> None:
    (entry,) = chain_of(1)
    petition = Petition(quorum_of(1), entry)
    put(petition, [entry], witness_of(WITNESSES[0]))
    assert petition.certificate is not None


def test_too_many_refusals_end_it() -> None:
    entries = chain_of(2)
    petition = Petition(quorum_of(4), entries[-1])
    petition.hear(WITNESSES[0].key, Refused("the disk is full"))
    assert not petition.is_over
    petition.hear(WITNESSES[1].key, Refused("retired"))
    assert petition.is_over
    assert petition.certificate is None
    assert set(petition.refusals.values()) == {"the disk is full", "retired"}
    assert all(petition.question(party.key) is None for party in WITNESSES[:4])


def test_strangers_are_not_heard() -> None:
    entries = chain_of(1)
    petition = Petition(quorum_of(4), entries[0])
    position = Position.of(entries[0])
    for party in (*WITNESSES[4:], CAROL):
        assert petition.question(party.key) is None
        petition.hear(party.key, Voted(sign_vote(position, party.key, party.sign)))
        petition.hear(party.key, Refused("because"))
    assert petition.certificate is None
    assert not petition.refusals


def lies(party: Party, entries: list[Entry]) -> list[Answer]:
    """What a witness may say that is no vote."""
    target, other = Position.of(entries[-1]), Position.of(Chain(ALICE).line(CAROL, 1))
    vote = sign_vote(target, party.key, party.sign)
    return [
        Voted(evolve(vote, sig=bytes(64))),
        Voted(sign_vote(target, WITNESSES[1].key, WITNESSES[1].sign)),
        Voted(sign_vote(evolve(target, entry_id=bytes(32)), party.key, party.sign)),
        Voted(sign_vote(evolve(target, seq=2**62), party.key, party.sign)),
        Voted(sign_vote(evolve(target, author=BOB.key), party.key, party.sign)),
        Voted(sign_vote(other, party.key, party.sign)),
        Behind(ALICE.key, NET, 0),
        Behind(ALICE.key, NET, 2**62),
        Behind(BOB.key, NET, 0),
        Behind(ALICE.key, b"othernet", 0),
    ]


@pytest.mark.parametrize("number", range(10))
def test_a_witness_that_answers_without_end_is_passed_over(number: int) -> None:
    entries, party = chain_of(5), WITNESSES[0]
    petition = Petition(quorum_of(4), entries[-1])
    answers = 0
    while petition.question(party.key) is not None:
        petition.hear(party.key, lies(party, entries)[number])
        answers += 1
    assert answers <= 5
    assert "without end" in petition.refusals[party.key]
    for other in WITNESSES[1:4]:
        vote = sign_vote(Position.of(entries[-1]), other.key, other.sign)
        petition.hear(other.key, Voted(vote))
    assert petition.certificate is not None


def test_a_proof_of_ones_own_fork_is_kept_and_a_false_one_is_not() -> None:
    chain = Chain(ALICE)
    one, other = chain.fork().line(BOB, 1), chain.fork().line(BOB, 2)
    unsigned = Entry(other.body, bytes(64))
    foreign = (Chain(BOB).line(ALICE, 1), Chain(BOB).line(ALICE, 2))
    for evidence in ((one, unsigned), (one, one), (one,), foreign, ()):
        petition = Petition(quorum_of(4), one)
        petition.hear(WITNESSES[0].key, Refused("it forked its chain", evidence))
        assert petition.evidence == ()
    witness = witness_of(WITNESSES[0])
    ask(witness, other)
    petition = Petition(quorum_of(4), one)
    put(petition, [one], witness)
    assert petition.evidence == (other, one)


ENTRY = chain_of(1)[0]
VOTE = sign_vote(Position.of(ENTRY), ALICE.key, ALICE.sign)


@pytest.mark.parametrize(
    "answer",
    [
        Voted(VOTE),
        Behind(ALICE.key, NET, 2**63 - 1),
        Refused("because"),
        Refused("it forked its chain", (ENTRY, EVERY[Kind.ALLOC])),
    ],
)
def test_an_answer_comes_back_from_its_bytes(answer: Answer) -> None:
    assert decode_answer(encode_answer(answer)) == answer


def test_a_reason_is_made_fit_to_be_sent() -> None:
    answer = decode_answer(encode_answer(Refused("µ\n" + "x" * 999)))
    assert answer == Refused("??" + "x" * (REASON_MAX - 2))


@pytest.mark.parametrize(
    "value",
    [
        (),
        (1,),
        1,
        (2, 1, VOTE.encode()),
        (1, 1, b""),
        (1, 1, VOTE.encode(), 0),
        (1, 2, ALICE.key, NET),
        (1, 2, b"", NET, 0),
        (1, 3, "x" * (REASON_MAX + 1), ()),
        (1, 3, "\n", ()),
        (1, 3, "é", ()),
        (1, 3, "", (ENTRY.encode(),) * 3),
        (1, 3, "", (b"garbage",)),
        (1, 4, ""),
        (1, (1,), ""),
    ],
)
def test_what_is_no_answer_is_refused(value: Value) -> None:
    with pytest.raises(BadEntry):
        decode_answer(pack(value))


def test_sizes_are_bounded() -> None:
    for decode, limit in ((decode_answer, ANSWER_MAX), (decode_question, QUESTION_MAX)):
        with pytest.raises(BadEntry, match="are allowed"):
            decode(bytes(limit + 1))
    with pytest.raises(BadEntry, match="at most 64"):
        decode_question(pack((1, (b"",) * (RUN_MAX + 1))))
    assert decode_question(encode_question([ENTRY])) == (ENTRY.encode(),)
