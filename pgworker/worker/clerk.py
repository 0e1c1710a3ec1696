"""The clerk: a worker's one thread that talks to the database. Claims ahead, settles in groups, hands back.

One trip does it all: what has finished is settled and what is wanted next is claimed in one transaction and one round
trip. While handlers run, the clerk sleeps in `poll` on its wake-up pipe.
"""

from __future__ import annotations

import os
import random
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import Connection, Cursor
from psycopg.pq import TransactionStatus

from pgworker.config.settings import PoolSettings
from pgworker.db.connect import connect_to_schema, explain, is_outage
from pgworker.errors import EXIT_BUG, LeaseLost, PgworkerError, SchemaError
from pgworker.lifecycle.claim import ClaimedRow, Lanes, claim_jobs, floor_of, lower_floor
from pgworker.lifecycle.heartbeat import announce_tasks
from pgworker.lifecycle.release import Returned, release_jobs
from pgworker.lifecycle.settle import Settlement, check_settled, is_settled, settle_jobs
from pgworker.linux.board import LEASES, Board, Row
from pgworker.linux.wake import WOKEN_BY_RUNNER, wake
from pgworker.observe.events import Reporter
from pgworker.observe.logs import fields, logger
from pgworker.worker.lease import ClaimedJob, HeldLease
from pgworker.worker.prefetch import Prefetch
from pgworker.worker.runner import FinishedJob, Runner
from pgworker.worker.sweep import Sweeper

SETTLE_INTERVAL = 0.005
"""Seconds that finished jobs wait for company before they are settled, unless a claim goes the same way."""

HOLD_UP = 0.25
"""Seconds a running job may hold up the jobs claimed behind it before they go back to the queue."""

_AWAKE, _GROUPING, _ASLEEP = range(3)

_UNSTORABLE = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded)
"""What the server says of a result or error that it can't take; no reason to try the same again."""

_RECONNECT_CAP = 2.0  # seconds
_LATE_COMMIT = 5.0  # seconds after which a claim without an answer can't commit any more at a backend that is gone

log = logger("worker.clerk")


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim on its way: what must be given back, whole, if its answer is lost."""

    lease_id: UUID
    jobs: int
    sent_ns: int
    floors: tuple[list[int], list[int]]


class Clerk:
    """Runs `work` in a thread of its own until the worker has drained."""

    def __init__(
        self,
        *,
        dsn: str,
        application_name: str,
        settings: PoolSettings,
        board: Board,
        row: Row,
        runner: Runner,
        tasks: Sequence[str],
        reporter: Reporter,
        wake_read: int,
        wake_write: int,
    ) -> None:
        self._dsn = dsn
        self._application_name = application_name
        self._settings = settings
        self._board = board
        self._row = row
        self._runner = runner
        self._tasks = list(tasks)
        row.tasks_hash = int.from_bytes(sha256("\n".join(sorted(tasks)).encode()).digest()[:8], "big")
        self._lanes = Lanes.of(settings.queues)
        self._sweeper = Sweeper(board, self._tasks, self._lanes)
        self._reporter = reporter
        self._wake_read = wake_read
        self._wake_write = wake_write
        self._prefetch = Prefetch(settings.prefetch_seconds, settings.max_batch)
        self._connection: Connection[Any] | None = None
        self._failed_connects = 0
        self._leases: list[HeldLease] = []
        self._lost_claims: dict[UUID, float] = {}
        self._lost_claims_at = 0.0
        self._reports: list[tuple[str, str, str, float]] = []
        self._dry_until = 0.0
        self._was_idle = False
        self._settled_at = 0.0
        self._asleep = _AWAKE
        self._poll = select.poll()
        self._poll.register(wake_read, select.POLLIN)
        self.failure: PgworkerError | None = None
        """Why the clerk gave up; None: it has not."""

    def wake(self, runner_waits: bool) -> None:
        """Called by the runner after each job, and when it has nothing left: end the clerk's sleep, if it sleeps."""
        if self._asleep == _ASLEEP or (runner_waits and self._asleep == _GROUPING):
            self._asleep = _AWAKE
            wake(self._wake_write, WOKEN_BY_RUNNER)

    def work(self) -> None:
        """Claim and settle until the worker drains and nothing is left; the runner is stopped on the way out."""
        try:
            while not self._is_done():
                self._sleep(self._go_round(), _ASLEEP)
        except SchemaError as error:
            self.failure = error
            log.error("%s", error)
            self._row.ask_drain()
        except Exception:  # a bug must end this worker, not leave it running without its clerk
            log.exception("the clerk failed: this is a bug in pgworker; the worker ends and is replaced")
            os._exit(EXIT_BUG)
        finally:
            self._runner.todo.clear()  # nobody would settle it; it goes back with its lease
            self._runner.stop()
            if self._connection is not None:
                self._connection.close()

    # -- one round

    def _go_round(self) -> float:
        """Do what there is to do; returns the seconds to sleep unless woken."""
        self._collect()
        try:
            self._connect()
            self._give_back()
            settlements = self._settlements()
            wanted = self._wanted()
            if settlements and not wanted and not self._is_settle_due():
                self._sleep(SETTLE_INTERVAL, _GROUPING)
                return 0.0
            if settlements or wanted:
                self._trip(settlements, wanted)
                if self._sweeper.sweep(self._require_connection()):
                    self._dry_until = 0.0
        except SchemaError:
            raise
        except (psycopg.Error, OSError, PgworkerError) as error:
            self._after_error(error)
            return 0.0
        return self._pause()

    def _collect(self) -> None:
        finished = self._runner.finished
        jobs: list[FinishedJob] = []
        while finished:
            jobs.append(finished.popleft())
        if not jobs:
            return
        for job in jobs:
            lease, row = job.claimed.lease, job.claimed.row
            lease.ready.append(job.ended)
            if job.claimed.position != lease.settled + len(lease.ready):
                raise AssertionError(f"position {job.claimed.position} of lease {lease.lease_id} ended out of order")
            self._reports.append((row.queue, row.task, job.outcome.value, job.seconds))
        self._prefetch.observe(len(jobs), sum(job.seconds for job in jobs))

    def _settlements(self) -> list[Settlement]:
        """In the order of lease ids, as a cancel locks them: the two can't deadlock."""
        leases = sorted(self._leases, key=lambda lease: lease.lease_id)
        return [settlement for lease in leases for settlement in lease.settlements()]

    def _is_settle_due(self) -> bool:
        return time.monotonic() - self._settled_at >= SETTLE_INTERVAL or self._runner.is_idle

    def _wanted(self) -> int:
        if self._row.is_draining or len(self._leases) >= LEASES or not self._tasks:
            return 0
        now = time.monotonic()
        becomes_idle = self._runner.is_idle and not self._was_idle
        self._was_idle = self._runner.is_idle
        if now < self._dry_until and not becomes_idle:
            return 0
        started_ns = self._runner.started_ns
        running_for = None
        if not self._runner.is_waiting:
            running_for = (time.monotonic_ns() - started_ns) / 1e9 if started_ns else 0.0
        return self._prefetch.wanted(len(self._runner.todo), running_for)

    def _pause(self) -> float:
        if not self._runner.is_idle:
            self._row.is_idle = False
            return HOLD_UP
        if self._row.is_draining or not self._tasks:
            return self._settings.beat_interval / 20
        self._row.is_idle = True
        return self._dry_until - time.monotonic()

    def _sleep(self, seconds: float, depth: int) -> None:
        """Until somebody writes to the wake-up pipe: the runner does so after every job while the clerk is `_ASLEEP`,
        after its last one while `_GROUPING`, and never while `_AWAKE`."""
        self._asleep = depth
        if depth == _ASLEEP and (self._runner.finished or self._runner.refused):
            seconds = 0.0
        if self._poll.poll(max(0.0, seconds) * 1000):
            woken = os.read(self._wake_read, 4096)
            if woken.strip(WOKEN_BY_RUNNER):  # not only by the runner: somebody tells of new jobs, or of a drain
                self._dry_until = 0.0
        self._asleep = _AWAKE

    def _is_done(self) -> bool:
        return (
            self._row.is_draining
            and self._runner.is_idle
            and not self._leases
            and not self._runner.finished
            and not self._runner.refused
            and not self._lost_claims
        )

    # -- the trip

    def _trip(self, settlements: list[Settlement], wanted: int) -> None:
        """Settle and claim in one transaction and one round trip."""
        connection = self._require_connection()
        claim = Claim(uuid4(), wanted, time.monotonic_ns(), self._board.floors.read()) if wanted else None
        if claim is not None:
            self._lost_claims[claim.lease_id] = time.monotonic() + _LATE_COMMIT  # until its answer is here
        settling = [connection.cursor() for _ in settlements]
        claiming = connection.cursor(binary=True)
        try:
            with connection.pipeline():
                connection.execute("begin isolation level read committed")
                if not settlements:
                    connection.execute("set local synchronous_commit = off")  # a durable settle implies its claim
                for cursor, settlement in zip(settling, settlements, strict=True):
                    settle_jobs(cursor, settlement, time.monotonic_ns())
                if claim is not None:
                    self._send(claiming, claim)
                connection.execute("commit")
        except _UNSTORABLE:
            self._settle_one_by_one(settlements)
            return
        self._settled_at = time.monotonic()
        for cursor, settlement in zip(settling, settlements, strict=True):
            if not is_settled(cursor, settlement):
                self._settled_before(settlement)
        self._mark_settled()
        if claim is not None:
            self._take(claim, [ClaimedRow(*row) for row in claiming.fetchall()])
            del self._lost_claims[claim.lease_id]

    def _send(self, cursor: Cursor[Any], claim: Claim) -> None:
        claim_jobs(
            cursor,
            lease_id=claim.lease_id,
            worker_id=self._row.worker_id,
            ttl=self._settings.lease_ttl,
            slots=1,
            jobs=claim.jobs,
            tasks=self._tasks,
            lanes=self._lanes,
            floors=claim.floors,
        )

    def _take(self, claim: Claim, rows: list[ClaimedRow]) -> None:
        if len(rows) < claim.jobs:
            self._dry_until = time.monotonic() + self._settings.poll_interval * random.uniform(0.9, 1.1)
        else:
            self._dry_until = 0.0
        if not rows:
            return
        self._row.is_idle = False
        lease = HeldLease(claim.lease_id, self._row.show_lease(claim.lease_id, len(rows), claim.sent_ns), len(rows))
        self._leases.append(lease)
        self._advance_floors(claim, rows)
        self._runner.put([ClaimedJob(lease, position, row) for position, row in enumerate(rows, start=1)])

    def _advance_floors(self, claim: Claim, rows: list[ClaimedRow]) -> None:
        last = {(row.queue, row.priority): row for row in (rows if rows[0][6:8] != rows[-1][6:8] else rows[-1:])}
        for (queue, priority), row in last.items():
            lane = self._lanes.index(queue, priority)
            if lane is not None:
                seen = (claim.floors[0][lane], claim.floors[1][lane])
                self._board.floors.advance(lane, seen, floor_of(row.run_at, row.job_id))

    def _settled_before(self, settlement: Settlement) -> None:
        """A settlement that recorded less than it should: sent before and committed, or its lease is gone."""
        try:
            with self._require_connection().cursor() as cursor:
                check_settled(cursor, settlement)
        except LeaseLost as error:
            for lease in self._leases:
                if lease.lease_id == settlement.lease_id:
                    self._row.lose(lease.entry)
            jobs = ", ".join(f"{run.job_id}/{run.execution}" for run in settlement.ended)
            log.error("%s", error, extra=fields(lease=settlement.lease_id, jobs=jobs, worker=self._row.worker_id))

    def _mark_settled(self) -> None:
        for lease in self._leases:
            lease.mark_settled()
        self._drop_ended_leases()
        reports, self._reports = self._reports, []
        if reports:
            self._reporter.report(reports)

    def _drop_ended_leases(self) -> None:
        for lease in [lease for lease in self._leases if lease.is_ended]:
            self._row.hide_lease(lease.entry)
            self._leases.remove(lease)

    def _settle_one_by_one(self, settlements: list[Settlement]) -> None:
        """The server would not store something in a group: find it, and record its job without it."""
        connection = self._require_connection()
        if connection.info.transaction_status is not TransactionStatus.IDLE:
            connection.rollback()
        for settlement in settlements:
            for offset, run in enumerate(settlement.ended):
                ends = settlement.ends_lease and offset == len(settlement.ended) - 1
                single = Settlement(settlement.lease_id, settlement.first + offset, [run], ends)
                with connection.cursor() as cursor:
                    try:
                        settle_jobs(cursor, single, time.monotonic_ns())
                    except _UNSTORABLE as error:
                        log.error(
                            "the server would not store the result or error of a job; it is recorded without",
                            extra=fields(job=run.job_id, execution=run.execution, error=error),
                        )
                        bare = Settlement(single.lease_id, single.first, [run._replace(result=None, error=None)], ends)
                        settle_jobs(cursor, bare, time.monotonic_ns())
                    if not is_settled(cursor, single):
                        self._settled_before(single)
            if settlement.ends_lease and not settlement.ended:
                with connection.cursor() as cursor:
                    settle_jobs(cursor, settlement, time.monotonic_ns())
        self._mark_settled()

    # -- handing back

    def _give_back(self) -> None:
        """Release what is not to run here: refused starts, a drain, jobs behind a long one, a claim without answer."""
        if self._lost_claims and time.monotonic() >= self._lost_claims_at:
            self._release_lost_claims()
        if self._row.is_draining or self._is_held_up() or self._runner.refused or self._has_line():
            self._take_back()
        for lease in self._leases:
            if lease.is_going_back:
                self._release(lease)
        self._drop_ended_leases()

    def _release_lost_claims(self) -> None:
        """Again and again for a while: a claim may commit at a backend that has not yet noticed our end."""
        self._lost_claims_at = time.monotonic() + _LATE_COMMIT / 10
        for lease_id, give_up_at in list(self._lost_claims.items()):
            answer = release_jobs(self._require_connection(), lease_id, first=1)
            self._lower_floors(answer.lanes)
            if answer.lanes or time.monotonic() > give_up_at:
                del self._lost_claims[lease_id]

    def _is_held_up(self) -> bool:
        started_ns = self._runner.started_ns
        return bool(self._runner.todo) and started_ns > 0 and time.monotonic_ns() - started_ns > HOLD_UP * 1e9

    def _has_line(self) -> bool:
        return any(self._row.line(lease.entry) is not None for lease in self._leases)

    def _take_back(self) -> None:
        """Take everything out of the runner's reach that it has not started, in whatever lease it is."""
        for waiting in (self._runner.todo, self._runner.refused):
            while waiting:
                try:
                    claimed = waiting.pop()
                except IndexError:  # the runner was quicker
                    break
                claimed.lease.keep(claimed.position - 1)
        for lease in self._leases:
            if not lease.is_going_back:
                self._erase_line(lease)

    def _erase_line(self, lease: HeldLease) -> None:
        """Only when every position that is ours has shown its start: until then the line may be meant for one that the
        runner has in hand and has not shown yet."""
        if self._row.started(lease.entry) >= lease.count:
            self._row.erase_line(lease.entry)

    def _release(self, lease: HeldLease) -> None:
        """Give a tail back. Repeatable: what the monitor or a try without an answer has released is not there."""
        self._row.show_count(lease.entry, lease.count)
        answer = release_jobs(self._require_connection(), lease.lease_id, lease.count + 1)
        if answer.is_busy:
            return
        lease.mark_gone_back()
        self._erase_line(lease)
        self._lower_floors(answer.lanes)

    def _lower_floors(self, returned: Sequence[Returned]) -> None:
        for back in returned:
            lower_floor(self._board.floors, self._lanes, back.queue, back.priority, back.run_at, back.job_id)

    # -- the connection

    def _connect(self) -> None:
        if self._connection is not None and not self._connection.closed:
            return
        self._connection = connect_to_schema(self._dsn, application_name=self._application_name, prepare_threshold=1)
        announce_tasks(self._connection, self._row.tasks_hash, self._tasks)
        self._failed_connects = 0

    def _require_connection(self) -> Connection[Any]:
        assert self._connection is not None, "_connect comes first in every round"
        return self._connection

    def _after_error(self, error: psycopg.Error | OSError | PgworkerError) -> None:
        """Keep what is finished, drop the connection, say it once a second, wait a little."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._failed_connects += 1
        if self._board.take_outage_line(time.monotonic_ns()):
            waiting = sum(len(lease.ready) for lease in self._leases)
            level = log.warning if is_outage(error) else log.error
            said = error if isinstance(error, PgworkerError) else explain(error, self._dsn)
            level("%s Trying again.", said, extra=fields(results_waiting=waiting))
        pause = min(_RECONNECT_CAP, 0.1 * 2.0 ** min(self._failed_connects, 10)) * random.uniform(0.5, 1.0)
        self._sleep(pause, _AWAKE)
