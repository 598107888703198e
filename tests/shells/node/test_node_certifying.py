"""Votes over real networks from real books: who is slow, dead or lies does not hold up a quorum."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from attrs import define, field
from ledger_deals import ALICE, Chain
from node_replicas import eventually, party
from node_witnesses import (
    AUTHOR,
    Handler,
    Judge,
    chain_of,
    open_author,
    open_judge,
    open_peer,
    quorum_of,
)

from ledger.hearing import encode_answer
from ledger.merge import Merger
from ledger.model import Entry
from ledger.quorum import Position, Vote, sign_vote
from ledger.store import Store
from ledger.validity import prove_fork
from ledger.votes import SCAN_PIECE, VoteBook
from ledger.witness import RUN_MAX, Behind, Voted
from mesh.certifying import Certifying
from mesh.errors import PeerError, Stopped, Unavailable
from mesh.ids import NET, PeerId

WALL_MS = 1_790_000_000_000
PATIENCE_S = 30.0
"""Far more than anything here takes."""
COURT = (2, 3, 4, 5)
"""Of four, three must vote."""
T = TypeVar("T")


@define(eq=False)
class Court:
    """Witnesses by number, where they listen, and what else the test opened."""

    nursery: trio.Nursery
    leaving: trio.Event
    folder: Path
    judges: dict[int, Judge] = field(factory=dict)
    where: list[str] = field(factory=list)

    async def enter(self, opening: AbstractAsyncContextManager[T]) -> T:
        """Open it in a task of its own, until the test is over."""

        async def stay(task_status: trio.TaskStatus[T]) -> None:
            async with opening as value:
                task_status.started(value)
                await self.leaving.wait()

        entered: T = await self.nursery.start(stay)
        return entered

    async def seat(self, *indices: int) -> None:
        """Honest ones."""
        for index in indices:
            judge, address = await self.enter(open_judge(self.folder, index))
            self.judges[index] = judge
            self.where.append(address)

    async def plant(self, index: int, handler: Handler) -> None:
        """One that answers as the test says."""
        network = await self.enter(open_peer(index, handler))
        self.where.append(network.addresses()[0])

    async def author(
        self, *entries: Entry, court: tuple[int, ...] = COURT, index: int = AUTHOR
    ) -> tuple[Certifying, list[tuple[bytes, ...]]]:
        opening = open_author(self.folder, quorum_of(*court), entries, *self.where, index=index)
        return await self.enter(opening)


@pytest.fixture
async def court(tmp_path: Path) -> AsyncIterator[Court]:
    async with trio.open_nursery() as nursery:
        leaving = trio.Event()
        yield Court(nursery, leaving, tmp_path)
        leaving.set()


def allocs(chain: Chain, count: int) -> list[Entry]:
    return [chain.alloc(ALICE) for _ in range(count)]


# --- a quorum -------------------------------------------------------------------------------------


async def test_enough_votes_make_a_certificate(court: Court) -> None:
    (entry,) = allocs(chain_of(AUTHOR), 1)
    await court.seat(*COURT)
    author, _ = await court.author(entry)
    certificate = await author.certify(entry, PATIENCE_S)
    assert certificate.position == Position.of(entry)
    author.quorum.check(certificate)
    assert sum(judge.holds([entry]) for judge in court.judges.values()) >= author.quorum.needed
    assert author.tally["certificates"] == 1


async def test_a_node_far_behind_is_led_forward_run_by_run(court: Court) -> None:
    chain = chain_of(AUTHOR)
    entries = allocs(chain, 3 * RUN_MAX + 5)
    await court.seat(2)
    author, _ = await court.author(*entries, court=(2,))
    await author.certify(entries[-1], PATIENCE_S)
    assert court.judges[2].holds(entries)
    assert author.tally["witnesses_asked"] == 1 + 4, "once to hear that it is behind"
    (news,) = allocs(chain, 1)
    await author.certify(news, PATIENCE_S)
    assert author.tally["witnesses_asked"] == 1 + 4 + 1, "it knows where the witness is"


async def test_entries_at_the_same_time_get_their_certificates_each(court: Court) -> None:
    entries = allocs(chain_of(AUTHOR), 8)
    await court.seat(*COURT)
    author, _ = await court.author(*entries)
    found = []

    async def certify(entry: Entry) -> None:
        found.append((await author.certify(entry, PATIENCE_S)).position)

    async with trio.open_nursery() as nursery:
        for entry in reversed(entries):
            nursery.start_soon(certify, entry)
    assert {place.seq: place for place in found} == {
        entry.content.seq: Position.of(entry) for entry in entries
    }


async def test_a_dead_witness_does_not_hold_up_a_quorum(court: Court) -> None:
    (entry,) = allocs(chain_of(AUTHOR), 1)
    await court.seat(*COURT[:3])
    author, _ = await court.author(entry)
    author.quorum.check(await author.certify(entry, PATIENCE_S))


async def test_a_silent_witness_does_not_hold_up_a_quorum(court: Court) -> None:
    async def silent(_peer: PeerId, _request: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    (entry,) = allocs(chain_of(AUTHOR), 1)
    await court.seat(*COURT[:3])
    await court.plant(COURT[3], silent)
    author, _ = await court.author(entry)
    author.quorum.check(await author.certify(entry, PATIENCE_S))


def forged(entry: Entry) -> bytes:
    return encode_answer(Voted(Vote(Position.of(entry), party(COURT[3]).key, bytes(64))))


def misplaced(entry: Entry) -> bytes:
    liar, position = party(COURT[3]), Position(NET, party(AUTHOR).key, 7, entry.id)
    return encode_answer(Voted(sign_vote(position, liar.key, liar.sign)))


def garbage(_entry: Entry) -> bytes:
    return b"garbage"


@pytest.mark.parametrize("lie", [garbage, forged, misplaced])
async def test_a_witness_that_lies_is_penalised_and_the_others_suffice(
    court: Court, lie: Callable[[Entry], bytes]
) -> None:
    (entry,) = allocs(chain_of(AUTHOR), 1)
    told = lie(entry)

    async def liar(_peer: PeerId, _request: bytes) -> bytes:
        return told

    await court.plant(COURT[3], liar)
    asked: list[Certifying] = []

    def slow(judge: Judge) -> Handler:
        async def answer(peer: PeerId, request: bytes) -> bytes:
            network = asked[0].network
            assert network is not None
            await eventually(lambda: network.statistics().get("faults", 0) == 1)
            return await judge.witnessing.answer(peer, request)

        return answer

    with ExitStack() as stack:
        for index in COURT[:3]:
            votes = stack.enter_context(VoteBook.open(Path(":memory:"), party(index).key))
            await court.plant(index, slow(Judge(votes, court.folder, index)))
        author, _ = await court.author(entry)
        asked.append(author)
        certificate = await author.certify(entry, PATIENCE_S)
    author.quorum.check(certificate)
    assert party(COURT[3]).key not in [witness for witness, _ in certificate.votes]


async def test_a_witness_that_sends_its_author_round_in_circles_is_given_up(
    court: Court, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.certifying.RUNS_MAX", 8)
    questions = 0

    async def circling(_peer: PeerId, _request: bytes) -> bytes:
        nonlocal questions
        questions += 1
        return encode_answer(Behind(party(AUTHOR).key, NET, max(0, 50 - questions)))

    entries = allocs(chain_of(AUTHOR), 60)
    await court.plant(2, circling)
    author, _ = await court.author(*entries, court=(2,))
    with pytest.raises(Unavailable, match="it is far behind"):
        await author.certify(entries[-1], PATIENCE_S)
    assert questions <= 8


# --- why there is none ----------------------------------------------------------------------------


async def test_too_few_votes_are_no_certificate_and_the_reason_is_told(court: Court) -> None:
    (entry,) = allocs(chain_of(AUTHOR), 1)
    await court.seat(*COURT)
    for index in COURT[:2]:
        court.judges[index].frozen.add(PeerId(party(AUTHOR).key))
    author, _ = await court.author(entry)
    with pytest.raises(Unavailable, match=r"2 of 4 witnesses gave no vote, 3 must: .*is retired"):
        await author.certify(entry, PATIENCE_S)
    assert author.tally["certificates_missing"] == 1


async def test_witnesses_that_do_not_answer_in_time_are_named(
    court: Court, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(_peer: PeerId, _request: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    (entry,) = allocs(chain_of(AUTHOR), 1)
    await court.plant(2, silent)
    author, _ = await court.author(entry, court=(2,))
    with pytest.raises(Unavailable, match=r"1 of 1 .* no answer within 0\.1 s"):
        await author.certify(entry, 0.1)
    monkeypatch.setattr("mesh.certifying.ASK_S", 0.1)
    with pytest.raises(Unavailable, match=r"did not answer in 0\.1 s"):
        await author.certify(entry, PATIENCE_S)


async def test_an_entry_of_another_network_gets_no_vote(court: Court) -> None:
    entry = Chain(party(AUTHOR)).alloc(ALICE)
    await court.seat(2)
    author, _ = await court.author(entry, court=(2,))
    with pytest.raises(Unavailable, match="another network"):
        await author.certify(entry, PATIENCE_S)


async def test_what_is_no_question_is_the_askers_fault(court: Court) -> None:
    await court.seat(2)
    with pytest.raises(PeerError, match="witness: "):
        await court.judges[2].witnessing.answer(PeerId(party(9).key), b"garbage")


# --- forks ----------------------------------------------------------------------------------------


async def test_the_evidence_of_a_fork_reaches_the_merger_of_who_asked_and_of_the_witness(
    court: Court,
) -> None:
    chain = chain_of(AUTHOR)
    one = Chain(party(AUTHOR), chain.head, NET).alloc(ALICE)
    other = chain.alloc(ALICE, price=7)
    await court.seat(2)
    first, _ = await court.author(one, court=(2,))
    await first.certify(one, PATIENCE_S)
    second, learned = await court.author(other, court=(2,), index=9)
    with pytest.raises(Unavailable, match="it forked its chain"):
        await second.certify(other, PATIENCE_S)
    for wires in (*learned, *court.judges[2].learned):
        with Store.open(Path(":memory:")) as store, Merger(store, spread=map) as merger:
            assert len(merger.merge(wires, WALL_MS).entries) == 2
            assert prove_fork(*store.entries()) == prove_fork(one, other)
    assert len(learned) == len(court.judges[2].learned) == 1


# --- our own witness ------------------------------------------------------------------------------


async def test_our_own_witness_votes_without_the_network(tmp_path: Path) -> None:
    (entry,) = allocs(chain_of(AUTHOR), 1)
    with VoteBook.open(tmp_path / "votes.sqlite", party(AUTHOR).key) as votes:
        judge, quorum = Judge(votes, tmp_path, AUTHOR), quorum_of(AUTHOR)
        async with open_author(tmp_path, quorum, [entry], judge=judge) as (author, _):
            quorum.check(await author.certify(entry, PATIENCE_S))
            assert author.network is not None
            assert "requests_answered" not in author.network.statistics()
    assert judge.witnessing.statistics() == {"witness_voted": 1}


async def test_who_names_itself_and_does_not_serve_is_told(tmp_path: Path) -> None:
    (entry,) = allocs(chain_of(AUTHOR), 1)
    async with open_author(tmp_path, quorum_of(AUTHOR), [entry]) as (author, _):
        with pytest.raises(Unavailable, match="named as a witness and does not serve as one"):
            await author.certify(entry, PATIENCE_S)


# --- the book -------------------------------------------------------------------------------------


async def test_a_book_that_fails_rings_the_alarm_and_gives_no_vote(court: Court) -> None:
    (entry,) = allocs(chain_of(AUTHOR), 1)
    await court.seat(2)
    judge = court.judges[2]
    judge.votes._db.execute("PRAGMA query_only = 1")
    author, _ = await court.author(entry, court=(2,))
    with pytest.raises(Unavailable, match="its book of votes fails"):
        await author.certify(entry, PATIENCE_S)
    (alarm,) = judge.alarms
    assert isinstance(alarm, Stopped)
    assert "the book of votes" in str(alarm)
    judge.votes._db.execute("PRAGMA query_only = 0")
    assert judge.votes.entry(entry.id) is None


async def test_a_sound_book_is_looked_through_while_it_votes(tmp_path: Path) -> None:
    entries = allocs(chain_of(AUTHOR), 2 * SCAN_PIECE + 3)
    with VoteBook.open(tmp_path / "votes.sqlite", party(2).key) as votes:
        judge = Judge(votes, tmp_path, 2)
        for entry in entries[:-1]:
            await judge.witnessing.ask([entry.encode()])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(judge.witnessing.scan)
            assert isinstance(await judge.witnessing.ask([entries[-1].encode()]), Voted)
        assert judge.alarms == []
        assert sum(votes.scan()) == len(entries)


async def test_rot_in_the_book_rings_the_alarm(tmp_path: Path) -> None:
    path = tmp_path / "votes.sqlite"
    with VoteBook.open(path, party(2).key) as votes:
        judge = Judge(votes, tmp_path, 2)
        for entry in allocs(chain_of(AUTHOR), SCAN_PIECE + 5):
            await judge.witnessing.ask([entry.encode()])
        deque(votes.scan(), 0)
    rotten = sqlite3.connect(path)
    with rotten:
        rotten.execute("UPDATE voted SET sig = zeroblob(64) WHERE seq = ?", (SCAN_PIECE + 2,))
    rotten.close()
    with VoteBook.open(path, party(2).key) as votes:
        judge = Judge(votes, tmp_path, 2)
        await judge.witnessing.scan()
    (alarm,) = judge.alarms
    assert f"seq {SCAN_PIECE + 2} is damaged" in str(alarm)
