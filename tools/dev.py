#!/usr/bin/env python3
"""One command that prepares this checkout and runs it; it needs nothing but Python and git.

    python3 tools/dev.py demo  [args]       the mesh on this machine: python -m mesh demo
    python3 tools/dev.py test  [args]       the tests: python -m pytest
    python3 tools/dev.py check [args]       everything a change must pass: tools/check.py
    python3 tools/dev.py shell [command]    a shell, or one command, with mesh on PATH

The first run makes .venv (MESH_VENV names another place) from config/requirements.lock; later runs
start at once. Progress goes to stderr: stdout belongs to the command. Standard library only, and
readable by older Pythons, so that they can say what is missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "config" / "requirements.lock"
VENV = Path(os.environ.get("MESH_VENV") or ROOT / ".venv").absolute()
STAMP = VENV / ".mesh-stamp"
LOG = VENV / "install.log"
OLDEST, NEWEST = (3, 11), (3, 13)
RANGE = "3.11-3.13"


def main(arguments: Sequence[str]) -> NoReturn:
    """Prepare the environment if need be, then become the command."""
    if not arguments or arguments[0] not in ("demo", "test", "check", "shell"):
        asked = arguments and arguments[0] in ("-h", "--help", "help")
        print((__doc__ or "").strip(), file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    prepare()
    verb, rest = arguments[0], list(arguments[1:])
    python = str(VENV / "bin" / "python")
    os.environ["VIRTUAL_ENV"] = str(VENV)
    os.environ["PATH"] = f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    if verb in ("test", "check"):
        os.chdir(ROOT)
    become = {
        "demo": [python, "-m", "mesh", "demo", *rest],
        "test": [python, "-m", "pytest", *rest],
        "check": [python, str(ROOT / "tools" / "check.py"), *rest],
        "shell": rest or [os.environ.get("SHELL") or "/bin/sh"],
    }[verb]
    sys.stdout.flush()
    try:
        os.execvp(become[0], become)
    except OSError as error:
        fail(f"cannot run {become[0]}: {error.strerror}")


def prepare() -> None:
    """Make the environment unless the one that is there was completed from this very lock."""
    if is_ready():
        return
    with sole_maker():
        if is_ready():  # somebody else made it while we waited
            return
        began = time.monotonic()
        uv = find_uv()
        say(f"preparing {VENV} with {'uv' if uv else 'pip'}: once, a minute or two")
        clear()
        if uv:
            make_with_uv(uv)
        else:
            make_with_pip()
        link()
        STAMP.write_text(fingerprint())
        say(f"ready in {time.monotonic() - began:.0f} s")


def is_ready() -> bool:
    """Whether the stamp, which is written last, is there and speaks of this lock and this place."""
    try:
        stamp = STAMP.read_text()
    except OSError:
        return False
    return stamp == fingerprint() and (VENV / "bin" / "python").exists()


def fingerprint() -> str:
    """What the environment depends on: the lock, the checkout it points to, and its own place."""
    digest = hashlib.sha256(LOCK.read_bytes())
    digest.update(f"\0{ROOT}\0{VENV}\0".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def sole_maker() -> Iterator[None]:
    """Two terminals may start at once; the second waits for the first."""
    with LOCK.open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another run that is preparing the environment")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def clear() -> None:
    """Remove an old or half-made environment, and never anything else."""
    if not VENV.exists():
        return
    is_ours = VENV == ROOT / ".venv" or (VENV / "pyvenv.cfg").exists()
    if not is_ours and (not VENV.is_dir() or any(VENV.iterdir())):
        fail(f"{VENV} is not a virtual environment: move it away, or set MESH_VENV")
    STAMP.unlink(missing_ok=True)
    shutil.rmtree(VENV)


def make_with_uv(uv: str) -> None:
    """uv finds an interpreter, or fetches one, by itself."""
    base = find_python() or f">={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}.{NEWEST[1] + 1}"
    install([uv, "venv", "--quiet", "--python", base, str(VENV)])
    install_lock([uv, "pip", "install", "--quiet", "--python", str(VENV / "bin" / "python")])


def make_with_pip() -> None:
    """The standard library's venv and its pip; no compiler is needed."""
    base = find_python()
    if base is None:
        found = ".".join(map(str, sys.version_info[:3]))
        fail(f"mesh needs Python {RANGE}; this is {found}. Install one of them, or uv")
    made = subprocess.run([base, "-m", "venv", str(VENV)], capture_output=True, check=False)
    if made.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        fail(f"{base} cannot make a virtual environment (Debian, Ubuntu: apt install python3-venv)")
    python = str(VENV / "bin" / "python")
    install_lock([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"])


def install_lock(installer: Sequence[str]) -> None:
    """Install the lock: setuptools first, so that the few pure-Python sdists build with the very
    setuptools that the lock names by hash, and nothing is fetched that it does not name."""
    options = ["--no-deps", "--no-build-isolation", "--require-hashes", "-r"]
    first = VENV / "setuptools.lock"
    first.write_text(pinned("setuptools", LOCK.read_text()))
    install([*installer, *options, str(first)])
    install([*installer, *options, str(LOCK)])


def pinned(package: str, lock: str) -> str:
    """The lines of *lock* that pin *package*: `name==version \\` and its indented hashes."""
    found = re.search(rf"^{re.escape(package)}==.*\n(?:[ ]+--hash=.*\n)+", lock, re.MULTILINE)
    if found is None:
        fail(f"{LOCK.relative_to(ROOT)} does not pin {package}: run tools/lock.py")
    return found[0]


def install(command: Sequence[str]) -> None:
    """Run one installation step, its words kept in install.log; on failure say the last of them."""
    # Releases of pip before 23.1 would run `setup.py install` without this; later ones ignore it.
    environment = {**os.environ, "PIP_USE_PEP517": "1"}
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        check=False,
    )
    if done.returncode:
        kept = ""
        if VENV.is_dir():
            LOG.write_text(done.stdout)
            kept = f" (all of it: {LOG})"
        fail(f"installing failed: {last_word(done.stdout)}. Is there a network?{kept}")


def last_word(output: str) -> str:
    """The line of an installer's output that says most: its last error, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["no word of why"])[-1].rstrip(".")


def link() -> None:
    """Let the environment import this checkout, and give it the command `mesh`."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    python = VENV / "bin" / "python"
    site = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    (Path(site.stdout.strip()) / "mesh-checkout.pth").write_text(f"{ROOT}\n")
    launcher = VENV / "bin" / "mesh"
    launcher.write_text(f'#!/bin/sh\nexec "{python}" -m mesh "$@"\n')
    launcher.chmod(0o755)


def find_python() -> str | None:
    """A Python of the right age: this one, else the newest on PATH that really starts."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found and starts([found, "-c", "import sys"]):
            return found
    return None


def find_uv() -> str | None:
    """uv, if it is on PATH and is more than a version switcher's empty shim."""
    found = shutil.which("uv")
    return found if found and starts([found, "--version"]) else None


def starts(command: Sequence[str]) -> bool:
    """Whether *command* runs and ends well."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def say(line: str) -> None:
    print(f"mesh: {line}", file=sys.stderr, flush=True)


def fail(line: str) -> NoReturn:
    say(line)
    sys.exit(1)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
