"""Belongings: all that a node has on disk, and that it is the only one to use it."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import evolve, frozen

from ledger.merge import Merger
from ledger.model import Entry
from ledger.state import Accounts, deal_of
from ledger.store import Store
from ledger.votes import VoteBook
from mesh.config import Config
from mesh.errors import ConfigError
from mesh.identity.custody import why_retired
from mesh.identity.keys import SETTING, NodeKey, load, load_or_create, lock
from mesh.ids import NET
from mesh.market.credit import Books, read_books
from mesh.market.terms import EMPTY_DIR, EMPTY_DIR_BLOCK, EMPTY_FILE
from mesh.paths import Home
from mesh.publishing import Publishing
from mesh.rumours import verify
from mesh.shelf import Shelf
from mesh.storage.disk import DiskBlocks
from mesh.storage.journal import Journal, open_journal

_log = logging.getLogger("mesh.node")


@frozen
class Belongings:
    """All that is on disk."""

    key: NodeKey
    is_new_key: bool
    key_path: Path
    journal: Journal
    ledger: Store
    reader: Store
    """The same file, for whoever reads for long."""
    merger: Merger
    """The same, for what comes from others."""
    index: Store
    """The same, for look-ups within the event loop."""
    petition: Store
    """The same, for what witnesses are shown of our chain."""
    votes: VoteBook | None
    """Where we are a witness: what we voted for."""
    blocks: DiskBlocks
    publishing: Publishing
    shelf: Shelf
    scratch: Path
    epoch: int


@contextmanager
def open_belongings(config: Config, home: Home) -> Iterator[Belongings]:
    """Open all, made where it was missing. Raises ConfigError, OSError where the disk is full."""
    with ExitStack() as stack:
        try:
            files = _open_all(config, home, stack)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ConfigError(
                "MESH_HOME", f"{error.filename}: {error.strerror}", "mend it, or choose another"
            ) from None
        yield files


def _open_all(config: Config, home: Home, stack: ExitStack) -> Belongings:
    for folder in (home.state, home.data, home.run):
        _make_private(folder)
    key_path = Path(config.identity.key_file) if config.identity.key_file else home.key_file
    is_new_key = not config.identity.key_file and not key_path.exists()
    key = load(key_path) if config.identity.key_file else load_or_create(key_path)
    blocks = DiskBlocks(home.data / "blocks", config.storage.quota)
    stack.callback(blocks.close)
    stack.callback(os.close, lock(key_path))
    scratch = home.data / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)  # ours alone: the store's lock is held
    _make_private(scratch)
    blocks.put(EMPTY_FILE, b"")  # what most runs leave: never worth a fetch
    blocks.put(EMPTY_DIR, EMPTY_DIR_BLOCK)
    journal = stack.enter_context(open_journal(home.state / "node.sqlite"))
    ledger, reader, replica, index, petition = [
        stack.enter_context(Store.open(home.state / "ledger.sqlite")) for _ in range(5)
    ]
    if reason := why_retired(ledger, key.peer):
        raise ConfigError(SETTING, reason, "finish it: mesh key rotate; or name another key")
    merger = stack.enter_context(Merger(replica, verify=verify))
    votes = None
    if config.ledger.witness:
        votes = stack.enter_context(VoteBook.open(home.state / "votes.sqlite", key.peer))
    return Belongings(
        key=key,
        is_new_key=is_new_key,
        key_path=key_path,
        journal=journal,
        ledger=ledger,
        reader=reader,
        merger=merger,
        index=index,
        petition=petition,
        votes=votes,
        blocks=blocks,
        publishing=Publishing(blocks, scratch, home.data / "publishing"),
        shelf=Shelf(home.state / "evidence"),
        scratch=scratch,
        epoch=journal.next_epoch(),
    )


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(
            "MESH_HOME", f"{folder} cannot be made: {error.strerror}", "choose another folder"
        ) from None


def read_our_books(files: Belongings) -> Books:
    """What the ledger says of us as a seller, with what is left of entries that were pruned.

    A buyer's last word on a deal that we still answer for may come again after it was pruned.
    """
    books = read_books(files.key.peer, Accounts(NET, files.ledger), files.ledger.entries())
    allocs = [Entry.decode(record.alloc) for record in files.journal.tenancies()]
    ends = ((alloc.id, files.ledger.closed(deal_of(alloc))) for alloc in allocs)
    pruned = tuple((alloc_id, end.amount) for alloc_id, end in ends if end)
    return evolve(books, closed=books.closed + pruned)


def read_psk(path: str) -> str | None:
    """The private network's key in the file *path*; None without one. Raises ConfigError."""
    if not path:
        return None
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "network.psk_file", f"{path}: {error}", "name a file with 64 hex digits"
        ) from None
