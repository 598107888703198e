"""Code that got out of wasmtime, played by Python: what it tries, and how each ends.

    python breakout.py FOLDER confine|landlock

Prints a JSON object: for each attempt "done", the name of an error, or that of a signal. Each runs
in a process of its own, confined by what confines a worker (or by Landlock alone).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import platform
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from mesh.runtime import landlock, sandbox
from mesh.runtime.landlock import Reach
from mesh.runtime.seccomp import MACHINES
from mesh.runtime.syscalls import HOSTILE

libc = ctypes.CDLL(None, use_errno=True)
FOLDER = Path(sys.argv[1])
KEY, INPUT, KEPT, OUT = (FOLDER / name for name in ("node.key", "input", "kept", "task/out"))


def call(number: int, *args: object) -> None:
    if libc.syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), "")


def hostile(name: str) -> Callable[[], None]:
    number = HOSTILE[name][MACHINES[platform.machine()][0]]
    return lambda: call(number or 0, 0, 0, 0, 0, 0)


def attempts() -> dict[str, Callable[[], object]]:
    """Made before the walls are raised: sockets that a worker would not even have."""
    parent = os.getppid()
    listener, plain = socket.create_server(("127.0.0.1", 0)), socket.socket()
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    here = listener.getsockname()
    return {
        "read its input": INPUT.read_bytes,
        "write its output": lambda: (OUT / "a").write_bytes(b"x"),
        "rename between its folders": lambda: (
            (OUT / "in").mkdir(),
            (OUT / "b").write_bytes(b"x"),
            (OUT / "b").rename(OUT / "in" / "b"),
        ),
        "abort": os.abort,
        "read the key": KEY.read_bytes,
        "write the key": lambda: KEY.write_bytes(b"x"),
        "list a folder": lambda: os.listdir(FOLDER),
        "make a file outside": lambda: (FOLDER / "new").write_bytes(b"x"),
        "remove a file outside": KEY.unlink,
        "move a file out": lambda: (OUT / "mine").rename(FOLDER / "mine"),
        "write its input": lambda: INPUT.write_bytes(b"x"),
        "read what was compiled": KEPT.read_bytes,
        "write what was compiled": lambda: KEPT.write_bytes(b"x"),
        "read the parent's environment": Path(f"/proc/{parent}/environ").read_bytes,
        "write its own memory by file": lambda: os.open("/proc/self/mem", os.O_RDWR),
        "connect to loopback": lambda: plain.connect(here),
        "bind a port": lambda: plain.bind(("127.0.0.1", 0)),
        "kill its parent": lambda: os.kill(parent, signal.SIGTERM),
        "ptrace its parent": lambda: call(
            HOSTILE["ptrace"][MACHINES[platform.machine()][0]] or 0, 16, parent, 0, 0
        ),
        "mount": hostile("mount"),
        "open a TCP socket": socket.socket,
        "open a UDP socket": lambda: socket.socket(type=socket.SOCK_DGRAM),
        "open a Unix socket": lambda: socket.socket(socket.AF_UNIX),
        "send to loopback": lambda: datagrams.sendto(b"x", here),
        "change modes": lambda: INPUT.chmod(0o777),
        "link": lambda: (OUT / "link").symlink_to("/etc/passwd"),
        "truncate by name": lambda: os.truncate(KEY, 0),
        "run a program": lambda: os.execv("/bin/sh", ["sh", "-c", "exit 99"]),
        "fork": os.fork,
        "limit its parent": lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE, (9, 9)),
        "be told of files": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, parent),
        "type into a terminal": lambda: fcntl.ioctl(0, 0x5412, b"x"),
        "change the filter": lambda: libc.prctl(22, 2, 0, 0, 0) and _fail(),
        "make a call of tomorrow": lambda: call(999),
        "make a call of x32": lambda: call(0x40000002, 0),
        **{name: hostile(name) for name in ("io_uring_setup", "bpf", "unshare", "userfaultfd")},
    }


def _fail() -> None:
    raise OSError(ctypes.get_errno(), "")


def wall_in(how: str) -> None:
    reach = Reach((str(INPUT), str(KEPT)), (str(OUT.parent),))
    if how == "confine":
        sandbox.confine(reach)
    else:
        sandbox.renounce()
        landlock.restrict(reach)
    sandbox.narrow(Reach((str(INPUT),), (str(OUT),)))


def outcome_of(name: str, how: str) -> str:
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        attempt = attempts()[name]
        wall_in(how)
        try:
            attempt()
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        return signal.Signals(-code).name
    return errno.errorcode.get(code, str(code)) if code else "done"


if __name__ == "__main__":
    OUT.mkdir(parents=True)
    for path in (KEY, INPUT, KEPT, OUT / "mine"):
        path.write_bytes(b"content")
    signal.signal(signal.SIGTERM, lambda *_: None)
    print(json.dumps({name: outcome_of(name, sys.argv[2]) for name in attempts()}))
