"""Cancel: a waiting job ends at once, a running one is asked to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.pq import TransactionStatus

from pgworker.db.plan import plan_for_these
from pgworker.db.status import read_status
from pgworker.lifecycle.transaction import in_time, read_committed
from pgworker.model.selection import JobFilter
from pgworker.model.state import CancelAnswer
from pgworker.sql.load import query

_ROUNDS = 3

_OPEN = (TransactionStatus.ACTIVE, TransactionStatus.INTRANS, TransactionStatus.INERROR)

BATCH = 10_000
"""Waiting jobs that are cancelled in one transaction."""


@dataclass(frozen=True, slots=True)
class CancelCounts:
    """What a cancel of many achieved: so many waited and will never run, so many run and were asked to stop."""

    cancelled: int = 0
    requested: int = 0


def cancel_job(connection: Connection[Any], job_id: UUID) -> CancelAnswer:
    """Cancel one job. Raises JobNotFound. The connection must be in autocommit mode.

    Each look has its own snapshot, and there are up to three rounds: a job whose claim or failure commits between two
    looks is in neither place the first time.
    """
    require_autocommit(connection, "cancel_job")
    for _ in range(_ROUNDS):
        if cancel_waiting_job(connection, job_id):
            return CancelAnswer.CANCELLED
        if _ask_to_stop(connection, job_id):
            return CancelAnswer.REQUESTED
    read_status(connection, job_id)
    return CancelAnswer.TOO_LATE


def cancel_waiting_job(connection: Connection[Any], job_id: UUID) -> bool:
    """Cancel one job if it waits; whether it did."""
    with in_time(connection):
        cursor = connection.execute(query("cancel_waiting_jobs"), {"job_ids": [job_id]})
    return cursor.fetchone() is not None


def cancel_jobs(
    connection: Connection[Any],
    chosen: JobFilter,
    *,
    on_progress: Callable[[CancelCounts], object] = lambda _: None,
) -> CancelCounts:
    """Cancel all jobs that match, in many small transactions; the connection must be in autocommit mode.

    What is enqueued meanwhile may or may not be among them. A second round finds what went from one place to the other
    behind our back, a third what did so again. `on_progress` is told after each transaction what there was so far; an
    error that it raises ends the cancel, and what was done stays done.
    """
    require_autocommit(connection, "cancel_jobs")
    counts = CancelCounts()
    for round_ in range(1, _ROUNDS + 1):
        before = counts
        if chosen.waiting:
            for jobs in cancel_waiting(connection, chosen, "cancelled while it waited"):
                counts = CancelCounts(counts.cancelled + jobs, counts.requested)
                on_progress(counts)
        if chosen.running:
            for jobs in _ask_all_to_stop(connection, chosen):
                counts = CancelCounts(counts.cancelled, counts.requested + jobs)
                on_progress(counts)
        if round_ > 1 and counts == before:
            break
    return counts


def cancel_waiting(connection: Connection[Any], chosen: JobFilter, cause: str, *, batch: int = BATCH) -> Iterator[int]:
    """End all waiting jobs that match, batch by batch in the order of the claim index; yields how many each had."""
    place = {"after_queue": "", "after_priority": 0, "after_run_at": "-infinity", "after_id": UUID(int=0)}
    while True:
        with read_committed(connection) as cursor:
            plan_for_these(connection)
            parameters = {**chosen.parameters(), **place, "cause": cause, "limit": batch}
            row = cursor.execute(query("cancel_matching_jobs"), parameters, prepare=False).fetchone()
        if row is None:
            return
        jobs, *last = row
        yield jobs
        if jobs < batch:
            return
        place = dict(zip(place, last, strict=True))


def require_autocommit(connection: Connection[Any], function: str) -> None:
    """ValueError unless each statement is a transaction of its own."""
    if not connection.autocommit or connection.info.transaction_status in _OPEN:
        raise ValueError(f"{function} needs autocommit mode and no open transaction: each look must be a new snapshot")


def _ask_to_stop(connection: Connection[Any], job_id: UUID) -> bool:
    """Whether a lease runs this job and is marked now. Marked under the lock that settles wait for, so that one which
    came first is seen, and one which comes later sees the mark."""
    with read_committed(connection) as cursor:
        lease_ids = [row[0] for row in cursor.execute(query("lock_leases_of_job"), {"job_id": job_id}).fetchall()]
        if not lease_ids:
            return False
        cursor.execute(query("cancel_running_job"), {"job_id": job_id, "lease_ids": lease_ids})
        return cursor.rowcount > 0


def _ask_all_to_stop(connection: Connection[Any], chosen: JobFilter) -> Iterator[int]:
    """Mark what runs and matches, lease by lease, as above; yields how many marks each got.

    One lease per transaction: while we wait for a settle that hangs, no other lease is held up by us.
    """
    leases = connection.execute(query("find_matching_leases"), chosen.parameters(), prepare=False).fetchall()
    for (lease_id,) in leases:
        parameters = {**chosen.parameters(), "lease_id": lease_id}
        with read_committed(connection) as cursor:
            cursor.execute(query("lock_lease"), parameters)
            row = cursor.execute(query("cancel_running_jobs"), parameters, prepare=False).fetchone()
        if row is not None:
            yield row[0]
