"""Custody: keys that speak of keys, and a rotation that a crash at any point leaves whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from ledger.audit import findings
from ledger.authority import Authority
from ledger.bundle import read
from ledger.chain import check_entry
from ledger.model import KINDS_KNOWN, Entry, Kind
from ledger.statements import KeyOp, Op
from ledger.store import Store
from mesh.errors import ConfigError, Refused
from mesh.identity import custody
from mesh.identity.custody import NodeCustody, open_custody
from mesh.identity.keys import create, load, lock
from mesh.ids import NET, PeerId


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def held(keys: Path, tmp_path: Path) -> Iterator[NodeCustody]:
    create(keys / "node.key")
    with open_custody(keys / "node.key", tmp_path / "ledger.sqlite") as opened:
        yield opened


def entries_of(path: Path) -> list[Entry]:
    items = list(read(path.read_bytes().splitlines()))
    assert all(isinstance(item, Entry) for item in items)
    return [item for item in items if isinstance(item, Entry)]


def authority(*entries: Entry) -> Authority:
    known = Authority()
    for entry in entries:
        check_entry(entry, kinds=KINDS_KNOWN)
        known.add(entry.content)
    return known


# --- owners -------------------------------------------------------------------------------------


def test_an_owner_delegates_to_a_node_that_consents(keys: Path) -> None:
    node, owner = create(keys / "node.key"), custody.new_owner(keys / "owner.key")
    entry = custody.delegate(keys / "owner.key", node.peer, custody.consent(node, owner.peer))
    assert authority(entry).owners(node.peer) == {owner.peer}
    assert entries_of(keys / "owner.key.chain") == [entry]


def test_a_node_that_did_not_consent_is_nobodys(keys: Path) -> None:
    node, owner = create(keys / "node.key"), custody.new_owner(keys / "owner.key")
    other = create(keys / "other.key")
    for agreed in (custody.consent(other, owner.peer), custody.consent(node, other.peer)):
        with pytest.raises(Refused, match="consent"):
            custody.delegate(keys / "owner.key", node.peer, agreed)
    assert entries_of(keys / "owner.key.chain") == []


def test_an_owners_chain_goes_on_and_verifies(keys: Path) -> None:
    owner = custody.new_owner(keys / "owner.key")
    nodes = [create(keys / f"node-{n}.key") for n in range(3)]
    for node in nodes:
        custody.delegate(keys / "owner.key", node.peer, custody.consent(node, owner.peer))
    custody.sign_as_owner(keys / "owner.key", Op.REVOKE, nodes[0].peer)
    entries = entries_of(keys / "owner.key.chain")
    assert [entry.content.seq for entry in entries] == [0, 1, 2, 3]
    assert all(finding.is_good for finding in findings(entries))
    known = authority(*entries)
    assert [known.is_retired(node.peer) for node in nodes] == [True, False, False]


def test_a_chain_that_is_lost_or_damaged_is_never_begun_again(keys: Path) -> None:
    custody.new_owner(keys / "owner.key")
    node = PeerId(bytes(31) + b"\7")
    custody.sign_as_owner(keys / "owner.key", Op.REVOKE, node)
    chain = keys / "owner.key.chain"
    sound = chain.read_bytes()
    for wrong in (sound[: len(sound) // 2], sound + sound, b"{}\n"):
        chain.write_bytes(wrong)
        with pytest.raises(ConfigError, match="chain"):
            custody.sign_as_owner(keys / "owner.key", Op.REVOKE, node)
    chain.unlink()
    with pytest.raises(ConfigError, match="is missing") as caught:
        custody.sign_as_owner(keys / "owner.key", Op.REVOKE, node)
    assert "fork" in caught.value.hint


def test_a_key_or_a_chain_that_is_there_is_never_overwritten(keys: Path) -> None:
    owner = custody.new_owner(keys / "owner.key")
    with pytest.raises(ConfigError, match="is there already"):
        custody.new_owner(keys / "owner.key")
    (keys / "owner.key").unlink()
    with pytest.raises(ConfigError, match="is there already"):
        custody.new_owner(keys / "owner.key")
    assert owner.peer


def test_what_is_wrong_with_an_owners_key_names_its_file(keys: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.key"):
        custody.sign_as_owner(keys / "none.key", Op.REVOKE, PeerId(bytes(32)))


# --- the node's own word ------------------------------------------------------------------------


def test_a_recovery_key_revokes_and_is_unknown_until_then(held: NodeCustody, keys: Path) -> None:
    recovery = custody.commit_recovery(held, keys / "recovery.key")
    (committed,) = held.ledger.chain(held.key.peer)
    assert recovery.peer not in committed.encode()
    assert KeyOp.decode(committed.content.terms).commitment == sha256(recovery.peer).digest()
    revoked = custody.sign_as_owner(keys / "recovery.key", Op.REVOKE, held.key.peer)
    assert not authority(committed).is_retired(held.key.peer)
    assert authority(committed, revoked).is_retired(held.key.peer)


def test_a_key_that_revoked_itself_signs_nothing_more(held: NodeCustody, keys: Path) -> None:
    entry = custody.revoke_self(held)
    assert authority(entry).is_retired(held.key.peer)
    assert "revoked itself" in custody.why_retired(held.ledger, held.key.peer)
    for act in (
        lambda: custody.revoke_self(held),
        lambda: custody.rotate(held),
        lambda: custody.commit_recovery(held, keys / "late.key"),
    ):
        with pytest.raises(Refused, match="revoked itself"):
            act()
    assert len(list(held.ledger.chain(held.key.peer))) == 1


def test_a_running_node_keeps_its_key(keys: Path, tmp_path: Path) -> None:
    create(keys / "node.key")
    descriptor = lock(keys / "node.key")
    with (
        pytest.raises(ConfigError, match="another node runs"),
        open_custody(keys / "node.key", tmp_path / "ledger.sqlite"),
    ):
        raise AssertionError("it was held")
    os.close(descriptor)


# --- rotation -----------------------------------------------------------------------------------


def test_a_rotated_node_has_a_new_key_and_its_chain_goes_on_from_the_rotate(
    held: NodeCustody, keys: Path
) -> None:
    old = held.key
    custody.commit_recovery(held, keys / "recovery.key")
    fresh = custody.rotate(held)
    assert load(keys / "node.key") == fresh
    (kept,) = keys.glob("node.key.old-*")
    assert load(kept) == old
    rotate = list(held.ledger.chain(old.peer))[-1]
    known = authority(rotate)
    assert (known.is_retired(old.peer), known.heirs(old.peer)) == (True, {fresh.peer})
    assert "was rotated to" in custody.why_retired(held.ledger, old.peer)
    start = held.ledger.head(fresh.peer, NET)
    assert (start.author, start.seq, start.prev) == (fresh.peer, 0, rotate.id)
    assert start.hlc == rotate.content.hlc


def test_a_second_rotation_follows_the_first(held: NodeCustody, keys: Path, tmp_path: Path) -> None:
    first = custody.rotate(held)
    held.ledger.close()
    lockless = NodeCustody(keys / "node.key", first, Store.open(tmp_path / "ledger.sqlite"))
    second = custody.rotate(lockless)
    chains = [list(lockless.ledger.chain(key.peer)) for key in (held.key, first)]
    assert [len(chain) for chain in chains] == [1, 1]
    assert chains[1][0].content.prev == chains[0][0].id
    assert lockless.ledger.head(second.peer, NET).prev == chains[1][0].id
    lockless.ledger.close()


class Crash(Exception):
    """The machine stopped here."""


STEPS: list[tuple[str, str]] = [
    ("mesh.identity.custody.load_or_create", "before"),
    ("mesh.identity.custody.load_or_create", "after"),
    ("ledger.store.Store.append_own", "before"),
    ("ledger.store.Store.append_own", "after"),
    ("os.link", "before"),
    ("os.link", "after"),
    ("os.replace", "before"),
    ("os.replace", "after"),
]


@pytest.mark.parametrize(("step", "when"), STEPS)
def test_a_crash_anywhere_leaves_a_key_and_a_second_call_ends_the_rotation(
    held: NodeCustody, keys: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    before = held.key
    with monkeypatch.context() as patch:
        patch.setattr(step, crashing(step, when))
        with pytest.raises(Crash):
            custody.rotate(held)
    stands = load(keys / "node.key")
    if stands == before:  # else the rotation was over when the machine stopped
        fresh = custody.rotate(held)
        assert load(keys / "node.key") == fresh != before
    assert load(next(keys.glob("node.key.old-*"))) == before
    kinds = [entry.content.kind for entry in held.ledger.chain(before.peer)]
    assert kinds == [Kind.KEYOP], "one ROTATE, however often"
    assert held.ledger.head(before.peer, NET).seq == 1


def crashing(step: str, when: str) -> Callable[..., object]:
    module, _, name = step.rpartition(".")
    owner = {"os": os, "ledger.store.Store": Store, "mesh.identity.custody": custody}[module]
    real = getattr(owner, name)

    def stop(*arguments: object, **named: object) -> object:
        if when == "before":
            raise Crash
        real(*arguments, **named)
        raise Crash

    return stop
