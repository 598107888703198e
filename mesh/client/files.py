"""Files to and from a node: uploads in chunks, downloads that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mesh.client.errors import BadRequest, VerificationFailed
from mesh.v1 import files_pb2

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
