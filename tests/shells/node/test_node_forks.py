"""Who signed two entries for one place: noticed once, and proven to others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_deals import ALICE, BOB, CAROL, NET, WALL_MS, Chain, cid
from ledger_replicas import close_all, in_memory

from ledger.merge import Merger
from ledger.model import Entry, Kind
from ledger.store import Store
from ledger.validity import prove_fork
from mesh.forks import Fork, Forks
from mesh.ids import PeerId


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    close_all()


def forks_over(store: Store) -> Forks:
    return Forks(Merger(store, spread=map), NET, lambda: WALL_MS)


def arms(**changes: object) -> tuple[Entry, Entry]:
    """Two entries for Bob's first place."""
    bob = Chain(BOB)
    return bob.fork().alloc(ALICE, **changes), bob.alloc(CAROL, **changes)


def test_a_fork_is_noticed_by_its_second_arm_and_proven_in_one_entry() -> None:
    one, other = arms()
    store = in_memory([one])
    forks = forks_over(store)
    assert forks.look_at([one]) == []
    assert not forks
    store.add([other])
    (proof,) = forks.look_at([other])
    assert proof == prove_fork(one, other)
    assert store.entry(proof.id) == proof
    assert forks.take() == [Fork(PeerId(BOB.key), (proof.encode(),))]
    assert bool(forks)


def test_a_fork_is_noticed_once() -> None:
    one, other = arms()
    forks = forks_over(in_memory([one, other]))
    made = forks.look_at([one, other, one])
    assert len(made) == len(forks.take()) == 1
    assert forks.look_at([one, other, *made]) == []
    assert forks.take() == []


def test_arms_too_long_for_one_proof_are_the_proof_themselves() -> None:
    inputs = tuple(cid(bytes([number])) for number in range(40))
    one, other = arms(inputs=inputs)
    assert prove_fork(one, other) is None
    forks = forks_over(in_memory([one, other]))
    assert forks.look_at([other]) == []
    (fork,) = forks.take()
    assert set(fork.proof) == {one.encode(), other.encode()}


def test_a_proof_that_others_made_is_believed_and_not_said_again() -> None:
    proof = prove_fork(*arms())
    assert proof is not None
    forks = forks_over(in_memory([proof]))
    assert forks.look_at([proof]) == []
    assert forks.take() == [Fork(PeerId(BOB.key))]


def test_an_entry_elsewhere_on_a_forked_chain_tells_of_the_fork_without_proof() -> None:
    one, other = arms()
    bob = Chain(BOB)
    bob.alloc(ALICE)
    later = bob.alloc(ALICE)
    forks = forks_over(in_memory([one, other, later]))
    assert forks.look_at([later]) == []
    assert forks.take() == [Fork(PeerId(BOB.key))]


def test_what_was_proven_before_a_start_is_noticed_after_it() -> None:
    proof = prove_fork(Chain(CAROL).alloc(ALICE), Chain(CAROL).alloc(BOB))
    assert proof is not None
    forks = forks_over(in_memory(arms(), [proof]))
    assert forks.recall() == []
    assert {fork.author for fork in forks.take()} == {BOB.key, CAROL.key}


def test_a_fork_on_another_network_is_none_here() -> None:
    bob = Chain(BOB, net=b"another1")
    pair = [bob.fork().alloc(ALICE), bob.alloc(CAROL)]
    proof = prove_fork(*pair)
    assert proof is not None
    forks = forks_over(in_memory(pair, [proof]))
    assert forks.recall() == []
    assert forks.look_at([*pair, proof]) == []
    assert forks.take() == []


def test_the_file_of_a_node_remembers_forks(tmp_path: Path) -> None:
    with Store.open(tmp_path / "ledger.sqlite") as store:
        store.add(arms())
    with Store.open(tmp_path / "ledger.sqlite") as store, Merger(store) as merger:
        forks = Forks(merger, NET, lambda: WALL_MS)
        forks.recall()
        assert [fork.author for fork in forks.take()] == [BOB.key]
        assert Kind.FORKPROOF not in {entry.content.kind for entry in store.entries()}
