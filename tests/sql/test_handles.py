"""What a handle says of its job, and what waiting for one returns and raises."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest

from pgworker import (
    App,
    CancelAnswer,
    ErrorRecord,
    InvalidResult,
    JobCancelled,
    JobFailed,
    JobHandle,
    JobNotFound,
    PgworkerError,
    Status,
    Task,
    WaitTimeout,
)
from pgworker.lifecycle.dead_letters import requeue_dead_letters
from pgworker.lifecycle.progress import save_progress
from pgworker.lifecycle.settle import Next
from pgworker.model.payload import MAX_RESULT_BYTES, describe_error, encode_result
from pgworker.model.progress import check_progress
from pgworker.model.state import Outcome
from tests.sql.actors import Connect, Monitor, Worker
from tests.sql.test_enqueue_api import wait_until
from tests.sql.test_results import waiting

NOBODY = UUID("0199d5a4-6f2b-7c3e-8a1d-2b3c4d5e6f70")
LONG = 20.0
"""Seconds: a wait that takes so long has failed."""


@dataclass(frozen=True, slots=True)
class Receipt:
    number: int
    at: datetime


@pytest.fixture
def app(dsn: str) -> Iterator[App]:
    opened = App(dsn)

    @opened.task(name="t")
    def sell(order: int) -> Receipt:
        raise AssertionError("the tests say what came of it")

    yield opened
    opened.close()


@pytest.fixture
def task(app: App) -> Task[..., Any]:
    return app.tasks["t"]


@pytest.fixture
def worker(connect: Connect) -> Worker:
    return Worker(connect())


def succeed(worker: Worker, value: object = None) -> None:
    """Run whatever waits; each job returns this."""
    result = encode_result(value).json
    assert worker.settle(worker.claim().settlement(result=None if result is None else result.decode()))


def fail(worker: Worker, then: Next, outcome: Outcome = Outcome.FAILED) -> None:
    """Run whatever waits; each job raises."""
    try:
        raise LookupError("no such order")
    except LookupError as raised:
        error = msgspec.json.encode(describe_error(raised)).decode()
    assert worker.settle(worker.claim().settlement(outcome=outcome, then=then, error=error))


def test_a_handle_is_its_id_and_stays_it(app: App, task: Task[..., Any]) -> None:
    job = task.enqueue(1)
    assert isinstance(job.id, UUID)
    assert (str(job), repr(job)) == (str(job.id), f"<JobHandle {job.id}>")
    assert job == app.job(job.id) == app.job(str(job.id))
    assert len({job, app.job(job.id), task.enqueue(1)}) == 2
    assert job != job.id
    for name in ("id", "task"):
        with pytest.raises(AttributeError):
            setattr(job, name, NOBODY)


@pytest.mark.parametrize("text", ["", "42", "no\0job", "x" * 10_000])
def test_what_can_be_no_id_is_no_jobs(app: App, text: str) -> None:
    with pytest.raises(JobNotFound, match="is no job's id: ids are UUIDs"):
        app.job(text)


def test_an_id_of_another_type_is_a_type_error(app: App) -> None:
    with pytest.raises(TypeError, match="a UUID or a string of one, not int"):
        app.job(42)  # type: ignore[arg-type]


def test_the_status_is_that_of_the_database(task: Task[..., Any], worker: Worker) -> None:
    seen = [task.options(run_at=datetime.now(timezone.utc) + timedelta(days=1)).enqueue(1).status()]
    job = task.enqueue(2)
    seen.append(job.status())
    lease = worker.claim()
    seen.append(job.status())
    worker.settle(lease.settlement(outcome=Outcome.FAILED, then=Next.REQUEUE))
    seen.append(job.status())
    fail(worker, Next.BURY)
    seen.append(job.status())
    done = task.enqueue(3)
    succeed(worker)
    seen.append(done.status())
    gone = task.enqueue(4)
    gone.cancel()
    seen.append(asyncio.run(gone.status_async()))
    assert seen == [
        *(Status.SCHEDULED, Status.PENDING, Status.RUNNING, Status.FAILED),
        *(Status.DEAD_LETTER, Status.SUCCEEDED, Status.CANCELLED),
    ]


def test_a_job_is_not_there_before_its_transaction_commits(app: App, task: Task[..., Any], dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        job = task.using(connection).enqueue(1)
        for call in (job.status, job.cancel, job.wait, app.job(NOBODY).wait):
            with pytest.raises(JobNotFound, match="commit the transaction that enqueues it"):
                call()
        connection.commit()
        assert job.status() is Status.PENDING


def test_a_cancel_says_what_it_achieved(task: Task[..., Any], worker: Worker) -> None:
    waiting = task.enqueue(1)
    assert waiting.cancel() is CancelAnswer.CANCELLED
    running = task.enqueue(2)
    lease = worker.claim()
    assert asyncio.run(running.cancel_async()) is CancelAnswer.REQUESTED
    worker.settle(lease.settlement())
    assert running.cancel() is CancelAnswer.TOO_LATE


def test_waiting_returns_what_the_task_promises_and_by_id_plain_json(
    app: App, task: Task[..., Any], worker: Worker
) -> None:
    receipt = Receipt(7, datetime(2030, 1, 1, tzinfo=timezone.utc))
    one, many = task.enqueue(1), app.enqueue_many([task.job(2)])
    succeed(worker, receipt)
    assert one.wait() == receipt
    assert asyncio.run(many[0].wait_async()) == receipt
    assert app.job(one.id).wait() == {"number": 7, "at": "2030-01-01T00:00:00Z"}


def test_who_waits_while_the_job_runs_is_woken(app: App, task: Task[..., Any], worker: Worker) -> None:
    job = task.enqueue(1)
    with ThreadPoolExecutor(1) as executor:
        lease = worker.claim()
        wait = executor.submit(job.wait, LONG)
        wait_until(lambda: waiting(app) == 1)
        worker.settle(lease.settlement(result='{"number": 1, "at": "2030-01-01T00:00:00Z"}'))
        assert wait.result().number == 1


def test_the_largest_result_comes_back_whole(app: App, task: Task[..., Any], worker: Worker) -> None:
    job = task.enqueue(1)
    text = "🙂" * (MAX_RESULT_BYTES // 4 - 1)
    succeed(worker, text)
    assert app.job(job.id).wait(LONG) == text


def test_a_result_that_is_null_is_none_and_one_that_does_not_fit_is_said_to(
    app: App, task: Task[..., Any], worker: Worker
) -> None:
    nothing = task.enqueue(1)
    succeed(worker)
    assert nothing.wait(LONG) is None
    assert app.job(nothing.id).wait(LONG) is None
    other = task.enqueue(2)
    succeed(worker, [1, 2])
    with pytest.raises(InvalidResult, match=r"Receipt.*Expected `object`, got `array`.*app\.job\(id\)\.wait\(\)"):
        other.wait(LONG)
    assert app.job(other.id).wait(LONG) == [1, 2]


def test_a_failure_that_will_be_retried_is_waited_for(app: App, task: Task[..., Any], worker: Worker) -> None:
    job = app.job(task.enqueue(1).id)
    fail(worker, Next.REQUEUE)
    with pytest.raises(WaitTimeout, match="it goes on"):
        job.wait(0)
    succeed(worker, "at last")
    assert job.wait(LONG) == "at last"


def test_a_dead_letter_raises_why(task: Task[..., Any], worker: Worker) -> None:
    job = task.enqueue(1)
    fail(worker, Next.BURY)
    with pytest.raises(JobFailed, match=rf"job {job.id} is a dead letter .*LookupError: no such order") as failed:
        job.wait(LONG)
    assert (failed.value.outcome, failed.value.cause) == ("failed", None)
    error = failed.value.error
    assert error
    assert (error.type, error.message) == ("LookupError", "no such order")
    assert error.traceback.startswith('  File "')


def test_a_dead_letter_without_an_error_raises_its_cause(
    task: Task[..., Any], worker: Worker, connect: Connect
) -> None:
    job = task.options(max_attempts=1).enqueue(1)
    worker.claim()
    worker.die()
    Monitor(connect()).reclaim_all(assumed_running=1)
    with pytest.raises(JobFailed, match=r"after 1 failure \(crashed\): killed by signal 9") as failed:
        job.wait(LONG)
    assert (failed.value.outcome, failed.value.cause, failed.value.error) == ("crashed", "killed by signal 9", None)


def test_a_dead_letter_that_was_requeued_is_waited_for_again(
    app: App, task: Task[..., Any], worker: Worker, connect: Connect
) -> None:
    job = app.job(task.enqueue(1).id)
    fail(worker, Next.BURY)
    requeue_dead_letters(connect(), [job.id])
    with pytest.raises(WaitTimeout):
        job.wait(0)
    succeed(worker, 5)
    assert job.wait(LONG) == 5


def test_a_cancelled_job_raises_so_whether_it_waited_or_ran(task: Task[..., Any], worker: Worker) -> None:
    waiting = task.enqueue(1)
    waiting.cancel()
    with pytest.raises(JobCancelled, match=f"job {waiting.id} was cancelled: cancelled while it waited"):
        waiting.wait(LONG)
    running = task.enqueue(2)
    lease = worker.claim()
    running.cancel()
    worker.settle(lease.settlement(outcome=Outcome.FAILED, then=Next.REQUEUE))
    with pytest.raises(JobCancelled, match=f"job {running.id} was cancelled$"):
        asyncio.run(running.wait_async(LONG))


def test_time_that_is_up_is_a_timeout_error_and_a_job_that_has_ended_needs_none(
    app: App, task: Task[..., Any], worker: Worker
) -> None:
    job = app.job(task.enqueue(1).id)
    for timeout in (0, 0.05, timedelta(milliseconds=50)):
        with pytest.raises(TimeoutError, match=f"job {job.id} has not ended within the time given; it goes on"):
            job.wait(timeout)
        with pytest.raises(WaitTimeout):
            asyncio.run(job.wait_async(timeout))
    succeed(worker, True)
    assert job.wait(0) is True
    assert asyncio.run(job.wait_async(0)) is True


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), True, "5", timedelta(seconds=-1)])
def test_a_time_that_can_be_none_is_a_value_error(app: App, timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout must be"):
        app.job(NOBODY).wait(timeout)


def test_what_is_raised_survives_the_way_to_another_process() -> None:
    failed = JobFailed("why", outcome="crashed", error=ErrorRecord("E", "m", "t"), cause="c")
    copy = pickle.loads(pickle.dumps(failed))
    assert (str(copy), copy.outcome, copy.error, copy.cause) == ("why", "crashed", ErrorRecord("E", "m", "t"), "c")
    timeout: PgworkerError = pickle.loads(pickle.dumps(WaitTimeout("late")))
    assert str(timeout) == "late"


def test_handles_of_a_bulk_are_in_order_and_each_waits_for_its_own(
    app: App, task: Task[..., Any], worker: Worker
) -> None:
    handles: list[JobHandle[Any]] = app.enqueue_many(task.job(number) for number in range(50))
    lease = worker.claim()
    for number, row in enumerate(lease.rows):
        assert row.payload == f'{{"order": {number}}}'
        result = f'{{"number": {number}, "at": "2030-01-01T00:00:00Z"}}'
        worker.settle(lease.settlement(number + 1, number + 1, result=result))
    assert [handle.wait(LONG).number for handle in handles] == list(range(50))


# -- progress


def test_a_handle_tells_how_far_its_job_is(app: App, task: Task[..., Any], worker: Worker) -> None:
    job = task.enqueue(42)
    assert job.progress() is None
    held = worker.claim()
    save_progress(worker.connection, held.lease_id, {1: check_progress(job.id, 0.4, "packed", {"lines": 4})})
    seen = job.progress()
    assert seen is not None
    assert (seen.execution, seen.fraction, seen.message, seen.checkpoint) == (1, 0.4, "packed", {"lines": 4})
    assert seen.updated_at.tzinfo is not None
    assert asyncio.run(app.job(job.id).progress_async()) == seen
    assert worker.settle(held.settlement())
    assert job.progress() is None
    with pytest.raises(JobNotFound):
        app.job(NOBODY).progress()
