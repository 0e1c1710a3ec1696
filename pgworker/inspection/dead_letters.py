"""Dead letters: how many, which, and all of one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.inspection.queues import COUNT_CAP, Count
from pgworker.sql.load import query


def count_dead_letters(connection: Connection[Any], *, cap: int = COUNT_CAP) -> Count:
    """How many there are; counting stops at `cap`."""
    seen = connection.execute(query("count_dead_letters"), {"cap": cap}).fetchall()[0][0]
    return Count(min(seen, cap), seen > cap)


def find_dead_letters(
    connection: Connection[Any],
    *,
    queue: str | None = None,
    task: str | None = None,
    org_id: str | None = None,
    until: datetime | None = None,
    limit: int = 1000,
) -> list[tuple[UUID, datetime]]:
    """Id and time of death of the latest dead letters that died at or before `until` (None: now), the latest first."""
    parameters = {"queue": queue, "task": task, "org_id": org_id, "until": until, "limit": limit}
    return connection.execute(query("find_dead_letters"), parameters).fetchall()


@dataclass(frozen=True, slots=True)
class DeadLetterDetail:
    """A job that was given up, and why; `payload`, `headers` and `error` are JSON text, `timeout` is in seconds.

    `hook`: the task that is enqueued whenever a job of this one's task is given up. `seen_at`: when it was read.
    """

    job_id: UUID
    queue: str
    task: str
    org_id: str | None
    priority: int
    created_at: datetime
    run_at: datetime
    died_at: datetime
    execution: int
    failures: int
    max_attempts: int
    timeout: float | None
    outcome: str
    payload: str
    headers: str | None
    error: str | None
    cause: str | None
    hook: str | None
    seen_at: datetime


def find_dead_letter(connection: Connection[Any], job_id: UUID) -> DeadLetterDetail | None:
    """The whole record of one; None: there is none."""
    row = connection.execute(query("find_dead_letter"), {"job_id": job_id}).fetchone()
    return None if row is None else DeadLetterDetail(*row)
