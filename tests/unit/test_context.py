from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from pgworker import Cancelled, CancelReason, Context, Job

LEASE = UUID("00000000-0000-4000-8000-000000000001")
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
JOB = Job(UUID(int=7), "mail", "default", {}, 5, 3, 1, 25, None, NOW, NOW, None, {})


class Worker:
    """What a worker gives to a context, and what it is asked for."""

    def __init__(self, deadline_ns: int = 0) -> None:
        self.reason = CancelReason.NONE
        self.jobs_made = 0
        self.transactions = 0
        self.context = Context(
            make_job=self.make_job,
            lease_id=LEASE,
            position=4,
            deadline_ns=deadline_ns,
            cancel_reason=lambda: self.reason,
            transaction=self.transaction,
            transaction_async=self.transaction_async,
            state=SimpleNamespace(),
            progress=lambda *_said: None,
            checkpoint=None,
            org_config=None,
        )

    def make_job(self) -> Job:
        self.jobs_made += 1
        return JOB

    @asynccontextmanager
    async def transaction_async(self) -> AsyncIterator[Any]:
        self.transactions += 1
        yield "asynchronous connection"

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        self.transactions += 1
        yield "connection"


def test_the_job_is_made_once_and_only_when_asked_for() -> None:
    worker = Worker()
    assert worker.context.execution_id == "00000000-0000-4000-8000-000000000001:4"
    assert worker.jobs_made == 0
    assert worker.context.job is worker.context.job is JOB
    assert worker.context.idempotency_key == "00000000-0000-0000-0000-000000000007"
    assert worker.jobs_made == 1


def test_the_deadline_is_in_seconds_from_now_and_never_negative() -> None:
    assert Worker().context.deadline is None
    assert Worker(deadline_ns=1).context.deadline == 0.0
    left = Worker(deadline_ns=time.monotonic_ns() + 60 * 10**9).context.deadline
    assert left is not None
    assert 0 < left <= 60


@pytest.mark.parametrize("reason", [reason for reason in CancelReason if reason is not CancelReason.NONE])
def test_a_cancel_is_seen_by_whoever_reads_it_and_remembered(reason: CancelReason) -> None:
    worker = Worker()
    context = worker.context
    context.raise_if_cancelled()
    assert (context.cancelled, context.cancel_seen) == (False, False)
    worker.reason = reason
    assert (context.cancel_seen, context.cancelled, context.cancel_seen) == (False, True, True)
    assert context.cancel_reason is reason
    with pytest.raises(Cancelled, match=r"the job|the worker"):
        context.raise_if_cancelled()


def test_raising_counts_as_seen() -> None:
    worker = Worker()
    worker.reason = CancelReason.DEADLINE
    with pytest.raises(Cancelled, match="time is up"):
        worker.context.raise_if_cancelled()
    assert worker.context.cancel_seen


def test_waiting_ends_with_the_cancel_or_with_the_time() -> None:
    worker = Worker()
    begun = time.monotonic()
    assert not worker.context.wait_cancelled(0.06)
    assert time.monotonic() - begun >= 0.06
    assert not worker.context.cancel_seen
    cancel = threading.Timer(0.1, setattr, (worker, "reason", CancelReason.CANCELLED))
    cancel.start()
    assert worker.context.wait_cancelled(60)
    assert time.monotonic() - begun < 30
    cancel.join()


def test_a_transaction_is_entered_once() -> None:
    worker = Worker()
    unused = worker.context.transaction()
    with worker.context.transaction() as connection:
        assert str(connection) == "connection"
    for again in (unused, worker.context.transaction()):
        with pytest.raises(RuntimeError, match="only once"), again:
            pass
    assert worker.transactions == 1


def test_log_lines_carry_the_job_beside_the_fields_of_the_call(caplog: pytest.LogCaptureFixture) -> None:
    context = Worker().context
    with caplog.at_level(logging.INFO):
        context.logger.info("sent %s", 1, extra={"fields": {"to": "a@b"}, "other": 2})
        context.logger.info("done")
    job = {"job": JOB.id, "execution": 3, "task": "mail", "queue": JOB.queue}
    assert [record.__dict__["fields"] for record in caplog.records] == [{"to": "a@b", **job}, job]
    assert caplog.records[0].__dict__["other"] == 2
    assert caplog.messages == ["sent 1", "done"]
