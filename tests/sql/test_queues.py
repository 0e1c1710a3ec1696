"""Queues: the order in which their jobs are claimed, pause and resume, what nobody serves, and purge."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection

from pgworker.config.settings import PoolSettings
from pgworker.control.queues import pause_queues, resume_queues
from pgworker.errors import InvalidFilter, InvalidJob
from pgworker.inspection.queues import UNSERVED_CAP, Count, Unserved, count_queues, find_queues, find_unserved
from pgworker.lifecycle.heartbeat import (
    PoolIdentity,
    WorkerProcess,
    announce_tasks,
    beat_workers,
    end_worker,
    forget_workers,
)
from pgworker.lifecycle.purge import purge_queue
from pgworker.lifecycle.settle import Next
from pgworker.model.state import Outcome
from pgworker.monitor.samples import Samples
from pgworker.observe.metrics import PoolMetrics, PoolState
from tests.sql.actors import POOL, Connect, Worker, ask, ended, enqueue, leases, now, statuses, waiting

DIGEST = (1 << 64) - 7
"""More than PostgreSQL's bigint holds, as half of all digests are."""


@pytest.fixture
def db(connect: Connect) -> Connection[Any]:
    return connect()


@pytest.fixture
def worker(db: Connection[Any]) -> Worker:
    return Worker(db)


# -- order


def test_jobs_are_claimed_queue_by_queue_in_each_by_priority_from_9_down_and_in_each_by_time(
    db: Connection[Any], worker: Worker
) -> None:
    """Enqueued the other way round, and claimed in several batches that end within a lane."""
    lanes = [(queue, priority) for queue in ("second", "first") for priority in range(10)]
    ids = {lane: enqueue(db, 3, queue=lane[0], priority=lane[1]) for lane in lanes}
    in_order = [job for lane in reversed(lanes) for job in ids[lane]]
    claimed = [job for _ in range(12) for job in worker.claim(5, queues=["first", "second"]).ids]
    assert claimed == in_order


def test_a_queue_that_the_worker_does_not_serve_is_left_alone_whatever_its_priority(
    db: Connection[Any], worker: Worker
) -> None:
    [foreign], [own] = enqueue(db, queue="foreign", priority=9), enqueue(db, priority=0)
    assert worker.claim(queues=["default"]).ids == [own]
    assert [job for job, *_ in waiting(db)] == [foreign]


def test_scheduled_jobs_are_claimed_when_due_and_not_before(db: Connection[Any], worker: Worker) -> None:
    [later] = enqueue(db, run_at=now(db) + timedelta(hours=1), priority=9)
    [past] = enqueue(db, run_at=datetime(2020, 1, 1, tzinfo=timezone.utc), priority=0)
    assert worker.claim().ids == [past]
    assert worker.claim().ids == []
    db.execute("update pgworker.job_queue set run_at = clock_timestamp()")
    assert worker.claim().ids == [later]


def test_what_is_scheduled_at_a_high_priority_is_in_nobodys_way(db: Connection[Any], worker: Worker) -> None:
    enqueue(db, 1000, run_at=now(db) + timedelta(days=1), priority=9)
    [low] = enqueue(db, priority=0)
    assert worker.claim(1).ids == [low]


# -- pause and resume


def test_a_paused_queue_keeps_its_jobs_and_a_resumed_one_gives_them_in_their_order(
    db: Connection[Any], worker: Worker
) -> None:
    before = enqueue(db, 2)
    assert pause_queues(db, ["default", "mail", "default"]) == {"default", "mail"}
    assert pause_queues(db, ["mail", "other"]) == {"other"}
    meanwhile = enqueue(db, 2)
    assert worker.claim().ids == []
    assert resume_queues(db, ["default", "unheard-of"]) == {"default"}
    assert resume_queues(db, ["default"]) == set()
    assert worker.claim().ids == before + meanwhile
    assert ask(db, "select name from pgworker.queues where paused order by name") == ["mail", "other"]


def test_what_is_claimed_of_a_paused_queue_goes_on_and_what_goes_back_stays_there(
    db: Connection[Any], worker: Worker
) -> None:
    ids = enqueue(db, 2)
    held = worker.claim()
    pause_queues(db, ["default"])
    assert worker.settle(held.settlement(1, 1))
    assert worker.settle(held.settlement(2, 2, outcome=Outcome.FAILED, then=Next.REQUEUE))
    assert worker.claim().ids == []
    resume_queues(db, ["default"])
    assert worker.claim().ids == [ids[1]]


def test_pause_and_resume_are_part_of_the_callers_transaction(
    db: Connection[Any], worker: Worker, connect: Connect
) -> None:
    [job] = enqueue(db)
    other = connect()
    with other.transaction(force_rollback=True):
        assert pause_queues(other, ["default"]) == {"default"}
        assert worker.claim(0).ids == []
    assert worker.claim().ids == [job]


def test_a_resume_tells_whoever_serves_the_queue_and_only_if_it_was_paused(
    db: Connection[Any], connect: Connect
) -> None:
    listener = connect()
    listener.execute("listen pgworker")
    pause_queues(db, ["default", "mail"])
    resume_queues(db, ["nothing"])
    resume_queues(db, ["mail", "default"])
    told = sorted(note.payload for note in listener.notifies(timeout=10, stop_after=2))
    assert told == ["default=1000000", "mail=1000000"]


@pytest.mark.parametrize("change", [pause_queues, resume_queues])
def test_what_can_not_name_a_queue_is_refused(db: Connection[Any], change: Any) -> None:
    with pytest.raises(InvalidJob, match="'my queue' can't name a queue"):
        change(db, ["mail", "my queue"])
    assert ask(db, "select name from pgworker.queues") == []


def test_queues_in_use_are_those_with_jobs_waiting_or_lately_and_those_that_are_served(
    db: Connection[Any], worker: Worker
) -> None:
    pool = PoolIdentity(uuid4(), "host", "boot", ("served", "default"))
    beat_workers(db, pool, [WorkerProcess(uuid4(), 1, 0, 0)])
    enqueue(db, 2, queue="waits")
    enqueue(db, queue="ran")
    assert worker.settle(worker.claim(queues=["ran"]).settlement())
    pause_queues(db, ["only-paused"])
    assert find_queues(db) == ["default", "ran", "served", "waits"]


# -- what nobody serves


def serve(db: Connection[Any], *tasks: str, queues: tuple[str, ...] = ("default",), digest: int = DIGEST) -> Worker:
    """A living worker of these queues that has announced its tasks."""
    worker = Worker(db)
    announce_tasks(db, digest, tasks)
    beat_workers(db, PoolIdentity(uuid4(), "host", "boot", queues), [WorkerProcess(worker.worker_id, 1, 0, 0, digest)])
    return worker


def unserved(db: Connection[Any]) -> list[tuple[str, str, int, bool]]:
    found = find_unserved(db)
    assert not any(one.jobs.is_more for one in found)
    return [(one.queue, one.task, one.jobs.number, one.is_queue_served) for one in found]


def test_due_jobs_of_a_task_that_no_living_worker_has_are_counted_the_most_first(db: Connection[Any]) -> None:
    serve(db, "t", "u")
    enqueue(db, 2)
    enqueue(db, 1, task="typo", priority=9)
    enqueue(db, 3, task="gone", priority=1)
    enqueue(db, 2, task="gone", priority=8)
    enqueue(db, 4, task="later", run_at=now(db) + timedelta(hours=1))
    assert unserved(db) == [("default", "gone", 5, True), ("default", "typo", 1, True)]
    serve(db, "typo", digest=5)
    assert unserved(db) == [("default", "gone", 5, True)]


def test_a_worker_serves_a_task_in_its_own_queues_only(db: Connection[Any]) -> None:
    serve(db, "t", queues=("mail",))
    enqueue(db, 2)
    enqueue(db, 1, queue="mail")
    assert unserved(db) == [("default", "t", 2, False)]
    serve(db, "t", queues=("mail", "default"), digest=5)
    assert unserved(db) == []


def test_a_worker_whose_tasks_are_not_known_yet_may_have_any_and_one_that_is_gone_has_none(db: Connection[Any]) -> None:
    enqueue(db)
    starting = uuid4()
    beat_workers(db, POOL, [WorkerProcess(starting, 1, 0, 0)])
    assert unserved(db) == []
    end_worker(db, POOL, WorkerProcess(starting, 1, 0, 0), "killed")
    assert unserved(db) == [("default", "t", 1, False)]
    silent = serve(db, "t")
    assert unserved(db) == []
    db.execute(
        "update pgworker.worker_heartbeats set beat_at = beat_at - interval '1 minute' where worker_id = %s",
        [silent.worker_id],
    )
    assert unserved(db) == [("default", "t", 1, False)]


def test_the_next_beat_says_which_tasks_a_worker_has_once_it_knows(db: Connection[Any]) -> None:
    enqueue(db)
    process = WorkerProcess(uuid4(), 1, 0, 0)
    beat_workers(db, POOL, [process])
    announce_tasks(db, 5, ["u"])
    beat_workers(db, POOL, [WorkerProcess(process.worker_id, 1, 0, 0, 5)])
    assert unserved(db) == [("default", "t", 1, True)]


def test_a_list_of_tasks_is_kept_once_and_while_somebody_shows_it_or_a_week(db: Connection[Any]) -> None:
    serve(db, "t")
    serve(db, "t")
    serve(db, "old", digest=5)
    announce_tasks(db, 6, ["young"])
    db.execute("update pgworker.served_tasks set announced_at = announced_at - interval '8 days' where digest <> 6")
    db.execute("update pgworker.worker_heartbeats set beat_at = beat_at - interval '8 days' where tasks_digest = 5")
    forget_workers(db)
    assert ask(db, "select tasks from pgworker.served_tasks order by tasks") == [["t"], ["young"]]


def test_the_look_goes_to_the_head_of_each_lane_and_says_that_there_may_be_more(db: Connection[Any]) -> None:
    serve(db, "t")
    enqueue(db, 3, task="typo")
    enqueue(db, UNSERVED_CAP + 5)
    enqueue(db, 1, task="behind")
    enqueue(db, 2, task="typo", priority=1)
    assert find_unserved(db) == [Unserved("default", "typo", Count(5, is_more=True), True)]


def test_what_nobody_serves_is_in_the_counts_of_each_queue(db: Connection[Any]) -> None:
    serve(db, "t")
    enqueue(db, 2, task="typo")
    enqueue(db, 1)
    enqueue(db, 4, queue="mail")
    default, mail = count_queues(db)
    assert default.unserved == (Unserved("default", "typo", Count(2), True),)
    assert (mail.queue, mail.unserved_jobs, mail.unserved[0].is_queue_served) == ("mail", Count(4), False)


def test_a_monitor_counts_what_nobody_serves_and_tells_of_each_task_once_a_minute(
    db: Connection[Any], dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    serve(db, "t")
    serve(db, "another", queues=("elsewhere",), digest=2)
    enqueue(db, 2, task="typo")
    enqueue(db, 2, queue="elsewhere")
    metrics = PoolMetrics("0", PoolState)
    looks = Samples(dsn, PoolSettings(workers=1, queues=("default", "mail")), metrics)
    begun = time.monotonic() + 100

    def look(at: float) -> list[str]:
        caplog.clear()
        looks.look(begun + at)
        return [record.getMessage() for record in caplog.records]

    said = "due jobs of task {} wait, and no worker serves it: is it deployed, is its name right?"
    assert look(0) == [f"2 {said.format('typo')}"]
    enqueue(db, 1, task="other")
    assert look(21) == [f"1 {said.format('other')}"]
    assert look(42) == []
    assert look(63) == [f"2 {said.format('typo')}"]
    served = {"queue": "default"}, {"queue": "mail"}, {"queue": "elsewhere"}
    assert [metrics.registry.get_sample_value("pgworker_jobs_unserved", labels) for labels in served] == [3, 0, 2]
    announce_tasks(db, 5, ["typo", "other"])
    db.execute("update pgworker.worker_heartbeats set tasks_digest = 5")
    assert look(84) == []
    assert metrics.registry.get_sample_value("pgworker_jobs_unserved", served[0]) == 0


def test_a_monitor_tells_of_each_queue_that_nobody_serves_once_an_hour_and_of_no_more_than_twenty(
    db: Connection[Any], dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    serve(db, "t", digest=1)
    serve(db, "another", queues=("elsewhere",), digest=2)
    enqueue(db, 2, queue="defualt")
    enqueue(db, 1, queue="defualt", task="u")
    enqueue(db, 1, queue="elsewhere")
    looks = Samples(dsn, PoolSettings(workers=1), PoolMetrics("0", PoolState))
    begun = time.monotonic() + 100

    def look(at: float) -> list[str]:
        caplog.clear()
        looks.look(begun + at)
        return [record.getMessage() for record in caplog.records]

    said = "due jobs wait in queue {}, which no living worker serves: is its name right?"
    assert look(0) == [f"3 {said.format('defualt')}"]
    enqueue(db, 1, queue="mial")
    assert look(61) == [f"1 {said.format('mial')}"]
    assert look(3599) == []
    assert look(3601) == [f"3 {said.format('defualt')}"]
    for number in range(30):
        enqueue(db, 1, queue=f"queue{number}")
    assert len(look(3602)) == 18


def test_a_monitor_that_can_not_count_in_time_says_so_and_counts_again_later(
    dsn: str, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = PoolMetrics("0", PoolState)
    looks = Samples(dsn, PoolSettings(workers=1), metrics)
    blocker = connect()
    with blocker.transaction():
        blocker.execute("lock table pgworker.job_queue in access exclusive mode")
        pause = looks.look(time.monotonic() + 100)
    assert pause >= 20 * 5, "a look takes one part in twenty of the time"
    assert "counting what waits takes longer than 5 s" in caplog.text
    pending = {"queue": "default", "state": "pending"}
    assert metrics.registry.get_sample_value("pgworker_queue_jobs", pending) is None
    assert looks.look(time.monotonic() + 100) < pause
    assert metrics.registry.get_sample_value("pgworker_queue_jobs", pending) == 0


# -- purge


def test_a_purge_ends_what_waits_in_a_queue_and_its_history_says_so(db: Connection[Any], worker: Worker) -> None:
    [running, failed] = enqueue(db, 2)
    held = worker.claim()
    assert worker.settle(held.settlement(2, 2, outcome=Outcome.FAILED, then=Next.REQUEUE, delay=60, ends=False))
    [due], [later] = enqueue(db, priority=0), enqueue(db, run_at=now(db) + timedelta(days=1), priority=9)
    [other] = enqueue(db, queue="other")
    assert purge_queue(db, "default") == 3
    assert statuses(db, [running, failed, due, later, other]) == ["running", *["cancelled"] * 3, "pending"]
    assert ended(db, failed) == [(1, "failed", 1), (2, "cancelled", 1)]
    assert ask(db, "select distinct cause from pgworker.job_executions where outcome = 'cancelled'") == ["purged"]
    assert leases(db) == {held.lease_id: [running, failed]}
    assert purge_queue(db, "default") == 0


def test_a_purge_of_a_task_or_an_organisation_leaves_the_others(db: Connection[Any]) -> None:
    [mine], [task] = enqueue(db), enqueue(db, task="u")
    [org], [both] = enqueue(db, org_id="acme"), enqueue(db, task="u", org_id="acme")
    assert purge_queue(db, "default", task="u", org_id="acme") == 1
    assert statuses(db, [mine, task, org, both]) == ["pending"] * 3 + ["cancelled"]
    assert purge_queue(db, "default", org_id="acme") == 1
    assert purge_queue(db, "default", task="u") == 1
    assert [job for job, *_ in waiting(db)] == [mine]


def test_a_purge_goes_on_in_batches_over_all_lanes_and_tells_after_each(db: Connection[Any]) -> None:
    """The last rows of a batch, and times that Python has no word for, are no obstacle."""
    for priority in range(10):
        enqueue(db, 4, priority=priority)
    db.execute("update pgworker.job_queue set run_at = 'infinity' where priority = 3")
    db.execute("update pgworker.job_queue set run_at = (select min(run_at) from pgworker.job_queue) where priority = 5")
    told: list[int] = []
    assert purge_queue(db, "default", batch=7, on_progress=told.append) == 40
    assert told == [7, 14, 21, 28, 35, 40]
    assert waiting(db) == []


def test_a_purge_that_is_interrupted_keeps_what_it_has_done(db: Connection[Any]) -> None:
    enqueue(db, 20)

    def interrupt(purged: int) -> None:
        if purged == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        purge_queue(db, "default", batch=5, on_progress=interrupt)
    assert len(waiting(db)) == 10
    assert ask(db, "select count(*) from pgworker.job_executions") == [10]


def test_a_purge_refuses_a_queue_that_can_not_be_and_a_connection_that_would_keep_it_open(
    db: Connection[Any], dsn: str
) -> None:
    with pytest.raises(InvalidFilter, match="can't name a queue"):
        purge_queue(db, "my queue")
    with psycopg.connect(dsn) as connection, pytest.raises(ValueError, match="autocommit"):
        purge_queue(connection, "default")
