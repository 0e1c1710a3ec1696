"""Cancelling many jobs at once: which ones are meant, what becomes of each, and who has to wait for whom."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from pgworker.inspection.queues import count_matching
from pgworker.lifecycle.cancel import CancelCounts, cancel_job, cancel_jobs
from pgworker.lifecycle.renew import renew_leases
from pgworker.lifecycle.settle import Next, settle_jobs
from pgworker.model.selection import JobFilter
from pgworker.model.state import Outcome
from tests.sql.actors import Blocked, Connect, Worker, ask, ended, enqueue, impatient, now, statuses, waiting


@pytest.fixture
def db(connect: Connect) -> Connection[Any]:
    return connect()


@pytest.fixture
def worker(db: Connection[Any]) -> Worker:
    return Worker(db)


def marks(db: Connection[Any]) -> list[Any]:
    return [job for cancelled in ask(db, "select cancelled from pgworker.job_leases") for job in cancelled]


def test_what_waits_ends_and_what_runs_is_marked(db: Connection[Any], worker: Worker) -> None:
    running = enqueue(db, 2)
    worker.claim()
    pending, scheduled = enqueue(db, 2), enqueue(db, 1, run_at=now(db) + timedelta(days=1), priority=9)
    told: list[CancelCounts] = []
    assert cancel_jobs(db, JobFilter(queue="default"), on_progress=told.append) == CancelCounts(3, 2)
    assert told == [CancelCounts(3, 0), CancelCounts(3, 2)]
    assert statuses(db, running + pending + scheduled) == ["running"] * 2 + ["cancelled"] * 3
    assert marks(db) == running
    causes = "select distinct cause from pgworker.job_executions"
    assert ask(db, causes) == ["cancelled while it waited"]
    assert cancel_jobs(db, JobFilter(queue="default")) == CancelCounts(0, 0), "nobody is asked twice"


def test_one_lease_is_told_of_once_however_many_of_its_jobs_are_cancelled(
    db: Connection[Any], worker: Worker, connect: Connect
) -> None:
    listener = connect()
    listener.execute("listen pgworker")
    enqueue(db, 6)
    held = [worker.claim(3), worker.claim(3)]
    cancel_job(db, held[0].ids[1])
    assert cancel_jobs(db, JobFilter(task="t")) == CancelCounts(0, 5)
    db.execute("notify pgworker, 'end'")
    first, *told, end = [note.payload for note in listener.notifies(timeout=10, stop_after=4)]
    assert first == f"!cancel {held[0].lease_id}"
    assert sorted(told) == sorted(f"!cancel {lease.lease_id}" for lease in held)
    assert end == "end"
    renewed = renew_leases(db, [lease.lease_id for lease in held], 60)
    assert renewed[held[0].lease_id].cancelled == [2, 1, 3]
    assert renewed[held[1].lease_id].cancelled == [1, 2, 3]


CHOICES = [
    (JobFilter(queue="mail"), {"mail"}),
    (JobFilter(task="u"), {"task", "both"}),
    (JobFilter(org_id="acme"), {"org", "both"}),
    (JobFilter(org_id="acme", task="u"), {"both"}),
    (JobFilter(org_id="acme", queue="mail"), set()),
    (JobFilter(queue="default", older_than=3600), {"old"}),
]


@pytest.mark.parametrize("runs", [False, True], ids=["waiting", "running"])
@pytest.mark.parametrize(("chosen", "meant"), CHOICES, ids=[str(chosen) for chosen, _ in CHOICES])
def test_only_those_that_match_everything_are_meant(
    db: Connection[Any], worker: Worker, chosen: JobFilter, meant: set[str], runs: bool
) -> None:
    long_ago = ask(db, "select pgworker.uuid7(clock_timestamp() - interval '2 hours')")[0]
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "mail": {"queue": "mail"},
        "task": {"task": "u"},
        "org": {"org_id": "acme"},
        "both": {"task": "u", "org_id": "acme"},
        "old": {"id": long_ago},
    }
    jobs = {enqueue(db, 1, **given)[0]: name for name, given in options.items()}
    if runs:
        worker.claim(tasks=["t", "u"], queues=["default", "mail"])
    expected = CancelCounts(0, len(meant)) if runs else CancelCounts(len(meant), 0)
    assert count_matching(db, chosen) == (expected.cancelled, expected.requested)
    assert cancel_jobs(db, chosen) == expected
    done = marks(db) if runs else ask(db, "select job_id from pgworker.job_executions")
    assert {jobs[job] for job in done} == meant


def test_those_that_wait_or_those_that_run_may_be_left_alone(db: Connection[Any], worker: Worker) -> None:
    [running] = enqueue(db)
    worker.claim()
    [waits] = enqueue(db)
    only_waiting = JobFilter(queue="default", running=False)
    only_running = JobFilter(queue="default", waiting=False)
    assert (count_matching(db, only_waiting), count_matching(db, only_running)) == ((1, 0), (0, 1))
    assert cancel_jobs(db, only_running) == CancelCounts(0, 1)
    assert statuses(db, [running, waits]) == ["running", "pending"]
    assert cancel_jobs(db, only_waiting) == CancelCounts(1, 0)
    assert statuses(db, [running, waits]) == ["running", "cancelled"]


def test_what_a_lease_still_names_but_has_settled_is_not_marked(db: Connection[Any], worker: Worker) -> None:
    [done, retried, runs] = enqueue(db, 3)
    held = worker.claim()
    assert worker.settle(held.settlement(1, 1))
    assert worker.settle(held.settlement(2, 2, outcome=Outcome.FAILED, then=Next.REQUEUE))
    assert count_matching(db, JobFilter(task="t")) == (1, 1)
    assert cancel_jobs(db, JobFilter(task="t")) == CancelCounts(1, 1)
    assert marks(db) == [runs]
    assert ended(db, retried) == [(1, "failed", 1), (2, "cancelled", 1)]
    assert statuses(db, [done, retried]) == ["succeeded", "cancelled"]


def test_a_cancel_of_many_refuses_a_connection_whose_looks_would_share_a_snapshot(dsn: str, connect: Connect) -> None:
    with psycopg.connect(dsn) as connection, pytest.raises(ValueError, match="autocommit"):
        cancel_jobs(connection, JobFilter(queue="default"))
    connection = connect()
    with connection.transaction(), pytest.raises(ValueError, match="no open transaction"):
        cancel_jobs(connection, JobFilter(queue="default"))


# -- against claims and settles that are under way


def test_a_cancel_of_many_that_waited_for_a_claim_reaches_what_it_claimed(connect: Connect) -> None:
    ids = enqueue(connect(), 3)
    worker, user = Worker(connect()), connect()
    with worker.connection.transaction():
        held = worker.claim(2)
        late = Blocked(user, lambda: cancel_jobs(user, JobFilter(queue="default")))
    assert late.answer() == CancelCounts(1, 2)
    assert renew_leases(user, [held.lease_id], 60)[held.lease_id].cancelled == [1, 2]
    assert statuses(user, ids) == ["running", "running", "cancelled"]


def test_a_cancel_of_many_that_waited_for_failures_to_requeue_their_jobs_cancels_the_retries(connect: Connect) -> None:
    ids = enqueue(connect(), 2)
    worker, user = Worker(connect()), connect()
    held = worker.claim()
    with worker.connection.transaction():
        assert worker.settle(held.settlement(outcome=Outcome.FAILED, then=Next.REQUEUE))
        late = Blocked(user, lambda: cancel_jobs(user, JobFilter(queue="default")))
    assert late.answer() == CancelCounts(2, 0)
    assert [ended(user, job) for job in ids] == [[(1, "failed", 1), (2, "cancelled", 1)]] * 2
    assert waiting(user) == []


def test_a_cancel_of_many_that_waits_for_one_lease_holds_up_no_other(connect: Connect) -> None:
    enqueue(connect(), 3)
    worker, user, handler, monitor = Worker(connect()), connect(), connect(), connect()
    leases = sorted((worker.claim(1) for _ in range(3)), key=lambda held: held.lease_id)
    with handler.transaction():
        settle_jobs(handler.cursor(), leases[1].settlement(), time.monotonic_ns())
        late = Blocked(user, lambda: cancel_jobs(user, JobFilter(queue="default")))
        with impatient(monitor):
            renewed = renew_leases(monitor, [held.lease_id for held in leases], 60)
            assert [renewed[held.lease_id].is_busy for held in leases] == [False, True, False]
            assert Worker(monitor, worker.worker_id).settle(leases[0].settlement())
            assert Worker(monitor, worker.worker_id).settle(leases[2].settlement())
    assert late.answer() == CancelCounts(0, 1), "the first one was marked before it ended, the last had ended"


def test_two_who_cancel_or_purge_the_same_jobs_share_them(connect: Connect) -> None:
    ids = enqueue(connect(), 10)
    one, two = connect(), connect()
    with one.transaction():
        one.execute("select from pgworker.job_queue where job_id = any (%s) for update", [ids[5:]])
        late = Blocked(two, lambda: cancel_jobs(two, JobFilter(queue="default")))
        one.execute("delete from pgworker.job_queue where job_id = any (%s)", [ids[5:]])
        cancelled = "insert into pgworker.job_executions (job_id, finished_at, execution, outcome, failures) "
        one.execute(cancelled + "select unnest(%s::uuid[]), clock_timestamp(), 1, 'cancelled', 0", [ids[5:]])
    assert late.answer() == CancelCounts(5, 0)
    assert statuses(one, ids) == ["cancelled"] * 10


def test_a_claim_passes_over_what_is_being_cancelled(connect: Connect) -> None:
    enqueue(connect(), 3)
    worker, user = Worker(connect()), connect()
    seen: list[int] = []

    def claim_meanwhile(counts: CancelCounts) -> None:
        seen.append(len(worker.claim(10).ids))

    assert cancel_jobs(user, JobFilter(queue="default"), on_progress=claim_meanwhile) == CancelCounts(3, 0)
    assert seen == [0]
