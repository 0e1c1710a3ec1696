"""Cancel: a waiting job ends at once, a running one is asked to stop."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.errors import JobNotFound
from pgworker.lifecycle.transaction import read_committed
from pgworker.model.state import CancelAnswer
from pgworker.sql.load import query

_ROUNDS = 3


def cancel_job(connection: Connection[Any], job_id: UUID) -> CancelAnswer:
    """Cancel one job. Raises JobNotFound. The connection must be in autocommit mode.

    Each look has its own snapshot, and there are up to three rounds: a job whose claim or failure commits between two
    looks is in neither place the first time.
    """
    if not connection.autocommit:
        raise ValueError("cancel_job needs a connection in autocommit mode: each look must be a new snapshot")
    for _ in range(_ROUNDS):
        if connection.execute(query("cancel_waiting_jobs"), {"job_ids": [job_id]}).fetchone():
            return CancelAnswer.CANCELLED
        if _ask_to_stop(connection, job_id):
            return CancelAnswer.REQUESTED
    row = connection.execute("select pgworker.job_status(%s)", [job_id]).fetchone()
    if row is None or row[0] is None:
        raise JobNotFound.of(job_id)
    return CancelAnswer.TOO_LATE


def _ask_to_stop(connection: Connection[Any], job_id: UUID) -> bool:
    """Whether a lease runs this job and is marked now. Marked under the lock that settles wait for, so that one which
    came first is seen, and one which comes later sees the mark."""
    with read_committed(connection) as cursor:
        lease_ids = [row[0] for row in cursor.execute(query("lock_leases_of_job"), {"job_id": job_id}).fetchall()]
        if not lease_ids:
            return False
        cursor.execute(query("cancel_running_job"), {"job_id": job_id, "lease_ids": lease_ids})
        return cursor.rowcount > 0
