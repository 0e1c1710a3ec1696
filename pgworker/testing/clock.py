"""A clock that leaps from one scheduled job to the next."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.inspection.database import read_clock
from pgworker.inspection.waiting import WaitingJob
from pgworker.lifecycle.hasten import hasten_jobs

_Turn = tuple[UUID, int]
"""A job, and the number of the execution that it waits for."""


class Clock:
    """Runs ahead of the database's, by as much as the leaps so far, up to `until`; None: it does not leap.

    What a job enqueues after a leap, or its retry, is due as much later: a job that enqueues itself for an hour later
    runs 24 times a day, not for ever.
    """

    def __init__(self, until: datetime | None) -> None:
        self._until = until
        self._ahead = timedelta(0)
        self._due: dict[_Turn, datetime] = {}
        self._over: set[_Turn] = set()

    def leap(
        self,
        connection: Connection[Any],
        waiting: Sequence[WaitingJob],
        queues: Collection[str],
        tasks: Collection[str],
    ) -> bool:
        """To when the next of `waiting` in these queues and of these tasks falls due, which is then due in the
        database; False: none does until the end."""
        if self._until is None:
            return False
        turns = [(job.id, job.execution) for job in waiting if job.queue in queues and job.task in tasks]
        for job in waiting:
            self._due.setdefault((job.id, job.execution), job.run_at + self._ahead)
        due = {turn: self._due[turn] for turn in turns if turn not in self._over}
        at = min(due.values(), default=None)
        if at is None or at > self._until:
            return False
        self._ahead = max(self._ahead, at - read_clock(connection))
        now_due = {turn for turn in due if due[turn] == at}
        self._over |= now_due  # once: in a paused queue it stays
        hasten_jobs(connection, [job_id for job_id, _ in now_due])
        return True
