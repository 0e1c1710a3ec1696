"""Dead letters: jobs that used up their attempts or failed for good, and what an operator does with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.sql.load import query


@dataclass(frozen=True, slots=True)
class DeadLetterRow:
    """A job that was given up; `payload` and `error` are JSON text."""

    job_id: UUID
    queue: str
    task: str
    org_id: str | None
    died_at: datetime
    execution: int
    failures: int
    max_attempts: int
    outcome: str
    payload: str
    error: str | None
    cause: str | None


def list_dead_letters(
    connection: Connection[Any],
    *,
    queue: str | None = None,
    task: str | None = None,
    org_id: str | None = None,
    limit: int = 100,
) -> list[DeadLetterRow]:
    """The latest dead letters first."""
    parameters = {"queue": queue, "task": task, "org_id": org_id, "limit": limit}
    rows = connection.execute(query("list_dead_letters"), parameters).fetchall()
    return [DeadLetterRow(*row) for row in rows]


def requeue_dead_letters(connection: Connection[Any], job_ids: Sequence[UUID]) -> list[UUID]:
    """Run these again at once: failures count from 0, execution numbers go on. Returns those that were there.

    Waits while expired partitions are being dropped: the job's own row must not go after we have relied on it.
    """
    with connection.transaction():
        connection.execute(query("hold_partitions"))
        rows = connection.execute(query("requeue_dead_letters"), {"job_ids": list(job_ids)}).fetchall()
    return [row[0] for row in rows]


def discard_dead_letters(connection: Connection[Any], job_ids: Sequence[UUID]) -> list[UUID]:
    """Give these up for good; their jobs count as cancelled. Returns those that were there."""
    rows = connection.execute(query("discard_dead_letters"), {"job_ids": list(job_ids)}).fetchall()
    return [row[0] for row in rows]
