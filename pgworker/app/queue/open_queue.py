"""The queue by itself: claim jobs and say how they ended, without a pool."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
from psycopg import Connection

from pgworker.app.queue.leases import ClaimedJob
from pgworker.app.queue.postgres import PostgresQueue, Queue
from pgworker.app.task import Task
from pgworker.db.connect import connect_to_schema, explain_use
from pgworker.db.patience import ANSWER
from pgworker.errors import ConfigurationError, PgworkerError
from pgworker.lifecycle.claim import Lanes
from pgworker.lifecycle.settle import Ended, Next
from pgworker.lifecycle.transaction import limit_session
from pgworker.linux.board import Board
from pgworker.model.job import JobRequest
from pgworker.model.names import check_queues
from pgworker.model.state import Outcome
from pgworker.observe.logs import fields, logger

MOST: Final = 1000
"""Jobs in one claim."""

_RELEASES: Final = 20  # at the end, 50 ms apart: a lease that somebody marks for a cancel is locked meanwhile

log = logger("queue")


class OpenQueue(PostgresQueue):
    """What `App.queue` opens. For one thread; connects at first use, and again after an outage.

    Whatever the database says comes explained, as with all of an App. Nothing is lost by that: what was said to have
    ended is sent again.
    """

    def __init__(self, dsn: str, lanes: Lanes, tasks: Mapping[str, Task[..., Any]], lease_ttl: float) -> None:
        board = Board(1, len(lanes))
        [row] = board.rows
        row.reset(uuid4(), time.monotonic_ns())
        super().__init__(self._connected, row=row, floors=board.floors, lanes=lanes, tasks=tasks, lease_ttl=lease_ttl)
        self._dsn = dsn
        self._connection: Connection[Any] | None = None
        self._held: dict[tuple[UUID, int], ClaimedJob] = {}

    def claim(self, n: int) -> list[ClaimedJob]:
        """As every queue does. ValueError: more than a thousand at a time, or four claims have jobs that go on."""
        given: object = n
        if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= MOST:
            raise ValueError(f"claim takes a number of jobs from 0 to {MOST}")
        with self._explained():
            self.give_back()
            self._floors.lower_all()  # nobody sweeps behind them here
            jobs = super().claim(n)
        self._held.update(((job.lease.lease_id, job.position), job) for job in jobs)
        return jobs

    def enqueue(self, requests: Sequence[JobRequest]) -> list[UUID]:
        with self._explained():
            return super().enqueue(requests)

    def delete(self, job_id: UUID) -> bool:
        with self._explained():
            return super().delete(job_id)

    def purge(self, queue: str) -> int:
        with self._explained():
            return super().purge(queue)

    def close(self) -> None:
        """Record what has ended, and give everything else back."""
        try:
            with self._explained():
                self._return_gaps()
                super().claim(0)
                for lease in self.leases:
                    lease.keep(max(lease.ended, default=0))
                self._return_tails()
        finally:
            self._disconnect()

    def _end(self, job: ClaimedJob, ended: Ended | None) -> None:
        if self._held.pop((job.lease.lease_id, job.position), None) is None:
            raise ValueError(f"job {job.row.job_id} has ended here already, or was claimed elsewhere")
        super()._end(job, ended)

    def _return_gaps(self) -> None:
        """What was claimed before a job that has ended: a release gives back the end of a lease only."""
        for job in [job for job in self._held.values() if job.position <= max(job.lease.ended, default=0)]:
            row, now_ns = job.row, time.monotonic_ns()
            self._end(job, Ended(row.job_id, row.execution, now_ns, now_ns, Outcome.RELEASED, Next.REQUEUE))

    def _return_tails(self) -> None:
        for _ in range(_RELEASES):
            self.give_back()
            super().claim(0)  # a lease ends when all that is left of it has ended
            if not self.leases and not self.has_lost_claims:
                return
            time.sleep(0.05)

    def _connected(self) -> Connection[Any]:
        if self._connection is None or self._connection.closed:
            patience = max(ANSWER, self._lease_ttl)
            connection = connect_to_schema(
                self._dsn,
                application_name="pgworker queue",
                prepare_threshold=None,
                patience=patience,
                accepts_newer=self._connection is not None,
            )
            self._connection = connection
            limit_session(connection, patience)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            assert self._connection is not None  # what connecting raises is explained
            told = explain_use(error, self._connection, self._dsn)
            self._disconnect()
            raise told from error


@contextmanager
def open_queue(
    dsn: str, queues: Sequence[str], tasks: Mapping[str, Task[..., Any]], lease_ttl: float
) -> Iterator[Queue]:
    """These queues, or those of the tasks; whatever is held at the end goes back."""
    names = queues or sorted({task.queue for task in tasks.values()})
    if not tasks:
        raise ConfigurationError("the app has no tasks, and a queue gives jobs of its tasks only; import their module")
    if lease_ttl < 1:
        raise ConfigurationError(f"a lease of {lease_ttl:g} s is over before its jobs are here; give it 1 s or more")
    queue = OpenQueue(dsn, Lanes.of(check_queues(names)), tasks, lease_ttl)
    try:
        yield queue
    except BaseException:
        try:
            queue.close()
        except PgworkerError as error:  # what was raised in the block says more
            log.warning(
                "a queue could not give its jobs back; they run again when their leases are over",
                extra=fields("queue_not_returned", error=error),
            )
        raise
    queue.close()
