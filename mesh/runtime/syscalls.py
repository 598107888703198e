"""Which system calls a worker makes once it is confined, and which none ever does. Pure.

Found by tracing workers that compile, run, trap, and meet every limit; what C libraries other than
the one here use for the same is added. wasmtime starts no thread as engine.py configures it, so
there is none to be allowed.
"""

from __future__ import annotations

from types import MappingProxyType

X86_64, AARCH64 = 0, 1
"""Places in the pairs of numbers below."""

ALLOWED = MappingProxyType(
    {
        # files, by name: Landlock says which
        "open": (2, None),
        "openat": (257, 56),
        "stat": (4, None),
        "lstat": (6, None),
        "newfstatat": (262, 79),
        "statx": (332, 291),
        "mkdir": (83, None),
        "mkdirat": (258, 34),
        "rmdir": (84, None),
        "unlink": (87, None),
        "unlinkat": (263, 35),
        "rename": (82, None),
        "renameat": (264, 38),
        "renameat2": (316, 276),
        # what is open
        "read": (0, 63),
        "readv": (19, 65),
        "pread64": (17, 67),
        "preadv": (295, 69),
        "write": (1, 64),
        "writev": (20, 66),
        "pwrite64": (18, 68),
        "pwritev": (296, 70),
        "close": (3, 57),
        "fstat": (5, 80),
        "lseek": (8, 62),
        "fsync": (74, 82),
        "fdatasync": (75, 83),
        "ftruncate": (77, 46),
        "getdents64": (217, 61),
        "recvfrom": (45, 207),
        "poll": (7, None),
        "ppoll": (271, 73),
        # memory
        "brk": (12, 214),
        "mmap": (9, 222),
        "munmap": (11, 215),
        "mremap": (25, 216),
        "mprotect": (10, 226),
        "madvise": (28, 233),
        "membarrier": (324, 283),
        "memfd_create": (319, 279),
        # this process, and time
        "rt_sigaction": (13, 134),
        "rt_sigprocmask": (14, 135),
        "rt_sigreturn": (15, 139),
        "sigaltstack": (131, 132),
        "restart_syscall": (219, 128),
        "exit": (60, 93),
        "exit_group": (231, 94),
        "getpid": (39, 172),
        "gettid": (186, 178),
        "getrlimit": (97, 163),
        "setrlimit": (160, 164),
        "getrusage": (98, 165),
        "futex": (202, 98),
        "set_robust_list": (273, 99),
        "rseq": (334, 293),
        "sched_yield": (24, 124),
        "sched_getaffinity": (204, 123),
        "nanosleep": (35, 101),
        "clock_nanosleep": (230, 115),
        "clock_gettime": (228, 113),
        "clock_getres": (229, 114),
        "gettimeofday": (96, 169),
        "time": (201, None),
        "getrandom": (318, 278),
        # only ever less: the second layer of Landlock
        "landlock_create_ruleset": (444, 444),
        "landlock_add_rule": (445, 445),
        "landlock_restrict_self": (446, 446),
    }
)

CHECKED = MappingProxyType(
    {
        "fcntl": (72, 25),
        "prlimit64": (302, 261),
        "sendto": (44, 206),
        "tgkill": (234, 131),
        "tkill": (200, 130),
    }
)
"""Allowed with some arguments: see seccomp.py."""

HOSTILE = MappingProxyType(
    {
        "execve": (59, 221),
        "execveat": (322, 281),
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "process_madvise": (440, 440),
        "pidfd_getfd": (438, 438),
        "kcmp": (312, 272),
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
        "userfaultfd": (323, 282),
        "io_uring_setup": (425, 425),
        "io_uring_enter": (426, 426),
        "io_uring_register": (427, 427),
        "keyctl": (250, 219),
        "add_key": (248, 217),
        "request_key": (249, 218),
        "unshare": (272, 97),
        "setns": (308, 268),
        "chroot": (161, 51),
        "pivot_root": (155, 41),
        "mount": (165, 40),
        "umount2": (166, 39),
        "open_tree": (428, 428),
        "move_mount": (429, 429),
        "fsopen": (430, 430),
        "fsmount": (432, 432),
        "mount_setattr": (442, 442),
        "open_by_handle_at": (304, 265),
        "init_module": (175, 105),
        "finit_module": (313, 273),
        "delete_module": (176, 106),
        "kexec_load": (246, 104),
        "kexec_file_load": (320, 294),
        "reboot": (169, 142),
        "swapon": (167, 224),
        "swapoff": (168, 225),
        "acct": (163, 89),
        "quotactl": (179, 60),
        "settimeofday": (164, 170),
        "clock_settime": (227, 112),
        "iopl": (172, None),
        "ioperm": (173, None),
        "modify_ldt": (154, None),
    }
)
"""Nobody makes these by mistake: the process dies of them, and its end tells what it tried."""

NEWEST = 450
"""The last number that was looked at. Later ones do not exist for a worker, so that C libraries
fall back to what they did before."""
