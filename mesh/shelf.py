"""The shelf: evidence against sellers, a file for each task whose copies disagreed.

A file is a bundle (ledger/bundle.py): it needs nothing from this node, and whatever is read back
from it is checked like a stranger's. The newest are kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from ledger import keys
from ledger.bundle import read
from ledger.chain import check_signatures
from ledger.errors import BadEntry
from ledger.evidence import Rerun
from ledger.model import Entry
from mesh.ids import TaskId, format_task, parse_task
from mesh.storage.disk import room_under

FILES_MAX = 64
ENDING = ".jsonl"


@frozen
class Shelf:
    """A folder, ours alone. Its methods block."""

    folder: Path

    def put(self, task: TaskId, text: str) -> None:
        """Keep *text*, whole or not at all; the oldest makes room. Raises Unavailable."""
        with room_under(self.folder.parent):
            self.folder.mkdir(mode=0o700, exist_ok=True)
            draft = self.folder / "draft"
            with draft.open("w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.folder / f"{format_task(task)}{ENDING}")
        for path in list(self._files().values())[:-FILES_MAX]:
            path.unlink()

    def tasks(self) -> tuple[TaskId, ...]:
        """Of whom there is evidence, the oldest first."""
        return tuple(self._files())

    def reruns(self, task: TaskId) -> Iterator[tuple[Entry, Rerun]]:
        """The bills of *task* that were run again, each with what that gave."""
        try:
            text = self._files()[task].read_text(encoding="ascii")
        except (KeyError, OSError, UnicodeDecodeError):
            return
        items = list(read(line.encode() for line in text.splitlines()))
        runs = [item for item in items if isinstance(item, Rerun)]
        told = {run.entry_id for run in runs}
        bills = [item for item in items if isinstance(item, Entry) and item.id in told]
        signed = {bill.id: bill for bill in bills if _is_signed(bill)}
        yield from ((signed[run.entry_id], run) for run in runs if run.entry_id in signed)

    def _files(self) -> dict[TaskId, Path]:
        """By age, and where that is the same by name."""
        if not self.folder.is_dir():
            return {}
        paths = [path for path in self.folder.iterdir() if path.suffix == ENDING]
        paths.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
        found = {}
        for path in paths:
            try:
                found[parse_task(path.stem)] = path
            except ValueError:  # not of ours
                continue
        return found


def _is_signed(entry: Entry) -> bool:
    try:
        check_signatures(entry, keys.verify)
    except BadEntry:
        return False
    return True
