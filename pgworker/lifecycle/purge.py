"""Purge: what waits in a queue goes, and its history says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psycopg import Connection

from pgworker.lifecycle.cancel import BATCH, cancel_waiting, require_autocommit
from pgworker.model.selection import JobFilter


def purge_queue(
    connection: Connection[Any],
    queue: str,
    *,
    task: str | None = None,
    org_id: str | None = None,
    batch: int = BATCH,
    on_progress: Callable[[int], object] = lambda _: None,
) -> int:
    """Cancel every job that waits in a queue, scheduled and failed ones too; returns how many there were.

    Each ends as `cancelled`, with the cause "purged". What is claimed or runs is left alone. At most `batch` jobs per
    transaction, and `on_progress` is told after each how many it were so far; an error that it raises ends the purge,
    and what is gone stays gone. The connection must be in autocommit mode. InvalidFilter for names that can't be.
    """
    require_autocommit(connection, "purge_queue")
    purged = 0
    for jobs in cancel_waiting(connection, JobFilter(queue=queue, task=task, org_id=org_id), "purged", batch=batch):
        purged += jobs
        on_progress(purged)
    return purged
