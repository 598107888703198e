"""What a Linux control group lets this process have, and what the whole group has of it.

In a container the machine's own figures mislead: the kernel shows all cores and all memory of the
host, while a group's limit is what ends a task. Both versions are read, and every group from our
own up to the root that can be seen: the smallest limit rules
(https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

NO_LIMIT_V1 = 1 << 60
"""Version 1 writes "no limit" as a number near 2^63."""


@frozen
class CpuLimit:
    """A group's share of the processor."""

    cpu_milli: int
    folder: Path
    is_v2: bool

    def used_s(self) -> float:
        """Seconds of processor time that the group has used since it was made."""
        if self.is_v2:
            return _field(self.folder / "cpu.stat", "usage_usec") / 1e6
        # In version 1 the account is a controller of its own, most often mounted beside this one.
        return (_number(_beside(self.folder, "cpu", "cpuacct") / "cpuacct.usage") or 0) / 1e9


@frozen
class MemoryLimit:
    """A group's share of RAM."""

    memory: int
    folder: Path
    is_v2: bool

    def used(self) -> int:
        """Bytes in use by the group, less what the kernel would drop at once when asked."""
        if self.is_v2:
            total, cache = _number(self.folder / "memory.current"), "inactive_file"
        else:
            total, cache = _number(self.folder / "memory.usage_in_bytes"), "total_inactive_file"
        return max(0, (total or 0) - _field(self.folder / "memory.stat", cache))


@frozen
class ControlGroup:
    """The groups that this process is in, as the kernel's files below these folders say."""

    proc: Path = Path("/proc/self/cgroup")
    mount: Path = Path("/sys/fs/cgroup")

    def cpu(self) -> CpuLimit | None:
        """The tightest limit of processor time, or None."""
        limits = [CpuLimit(cpu, at, True) for at in self._v2() if (cpu := _quota_v2(at))]
        limits += [CpuLimit(cpu, at, False) for at in self._v1("cpu") if (cpu := _quota_v1(at))]
        return min(limits, key=lambda limit: limit.cpu_milli, default=None)

    def memory(self) -> MemoryLimit | None:
        """The tightest limit of memory, or None."""
        limits = [
            MemoryLimit(limit, at, True)
            for at in self._v2()
            if (limit := _number(at / "memory.max")) is not None
        ]
        limits += [
            MemoryLimit(limit, at, False)
            for at in self._v1("memory")
            if (limit := _number(at / "memory.limit_in_bytes") or NO_LIMIT_V1) < NO_LIMIT_V1
        ]
        return min(limits, key=lambda limit: limit.memory, default=None)

    def _v2(self) -> Iterator[Path]:
        if (self.mount / "cgroup.controllers").exists():
            yield from _upwards(self.mount, self._path_of(""))

    def _v1(self, controller: str) -> Iterator[Path]:
        if (self.mount / controller).is_dir():
            yield from _upwards(self.mount / controller, self._path_of(controller))

    def _path_of(self, controller: str) -> str:
        """Our group's path in the hierarchy of *controller* (version 2: the empty one)."""
        for line in _text(self.proc).splitlines():
            _, names, path = [*line.split(":", 2), "", ""][:3]
            if controller in names.split(","):
                return path
        return "/"


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The folders from our group up to *mount*, as far as they can be seen: in a container the
    mount is our own group, and the path, which is the host's, leads nowhere."""
    parts = [part for part in path.split("/") if part]
    if ".." not in parts:
        for depth in range(len(parts), 0, -1):
            folder = mount.joinpath(*parts[:depth])
            if folder.is_dir():
                yield folder
    yield mount


def _beside(folder: Path, controller: str, other: str) -> Path:
    parts = list(folder.parts)
    last = len(parts) - 1 - parts[::-1].index(controller)
    return Path(*parts[:last], other, *parts[last + 1 :])


def _quota_v2(folder: Path) -> int | None:
    """cpu.max: `max 100000` or `quota period`, both in microseconds."""
    quota, period = [*_text(folder / "cpu.max").split(), "", ""][:2]
    return _milli(quota, period)


def _quota_v1(folder: Path) -> int | None:
    quota, period = (_text(folder / f"cpu.cfs_{what}_us").strip() for what in ("quota", "period"))
    return _milli(quota, period)


def _milli(quota: str, period: str) -> int | None:
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None  # "max", "-1", or no such file
    return max(1, 1000 * int(quota) // int(period))


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _field(path: Path, name: str) -> int:
    """The number after *name* in a file of `name number` lines; 0 when it is not there."""
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdecimal():
            return int(value)
    return 0


def _text(path: Path) -> str:
    """The file's text; empty when it cannot be read, as a group may end while we look."""
    try:
        return path.read_text()
    except OSError:
        return ""
