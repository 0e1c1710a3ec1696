"""Release: what was claimed and not started goes back, uncharged."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.sql.load import query


@dataclass(frozen=True, slots=True)
class Returned:
    """Jobs that went back into one lane, and the first of them."""

    queue: str
    priority: int
    run_at: datetime
    job_id: UUID
    jobs: int


def release_jobs(connection: Connection[Any], lease_id: UUID, first: int) -> list[Returned] | None:
    """Give positions `first`.. of a lease back; from 1 the whole lease. None: no such lease, or one being settled."""
    rows = connection.execute(query("release_jobs"), {"lease_id": lease_id, "first": first}).fetchall()
    if rows[0][0] == 0:
        return None
    return [Returned(*row[1:]) for row in rows if row[1] is not None]
