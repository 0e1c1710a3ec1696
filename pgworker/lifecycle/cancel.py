"""Cancel: a waiting job ends at once, a running one is asked to stop."""

from __future__ import annotations

from enum import Enum
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.errors import JobNotFound
from pgworker.sql.load import query

_ROUNDS = 3


class CancelAnswer(str, Enum):
    """What a cancel achieved."""

    CANCELLED = "cancelled"
    """it waited, and will never run"""
    REQUESTED = "requested"
    """it runs; its handler sees `ctx.cancelled`, and is killed after the grace"""
    TOO_LATE = "too late"
    """it had ended already"""


def cancel_job(connection: Connection[Any], job_id: UUID) -> CancelAnswer:
    """Cancel one job. Raises JobNotFound. The connection must be in autocommit mode.

    Two statements, each with its own snapshot, and up to three rounds: a job whose claim or failure commits between
    them is in neither place the first time.
    """
    if not connection.autocommit:
        raise ValueError("cancel_job needs a connection in autocommit mode: each look must be a new snapshot")
    for _ in range(_ROUNDS):
        if connection.execute(query("cancel_waiting_jobs"), {"job_ids": [job_id]}).fetchone():
            return CancelAnswer.CANCELLED
        if connection.execute(query("cancel_running_job"), {"job_id": job_id}).fetchone():
            return CancelAnswer.REQUESTED
    row = connection.execute("select pgworker.job_status(%s)", [job_id]).fetchone()
    if row is None or row[0] is None:
        raise JobNotFound(f"there is no job {job_id}: check the id, or its history was dropped by retention")
    return CancelAnswer.TOO_LATE
