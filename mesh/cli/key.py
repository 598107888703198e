"""`mesh key`: whose key is whose. All but `consent` and `show` need the node of the key stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mesh.cli import settings as sources
from mesh.cli.options import with_output
from mesh.cli.render import say, show_one
from mesh.errors import ConfigError, Refused

if TYPE_CHECKING:
    from mesh.identity.custody import NodeCustody
    from mesh.ids import PeerId

_PUBLISH = "publish it: mesh ledger import {}"


class Peer(click.ParamType["PeerId"]):
    """A key: a peer id, or 64 hex digits."""

    name = "key"

    def convert(
        self, value: str | bytes, param: click.Parameter | None, ctx: click.Context | None
    ) -> PeerId:
        from mesh.ids import PeerId, parse_peer

        if isinstance(value, bytes):
            return PeerId(value)
        try:
            return PeerId(bytes.fromhex(value)) if len(value) == 64 else parse_peer(value)
        except ValueError:
            self.fail(f"{value!r} is neither a peer id nor 64 hex digits", param, ctx)


class Signature(click.ParamType[bytes]):
    """A signature: 128 hex digits."""

    name = "hex"

    def convert(
        self, value: str | bytes, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes:
        if isinstance(value, bytes):
            return value
        try:
            data = bytes.fromhex(value)
        except ValueError:
            data = b""
        if len(data) != 64:
            self.fail(f"{value!r} is not a signature of 128 hex digits", param, ctx)
        return data


_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def key() -> None:
    """Keys: owners, recovery, rotation, revocation.

    A node signs with a key of its own; an owner's key may say which nodes are whose, and revoke
    them. Never sign with a restored copy: a chain that goes on twice is a fork, seen by all.
    """


@key.command("show")
@with_output
def show(*, form: str) -> None:
    """The key of this node: its public half, its owners, whether it is retired."""
    from ledger.authority import Authority
    from ledger.errors import LedgerError
    from ledger.model import Kind
    from ledger.store import Store
    from mesh.identity.keys import load
    from mesh.ids import PeerId, format_peer

    path, ledger_path = _paths()
    peer = load(path).peer
    authority = Authority()
    try:
        if ledger_path.exists():
            with Store.view(ledger_path) as store:
                for entry in store.all_of(Kind.KEYOP):
                    authority.add(entry.content)
    except LedgerError as error:
        raise ConfigError(str(ledger_path), error.reason, error.hint) from None
    owners = sorted(format_peer(PeerId(owner)) for owner in authority.owners(peer))
    heirs = sorted(format_peer(PeerId(heir)) for heir in authority.heirs(peer))
    is_retired = authority.is_retired(peer)
    facts = {"peer": format_peer(peer), "public": peer.hex(), "file": str(path)}
    lines = [
        *facts.items(),
        *(("owner", owner) for owner in owners),
        *(("rotated to", heir) for heir in heirs),
        ("retired", "yes: it signs nothing any more" if is_retired else "no"),
    ]
    rest = {"owners": owners, "heirs": heirs, "is_retired": is_retired}
    show_one("key", "peer", facts | rest, lines, form)


@key.command("new-owner")
@click.argument("file", type=_FILE)
@with_output
def new_owner(*, form: str, file: Path) -> None:
    """Make an owner's key at FILE, and its empty chain at FILE.chain. Keep both, best offline."""
    from mesh.identity import custody

    _tell_key(custody.new_owner(file).peer, file, form)


@key.command("consent")
@click.option("--owner", type=Peer(), required=True, help="The owner's public key.")
def consent(*, owner: PeerId) -> None:
    """At the node: agree that OWNER acts for it. The signature is for `mesh key delegate`."""
    from mesh.identity import custody
    from mesh.identity.keys import load

    path, _ = _paths()
    click.echo(custody.consent(load(path), owner).hex())


@key.command("delegate")
@click.option("--owner-key", type=_FILE, required=True, help="The owner's key file.")
@click.option("--node", type=Peer(), required=True, help="The node's peer id.")
@click.option("--consent", "agreed", type=Signature(), required=True, help="What the node signed.")
@with_output
def delegate(*, form: str, owner_key: Path, node: PeerId, agreed: bytes) -> None:
    """As the owner: say that NODE is yours. Written to the owner's chain, FILE.chain."""
    from mesh.identity import custody

    entry = custody.delegate(owner_key, node, agreed)
    _tell_entry(entry.id, custody.chain_file(owner_key), form)


@key.command("recovery")
@click.argument("file", type=_FILE)
@with_output
def recovery(*, form: str, file: Path) -> None:
    """Make a key at FILE that may revoke this node's, should that be stolen. Keep it elsewhere.

    Only its hash is signed, on the node's own chain: nobody learns the key before it is used.
    """
    from mesh.identity import custody

    with _held() as held:
        made = custody.commit_recovery(held, file)
    _tell_key(made.peer, file, form)


@key.command("revoke")
@click.option("--owner-key", type=_FILE, help="Revoke as its owner, or by its recovery key.")
@click.option("--node", type=Peer(), help="Whose key is revoked; with --owner-key.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_output
def revoke(*, form: str, owner_key: Path | None, node: PeerId | None, yes: bool) -> None:
    """Revoke a key for ever: this node's own, or with --owner-key that of a node of yours.

    It signs nothing any more, on any replica that knows; what it owes, it owes.
    """
    from ledger.statements import Op
    from mesh.identity import custody

    if (owner_key is None) != (node is None):
        raise click.UsageError("--owner-key and --node go together")
    if not yes:
        click.confirm("A revoked key never comes back. Revoke it?", abort=True, err=True)
    if owner_key is not None and node is not None:
        entry = custody.sign_as_owner(owner_key, Op.REVOKE, node)
        _tell_entry(entry.id, custody.chain_file(owner_key), form)
        return
    with _held() as held:
        entry = custody.revoke_self(held)
    _tell_entry(entry.id, None, form)


@key.command("rotate")
@with_output
def rotate(*, form: str) -> None:
    """Give this node a new key, by the word of the old one, which is kept beside it.

    The node must be stopped, and no deal of its key open: only the old key can close one. Debts
    stay with the old key. After a crash, run it again: it goes on where it ended.
    """
    from mesh.identity import custody
    from mesh.identity.keys import load

    path, _ = _paths()
    old = load(path).peer
    with _held() as held:
        if not custody.why_retired(held.ledger, old):
            _insist_on_nothing_open(held)
        fresh = custody.rotate(held)
    _tell_key(fresh.peer, path, form)
    say("start the node: it tells its peers by whose word it has this key")


def _insist_on_nothing_open(held: NodeCustody) -> None:
    """Raises Refused while the old key is needed."""
    from mesh.ids import NET
    from mesh.storage.journal import open_journal

    _, home = sources.load()
    pending = held.ledger.head(held.key.peer, NET).pending
    hosted = 0
    journal_path = home.state / "node.sqlite"
    if journal_path.exists():
        with open_journal(journal_path) as journal:
            hosted = len(journal.tenancies())
    if pending or hosted:
        why = f"deals are open: {pending} µcr set aside for its own tasks, {hosted} tasks of others"
        raise Refused(why, "start the node, wait until mesh ps and mesh status show none, stop it")


def _paths() -> tuple[Path, Path]:
    """(this node's key file, its ledger)"""
    config, home = sources.load()
    return Path(config.identity.key_file or home.key_file), home.state / "ledger.sqlite"


@contextmanager
def _held() -> Iterator[NodeCustody]:
    from mesh.identity.custody import open_custody

    path, ledger_path = _paths()
    if not ledger_path.parent.is_dir():
        raise ConfigError(str(ledger_path.parent), "is not there", "start the node once: mesh join")
    with open_custody(path, ledger_path) as held:
        yield held


def _tell_key(peer: PeerId, path: Path, form: str) -> None:
    from mesh.ids import format_peer

    facts = {"peer": format_peer(peer), "public": peer.hex(), "file": str(path)}
    show_one("key", "peer", facts, list(facts.items()), form)


def _tell_entry(entry_id: bytes, chain: Path | None, form: str) -> None:
    from mesh.ids import EntryId, format_entry

    facts = {"receipt_id": format_entry(EntryId(entry_id)), "file": str(chain or "")}
    lines = [("receipt", facts["receipt_id"])]
    show_one("keyop", "receipt_id", facts, lines + [("chain", facts["file"])] * bool(chain), form)
    if chain:
        say(_PUBLISH.format(chain))
