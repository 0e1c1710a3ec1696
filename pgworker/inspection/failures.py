"""What went wrong lately: executions that were charged against their job, and jobs that were given up."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.inspection.queues import Count
from pgworker.inspection.snapshot import go_by_index, snapshot
from pgworker.model.failure import why_failed
from pgworker.sql.load import query

_LETTERS = 1000
"""How much of a message or a cause is read."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An execution that failed, timed out or crashed, or a job that was given up with this one, at `at`.

    `task` and `queue` are empty where retention has dropped the job.
    """

    job_id: UUID
    execution: int
    task: str
    queue: str
    outcome: str
    at: datetime
    error_type: str | None
    message: str | None
    cause: str | None

    @property
    def why(self) -> str:
        """`ValueError: no such order`, or what its worker died of."""
        return why_failed(self.outcome, {"type": self.error_type, "message": self.message}, self.cause)


def list_failures(connection: Connection[Any], *, limit: int) -> list[Failure]:
    """The latest executions that failed, timed out or crashed, the last one first."""
    with snapshot(connection):
        go_by_index(connection)
        rows = connection.execute(query("list_failures"), {"limit": limit, "letters": _LETTERS}).fetchall()
    return [Failure(*row) for row in rows]


def count_failures(connection: Connection[Any], *, seconds: float, cap: int) -> Count:
    """How many executions failed, timed out or crashed in the last seconds; counting stops at `cap`."""
    with snapshot(connection):
        go_by_index(connection)
        seen = connection.execute(query("count_failures"), {"seconds": seconds, "cap": cap}).fetchall()[0][0]
    return Count(min(seen, cap), seen > cap)


def list_given_up(connection: Connection[Any], *, limit: int) -> list[Failure]:
    """The latest dead letters, the last one first."""
    rows = connection.execute(query("list_given_up"), {"limit": limit, "letters": _LETTERS}).fetchall()
    return [Failure(*row) for row in rows]
