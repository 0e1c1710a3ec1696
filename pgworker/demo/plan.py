"""Which jobs there are, and what must become of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgworker.demo import jobs
from pgworker.model.job import JobRequest
from pgworker.model.state import Outcome, Status

STUMBLES = 5

_RECORDED = 4  # every so many files are written by the transaction of their job
_TROUBLE_AT = 0.2  # the part of the files before the jobs that go wrong


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job, the `outcomes` that its executions must have, in order, and its last `status`.

    Executions that end as lost or released are not in `outcomes`: another job took the worker down with it, which
    may hit any.
    """

    request: JobRequest
    outcomes: tuple[Outcome, ...]
    status: Status
    path: str | None = None
    """The file that it reads, if any."""
    note: Path | None = None
    """Where it says that it runs, if it does."""

    @property
    def task(self) -> str:
        return self.request.task

    @property
    def is_recorded(self) -> bool:
        """Whether it writes into demo_files."""
        return self.task == jobs.record.name


@dataclass(frozen=True, slots=True)
class Plan:
    """All jobs in the order of their enqueue; two of them have something done to them from outside while they run."""

    jobs: tuple[PlannedJob, ...]
    victim: PlannedJob
    """Its worker is killed with SIGKILL."""
    cancelled: PlannedJob

    @property
    def odd(self) -> int:
        """Jobs that read no file."""
        return sum(job.path is None for job in self.jobs)


def make_plan(files: Sequence[Path], notes: Path) -> Plan:
    """A job per file, and some that go wrong among them. Jobs that wait for us leave their pid in `notes`."""
    ordinary = [_file_job(path, number) for number, path in enumerate(files)]
    place = int(len(files) * _TROUBLE_AT)
    victim = _victim(ordinary[place], notes / "victim")
    cancelled = _cancelled(notes / "cancelled")
    before, after = ordinary[:place], ordinary[place + 1 :]
    return Plan((*before, victim, *_trouble(), cancelled, *after), victim, cancelled)


def _file_job(path: Path, number: int) -> PlannedJob:
    task = jobs.record if number % _RECORDED == 0 else jobs.examine
    return PlannedJob(task.job(path=str(path)), (Outcome.SUCCEEDED,), Status.SUCCEEDED, path=str(path))


def _victim(instead_of: PlannedJob, note: Path) -> PlannedJob:
    path = instead_of.path
    assert path is not None
    request = jobs.record.job(path=path, note=str(note))
    return PlannedJob(request, (Outcome.CRASHED, Outcome.SUCCEEDED), Status.SUCCEEDED, path=path, note=note)


def _cancelled(note: Path) -> PlannedJob:
    return PlannedJob(jobs.obey.job(note=str(note)), (Outcome.CANCELLED,), Status.CANCELLED, note=note)


def _trouble() -> list[PlannedJob]:
    again = (Outcome.FAILED, Outcome.SUCCEEDED)
    return [
        *(PlannedJob(jobs.stumble.job(number=number), again, Status.SUCCEEDED) for number in range(1, STUMBLES + 1)),
        PlannedJob(jobs.hang.job(), (Outcome.TIMED_OUT,), Status.DEAD_LETTER),
        PlannedJob(jobs.crash.job(), (Outcome.CRASHED, Outcome.CRASHED), Status.DEAD_LETTER),
        PlannedJob(jobs.refuse.job(), (Outcome.FAILED,), Status.DEAD_LETTER),
    ]
