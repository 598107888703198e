"""What a witness votes for, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attrs import evolve
from ledger_deals import ALICE, BOB, CAROL, DAVE, NET, Chain, Party
from ledger_forgeries import EVERY, FORGERIES
from ledger_witnesses import WITNESSES, ask, book_of, close_books, is_vote_for, witness_of

from ledger.errors import LedgerError
from ledger.keys import entry_message
from ledger.model import Body, Entry, Kind
from ledger.statements import Op
from ledger.validity import prove_fork
from ledger.witness import AUTHORS_KEPT_MAX, RUN_MAX, Ballot, Behind, Refused, Witness

ONE = WITNESSES[0]


@pytest.fixture(autouse=True)
def books() -> Iterator[None]:
    yield
    close_books()


def history() -> list[Entry]:
    """A chain of BOB's with every kind that may be on it."""
    bob = Chain(BOB)
    first = bob.alloc(ALICE)
    mine = [first, bob.use(ALICE, first), bob.settle(ALICE, first)]
    mine += [bob.checkpoint(mine)]
    second = bob.alloc(ALICE)
    mine += [second, bob.dispute(second, ALICE), bob.void(ALICE, second)]
    mine += [bob.line(ALICE, 99), bob.keyop(Op.DELEGATE, DAVE)]
    mine += [bob.refund(Chain(ALICE).alloc(BOB), 3)]
    return [*mine, bob.checkpoint(mine)]


def resigned(body: Body, author: Party = BOB) -> Entry:
    return Entry(body.encode(), author.sign(entry_message(body.id)))


def refused(answer: object, reason: str) -> bool:
    return isinstance(answer, Refused) and reason in answer.reason and not answer.evidence


def test_it_votes_for_the_newest_of_a_run_that_follows() -> None:
    witness, entries = witness_of(ONE), history()
    assert is_vote_for(ask(witness, *entries[:3]), entries[2])
    assert is_vote_for(ask(witness, *entries[3:]), entries[-1])
    assert witness.statistics() == {"voted": 2}


def test_it_votes_entry_by_entry_as_well() -> None:
    witness = witness_of(ONE)
    for entry in history():
        assert is_vote_for(ask(witness, entry), entry)


def test_asked_again_it_gives_the_same_vote() -> None:
    witness, entries = witness_of(ONE), history()
    first = ask(witness, *entries)
    assert ask(witness, *entries) == first
    assert ask(witness, entries[-1]) == first
    assert is_vote_for(ask(witness, *entries[2:5]), entries[4]), "it voted for what is before, too"
    assert is_vote_for(ask(witness, entries[0]), entries[0])


def test_a_run_may_begin_with_what_it_knows() -> None:
    witness, entries = witness_of(ONE), history()
    ask(witness, *entries[:4])
    assert is_vote_for(ask(witness, *entries[2:6]), entries[5])


def test_it_never_skips_a_place() -> None:
    witness, entries = witness_of(ONE), history()
    assert ask(witness, *entries[3:]) == Behind(BOB.key, NET, 0)
    ask(witness, *entries[:2])
    assert ask(witness, *entries[3:]) == Behind(BOB.key, NET, 2)
    assert is_vote_for(ask(witness, *entries[2:]), entries[-1])


def test_another_entry_for_a_place_is_refused_with_the_proof_of_the_fork() -> None:
    witness, bob = witness_of(ONE), Chain(BOB)
    first, twin = bob.alloc(ALICE), bob.fork()
    mine, other = bob.alloc(ALICE), twin.alloc(CAROL)
    ask(witness, first, mine)
    answer = ask(witness, first, other)
    assert answer == Refused("it forked its chain", (mine, other))
    assert prove_fork(mine, other) is not None
    assert ask(witness, bob.alloc(ALICE)) == answer, "and nothing of it gets a vote any more"
    assert ask(witness, first, mine) == answer
    assert witness.statistics() == {"voted": 1, "refused": 3, "forks": 1}


def test_an_arm_that_left_earlier_is_asked_for_where_it_left() -> None:
    witness, bob = witness_of(ONE), Chain(BOB)
    first, twin = bob.alloc(ALICE), bob.fork()
    mine, other = bob.alloc(ALICE), twin.alloc(CAROL)
    later = twin.alloc(CAROL)
    ask(witness, first, mine)
    assert ask(witness, later) == Behind(BOB.key, NET, 1)
    assert ask(witness, other, later) == Refused("it forked its chain", (mine, other))


def test_nobody_else_can_make_an_author_a_forker() -> None:
    witness, entries = witness_of(ONE), history()
    ask(witness, entries[0])
    body = evolve(entries[0].content, hlc=1)
    forged = Entry(body.encode(), ALICE.sign(entry_message(body.id)))
    assert refused(ask(witness, forged), "the author's signature is not its own")
    assert is_vote_for(ask(witness, *entries), entries[-1])


def test_a_prefix_that_does_not_hang_together_is_refused_and_asked_for_only_once() -> None:
    witness, bob = witness_of(ONE), Chain(BOB)
    first, second = bob.alloc(ALICE), bob.alloc(ALICE)
    ask(witness, first)
    loose = resigned(evolve(second.content, prev=bytes(31) + b"x"))
    assert ask(witness, loose) == Behind(BOB.key, NET, 0)
    assert refused(ask(witness, first, loose), "prev is not the id")
    assert is_vote_for(ask(witness, second), second)


LIES = {
    "totals": (evolve(history()[4].content, posted=0), "totals"),
    "the clock": (evolve(history()[4].content, hlc=1), "the clock does not rise"),
    "a HEAD's root": (
        evolve(history()[3].content, seq=4, prev=history()[3].id, hlc=2**62),
        "the HEAD has another root",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_entry_that_does_not_follow_gets_no_vote(lie: str) -> None:
    body, reason = LIES[lie]
    witness = witness_of(ONE)
    ask(witness, *history()[:4])
    assert refused(ask(witness, resigned(body)), reason)
    assert is_vote_for(ask(witness, history()[4]), history()[4])


def test_an_alloc_is_resolved_once_within_a_run_and_across_runs() -> None:
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    settle = bob.settle(ALICE, alloc)
    once_more = bob.alloc(ALICE)  # makes room in the totals
    again = bob.void(ALICE, alloc)
    across = witness_of(ONE)
    ask(across, alloc, settle, once_more)
    assert refused(ask(across, again), "resolved already")
    assert refused(ask(witness_of(ONE), alloc, settle, once_more, again), "resolved already")


def test_a_resolution_of_an_alloc_that_is_not_on_the_chain_gets_no_vote() -> None:
    witness = witness_of(ONE)
    foreign = Chain(CAROL).alloc(ALICE)
    assert is_vote_for(ask(witness, foreign), foreign)
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    settle = bob.settle(ALICE, alloc)
    ask(witness, alloc)
    deal = evolve(settle.content.deal, ref=foreign.id).encode()
    lie = evolve(settle.content, terms=deal)
    assert isinstance(ask(witness, resigned(lie)), Refused)
    assert is_vote_for(ask(witness, settle), settle)


@pytest.mark.parametrize("name", FORGERIES)
def test_no_forgery_gets_a_vote(name: str) -> None:
    make, _ = FORGERIES[name]
    answer = ask(witness_of(ONE), make())
    assert isinstance(answer, Refused | Behind)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        ([], "0 entries"),
        ([history()[0].encode()] * (RUN_MAX + 1), "65 entries"),
        ([b"\xc0"], "nil|None"),
        ([history()[0].encode(), b""], "msgpack"),
        ([history()[0].encode(), history()[2].encode()], "not of one chain"),
        ([history()[0].encode(), Chain(ALICE).line(BOB, 1).encode()], "not of one chain"),
        ([EVERY[Kind.FORKPROOF].encode()], "on no chain"),
    ],
)
def test_what_is_no_run_is_refused_and_counted(run: list[bytes], reason: str) -> None:
    witness = witness_of(ONE)
    answer = witness.ask(run)
    assert isinstance(answer, Refused)
    assert any(part in answer.reason for part in reason.split("|"))
    assert witness.statistics() == {"refused": 1}


@pytest.mark.parametrize(("op", "subject"), [(Op.ROTATE, DAVE), (Op.REVOKE, BOB)])
def test_a_key_that_was_rotated_away_or_revoked_itself_gets_no_further_vote(
    op: Op, subject: Party
) -> None:
    witness, bob = witness_of(ONE), Chain(BOB)
    last = bob.keyop(op, subject)
    assert is_vote_for(ask(witness, last), last)
    later = bob.alloc(ALICE)
    assert refused(ask(witness, later), "retired")
    assert refused(ask(witness_of(ONE), last, later), "retired")
    assert is_vote_for(ask(witness, last), last), "what got a vote keeps it"


def test_whoever_the_caller_knows_to_have_forked_gets_no_vote() -> None:
    known = {(BOB.key, NET): "it forked its chain"}
    witness = witness_of(ONE, refusal=lambda author, net: known.get((author, net), ""))
    assert refused(ask(witness, *history()), "it forked its chain")
    line = Chain(ALICE).line(BOB, 1)
    assert is_vote_for(ask(witness, line), line)


def test_chains_of_one_author_on_two_networks_are_two_chains() -> None:
    witness = witness_of(ONE)
    here, there = Chain(BOB).alloc(ALICE), Chain(BOB, net=b"othernet").alloc(ALICE)
    assert is_vote_for(ask(witness, here), here)
    assert is_vote_for(ask(witness, there), there)


def test_a_witness_that_comes_back_votes_from_its_book() -> None:
    book, entries = book_of(ONE), history()
    before = ask(witness_of(ONE, book), *entries[:5])
    after = witness_of(ONE, book)
    assert ask(after, entries[4]) == before
    rival = resigned(evolve(entries[4].content, hlc=2**62))
    assert is_vote_for(ask(after, *entries[5:]), entries[-1])
    assert ask(after, rival) == Refused("it forked its chain", (entries[4], rival))
    assert ask(witness_of(ONE, book), entries[-1]) == ask(after, rival), "a fork is not forgotten"


def test_authors_without_end_leave_its_memory_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.witness.AUTHORS_KEPT_MAX", 4)
    assert AUTHORS_KEPT_MAX > 4
    witness = witness_of(ONE)
    lines = [Chain(Party.named(f"author {n}")).line(BOB, 1) for n in range(12)]
    for line in lines:
        assert is_vote_for(ask(witness, line), line)
    assert len(witness._ballots) == 4
    assert witness.statistics()["evicted"] == 8
    twin = Chain(Party.named("author 0")).line(CAROL, 1)
    assert ask(witness, twin) == Refused("it forked its chain", (lines[0], twin))


class FullDisk:
    """A book that cannot write."""

    def ballot(self, author: bytes, net: bytes) -> Ballot | None:
        return None

    def voted(self, author: bytes, net: bytes, seq: int) -> Entry | None:
        return None

    def entry(self, entry_id: bytes) -> Entry | None:
        return None

    def is_closed(self, alloc_id: bytes) -> bool:
        return False

    def record(self, ballot: Ballot, entries: object) -> None:
        raise LedgerError("the disk is full")


def test_what_could_not_be_written_down_is_not_voted_for() -> None:
    witness = Witness(ONE.key, ONE.sign, FullDisk())
    for entry in (Chain(BOB).alloc(ALICE), Chain(BOB).alloc(CAROL)):
        with pytest.raises(LedgerError, match="full"):
            ask(witness, entry)
    assert witness.statistics() == {}
