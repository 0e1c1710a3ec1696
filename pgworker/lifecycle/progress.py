"""Progress: what running jobs say of themselves, and the checkpoint that their next execution begins from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.model.progress import Progress, Said
from pgworker.sql.load import query

Place = tuple[UUID, int]
"""A lease and a position in it."""


def save_progress(connection: Connection[Any], said: Mapping[Place, Said]) -> None:
    """Store what the jobs in these places said last. What is under no lease any more is left out."""
    connection.execute(
        query("save_progress"),
        {
            "lease_ids": [lease_id for lease_id, _ in said],
            "positions": [position for _, position in said],
            "fractions": [progress.fraction for progress in said.values()],
            "messages": [progress.message for progress in said.values()],
            "checkpoints": [progress.checkpoint for progress in said.values()],
        },
    )


def forget_progress(connection: Connection[Any], job_ids: Sequence[UUID]) -> None:
    """Drop it for jobs that have ended for good; those that run again or are dead letters keep theirs."""
    connection.execute(query("forget_progress"), {"job_ids": list(job_ids)})


def prune_progress(connection: Connection[Any]) -> None:
    """Drop it for jobs that ended where nobody knew that they had said anything, a day after they said it."""
    connection.execute(query("prune_progress"))


def find_progress(connection: Connection[Any], job_id: UUID) -> Progress | None:
    """What this job said last; None: nothing, or it has ended for good."""
    row = connection.execute(query("find_progress"), {"job_id": job_id}).fetchone()
    return None if row is None else Progress(*row)
