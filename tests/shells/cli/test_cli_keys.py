"""`mesh key` and `mesh fsck`: what is done to a home while no node runs in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ledger_deals import ALICE, Party, alloc_terms
from nacl.signing import SigningKey

from ledger import chain
from ledger.keys import terms_message
from ledger.model import Entry
from ledger.store import Store
from mesh.cli.main import cli
from mesh.client.files import read_bundle
from mesh.identity.keys import NodeKey, load, load_or_create, lock
from mesh.ids import NET, RAW, PeerId, cid_of, format_cid, format_peer
from mesh.paths import Home, find_home
from mesh.runtime.manifest import METER
from mesh.storage.disk import DiskBlocks
from mesh.storage.journal import open_journal


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The home of a node that was started once and stopped."""
    monkeypatch.delenv("MESH_ADDR", raising=False)
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    home = find_home({"MESH_HOME": str(tmp_path / "home")})
    home.state.mkdir(parents=True)
    home.data.mkdir()
    load_or_create(home.key_file)
    Store.open(home.state / "ledger.sqlite").close()
    with open_journal(home.state / "node.sqlite"):
        pass
    with DiskBlocks(home.data / "blocks", 1 << 20) as blocks:
        blocks.put(cid_of(RAW, b"a block"), b"a block")
    return home


def mesh(*args: str) -> Result:
    return CliRunner().invoke(cli, args, prog_name="mesh")


def told(*args: str) -> dict[str, object]:
    result = mesh(*args, "--json")
    assert result.exit_code == 0, result.stderr
    facts: dict[str, object] = json.loads(result.stdout)
    return facts


def me(home: Home) -> str:
    return format_peer(load(home.key_file).peer)


def chain_of(home: Home, key: NodeKey) -> list[Entry]:
    with Store.view(home.state / "ledger.sqlite") as store:
        return list(store.chain(key.peer))


# --- keys


def test_a_key_shows_its_owners_once_the_owners_word_is_known(home: Home) -> None:
    assert (told("key", "show")["peer"], told("key", "show")["owners"]) == (me(home), [])
    owner = told("key", "new-owner", "owner.key")
    agreed = mesh("key", "consent", "--owner", str(owner["public"])).stdout.strip()
    made = mesh(
        "key", "delegate", "--owner-key=owner.key", f"--node={me(home)}", "--consent", agreed
    )
    assert made.exit_code == 0, made.stderr
    assert "publish it: mesh ledger import owner.key.chain" in made.stderr
    assert mesh("audit", "--verify", "owner.key.chain").exit_code == 0
    with Store.open(home.state / "ledger.sqlite") as store:
        store.add(_entries("owner.key.chain"))
    assert told("key", "show")["owners"] == [owner["peer"]]


def _entries(name: str) -> Iterator[Entry]:
    return (item for item in read_bundle(Path(name)) if isinstance(item, Entry))


def test_a_consent_to_another_owner_delegates_nothing(home: Home) -> None:
    mesh("key", "new-owner", "owner.key")
    agreed = mesh("key", "consent", "--owner", me(home)).stdout.strip()
    result = mesh(
        "key", "delegate", "--owner-key=owner.key", f"--node={me(home)}", f"--consent={agreed}"
    )
    assert result.exit_code == 2
    assert "hint: at the node: mesh key consent --owner 12D3" in result.stderr


def test_an_owner_revokes_its_node_and_a_recovery_key_does(home: Home) -> None:
    for name, make in (("owner.key", "new-owner"), ("recovery.key", "recovery")):
        assert mesh("key", make, name).exit_code == 0
        done = mesh("key", "revoke", f"--owner-key={name}", f"--node={me(home)}", "--yes")
        assert done.exit_code == 0, done.stderr
        assert mesh("audit", "--verify", f"{name}.chain").exit_code == 0
    with Store.open(home.state / "ledger.sqlite") as store:
        store.add(_entries("owner.key.chain"))
        assert told("key", "show")["is_retired"] is False, "it never had that owner"
        store.add(_entries("recovery.key.chain"))
    assert told("key", "show")["is_retired"] is True


def test_a_revocation_is_asked_for_twice(home: Home) -> None:
    key = load(home.key_file)
    assert CliRunner().invoke(cli, ["key", "revoke"], input="n\n").exit_code == 130
    assert chain_of(home, key) == []
    assert mesh("key", "revoke", "--yes").exit_code == 0
    assert len(chain_of(home, key)) == 1
    again = mesh("key", "revoke", "--yes")
    assert (again.exit_code, "revoked itself" in again.stderr) == (2, True)


def test_a_rotated_home_has_a_new_key_and_is_sound(home: Home) -> None:
    old = load(home.key_file)
    assert mesh("key", "recovery", "recovery.key").exit_code == 0
    fresh = told("key", "rotate")
    assert fresh["peer"] == me(home) != format_peer(old.peer)
    assert mesh("fsck").exit_code == 0
    assert mesh("key", "recovery", "second.key").exit_code == 0
    (first,) = chain_of(home, load(home.key_file))
    assert first.content.prev == chain_of(home, old)[-1].id
    assert mesh("fsck").exit_code == 0


def test_a_key_with_open_deals_is_not_rotated(home: Home) -> None:
    """Only the key that reserved can pay or let go."""
    award(home)
    result = mesh("key", "rotate")
    assert result.exit_code == 2
    assert "deals are open: 5040 µcr" in result.stderr
    assert len(chain_of(home, load(home.key_file))) == 1


def award(home: Home) -> None:
    key = load(home.key_file)
    buyer = Party(SigningKey(key.seed))
    terms = alloc_terms(ALICE, buyer, meter=METER).encode()
    with Store.open(home.state / "ledger.sqlite") as store:
        _, entry = chain.alloc(
            store.head(key.peer, NET),
            terms,
            ALICE.sign(terms_message(terms)),
            wall_ms=1,
            sign=key.sign,
        )
        store.append_own([entry])


@pytest.mark.parametrize("verb", [("rotate",), ("recovery", "r.key"), ("revoke", "--yes")])
def test_the_key_of_a_running_node_signs_nothing_by_hand(home: Home, verb: tuple[str, ...]) -> None:
    descriptor = lock(home.key_file)
    result = mesh("key", *verb)
    os.close(descriptor)
    assert result.exit_code == 2
    assert "another node runs with" in result.stderr
    assert chain_of(home, load(home.key_file)) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("delegate", "--owner-key=o", "--node=12D3", "--consent=00"),
        ("consent", "--owner", "zz"),
        ("revoke", "--node", "0" * 64, "--yes"),
        ("revoke", "--owner-key=o", "--yes"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(home: Home, arguments: tuple[str, ...]) -> None:
    result = mesh("key", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


def test_without_a_key_there_is_nothing_to_show(home: Home) -> None:
    home.key_file.unlink()
    assert mesh("key", "show").exit_code == 2


# --- fsck


def test_a_home_that_was_never_used_has_no_problems(home: Home, tmp_path: Path) -> None:
    result = CliRunner(env={"MESH_HOME": str(tmp_path / "none")}).invoke(cli, ["fsck"])
    assert (result.exit_code, result.stderr) == (0, "nothing here yet: 0 problems\n")


def test_a_sound_home_is_looked_at_whole_and_left_as_it_is(home: Home) -> None:
    award(home)
    before = {path: path.read_bytes() for path in home.state.iterdir() if path.is_file()}
    facts = told("fsck")
    assert (facts["schema"], facts["is_good"]) == ("mesh.fsck/v1", True)
    assert facts["looked_at"] == {"entries": 1, "blocks": 1}
    assert {path: path.read_bytes() for path in before} == before


def spoil_block(home: Home) -> None:
    cid = cid_of(RAW, b"a block")
    (home.data / "blocks" / "blocks" / f"{cid[-1]:02x}" / format_cid(cid)).write_bytes(b"a blocK")


def spoil_entry(home: Home) -> None:
    path = home.state / "ledger.sqlite"
    with Store.open(path) as store:
        (entry,) = store.entries()
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = path.read_bytes()
    place = data.index(entry.body) + 50
    path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])


def spoil_journal(home: Home) -> None:
    with open_journal(home.state / "node.sqlite") as journal:
        journal._database.execute("INSERT INTO tenancy VALUES (x'00', 1, x'c1')")


def spoil_pins(home: Home) -> None:
    (home.data / "blocks" / "pins.sqlite").write_bytes(b"not a database" * 200)


def spoil_votes(home: Home) -> None:
    (home.state / "votes.sqlite").write_bytes(b"not a database" * 200)


def spoil_key(home: Home) -> None:
    home.key_file.write_text("no key")


@pytest.mark.parametrize(
    ("spoil", "where", "hint"),
    [
        (spoil_block, "blocks", "delete it"),
        (spoil_entry, "ledger", "fetch the entries from other nodes"),
        (spoil_journal, "journal", "receipts not"),
        (spoil_pins, "pins", "restore it"),
        (spoil_votes, "votes", "restore it"),
        (spoil_key, "key", "restore it"),
    ],
)
def test_each_kind_of_damage_is_named_with_its_way_out(
    home: Home, spoil: Callable[[Home], None], where: str, hint: str
) -> None:
    award(home)
    spoil(home)
    result = mesh("fsck", "--json")
    assert result.exit_code == 6
    (problem,) = json.loads(result.stdout)["problems"]
    assert problem["where"] == where
    assert hint in problem["hint"]
    shown = mesh("fsck")
    assert (shown.exit_code, shown.stdout.startswith(f"FAIL {where}: ")) == (6, True)
    assert "1 problem\n" in shown.stderr


def test_an_own_chain_that_forked_is_found(home: Home) -> None:
    key = load(home.key_file)
    award(home)
    _, other = chain.line(
        chain.Head.start(key.peer, NET), 5, PeerId(ALICE.key), wall_ms=2, sign=key.sign
    )
    with Store.open(home.state / "ledger.sqlite") as store:
        store.add([other])
    result = mesh("fsck")
    assert result.exit_code == 6
    assert "our own chain forked at seq 0" in result.stdout


def test_it_works_beside_whoever_has_all_of_it_open(home: Home) -> None:
    award(home)
    descriptor = lock(home.key_file)
    with (
        Store.open(home.state / "ledger.sqlite"),
        open_journal(home.state / "node.sqlite"),
        DiskBlocks(home.data / "blocks", 1 << 20),
    ):
        assert mesh("fsck").exit_code == 0
    os.close(descriptor)
