"""`mesh fsck`: everything on this node's disk, checked bit by bit; nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import asdict, frozen

from mesh.cli import settings as sources
from mesh.cli.exits import Exit
from mesh.cli.options import with_output
from mesh.cli.render import Listing, Story, print_json, say, show_listing
from mesh.cli.words import clean
from mesh.errors import ConfigError
from mesh.paths import Home

if TYPE_CHECKING:
    from mesh.ids import PeerId

Seen = Callable[[str, int], None]
"""(what, how many were looked at)"""


@frozen
class Problem:
    """Something that is not as it should be: where, what, and the way out."""

    where: str
    what: str
    hint: str


@click.command()
@with_output
def fsck(*, form: str) -> Exit:
    """Check everything on this node's disk: ledger, journal, blocks, key.

    Works without a running node, and beside one; changes nothing. Each entry is held against its
    hash and its signatures, each block against its content id. Exit code 6 when something is wrong.
    """
    config, home = sources.load()
    story, counts = Story(), dict[str, int]()

    def seen(what: str, count: int) -> None:
        counts[what] = count
        story.pass_by(f"{count:,} {what}")

    problems = []
    for problem in examine(home, Path(config.identity.key_file or home.key_file), seen):
        problems.append(problem)
        if form in ("table", "wide"):
            story.clear()
            click.echo(f"FAIL {problem.where}: {clean(problem.what)}\n     {clean(problem.hint)}")
    story.clear()
    rows: list[dict[str, Any]] = [asdict(problem) for problem in problems]
    if form == "json":
        facts = {"is_good": not rows, "looked_at": counts, "problems": rows}
        print_json({"schema": "mesh.fsck/v1", **facts})
    elif form not in ("table", "wide"):
        show_listing(Listing("problem", "problems", "where", rows, ()), form)
    looked = ", ".join(f"{count:,} {what}" for what, count in counts.items()) or "nothing here yet"
    say(f"{looked}: {len(rows)} problem{'s' * (len(rows) != 1)}")
    return Exit.NOT_VERIFIED if rows else Exit.OK


def examine(home: Home, key_path: Path, seen: Seen) -> Iterator[Problem]:
    """All that is wrong below *home*; *seen* hears how far it is."""
    from mesh.storage.fsck import broken_blocks, broken_database, broken_journal

    peer, problem = _peer(key_path)
    yield from problem
    yield from _ledger(home.state / "ledger.sqlite", peer, seen)
    journal = home.state / "node.sqlite"
    if journal.exists():
        yield from (Problem("journal", each.what, each.hint) for each in broken_journal(journal))
    databases = {"pins": home.data / "blocks" / "pins.sqlite", "votes": home.state / "votes.sqlite"}
    for where, path in databases.items():
        if path.exists():
            yield from (Problem(where, each.what, each.hint) for each in broken_database(path))
    blocks = broken_blocks(home.data / "blocks", lambda count: seen("blocks", count))
    yield from (Problem("blocks", each.what, each.hint) for each in blocks)


def _peer(path: Path) -> tuple[PeerId | None, list[Problem]]:
    from mesh.identity.keys import load

    if not path.exists():
        return None, []
    try:
        return load(path).peer, []
    except ConfigError as error:
        return None, [Problem("key", error.why, error.hint)]


def _ledger(path: Path, peer: PeerId | None, seen: Seen) -> Iterator[Problem]:
    from ledger import fsck as ledger_fsck
    from ledger.errors import LedgerError
    from ledger.store import Store

    if not path.exists():
        return
    own = () if peer is None else (peer,)
    try:
        with Store.view(path) as store:
            seen("entries", 0)
            for problem in ledger_fsck.examine(store, own, lambda count: seen("entries", count)):
                yield Problem("ledger", problem.what, problem.hint)
    except LedgerError as error:
        yield Problem("ledger", f"{path}: {error.reason}", error.hint)
