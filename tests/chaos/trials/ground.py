"""What trials stand on: databases, with witnesses or without, pools, gates, and what goes on beside them."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from pgworker.bench.ground import own_database
from pgworker.db.roles import make_roles
from pgworker.model.job import JobRequest
from tests.chaos.trials.apps.jobs import app
from tests.chaos.trials.figures import invariants
from tests.chaos.trials.ledgers import NAME, RECORD, TABLES
from tests.chaos.trials.trial import Bench, Figure
from tests.process.pool import Pool, eventually, start
from tests.sql.actors import ask
from tests.sql.invariants import WITNESSES

APP = "tests.chaos.trials.apps.jobs:app"
READY = "the pool is ready"
PATIENCE = 100.0
"""Seconds in which something ends while there are jobs, on whatever machine; fewer than pytest gives to a test."""
TAIL = 25
"""Lines of the log of a pool that are shown when a trial breaks off."""

_QUIET = "select not exists (select from pgworker.job_queue) and not exists (select from pgworker.job_leases)"
_MOVES = """
    select (select count(*) from pgworker.job_queue), array(select lease_id from pgworker.job_leases order by lease_id)
"""
_BUSY = """
    select application_name, state, clock_timestamp() - state_change, left(query, 60) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and xact_start < clock_timestamp() - interval '1 s'
"""

_logins = itertools.count()


@contextmanager
def database(bench: Bench) -> Iterator[tuple[str, Connection[Any]]]:
    """A migrated database on the bench's server: its DSN, and a connection in autocommit mode."""
    with own_database(bench.server.dsn) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        yield dsn, connection


@contextmanager
def running_pool(dsn: str, log_file: Path, *, ready: bool = True, **settings: Any) -> Iterator[Pool]:
    """A pool, killed at the end; the end of its log is shown if anything goes wrong."""
    with start(dsn, log_file, quiet=True, **settings) as started:
        try:
            if ready:
                started.wait_for_log(READY)
            yield started
        except BaseException:
            sys.stdout.write("".join(f"{line[:300]}\n" for line in started.log().splitlines()[-TAIL:]))
            raise


def scalar(connection: Connection[Any], statement: str, *parameters: Any) -> Any:
    """The only value of a statement."""
    [value] = ask(connection, statement, *parameters)
    return value


def is_quiet(connection: Connection[Any]) -> bool:
    """Whether nothing waits and nothing is leased."""
    return bool(scalar(connection, _QUIET))


def wait_until_quiet(connection: Connection[Any], within: float = PATIENCE) -> None:
    """AssertionError once nothing has moved for so many seconds."""
    seen, moved = None, time.monotonic()
    while not is_quiet(connection):
        here = ask(connection, _MOVES)
        if here != seen:
            seen, moved = here, time.monotonic()
        assert time.monotonic() - moved < within, f"not within {within:g} s: {describe(connection)}"
        time.sleep(0.01)


def describe(connection: Connection[Any]) -> str:
    """What is not quiet."""
    waiting = scalar(connection, "select count(*) from pgworker.job_queue")
    leases = ask(
        connection,
        "select lease_id, pid, claimed_at, expires_at, job_ids[1], executions[1], cardinality(job_ids)"
        " from pgworker.job_leases left join pgworker.worker_heartbeats using (worker_id)",
    )
    return f"quiet, not {waiting} waiting and the leases {leases}, with {ask(connection, _BUSY)}"


@dataclass(slots=True)
class Ground:
    """A database with witnesses and a directory; what was enqueued is remembered here, not in the database."""

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
    def pool(self, **settings: Any) -> Iterator[Pool]:
        """A pool of `apps.jobs`."""
        log = self.directory / f"pool{next(self._pools)}.log"
        with running_pool(self.dsn, log, **{"app": APP, "cwd": self.directory, **settings}) as started:
            yield started

    def scalar(self, statement: str, *parameters: Any) -> Any:
        return scalar(self.connection, statement, *parameters)

    def rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.connection.execute(statement.encode(), parameters).fetchall()

    @property
    def is_quiet(self) -> bool:
        return is_quiet(self.connection)

    def wait_until_quiet(self, within: float = 60) -> None:
        wait_until_quiet(self.connection, within)

    def describe(self) -> str:
        return describe(self.connection)

    def starts(self) -> int:
        """How many records the ledger has; a job that waits has written one."""
        ledger = self.directory / NAME
        return ledger.stat().st_size // RECORD.size if ledger.exists() else 0

    def wait_for_starts(self, count: int) -> None:
        eventually(lambda: self.starts() >= count, f"{count} records")

    def offences(self) -> Figure:
        """The invariants of what is stored, as a figure."""
        return invariants(self.connection)


@contextmanager
def ground(bench: Bench, name: str = "") -> Iterator[Ground]:
    """A migrated database of its own with the tables of witnesses, and a directory of its own."""
    directory = bench.directory / name if name else bench.directory
    directory.mkdir(exist_ok=True)
    with database(bench) as (dsn, connection):
        connection.execute(WITNESSES.encode())
        connection.execute(TABLES.encode())
        yield Ground(dsn, connection, directory)


@contextmanager
def logins(dsn: str) -> Iterator[Callable[..., str]]:
    """pgworker's roles, and `login("pgworker_worker")`: the DSN of a new one with this role. Gone afterwards."""
    make_roles(dsn)
    made: list[str] = []

    def run(*statements: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def make(*roles: str) -> str:
        made.append(name := f"trial_{next(_logins)}")
        run(f"create role {name} login", *(f"grant {role} to {name}" for role in roles))
        return make_conninfo(dsn, user=name)

    yield make
    for name in made:
        run(f"drop owned by {name}", f"drop role {name}")


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
    time.sleep(max(0.0, seconds))


@contextmanager
def meanwhile(act: Callable[[Event], None]) -> Iterator[None]:
    """Inside, `act` runs in a thread, until its event is set; what it raises, this does at the end.

    Also where something else went wrong: that is most often what came of it.
    """
    is_over = Event()
    with ThreadPoolExecutor(1) as threads:
        acting = threads.submit(act, is_over)
        try:
            yield
        finally:
            is_over.set()
            acting.result()
