"""The runner: calls handlers, on the worker's main thread, one after the other.

It takes claimed jobs from one deque and puts what became of them into another; the clerk fills the one and empties the
other. Popping from a deque is atomic, so a job that the clerk takes back from the end is never started here.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import msgspec
from psycopg import Connection

from pgworker.app.context import Context
from pgworker.app.task import Task
from pgworker.errors import EXIT_BUG, Cancelled, Discard, JobControl, Retry, Snooze
from pgworker.lifecycle.claim import ClaimedRow
from pgworker.lifecycle.settle import Ended, Next
from pgworker.linux.board import Row
from pgworker.model.durations import seconds
from pgworker.model.job import Job
from pgworker.model.lease import lease_margin
from pgworker.model.payload import decode, describe_error, encode_result
from pgworker.model.state import CancelReason, Outcome
from pgworker.observe.logs import fields, logger
from pgworker.worker.lease import ClaimedJob, HeldLease
from pgworker.worker.transaction import JobTransactions

_FAR_AWAY_NS = 2**63 - 1  # what a word of the board holds; some 292 years

log = logger("worker.runner")


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """A job that ran. No `ended`: its own transaction has recorded it."""

    claimed: ClaimedJob
    ended: Ended | None
    outcome: Outcome
    seconds: float


class Runner:
    """Runs what is put into `todo`; puts what became of it into `finished`, or into `refused` what it may not start."""

    def __init__(
        self, tasks: Mapping[str, Task[..., Any]], row: Row, lease_ttl: float, transactions: JobTransactions
    ) -> None:
        self.todo: deque[ClaimedJob] = deque()
        self.finished: deque[FinishedJob] = deque()
        self.refused: deque[ClaimedJob] = deque()
        self._tasks = tasks
        self._row = row
        self._start_within_ns = int((lease_ttl - lease_margin(lease_ttl)) * 1e9)
        self._transactions = transactions
        self._arrived = threading.Condition()
        self._stopping = False
        self._pid = 0
        self._closed: HeldLease | None = None
        self.is_waiting = False
        self.started_ns = 0
        """When the running job started, by the monotonic clock; 0: none runs."""

    # -- called by the clerk

    def put(self, jobs: list[ClaimedJob]) -> None:
        with self._arrived:
            self.todo.extend(jobs)
            self._arrived.notify()

    def stop(self) -> None:
        """Return from `run_jobs` as soon as nothing is left to do."""
        with self._arrived:
            self._stopping = True
            self._arrived.notify()

    @property
    def is_idle(self) -> bool:
        return self.is_waiting and not self.todo

    # -- the main thread

    def run_jobs(self, wake: Callable[[bool], None]) -> None:
        """Run jobs until `stop`. `wake(False)` is called after each, `wake(True)` when nothing is left to run."""
        self._pid = os.getpid()
        while True:
            try:
                claimed = self.todo.popleft()
            except IndexError:
                if not self._wait(wake):
                    return
                continue
            if self._may_start(claimed):
                self._run(claimed)
            else:
                self.refused.append(claimed)
            wake(False)

    def _wait(self, wake: Callable[[bool], None]) -> bool:
        self.is_waiting = True
        wake(True)
        with self._arrived:
            while not self.todo and not self._stopping:
                self._arrived.wait()
            self.is_waiting = False
            return bool(self.todo) or not self._stopping

    def _may_start(self, claimed: ClaimedJob) -> bool:
        """Show the start on the board, then look whether anybody objects; in this order, see `Row.draw_line`."""
        row, entry = self._row, claimed.lease.entry
        if claimed.lease is self._closed:  # one position refused, all after it refused: a lease is run in order
            return False
        row.show_started(entry, claimed.position)
        line = row.line(entry)
        if (
            (line is None or claimed.position <= line)
            and not row.is_lost(entry)
            and time.monotonic_ns() - row.renewed_ns(entry) < self._start_within_ns
        ):
            return True
        row.show_started(entry, claimed.position - 1)
        self._closed = claimed.lease
        return False

    def _run(self, claimed: ClaimedJob) -> None:
        job, row = claimed.row, self._row
        started_ns = time.monotonic_ns()
        deadline_ns = min(_FAR_AWAY_NS, started_ns + job.timeout_ms * 1_000_000) if job.timeout_ms else 0
        sequence = row.start_run(claimed.lease.entry, claimed.position, started_ns, deadline_ns)
        self.started_ns = started_ns
        execution = _Execution(claimed, row, sequence, deadline_ns, self._transactions)
        try:
            ended = self._call(claimed, execution, started_ns)
        finally:
            self.started_ns = 0
            row.end_run(sequence)
        if execution.is_settled:
            if ended.outcome is not Outcome.SUCCEEDED:
                log.warning(
                    "the handler failed after its transaction had committed: the job has succeeded all the same",
                    extra=fields(**_who(claimed), error=ended.error),
                )
            self.finished.append(
                FinishedJob(claimed, None, Outcome.SUCCEEDED, (time.monotonic_ns() - started_ns) / 1e9)
            )
        else:
            self.finished.append(FinishedJob(claimed, ended, ended.outcome, (ended.finished_ns - started_ns) / 1e9))
        execution.clean_up()

    def _call(self, claimed: ClaimedJob, execution: _Execution, started_ns: int) -> Ended:
        job = claimed.row
        try:
            task = self._tasks[job.task]
            if job.payload is None:
                raise Discard("its row in pgworker.jobs is missing: the partition was dropped while it waited")
            context = execution.context() if task.needs_context else None
            returned = task.invoke(job.payload, context, execution.job)
            self._leave_if_forked(0)
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises ends this execution, nothing else
            self._leave_if_forked(EXIT_BUG)
            return self._failed(claimed, execution, error, started_ns)
        finished_ns = time.monotonic_ns()
        reason = execution.reason
        if reason is CancelReason.CANCELLED and execution.cancel_seen:
            return Ended(job.job_id, job.execution, started_ns, finished_ns, Outcome.CANCELLED)
        if returned is None:
            return Ended(job.job_id, job.execution, started_ns, finished_ns)
        result = encode_result(returned)
        if result.problem:
            log.warning("%s", result.problem, extra=fields(**_who(claimed)))
        text = None if result.json is None else result.json.decode()
        return Ended(job.job_id, job.execution, started_ns, finished_ns, result=text)

    def _leave_if_forked(self, code: int) -> None:
        """A child that a handler has forked ends here: one step on, it would run this worker's jobs once more."""
        if os.getpid() != self._pid:
            os._exit(code)

    def _judge(self, job: ClaimedRow, execution: _Execution, error: BaseException) -> Verdict:
        task = self._tasks.get(job.task)
        attempts = job.max_attempts or 1
        try:
            return judge(error, execution.reason, execution.cancel_seen, job.failures, attempts, task, execution.job)
        except BaseException as second:
            log.exception("should_retry or a delay is broken: an ordinary failure", extra=fields(job=job.job_id))
            return judge(second, execution.reason, execution.cancel_seen, job.failures, attempts, None, execution.job)

    def _failed(self, claimed: ClaimedJob, execution: _Execution, error: BaseException, started_ns: int) -> Ended:
        job = claimed.row
        verdict = self._judge(job, execution, error)
        described = describe_error(error)
        if verdict.outcome.is_charged and not execution.is_settled:
            log.warning(
                "job failed; %s",
                verdict.consequence,
                extra=fields(
                    **_who(claimed),
                    outcome=verdict.outcome.value,
                    error=described["type"],
                    message=described["message"],
                ),
            )
        return Ended(
            job.job_id,
            job.execution,
            started_ns,
            time.monotonic_ns(),
            verdict.outcome,
            verdict.next,
            verdict.delay,
            None if verdict.outcome is Outcome.CANCELLED else msgspec.json.encode(described).decode(),
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an execution that raised counts as, and how its job goes on; `consequence` is for the log."""

    outcome: Outcome
    next: Next
    delay: float
    consequence: str


def judge(
    error: BaseException,
    reason: CancelReason,
    cancel_seen: bool,
    failures: int,
    max_attempts: int,
    task: Task[..., Any] | None,
    job: Callable[[], Job],
) -> Verdict:
    """Who raised what, after which request to stop, and with how many failures before."""
    if isinstance(error, Cancelled) or (cancel_seen and reason is not CancelReason.NONE):
        outcome = Outcome.CANCELLED if reason is CancelReason.NONE else reason.outcome
        if outcome is Outcome.CANCELLED:
            return Verdict(outcome, Next.END, 0.0, "cancelled")
        if not outcome.is_charged:
            return Verdict(outcome, Next.REQUEUE, 0.0, "it goes back to the queue, uncharged")
    else:
        outcome = Outcome.TIMED_OUT if reason is CancelReason.DEADLINE else Outcome.FAILED
    if isinstance(error, Snooze):
        delay = _until(error)
        return Verdict(Outcome.SNOOZED, Next.REQUEUE, delay, f"it runs again in {delay:.1f} s")
    failed = failures + 1
    if isinstance(error, Discard) or (task is not None and not _is_worth_retrying(task, error, job)):
        return Verdict(outcome, Next.BURY, 0.0, "not to be retried: it is a dead letter now")
    if failed >= max_attempts:
        return Verdict(outcome, Next.BURY, 0.0, f"failure {failed} of {max_attempts}: it is a dead letter now")
    if isinstance(error, Retry) and error.after is not None:
        delay = seconds(error.after)
    else:
        delay = task.backoff.delay(failed, random.random()) if task is not None else 1.0
    return Verdict(outcome, Next.REQUEUE, delay, f"failure {failed} of {max_attempts}: it runs again in {delay:.1f} s")


def _until(snooze: Snooze) -> float:
    if isinstance(snooze.until, datetime):
        return max(0.0, (snooze.until - datetime.now(timezone.utc)).total_seconds())
    return seconds(snooze.until)


def _is_worth_retrying(task: Task[..., Any], error: BaseException, job: Callable[[], Job]) -> bool:
    if isinstance(error, JobControl) or not isinstance(error, Exception):
        return True
    if isinstance(error, task.discard_on):
        return False
    return task.should_retry is None or bool(task.should_retry(job(), error))


def _who(claimed: ClaimedJob) -> dict[str, object]:
    row = claimed.row
    who: dict[str, object] = {"job": row.job_id, "execution": row.execution, "task": row.task}
    return who | {"org": row.org_id} if row.org_id is not None else who


class _Execution:
    """One run of one job: what its context asks for, made only when asked."""

    __slots__ = ("_claimed", "_context", "_deadline_ns", "_row", "_sequence", "_transactions", "is_settled")

    def __init__(
        self, claimed: ClaimedJob, row: Row, sequence: int, deadline_ns: int, transactions: JobTransactions
    ) -> None:
        self._claimed = claimed
        self._row = row
        self._sequence = sequence
        self._deadline_ns = deadline_ns
        self._transactions = transactions
        self._context: Context | None = None
        self.is_settled = False

    @property
    def reason(self) -> CancelReason:
        return self._row.cancel_reason(self._sequence)

    @property
    def cancel_seen(self) -> bool:
        return self._context is not None and self._context.cancel_seen

    def context(self) -> Context:
        self._context = Context(
            make_job=self.job,
            lease_id=self._claimed.lease.lease_id,
            position=self._claimed.position,
            deadline_ns=self._deadline_ns,
            cancel_reason=lambda: self.reason,
            transaction=self._transaction,
        )
        return self._context

    def job(self) -> Job:
        row = self._claimed.row
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

    def _transaction(self) -> AbstractContextManager[Connection[Any]]:
        return self._transactions.open(self._claimed, self._row.run(), self._must_end, self._settled)

    def _must_end(self) -> bool:
        return self.reason is not CancelReason.NONE

    def _settled(self) -> None:
        self.is_settled = True

    def clean_up(self) -> None:
        """Leave the slot's connection as the next job must find it."""
        if self._context is not None:
            self._transactions.reset()
