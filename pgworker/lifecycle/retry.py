"""Retry: whatever keeps a job from running now is taken away, if it has not ended for good."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.db.status import read_status
from pgworker.lifecycle.cancel import require_autocommit
from pgworker.lifecycle.dead_letters import requeue_dead_letters
from pgworker.lifecycle.hasten import hasten_jobs
from pgworker.model.state import RetryAnswer, Status

_ROUNDS = 3

_ANSWERS = {
    Status.PENDING: RetryAnswer.WAITING,
    Status.SCHEDULED: RetryAnswer.WAITING,
    Status.FAILED: RetryAnswer.WAITING,
    Status.RUNNING: RetryAnswer.RUNNING,
    Status.SUCCEEDED: RetryAnswer.SUCCEEDED,
    Status.CANCELLED: RetryAnswer.CANCELLED,
    Status.DEAD_LETTER: RetryAnswer.RUNNING,  # it was a moment ago, each time
    Status.LOST: RetryAnswer.LOST,
}

_STAYS = (Status.RUNNING, Status.SUCCEEDED, Status.CANCELLED)
"""Another look would find the same, or come too late."""


def retry_job(connection: Connection[Any], job_id: UUID) -> RetryAnswer:
    """Run a job now that waits for a later time, or was given up. Raises JobNotFound. In autocommit mode only.

    One that has succeeded or was cancelled stays as it is: whoever waited for it has been told, and what it did in its
    own transaction it must not do twice. Up to three rounds: one on its way from one place to the other is in neither.
    """
    require_autocommit(connection, "retry_job")
    answer = RetryAnswer.LOST
    for _ in range(_ROUNDS):
        if hasten_jobs(connection, [job_id]):
            return RetryAnswer.DUE
        if requeue_dead_letters(connection, [job_id]):
            return RetryAnswer.REQUEUED
        status = read_status(connection, job_id)
        answer = _ANSWERS[status]
        if status in _STAYS:
            break
    return answer
