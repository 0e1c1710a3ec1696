"""Memory: what a process has for itself alone, what it may have, and what its cgroup allows."""

from __future__ import annotations

import resource
from pathlib import Path

from pgworker.linux.cgroups import PROC, hierarchies

_PRIVATE = ("Private_Clean:", "Private_Dirty:", "Private_Hugetlb:")
_NO_LIMIT = 1 << 60  # v1 says "no limit" with a number near 2⁶³


def private_bytes(proc: Path = PROC) -> int:
    """What this process, or that of another /proc/PID, would give back if it ended (USS): not what it shares.

    It walks the page tables, some milliseconds per GB: not for every job. proc(5), smaps_rollup; OSError without it.
    """
    lines = (proc / "smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_PRIVATE))


def data_bytes(proc: Path = PROC) -> int:
    """What counts against `limit_data`: the writable private memory of this process, touched or not."""
    for line in (proc / "status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def limit_data(size: int) -> None:
    """Have every allocation of this process that would take it over `size` bytes fail; in Python, as MemoryError.

    setrlimit(2), RLIMIT_DATA: since Linux 4.7 that is the heap and every private writable mapping. A lower hard limit
    stays.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def cgroup_limit(proc: Path = PROC) -> int | None:
    """Bytes that our cgroups allow all of us together (v2 memory.max, v1 memory.limit_in_bytes); None: no limit."""
    try:
        directories = [directory for found in hierarchies("memory", proc) for directory in found.upwards()]
    except OSError:
        return None
    names = ("memory.max", "memory.limit_in_bytes")
    limits = [_number(directory / name) for directory in directories for name in names]
    return min((limit for limit in limits if limit is not None and limit < _NO_LIMIT), default=None)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max"
