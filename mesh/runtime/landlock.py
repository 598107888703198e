"""Landlock: this process gives up every file, port and process but those it names. Linux only.

Rights that the kernel's version does not know are left out; what that leaves open is in
README.md. Before version 2 (Linux 5.19) nobody could rename between folders, which a guest may:
such a kernel counts as one without.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable

from attrs import frozen

VERSION_MIN = 2

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""The same on all processors."""
_ASK_VERSION = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << n for n in range(6))
_MAKE_DIR, _MAKE_REG = 1 << 7, 1 << 8
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_FILE_RIGHTS = {2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All that there are, by the version that brought the last of them."""
_PORT_RIGHTS = {4: 0b11}
"""Bind and connect, TCP."""
_SCOPES = {6: 0b11}
"""Abstract sockets of others, signals to others."""
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_READING = _READ_FILE | _READ_DIR
_WRITING = (
    _READING | _WRITE_FILE | _TRUNCATE | _MAKE_DIR | _MAKE_REG | _REMOVE_DIR | _REMOVE_FILE | _REFER
)


@frozen
class Reach:
    """The files that a process keeps. What is none, or neither file nor folder, is left out."""

    read: tuple[str, ...]
    """Files, and folders with all in them."""
    write: tuple[str, ...]
    """Folders in which files and folders may be read, made, changed and removed."""


def version() -> int:
    """Of the Landlock that this kernel lends; 0 where it lends none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)))


def restrict(reach: Reach) -> None:
    """Keep *reach* and nothing else, for good. A second call takes away, and never gives back.

    Needs no_new_privs, or to be root. Raises OSError.
    """
    known = version()
    handled = _newest(_FILE_RIGHTS, known)
    attributes = struct.pack("=QQQ", handled, _newest(_PORT_RIGHTS, known), _newest(_SCOPES, known))
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        _allow(ruleset, reach.read, _READING & handled)
        _allow(ruleset, reach.write, _WRITING & handled)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _newest(rights: dict[int, int], known: int) -> int:
    return max((all_ for since, all_ in rights.items() if since <= known), default=0)


def _allow(ruleset: int, paths: Iterable[str], rights: int) -> None:
    for path in paths:
        try:
            handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            mode = os.fstat(handle).st_mode
            if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
                here = rights if stat.S_ISDIR(mode) else rights & _ON_FILES
                _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", here, handle), 0)
        finally:
            os.close(handle)


def _call(number: int, *args: int | bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    widened = [a if isinstance(a, bytes) else ctypes.c_long(a) for a in args]
    result = int(libc.syscall(ctypes.c_long(number), *widened))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"landlock: {os.strerror(ctypes.get_errno())}")
    return result
