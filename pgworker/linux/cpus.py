"""The CPUs that we really have, and which of them each worker gets.

Sources: sched_setaffinity(2); Documentation/admin-guide/cgroup-v2.rst; Documentation/scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path

from pgworker.errors import ConfigurationError
from pgworker.linux.cgroups import PROC, hierarchies

_UNLIMITED = 1e6


def count_cpus(proc: Path = PROC) -> int:
    """The CPUs that this process really has: the smaller of its affinity and its cgroups' quota, rounded up."""
    return max(1, min(len(os.sched_getaffinity(0)), math.ceil(cpu_quota(proc))))


def cpu_quota(proc: Path = PROC) -> float:
    """CPUs that the cgroups of this process and their parents allow (v2 cpu.max, v1 cpu.cfs_quota_us); at most 10⁶."""
    try:
        directories = [directory for found in hierarchies("cpu", proc) for directory in found.upwards()]
    except OSError:
        return _UNLIMITED
    quotas = [min(_quota_v2(directory), _quota_v1(directory)) for directory in directories]
    return min(quotas, default=_UNLIMITED)


def divide_cpus(workers: int, quota: float, usable: Collection[int]) -> tuple[frozenset[int], ...]:
    """CPUs of its own for each worker, as many for one as for the next, give or take one.

    Empty when there is nothing to gain: a single worker, fewer whole CPUs than workers, or a quota, which has no CPU of
    its own, with a fraction: pinned, a worker could not use what another one leaves of it.
    """
    is_fractional = quota < len(usable) and quota != int(quota)
    if workers == 1 or workers > min(len(usable), quota) or is_fractional:
        return ()
    cpus = sorted(usable)
    bounds = [len(cpus) * worker // workers for worker in range(workers + 1)]
    return tuple(frozenset(cpus[first:end]) for first, end in pairwise(bounds))


def require_usable(cpus: Collection[int], usable: Collection[int]) -> None:
    """ConfigurationError, naming those that are, when a CPU is not ours to use."""
    missing = sorted(set(cpus) - set(usable))
    if missing:
        raise ConfigurationError(
            f"cpus names {_listed(missing)}, which we may not use here; choose from {_listed(usable)}"
        )


def _listed(cpus: Collection[int]) -> str:
    """0-3,6"""
    ranges: list[list[int]] = []
    for cpu in sorted(cpus):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)


def _quota_v2(directory: Path) -> float:
    quota, _, period = _read(directory / "cpu.max").partition(" ")
    return _share(quota, period)


def _quota_v1(directory: Path) -> float:
    return _share(_read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us"))


def _share(quota: str, period: str) -> float:
    """quota/period; "max", -1 and a missing file mean no limit."""
    return int(quota) / int(period) if quota.strip().isdigit() and period.strip().isdigit() else _UNLIMITED


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
