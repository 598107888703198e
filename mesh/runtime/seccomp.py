"""seccomp: the kernel answers this process the system calls of its work, and no others. Linux only.

A filter is a program of classic BPF. It is made here and read by nobody else, so it is kept plain:
one comparison after another, and each that holds is followed by its answer.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
import sys
from collections.abc import Iterable, Mapping

from mesh.runtime.syscalls import AARCH64, ALLOWED, CHECKED, HOSTILE, NEWEST, X86_64

MACHINES: Mapping[str, tuple[int, int]] = {
    "x86_64": (X86_64, 0xC000003E),
    "aarch64": (AARCH64, 0xC00000B7),
}
"""By the name that the kernel gives it: place in the table, and what a filter sees."""

ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _RETURN = 0x20, 0x15, 0x25, 0x06
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16
_F_ADD_SEALS = 1033
"""wasmtime seals the image of a guest's memory."""
_FCNTL = (
    fcntl.F_GETFD,
    fcntl.F_SETFD,
    fcntl.F_GETFL,
    fcntl.F_SETFL,
    getattr(fcntl, "F_DUPFD_CLOEXEC", 1030),
    _F_ADD_SEALS,
)
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_GET_ACTION_AVAIL = 2
_SECCOMP = {X86_64: 317, AARCH64: 277}

Program = tuple[bytes, ...]
"""Instructions of eight bytes."""


def is_available() -> bool:
    """Whether this kernel takes filters that kill, and this processor is one that we know."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return False
    number = _SECCOMP[MACHINES[platform.machine()][0]]
    action = ctypes.c_uint32(KILL_PROCESS)
    return int(ctypes.CDLL(None).syscall(number, _GET_ACTION_AVAIL, 0, ctypes.byref(action))) == 0


def install() -> None:
    """Confine this process, which has one thread and no_new_privs, for good. Raises OSError."""
    program = program_for(platform.machine(), os.getpid())
    code = ctypes.create_string_buffer(b"".join(program))
    head = struct.pack("@HP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    mode = ctypes.c_ulong(_MODE_FILTER)
    if libc.prctl(_PR_SET_SECCOMP, mode, head, ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def program_for(machine: str, pid: int) -> Program:
    """The filter of process *pid* on a processor of MACHINES."""
    place, seen = MACHINES[machine]
    allowed, hostile = _numbers(ALLOWED, place), _numbers(HOSTILE, place)
    return (
        _load(_MACHINE_AT),
        _jump(_JUMP_EQUAL, seen, 1, 0),
        _answer(KILL_PROCESS),
        _load(_NUMBER_AT),
        _jump(_JUMP_GREATER, NEWEST, 0, 1),  # those of x32 are above it too
        _answer(ERRNO | errno.ENOSYS),
        *_all_of(hostile, KILL_PROCESS),
        *_all_of(allowed, ALLOW),
        *_checked("fcntl", place, _is_one_of(1, _FCNTL)),
        *_checked("prlimit64", place, _is_one_of(0, (0, pid))),
        *_checked("tgkill", place, _is_one_of(0, (pid,))),  # abort()
        *_checked("tkill", place, _is_one_of(0, (pid,))),
        *_checked("sendto", place, _is_null(4)),  # to whom it is connected, and nobody else
        _answer(ERRNO | errno.EPERM),
    )


def _numbers(table: Mapping[str, tuple[int, int | None]], place: int) -> list[int]:
    found = (pair[place] for pair in table.values())
    return sorted(number for number in found if number is not None)


def _all_of(values: Iterable[int], answer: int) -> Program:
    """Answer so where the loaded value is one of these."""
    steps: list[bytes] = []
    for value in values:
        steps += [_jump(_JUMP_EQUAL, value, 0, 1), _answer(answer)]
    return tuple(steps)


def _checked(name: str, place: int, rule: Program) -> Program:
    """A call whose arguments are looked at by *rule*, which must answer."""
    return (_jump(_JUMP_EQUAL, CHECKED[name][place], 0, len(rule)), *rule)


def _is_one_of(argument: int, values: Iterable[int]) -> Program:
    """For arguments of 32 bits: of the rest the kernel takes no notice."""
    here = _ARGUMENTS_AT + 8 * argument
    return (_load(here), *_all_of(values, ALLOW), _answer(ERRNO | errno.EPERM))


def _is_null(argument: int) -> Program:
    here = _ARGUMENTS_AT + 8 * argument
    return (
        _load(here),
        _jump(_JUMP_EQUAL, 0, 0, 3),
        _load(here + 4),
        _jump(_JUMP_EQUAL, 0, 0, 1),
        _answer(ALLOW),
        _answer(ERRNO | errno.EPERM),
    )


def _load(offset: int) -> bytes:
    return _step(_LOAD, offset)


def _answer(value: int) -> bytes:
    return _step(_RETURN, value)


def _jump(test: int, value: int, if_so: int, if_not: int) -> bytes:
    return _step(test, value, if_so, if_not)


def _step(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_so, if_not, value)
