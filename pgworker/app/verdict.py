"""What an execution that raised counts as, and how its job goes on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from pgworker.app.queue.leases import ClaimedJob
from pgworker.app.task import Task
from pgworker.errors import Cancelled, Discard, JobControl, Retry, Snooze
from pgworker.lifecycle.claim import ClaimedRow
from pgworker.lifecycle.settle import Ended, Next
from pgworker.model import exact
from pgworker.model.durations import MAX_SECONDS, seconds
from pgworker.model.job import Job
from pgworker.model.retry import Backoff
from pgworker.model.state import CancelReason, Outcome
from pgworker.observe.logs import fields, logger

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

log = logger("worker.runner")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an execution that raised counts as, and how its job goes on: at `run_at`, by the database's clock, or after
    `delay` seconds if that is None. `consequence` is for the log."""

    outcome: Outcome
    next: Next
    delay: float
    consequence: str
    run_at: datetime | None = None

    def ended(self, row: ClaimedRow, started_ns: int, finished_ns: int, error: str | None) -> Ended:
        """What is recorded of it."""
        outcome, delay, run_at = self.outcome, self.delay, self.run_at
        return Ended(
            row.job_id, row.execution, started_ns, finished_ns, outcome, self.next, delay, error, run_at=run_at
        )


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
        # In UTC and of our own making: time zones are code of anybody, and the server doesn't take them all.
        run_at = _EPOCH + (error.until - _EPOCH) if isinstance(error.until, datetime) else None
        return Verdict(Outcome.SNOOZED, Next.REQUEUE, delay, f"it runs again in {delay:.1f} s", run_at)
    failed = failures + 1
    if isinstance(error, Discard) or (task is not None and not _is_worth_retrying(task, error, job)):
        return Verdict(outcome, Next.BURY, 0.0, "not to be retried: it is a dead letter now")
    if failed >= max_attempts:
        return Verdict(outcome, Next.BURY, 0.0, f"failure {failed} of {max_attempts}: it is a dead letter now")
    if isinstance(error, Retry) and error.after is not None:
        delay = seconds(error.after)
    else:
        delay = _backed_off(task.backoff, failed) if task is not None else 1.0
    return Verdict(outcome, Next.REQUEUE, delay, f"failure {failed} of {max_attempts}: it runs again in {delay:.1f} s")


def judge_safely(error: BaseException, reason: CancelReason, cancel_seen: bool, claimed: ClaimedJob) -> Verdict:
    """As `judge`; should a rule of the task or a delay be broken, that is an ordinary failure of the job."""
    row = claimed.row
    attempts = row.max_attempts or 1
    try:
        return judge(error, reason, cancel_seen, row.failures, attempts, claimed.task, claimed.job)
    except BaseException as second:
        log.exception(
            "should_retry or a delay of this task has failed itself: the job counts as an ordinary failure",
            extra=fields("verdict_failed", **claimed.log_fields()),
        )
        return judge(second, reason, cancel_seen, row.failures, attempts, None, claimed.job)


def _backed_off(backoff: Backoff, failures: int) -> float:
    """What the backoff says, a century at most; InvalidJob if that is no delay, as one of the user's own may say."""
    given = backoff.delay(failures, random.random())
    number = exact.number(given)
    return seconds(given if number is None else min(number, MAX_SECONDS), "the delay of a backoff")


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
