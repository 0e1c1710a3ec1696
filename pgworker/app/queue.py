"""The queue as a worker sees it: claim jobs under leases, say how they ended, hand back what was not started.

What has ended is settled together with the next claim, in one transaction and one round trip.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from uuid import UUID, uuid4

import msgspec
import psycopg
from psycopg import Connection, Cursor
from psycopg.pq import TransactionStatus

from pgworker.app.leases import ClaimedJob, HeldLease, News
from pgworker.app.producer import enqueue_on
from pgworker.app.task import Task
from pgworker.app.verdict import judge_anyhow
from pgworker.errors import LeaseLost
from pgworker.lifecycle.cancel import cancel_waiting_job
from pgworker.lifecycle.claim import ClaimedRow, Lanes, claim_jobs, floor_of, lower_floor
from pgworker.lifecycle.progress import forget_progress, save_progress
from pgworker.lifecycle.purge import purge_queue
from pgworker.lifecycle.reclaim import Findings, Reclaimable, TakenLease, reclaim_lease
from pgworker.lifecycle.release import Returned, release_jobs
from pgworker.lifecycle.renew import renew_leases
from pgworker.lifecycle.settle import Ended, Settlement, check_settled, find_unsettled, is_settled, settle_jobs
from pgworker.lifecycle.transaction import limit_statements
from pgworker.linux.board import Floors, Row
from pgworker.model.job import JobRequest
from pgworker.model.payload import describe_error
from pgworker.model.progress import Said
from pgworker.model.retry import Backoff
from pgworker.model.state import CancelReason, Outcome
from pgworker.observe.logs import fields, logger

_UNSTORABLE = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded)
"""What the server says of a result or error that it can't take; no reason to try the same again."""

_LATE_COMMIT = 5.0  # seconds after which a claim without an answer can't commit any more at a backend that is gone

log = logger("queue")


class Queue(Protocol):
    """What a worker needs of the place where jobs wait. `PostgresQueue` is the one there is."""

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
    floors: tuple[list[int], list[int]]


class PostgresQueue:
    """The queues of `lanes`, for the worker that `row` of a board shows.

    `connect` gives the connection to use, in autocommit mode. After an error of it nothing is lost: what has ended is
    sent again with the next claim, and a claim whose answer was lost is given back by `give_back`. Nothing is renewed
    here: a lease lasts `lease_ttl` seconds unless the monitor of a pool renews what the board shows. `on_lost` hears of
    each execution that was not recorded as its lease was gone, and what it had ended as; `on_lease_lost` of the lease.
    """

    def __init__(
        self,
        connect: Callable[[], Connection[Any]],
        *,
        row: Row,
        floors: Floors,
        lanes: Lanes,
        tasks: Mapping[str, Task[..., Any]],
        lease_ttl: float,
        on_lost: Callable[[ClaimedRow, Outcome], object] = lambda _row, _outcome: None,
        on_lease_lost: Callable[[], object] = lambda: None,
    ) -> None:
        self._connect = connect
        self._on_lost = on_lost
        self._on_lease_lost = on_lease_lost
        self._row = row
        self._floors = floors
        self._lanes = lanes
        self._tasks = tasks
        self._names = list(tasks)
        self._lease_ttl = lease_ttl
        self._lost_claims: dict[UUID, float] = {}
        self._lost_claims_at = 0.0
        self._known: Connection[Any] | None = None
        self.leases: list[HeldLease] = []

    # -- the protocol

    def enqueue(self, requests: Sequence[JobRequest]) -> list[UUID]:
        return enqueue_on(self._connect(), requests)

    def claim(self, n: int) -> list[ClaimedJob]:
        if self.leases:
            self._doubt()
        leases = sorted(self.leases, key=lambda lease: lease.lease_id)  # as a cancel locks them: no deadlock
        news = [told for lease in leases if (told := lease.news()) is not None]
        ending = sum(told.settlement is not None and told.settlement.ends_lease for told in news)
        if n and len(leases) - ending >= self._row.leases_limit:
            raise ValueError(
                f"jobs of {len(leases)} claims have not ended yet; end all of one first, or claim more at once"
            )
        if news or n:
            return self._trip(news, n)
        self._mark_settled()
        return []

    def succeed(self, job: ClaimedJob, ended: Ended | None = None) -> None:
        if ended is None:
            now_ns = time.monotonic_ns()
            ended = Ended(job.row.job_id, job.row.execution, self._row.renewed_ns(job.lease.entry), now_ns)
        self._end(job, ended)

    def fail(self, job: ClaimedJob, ended: Ended | BaseException) -> None:
        self._end(job, self._failed(job, ended) if isinstance(ended, BaseException) else ended)

    def succeeded_itself(self, job: ClaimedJob) -> None:
        """Its own transaction has recorded it already."""
        self._end(job, None)

    def lost(self, job: ClaimedJob) -> None:
        """Its own transaction has found its lease gone: nothing is to be recorded."""
        self._lose(job.lease)
        self._end(job, None)

    def _end(self, job: ClaimedJob, ended: Ended | None) -> None:
        """None: its own transaction has recorded it."""
        job.lease.end(job.position, ended)

    def progress(self, job: ClaimedJob, said: Said) -> None:
        """What a running job says of how far it is; the last one is stored by the next `claim`."""
        job.lease.say(job.position, said)

    @property
    def has_progress(self) -> bool:
        """Whether anything was said that the next claim will store."""
        return any(lease.said for lease in self.leases)

    def delete(self, job_id: UUID) -> bool:
        return cancel_waiting_job(self._connect(), job_id)

    def purge(self, queue: str) -> int:
        return purge_queue(self._connect(), queue)

    def _failed(self, job: ClaimedJob, error: BaseException) -> Ended:
        row, now_ns = job.row, time.monotonic_ns()
        verdict = judge_anyhow(error, CancelReason.NONE, False, job, self._tasks.get(row.task))
        return Ended(
            row.job_id,
            row.execution,
            self._row.renewed_ns(job.lease.entry),
            now_ns,
            verdict.outcome,
            verdict.next,
            verdict.delay,
            msgspec.json.encode(describe_error(error)).decode(),
        )

    # -- the trip

    @property
    def has_results(self) -> bool:
        """Whether anything has ended that the next claim will settle."""
        return any(lease.has_news for lease in self.leases)

    @property
    def may_claim(self) -> bool:
        """Whether one lease more can be held."""
        return len(self.leases) < self._row.leases_limit

    def _trip(self, news: list[News], wanted: int) -> list[ClaimedJob]:
        """Settle and claim in one transaction and one round trip."""
        connection = self._known = self._connect()
        claim = Claim(uuid4(), wanted, time.monotonic_ns(), self._floors.read()) if wanted else None
        if claim is not None:
            self._lost_claims[claim.lease_id] = time.monotonic() + _LATE_COMMIT  # until its answer is here
        settling: list[tuple[Cursor[Any], Settlement]] = []
        claiming = connection.cursor(binary=True)
        try:
            with connection.pipeline():
                _begin(connection, settles=bool(news))
                for told in news:
                    settling += self._tell(connection, told)
                if silenced := [job_id for told in news for job_id in told.silenced]:
                    forget_progress(connection, silenced)
                if claim is not None:
                    self._send(claiming, claim)
                connection.execute("commit")
        except (*_UNSTORABLE, psycopg.errors.QueryCanceled) as error:
            if claim is not None:
                del self._lost_claims[claim.lease_id]  # rolled back
            if isinstance(error, psycopg.errors.QueryCanceled):
                raise
            self._settle_one_by_one(news)
            return []
        for cursor, settlement in settling:
            if not is_settled(cursor, settlement):
                self._settled_before(settlement)
        self._mark_settled()
        if claim is None:
            return []
        jobs = self._take(claim, [ClaimedRow(*row) for row in claiming.fetchall()])
        del self._lost_claims[claim.lease_id]
        return jobs

    def _tell(self, connection: Connection[Any], news: News) -> list[tuple[Cursor[Any], Settlement]]:
        """Send it, lease by lease in their order: both statements lock the lease. What is settled, and who knows."""
        if news.said:
            save_progress(connection, news.lease_id, news.said)
        if news.settlement is None:
            return []
        cursor = connection.cursor()
        settle_jobs(cursor, news.settlement, time.monotonic_ns())
        return [(cursor, news.settlement)]

    def _send(self, cursor: Cursor[Any], claim: Claim) -> None:
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
        )

    def _take(self, claim: Claim, rows: list[ClaimedRow]) -> list[ClaimedJob]:
        if not rows:
            return []
        entry = self._row.show_lease(claim.lease_id, len(rows), claim.sent_ns)
        lease = HeldLease(claim.lease_id, entry, len(rows), claimed_ns=claim.sent_ns)
        self.leases.append(lease)
        self._advance_floors(claim, rows)
        lease.rows = rows
        lease.outspoken = {position: row.job_id for position, row in enumerate(rows, 1) if row.checkpoint is not None}
        return [ClaimedJob(lease, position, row) for position, row in enumerate(rows, start=1)]

    def _advance_floors(self, claim: Claim, rows: list[ClaimedRow]) -> None:
        last = {(row.queue, row.priority): row for row in (rows if rows[0][6:8] != rows[-1][6:8] else rows[-1:])}
        for (queue, priority), row in last.items():
            lane = self._lanes.index(queue, priority)
            if lane is not None:
                seen = (claim.floors[0][lane], claim.floors[1][lane])
                self._floors.advance(lane, seen, floor_of(row.run_at, row.job_id))

    def _settled_before(self, settlement: Settlement) -> None:
        """A settlement that recorded less than it should: sent before and committed, or its lease is gone."""
        with self._connect().cursor() as cursor:
            try:
                check_settled(cursor, settlement)
            except LeaseLost as error:
                self._tell_lost(settlement, find_unsettled(cursor, settlement), error)

    def _tell_lost(self, settlement: Settlement, unsettled: Sequence[Ended], error: LeaseLost) -> None:
        lease = self._lease(settlement.lease_id)
        self._lose(lease)
        for position, run in enumerate(settlement.ended, start=settlement.first):
            if run in unsettled and run is not None:
                who = lease.log_fields(position)
                log.error("%s", error, extra=fields("result_lost", **who, outcome=run.outcome.value))
                self._on_lost(lease.rows[position - 1], run.outcome)

    def _lose(self, lease: HeldLease) -> None:
        """Found gone here. Who finds it first, we or the monitor when it renews, counts it."""
        if not self._row.is_lost(lease.entry):
            self._row.lose(lease.entry)
            self._on_lease_lost()

    def _lease(self, lease_id: UUID) -> HeldLease:
        return next(lease for lease in self.leases if lease.lease_id == lease_id)

    def _mark_settled(self) -> None:
        for lease in self.leases:
            lease.mark_settled()
            if lease.is_to_be_reclaimed:
                lease.is_ended = self._is_reclaimed(lease)
        self._drop_ended_leases()

    def _doubt(self) -> None:
        """A connection belongs to one server for its life; the next one may lead to a standby that was promoted since,
        and that has not heard of the last settlements, transactions and releases. To end a lease there on the strength
        of them would leave their jobs nowhere."""
        connection = self._connect()
        if connection is not self._known:
            self._known = connection
            for lease in self.leases:
                lease.is_doubtful = True

    def _is_reclaimed(self, lease: HeldLease) -> bool:
        """End a lease of which all is settled by sending on what the server has no execution of, uncharged.

        False: somebody has it in hand, ask again."""
        asked = Reclaimable(lease.lease_id, self._row.worker_id, self._row.slots, None, only_expired=False)
        done = reclaim_lease(self._connect(), asked, _none_has_started, Backoff())
        if done is None:
            return lease.lease_id not in renew_leases(self._connect(), [lease.lease_id], self._lease_ttl)
        ids = [row.job_id for row in lease.rows]
        for job in done.jobs:
            if job.queue is None or job.priority is None or job.run_at is None:
                continue  # it does not go back
            lower_floor(self._floors, self._lanes, job.queue, job.priority, job.run_at, job.job_id)
            who = lease.log_fields(ids.index(job.job_id) + 1)
            log.error(
                "the server does not know how this job has ended: it runs again. Was a standby promoted that lagged?",
                extra=fields("result_forgotten", **who),
            )
        return True

    def _drop_ended_leases(self) -> None:
        for lease in [lease for lease in self.leases if lease.is_ended]:
            self._row.hide_lease(lease.entry)
            self.leases.remove(lease)

    def _settle_one_by_one(self, news: list[News]) -> None:
        """The server would not store something in a group: find it, and record its job without it."""
        connection = self._connect()
        if connection.info.transaction_status is not TransactionStatus.IDLE:
            connection.rollback()
        for told in news:
            self._save_alone(connection, told)
        for settlement in (told.settlement for told in news if told.settlement is not None):
            for position, run in enumerate(settlement.ended, start=settlement.first):
                if run is not None:
                    self._settle_alone(connection, Settlement(settlement.lease_id, position, [run], ends_lease=False))
            if settlement.ends_lease:
                with connection.cursor() as cursor:
                    settle_jobs(cursor, Settlement(settlement.lease_id, 1, [], ends_lease=True), time.monotonic_ns())
        if silenced := [job_id for told in news for job_id in told.silenced]:
            forget_progress(connection, silenced)
        self._mark_settled()

    def _save_alone(self, connection: Connection[Any], news: News) -> None:
        for position, said in news.said.items():
            try:
                save_progress(connection, news.lease_id, {position: said})
            except _UNSTORABLE as error:  # noqa: PERF203  each by itself is what this is for
                who = self._lease(news.lease_id).log_fields(position)
                log.error(
                    "the server would not store progress", extra=fields("progress_not_stored", **who, error=_why(error))
                )

    def _settle_alone(self, connection: Connection[Any], single: Settlement) -> None:
        with connection.cursor() as cursor:
            try:
                settle_jobs(cursor, single, time.monotonic_ns())
            except _UNSTORABLE as error:
                run = single.executions[0]
                who = self._lease(single.lease_id).log_fields(single.first)
                log.error(
                    "the server would not store the result or error of a job; it is recorded without",
                    extra=fields("result_not_stored", **who, error=_why(error)),
                )
                bare = replace(single, ended=[run._replace(result=None, error=None)])
                settle_jobs(cursor, bare, time.monotonic_ns())
            if not is_settled(cursor, single):
                self._settled_before(single)

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
        """These will not be started here; `give_back` returns them to the queue.

        The floors come down before that: who is told of the jobs must find them.
        """
        tells = log.isEnabledFor(logging.DEBUG)
        for job in unstarted:
            if tells:
                log.debug(
                    "not started here: it goes back to the queue", extra=fields("job_released", **job.log_fields())
                )
            job.lease.keep(job.position - 1)
            row = job.row
            lower_floor(self._floors, self._lanes, row.queue, row.priority, row.run_at, row.job_id)
        for lease in self.leases:
            if not lease.is_going_back:
                self._erase_line(lease)

    def give_back(self) -> None:
        """Release what is not to be started, and claims without an answer."""
        if self._lost_claims and time.monotonic() >= self._lost_claims_at:
            self._release_lost_claims()
        for lease in self.leases:
            if lease.is_going_back:
                self._release(lease)
        self._drop_ended_leases()

    def _release_lost_claims(self) -> None:
        """Again and again for a while: a claim may commit at a backend that has not yet noticed our end."""
        self._lost_claims_at = time.monotonic() + _LATE_COMMIT / 10
        for lease_id, give_up_at in list(self._lost_claims.items()):
            answer = release_jobs(self._connect(), lease_id, first=1)
            self._lower_floors(answer.lanes)
            if answer.lanes or time.monotonic() > give_up_at:
                del self._lost_claims[lease_id]

    def _erase_line(self, lease: HeldLease) -> None:
        """Only when every position that is ours has shown its start: until then the line may be meant for one that the
        runner has in hand and has not shown yet."""
        if self._row.started(lease.entry) >= lease.count:
            self._row.erase_line(lease.entry)

    def _release(self, lease: HeldLease) -> None:
        """Give a tail back. Repeatable: what the monitor or a try without an answer has released is not there."""
        self._row.show_count(lease.entry, lease.count)
        answer = release_jobs(self._connect(), lease.lease_id, lease.count + 1)
        if answer.is_busy:
            return
        lease.mark_gone_back()
        self._erase_line(lease)
        self._lower_floors(answer.lanes)

    def _lower_floors(self, returned: Sequence[Returned]) -> None:
        for back in returned:
            lower_floor(self._floors, self._lanes, back.queue, back.priority, back.run_at, back.job_id)


def _begin(connection: Connection[Any], *, settles: bool) -> None:
    connection.execute("begin isolation level read committed")
    limit_statements(connection)
    if not settles:
        connection.execute("set local synchronous_commit = off")  # a durable settle implies its claim


def _none_has_started(taken: TakenLease) -> Findings:
    """As the server has it, which does not know better."""
    nothing: list[None] = [None] * len(taken.job_ids)
    return Findings(nothing, nothing, "the server has lost what was recorded of it")


def _why(error: psycopg.Error) -> str:
    """Without what the server adds to it, which quotes the value."""
    return error.diag.message_primary or type(error).__name__
