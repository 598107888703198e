"""Custody: what keys sign about keys, by hand, while no node runs with them.

A key's entries are a chain, and a chain goes on from its end: a node's lies in its ledger, an
owner's or a recovery key's in the file FILE.chain beside its key. Whoever signs on a lost or older
copy of either forks the key, so a missing file is an error and never a fresh start.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from time import time_ns

from attrs import frozen

from ledger import chain
from ledger.bundle import export, read
from ledger.chain import Head, check_link, rotated_to
from ledger.errors import BrokenChain, LedgerError
from ledger.keys import keyop_message, verify
from ledger.model import Entry, Kind
from ledger.statements import KeyOp, Op
from ledger.store import Store
from mesh.errors import ConfigError, Refused
from mesh.identity.keys import (
    NodeKey,
    create,
    load,
    load_or_create,
    lock,
    sync_folder,
    write_whole,
)
from mesh.ids import NET, PeerId, format_peer, short_peer

Append = Callable[[Head], tuple[Head, Entry]]


@frozen
class NodeCustody:
    """A node's key and its ledger, held while the node is stopped."""

    path: Path
    key: NodeKey
    ledger: Store

    def append(self, statement: KeyOp, subject_sig: bytes = b"") -> Entry:
        """Sign *statement* on the node's own chain; durable. Raises Refused for a retired key."""
        if reason := why_retired(self.ledger, self.key.peer):
            raise Refused(reason, "a retired key signs nothing")
        _, entry = chain.keyop(
            self.ledger.head(self.key.peer, NET),
            statement,
            subject_sig,
            wall_ms=time_ns() // 10**6,
            sign=self.key.sign,
        )
        self.ledger.append_own([entry])
        return entry


@contextmanager
def open_custody(key_path: Path, ledger_path: Path) -> Iterator[NodeCustody]:
    """Hold the key of a stopped node. Raises ConfigError, also while the node runs."""
    key = load(key_path)
    descriptor = lock(key_path)
    try:
        with Store.open(ledger_path) as store:
            yield NodeCustody(key_path, key, store)
    except BrokenChain:
        raise  # of what we made ourselves: a bug
    except LedgerError as error:
        raise ConfigError(str(ledger_path), error.reason, error.hint) from None
    finally:
        os.close(descriptor)


def last_entry(store: Store, peer: PeerId) -> Entry | None:
    """The end of *peer*'s chain, as far as it is here."""
    head = store.head(peer, NET)
    return store.entry(head.prev) if head.seq else None


def why_retired(store: Store, peer: PeerId) -> str:
    """Why *peer* signs nothing any more, by its own word; empty where it does."""
    last = last_entry(store, peer)
    if last is None or last.content.kind is not Kind.KEYOP:
        return ""
    keyop = KeyOp.decode(last.content.terms)
    if keyop.op is Op.ROTATE:
        return f"this key was rotated to {format_peer(PeerId(keyop.subject))}"
    return "this key revoked itself" if (keyop.op, keyop.subject) == (Op.REVOKE, peer) else ""


# --- owners and recovery keys -------------------------------------------------------------------


def chain_file(key_path: Path) -> Path:
    """Where the chain of an owner's or a recovery key lies: a bundle, as anybody may read it."""
    return key_path.with_name(key_path.name + ".chain")


def new_owner(path: Path) -> NodeKey:
    """A key for a person, with an empty chain. Raises ConfigError."""
    chain_path = chain_file(path)
    if chain_path.exists():
        raise ConfigError(str(chain_path), "is there already", "name another key file")
    key = create(path)
    write_whole(chain_path, b"")
    return key


def load_owner(path: Path) -> NodeKey:
    """Raises ConfigError, which names the file."""
    try:
        return load(path)
    except ConfigError as error:
        raise ConfigError(str(path), error.why, error.hint) from None


def sign_as_owner(path: Path, op: Op, subject: PeerId, subject_sig: bytes = b"") -> Entry:
    """A KEYOP on the chain of the key at *path*; durable beside it. Raises ConfigError."""
    key = load_owner(path)
    descriptor = lock(path)
    try:
        before = _read_chain(chain_file(path), key.peer)
        head = _end_of(before, key.peer, chain_file(path))
        statement = KeyOp(op=op, net=NET, owner=key.peer, subject=subject)
        _, entry = chain.keyop(
            head, statement, subject_sig, wall_ms=time_ns() // 10**6, sign=key.sign
        )
        file = io.StringIO()
        export([*before, entry], file)
        write_whole(chain_file(path), file.getvalue().encode())
        return entry
    finally:
        os.close(descriptor)


def _read_chain(path: Path, peer: PeerId) -> list[Entry]:
    lost = "restore it: without it this key would sign one place twice, and be seen to fork"
    try:
        items = list(read(path.read_bytes().splitlines()))
    except FileNotFoundError:
        raise ConfigError(str(path), "is missing: the chain of this key", lost) from None
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}", lost) from None
    entries = [item for item in items if isinstance(item, Entry)]
    if len(entries) < len(items) or any(entry.content.author != peer for entry in entries):
        raise ConfigError(str(path), "is damaged: not the chain of this key", lost)
    return entries


def _end_of(entries: list[Entry], peer: PeerId, path: Path) -> Head:
    head = Head.start(peer, NET)
    try:
        for entry in entries:
            head = check_link(head, entry)
    except BrokenChain as error:
        raise ConfigError(str(path), f"is no chain: {error.reason}", "restore it") from None
    return head


# --- what is signed -----------------------------------------------------------------------------


def consent(key: NodeKey, owner: PeerId) -> bytes:
    """The node's agreement that *owner* acts for it: needed once, for `delegate`."""
    return key.sign(keyop_message(_delegation(owner, key.peer).encode()))


def delegate(owner_path: Path, node: PeerId, agreed: bytes) -> Entry:
    """The owner says that *node* is its node, which agreed. Raises ConfigError, Refused."""
    owner = load_owner(owner_path).peer
    message = keyop_message(_delegation(owner, node).encode())
    if not verify(node, message, agreed):
        raise Refused(
            "the consent is not the signature of this node for this owner",
            f"at the node: mesh key consent --owner {format_peer(owner)}",
        )
    return sign_as_owner(owner_path, Op.DELEGATE, node, agreed)


def _delegation(owner: PeerId, node: PeerId) -> KeyOp:
    return KeyOp(op=Op.DELEGATE, net=NET, owner=owner, subject=node)


def commit_recovery(custody: NodeCustody, path: Path) -> NodeKey:
    """A fresh key at *path* that may revoke the node's: only its hash is published."""
    recovery = new_owner(path)
    me = custody.key.peer
    commitment = sha256(recovery.peer).digest()
    custody.append(KeyOp(op=Op.RECOVERY, net=NET, owner=me, subject=me, commitment=commitment))
    return recovery


def revoke_self(custody: NodeCustody) -> Entry:
    """The node's key says that it signs nothing any more."""
    me = custody.key.peer
    return custody.append(KeyOp(op=Op.REVOKE, net=NET, owner=me, subject=me))


# --- rotation -----------------------------------------------------------------------------------


def rotate(custody: NodeCustody) -> NodeKey:
    """A new key for this node, by the word of the old one; the old one is kept beside it.

    The order survives a crash at any point, and a second call goes on where the first one ended:
    the new key is durable before the ROTATE names it, and that is before the new key takes the
    place of the old. Raises Refused for a key that revoked itself.
    """
    path = custody.path
    fresh_path = path.with_name(path.name + ".next")
    last = last_entry(custody.ledger, custody.key.peer)
    heir = rotated_to(last) if last is not None else b""
    if not heir:
        fresh = load_or_create(fresh_path)
        me = custody.key.peer
        statement = KeyOp(op=Op.ROTATE, net=NET, owner=me, subject=fresh.peer)
        agreed = fresh.sign(keyop_message(statement.encode()))
        heir = rotated_to(custody.append(statement, agreed))
    fresh = load_owner(fresh_path)
    if fresh.peer != heir:
        raise ConfigError(str(fresh_path), "is not the key that this one was rotated to")
    kept = path.with_name(f"{path.name}.old-{short_peer(custody.key.peer)}")
    if not kept.exists():
        os.link(path, kept)
    sync_folder(path.parent)
    os.replace(fresh_path, path)
    sync_folder(path.parent)
    return fresh
