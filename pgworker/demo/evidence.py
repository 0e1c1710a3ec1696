"""What the database says about the jobs of the demo: read from the tables and views that anyone can read with psql."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from pgworker.db.connect import Connection
from pgworker.demo.files import FileFacts
from pgworker.model.state import Outcome

_TABLE = """\
create table if not exists public.demo_files
    (job_id uuid not null, path text not null, sha256 text not null, size bigint not null, lines integer not null,
     definitions integer)"""

_UNFINISHED = """\
select (select count(*) from pgworker.job_queue where job_id = any (%(ids)s)),
       (select coalesce(sum(cardinality(job_ids)), 0) from pgworker.job_leases where job_ids && %(ids)s)"""
_STATUSES = "select id, status from pgworker.job_status where id = any (%(ids)s)"
_EXECUTIONS = """\
select e.job_id, e.execution, e.outcome, e.error, e.result, e.cause
from pgworker.executions e where e.job_id = any (%(ids)s) order by e.job_id, e.execution"""
_ENDED = """\
select job_id, execution, outcome::text, error, null, cause
from pgworker.job_executions where job_id = any (%(ids)s) order by finished_at"""
_VERSIONS = """\
select split_part(current_setting('server_version'), ' ', 1), pgworker.schema_version()"""
_ROWS = "select job_id, path, sha256, size, lines, definitions from public.demo_files where job_id = any (%(ids)s)"
_WORKERS = """\
select pid, ended_how from pgworker.worker_heartbeats where started_at >= %(begun)s order by ended_at, worker_id"""


@dataclass(frozen=True, slots=True)
class Execution:
    """One execution; `outcome` is `running` while a lease holds it. `result` and `error` are decoded JSON."""

    number: int
    outcome: str
    error: dict[str, Any] | None
    result: Any
    cause: str | None

    @property
    def is_uncharged(self) -> bool:
        """Whether it ended for reasons that were not its own."""
        return self.outcome in (Outcome.LOST, Outcome.RELEASED)


@dataclass(frozen=True, slots=True)
class Row:
    """What the transaction of one job has written."""

    job_id: UUID
    path: str
    facts: FileFacts


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process of the pool. No `ended_how`: for all that is known it still runs."""

    pid: int
    ended_how: str | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the checks look at, as it was after the pool had ended."""

    statuses: dict[UUID, str]
    executions: dict[UUID, list[Execution]]
    rows: list[Row]
    waiting: int
    leased: int
    workers: list[Worker]


def make_table(connection: Connection) -> None:
    """Where the transactions of jobs write to. It takes the same row twice, so that a second one would show."""
    connection.execute(_TABLE)


def read_clock(connection: Connection) -> datetime:
    """The database's time, before which nothing of this demo has started."""
    now: datetime = connection.execute("select clock_timestamp()").fetchall()[0][0]
    return now


def count_unfinished(connection: Connection, ids: Sequence[UUID]) -> tuple[int, int]:
    """How many jobs wait, and how many are in a lease; some of the latter may have ended already."""
    waiting, leased = connection.execute(_UNFINISHED, {"ids": list(ids)}).fetchall()[0]
    return int(waiting), int(leased)


def read_ended(connection: Connection, ids: Sequence[UUID]) -> list[tuple[UUID, Execution]]:
    """The executions of these jobs that have ended so far, in this order, without their results."""
    return [(job_id, Execution(*values)) for job_id, *values in connection.execute(_ENDED, {"ids": list(ids)})]


def read_versions(connection: Connection) -> tuple[str, int]:
    """PostgreSQL's, and that of our schema."""
    server, schema = connection.execute(_VERSIONS).fetchall()[0]
    return str(server), int(schema)


def gather(connection: Connection, ids: Sequence[UUID], begun: datetime) -> Evidence:
    """Everything about these jobs, and about the workers that started since `begun`."""
    named = {"ids": list(ids)}
    executions: dict[UUID, list[Execution]] = {}
    for job_id, *values in connection.execute(_EXECUTIONS, named):
        executions.setdefault(job_id, []).append(Execution(*values))
    waiting, leased = count_unfinished(connection, ids)
    return Evidence(
        statuses=dict(connection.execute(_STATUSES, named).fetchall()),
        executions=executions,
        rows=[Row(job_id, path, FileFacts(*facts)) for job_id, path, *facts in connection.execute(_ROWS, named)],
        waiting=waiting,
        leased=leased,
        workers=[Worker(*row) for row in connection.execute(_WORKERS, {"begun": begun})],
    )
