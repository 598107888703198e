"""A witness's book grows by rations: no stranger fills its disk, and who is refused hears why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from attrs import define, field
from ledger_deals import ALICE, BOB, CAROL, DAVE, NET, Chain, Party
from ledger_witnesses import WITNESSES, ask

from ledger.model import Entry
from ledger.votes import VoteBook
from ledger.witness import Refused, Voted, Witness
from mesh.rations import RationedBook, RationsConfig

OWNER = WITNESSES[0]
SCARCE = RationsConfig(entries=6, entries_all=10, authors=2, room=1_000)
HOUR = 3_600.0


@define(eq=False)
class Bench:
    """One witness, and the clock and the disk that it sees."""

    votes: VoteBook
    config: RationsConfig = SCARCE
    now: float = 5_000.0
    free: int = 1_000
    book: RationedBook = field(init=False)
    witness: Witness = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.book = RationedBook(
            self.votes, OWNER.key, lambda: self.now, lambda: self.free, self.config
        )
        refusal = self.book.refusal
        self.witness = Witness(OWNER.key, OWNER.sign, self.book, refusal=refusal)

    def show(self, *entries: Entry) -> object:
        return ask(self.witness, *entries)

    def take(self, entries: Sequence[Entry]) -> int:
        """How many of a chain have a vote, once those that had none were shown in turn."""
        ballot = self.votes.ballot(BOB.key, NET)
        start = ballot.seq if ballot else 0
        for at, entry in enumerate(entries[start:], start):
            if not isinstance(self.show(entry), Voted):
                return at
        return len(entries)

    def fill(self, chain: Chain, most: int = 100) -> int:
        """How many entries get a vote, one by one."""
        for count in range(most):
            if not isinstance(self.show(chain.alloc(ALICE)), Voted):
                return count
        return most


@pytest.fixture
def books() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def bench(books: ExitStack) -> Bench:
    return Bench(books.enter_context(VoteBook.open(Path(":memory:"), OWNER.key)))


def why(answer: object) -> str:
    assert isinstance(answer, Refused)
    return answer.reason


def test_one_author_gets_so_many_votes_an_hour_and_hears_why_no_more(bench: Bench) -> None:
    bob = Chain(BOB)
    assert bench.fill(bob) == SCARCE.entries
    assert "6 entries of one author an hour" in why(bench.show(Chain(BOB).alloc(ALICE)))
    assert bench.book.tally == {"unrationed_author": 2}
    assert bench.fill(Chain(CAROL), 1) == 1, "another author has its own"


def test_what_was_spent_comes_back_with_time_and_never_more_than_an_hours(bench: Bench) -> None:
    bob = Chain(BOB)
    entries = [bob.alloc(ALICE) for _ in range(3 * SCARCE.entries)]
    assert bench.take(entries) == SCARCE.entries
    bench.now += HOUR / SCARCE.entries
    assert bench.take(entries) == SCARCE.entries + 1
    bench.now += 50 * HOUR
    assert bench.take(entries) == 2 * SCARCE.entries + 1


def test_a_vote_given_again_costs_nothing(bench: Bench) -> None:
    entry = Chain(BOB).alloc(ALICE)
    for _ in range(5 * SCARCE.entries):
        assert isinstance(bench.show(entry), Voted)


def test_a_run_counts_as_many_entries_as_it_brings(bench: Bench) -> None:
    bob = Chain(BOB)
    assert isinstance(bench.show(*[bob.alloc(ALICE) for _ in range(SCARCE.entries)]), Voted)
    assert "of one author" in why(bench.show(bob.alloc(ALICE)))


def test_new_authors_are_let_in_so_many_an_hour_and_known_ones_go_on(bench: Bench) -> None:
    chains = [Chain(party) for party in (BOB, CAROL, DAVE)]
    assert [bench.fill(chain, 1) for chain in chains] == [1, 1, 0]
    assert bench.book.tally == {"unrationed_authors": 1}
    assert bench.fill(chains[0], 1) == 1
    bench.now += HOUR / SCARCE.authors
    assert bench.fill(Chain(DAVE), 1) == 1


def test_garbage_of_new_keys_uses_up_nobodys_place(bench: Bench) -> None:
    for number in range(3 * SCARCE.authors):
        chain = Chain(Party.named(f"stranger {number}"))
        chain.alloc(ALICE)
        later = chain.alloc(ALICE)
        assert not isinstance(bench.show(later), Voted)
    assert bench.fill(Chain(BOB), 1) == 1


def test_all_together_get_so_many(books: ExitStack) -> None:
    votes = books.enter_context(VoteBook.open(Path(":memory:"), OWNER.key))
    bench = Bench(votes, RationsConfig(entries=6, entries_all=10, authors=9, room=0))
    counts = [bench.fill(Chain(party)) for party in (BOB, CAROL, DAVE)]
    assert counts == [6, 4, 0]
    assert bench.book.tally == {"unrationed_author": 1, "unrationed_all": 2}


def test_the_last_of_the_disk_is_for_nobody(bench: Bench) -> None:
    bob = Chain(BOB)
    assert bench.fill(bob, 1) == 1
    bench.free -= 1
    assert "keeps 1000 bytes of its disk free" in why(bench.show(bob.fork().alloc(ALICE)))
    assert bench.book.tally == {"unrationed_room": 1}
    bench.free += 1
    assert bench.fill(bob, 1) == 1


def test_a_disk_that_cannot_be_looked_at_has_no_room(books: ExitStack) -> None:
    def gone() -> int:
        raise OSError("gone")

    votes = books.enter_context(VoteBook.open(Path(":memory:"), OWNER.key))
    book = RationedBook(votes, OWNER.key, lambda: 0.0, gone)
    assert "of its disk free" in book.refusal(BOB.key, NET)


def test_the_witness_itself_is_never_refused(bench: Bench) -> None:
    bench.free = 0
    assert bench.fill(Chain(OWNER), 3 * SCARCE.entries_all) == 3 * SCARCE.entries_all


def test_who_is_remembered_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.rations.AUTHORS_KEPT_MAX", 8)
    for number in range(30):
        bench.book.refusal(bytes([number]) * 32, NET)
    assert len(bench.book._of) == 8
