"""What waits, all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.db.adapters import OwnCursor
from pgworker.sql.load import query


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A job in its queue. `execution` is the number that its next execution gets; `failures` were charged so far."""

    id: UUID
    task: str
    queue: str
    priority: int
    run_at: datetime
    org_id: str | None
    execution: int
    failures: int
    payload: Mapping[str, Any]


def list_waiting_jobs(connection: Connection[Any]) -> list[WaitingJob]:
    """In the order of their ids. Reads them all: for tests, and queues that are known to be small."""
    with OwnCursor(connection) as cursor:
        return [WaitingJob(*row) for row in cursor.execute(query("list_waiting_jobs")).fetchall()]
