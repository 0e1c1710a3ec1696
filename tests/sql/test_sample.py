"""What gauges show of a database: the counts, their bounds, and how a look ends that takes too long."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from pgworker.config.settings import PoolSettings
from pgworker.control.queues import pause_queues
from pgworker.inspection.queues import MAX_QUEUES
from pgworker.inspection.sample import sample_database
from pgworker.lifecycle.settle import Next
from pgworker.model.state import Outcome
from pgworker.monitor.samples import Samples
from pgworker.observe.metrics import PoolMetrics, PoolState
from tests.process.pool import eventually
from tests.sql.actors import Connect, Monitor, Worker, ask, enqueue, now


@pytest.fixture
def db(connect: Connect) -> Connection[Any]:
    return connect()


@pytest.fixture
def worker(db: Connection[Any], connect: Connect) -> Worker:
    return Worker(connect())


def counted(metrics: PoolMetrics, queue: str) -> dict[str, float | None]:
    states = ("pending", "scheduled", "failed", "running")
    return {
        state: metrics.registry.get_sample_value("pgworker_queue_jobs", {"queue": queue, "state": state})
        for state in states
    }


def test_every_queue_is_counted_by_state_whoever_serves_it(db: Connection[Any], dsn: str, worker: Worker) -> None:
    enqueue(db, 3)
    held = worker.claim(3)
    assert worker.settle(held.settlement(1, 1, ends=False))
    assert worker.settle(held.settlement(2, 2, outcome=Outcome.FAILED, then=Next.REQUEUE, delay=60, ends=False))
    enqueue(db, 4)
    enqueue(db, 2, run_at=now(db) + timedelta(days=1))
    enqueue(db, 5, queue="elsewhere")
    pause_queues(db, ["elsewhere"])
    metrics = PoolMetrics("1", PoolState)
    Samples(dsn, PoolSettings(workers=1, queues=("default", "empty")), metrics).look(0)
    assert counted(metrics, "default") == {"pending": 4, "scheduled": 2, "failed": 1, "running": 1}
    assert counted(metrics, "elsewhere") == {"pending": 5, "scheduled": 0, "failed": 0, "running": 0}
    assert counted(metrics, "empty") == {"pending": 0, "scheduled": 0, "failed": 0, "running": 0}
    value = metrics.registry.get_sample_value
    paused = {queue: value("pgworker_queue_paused", {"queue": queue}) for queue in ("default", "elsewhere", "empty")}
    assert paused == {"default": 0, "elsewhere": 1, "empty": 0}
    assert (value("pgworker_dead_letters"), value("pgworker_default_partition_jobs")) == (0, 0)
    oldest = {queue: value("pgworker_queue_oldest_job_age_seconds", {"queue": queue}) for queue in ("default", "empty")}
    [waits] = ask(db, "select extract(epoch from clock_timestamp() - min(run_at))::float8 from pgworker.job_queue")
    assert oldest["empty"] == 0
    assert oldest["default"] is not None
    assert 0 < oldest["default"] < waits


def test_who_waits_longest_is_not_who_ran_until_a_moment_ago_and_has_kept_its_place(
    db: Connection[Any], worker: Worker
) -> None:
    enqueue(db, 3)
    db.execute(
        "update pgworker.jobs set run_at = run_at - interval '1 hour', created_at = created_at - interval '1 hour'"
    )
    db.execute("update pgworker.job_queue set run_at = run_at - interval '1 hour'")
    worker.claim(3)
    worker.die()
    [lease] = Monitor(db).reclaimable()
    assert Monitor(db).reclaim(lease, [Outcome.LOST] * 3)
    [queue] = sample_database(db, patience=30).queues
    assert queue.oldest is not None
    assert queue.oldest < 1800, "the hour is not over since it went back"
    enqueue(db, 1)
    db.execute("update pgworker.job_queue set run_at = run_at - interval '40 minutes' where execution = 1")
    [queue] = sample_database(db, patience=30).queues
    assert queue.oldest is not None
    assert 1800 < queue.oldest < 3000, "it stands behind them, and has waited longer"


def test_what_nobody_serves_is_not_told_before_workers_have_shown_their_tasks(db: Connection[Any], dsn: str) -> None:
    enqueue(db, 3)
    metrics = PoolMetrics("1", PoolState)
    Samples(dsn, PoolSettings(workers=1), metrics).look(0)
    assert counted(metrics, "default")["pending"] == 3
    assert metrics.registry.get_sample_value("pgworker_jobs_unserved", {"queue": "default"}) is None


def test_counting_stops_at_the_cap_in_each_of_a_hundred_queues(db: Connection[Any]) -> None:
    for number in range(MAX_QUEUES + 5):
        enqueue(db, 7, queue=f"q{number:03}")
        enqueue(db, 2, queue=f"q{number:03}", run_at=now(db) + timedelta(days=1))
    found = sample_database(db, patience=30, cap=6)
    assert [one.queue for one in found.queues] == [f"q{number:03}" for number in range(MAX_QUEUES)]
    assert {(one.waiting.number, one.waiting.is_more) for one in found.queues} == {(6, True)}
    assert {(one.scheduled.number, one.scheduled.is_more) for one in found.queues} == {(2, False)}


def test_dead_letters_are_counted_up_to_the_cap(db: Connection[Any], worker: Worker) -> None:
    enqueue(db, 5)
    held = worker.claim(5)
    assert worker.settle(held.settlement(1, 5, outcome=Outcome.FAILED, then=Next.BURY))
    assert sample_database(db, patience=30).dead_letters == 5
    assert sample_database(db, patience=30, cap=3).dead_letters == 3


@pytest.mark.parametrize("table", ["job_queue", "dead_letter_jobs", "job_leases"])
def test_a_look_that_takes_too_long_is_given_up_and_leaves_no_trace(
    db: Connection[Any], connect: Connect, table: str
) -> None:
    blocker = connect()
    with blocker.transaction():
        blocker.execute(f"lock table pgworker.{table} in access exclusive mode".encode())
        with pytest.raises(psycopg.errors.QueryCanceled):
            sample_database(db, patience=0.05)
    assert ask(db, "show statement_timeout") == ["0"]
    assert sample_database(db, patience=30).queues == []


def test_a_look_leaves_no_connection_behind(db: Connection[Any], dsn: str) -> None:
    """A pool has a connection for each worker and two more; this one is there for a moment."""
    looks = Samples(dsn, PoolSettings(workers=1), PoolMetrics("1", PoolState))
    for _ in range(3):
        looks.look(0)
    ours = "select count(*) from pg_stat_activity where application_name = 'pgworker monitor, counts'"
    eventually(lambda: ask(db, ours) == [0], "the ends of them")


def test_while_the_database_is_away_what_was_counted_last_grows_old_and_goes(
    db: Connection[Any], dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An hour passes by the clock of Python."""
    enqueue(db, 3)
    metrics, settings = PoolMetrics("1", PoolState), PoolSettings(workers=1)
    Samples(dsn, settings, metrics).look(0)
    sampled_at = metrics.registry.get_sample_value("pgworker_database_sample_timestamp_seconds")
    Samples(make_conninfo(dsn, port=1), settings, metrics).look(0)
    assert counted(metrics, "default")["pending"] == 3
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 3600)
    assert set(counted(metrics, "default").values()) == {None}
    assert metrics.registry.get_sample_value("pgworker_database_sample_timestamp_seconds") == sampled_at
    assert caplog.records == [], "the monitor's other connection says that"
