"""The settings of a pool, each checked, and the defaults for what nobody set."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Literal

from pgworker.config.token import NoToken
from pgworker.errors import ConfigurationError, InvalidJob
from pgworker.model.durations import seconds
from pgworker.model.names import check_queue
from pgworker.model.retry import Backoff

MAX_WORKERS = 1024
MAX_SLOTS = 1000
MAX_BATCH = 10_000
MAX_JOBS = 1_000_000_000
MAX_NICE = 19
LEAST_MEMORY = 16 << 20
"""Bytes: less than an idle worker and its first job take."""
SHORTEST_RETENTION = 86_400.0
LONGEST_RETENTION = 14 * 86_400.0

_MAX_CPU = 65_535
_CPUS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_HOST = re.compile(r"[A-Za-z0-9_.-]+")

_SHORTEST = {
    "lease_ttl": 1.0,
    "drain_timeout": 0.0,
    "cancel_grace": 0.0,
    "term_grace": 0.0,
    "poll_interval": 0.01,
    "heartbeat_interval": 0.1,
    "prefetch_seconds": 0.0,
    "boot_timeout": 1.0,
    "max_age": 1.0,
}
"""Seconds below which a pool would spin, or lose its leases before it renews them."""

_OPTIONAL = frozenset({"max_age"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """All that a pool needs to know besides its DSN and its app. Durations are seconds."""

    workers: int
    slots: int = 1
    """Jobs that one worker runs at a time: sync ones in threads, async ones on its event loop."""
    queues: tuple[str, ...] = ("default",)
    lease_ttl: float = 60.0
    drain_timeout: float = 25.0
    """How long running jobs may go on after TERM; systemd and Kubernetes wait longer than this before they kill."""
    cancel_grace: float = 10.0
    """Between the cancel flag and SIGTERM to a worker."""
    term_grace: float = 5.0
    """Between SIGTERM and SIGKILL."""
    poll_interval: float = 1.0
    heartbeat_interval: float = 5.0
    """Beats in the database, and the looks for leases that others left behind."""
    prefetch_seconds: float = 0.05
    """How much work a worker claims ahead of what it runs."""
    max_batch: int = 500
    retention: float = 7 * 86_400.0
    """How long the history of jobs is kept, in whole days; what waits is kept however long it waits."""
    metrics_listen: str | None = "127.0.0.1:9464"
    """host:port of /metrics and the health pages; None for none."""
    metrics_token_file: str | NoToken = NoToken.UNSAID
    """What holds the token of /metrics."""
    boot_timeout: float = 60.0
    """How long a worker that replaces another may take to get ready, the import of the app included, and one that has
    drained to end."""
    pooler: bool = False
    """A pooler in transaction mode is before the database: nothing is prepared, and polls do what LISTEN does else."""
    preload: bool = False
    """Import the app once, in the master, before the first fork."""
    reload: bool = False
    """Ask for a rolling restart when a file of the app changes; jobs that run then have `drain_timeout` to end."""
    max_jobs: int | None = None
    """A worker that has run so many jobs is replaced; this and the next two are lowered by up to a quarter, by lot."""
    max_memory: int | None = None
    """As max_jobs: bytes that a worker has for itself alone."""
    max_age: float | None = None
    cpus: str = "auto"
    """`auto`: each worker its own, where there are enough; `none`; or a list such as 0-3,6, one for each in turn."""
    memory_limit: int | None = None
    """Bytes of memory beyond which an allocation in a worker fails."""
    nice: int = 0
    restart_backoff: Backoff = field(default=Backoff(base=0.5, cap=60.0))
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning"] = "info"
    """Debug has a line for each claim, start and success of a job, info for whatever is no plain success."""

    def __post_init__(self) -> None:
        """ConfigurationError for the first setting that can't work."""
        _whole("workers", self.workers, MAX_WORKERS)
        _whole("slots", self.slots, MAX_SLOTS)
        _whole("max_batch", self.max_batch, MAX_BATCH)
        _queues(self.queues)
        for name, shortest in _SHORTEST.items():
            if name in _OPTIONAL and getattr(self, name) is None:
                continue
            value = seconds(getattr(self, name), name, error=ConfigurationError)
            if value < shortest:
                raise ConfigurationError(f"{name} must be at least {shortest:g} s, not {value:g}")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "retention", _retention(self.retention))
        self._check_limits()
        if self.reload and self.preload:
            raise ConfigurationError("reload needs an app that every worker imports anew, so leave preload out")
        if self.metrics_listen is not None:
            self._check_reach(self.metrics_listen)
        if self.log_format not in ("text", "json"):
            raise ConfigurationError(f"log_format must be text or json, not {self.log_format!r}")
        if self.log_level not in ("debug", "info", "warning"):
            raise ConfigurationError(f"log_level must be debug, info or warning, not {self.log_level!r}")

    def _check_reach(self, listen: str) -> None:
        if self.metrics_token_file is NoToken.UNSAID and not is_loopback(parse_listen(listen)[0]):
            raise ConfigurationError(
                f"/metrics at {listen}, beyond this host, needs --metrics-token-file FILE"
                " (or PGWORKER_METRICS_TOKEN_FILE), or off if your network keeps strangers away"
            )

    def _check_limits(self) -> None:
        parse_cpus(self.cpus)
        if self.max_jobs is not None:
            _whole("max_jobs", self.max_jobs, MAX_JOBS)
        _whole("nice", self.nice, MAX_NICE, least=0)
        for name in ("max_memory", "memory_limit"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < LEAST_MEMORY):
                raise ConfigurationError(f"{name} must be a whole number of bytes, at least {LEAST_MEMORY >> 20}M")
        if self.max_memory is not None and self.memory_limit is not None and self.max_memory >= self.memory_limit:
            raise ConfigurationError(
                "max_memory must be less than memory_limit: a worker that has reached its limit is replaced too late"
            )


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


def is_loopback(host: str) -> bool:
    """Whether nobody but this host reaches it, as far as that can be said without asking a resolver."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def parse_cpus(text: str) -> tuple[int, ...]:
    """A list of CPUs such as 0-3,6, in the order given; `auto` and `none` name no CPU and give ()."""
    if text in ("auto", "none"):
        return ()
    parts = [_CPUS.fullmatch(part) for part in text.split(",")]
    cpus: list[int] = []
    for part in parts:
        first, last = (int(part[1]), int(part[2] or part[1])) if part else (1, 0)
        if not first <= last <= _MAX_CPU:
            raise ConfigurationError(f"cpus must be auto, none or a list of CPUs like 0-3,6, not {text!r}")
        cpus += range(first, last + 1)
    if len(set(cpus)) < len(cpus):
        raise ConfigurationError(f"cpus names a CPU twice: {text}")
    return tuple(cpus)


def _whole(name: str, value: object, largest: int, *, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= largest:
        raise ConfigurationError(f"{name} must be a whole number from {least} to {largest}")


def _retention(value: object) -> float:
    number = seconds(value, "retention", error=ConfigurationError)
    if not SHORTEST_RETENTION <= number <= LONGEST_RETENTION:
        raise ConfigurationError(
            f"retention must be from 1 to 14 days, not {number / 86_400:g}: each day kept slows every claim a little"
        )
    return number


def _queues(queues: object) -> None:
    if not isinstance(queues, tuple) or not queues:
        raise ConfigurationError('name at least one queue, such as queues = ["default"]')
    try:
        names = [check_queue(name) for name in queues]
    except InvalidJob as error:
        raise ConfigurationError(str(error)) from None
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ConfigurationError(f"queues names {name} twice: leave one out")


def _ipv6(host: str, text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError:
        raise ConfigurationError(f"{text!r} has no IPv6 address in its brackets, like [::1]:9464") from None
