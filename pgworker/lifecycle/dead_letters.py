"""Dead letters: jobs that used up their attempts or failed for good, and what an operator does with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.lifecycle.transaction import read_committed
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


@dataclass(frozen=True, slots=True)
class DeadLetterHook:
    """What is enqueued when a job of `task` is given up. `timeout` is in seconds, None means none."""

    task: str
    handler: str
    queue: str
    priority: int
    max_attempts: int
    timeout: float | None


def declare_hooks(connection: Connection[Any], tasks: Sequence[str], hooks: Sequence[DeadLetterHook]) -> None:
    """From now on these are the hooks of `tasks`: others that they had are gone. Those of other tasks stay.

    A transaction of its own, on a connection in autocommit mode.
    """
    with read_committed(connection) as cursor:
        cursor.execute(query("lock_dead_letter_hooks"))
        cursor.execute(query("declare_dead_letter_hooks"), {"served": list(tasks), **_columns(hooks)})


def restore_hooks(connection: Connection[Any], hooks: Sequence[DeadLetterHook]) -> None:
    """Declare again what the server may have forgotten since; what others have declared for these tasks stays."""
    if hooks:
        connection.execute(query("restore_dead_letter_hooks"), _columns(hooks))


def _columns(hooks: Sequence[DeadLetterHook]) -> dict[str, list[Any]]:
    return {
        "tasks": [hook.task for hook in hooks],
        "handlers": [hook.handler for hook in hooks],
        "queues": [hook.queue for hook in hooks],
        "priorities": [hook.priority for hook in hooks],
        "max_attempts": [hook.max_attempts for hook in hooks],
        "timeouts_ms": [None if hook.timeout is None else round(hook.timeout * 1000) for hook in hooks],
    }


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
