"""What trials of whole pools stand on: a database with witnesses, a directory for ledgers and logs, and figures."""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection

from pgworker.bench.drain import own_database
from pgworker.model.job import JobRequest
from tests.chaos.trials.jobs import app
from tests.chaos.trials.ledgers import TABLES
from tests.chaos.trials.trial import Bench, Figure
from tests.process.pool import Pool, eventually, start
from tests.sql.invariants import STORED, WITNESSES, offences

APP = "tests.chaos.trials.jobs:app"
READY = "the pool is ready"
TAIL = 25
"""Lines of the log of a pool that are shown when a trial breaks off."""

_BUSY = """
    select application_name, state, clock_timestamp() - state_change, left(query, 60) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and xact_start < clock_timestamp() - interval '1 s'
"""


@dataclass(slots=True)
class Ground:
    """One database and one directory; what was enqueued is remembered here, and nowhere in the database."""

    dsn: str
    connection: Connection[Any]
    directory: Path
    enqueued: list[UUID] = field(default_factory=list)
    _pools: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def enqueue(self, requests: Sequence[JobRequest]) -> list[UUID]:
        """All of them in one transaction, claimable at the same moment."""
        ids = [job.id for job in app.enqueue_many(requests, self.connection)]
        self.enqueued += ids
        return ids

    @contextmanager
    def pool(self, *, ready: bool = True, **settings: object) -> Iterator[Pool]:
        """A pool of `jobs`, killed at the end; the end of its log is shown if anything goes wrong."""
        log = self.directory / f"pool{next(self._pools)}.log"
        with start(self.dsn, log, app=APP, cwd=self.directory, quiet=True, **settings) as pool:
            try:
                if ready:
                    pool.wait_for_log(READY)
                yield pool
            except BaseException:
                sys.stdout.write("".join(f"{line[:300]}\n" for line in pool.log().splitlines()[-TAIL:]))
                raise

    def scalar(self, statement: str, *parameters: Any) -> Any:
        row = self.connection.execute(statement.encode(), parameters).fetchone()
        assert row is not None
        return row[0]

    def rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.connection.execute(statement.encode(), parameters).fetchall()

    @property
    def is_quiet(self) -> bool:
        """Whether nothing waits and nothing is leased."""
        return bool(
            self.scalar(
                "select not exists (select from pgworker.job_queue) and not exists (select from pgworker.job_leases)"
            )
        )

    def wait_until_quiet(self, within: float = 60) -> None:
        eventually(lambda: self.is_quiet, self.describe, within)

    def describe(self) -> str:
        waiting = self.scalar("select count(*) from pgworker.job_queue")
        leases = self.rows(
            "select lease_id, pid, claimed_at, expires_at, job_ids[1], executions[1], cardinality(job_ids)"
            " from pgworker.job_leases left join pgworker.worker_heartbeats using (worker_id)"
        )
        return f"quiet, not {waiting} waiting and the leases {leases}, with {self.rows(_BUSY)}"

    def wait_for_starts(self, count: int) -> None:
        """Until the ledger has so many records; a job that waits has written one."""
        ledger = self.directory / "ledger"
        eventually(lambda: ledger.exists() and ledger.stat().st_size >= 25 * count, f"{count} records")

    def offences(self) -> Figure:
        """The invariants of what is stored, as a figure."""
        return none_of("invariants broken", sum(map(len, offences(self.connection, STORED).values())))


@contextmanager
def ground(bench: Bench, name: str = "") -> Iterator[Ground]:
    """A migrated database of its own with the tables of witnesses, and a directory of its own."""
    directory = bench.directory / name if name else bench.directory
    directory.mkdir(exist_ok=True)
    with own_database(bench.server.dsn) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(WITNESSES.encode())
        connection.execute(TABLES.encode())
        yield Ground(dsn, connection, directory)


@contextmanager
def gate(ground: Ground, name: str) -> Iterator[Path]:
    """A closed gate of this name; whoever still waits at its end goes on."""
    path = ground.directory / name
    os.mkfifo(path)
    try:
        yield path
    finally:
        open_gate(path)


def open_gate(path: Path) -> None:
    """Let through who waits; who comes later finds no gate. The kernel remembers that there was a writer."""
    if path.exists():
        writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        path.unlink()
        os.close(writer)


def pause(seconds: float) -> None:
    """Let time pass that a fault takes, or that is between two of them."""
    time.sleep(seconds)


# -- figures


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest of them that so many percent don't exceed."""
    assert values, "nothing was measured"
    return sorted(values)[max(0, math.ceil(len(values) * part / 100) - 1)]


def none_of(name: str, found: int, among: str = "") -> Figure:
    """Something of which there must be none."""
    return Figure(name, "0", f"{found:,}{f' of {among}' if among else ''}", found == 0)


def told(name: str, found: str) -> Figure:
    """A number without a promise."""
    return Figure(name, "-", found, None)


def durations(name: str, promised: float | None, seconds: Sequence[float], part: float = 99) -> Figure:
    """Seconds as p50, p99 and the longest; at most `part` percent of them may be longer than what is promised."""
    p50, p99, longest = percentile(seconds, 50), percentile(seconds, 99), max(seconds)
    found = f"p50 {p50:.2f} p99 {p99:.2f} max {longest:.2f} s (n={len(seconds)})"
    if promised is None:
        return told(name, found)
    return Figure(name, f"p{part:g} < {promised:g} s", found, percentile(seconds, part) < promised)
