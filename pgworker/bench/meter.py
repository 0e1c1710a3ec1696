"""What a stretch of work has cost the server and the pool."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from pgworker.bench.ground import Ground
from pgworker.bench.pool import Pool

_FLUSHES = 150_000  # the first version that tells of what is committed as soon as it is asked to


@dataclass(frozen=True, slots=True)
class Reading:
    """CPU in seconds; `pool_cpu` None: of no pool; `server_cpu` None: the server's is not to be seen from this host."""

    wal: str
    transactions: int
    pool_cpu: float | None
    server_cpu: float | None


@dataclass(frozen=True, slots=True)
class Cost:
    """Per job. What is unknown is None."""

    wal_bytes_per_job: float
    transactions_per_job: float
    pool_cpu_us_per_job: float | None
    server_cpu_us_per_job: float | None


def read_meter(ground: Ground, pools: Sequence[Pool] = ()) -> Reading:
    """As of now."""
    wal = ground.value("select pg_current_wal_lsn()::text")
    pool_cpu = _cpu(pid for pool in pools for pid in pool.pids()) if pools else None
    return Reading(wal, _transactions(ground), pool_cpu, _server_cpu(ground))


def cost(ground: Ground, jobs: int, begun: Reading, before: Reading, after: Reading) -> Cost:
    """Of so many: WAL and transactions from `begun` until now, CPU from `before` to `after`."""
    return Cost(
        float(ground.value("select pg_wal_lsn_diff(pg_current_wal_lsn(), %s)", begun.wal)) / jobs,
        (_transactions(ground) - begun.transactions) / jobs,
        _per_job(before.pool_cpu, after.pool_cpu, jobs),
        _per_job(before.server_cpu, after.server_cpu, jobs),
    )


def cost_since(ground: Ground, jobs: int, before: Reading, pools: Sequence[Pool] = ()) -> Cost:
    """Of so many, all of it from `before` until now."""
    return cost(ground, jobs, before, before, read_meter(ground, pools))


def _per_job(before: float | None, after: float | None, jobs: int) -> float | None:
    """Microseconds."""
    return None if before is None or after is None else (after - before) * 1e6 / jobs


def _transactions(ground: Ground) -> int:
    """Committed in this database. Other sessions tell of their last ones when they end, or a second later."""
    if ground.connection.info.server_version >= _FLUSHES:
        ground.connection.execute("select pg_stat_force_next_flush()")
    return int(ground.value("select xact_commit from pg_stat_database where datname = current_database()"))


def _server_cpu(ground: Ground) -> float | None:
    """That of the postmaster and all its children, those that have ended too."""
    postmaster = ground.postmaster()
    if postmaster is None:
        return None
    with suppress(psutil.Error):
        return _cpu([postmaster.pid, *(child.pid for child in postmaster.children())])
    return None


def _cpu(pids: Iterable[int]) -> float:
    """Of processes and of those of their children that have ended."""
    total = 0.0
    for pid in pids:
        with suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
