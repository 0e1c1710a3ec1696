"""What is done to running jobs from outside: one loses its worker to kill -9, one is cancelled."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from uuid import UUID

from pgworker.db.connect import Connection
from pgworker.demo.plan import Plan, PlannedJob
from pgworker.demo.progress import Progress
from pgworker.lifecycle.cancel import cancel_job


class Trouble:
    """Comes to each of the two as soon as it says that it runs."""

    def __init__(self, plan: Plan, jobs: Mapping[UUID, PlannedJob], connection: Connection, progress: Progress) -> None:
        self._plan = plan
        self._cancelled_id = next(job_id for job_id, job in jobs.items() if job is plan.cancelled)
        self._connection = connection
        self._progress = progress
        self._has_cancelled = False
        self.killed_pid: int | None = None
        """The worker that was killed."""

    def make(self) -> None:
        """Do what there is to do by now."""
        if self.killed_pid is None and (pid := _read_pid(self._plan.victim)) is not None:
            with suppress(ProcessLookupError):  # it died by another hand, and the checks will say so
                os.kill(pid, signal.SIGKILL)
            self.killed_pid = pid
            self._progress.tell(f"kill -9 {pid}, a worker between the write of a job and its commit")
        if not self._has_cancelled and _read_pid(self._plan.cancelled) is not None:
            cancel_job(self._connection, self._cancelled_id)
            self._has_cancelled = True
            self._progress.tell(f"cancel of a {self._plan.cancelled.task} that runs")


def _read_pid(job: PlannedJob) -> int | None:
    """The process that runs this job, once it says so."""
    assert job.note is not None
    try:
        return int(job.note.read_text() or 0) or None
    except FileNotFoundError:
        return None
