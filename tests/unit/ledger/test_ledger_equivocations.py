"""An author that signs one place ten thousand times: what it can make others keep and do."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve
from ledger_bundles import lines, resigned
from ledger_deals import ALICE, BOB, NET, WALL_MS, Chain
from ledger_witnesses import WITNESSES, ask, close_books, is_vote_for, witness_of

from ledger.__main__ import BAD, PROOFS_MAX, main
from ledger.audit import ARMS_MAX, findings
from ledger.exchange import TURN_ENTRIES_MAX
from ledger.merge import FORKED_PER_HOUR, Merger
from ledger.model import Entry
from ledger.state import Accounts
from ledger.store import Store
from ledger.validity import prove_fork
from ledger.witness import Refused

ARMS = 10_000
HOUR_MS = 3_600_000
BYTES_MAX = 2048
"""Of the file for each entry that is taken, indexes included."""


def equivocations(count: int) -> list[Entry]:
    """ALLOCs for one place of BOB's chain, each of them signed by a seller too."""
    body = Chain(BOB).alloc(ALICE).content
    return [resigned(evolve(body, hlc=body.hlc + number)) for number in range(count)]


@pytest.fixture(scope="module")
def arms() -> list[Entry]:
    return equivocations(ARMS)


def work(act: Callable[[], object]) -> int:
    """How many calls of functions *act* takes: the same on every machine."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.slow
def test_a_replica_keeps_one_turn_of_them_and_then_a_budget_an_hour(
    arms: list[Entry], tmp_path: Path
) -> None:
    path = tmp_path / "ledger.sqlite"
    with Store.open(path) as store, Merger(store, spread=map) as merger:
        for at in range(0, ARMS, TURN_ENTRIES_MAX):
            batch = arms[at : at + TURN_ENTRIES_MAX]
            merger.merge([entry.encode() for entry in batch], WALL_MS)
        most = TURN_ENTRIES_MAX + FORKED_PER_HOUR
        assert store.holding(BOB.key, NET).forked
        assert store.total().count <= most
        assert merger.statistics()["over_budget"] >= ARMS - most
        before = store.total().count
        merger.merge([entry.encode() for entry in arms], WALL_MS + HOUR_MS)
        assert store.total().count <= before + FORKED_PER_HOUR
        assert len(merger._hours) == 1
        kept = store.total().count
    assert path.stat().st_size < kept * BYTES_MAX


def test_heard_one_by_one_as_by_gossip_the_budget_is_all_there_is() -> None:
    some = equivocations(FORKED_PER_HOUR + 50)
    with Store.open(Path(":memory:")) as store, Merger(store, spread=map) as merger:
        for entry in some:
            merger.merge([entry.encode()], WALL_MS)
        assert store.total().count == FORKED_PER_HOUR + 2


@pytest.mark.slow
def test_proofs_of_forks_have_one_budget_whoever_forked(arms: list[Entry]) -> None:
    proofs = [proof for arm in arms[1:2001] if (proof := prove_fork(arms[0], arm))]
    assert len(proofs) == 2000
    with Store.open(Path(":memory:")) as store, Merger(store, spread=map) as merger:
        merged = merger.merge([proof.encode() for proof in proofs], WALL_MS)
        assert (len(merged.entries), merged.over_budget) == (FORKED_PER_HOUR, 2000 - 256)


@pytest.mark.slow
def test_every_arm_is_a_debt_and_the_fork_is_marked_once(arms: list[Entry]) -> None:
    accounts = Accounts(NET)
    for entry in arms:
        accounts.add(entry)
    account = accounts.account(BOB.key)
    assert (account.forked, account.pending_debit) == (True, ARMS * 5040)
    assert accounts.refusal(BOB.key, ALICE.key, 0) == "it forked its chain"
    assert len(accounts._places) == 1


@pytest.mark.slow
def test_folding_and_auditing_twice_as_many_is_twice_the_work() -> None:
    def fold(entries: list[Entry]) -> None:
        accounts = Accounts(NET)
        for entry in entries:
            accounts.add(entry)

    def audit(entries: list[Entry]) -> None:
        assert sum(finding.check == "fork" for finding in found(entries)) == len(entries) - 1

    def found(entries: list[Entry]) -> list[object]:
        return list(findings(entries, verify=lambda key, message, signature: True))  # type: ignore[arg-type]

    for act in (fold, audit):
        once, twice = (
            work(lambda act=act, count=count: act(equivocations(count)))  # type: ignore[misc]
            - work(lambda count=count: equivocations(count))  # type: ignore[misc]
            for count in (300, 600)
        )
        assert 1.8 * once < twice < 2.2 * once, act


@pytest.mark.slow
def test_heads_on_arms_without_end_are_walked_to_a_bound() -> None:
    """Each arm's HEAD would cost a walk to the start of the chain."""

    def audit(heads: int) -> int:
        bob = Chain(BOB)
        trunk = [bob.line(ALICE, number) for number in range(100)]
        tips = [
            resigned(evolve(bob.fork().checkpoint(trunk).content, hlc=2**50 + number))
            for number in range(heads)
        ]
        entries = [*trunk, *tips]
        return work(lambda: list(findings(entries, verify=lambda *_: True)))

    assert audit(ARMS_MAX + 48) - audit(ARMS_MAX + 40) < (audit(12) - audit(4)) / 2


@pytest.fixture
def witness_books() -> Iterator[None]:
    yield
    close_books()


@pytest.mark.slow
@pytest.mark.usefixtures("witness_books")
def test_a_witness_keeps_two_of_them(arms: list[Entry]) -> None:
    witness = witness_of(WITNESSES[0])
    assert is_vote_for(ask(witness, arms[0]), arms[0])
    for entry in arms[1:]:
        answer = ask(witness, entry)
        assert answer == Refused("it forked its chain", (arms[0], arms[1]))
    assert witness.statistics() == {"voted": 1, "refused": ARMS - 1, "forks": 1}
    assert len(witness._ballots) == 1


@pytest.mark.slow
def test_the_command_line_writes_so_many_proofs_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "forks.jsonl"
    path.write_bytes(b"".join(lines([*equivocations(200)])))
    out = io.StringIO()
    assert main(["audit", str(path)], out, io.StringIO()) == BAD
    told = out.getvalue().splitlines()
    assert sum(line.startswith('{"raw"') for line in told) == PROOFS_MAX
    assert "more forks are not written down" in told
