"""What the system calls know of a guest, taken out of them and put back, here or elsewhere.

What is put back is a stranger's: a descriptor opens again only if what it names is there, and is of
its kind; and what the guest has written is counted anew.
"""

from __future__ import annotations

import os
from typing import assert_never

from mesh.errors import Refused
from mesh.migration.snapshot import (
    LISTED_MAX,
    TREES,
    Calls,
    Listed,
    Opened,
    OpenFile,
    OpenFolder,
    OpenStream,
)
from mesh.runtime.files import ENTRIES_MAX, ENTRY_COST, Descriptor, File, Files, Folder, Stream
from mesh.runtime.preview1 import Filetype
from mesh.runtime.trees import Denied, Stat, Tree
from mesh.runtime.wasi import Wasi


def capture(wasi: Wasi) -> Calls:
    """The state of *wasi*. Raises Refused where it is reading a folder of too many entries."""
    held = sorted(wasi.files.descriptors.items())
    return Calls(
        opened=tuple(_opened_of(number, descriptor) for number, descriptor in held),
        listed=_capture_listing(wasi),
        slept_ns=wasi.slept_ns,
        last_ns=wasi.last_ns,
        drawn=wasi.drawn,
        stdout_was_cut=wasi.stdout.was_cut,
        stderr_was_cut=wasi.stderr.was_cut,
        was_refused_space=wasi.files.was_refused_space,
    )


def _opened_of(number: int, descriptor: Descriptor) -> Opened:
    match descriptor:
        case Stream(number=stream):
            return OpenStream(number, stream)
        case Folder() as f:
            return OpenFolder(number, TREES.index(f.tree.guest), f.parts, f.is_preopened)
        case File() as f:
            tree = TREES.index(f.tree.guest)
            return OpenFile(number, tree, f.parts, f.rights, f.flags, f.offset)
        case _:
            assert_never(descriptor)


def _capture_listing(wasi: Wasi) -> Listed | None:
    if wasi._listing is None:
        return None
    folder, entries = wasi._listing
    numbers = [n for n, found in wasi.files.descriptors.items() if found is folder]
    if not numbers:
        return None
    if len(entries) > LISTED_MAX:
        raise Refused(f"it reads a folder of more than {LISTED_MAX} entries")
    place = entries[0][1].name
    return Listed(numbers[0], place, tuple((name, int(found.kind)) for name, found in entries))


def restore(
    wasi: Wasi, trees: tuple[Tree, ...], calls: Calls, stdout: bytes, stderr: bytes
) -> None:
    """Make a fresh *wasi* what *calls* say. *trees* are its own, in the order of TREES.

    Raises Refused where that cannot be, with what was opened closed again.
    """
    assert tuple(tree.guest for tree in trees) == TREES
    files = wasi.files
    files.close_all()
    try:
        for one in calls.opened:
            files.descriptors[one.number] = _open(files, trees, one)
        _count(files, trees)
    except Denied as denial:
        files.close_all()
        raise Refused(f"the snapshot opens what is not there: {denial}") from None
    except Refused:
        files.close_all()
        raise
    if max(len(stdout), len(stderr)) > wasi.stdout.most:
        files.close_all()
        raise Refused("the snapshot said more than it may")
    files.was_refused_space = calls.was_refused_space
    wasi.slept_ns, wasi.last_ns, wasi.drawn = calls.slept_ns, calls.last_ns, calls.drawn
    wasi.stdout.data[:], wasi.stdout.was_cut = stdout, calls.stdout_was_cut
    wasi.stderr.data[:], wasi.stderr.was_cut = stderr, calls.stderr_was_cut
    wasi._listing = _listing_of(files, calls.listed)


def _open(files: Files, trees: tuple[Tree, ...], one: Opened) -> Descriptor:
    match one:
        case OpenStream(stream=stream):
            return Stream(stream)
        case OpenFolder(parts=parts):
            tree = trees[one.tree]
            _check_kind(tree, parts, Filetype.DIRECTORY)
            return Folder(tree, parts, one.is_preopened)
        case OpenFile(parts=parts):
            tree = trees[one.tree]
            _check_kind(tree, parts, Filetype.REGULAR)
            file = files._open_file(tree, parts, one.rights, one.flags, 0)
            file.offset = one.offset
            return file
        case _:
            assert_never(one)


def _check_kind(tree: Tree, parts: tuple[str, ...], kind: Filetype) -> None:
    found = tree.find(parts)
    if found is None or found.kind is not kind:
        raise Refused(f"the snapshot opens {tree.place(parts)}, which is not there")


def _count(files: Files, trees: tuple[Tree, ...]) -> None:
    """What lies in the guest's own folders, against its quota."""
    files.used = files.entries = 0
    for tree in trees:
        if tree.base is None:
            continue
        for folder, folders, names in os.walk(tree.base):
            files.entries += len(folders) + len(names)
            files.used += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
    files.used += files.entries * ENTRY_COST
    if files.used > files.quota or files.entries > ENTRIES_MAX:
        raise Refused("the snapshot comes with more than its quota")


def _listing_of(
    files: Files, listed: Listed | None
) -> tuple[Folder, tuple[tuple[bytes, Stat], ...]] | None:
    if listed is None:
        return None
    folder = files.descriptors[listed.number]
    assert isinstance(folder, Folder)
    return folder, tuple(
        (name, Stat(Filetype(kind), 0, _place(listed.place, name))) for name, kind in listed.entries
    )


def _place(folder: str, name: bytes) -> str:
    """Where an entry lies: inode numbers are made of it."""
    if name in (b".", b".."):
        return folder
    return f"{folder}/{name.decode(errors='surrogateescape')}"
