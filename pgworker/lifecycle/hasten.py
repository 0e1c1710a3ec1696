"""Hasten: what waits for a later time, scheduled or for its retry, is due now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.db.plan import plan_for_these
from pgworker.lifecycle.transaction import read_committed
from pgworker.sql.load import query

BATCH = 10_000
"""Jobs in one transaction."""


def hasten_jobs(connection: Connection[Any], job_ids: Sequence[UUID]) -> list[UUID]:
    """Those of these that waited for a later time; they are due now. What is due already keeps its place."""
    return [row[0] for row in connection.execute(query("hasten_jobs"), {"job_ids": list(job_ids)}).fetchall()]


def hasten_matching(
    connection: Connection[Any],
    *,
    queue: str | None = None,
    task: str | None = None,
    org_id: str | None = None,
    retries: bool = True,
    scheduled: bool = False,
    batch: int = BATCH,
) -> Iterator[int]:
    """All that match and wait for a later time, for a retry or as they were enqueued; yields how many each batch had.

    The connection must be in autocommit mode: each batch is a transaction of its own.
    """
    chosen = {"queue": queue, "task": task, "org_id": org_id, "retries": retries, "scheduled": scheduled}
    after = UUID(int=0)
    while True:
        with read_committed(connection) as cursor:
            plan_for_these(connection)
            parameters = {**chosen, "after": after, "limit": batch}
            jobs, last = cursor.execute(query("hasten_matching_jobs"), parameters, prepare=False).fetchall()[0]
        if not jobs:
            return
        yield jobs
        if jobs < batch:
            return
        after = last
