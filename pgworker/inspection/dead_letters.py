"""Dead letters, without what they carry."""

from __future__ import annotations

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
