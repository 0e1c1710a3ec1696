"""What becomes of the jobs that go wrong, told as it happens: read from their executions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from uuid import UUID

from pgworker.db.connect import Connection
from pgworker.demo import jobs
from pgworker.demo.evidence import Execution, read_ended
from pgworker.demo.plan import PlannedJob
from pgworker.demo.progress import Progress
from pgworker.model.state import Outcome, Status

_EXPECTED = (Outcome.SUCCEEDED,)


class News:
    """Tells of each execution of such a job once; of several of one task that end together in one line."""

    def __init__(self, planned: Mapping[UUID, PlannedJob], connection: Connection, progress: Progress) -> None:
        self._jobs = {job_id: job for job_id, job in planned.items() if job.outcomes != _EXPECTED}
        self._connection = connection
        self._progress = progress
        self._told: set[tuple[UUID, int]] = set()

    def look(self) -> None:
        """Tell what has happened since the last look."""
        lines: Counter[str] = Counter()
        for job_id, run in read_ended(self._connection, list(self._jobs)):
            if (job_id, run.number) not in self._told:
                self._told.add((job_id, run.number))
                lines[_line(self._jobs[job_id], run)] += 1
        for line, times in lines.items():
            self._progress.tell(f"{times} x {line}" if times > 1 else line)


def _line(job: PlannedJob, run: Execution) -> str:
    if run.outcome == Outcome.SUCCEEDED:
        return f"{job.task} succeeded when it ran again"
    if run.outcome == Outcome.CANCELLED:
        return f"{job.task} has stopped, as it was asked to"
    if run.outcome == Outcome.FAILED:
        after = "a dead letter" if job.status is Status.DEAD_LETTER else "it runs again"
        kind = str((run.error or {}).get("type", "for no reason")).rpartition(".")[2]
        return f"{job.task} failed, {kind}: {after}"
    late = f" after {jobs.HANG_TIMEOUT:g} s" if run.outcome == Outcome.TIMED_OUT else ""
    return f"{job.task} {run.outcome.replace('_', ' ')}{late}: {run.cause}"
