"""What a worker holds: its leases, and the jobs in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from pgworker.app.task import Task
from pgworker.lifecycle.claim import ClaimedRow
from pgworker.lifecycle.settle import Ended, Settlement
from pgworker.model.job import Job
from pgworker.model.payload import decode
from pgworker.model.progress import ProgressUpdate
from pgworker.model.state import Outcome
from pgworker.observe.logs import job_fields


@dataclass(frozen=True, slots=True)
class LeaseUpdate:
    """What is to be recorded of one lease, in this order: the progress of its jobs, by position; what has ended; and
    the jobs whose stored progress goes if that was their end."""

    lease: HeldLease
    progress: Mapping[int, ProgressUpdate]
    settlement: Settlement | None
    finished: Sequence[UUID]


@dataclass(slots=True)
class HeldLease:
    """One lease: `count` positions are ours, those in `ended` have ended, and `ready` has what is not recorded of them.

    In `ready` stands None for an execution that the handler's own transaction has recorded already. While its tail is
    going back (`is_going_back`) the lease must not end: it is all that the database knows of these jobs.
    `progress`: what jobs have said of it since. `with_progress`: those, by position, of which some may be stored.
    `claimed_ns`: when its claim was sent, by the monotonic clock; `server`: the start of the one that answered it.
    `is_sent`: its last update was, and no answer has come yet; what is sent from now on may repeat it.
    `is_doubtful`: the server that we talk to now may have been promoted since its claim, without hearing of all that
    was recorded. Such a lease is not ended by its last settlement, but reclaimed.
    """

    lease_id: UUID
    entry: int
    count: int
    ended: set[int] = field(default_factory=set)
    ready: dict[int, Ended | None] = field(default_factory=dict)
    progress: dict[int, ProgressUpdate] = field(default_factory=dict)
    with_progress: dict[int, UUID] = field(default_factory=dict)
    claimed_ns: int = 0
    server: datetime | None = None
    is_going_back: bool = False
    is_ended: bool = False
    is_doubtful: bool = False
    is_sent: bool = False
    rows: Sequence[ClaimedRow] = ()
    """What was claimed, in each position, for log lines about what has ended; large arguments go with their jobs."""

    @property
    def has_update(self) -> bool:
        return bool(self.ready) or self._ends

    @property
    def is_to_be_reclaimed(self) -> bool:
        """Whether all that is left of a doubtful lease is to look what the server knows of it."""
        return self.is_doubtful and self._ends and not self.ready and not self.is_ended

    def end(self, position: int, ended: Ended | None) -> None:
        """This one has ended. RuntimeError the second time: counted twice it would end the lease under a neighbour."""
        if position in self.ended:
            raise RuntimeError("how this job ended was said before: succeed or fail is for each claimed job once")
        self.ended.add(position)
        self.ready[position] = ended

    def log_fields(self, position: int) -> dict[str, object]:
        """What every log line about the execution in this position has."""
        return _log_fields(self.rows[position - 1], self.lease_id)

    def note_progress(self, position: int, update: ProgressUpdate) -> None:
        """The job in this position says how far it is."""
        self.progress[position] = update.after(self.progress.get(position))

    def note_earlier_progress(self, position: int, update: ProgressUpdate) -> None:
        """The same, of what it has said before whatever is here, and which is not stored."""
        later = self.progress.get(position)
        self.progress[position] = update if later is None else later.after(update)

    def update(self) -> LeaseUpdate | None:
        """All that is to be recorded; None: nothing. Until `mark_settled` it will be sent again."""
        progress = self._progress_to_store() if self.progress else self.progress
        finished = [job_id for position, job_id in self.with_progress.items() if position in self.ready]
        settlement = self.settlement()
        if settlement is None and not progress and not finished:
            return None
        self.is_sent = True
        return LeaseUpdate(self, progress, settlement, finished)

    def settlement(self) -> Settlement | None:
        """What there is to settle now, in one stretch with gaps; None: nothing."""
        ends = self._ends and not self.is_doubtful
        positions = [position for position, ended in self.ready.items() if ended is not None]
        if not positions:
            return Settlement(self.lease_id, 1, [], ends_lease=True, server=self.server) if ends else None
        first, last = min(positions), max(positions)
        ended = [*map(self.ready.get, range(first, last + 1))]
        return Settlement(self.lease_id, first, ended, ends, is_repeated=self.is_sent, server=self.server)

    def mark_settled(self) -> None:
        """What `update` returned is recorded."""
        self.is_sent = False
        self.is_ended = self._ends and not self.is_doubtful
        if self.progress:
            self.progress = {}
        if self.with_progress:
            with_progress = self.with_progress.items()
            self.with_progress = {position: job for position, job in with_progress if position not in self.ready}
        self.ready = {}

    def keep(self, count: int) -> None:
        """The positions beyond `count` are going back."""
        self.count = min(self.count, count)
        self.is_going_back = True

    def mark_gone_back(self) -> None:
        """They are back. A lease that went back whole has ended with that."""
        self.is_going_back = False
        self.is_ended = self.count == 0

    def _progress_to_store(self) -> dict[int, ProgressUpdate]:
        """Of a job that has succeeded since it would be deleted at once."""
        updates = {position: one for position, one in self.progress.items() if not self._has_succeeded(position)}
        self.with_progress.update((position, one.job_id) for position, one in updates.items())
        return updates

    def _has_succeeded(self, position: int) -> bool:
        if position not in self.ready:
            return False
        ended = self.ready[position]
        return ended is None or ended.outcome is Outcome.SUCCEEDED

    @property
    def _ends(self) -> bool:
        return not self.is_going_back and len(self.ended) >= self.count


class ClaimedJob(msgspec.Struct):
    """A job to run: its row, its place in a lease, and the task that it is for."""

    lease: HeldLease
    position: int
    row: ClaimedRow
    task: Task[..., Any]

    def log_fields(self) -> dict[str, object]:
        """What every log line about this execution has."""
        return _log_fields(self.row, self.lease.lease_id)

    def job(self) -> Job:
        """As handlers, middleware and `should_retry` see it."""
        row = self.row
        return Job(
            id=row.job_id,
            task=row.task,
            queue=row.queue,
            payload=decode(row.payload or "{}"),
            priority=row.priority,
            execution=row.execution,
            failures=row.failures,
            max_attempts=row.max_attempts or 1,
            timeout=None if row.timeout_ms is None else row.timeout_ms / 1000,
            run_at=row.run_at,
            created_at=row.created_at or row.run_at,
            org_id=row.org_id,
            headers=decode(row.headers) if row.headers else {},
        )


def _log_fields(row: ClaimedRow, lease_id: UUID) -> dict[str, object]:
    return job_fields(row.job_id, row.execution, row.task, row.queue, row.org_id) | {"lease": lease_id}
