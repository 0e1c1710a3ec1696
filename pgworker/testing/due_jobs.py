"""Run due jobs in this process, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from psycopg import Connection

from pgworker.app.app import App
from pgworker.app.queue.leases import ClaimedJob
from pgworker.app.queue.postgres import PostgresQueue
from pgworker.db.connect import connect_to_schema
from pgworker.errors import JobControl
from pgworker.inspection.jobs import ExecutionRecord, show_job
from pgworker.inspection.waiting import list_waiting_jobs
from pgworker.lifecycle.claim import Lanes
from pgworker.lifecycle.dead_letter_hooks import declare_hooks
from pgworker.linux.board import Board
from pgworker.linux.row import BoardRow
from pgworker.model.job import Job
from pgworker.model.payload import decode
from pgworker.model.state import Outcome
from pgworker.observe.logs import fields, logger
from pgworker.testing.clock import Clock
from pgworker.testing.execution import LEASE_TTL, WatchedExecution
from pgworker.worker.foreground import Foreground

_NAME = "pgworker drain"

log = logger("testing")


@dataclass(frozen=True, slots=True)
class DrainedJob:
    """One execution: of which job, how it ended, what it returned (both as recorded) and what the handler raised."""

    job: Job
    outcome: Outcome
    result: Any
    error: BaseException | None


def drain(
    app: App,
    *,
    queues: Sequence[str] = (),
    until: datetime | None = None,
    raising: bool = False,
    state: SimpleNamespace | None = None,
    limit: int = 1000,
) -> list[DrainedJob]:
    """Run the jobs that are due, and those that they enqueue, until none is left; what ran, in order.

    As a worker does with one slot, in this thread: in strict order of `queues`, by default all of them by name; what
    is due later (`run_at`, a retry after its backoff) stays, and so do unknown tasks and paused queues.

    `until`: an aware datetime; what falls due until then runs too, when its turn comes, as if the time had passed.
    Python's clock and the database's stay as they are.
    `raising`: raise the first error of a handler as it is, once it is recorded; not what it raises to say how its job
    goes on (Retry, Discard, Snooze, Cancelled).
    `state`: what handlers find at `ctx.state`; otherwise the hooks of workers run, and make it.

    A handler is asked to stop when its job is cancelled or its time is up, but nobody ends it if it doesn't look.
    AssertionError after `limit` executions: jobs that enqueue each other would go on for ever. RuntimeError in an
    event loop: use `drain_async`.
    """
    _refuse_running_loop()
    if isinstance(queues, str):
        raise TypeError(f"queues takes a list of names, [{queues!r}], not a string")
    if until is not None and getattr(until, "tzinfo", None) is None:
        raise ValueError(
            "until takes a time with a time zone, such as datetime.now(timezone.utc) + timedelta(days=1), "
            f"not {until!r}"
        )
    # A worker knows nothing of the contextvars of whoever enqueued.
    return Context().run(_drain, app, tuple(queues), Clock(until), raising, state, limit)


async def drain_async(
    app: App,
    *,
    queues: Sequence[str] = (),
    until: datetime | None = None,
    raising: bool = False,
    state: SimpleNamespace | None = None,
    limit: int = 1000,
) -> list[DrainedJob]:
    """As `drain`, for tests that run in an event loop: in a thread, with a loop of its own."""
    return await asyncio.to_thread(drain, app, queues=queues, until=until, raising=raising, state=state, limit=limit)


def _drain(
    app: App, queues: Sequence[str], clock: Clock, raising: bool, state: SimpleNamespace | None, limit: int
) -> list[DrainedJob]:
    ran: list[DrainedJob] = []
    with connect_to_schema(app.dsn, application_name=_NAME, prepare_threshold=1) as connection:
        declare_hooks(connection, list(app.tasks), app.dead_letter_hooks)
        with _working(app, connection, state) as worker:
            while True:
                waiting = list_waiting_jobs(connection)
                found = queues or sorted({job.queue for job in waiting})
                before = len(ran)
                for job in worker.run(found, limit - before):
                    ran.append(job)
                    if raising and job.error is not None and not isinstance(job.error, JobControl):
                        raise job.error
                if len(ran) == before and not clock.leap(connection, waiting, found, app.tasks.keys()):
                    return ran


@contextmanager
def _working(app: App, connection: Connection[Any], state: SimpleNamespace | None) -> Iterator[_Worker]:
    own = app.start_worker() if state is None else None
    try:
        worker = _Worker(app, connection, own or state or SimpleNamespace())
        try:
            yield worker
        finally:
            worker.close()
    finally:
        if own is not None:
            app.stop_worker(own)


class _Worker:
    """What a worker of a pool is, without the pool: no monitor renews its leases, no master watches its deadlines."""

    def __init__(self, app: App, connection: Connection[Any], state: SimpleNamespace) -> None:
        self._connection = connection
        self._foreground = Foreground(app, state, _NAME)
        self.close = self._foreground.close

    def run(self, queues: Sequence[str], limit: int) -> Iterator[DrainedJob]:
        """Run what is due in these queues until nothing is."""
        lanes = Lanes.of(queues)
        board = Board(1, len(lanes))
        [row] = board.rows
        row.reset(uuid4(), 0)
        queue = PostgresQueue(
            lambda: self._connection,
            row=row,
            floors=board.floors,
            lanes=lanes,
            tasks=self._foreground.tasks,
            lease_ttl=LEASE_TTL,
        )
        while jobs := queue.claim(1):
            if not limit:
                queue.keep_only_started(jobs)
                queue.give_back()
                raise AssertionError(f"drain has run as many jobs as its limit, and there are more: {jobs[0].job()}")
            limit -= 1
            yield self._run(jobs[0], queue, row)

    def _run(self, claimed: ClaimedJob, queue: PostgresQueue, row: BoardRow) -> DrainedJob:
        row.show_started(claimed.lease.entry, claimed.position)
        execution = WatchedExecution(claimed, self._foreground.slot(row, LEASE_TTL))
        execution.start()
        execution.watch(self._connection)
        _, error = self._foreground.run(execution, queue)
        if error is not None and not isinstance(error, JobControl):
            log.warning("the handler raised", exc_info=error, extra=fields("handler_raised", **claimed.log_fields()))
        queue.claim(0)
        return _drained(claimed, self._recorded(claimed), error)

    def _recorded(self, claimed: ClaimedJob) -> ExecutionRecord | None:
        """This execution as it is stored: a job that was cancelled meanwhile counts as cancelled, for example."""
        latest = show_job(self._connection, claimed.row.job_id, executions=1).executions
        return next((each for each in latest if each.execution == claimed.row.execution), None)


def _drained(claimed: ClaimedJob, recorded: ExecutionRecord | None, error: BaseException | None) -> DrainedJob:
    if recorded is None:  # somebody has reclaimed it meanwhile
        return DrainedJob(claimed.job(), Outcome.LOST, None, error)
    result = None if recorded.result is None else decode(recorded.result)
    return DrainedJob(claimed.job(), Outcome(recorded.outcome), result, error)


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("drain() would block the event loop that this test runs in: `await drain_async(app)`")
