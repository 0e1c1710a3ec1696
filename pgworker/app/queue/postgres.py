"""The queue as a worker sees it: claim jobs under leases, say how they ended, hand back what was not started.

What has ended is settled together with the next claim, in one transaction and one round trip. What goes wrong with that
is elsewhere: `one_by_one` has what the server would not store, `losses` the leases that are gone, `doubts` those that
another server may know less of; `handing_back` what is not started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID, uuid4

import msgspec
import psycopg
from psycopg import Connection, Cursor

from pgworker.app.producer import enqueue_requests
from pgworker.app.queue.doubts import Doubts
from pgworker.app.queue.handing_back import LostClaims, Tails
from pgworker.app.queue.leases import ClaimedJob, HeldLease, LeaseUpdate
from pgworker.app.queue.losses import Losses
from pgworker.app.queue.one_by_one import UNSTORABLE, settle_one_by_one
from pgworker.app.task import Task
from pgworker.app.verdict import judge_safely
from pgworker.db.adapters import ClaimingCursor
from pgworker.lifecycle.cancel import cancel_waiting_job
from pgworker.lifecycle.claim import ClaimedRow, Lanes, claim_jobs, claimed_rows
from pgworker.lifecycle.floors import LaneFloors
from pgworker.lifecycle.progress import forget_progress, save_progress
from pgworker.lifecycle.purge import purge_queue
from pgworker.lifecycle.settle import Ended, Settlement, is_settled, settle_jobs
from pgworker.lifecycle.transaction import one_trip
from pgworker.linux.floors import Floors, FloorsSeen
from pgworker.linux.row import BoardRow
from pgworker.model.job import JobRequest
from pgworker.model.payload import describe_error
from pgworker.model.progress import ProgressUpdate
from pgworker.model.state import CancelReason, Outcome

_LARGE = 4096  # characters of arguments that are not kept for as long as the last job of their lease runs


class Queue(Protocol):
    """What `App.queue()` gives to who claims jobs without a pool. `PostgresQueue` is the one there is; a worker's clerk
    uses that directly."""

    def enqueue(self, requests: Sequence[JobRequest]) -> list[UUID]:
        """Store jobs, all or none; their ids, in order."""

    def claim(self, n: int) -> list[ClaimedJob]:
        """Up to `n` due jobs, ours until their lease ends. What was said to have ended is recorded on the way.

        What has ended after its lease did is not recorded, and logged as an error: somebody else has the job.
        """

    def succeed(self, job: ClaimedJob, ended: Ended | None = None) -> None:
        """This job has succeeded; recorded by the next `claim`."""

    def fail(self, job: ClaimedJob, ended: Ended | BaseException) -> None:
        """This one has not: an error, or what to record of it and how the job goes on; recorded by the next `claim`."""

    def delete(self, job_id: UUID) -> bool:
        """Take a job that waits out of the queue: it ends as cancelled. False, and nothing is done: it doesn't wait."""

    def purge(self, queue: str) -> int:
        """Take every job that waits in this queue out of it; returns how many."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim on its way: what must be given back, whole, if its answer is lost."""

    lease_id: UUID
    jobs: int
    sent_ns: int
    floors: FloorsSeen
    is_durable: bool
    """Whether the commit waits for the disk, as it must with results on the same trip. A lone claim need not: if the
    server crashes and forgets it, its jobs wait again."""


class PostgresQueue:
    """The queues of `lanes`, for the worker that `row` of a board shows.

    `connect` gives the connection to use, in autocommit mode. After an error of it nothing is lost: what has ended is
    sent again with the next claim, and a claim whose answer was lost is given back by `give_back`. Nothing is renewed
    here: a lease lasts `lease_ttl` seconds unless the monitor of a pool renews what the board shows. `may_pass_others`:
    whether the floors may rise over jobs that are not for `tasks`, as no other worker serves them. `on_lost` hears of
    each execution that was not recorded as its lease was gone, and what it had ended as; `on_lease_lost` of the lease.
    """

    def __init__(
        self,
        connect: Callable[[], Connection[Any]],
        *,
        row: BoardRow,
        floors: Floors,
        lanes: Lanes,
        tasks: Mapping[str, Task[..., Any]],
        lease_ttl: float,
        may_pass_others: Callable[[], bool] = lambda: True,
        on_lost: Callable[[ClaimedRow, Outcome], object] = lambda _row, _outcome: None,
        on_lease_lost: Callable[[], object] = lambda: None,
    ) -> None:
        self._connect = connect
        self._row = row
        self._floors = LaneFloors(floors, lanes)
        self._lanes = lanes
        self._tasks = dict(tasks)
        self._names = list(tasks)
        self._lease_ttl = lease_ttl
        self._may_pass_others = may_pass_others
        self._losses = Losses(row, on_lost, on_lease_lost)
        self._doubts = Doubts(row, self._floors, lease_ttl)
        self._lost_claims = LostClaims(self._floors)
        self._tails = Tails(row, self._floors)
        self.leases: list[HeldLease] = []
        self._server: datetime | None = None

    # -- the protocol

    def enqueue(self, requests: Sequence[JobRequest]) -> list[UUID]:
        return enqueue_requests(self._connect(), requests)

    def claim(self, n: int) -> list[ClaimedJob]:
        if not self.leases and not n:
            return []
        connection = self._connect()
        self._doubts.doubt_if_reconnected(connection, self.leases)
        leases = sorted(self.leases, key=lambda lease: lease.lease_id)  # as a cancel locks them: no deadlock
        updates = [update for lease in leases if (update := lease.update()) is not None]
        ending = sum(one.settlement is not None and one.settlement.ends_lease for one in updates)
        is_full = n > 0 and len(leases) - ending >= self._row.leases_limit
        claim = None
        if n and not is_full:
            claim = Claim(uuid4(), n, time.monotonic_ns(), self._floors.read(), is_durable=bool(updates))
        rows = self._trip(connection, updates, claim) if updates or claim is not None else []
        self._mark_settled(connection)
        if is_full:
            if not self.may_claim:  # nor has a lease in doubt ended just now
                raise ValueError(
                    f"jobs of {len(self.leases)} claims have not ended yet; end all of one first, or claim more at once"
                )
            return self.claim(n)
        if claim is None:
            return []
        jobs = self._take(claim, rows)
        self._lost_claims.discard(claim.lease_id)
        return jobs

    def succeed(self, job: ClaimedJob, ended: Ended | None = None) -> None:
        if ended is None:
            now_ns = time.monotonic_ns()
            ended = Ended(job.row.job_id, job.row.execution, self._row.renewed_ns(job.lease.entry), now_ns)
        self._end(job, ended)

    def fail(self, job: ClaimedJob, ended: Ended | BaseException) -> None:
        if isinstance(ended, BaseException):
            error, now_ns = ended, time.monotonic_ns()
            verdict = judge_safely(error, CancelReason.NONE, False, job)
            described = msgspec.json.encode(describe_error(error)).decode()
            ended = verdict.ended(job.row, self._row.renewed_ns(job.lease.entry), now_ns, described)
        self._end(job, ended)

    def delete(self, job_id: UUID) -> bool:
        return cancel_waiting_job(self._connect(), job_id)

    def purge(self, queue: str) -> int:
        return purge_queue(self._connect(), queue)

    # -- what else a worker says, and asks

    def succeeded_itself(self, job: ClaimedJob) -> None:
        """Its own transaction has recorded it already."""
        self._end(job, None)

    def lost(self, job: ClaimedJob) -> None:
        """Its own transaction has found its lease gone: nothing is to be recorded."""
        self._losses.lose(job.lease)
        self._end(job, None)

    def progress(self, job: ClaimedJob, update: ProgressUpdate) -> None:
        """What a running job says of how far it is; the last one is stored by the next `claim`."""
        job.lease.note_progress(job.position, update)

    @property
    def has_progress(self) -> bool:
        """Whether anything was said that the next claim will store."""
        return any(lease.progress for lease in self.leases)

    @property
    def has_results(self) -> bool:
        """Whether anything has ended that the next claim will settle."""
        return any(lease.has_update for lease in self.leases)

    @property
    def may_claim(self) -> bool:
        """Whether one lease more can be held."""
        return len(self.leases) < self._row.leases_limit

    def _end(self, job: ClaimedJob, ended: Ended | None) -> None:
        """None: its own transaction has recorded it."""
        job.lease.end(job.position, ended)

    # -- the trip

    def _trip(
        self, connection: Connection[Any], updates: Sequence[LeaseUpdate], claim: Claim | None
    ) -> list[ClaimedRow]:
        """Settle and claim in one transaction and one round trip; what was claimed."""
        settling: list[tuple[Cursor[Any], HeldLease, Settlement]] = []
        claiming = ClaimingCursor(connection)
        if claim is not None:
            self._lost_claims.add(claim.lease_id)  # until its answer is here
        try:
            with one_trip(connection) as trip:
                for update in updates:
                    settling += _send(connection, update)
                if finished := [job_id for update in updates for job_id in update.finished]:
                    forget_progress(connection, finished)
                if claim is not None:
                    self._send_claim(claiming, claim)
        except (*UNSTORABLE, psycopg.errors.QueryCanceled) as error:
            if claim is not None:
                self._lost_claims.discard(claim.lease_id)  # rolled back
            if not updates or isinstance(error, psycopg.errors.QueryCanceled):
                raise  # nothing that could be settled by itself is to blame
            unsettled, claim = settle_one_by_one(connection, updates), None
        else:
            unsettled = [(lease, told) for cursor, lease, told in settling if not is_settled(cursor, told)]
        self._server = trip.server()
        self._doubts.compare(self._server, self.leases)
        for lease, settlement in unsettled:
            self._losses.tell(connection, lease, settlement)
        return [] if claim is None else claimed_rows(claiming)

    def _send_claim(self, cursor: Cursor[Any], claim: Claim) -> None:
        claim_jobs(
            cursor,
            lease_id=claim.lease_id,
            worker_id=self._row.worker_id,
            ttl=self._lease_ttl,
            slots=self._row.slots,
            jobs=claim.jobs,
            tasks=self._names,
            lanes=self._lanes,
            floors=claim.floors,
            is_durable=claim.is_durable,
        )

    def _mark_settled(self, connection: Connection[Any]) -> None:
        for lease in self.leases:
            lease.mark_settled()
            if lease.is_to_be_reclaimed:
                lease.is_ended = self._doubts.reclaim(connection, lease)
        self._drop_ended_leases()

    def _take(self, claim: Claim, rows: list[ClaimedRow]) -> list[ClaimedJob]:
        if not rows:
            return []
        entry = self._row.show_lease(claim.lease_id, len(rows), claim.sent_ns)
        lease = HeldLease(claim.lease_id, entry, len(rows), claimed_ns=claim.sent_ns, server=self._server)
        self.leases.append(lease)
        if self._may_pass_others():
            self._floors.rise(claim.floors, rows)
        lease.rows = [row if len(row.payload or "") < _LARGE else row._replace(payload=None) for row in rows]
        checkpoints = [(position, row.job_id) for position, row in enumerate(rows, 1) if row.checkpoint is not None]
        lease.with_progress = dict(checkpoints)
        tasks = self._tasks
        return [ClaimedJob(lease, position, row, tasks[row.task]) for position, row in enumerate(rows, start=1)]

    def _drop_ended_leases(self) -> None:
        for lease in [lease for lease in self.leases if lease.is_ended]:
            self._row.hide_lease(lease.entry)
            self.leases.remove(lease)

    # -- handing back

    @property
    def has_lost_claims(self) -> bool:
        """Whether a claim is without an answer, and perhaps still to be given back."""
        return bool(self._lost_claims)

    @property
    def has_line(self) -> bool:
        """Whether the monitor keeps us from starting what we hold."""
        return any(self._row.line(lease.entry) is not None for lease in self.leases)

    def keep_only_started(self, unstarted: Iterable[ClaimedJob]) -> None:
        """These will not be started here; `give_back` returns them to the queue."""
        self._tails.cut(unstarted, self.leases)

    def give_back(self) -> None:
        """Release what is not to be started, and claims without an answer."""
        if self._lost_claims.are_due:
            self._lost_claims.release(self._connect())
        for lease in self.leases:
            if lease.is_going_back:
                self._tails.release(self._connect(), lease)
        self._drop_ended_leases()


def _send(connection: Connection[Any], update: LeaseUpdate) -> list[tuple[Cursor[Any], HeldLease, Settlement]]:
    """Send it, lease by lease in their order: both statements lock the lease. What is settled, and who knows."""
    if update.progress:
        save_progress(connection, update.lease.lease_id, update.progress)
    if update.settlement is None:
        return []
    cursor = connection.cursor()
    settle_jobs(cursor, update.settlement, time.monotonic_ns())
    return [(cursor, update.lease, update.settlement)]
