"""Release: what was claimed and not started goes back, uncharged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.db.plan import by_index
from pgworker.sql.load import query


@dataclass(frozen=True, slots=True)
class Returned:
    """Jobs that went back into one lane, and the first of them."""

    queue: str
    priority: int
    run_at: datetime
    job_id: UUID
    jobs: int


@dataclass(frozen=True, slots=True)
class ReleaseAnswer:
    """`is_busy`: the lease is being settled or taken by somebody else, and is as it was; ask again."""

    lanes: Sequence[Returned]
    is_busy: bool


def release_jobs(connection: Connection[Any], lease_id: UUID, first: int) -> ReleaseAnswer:
    """Give positions `first`.. of a lease back; from 1 the whole lease. What is no longer there is no error."""
    with by_index(connection):
        rows = connection.execute(query("release_jobs"), {"lease_id": lease_id, "first": first}).fetchall()
    return ReleaseAnswer([Returned(*row[1:6]) for row in rows if row[1] is not None], is_busy=rows[0][0])
