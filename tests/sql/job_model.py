"""What each verb must do to each job, in plain Python: the reference that the database is compared with."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from pgworker.lifecycle.claim import Lanes
from pgworker.lifecycle.settle import Next, Settlement
from pgworker.model.state import Outcome, Status

WAITS = (Status.PENDING, Status.SCHEDULED, Status.FAILED)


@dataclass(slots=True)
class ModelJob:
    """`execution` and `failures`: of the row in job_queue, the place in its lease, or the dead letter."""

    job_id: UUID
    queue: str
    priority: int
    max_attempts: int
    is_scheduled: bool
    status: Status
    is_due: bool
    execution: int = 1
    failures: int = 0
    rows: dict[int, tuple[str, int, UUID | None]] = field(default_factory=dict)
    """by execution: outcome, failures, and the lease that has settled it itself"""

    def wait(self, execution: int, failures: int, *, is_due: bool) -> None:
        self.execution, self.failures, self.is_due = execution, failures, is_due
        waits_for = Status.PENDING if is_due else Status.SCHEDULED
        self.status = Status.FAILED if failures else waits_for


@dataclass(frozen=True, slots=True)
class ModelCell:
    job: ModelJob
    execution: int
    failures: int

    @property
    def has_row(self) -> bool:
        return self.execution in self.job.rows


@dataclass(slots=True)
class ModelLease:
    lease_id: UUID
    worker: UUID
    slots: int
    cells: list[ModelCell]
    is_expired: bool = False
    marks: set[UUID] = field(default_factory=set)

    @property
    def unsettled(self) -> list[ModelCell]:
        return [cell for cell in self.cells if not cell.has_row]


class Model:
    """All jobs and leases as they must be."""

    def __init__(self) -> None:
        self.jobs: dict[UUID, ModelJob] = {}
        self.leases: dict[UUID, ModelLease] = {}
        self.ended: set[UUID] = set()
        self.paused: set[str] = set()

    def enqueue(self, ids: Iterable[UUID], queue: str, priority: int, max_attempts: int, is_scheduled: bool) -> None:
        status = Status.SCHEDULED if is_scheduled else Status.PENDING
        for job_id in ids:
            self.jobs[job_id] = ModelJob(
                job_id, queue, priority, max_attempts, is_scheduled, status, is_due=not is_scheduled
            )

    def waiting(self) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.status in WAITS]

    # -- claim

    def lanes_of_due(self, queues: Sequence[str], locked: Collection[UUID]) -> list[int]:
        """The lane of each job that a claim would find, the first first."""
        lanes = Lanes.of(queues)
        found = [
            lanes.index(job.queue, job.priority)
            for job in self.waiting()
            if job.is_due and job.job_id not in locked and job.queue not in self.paused
        ]
        return sorted(lane for lane in found if lane is not None)

    def claim(self, lease_id: UUID, worker: UUID, ids: Iterable[UUID]) -> None:
        cells = [ModelCell(job, job.execution, job.failures) for job in map(self.jobs.__getitem__, ids)]
        for cell in cells:
            cell.job.status = Status.RUNNING
        if cells:
            self.leases[lease_id] = ModelLease(lease_id, worker, 1, cells)

    # -- settle

    def settle(self, told: Settlement) -> bool:
        """Whether all of it was recorded just now."""
        lease = self.leases.get(told.lease_id)
        if lease is None:
            return not told.executions
        recorded = 0
        for run, cell in zip(told.ended, lease.cells[told.first - 1 :], strict=False):
            if run is not None and not cell.has_row:
                self._end(lease, cell, run.outcome, run.next, run.delay)
                recorded += 1
        if told.ends_lease:
            del self.leases[told.lease_id]
        return recorded == len(told.executions)

    def is_own(self, told: Settlement) -> bool:
        """Whether this very lease has settled all of it, now or before."""
        return all(
            self.jobs[run.job_id].rows.get(run.execution, (None, 0, None))[2] == told.lease_id
            for run in told.executions
        )

    def _end(self, lease: ModelLease, cell: ModelCell, outcome: Outcome, then: Next, delay: float) -> None:
        job, failures = cell.job, cell.failures + outcome.is_charged
        if then is not Next.END and job.job_id in lease.marks:
            outcome, then = Outcome.CANCELLED, Next.END
        job.rows[cell.execution] = (outcome.value, failures, lease.lease_id)
        if then is Next.REQUEUE:
            job.wait(cell.execution + 1, failures, is_due=not delay)
        elif then is Next.BURY:
            job.status, job.execution, job.failures = Status.DEAD_LETTER, cell.execution, failures
        else:
            job.status = Status.CANCELLED if outcome is Outcome.CANCELLED else Status.SUCCEEDED

    # -- give back

    def release(self, lease_id: UUID, first: int) -> list[ModelJob]:
        """The jobs that go back."""
        lease = self.leases.get(lease_id)
        if lease is None:
            return []
        back, lease.cells = lease.cells[first - 1 :], lease.cells[: first - 1]
        if first == 1:
            del self.leases[lease_id]
        returned = []
        for cell in back:
            if cell.job.job_id in lease.marks:
                cell.job.rows[cell.execution] = (Outcome.CANCELLED.value, cell.failures, None)
                cell.job.status = Status.CANCELLED
            else:
                cell.job.wait(cell.execution, cell.failures, is_due=True)
                returned.append(cell.job)
        return returned

    def reclaimable(self, by_expiry: bool) -> set[UUID]:
        return {
            lease.lease_id
            for lease in self.leases.values()
            if lease.worker in self.ended or (by_expiry and lease.is_expired)
        }

    def reclaim(self, lease_id: UUID, outcomes: Sequence[Outcome | None], assumed_running: int) -> None:
        """`outcomes`: of the first positions, as far as anybody knows."""
        lease = self.leases.pop(lease_id)
        verdicts = [*outcomes, *[None] * len(lease.cells)]
        unfinished = 0
        for cell, verdict in zip(lease.cells, verdicts, strict=False):
            if cell.has_row:
                continue
            unfinished += 1
            outcome = Outcome.CRASHED if unfinished <= assumed_running else verdict
            self._send_on(lease, cell, outcome)

    def _send_on(self, lease: ModelLease, cell: ModelCell, outcome: Outcome | None) -> None:
        job = cell.job
        if job.job_id in lease.marks:
            outcome = Outcome.CANCELLED
        failures = cell.failures + (outcome is not None and outcome.is_charged)
        if outcome is not None:
            job.rows[cell.execution] = (outcome.value, failures, None)
        if outcome is Outcome.CANCELLED:
            job.status = Status.CANCELLED
        elif failures >= job.max_attempts:
            job.status, job.execution, job.failures = Status.DEAD_LETTER, cell.execution, failures
        else:
            job.wait(cell.execution + 1, failures, is_due=True)

    # -- operators

    def cancel_waiting(self, job: ModelJob) -> None:
        job.rows[job.execution] = (Outcome.CANCELLED.value, job.failures, None)
        job.status = Status.CANCELLED

    def mark(self, job: ModelJob) -> None:
        for lease in self.leases.values():
            if any(cell.job is job for cell in lease.unsettled):
                lease.marks.add(job.job_id)

    def requeue(self, job: ModelJob) -> None:
        job.wait(job.execution + 1, 0, is_due=True)

    def discard(self, job: ModelJob) -> None:
        job.rows[job.execution + 1] = (Outcome.CANCELLED.value, job.failures, None)
        job.status = Status.CANCELLED
