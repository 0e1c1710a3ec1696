"""The settings of a pool, each checked, and the defaults for what nobody set."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pgworker.errors import ConfigurationError, InvalidJob
from pgworker.model.durations import seconds
from pgworker.model.names import check_queue
from pgworker.model.retry import Backoff

MAX_WORKERS = 1024
MAX_BATCH = 10_000
SHORTEST_RETENTION = 86_400.0
LONGEST_RETENTION = 14 * 86_400.0

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_UNLIMITED = 1e6
_HOST = re.compile(r"[A-Za-z0-9_.-]+")

_SHORTEST = {
    "lease_ttl": 1.0,
    "drain_timeout": 0.0,
    "cancel_grace": 0.0,
    "term_grace": 0.0,
    "poll_interval": 0.01,
    "beat_interval": 0.01,
    "heartbeat_interval": 0.1,
    "prefetch_seconds": 0.0,
}
"""Seconds below which a pool would spin, or lose its leases before it renews them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """All that a pool needs to know besides its DSN and its app. Durations are seconds."""

    workers: int
    queues: tuple[str, ...] = ("default",)
    lease_ttl: float = 60.0
    drain_timeout: float = 25.0
    """How long running jobs may go on after TERM; systemd and Kubernetes wait longer than this before they kill."""
    cancel_grace: float = 10.0
    """Between the cancel flag and SIGTERM to a worker."""
    term_grace: float = 5.0
    """Between SIGTERM and SIGKILL."""
    poll_interval: float = 1.0
    beat_interval: float = 1.0
    """Beats on the board, in shared memory."""
    heartbeat_interval: float = 5.0
    """Beats in the database, and the looks for leases that others left behind."""
    prefetch_seconds: float = 0.05
    """How much work a worker claims ahead of what it runs."""
    max_batch: int = 500
    retention: float = 7 * 86_400.0
    """How long the history of jobs is kept, in whole days; what waits is kept however long it waits."""
    metrics_listen: str | None = "127.0.0.1:9464"
    """host:port of /metrics and the health pages; None for none."""
    restart_backoff: Backoff = field(default=Backoff(base=0.5, cap=60.0))
    log_format: Literal["text", "json"] = "text"

    def __post_init__(self) -> None:
        """ConfigurationError for the first setting that can't work."""
        _whole("workers", self.workers, MAX_WORKERS)
        _whole("max_batch", self.max_batch, MAX_BATCH)
        _queues(self.queues)
        for name, shortest in _SHORTEST.items():
            value = seconds(getattr(self, name), name, error=ConfigurationError)
            if value < shortest:
                raise ConfigurationError(f"{name} must be at least {shortest:g} s, not {value:g}")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "retention", _retention(self.retention))
        if self.metrics_listen is not None:
            parse_listen(self.metrics_listen)
        if self.log_format not in ("text", "json"):
            raise ConfigurationError(f"log_format must be text or json, not {self.log_format!r}")


def parse_listen(text: str) -> tuple[str, int]:
    """`host:port` as a pair; IPv6 in brackets, which the host comes without; port 0 lets the kernel choose."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ConfigurationError(f"{text!r} is not host:port with a port from 0 to 65535, like 127.0.0.1:9464")
    if host.startswith("[") and host.endswith("]"):
        return _ipv6(host[1:-1], text), int(port)
    if not host:
        raise ConfigurationError(f"{text!r} names no address; use 127.0.0.1:{port}, or 0.0.0.0:{port} for all")
    if not _HOST.fullmatch(host):
        raise ConfigurationError(f"{text!r} is not host:port; an IPv6 address goes in brackets, like [::1]:9464")
    return host, int(port)


def default_workers(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> int:
    """The CPUs that this process really has: the smaller of its affinity and its cgroups' quota, rounded up."""
    return max(1, min(len(os.sched_getaffinity(0)), math.ceil(cpu_quota(cgroups, own)), MAX_WORKERS))


def cpu_quota(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> float:
    """CPUs that the cgroups of this process and their parents allow (v2 cpu.max, v1 cpu.cfs_quota_us); at most 10⁶.

    Sources: cgroups(7); Documentation/admin-guide/cgroup-v2.rst; Documentation/scheduler/sched-bwc.rst.
    """
    quotas = [_UNLIMITED]
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            quotas += [_quota_v2(directory) for directory in _upwards(cgroups, path)]
        elif "cpu" in controllers.split(","):
            for mount in (controllers, "cpu"):
                quotas += [_quota_v1(directory) for directory in _upwards(cgroups / mount, path)]
    return min(quotas)


def _upwards(root: Path, path: str) -> list[Path]:
    """The cgroup and its parents. In a container the path may be the host's: what isn't there limits nothing."""
    steps = [step for step in path.split("/") if step not in ("", "..")]
    return [root.joinpath(*steps[:depth]) for depth in range(len(steps), -1, -1)]


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


def _whole(name: str, value: object, largest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise ConfigurationError(f"{name} must be a whole number from 1 to {largest}")


def _retention(value: object) -> float:
    number = seconds(value, "retention", error=ConfigurationError)
    if not SHORTEST_RETENTION <= number <= LONGEST_RETENTION:
        raise ConfigurationError(
            f"retention must be from 1 to 14 days, not {number / 86_400:g}: each day kept slows every claim a little"
        )
    return number


def _queues(queues: object) -> None:
    if not isinstance(queues, tuple) or not queues:
        raise ConfigurationError("queues must be a tuple with at least one name")
    try:
        names = [check_queue(name) for name in queues]
    except InvalidJob as error:
        raise ConfigurationError(str(error)) from None
    if len(set(names)) < len(names):
        raise ConfigurationError("queues names a queue twice")


def _ipv6(host: str, text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError:
        raise ConfigurationError(f"{text!r} has no IPv6 address in its brackets, like [::1]:9464") from None
