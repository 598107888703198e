"""The second wall: what a worker may ask of the kernel, should a guest get out of wasmtime.

Two halves, each where the kernel lends it. Landlock takes the files, seccomp the system calls; a
worker keeps its module, its inputs, its own folder and the socket that it has. What is missing is
said in the node's offer and by `mesh doctor`, and the node works without.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import sys
from collections.abc import Callable

from mesh.runtime import landlock, seccomp
from mesh.runtime.landlock import Reach

LANDLOCK, SECCOMP = "landlock", "seccomp"
WALLS = (LANDLOCK, SECCOMP)
"""The words for them in offers."""
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITIES_3 = 0x20080522
_DAC_OVERRIDE = 1 << 1
"""All that root keeps of its powers: to reach its own files in a folder of somebody else's."""


def walls() -> tuple[str, ...]:
    """Those that this kernel lends."""
    has = (landlock.version() >= landlock.VERSION_MIN, seccomp.is_available())
    return tuple(wall for wall, there in zip(WALLS, has, strict=True) if there)


def confine(reach: Reach) -> None:
    """Raise every wall that there is around this process, for good. Raises OSError."""
    if sys.platform != "linux":
        return
    renounce()
    _drop_powers()
    narrow(reach)
    if seccomp.is_available():
        seccomp.install()


def renounce() -> None:
    """Nothing to gain by exec, for good; without it the kernel confines nobody but root."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def narrow(reach: Reach) -> None:
    """Of the files keep only *reach*, once confined. Raises OSError."""
    if landlock.version() >= landlock.VERSION_MIN:
        landlock.restrict(reach)


def _drop_powers() -> None:
    """For nodes that run as root, as in a container."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(head, sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    kept = sets[1] & _DAC_OVERRIDE
    if libc.capset(head, (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def tried() -> tuple[str, ...]:
    """Confine this process and see what holds: only for a process made for it. Raises OSError."""
    confine(Reach((), ()))
    attempts = (_error_of(lambda: os.listdir("/")), _error_of(socket.socket))
    held = (attempts[0] == errno.EACCES, attempts[1] == errno.EPERM)
    return tuple(wall for wall, is_up in zip(WALLS, held, strict=True) if is_up)


def _error_of(attempt: Callable[[], object]) -> int:
    try:
        attempt()
    except OSError as error:
        return error.errno or 0
    return 0
