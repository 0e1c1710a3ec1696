"""Jobs as people ask for them: a list of the newest, and everything that is known about one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.errors import JobNotFound
from pgworker.inspection.progress import read_progress
from pgworker.inspection.snapshot import snapshot
from pgworker.model.progress import Progress
from pgworker.model.state import Status
from pgworker.sql.load import query


@dataclass(frozen=True, slots=True)
class JobSummary:
    """One line of a list. `age` is in seconds since the enqueue, by the database's clock."""

    id: UUID
    status: str
    queue: str
    task: str
    org_id: str | None
    priority: int
    created_at: datetime
    run_at: datetime
    execution: int
    failures: int
    max_attempts: int
    last_outcome: str | None
    finished_at: datetime | None
    cause: str | None
    age: float


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as stored; `payload` and `headers` are JSON text, `timeout` is in seconds, `seen_at`: when it was read."""

    id: UUID
    status: str
    queue: str
    task: str
    org_id: str | None
    priority: int
    max_attempts: int
    failures: int
    timeout: float | None
    created_at: datetime
    run_at: datetime
    payload: str
    headers: str | None
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class ExecutionRecord:
    """One ended execution; `error` and `result` are JSON text. Without `host`: its worker is unknown by now."""

    execution: int
    outcome: str
    failures: int
    started_at: datetime | None
    finished_at: datetime
    cause: str | None
    error: str | None
    result: str | None
    worker_id: UUID | None
    host: str | None
    pid: int | None
    worker_number: int | None


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    """Who holds a job: a worker claims several at a time and runs them in order of `position`, from 1 to `claimed`.

    `started_at` None: it had not started when its worker last beat.
    """

    execution: int
    failures: int
    position: int
    claimed: int
    cancel_requested: bool
    claimed_at: datetime
    expires_at: datetime
    lease_id: UUID
    worker_id: UUID
    host: str | None
    pid: int | None
    worker_number: int | None
    beat_at: datetime | None
    ended_how: str | None
    started_at: datetime | None


@dataclass(frozen=True, slots=True)
class JobDetail:
    """A job, who holds it, what it said of how far it is, and its latest executions, the last one first."""

    job: JobRecord
    claim: ClaimRecord | None
    progress: Progress | None
    executions: list[ExecutionRecord]

    @property
    def failures(self) -> int:
        """Charged so far. A requeued dead letter starts from 0 again, which only its claim knows while it runs."""
        return self.job.failures if self.claim is None else self.claim.failures


def list_jobs(
    connection: Connection[Any],
    *,
    queue: str | None = None,
    task: str | None = None,
    org_id: str | None = None,
    statuses: Sequence[Status] = (),
    before: UUID | None = None,
    limit: int = 20,
) -> list[JobSummary]:
    """The newest jobs first, or the newest before one of them; no statuses: all.

    LOST reads the whole history, the others what they need.
    """
    parameters = {
        "queue": queue,
        "task": task,
        "org_id": org_id,
        "statuses": [status.value for status in statuses] or None,
        "before": before,
        "limit": limit,
    }
    with snapshot(connection):
        rows = connection.execute(query("list_jobs"), parameters).fetchall()
    return [JobSummary(*row) for row in rows]


def show_job(connection: Connection[Any], job_id: UUID, *, executions: int = 100) -> JobDetail:
    """Everything about one job, its latest `executions` included, as of one moment. Raises JobNotFound."""
    with snapshot(connection):
        return read_job(connection, job_id, executions=executions)


def read_job(connection: Connection[Any], job_id: UUID, *, executions: int) -> JobDetail:
    """As `show_job`, in a snapshot of the caller's."""
    job = connection.execute(query("find_job"), {"job_id": job_id}).fetchone()
    if job is None:
        raise JobNotFound.of(job_id)
    claim = connection.execute(query("find_claim"), {"job_id": job_id}).fetchone()
    progress = read_progress(connection, job_id)
    ended = connection.execute(query("list_executions"), {"job_id": job_id, "limit": executions}).fetchall()
    return JobDetail(
        job=JobRecord(*job),
        claim=None if claim is None else ClaimRecord(*claim),
        progress=progress,
        executions=[ExecutionRecord(*row) for row in ended],
    )
