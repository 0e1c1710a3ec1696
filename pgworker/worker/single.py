"""One job by its id, in the foreground: claimed, kept and settled as a worker does it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from psycopg import Cursor

from pgworker.app.app import App
from pgworker.app.queue.leases import ClaimedJob
from pgworker.app.queue.open_queue import OpenQueue
from pgworker.app.queue.postgres import Claim
from pgworker.errors import DatabaseUnavailable
from pgworker.lifecycle.claim import Lanes, claim_job
from pgworker.lifecycle.settle import Ended, Next
from pgworker.linux.row import BoardRow
from pgworker.model.state import Outcome
from pgworker.observe.logs import fields, logger
from pgworker.worker.execution import Execution
from pgworker.worker.foreground import Foreground
from pgworker.worker.keeper import LEASE_TTL, LeaseKeeper

NAME = "pgworker jobs run"

log = logger("worker.single")


class NotClaimed(Exception):
    """The job can't be had: it doesn't wait, or its queue is paused."""


class Interrupted(Exception):
    """Whoever waits has given up (Ctrl-C, `q` in pdb). The job is back in its queue, uncharged."""


class _PatientExecution(Execution):
    """Its transactions may stay open without a statement for as long as somebody looks at them."""

    __slots__ = ()

    @property
    def idle_limit_ms(self) -> int:
        return 0


class _OneJob(OpenQueue):
    """A queue whose claims are for one job, due or not."""

    def __init__(self, app: App, queue: str, job_id: UUID, *, even_paused: bool) -> None:
        super().__init__(app.dsn, Lanes.of([queue]), app.tasks, LEASE_TTL)
        self._job_id = job_id
        self._even_paused = even_paused

    @property
    def row(self) -> BoardRow:
        return self._row

    def _send_claim(self, cursor: Cursor[Any], claim: Claim) -> None:
        claim_job(
            cursor,
            self._job_id,
            lease_id=claim.lease_id,
            worker_id=self._row.worker_id,
            ttl=self._lease_ttl,
            tasks=self._names,
            even_paused=self._even_paused,
        )


def run_job(
    app: App,
    queue: str,
    job_id: UUID,
    *,
    even_paused: bool = False,
    on_start: Callable[[ClaimedJob], object] = lambda _: None,
) -> BaseException | None:
    """Run a job of `queue` in this thread; what its handler raised. How it ended is recorded by then, as ever.

    The start hooks run before it, the stop hooks after it. A thread renews its lease; nobody ends it at its deadline.
    Raises NotClaimed; Interrupted; whatever can be wrong with the database or a start hook.
    """
    state = app.start_worker()
    try:
        return _run(app, state, _OneJob(app, queue, job_id, even_paused=even_paused), on_start)
    finally:
        app.stop_worker(state)


def _run(
    app: App, state: SimpleNamespace, queue: _OneJob, on_start: Callable[[ClaimedJob], object]
) -> BaseException | None:
    foreground = Foreground(app, state, NAME)
    keeper = LeaseKeeper(app.dsn, queue.row, foreground.progress)
    how = "it has ended"
    try:
        keeper.begin()
        jobs = queue.claim(1)
        if not jobs:
            raise NotClaimed
        return _run_claimed(foreground, keeper, queue, jobs[0], on_start)
    except BaseException as error:
        how = f"it was ended by {type(error).__name__}"
        raise
    finally:
        with ExitStack() as ending:
            ending.callback(keeper.end, how)
            ending.callback(queue.close)
            ending.callback(foreground.close)


def _run_claimed(
    foreground: Foreground,
    keeper: LeaseKeeper,
    queue: _OneJob,
    claimed: ClaimedJob,
    on_start: Callable[[ClaimedJob], object],
) -> BaseException | None:
    row = queue.row
    execution = _PatientExecution(claimed, foreground.slot(row, LEASE_TTL))
    try:
        on_start(claimed)
        row.show_started(claimed.lease.entry, claimed.position)
        execution.start()
        keeper.keep(claimed)
        _, error = foreground.run(execution, queue)
    except BaseException as interruption:
        keeper.let_go()
        foreground.pass_on_progress(queue)
        if execution.is_settled:
            queue.succeeded_itself(claimed)
        else:
            _hand_back(queue, execution)
        _record(queue)
        raise Interrupted from interruption
    keeper.let_go()
    _record(queue)
    return error


def _hand_back(queue: _OneJob, execution: Execution) -> None:
    """Its history says that it was released. It may not have been due: then it waits for that."""
    row, now_ns = execution.claimed.row, time.monotonic_ns()
    ended = Ended(row.job_id, row.execution, execution.started_ns or now_ns, now_ns, Outcome.RELEASED, Next.REQUEUE)
    ended.run_at = row.run_at
    queue.fail(execution.claimed, ended)


def _record(queue: _OneJob) -> None:
    """Settle, through an outage if need be: who worked an hour on it may wait a minute for its end."""
    is_told = False
    while True:
        try:
            queue.claim(0)
            return
        except DatabaseUnavailable as error:  # noqa: PERF203  that is what it is for
            if not is_told:
                log.warning(
                    "%s How the job ended can't be recorded yet; Ctrl-C gives that up.",
                    error,
                    extra=fields("database_away"),
                )
            is_told = True
            time.sleep(0.5)
