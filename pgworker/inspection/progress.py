"""Progress: how far a job is, as it says itself."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.errors import JobNotFound
from pgworker.model.payload import decode
from pgworker.model.progress import Progress
from pgworker.model.state import Status
from pgworker.sql.load import query

_ENDED = (Status.SUCCEEDED, Status.CANCELLED)


def read_progress(connection: Connection[Any], job_id: UUID) -> Progress | None:
    """What a job said last; None: nothing, or it has ended for good. Raises JobNotFound."""
    status, execution, fraction, message, checkpoint, updated_at = connection.execute(
        query("find_progress"), {"job_id": job_id}
    ).fetchall()[0]
    if status is None:
        raise JobNotFound.of(job_id)
    if execution is None or Status(status) in _ENDED:
        return None
    return Progress(execution, fraction, message, None if checkpoint is None else decode(checkpoint), updated_at)
