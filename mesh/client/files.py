"""Files to and from a node: uploads in chunks, downloads that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ledger.bundle import LINE_MAX, read
from ledger.evidence import Evidence, Finding
from ledger.model import Entry
from mesh.client.errors import BadRequest, VerificationFailed
from mesh.v1 import files_pb2, ledger_pb2

CHUNK = 256 << 10
"""Bytes of one message."""


def open_file(path: Path) -> BinaryIO:
    """*path*, open for reading. Raises BadRequest where it cannot be read."""
    try:
        return path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from None


def in_chunks(name: str, file: BinaryIO) -> Iterator[files_pb2.FilesPutRequest]:
    """The upload of *file*: its name, then its bytes."""
    yield files_pb2.FilesPutRequest(name=name)
    while chunk := file.read(CHUNK):
        yield files_pb2.FilesPutRequest(chunk=chunk)


def in_messages(entries: Iterable[bytes]) -> Iterator[ledger_pb2.LedgerImportRequest]:
    """Ledger entries, as many a message as fit `CHUNK`."""
    waiting: list[bytes] = []
    size = 0
    for entry in entries:
        if waiting and size + len(entry) > CHUNK:
            yield ledger_pb2.LedgerImportRequest(entries=waiting)
            waiting, size = [], 0
        waiting.append(entry)
        size += len(entry)
    if waiting:
        yield ledger_pb2.LedgerImportRequest(entries=waiting)


def read_bundle(path: Path) -> Iterator[Entry | Evidence | Finding]:
    """What a file of the ledger holds, line by line, and a finding for each that is not sound.

    Raises BadRequest.
    """
    with open_file(path) as file:
        yield from read(iter(lambda: file.readline(LINE_MAX + 1), b""))


def unreadable(path: Path, error: OSError) -> BadRequest:
    """The error of a file of the user's that cannot be used."""
    return BadRequest(f"{path}: {error.strerror}", "check the path and its permissions")


def write_whole(chunks: Iterable[bytes], path: Path) -> int:
    """Write *chunks* beside *path* and move them there at the end; the number of bytes.

    A reader never sees half a file, and a broken download leaves nothing. Raises BadRequest
    where *path* cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise unreadable(path, error) from None
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            size = sum(file.write(chunk) for chunk in chunks)
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        raise unreadable(path, error) from None
    finally:
        partial.unlink(missing_ok=True)
    return size


def below(folder: Path, name: str) -> Path:
    """*name* inside *folder*. Raises VerificationFailed where it would leave it: outputs are made
    by strangers."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise VerificationFailed(f"the output has a file named {name!r}", "take files one by one")
    return folder.joinpath(*parts)
