"""WASI preview 1 as numbers: the functions, their signatures, error and type codes. Pure.

Source: https://github.com/WebAssembly/WASI/blob/main/legacy/preview1/docs.md and witx files there.
"""

from __future__ import annotations

from enum import IntEnum

NAMESPACE = "wasi_snapshot_preview1"

SIGNATURES = {
    "args_get": "ii",
    "args_sizes_get": "ii",
    "clock_res_get": "ii",
    "clock_time_get": "iIi",
    "environ_get": "ii",
    "environ_sizes_get": "ii",
    "fd_advise": "iIIi",
    "fd_allocate": "iII",
    "fd_close": "i",
    "fd_datasync": "i",
    "fd_fdstat_get": "ii",
    "fd_fdstat_set_flags": "ii",
    "fd_fdstat_set_rights": "iII",
    "fd_filestat_get": "ii",
    "fd_filestat_set_size": "iI",
    "fd_filestat_set_times": "iIIi",
    "fd_pread": "iiiIi",
    "fd_prestat_dir_name": "iii",
    "fd_prestat_get": "ii",
    "fd_pwrite": "iiiIi",
    "fd_read": "iiii",
    "fd_readdir": "iiiIi",
    "fd_renumber": "ii",
    "fd_seek": "iIii",
    "fd_sync": "i",
    "fd_tell": "ii",
    "fd_write": "iiii",
    "path_create_directory": "iii",
    "path_filestat_get": "iiiii",
    "path_filestat_set_times": "iiiiIIi",
    "path_link": "iiiiiii",
    "path_open": "iiiiiIIii",
    "path_readlink": "iiiiii",
    "path_remove_directory": "iii",
    "path_rename": "iiiiii",
    "path_symlink": "iiiii",
    "path_unlink_file": "iii",
    "poll_oneoff": "iiii",
    "proc_exit": "i",
    "proc_raise": "i",
    "random_get": "ii",
    "sched_yield": "",
    "sock_accept": "iii",
    "sock_recv": "iiiiii",
    "sock_send": "iiiii",
    "sock_shutdown": "ii",
}
"""Parameters of each function: i is an i32, I an i64. All but proc_exit return an i32: an Errno."""


class Errno(IntEnum):
    """What a call answers."""

    SUCCESS = 0
    BADF = 8
    BUSY = 10
    EXIST = 20
    FAULT = 21
    FBIG = 22
    ILSEQ = 25
    INVAL = 28
    ISDIR = 31
    LOOP = 32
    MFILE = 33
    NAMETOOLONG = 37
    NOENT = 44
    NOSPC = 51
    NOTDIR = 54
    NOTEMPTY = 55
    NOTSUP = 58
    ROFS = 69
    SPIPE = 70
    XDEV = 75
    NOTCAPABLE = 76


class Filetype(IntEnum):
    """What a descriptor or a directory entry is."""

    UNKNOWN = 0
    DIRECTORY = 3
    REGULAR = 4


class Rights:
    """The bits of `rights` that decide anything here."""

    READ = 1 << 1
    SEEK = 1 << 2
    TELL = 1 << 5
    WRITE = 1 << 6
    ALLOCATE = 1 << 8
    SET_SIZE = 1 << 22
    ALL = (1 << 30) - 1
    WRITING = WRITE | ALLOCATE | SET_SIZE
    FILE = 0x1FF | 7 << 21 | 1 << 27
    """All that can be done with an open file."""
    READING = FILE & ~WRITING
    FOLDER = ALL & ~(READ | SEEK | TELL | WRITING)
    STREAM = 1 << 21 | 1 << 27
    """To be looked at and polled."""


class Open:
    """The bits of `oflags`."""

    CREATE = 1
    DIRECTORY = 2
    EXCLUSIVE = 4
    TRUNCATE = 8


APPEND = 1
"""The bit of `fdflags` that decides anything here."""
