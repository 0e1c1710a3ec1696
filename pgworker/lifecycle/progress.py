"""Progress: what running jobs say of themselves, and the checkpoint that their next execution begins from.

Its row goes when the job ends for good: in the same statement with whatever cancels, releases or discards it; after a
settle or reclaim by `forget_progress`, as only few jobs say anything, and those that don't shall not pay for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.model.progress import ProgressUpdate
from pgworker.sql.load import query


def save_progress(connection: Connection[Any], lease_id: UUID, updates: Mapping[int, ProgressUpdate]) -> None:
    """Store what the jobs in these positions of a lease said last. Of what is not ours any more, nothing is stored.

    Fit for large tables in `one_trip`, or `by_index`.
    """
    connection.execute(
        query("save_progress"),
        {
            "lease_id": lease_id,
            "positions": list(updates),
            "fractions": [one.fraction for one in updates.values()],
            "messages": [one.message for one in updates.values()],
            "checkpoints": [one.checkpoint for one in updates.values()],
        },
    )


def forget_progress(connection: Connection[Any], job_ids: Sequence[UUID]) -> None:
    """Drop it for those of the jobs that have ended for good, after whatever has recorded that.

    Fit for large tables in `one_trip`, or `by_index`.
    """
    connection.execute(query("forget_progress"), {"job_ids": list(job_ids)})


def prune_progress(connection: Connection[Any]) -> None:
    """Drop what is a day old, of jobs that are nowhere."""
    connection.execute(query("prune_progress"))
