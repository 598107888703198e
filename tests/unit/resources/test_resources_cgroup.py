"""Control groups of both versions, as the kernel's files show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.resources.cgroup import ControlGroup, CpuLimit, MemoryLimit

MIB = 1 << 20


def group(root: Path, membership: str, files: dict[str, str]) -> ControlGroup:
    """A tree like /sys/fs/cgroup, and what /proc/self/cgroup says."""
    (root / "self").write_text(membership)
    for name, text in files.items():
        path = root / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return ControlGroup(proc=root / "self", mount=root / "fs")


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    nowhere = ControlGroup(proc=tmp_path / "self", mount=tmp_path / "fs")
    assert nowhere.cpu() is None
    assert nowhere.memory() is None


def test_a_group_without_limits_has_none(tmp_path: Path) -> None:
    files = {"cgroup.controllers": "cpu memory", "a/cpu.max": "max 100000", "a/memory.max": "max"}
    found = group(tmp_path, "0::/a\n", files)
    assert found.cpu() is None
    assert found.memory() is None


def test_version_2_limits_and_usage(tmp_path: Path) -> None:
    files = {
        "cgroup.controllers": "cpu memory",
        "a/cpu.max": "150000 100000",
        "a/cpu.stat": "usage_usec 2500000\nuser_usec 1",
        "a/memory.max": str(512 * MIB),
        "a/memory.current": str(300 * MIB),
        "a/memory.stat": f"anon 5\ninactive_file {100 * MIB}",
    }
    found = group(tmp_path, "0::/a\n", files)
    cpu, memory = found.cpu(), found.memory()
    assert cpu == CpuLimit(1500, tmp_path / "fs" / "a", is_v2=True)
    assert memory == MemoryLimit(512 * MIB, tmp_path / "fs" / "a", is_v2=True)
    assert (cpu.used_s(), memory.used()) == (2.5, 200 * MIB)


def test_version_1_limits_and_usage(tmp_path: Path) -> None:
    files = {
        "cpu/a/cpu.cfs_quota_us": "50000",
        "cpu/a/cpu.cfs_period_us": "100000",
        "cpuacct/a/cpuacct.usage": "7500000000",
        "memory/a/memory.limit_in_bytes": str(256 * MIB),
        "memory/a/memory.usage_in_bytes": str(90 * MIB),
        "memory/a/memory.stat": f"inactive_file 1\ntotal_inactive_file {30 * MIB}",
    }
    found = group(tmp_path, "4:memory:/a\n2:cpu,cpuacct:/a\n", files)
    cpu, memory = found.cpu(), found.memory()
    assert cpu == CpuLimit(500, tmp_path / "fs" / "cpu" / "a", is_v2=False)
    assert memory == MemoryLimit(256 * MIB, tmp_path / "fs" / "memory" / "a", is_v2=False)
    assert (cpu.used_s(), memory.used()) == (7.5, 60 * MIB)


def test_version_1_writes_no_limit_as_minus_one_or_as_a_huge_number(tmp_path: Path) -> None:
    files = {
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "9223372036854771712",
    }
    found = group(tmp_path, "4:memory:/\n1:cpu:/\n", files)
    assert found.cpu() is None
    assert found.memory() is None


def test_the_tightest_limit_on_the_way_up_rules(tmp_path: Path) -> None:
    files = {
        "cgroup.controllers": "cpu memory",
        "slice/memory.max": str(100 * MIB),
        "slice/memory.current": str(80 * MIB),
        "slice/service/memory.max": str(400 * MIB),
        "slice/service/cpu.max": "100000 100000",
        "slice/cpu.max": "300000 100000",
    }
    found = group(tmp_path, "0::/slice/service\n", files)
    cpu, memory = found.cpu(), found.memory()
    assert cpu is not None
    assert cpu.cpu_milli == 1000
    assert memory is not None
    assert (memory.memory, memory.used()) == (100 * MIB, 80 * MIB)


@pytest.mark.parametrize("path", ["/docker/0123", "/../../host/path"])
def test_in_a_container_the_mount_itself_is_our_group(tmp_path: Path, path: str) -> None:
    files = {"cgroup.controllers": "cpu memory", "memory.max": str(64 * MIB)}
    memory = group(tmp_path, f"0::{path}\n", files).memory()
    assert memory is not None
    assert memory.memory == 64 * MIB


def test_a_group_that_ends_while_we_look_uses_nothing(tmp_path: Path) -> None:
    gone = tmp_path / "fs" / "cpu" / "gone"
    assert CpuLimit(500, gone, is_v2=False).used_s() == 0.0
    assert MemoryLimit(500, gone, is_v2=True).used() == 0


@pytest.mark.parametrize("text", ["", "garbage", "100000", "100000 0", "-5 100000"])
def test_nonsense_is_no_limit(tmp_path: Path, text: str) -> None:
    files = {"cgroup.controllers": "cpu", "cpu.max": text, "memory.max": text}
    found = group(tmp_path, "nonsense\n0::/\n", files)
    assert found.cpu() is None
