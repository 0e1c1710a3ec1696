"""What is not started here goes back to the queue: the ends of leases, and claims whose answer was lost, whole."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.app.queue.leases import ClaimedJob, HeldLease
from pgworker.lifecycle.floors import LaneFloors
from pgworker.lifecycle.release import release_jobs
from pgworker.linux.row import BoardRow
from pgworker.observe.logs import fields, logger

_LATE_COMMIT = 5.0  # seconds after which a claim without an answer can't commit any more at a backend that is gone

log = logger("queue")


class LostClaims:
    """Claims without an answer: each may have committed, or may yet at a backend that has not noticed our end. So they
    are released again and again for a while."""

    def __init__(self, floors: LaneFloors) -> None:
        self._floors = floors
        self._until: dict[UUID, float | None] = {}
        self._release_at = 0.0

    def __bool__(self) -> bool:
        return bool(self._until)

    def add(self, lease_id: UUID) -> None:
        """Before it is sent: who dies on the way has it here. Its time begins with the first `release`."""
        self._until[lease_id] = None

    def discard(self, lease_id: UUID) -> None:
        """Its answer is here, or it was rolled back."""
        self._until.pop(lease_id, None)

    @property
    def are_due(self) -> bool:
        """Whether it is time to release them, once more perhaps."""
        return bool(self._until) and time.monotonic() >= self._release_at

    def release(self, connection: Connection[Any]) -> None:
        self._release_at = time.monotonic() + _LATE_COMMIT / 10
        for lease_id, until in list(self._until.items()):
            give_up_at = self._until[lease_id] = until or time.monotonic() + _LATE_COMMIT
            answer = release_jobs(connection, lease_id, first=1)
            self._floors.lower_to(answer.lanes)
            if answer.lanes or (time.monotonic() > give_up_at and not answer.is_busy):
                self.discard(lease_id)


class Tails:
    """The ends of leases, from the first job on that is not to be started here."""

    def __init__(self, row: BoardRow, floors: LaneFloors) -> None:
        self._row = row
        self._floors = floors

    def cut(self, unstarted: Iterable[ClaimedJob], leases: Iterable[HeldLease]) -> None:
        """Off `leases`; `release` returns them. The floors come down before that: who is told of the jobs must find
        them."""
        tells = log.isEnabledFor(logging.DEBUG)
        for job in unstarted:
            if tells:
                log.debug(
                    "not started here: it goes back to the queue", extra=fields("job_released", **job.log_fields())
                )
            job.lease.keep(job.position - 1)
            row = job.row
            # Who has run before goes back to where it was when it was enqueued, which was not before it was made.
            run_at = row.run_at if row.execution == 1 else min(row.run_at, row.created_at or row.run_at)
            self._floors.lower(row.queue, row.priority, run_at, row.job_id)
        for lease in leases:
            if not lease.is_going_back:
                self._erase_line(lease)

    def release(self, connection: Connection[Any], lease: HeldLease) -> None:
        """Give that of a lease back. Repeatable: what the monitor or a try without an answer released is not there."""
        self._row.show_count(lease.entry, lease.count)
        answer = release_jobs(connection, lease.lease_id, lease.count + 1)
        if answer.is_busy:
            return
        lease.mark_gone_back()
        self._erase_line(lease)
        self._floors.lower_to(answer.lanes)

    def _erase_line(self, lease: HeldLease) -> None:
        """Only when every position that is ours has shown its start: until then the line may be meant for one that the
        runner has in hand and has not shown yet."""
        if self._row.started(lease.entry) >= lease.count:
            self._row.erase_line(lease.entry)
