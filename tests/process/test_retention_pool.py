"""A pool keeps the partitions of its database: it makes them, drops them, and says what lies where it should not."""

from __future__ import annotations

import json
import urllib.request

from tests.process import jobs, test_pool
from tests.process.pool import eventually, free_port
from tests.process.test_pool import Scene, StartPool, kill
from tests.process.test_pool_misuse import beat_at
from tests.sql.actors import Connect
from tests.sql.history import DAY, day_of, enqueue_ago, finish_ago, partitions

scene = test_pool.scene
start_pool = test_pool.start_pool


def test_a_pool_drops_what_has_expired_and_runs_what_waited_there(scene: Scene, start_pool: StartPool) -> None:
    db = scene.connection
    finish_ago(db, enqueue_ago(db, 5, 3), 4)
    payload = json.dumps({"directory": str(scene.directory), "name": "late"})
    [late] = enqueue_ago(db, 5, task=jobs.quick.name, payload=payload)
    [young] = enqueue_ago(db, 3, task=jobs.quick.name, payload=payload)
    db.execute("update pgworker.job_queue set run_at = run_at + interval '100 days'")
    day = f"{day_of(db, 5):%Y%m%d}"
    pool = start_pool(retention=4 * DAY)
    line = pool.wait_for_log(f"dropped jobs_{day}: 4 jobs, 3 executions, .* MiB; 1 jobs are kept")
    assert " monitor " in line
    assert f"jobs_{day}" not in partitions(db)
    assert f"jobs_{day_of(db, 3):%Y%m%d}" in partitions(db)
    db.execute("update pgworker.job_queue set run_at = run_at - interval '100 days'")
    scene.wait_for_status("succeeded", late, young)
    assert [job for job, *_ in db.execute("select id from pgworker.job_status where status = 'LOST'")] == []


def test_while_a_reader_keeps_a_day_from_being_dropped_the_pool_works_and_says_so(
    scene: Scene, start_pool: StartPool, connect: Connect
) -> None:
    db, reader = scene.connection, connect()
    finish_ago(db, enqueue_ago(db, 9), 8)
    there = partitions(db)
    with reader.transaction():
        reader.execute("select from pgworker.jobs limit 1")
        pool = start_pool(heartbeat_interval=0.2)
        said = pool.wait_for_log("can't be dropped yet")
        assert f"jobs_{day_of(db, 9):%Y%m%d}" in said
        assert "a transaction that reads or writes jobs was in the way for longer than 50 ms" in said
        scene.wait_for_status("succeeded", scene.enqueue(jobs.quick, "meanwhile"))
        before = beat_at(scene)
        eventually(lambda: beat_at(scene) > before, "a beat")
        assert partitions(db) == there
    kill(pool.monitor)  # the next one looks at once, and in a minute if a backend of the dead one is still in the way
    pool.wait_for_log(f"dropped jobs_{day_of(db, 9):%Y%m%d}: 1 jobs", within=90)


def test_by_a_clock_that_is_years_ahead_nothing_is_dropped(scene: Scene, start_pool: StartPool) -> None:
    """A function of that name stands in for a server whose clock is wrong: our statements find it first."""
    db = scene.connection
    enqueue_ago(db, 9)
    there = partitions(db)
    db.execute(
        "create function public.clock_timestamp() returns timestamptz language sql as"
        " $$ select pg_catalog.clock_timestamp() + interval '2 years' $$"
    )
    db.execute(f"alter database {db.info.dbname} set search_path = public, pg_catalog")
    pool = start_pool(workers=1)
    pool.wait_for_log("the clock of the server is 73[01] days.* ahead of this host's: nothing is dropped")
    assert set(there) < set(partitions(db))


def test_jobs_in_the_default_partition_are_an_alarm_in_the_log_and_on_the_page(
    scene: Scene, start_pool: StartPool
) -> None:
    [stray] = enqueue_ago(scene.connection, 3, partition=False)
    port = free_port()
    pool = start_pool(workers=1, metrics_listen=f"127.0.0.1:{port}")
    assert "WARNING" in pool.wait_for_log("1 jobs are in the default partition: their day had none")

    def page() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    eventually(lambda: "\npgworker_default_partition_jobs 1.0\n" in page(), "the alarm")
    assert scene.status(stray) == "pending"


def test_jobs_of_a_day_that_no_pool_had_made_ready_for_move_where_they_belong(
    scene: Scene, start_pool: StartPool
) -> None:
    db = scene.connection
    today = f"{day_of(db, 0):%Y%m%d}"
    for parent in ("jobs", "job_executions"):
        db.execute(f"drop table pgworker.{parent}_{today}".encode())
    early = scene.enqueue(jobs.quick, "early")
    pool = start_pool(workers=1)
    pool.wait_for_log(f"made the partitions of {day_of(db, 0)}")
    scene.wait_for_status("succeeded", early)
    assert scene.scalar("select tableoid::regclass::text from pgworker.jobs") == f"pgworker.jobs_{today}"
    assert "default partition" not in pool.log()
