"""How fast a pool drains a backlog of no-op jobs, from the first claim to the last recorded execution."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from pgworker.bench.jobs import noop
from pgworker.db.connect import connect
from pgworker.db.migrate import migrate
from pgworker.db.scratch import scratch_database
from pgworker.lifecycle.enqueue import enqueue_jobs

_BATCH = 1000
_PATIENCE = 600.0  # seconds


@dataclass(frozen=True, slots=True)
class Figures:
    """One run. WAL is of the whole life of a job, enqueue included."""

    server_version: str
    fsync: str
    synchronous_commit: str
    jobs: int
    workers: int
    enqueue_seconds: float
    enqueued_per_second: float
    seconds: float
    jobs_per_second: float
    wal_bytes_per_job: float
    transactions_per_job: float


@contextmanager
def own_database(dsn: str) -> Iterator[str]:
    """A migrated database of our own on the server of `dsn`, dropped afterwards; yields its DSN."""
    with scratch_database(dsn, "template0") as own:
        migrate(own)
        yield own


def measure(dsn: str, jobs: int, start_pool: Callable[[str], int], workers: int) -> Figures:
    """Drain `jobs` no-op jobs, enqueued while the queue is paused and resumed once every worker is up.

    `start_pool` starts a pool on this DSN and returns its pid.
    """
    with connect(dsn, application_name="pgworker bench") as connection:
        connection.execute("insert into pgworker.queues (name, paused) values ('default', true)")
        connection.execute("checkpoint")
        begun = _position(connection)
        enqueue_seconds = _enqueue(connection, jobs)
        pid = start_pool(dsn)
        try:
            _wait(connection, "select count(*) >= %s from pgworker.worker_heartbeats", [workers])
            before = connection.execute(
                "update pgworker.queues set paused = false returning clock_timestamp()"
            ).fetchall()[0][0]
            time.sleep(0.25)
            _wait(
                connection,
                "select not exists (select from pgworker.job_queue) and not exists (select from pgworker.job_leases)",
                [],
            )
            count, last = connection.execute(
                "select count(*), max(finished_at) from pgworker.job_executions where outcome = 'succeeded'"
            ).fetchall()[0]
        finally:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
        if count != jobs:
            raise RuntimeError(f"{jobs} jobs were enqueued and {count} have succeeded: the figures would be worthless")
        ended = _position(connection)
        return _figures(connection, jobs, workers, enqueue_seconds, (last - before).total_seconds(), begun, ended)


def _enqueue(connection: Connection[Any], jobs: int) -> float:
    started = time.perf_counter()
    for first in range(0, jobs, _BATCH):
        enqueue_jobs(
            connection,
            [
                noop.job(user_id=number, email="someone@example.com", template="welcome", note="x" * 40)
                for number in range(first, min(jobs, first + _BATCH))
            ],
        )
    return time.perf_counter() - started


def _wait(connection: Connection[Any], condition: str, values: list[object]) -> None:
    ends = time.monotonic() + _PATIENCE
    while not connection.execute(condition, values).fetchall()[0][0]:
        if time.monotonic() > ends:
            raise RuntimeError(f"waited {_PATIENCE:g} s in vain for: {condition}")
        time.sleep(0.1)


def _position(connection: Connection[Any]) -> tuple[str, int]:
    row = connection.execute(
        "select pg_current_wal_lsn()::text, sum(xact_commit) from pg_stat_database where datname = current_database()"
    ).fetchall()[0]
    return row[0], int(row[1])


def _figures(
    connection: Connection[Any],
    jobs: int,
    workers: int,
    enqueue_seconds: float,
    seconds: float,
    begun: tuple[str, int],
    ended: tuple[str, int],
) -> Figures:
    wal, version, fsync, synchronous_commit = connection.execute(
        "select pg_wal_lsn_diff(%s, %s), current_setting('server_version'), current_setting('fsync'),"
        " current_setting('synchronous_commit')",
        [ended[0], begun[0]],
    ).fetchall()[0]
    return Figures(
        server_version=version,
        fsync=fsync,
        synchronous_commit=synchronous_commit,
        jobs=jobs,
        workers=workers,
        enqueue_seconds=enqueue_seconds,
        enqueued_per_second=jobs / enqueue_seconds,
        seconds=seconds,
        jobs_per_second=jobs / seconds,
        wal_bytes_per_job=float(wal) / jobs,
        transactions_per_job=(ended[1] - begun[1]) / jobs,
    )
