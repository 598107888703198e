"""`mesh doctor`: is this machine fit for a node? Named checks, each with its fix."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import attrs
import click
from attrs import frozen

from mesh import units
from mesh.cli import settings as sources
from mesh.cli.exits import Exit
from mesh.cli.options import with_output
from mesh.cli.render import Listing, show_listing
from mesh.cli.words import clean
from mesh.config import Config
from mesh.errors import ConfigError, Refused
from mesh.paths import Home

PYTHON_MIN, PYTHON_END = (3, 11), (3, 14)
_MEMORY_MIN = 512 << 20
_DISK_MIN = 1 << 30
_IPFS_S = 0.5
_CHILD_S = 60.0


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@frozen
class Check:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    detail: str
    fix: str = ""


@click.command()
@with_output
def doctor(*, form: str) -> Exit:
    """Is this machine fit? Named checks with fixes; exit code 1 when one fails."""
    checks: list[Check] = []
    for check in examine():
        checks.append(check)
        if form in ("table", "wide"):
            fix = f"   fix: {check.fix}" if check.fix else ""
            click.echo(f"{check.verdict:<4} {check.name:<8} {clean(check.detail)}{fix}")
    is_fit = all(check.verdict != Verdict.FAIL for check in checks)
    if form not in ("table", "wide"):
        rows = [attrs.asdict(check) for check in checks]
        show_listing(Listing("check", "checks", "name", rows, ()), form)
    return Exit.OK if is_fit else Exit.TASK_FAILED


def examine() -> Iterator[Check]:
    """All checks in their order; those that need the configuration only where it loads."""
    yield check_python(sys.version_info[:3])
    yield check_machine()
    yield check_sandbox()
    yield from check_walls()
    try:
        config, home = sources.load()
    except ConfigError as error:
        yield Check("config", Verdict.FAIL, str(error), error.hint)
        return
    files = sum(file.is_file() for file in home.config_files)
    yield Check("config", Verdict.OK, f"{files} file(s), {len(config.origins)} key(s) set")
    yield check_socket(home)
    yield check_key(Path(config.identity.key_file or home.key_file))
    yield check_disk(home.data, config.storage.quota)
    yield check_ipfs(config.ipfs.api_url)
    yield check_binaryen()
    running = running_node(home)
    yield from check_ports(config, running)
    yield check_node(running)


def check_python(version: tuple[int, ...]) -> Check:
    """3.11 to 3.13."""
    found = ".".join(map(str, version))
    if PYTHON_MIN <= version[:2] < PYTHON_END:
        return Check("python", Verdict.OK, found)
    return Check("python", Verdict.FAIL, found, "use Python 3.11, 3.12 or 3.13")


def check_machine() -> Check:
    """Cores and RAM."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    memory = psutil.virtual_memory().total
    detail = f"{cores} core{'s' * (cores != 1)}, {units.show_size(memory)} RAM"
    if memory < _MEMORY_MIN:
        return Check("machine", Verdict.WARN, detail, "sell little: --memory 64MiB")
    return Check("machine", Verdict.OK, detail)


def check_sandbox() -> Check:
    """wasmtime, in a child, at the version that the meter names: fuel differs between versions."""
    from mesh.runtime.manifest import WASMTIME

    fix = f"pip install wasmtime=={WASMTIME}"
    if importlib.util.find_spec("wasmtime") is None:
        return Check("sandbox", Verdict.FAIL, "wasmtime is missing: nothing can run here", fix)
    program = (
        "import wasmtime, importlib.metadata as m; wasmtime.Engine(); print(m.version('wasmtime'))"
    )
    try:
        child = subprocess.run(  # noqa: S603  (our own interpreter, a constant program)
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=_CHILD_S,
            check=True,
        )
    except (subprocess.SubprocessError, OSError) as error:
        return Check("sandbox", Verdict.FAIL, f"wasmtime does not start: {error}", fix)
    found = child.stdout.strip()
    if found != WASMTIME:
        return Check("sandbox", Verdict.FAIL, f"wasmtime {found}, the meter is {WASMTIME}", fix)
    return Check("sandbox", Verdict.OK, f"wasmtime {found}")


_OPEN = {
    "landlock": ("could read and change your files", "Linux 5.19 or later, landlock in lsm="),
    "seccomp": ("could open sockets and start programs", "Linux 4.14 or later on x86-64, arm64"),
}
"""What code that escapes from wasmtime could do without each wall, and who lends it."""


def check_walls() -> Iterator[Check]:
    """Raised and tried in a child, since there is no way back from behind them."""
    program = "from mesh.runtime import sandbox; print(*sandbox.tried())"
    try:
        child = subprocess.run(  # noqa: S603  (our own interpreter, a constant program)
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=_CHILD_S,
            check=True,
        )
        found = child.stdout.split()
    except (subprocess.SubprocessError, OSError):
        found = []
    for wall, (danger, fix) in _OPEN.items():
        if wall in found:
            yield Check(wall, Verdict.OK, "raised and tried")
        else:
            fix = f"{fix}; or sell on a machine that holds nothing of yours"
            yield Check(wall, Verdict.WARN, f"missing: escaped code {danger}", fix)


def check_socket(home: Home) -> Check:
    """A Unix socket's path is short, or it is none."""
    try:
        return Check("socket", Verdict.OK, str(home.socket))
    except ConfigError as error:
        return Check("socket", Verdict.FAIL, str(error), error.hint)


def check_key(path: Path) -> Check:
    """Private: 0600 in a folder that nobody else writes."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        folder = stat.S_IMODE(path.parent.stat().st_mode)
    except FileNotFoundError:
        return Check("key", Verdict.OK, f"none yet: mesh join makes it ({path})")
    except OSError as error:
        return Check("key", Verdict.FAIL, f"{path}: {error.strerror}", f"see to {path.parent}")
    if mode & 0o077:
        return Check("key", Verdict.FAIL, f"{path} is {mode:04o}", f"chmod 600 {path}")
    if folder & 0o022:
        return Check(
            "key", Verdict.FAIL, f"{path.parent} is {folder:04o}", f"chmod 700 {path.parent}"
        )
    return Check("key", Verdict.OK, f"{path} {mode:04o}")


def check_disk(data: Path, quota: int) -> Check:
    """Room for the embedded store."""
    place = next(folder for folder in (data, *data.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    detail = f"{units.show_size(free)} free at {place}, quota {units.show_size(quota)}"
    if free < _DISK_MIN:
        return Check("disk", Verdict.FAIL, detail, "free some, or move it: MESH_HOME")
    if free < quota:
        return Check("disk", Verdict.WARN, detail, "lower storage.quota")
    return Check("disk", Verdict.OK, detail)


def check_ipfs(url: str) -> Check:
    """A daemon is used where there is one; none is needed."""
    request = urllib.request.Request(  # noqa: S310  (a checked URL)
        f"{url}/api/v0/version", method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=_IPFS_S) as reply:  # noqa: S310  (checked URL)
            found = json.loads(reply.read(65_536))["Version"]
    except (OSError, ValueError, KeyError, TypeError):
        return Check("ipfs", Verdict.OK, f"no daemon at {url}: the embedded store is used (fine)")
    return Check("ipfs", Verdict.OK, f"daemon {found} at {url}")


def check_binaryen() -> Check:
    """It makes modules movable; none is needed to run and move those that are."""
    from mesh.runtime.instrument import VARIABLE, check_tested, find_binaryen, version_of

    is_here = bool(os.environ.get(VARIABLE))
    try:
        with tempfile.TemporaryDirectory() as kept:
            binaryen = find_binaryen(Path(kept))
            is_here = True
            version = version_of(binaryen)
            check_tested(version)
            return Check("binaryen", Verdict.OK, f"version {version}: modules are made movable")
    except Refused as refusal:
        if is_here:
            return Check("binaryen", Verdict.WARN, refusal.reason, refusal.hint)
    return Check("binaryen", Verdict.OK, "none: modules stay as they are, movable or not (fine)")


def running_node(home: Home) -> dict[str, Any] | None:
    """What the node that runs here says of itself; None where none answers."""
    from mesh.client import ClientError, connect
    from mesh.client.facts import facts_of

    try:
        with connect(home=home, environ={}) as client:
            return facts_of(client.status())
    except (ClientError, ConfigError):
        return None


def check_ports(config: Config, running: dict[str, Any] | None) -> Iterator[Check]:
    """Free, or held by our own node."""
    network = config.network
    wanted = {
        "listen_port": (network.listen_host, network.listen_port),
        "grpc_port": (network.grpc_host, network.grpc_port),
        "websocket_port": (network.grpc_host, network.websocket_port),
    }
    for key, (host, port) in wanted.items():
        what = f"{key} {port}"
        if port == 0:
            yield Check("port", Verdict.OK, f"{key}: any free one")
        elif is_free(host, port):
            yield Check("port", Verdict.OK, f"{what} is free")
        elif running is not None:
            yield Check("port", Verdict.OK, f"{what} is in use while our node runs")
        else:
            fix = f"set network.{key} to another one, or to 0"
            yield Check("port", Verdict.WARN, f"{what} is used by another program", fix)


def is_free(host: str, port: int) -> bool:
    """Whether a listener could be opened there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            return False
    return True


def check_node(running: dict[str, Any] | None) -> Check:
    """Running is not required."""
    if running is None:
        return Check("node", Verdict.OK, "none runs here: mesh join starts one")
    return Check("node", Verdict.OK, f"{running['peer']} answers, {running['peers']} peer(s)")
