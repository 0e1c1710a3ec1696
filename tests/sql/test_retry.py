"""Retry: what waits for a later time is due now, what was given up is requeued, and what has ended stays as it is."""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from threading import Barrier
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection

from pgworker.errors import JobNotFound
from pgworker.lifecycle.cancel import cancel_job
from pgworker.lifecycle.hasten import hasten_jobs, hasten_matching
from pgworker.lifecycle.purge import purge_queue
from pgworker.lifecycle.release import release_jobs
from pgworker.lifecycle.retry import retry_job
from pgworker.lifecycle.settle import Next
from pgworker.model.state import Outcome, RetryAnswer
from tests.sql.actors import Blocked, Connect, Monitor, Worker, ask, ended, enqueue, now, statuses, waiting
from tests.sql.invariants import STORED, offences

TOMORROW = datetime.now(timezone.utc) + timedelta(days=1)
RACES = 120


@pytest.fixture
def db(connect: Connect) -> Connection[Any]:
    return connect()


@pytest.fixture
def worker(db: Connection[Any]) -> Worker:
    return Worker(db)


def fail(worker: Worker, job_id: UUID, then: Next = Next.REQUEUE) -> None:
    held = worker.claim()
    assert held.ids == [job_id]
    worker.settle(held.settlement(outcome=Outcome.FAILED, then=then, delay=3600))


def test_a_scheduled_job_is_due_now_and_is_the_same_in_everything_else(db: Connection[Any], worker: Worker) -> None:
    (job_id,) = enqueue(db, run_at=TOMORROW, queue="mail", priority=7, org_id="acme")
    assert retry_job(db, job_id) is RetryAnswer.DUE
    columns = "job_id, execution, failures, queue, priority, task, org_id"
    assert ask(db, f"select {columns} from pgworker.job_queue") == [(job_id, 1, 0, "mail", 7, "t", "acme")]
    assert worker.claim(queues=["mail"]).ids == [job_id]


def test_a_scheduled_job_that_was_hastened_and_is_given_back_stays_due(db: Connection[Any], worker: Worker) -> None:
    ids = enqueue(db, 2, run_at=TOMORROW)
    assert [retry_job(db, job_id) for job_id in ids] == [RetryAnswer.DUE] * 2
    for _ in range(2):
        held = worker.claim()
        assert held.ids == ids
        release_jobs(db, held.lease_id, 1)
    assert statuses(db, ids) == ["pending"] * 2


def test_a_scheduled_job_that_was_hastened_and_is_reclaimed_stays_due(db: Connection[Any]) -> None:
    ids = enqueue(db, 2, run_at=TOMORROW)
    assert [retry_job(db, job_id) for job_id in ids] == [RetryAnswer.DUE] * 2
    worker = Worker(db)
    assert worker.claim().ids == ids
    worker.die()
    [lease] = Monitor(db).reclaimable()
    assert Monitor(db).reclaim(lease, [Outcome.CRASHED])
    assert [(row.job_id, row.failures) for row in Worker(db).claim().rows] == [(ids[0], 1), (ids[1], 0)]


def test_a_job_that_waits_for_its_retry_runs_at_once_and_keeps_its_failures(
    db: Connection[Any], worker: Worker
) -> None:
    (job_id,) = enqueue(db)
    fail(worker, job_id)
    assert worker.claim().ids == []
    assert retry_job(db, job_id) is RetryAnswer.DUE
    [row] = worker.claim().rows
    assert (row.job_id, row.execution, row.failures) == (job_id, 2, 1)


def test_a_dead_letter_is_requeued_with_its_failures_counted_from_0(db: Connection[Any], worker: Worker) -> None:
    (job_id,) = enqueue(db)
    fail(worker, job_id, Next.BURY)
    assert retry_job(db, job_id) is RetryAnswer.REQUEUED
    assert waiting(db) == [(job_id, 2, 0)]


def test_a_job_that_is_due_keeps_its_place_and_one_that_runs_goes_on(db: Connection[Any], worker: Worker) -> None:
    first, second = enqueue(db, 2)
    before = ask(db, "select run_at from pgworker.job_queue where job_id = %s", first)
    assert retry_job(db, first) is RetryAnswer.WAITING
    assert ask(db, "select run_at from pgworker.job_queue where job_id = %s", first) == before
    assert worker.claim(1).ids == [first]
    assert retry_job(db, first) is RetryAnswer.RUNNING
    assert statuses(db, [first, second]) == ["running", "pending"]


def test_what_has_succeeded_or_was_cancelled_is_refused_and_stays_as_it_is(db: Connection[Any], worker: Worker) -> None:
    done, cancelled = enqueue(db, 2)
    cancel_job(db, cancelled)
    worker.settle(worker.claim().settlement())
    assert [retry_job(db, job) for job in (done, cancelled)] == [RetryAnswer.SUCCEEDED, RetryAnswer.CANCELLED]
    assert (waiting(db), statuses(db, [done, cancelled])) == ([], ["succeeded", "cancelled"])
    with pytest.raises(JobNotFound):
        retry_job(db, uuid4())


def test_a_job_that_is_given_up_between_two_looks_is_requeued(db: Connection[Any], worker: Worker, dsn: str) -> None:
    (job_id,) = enqueue(db)
    held = worker.claim()

    class Slow(Connection[Any]):
        """Its job is given up after both looks for one that waits or is a dead letter, before that for its status."""

        def execute(self, query: Any, *arguments: Any, **named: Any) -> Any:
            if "job_status" in str(query) and not ended(db, job_id):
                worker.settle(held.settlement(outcome=Outcome.FAILED, then=Next.BURY))
            return super().execute(query, *arguments, **named)

    with Slow.connect(dsn, autocommit=True) as slow:
        assert retry_job(slow, job_id) is RetryAnswer.REQUEUED
    assert waiting(db) == [(job_id, 2, 0)]


def test_a_retry_wakes_whoever_sleeps_once_a_queue(db: Connection[Any], connect: Connect) -> None:
    ids = enqueue(db, 3, run_at=TOMORROW) + enqueue(db, 2, run_at=TOMORROW, queue="mail") + enqueue(db)
    listener = connect()
    listener.execute("listen pgworker")
    assert sorted(hasten_jobs(db, ids)) == sorted(ids[:5])
    told = {notice.payload for notice in listener.notifies(timeout=20, stop_after=2)}
    assert told == {"default=3", "mail=2"}


def test_many_are_chosen_by_what_they_wait_for_and_have_in_common(db: Connection[Any], worker: Worker) -> None:
    (failed,) = enqueue(db)
    fail(worker, failed)
    scheduled = enqueue(db, 5, run_at=TOMORROW) + enqueue(db, 1, run_at=TOMORROW, queue="mail")
    theirs = enqueue(db, 2, run_at=TOMORROW, org_id="acme", task="u")
    due = enqueue(db, 2)
    assert list(hasten_matching(db, batch=2)) == [1]
    assert sorted(worker.claim().ids) == sorted([failed, *due])
    assert list(hasten_matching(db, retries=False, scheduled=True, org_id="acme", task="u")) == [2]
    assert sorted(worker.claim(tasks=["u"]).ids) == sorted(theirs)
    assert list(hasten_matching(db, scheduled=True, queue="default", batch=2)) == [2, 2, 1]
    assert sorted(worker.claim().ids) == sorted(scheduled[:5])
    assert list(hasten_matching(db)) == []


@pytest.mark.parametrize("back", ["released", "taken back", "taken back without a witness"])
def test_what_was_hastened_and_claimed_is_due_when_it_goes_back(
    db: Connection[Any], connect: Connect, worker: Worker, back: str
) -> None:
    """And not at the later time for which it was enqueued."""
    (job_id,) = enqueue(db, run_at=TOMORROW)
    hasten_jobs(db, [job_id])
    held = worker.claim()
    if back == "released":
        release_jobs(db, held.lease_id, 1)
    else:
        worker.die("killed")
        assert Monitor(connect()).reclaim_all(assumed_running=1 if back == "taken back without a witness" else 0)
    assert ask(db, "select job_id, run_at <= clock_timestamp() from pgworker.job_queue") == [(job_id, True)]


def test_a_purge_of_a_queue_misses_nothing_that_is_being_hastened(db: Connection[Any], connect: Connect) -> None:
    """A row that was updated under a purge's lock would be stepped over by its delete, and the batch be short."""
    ids = enqueue(db, 5, run_at=TOMORROW)
    other, purger = connect(), connect()
    other.autocommit = False
    hasten_jobs(other, ids[2:3])
    purge = Blocked(purger, lambda: purge_queue(purger, "default"))
    other.commit()
    assert purge.answer() == 4
    assert [job for job, _, _ in waiting(db)] == ids[2:3]
    assert purge_queue(db, "default") == 1


def test_retries_race_with_claims_cancels_and_each_other_and_each_is_told_the_truth(
    db: Connection[Any], connect: Connect
) -> None:
    ours, theirs = connect(), Worker(connect())
    canceller = connect()
    seed = time.time_ns()
    dice = random.Random(seed)
    seen: Counter[tuple[RetryAnswer, str | None]] = Counter()
    with ThreadPoolExecutor(3) as threads:
        for _ in range(RACES):
            (job_id,) = enqueue(db, run_at=now(db) + timedelta(milliseconds=dice.uniform(-1, 3)))
            barrier = Barrier(3)

            def at_once(call: Any, *arguments: Any, barrier: Barrier = barrier) -> Any:
                barrier.wait(20)
                return call(*arguments)

            answer = threads.submit(at_once, retry_job, ours, job_id)
            claimed = threads.submit(at_once, theirs.claim, 1)
            cancelled = threads.submit(at_once, cancel_job if dice.random() < 0.5 else retry_job, canceller, job_id)
            held = claimed.result(20)
            cancelled.result(20)
            [status] = statuses(db, [job_id])
            seen[answer.result(20), status] += 1
            assert status in ({"running"} if held.ids else {"pending", "cancelled"}), seed
            assert not offences(db, STORED), seed
            if held.ids:
                theirs.settle(held.settlement())
                assert [outcome for _, outcome, _ in ended(db, job_id)] == ["succeeded"], seed
            else:
                cancel_job(db, job_id)
    assert {answer for answer, _ in seen} <= {
        RetryAnswer.DUE,
        RetryAnswer.WAITING,
        RetryAnswer.RUNNING,
        RetryAnswer.CANCELLED,
    }, (seed, seen)


def test_an_operator_may_retry_and_an_enqueuer_may_not(login: Any, roles_dsn: str) -> None:
    with psycopg.connect(roles_dsn, autocommit=True) as db:
        scheduled, dead = enqueue(db, run_at=TOMORROW), enqueue(db)
        fail(Worker(db), dead[0], Next.BURY)
        with psycopg.connect(login("pgworker_admin"), autocommit=True) as admin:
            assert list(hasten_matching(admin)) == []
            assert retry_job(admin, scheduled[0]) is RetryAnswer.DUE
            assert retry_job(admin, dead[0]) is RetryAnswer.REQUEUED
        enqueuer = psycopg.connect(login("pgworker_enqueuer"), autocommit=True)
        with enqueuer, pytest.raises(psycopg.errors.InsufficientPrivilege):
            retry_job(enqueuer, scheduled[0])
