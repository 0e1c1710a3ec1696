"""The status of one job, for those who ask what it is and those who change it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.errors import JobNotFound
from pgworker.model.state import Status
from pgworker.sql.load import query


def read_status(connection: Connection[Any], job_id: UUID) -> Status:
    """Where a job stands. Raises JobNotFound."""
    status = connection.execute(query("read_status"), {"job_id": job_id}).fetchall()[0][0]
    if status is None:
        raise JobNotFound.of(job_id)
    return Status(status)
