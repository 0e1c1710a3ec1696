"""How many CPUs there are, who gets which, and what the cgroups above allow; with files as the kernel writes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pgworker.errors import ConfigurationError
from pgworker.linux.cgroups import hierarchies
from pgworker.linux.cpus import count_cpus, cpu_quota, divide_cpus, require_usable
from pgworker.linux.memory import cgroup_limit


class Proc:
    """/proc/self of a process in a cgroup, and the hierarchies it sees, all below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "proc"
        self.path.mkdir()
        self._cgroups: list[str] = []
        self._mounts = ["23 1 0:5 / / rw,relatime - ext4 /dev/vda rw"]

    def mount(self, kind: str, options: str, mounted: str, own: str, seen_as: str) -> Path:
        """Mount the part of a hierarchy from `mounted` on; returns where our cgroup `seen_as` is."""
        controllers = "" if kind == "cgroup2" else options
        mount = self.root / (controllers or "unified")
        self._cgroups.append(f"{len(self._cgroups)}:{controllers}:{own}")
        self._mounts.append(f"30 23 0:9 {mounted} {mount} rw,relatime shared:9 - {kind} {kind} rw,{options}")
        (self.path / "cgroup").write_text("\n".join(self._cgroups) + "\n")
        (self.path / "mountinfo").write_text("\n".join(self._mounts) + "\n")
        directory = mount / seen_as
        directory.mkdir(parents=True)
        return directory


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def v2(proc: Proc) -> None:
    own = proc.mount("cgroup2", "nsdelegate", "/", "/pod/box", "pod/box")
    (own.parent / "cpu.max").write_text("150000 100000\n")
    (own / "cpu.max").write_text("max 100000\n")
    (own.parent / "memory.max").write_text("1073741824\n")
    (own / "memory.max").write_text("max\n")


def v1(proc: Proc) -> None:
    cpu = proc.mount("cgroup", "cpu,cpuacct", "/docker/box", "/docker/box", "")
    (cpu / "cpu.cfs_quota_us").write_text("150000\n")
    (cpu / "cpu.cfs_period_us").write_text("100000\n")
    memory = proc.mount("cgroup", "memory", "/", "/docker/box", "docker/box")
    (memory / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (memory.parent / "memory.limit_in_bytes").write_text("1073741824\n")


def namespaced(proc: Proc) -> None:
    """In a container with the host's hierarchy in view: what our path says is not there, but the root is."""
    own = proc.mount("cgroup2", "nsdelegate", "/", "/../../elsewhere", "")
    (own / "cpu.max").write_text("150000 100000\n")
    (own / "memory.max").write_text("1073741824\n")


@pytest.mark.parametrize("write", [v2, v1, namespaced])
def test_the_limits_of_the_nearest_limited_cgroup_count(proc: Proc, write: Callable[[Proc], None]) -> None:
    write(proc)
    assert cpu_quota(proc.path) == 1.5
    assert count_cpus(proc.path) == min(2, len(os.sched_getaffinity(0)))
    assert cgroup_limit(proc.path) == 1 << 30


def test_without_a_quota_the_affinity_counts(tmp_path: Path) -> None:
    available = os.sched_getaffinity(0)
    assert count_cpus(tmp_path) == len(available)
    assert cgroup_limit(tmp_path) is None
    os.sched_setaffinity(0, {min(available)})
    try:
        assert count_cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, available)


def test_the_cgroups_of_this_machine_are_where_it_says() -> None:
    for controller in ("cpu", "memory"):
        for hierarchy in hierarchies(controller):
            assert (hierarchy.own / "cgroup.procs").exists()
            assert list(hierarchy.upwards())[-1] == hierarchy.mount


FREE = 1e6


@pytest.mark.parametrize(
    ("workers", "quota", "usable", "parts"),
    [
        (2, FREE, {0, 1}, [{0}, {1}]),
        (3, FREE, {1, 3, 5, 7}, [{1}, {3}, {5, 7}]),
        (2, FREE, set(range(8)), [{0, 1, 2, 3}, {4, 5, 6, 7}]),
        (4, 4.0, set(range(8)), [{0, 1}, {2, 3}, {4, 5}, {6, 7}]),
        (1, FREE, {0, 1}, []),
        (3, FREE, {0, 1}, []),
        (2, 1.5, {0, 1}, []),
        (2, 2.5, set(range(8)), []),
        (5, 4.0, set(range(8)), []),
    ],
)
def test_workers_share_the_cpus_if_there_is_a_whole_one_for_each(
    workers: int, quota: float, usable: set[int], parts: list[set[int]]
) -> None:
    assert list(divide_cpus(workers, quota, usable)) == parts


def test_a_cpu_that_is_not_ours_is_refused_with_those_that_are() -> None:
    require_usable([0, 3], {0, 1, 2, 3, 6})
    with pytest.raises(ConfigurationError, match=r"^cpus names 4-5,8, which we may not use here; choose from 0-3,6$"):
        require_usable([8, 4, 0, 5], {0, 1, 2, 3, 6})
