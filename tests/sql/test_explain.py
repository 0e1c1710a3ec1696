"""The facts that an explanation rests on, read from a database where each of them is true."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection

from pgworker.control.queues import pause_queues
from pgworker.errors import JobNotFound
from pgworker.inspection.explain import Explanation, Reason, explain
from pgworker.inspection.facts import Facts, read_facts
from pgworker.inspection.queues import COUNT_CAP, Count
from pgworker.inspection.snapshot import snapshot
from pgworker.lifecycle.cancel import cancel_job
from pgworker.lifecycle.heartbeat import (
    Activity,
    PoolIdentity,
    RunningJob,
    WorkerProcess,
    announce_tasks,
    beat_workers,
)
from pgworker.lifecycle.settle import Next
from pgworker.model.state import Outcome, WorkerState
from tests.sql.actors import Connect, Worker, ask, enqueue
from tests.sql.test_plans import fill_queue

DIGEST = 17
HOUR = timedelta(hours=1)


@pytest.fixture
def db(connect: Connect) -> Connection[Any]:
    return connect()


def beat(
    db: Connection[Any],
    *queues: str,
    tasks: tuple[str, ...] = ("t",),
    state: WorkerState = WorkerState.BUSY,
    worker_id: UUID | None = None,
    runs: tuple[RunningJob, ...] = (),
    workers: int = 1,
    digest: int = DIGEST,
) -> None:
    """Workers of one pool that serve these queues say that they live."""
    announce_tasks(db, digest, tasks)
    pool = PoolIdentity(uuid4(), "host", "boot", queues or ("default",))
    ids = [worker_id or uuid4(), *(uuid4() for _ in range(workers - 1))]
    beat_workers(db, pool, [WorkerProcess(each, 12, 3, 10**6, digest, Activity(state, runs)) for each in ids])


def explained(db: Connection[Any], job_id: UUID) -> tuple[Facts, Explanation]:
    facts = read_facts(db, job_id)
    return facts, explain(facts)


def test_what_comes_before_a_job_is_what_its_workers_claim_first(db: Connection[Any]) -> None:
    """Earlier queues of all who serve it, higher priorities, earlier times; not what nobody of them takes."""
    enqueue(db, 1, queue="first")
    enqueue(db, 2, queue="sometimes")
    enqueue(db, 4, queue="paused")
    enqueue(db, 8, priority=9)
    enqueue(db, 16, priority=9, run_at=datetime.now(timezone.utc) + HOUR)
    enqueue(db, 32, priority=9, task="unknown")
    enqueue(db, 64)
    (job_id,) = enqueue(db)
    enqueue(db, 128)
    enqueue(db, 256, priority=4)
    enqueue(db, 512, queue="last", priority=9)
    pause_queues(db, ["paused"])
    beat(db, "first", "sometimes", "paused", "default", "last", workers=3)
    beat(db, "paused", "first", "default", "last", state=WorkerState.IDLE)
    beat(db, "last")
    facts, found = explained(db, job_id)
    assert facts.ahead == Count(1 + 8 + 64)
    assert (found.reason, found.command) == (Reason.BACKLOG, "pgworker queues list")
    assert "waits behind 73 jobs" in found.sentence
    assert "1 is idle, 3 are busy" in found.sentence


def test_how_many_come_before_is_counted_up_to_a_cap_with_a_million_waiting(connect: Connect) -> None:
    """Far more than the cap is enough to see that no more is read; statistics are of an empty table."""
    db = connect()
    db.execute("analyze pgworker.job_queue")
    for priority in (9, 7, 5):
        fill_queue(db, 40_000, priority=priority)
    (job_id,) = enqueue(db, priority=1)
    beat(db)
    read = "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables where relname = 'job_queue'"
    with snapshot(db):
        facts, found = explained(db, job_id)
        assert COUNT_CAP <= ask(db, read)[0] < COUNT_CAP + 200
    assert facts.ahead == Count(COUNT_CAP, is_more=True)
    assert "10,000 or more jobs" in found.sentence


def test_a_pause_is_told_with_its_age_and_a_resume_ends_it(db: Connection[Any]) -> None:
    (job_id,) = enqueue(db, queue="mail")
    pause_queues(db, ["mail"])
    db.execute("update pgworker.queues set updated_at = updated_at - interval '3 minutes'")
    facts, found = explained(db, job_id)
    assert facts.paused_for is not None
    assert 180 <= facts.paused_for < 240
    assert found.reason is Reason.QUEUE_PAUSED
    db.execute("update pgworker.queues set paused = false")
    assert explained(db, job_id)[1].reason is Reason.NO_WORKERS


def test_workers_that_would_take_a_job_are_told_from_those_that_would_not(db: Connection[Any]) -> None:
    (job_id,) = enqueue(db)
    beat(db, "mail")
    assert explained(db, job_id)[1].reason is Reason.QUEUE_UNSERVED
    beat(db, tasks=("tt",), digest=18)
    assert "those of mail do" in explained(db, job_id)[1].sentence
    assert explained(db, job_id)[1].reason is Reason.TASK_UNSERVED
    beat(db)
    assert explained(db, job_id)[1].reason is Reason.WORKERS_BUSY
    beat(db, state=WorkerState.IDLE)
    assert explained(db, job_id)[1].reason is Reason.DUE
    db.execute("update pgworker.worker_heartbeats set beat_at = beat_at - interval '40 seconds'")
    assert explained(db, job_id)[1].reason is Reason.WORKERS_SILENT
    beat(db, state=WorkerState.PAUSED)
    assert explained(db, job_id)[1].reason is Reason.WORKERS_NOT_CLAIMING
    assert explained(db, job_id)[0].last_end is None
    db.execute("update pgworker.worker_heartbeats set ended_at = beat_at, ended_how = 'exit code 0'")
    facts, found = explained(db, job_id)
    assert found.reason is Reason.NO_WORKERS
    assert facts.last_end is not None
    assert (facts.last_end.how, 0 <= facts.last_end.seconds < 30) == ("exit code 0", True)
    db.execute("update pgworker.worker_heartbeats set ended_at = ended_at - interval '2 hours'")
    assert explained(db, job_id)[0].last_end is None


def test_a_job_in_a_lease_stands_behind_those_that_have_not_ended(db: Connection[Any]) -> None:
    ids = enqueue(db, 4)
    worker = Worker(db)
    held = worker.claim()
    beat(db, worker_id=worker.worker_id, runs=(RunningJob(held.lease_id, 2, 5_000_000),))
    worker.settle(held.settlement(1, 1))
    assert [explained(db, job)[1].reason for job in ids] == [
        Reason.SUCCEEDED,
        Reason.RUNNING,
        Reason.IN_LINE,
        Reason.IN_LINE,
    ]
    facts, found = explained(db, ids[3])
    assert facts.line == tuple(ids[1:3])
    assert f"third in line behind {ids[1]}" in found.sentence
    cancel_job(db, ids[1])
    assert "Somebody has asked it to stop." in explained(db, ids[1])[1].sentence
    worker.die("killed by SIGKILL")
    assert explained(db, ids[1])[1].reason is Reason.WORKER_ENDED


def test_every_end_of_a_job_is_told(db: Connection[Any]) -> None:
    cancelled, scheduled = enqueue(db)[0], enqueue(db, run_at=datetime.now(timezone.utc) + HOUR)[0]
    cancel_job(db, cancelled)
    worker = Worker(db)
    (dead,) = enqueue(db)
    error = '{"type": "ValueError", "message": "no such luck"}'
    worker.settle(worker.claim().settlement(outcome=Outcome.FAILED, then=Next.BURY, error=error))
    (failed,) = enqueue(db)
    worker.settle(worker.claim().settlement(outcome=Outcome.FAILED, then=Next.REQUEUE, delay=60, error=error))
    (done,) = enqueue(db)
    worker.settle(worker.claim().settlement())
    (lost,) = enqueue(db)
    db.execute("delete from pgworker.job_queue where job_id = %s", [lost])
    beat(db)
    reasons = [explained(db, job)[1].reason for job in (cancelled, scheduled, dead, failed, done, lost)]
    ends = [Reason.CANCELLED, Reason.SCHEDULED, Reason.DEAD_LETTER, Reason.RETRY, Reason.SUCCEEDED, Reason.LOST]
    assert reasons == ends
    assert "ValueError: no such luck" in explained(db, dead)[1].sentence
    assert "last with ValueError: no such luck" in explained(db, failed)[1].sentence
    db.execute("truncate pgworker.jobs, pgworker.job_executions")
    assert explained(db, dead)[1].reason is Reason.DEAD_LETTER
    with pytest.raises(JobNotFound):
        read_facts(db, done)


@pytest.mark.parametrize("role", ["pgworker_admin", "pgworker_worker"])
def test_an_operator_and_a_pool_may_ask(login: Any, roles_dsn: str, role: str) -> None:
    with psycopg.connect(roles_dsn, autocommit=True) as db:
        (waits, claimed), (dead,) = enqueue(db, 2, queue="mail"), enqueue(db)
        worker = Worker(db)
        worker.settle(worker.claim().settlement(outcome=Outcome.FAILED, then=Next.BURY))
        worker.claim(1, queues=["mail"])
        beat(db, "mail")
    with psycopg.connect(login(role), autocommit=True) as theirs:
        assert {explained(theirs, job)[1].reason for job in (waits, claimed, dead)} == {
            Reason.IN_LINE,
            Reason.WORKERS_BUSY,
            Reason.DEAD_LETTER,
        }
