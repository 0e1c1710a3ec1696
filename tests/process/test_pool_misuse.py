"""A whole pool against what handlers, operators and other sessions do to it in good faith, on a machine that lacks."""

from __future__ import annotations

import resource
import signal
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection, sql
from psycopg.types.json import Jsonb

from tests.process import jobs, test_pool
from tests.process.pool import eventually, no_descriptor_left
from tests.process.test_pool import TTL, Scene, StartPool, kill
from tests.sql import actors

Connect = Callable[[], Connection[Any]]

scene = test_pool.scene
start_pool = test_pool.start_pool


# -- handlers


def test_a_judge_that_fails_and_answers_that_mean_nothing_are_ordinary_failures(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1)
    scene.warm_up()
    nonsense = ("a retry in the past", "a snooze until a naive time", "a snooze until a word")
    wrong = scene.enqueue_together(
        jobs.fail_for_a_judge_that_fails.job(str(scene.directory), "judge"),
        *(jobs.ask_for_nonsense.job(str(scene.directory), what.replace(" ", "-"), what) for what in nonsense),
        *scene.quick("behind"),
    )
    behind = wrong.pop()
    scene.wait_for_status("dead_letter", *wrong)
    scene.wait_for_status("succeeded", behind)
    assert [scene.outcomes(job) for job in wrong] == [[(1, "failed", 1), (2, "failed", 2)]] * 4
    words = ["an ordinary failure", "Retry(after=...) takes", "Snooze(until) needs a time", "Snooze(until) takes"]
    for job, said in zip(wrong, words, strict=True):
        assert said in scene.executions(job)[-1].message
    assert len({line.pid for line in scene.ledger()}) == 1


def test_a_timeout_of_a_thousand_years_is_one(scene: Scene, start_pool: StartPool) -> None:
    start_pool(workers=1)
    payload = Jsonb({"directory": str(scene.directory), "name": "patient"})
    asked = "select pgworker.enqueue(%s, %s, timeout => interval '1000 years', max_attempts => 1)"
    job = scene.scalar(asked, jobs.quick.name, payload)
    scene.wait_for_status("succeeded", job)


@pytest.mark.parametrize(
    ("child", "parent", "outcome"),
    [("raise", "return", "succeeded"), ("exit", "return", "succeeded"), ("return", "raise", "failed")],
)
def test_a_child_that_a_handler_forks_runs_no_job_however_it_ends(
    child: str, parent: str, outcome: str, scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1)
    scene.warm_up()
    names = [f"behind{number}" for number in range(20)]
    forks = jobs.fork.job(str(scene.directory), "forks", child, parent)
    job, *behind = scene.enqueue_together(forks, *scene.quick(*names))
    scene.wait_for_status("succeeded", *behind)
    assert scene.outcomes(job) == [(1, outcome, int(outcome == "failed"))]
    assert Counter(line.name for line in scene.noted("start", "forks", *names)) == dict.fromkeys(["forks", *names], 1)
    assert len({line.pid for line in scene.ledger()}) == 1


def test_a_mess_where_the_stack_should_be_keeps_no_death_from_being_recorded(
    scene: Scene, start_pool: StartPool
) -> None:
    pool = start_pool(workers=1)
    monitor = pool.monitor
    job = scene.enqueue(jobs.die_behind_a_mess, "job")
    scene.wait_for_status("succeeded", job)
    assert scene.outcomes(job) == [(1, "crashed", 1), (2, "succeeded", 1)]
    assert "bytes left out" in scene.executions(job)[0].stack
    assert pool.monitor == monitor


def test_a_worker_whose_handler_has_left_no_file_descriptor_is_replaced_once_it_needs_one_and_charges_nobody(
    scene: Scene, start_pool: StartPool
) -> None:
    pool = start_pool(workers=1)
    (starved,) = pool.workers
    job = scene.enqueue(jobs.leak, "leak")
    scene.wait_for("start", "leak")
    eventually(lambda: has_no_descriptor(starved), "a worker that can open nothing")
    cut = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgworker worker 0'"
    assert scene.scalar(cut)
    scene.open_gate("leak")
    scene.wait_for_status("succeeded", job)
    assert scene.outcomes(job) == [(1, "lost", 0), (2, "succeeded", 0)]
    assert starved not in pool.workers
    pool.wait_for_log("no file descriptor is left")


def test_what_waited_in_a_worker_without_a_file_descriptor_is_run_when_there_are_some_again(
    scene: Scene, start_pool: StartPool
) -> None:
    pool = start_pool(workers=1, slots=2)
    (starved,) = pool.workers
    scene.warm_up()
    leaks = jobs.leak_until.job(str(scene.directory), "leak")
    all_of_them = scene.enqueue_together(leaks, *(jobs.rest.job(0.1) for _ in range(50)))
    eventually(lambda: has_no_descriptor(starved), "a worker that can open nothing")
    cut = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgworker worker 0'"
    assert scene.scalar(cut)
    pool.wait_for_log("Too many open files")
    scene.open_gate("leak")
    scene.wait_for_status("succeeded", *all_of_them)
    assert pool.workers == [starved]
    assert {outcome for job in all_of_them for _, outcome, _ in scene.outcomes(job)} == {"succeeded"}
    eventually(lambda: scene.scalar("select count(*) from pgworker.job_leases") == 0, "no lease that is kept for ever")


def has_no_descriptor(pid: int) -> bool:
    limit, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    return len(list(Path(f"/proc/{pid}/fd").iterdir())) >= limit


# -- a machine that has nothing left


@pytest.mark.parametrize("who", ["worker", "monitor"])
def test_a_fork_that_fails_is_tried_again_until_it_works(who: str, scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=1)
    victim = pool.monitor if who == "monitor" else pool.workers[0]
    with no_descriptor_left(pool.master):
        kill(victim)
        pool.wait_for_log("can't fork: .*Too many open files")
    job = scene.enqueue(jobs.quick, "job")
    scene.wait_for_status("succeeded", job)
    assert pool.monitor != victim
    assert victim not in pool.workers
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0


# -- leases that look abandoned


def abandon(connection: Connection[Any], ttl: float, worker_id: UUID | None = None) -> tuple[UUID, UUID]:
    """A lease on a job of an unserved task that nobody will renew, of a worker never heard of or this one: both ids."""
    task = f"unserved.{uuid4().hex}"
    [job] = actors.enqueue(connection, task=task)
    held = actors.Worker(connection, worker_id or uuid4()).claim(1, ttl=ttl, tasks=[task])
    assert held.ids == [job]
    return held.lease_id, job


def is_held(connection: Connection[Any], lease_id: UUID) -> bool:
    return lease_id in actors.leases(connection)


def wait_for_reclaim(connection: Connection[Any], lease_id: UUID) -> None:
    eventually(lambda: not is_held(connection, lease_id), "a reclaim by expiry")


def test_the_leases_of_a_pool_that_still_beats_are_its_own_to_reclaim(scene: Scene, start_pool: StartPool) -> None:
    """A claim whose answer was lost: its own pool knows that nothing ran, another one would have to charge it."""
    owner = start_pool(workers=1, lease_ttl=60, heartbeat_interval=0.3)  # takes nothing by expiry for a minute
    eventually(lambda: scene.scalar("select count(*) from pgworker.worker_heartbeats"), "a beat")
    orphaned, job = abandon(scene.connection, 0.1, scene.scalar("select worker_id from pgworker.worker_heartbeats"))
    start_pool(workers=1, lease_ttl=1.5, heartbeat_interval=0.3)
    for _ in range(2):  # the second look began after the first had taken something by expiry
        stranger, _ = abandon(scene.connection, 0.1)
        wait_for_reclaim(scene.connection, stranger)
    assert is_held(scene.connection, orphaned)
    owner.signal_all(signal.SIGSTOP)
    wait_for_reclaim(scene.connection, orphaned)
    assert scene.outcomes(job) == [(1, "crashed", 1)]


@pytest.mark.parametrize("table", ["worker_heartbeats", "job_leases"])
def test_a_monitor_that_was_held_up_for_longer_than_a_lease_gives_the_others_as_long_again(
    table: str, scene: Scene, start_pool: StartPool, connect: Connect
) -> None:
    """Its beat or its look waits; whatever made it wait may have kept everybody else from renewing."""
    ttl = 2.0
    monitors_that_wait = """
        select pid from pg_stat_activity
        where datname = current_database() and application_name = 'pgworker monitor' and wait_event_type = 'Lock'"""
    start_pool(workers=1, lease_ttl=ttl, heartbeat_interval=0.3)
    stranger, _ = abandon(scene.connection, 0.1)
    wait_for_reclaim(scene.connection, stranger)  # steady for long enough
    with connect().transaction() as stalling:
        stalling.connection.execute(
            sql.SQL("lock table pgworker.{} in access exclusive mode").format(sql.Identifier(table))
        )
        lease, job = abandon(stalling.connection, 1)
        tried: set[int] = set()  # it gives up after half a second or more, and asks again on another connection

        def is_held_up_for_long() -> bool:
            tried.update(pid for [pid] in scene.connection.execute(monitors_that_wait))
            return len(tried) > 1 + ttl / 0.5

        eventually(is_held_up_for_long, lambda: f"a monitor that asks again and again, not {tried}")
        over_at = actors.now(scene.connection)
    wait_for_reclaim(scene.connection, lease)
    reclaimed_at = scene.scalar("select finished_at from pgworker.job_executions where job_id = %s", job)
    assert (reclaimed_at - over_at).total_seconds() >= ttl


def test_one_lease_that_somebody_holds_locked_keeps_no_other_from_being_renewed(
    scene: Scene, start_pool: StartPool, connect: Connect
) -> None:
    pool = start_pool(workers=2, lease_ttl=TTL)
    stuck, other = scene.enqueue(jobs.hold, "stuck"), scene.enqueue(jobs.hold, "other")
    for name in ("stuck", "other"):
        scene.wait_for("start", name)

    def expiry() -> datetime:
        found = scene.scalar("select max(expires_at) from pgworker.job_leases where %s = any (job_ids)", other)
        assert isinstance(found, datetime)
        return found

    with connect().transaction() as settling:
        settling.connection.execute("select from pgworker.job_leases where %s = any (job_ids) for update", [stuck])
        for _ in range(2):  # one may come before the locked lease is due
            before = expiry()
            eventually(lambda before=before: expiry() > before, "a renewal")  # type: ignore[misc]
        assert "a lease is lost" not in pool.log()
    for name in ("stuck", "other"):
        scene.open_gate(name)
    scene.wait_for_status("succeeded", stuck, other)
    assert scene.outcomes(other) == [(1, "succeeded", 0)]


# -- what an operator does to the schema


def test_a_partition_that_cannot_be_made_is_said_once_and_disturbs_nothing(scene: Scene, start_pool: StartPool) -> None:
    day = scene.scalar("select to_char(now() at time zone 'utc' + interval '2 days', 'YYYYMMDD')")
    scene.connection.execute(sql.SQL("drop table pgworker.{}").format(sql.Identifier(f"jobs_{day}")))
    scene.connection.execute(
        sql.SQL(
            "create table pgworker.mine partition of pgworker.jobs"
            " for values from (pgworker.uuid7_first({day})) to (pgworker.uuid7_first({day} + interval '9 days'))"
        ).format(day=sql.Literal(f"{day} 00:00:00+00") + sql.SQL("::timestamptz"))
    )
    pool = start_pool(workers=1, heartbeat_interval=0.2)
    pool.wait_for_log("a partition can't be made")
    eventually(lambda: scene.scalar("select count(*) from pgworker.worker_heartbeats") == 1, "the first beat")
    for _ in range(5):
        before = beat_at(scene)
        eventually(lambda before=before: beat_at(scene) > before, "a beat")  # type: ignore[misc]
    scene.wait_for_status("succeeded", scene.enqueue(jobs.quick, "job"))
    assert pool.log().count("a partition can't be made") == 1
    assert "the database is back" not in pool.log()


def beat_at(scene: Scene) -> datetime:
    found = scene.scalar("select max(beat_at) from pgworker.worker_heartbeats")
    assert isinstance(found, datetime)
    return found


def test_a_pool_works_on_when_a_newer_version_has_migrated_and_replaces_its_workers(
    scene: Scene, start_pool: StartPool
) -> None:
    pool = start_pool(workers=2)
    scene.connection.execute(
        "insert into pgworker.schema_migrations select 9999, name, checksum from"
        " (select * from pgworker.schema_migrations limit 1) as any_one"
    )
    before = set(pool.workers)
    kill(min(before))
    scene.scalar(
        "select bool_and(pg_terminate_backend(pid)) from pg_stat_activity"
        " where application_name ^@ 'pgworker ' and datname = current_database()"
    )
    eventually(lambda: len(set(pool.workers) - before) == 1 and len(pool.workers) == 2, "a new worker")
    pool.send(signal.SIGHUP)
    pool.wait_for_log("event=restart_done")
    scene.wait_for_status("succeeded", *scene.enqueue_together(*scene.quick(*"abcdefgh")))
    pool.wait_for_log("WARNING +monitor .*restart it with that version soon.*event=schema_newer")


def test_a_worker_that_finds_an_older_schema_starts_nothing_that_it_could_not_record(
    scene: Scene, start_pool: StartPool
) -> None:
    pool = start_pool(workers=1)
    scene.warm_up()
    scene.connection.execute("update pgworker.schema_migrations set version = -version")
    names = [f"job{number}" for number in range(20)]
    short = [jobs.quick.job(str(scene.directory), name, 0.1) for name in names]  # none holds up those behind it
    all_of_them = scene.enqueue_together(*short)
    scene.wait_for("start", "job2")
    scene.scalar("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgworker worker 0'")
    pool.wait_for_log("ERROR +worker 0 .*Run `pgworker migrate`")
    begun = [line.name for line in scene.noted("start", *names)]
    scene.connection.execute("update pgworker.schema_migrations set version = -version")
    scene.wait_for_status("succeeded", *all_of_them)
    twice = [name for name, times in Counter(line.name for line in scene.noted("start", *names)).items() if times > 1]
    assert set(twice) <= set(names[: len(begun) + 1])  # one more may have been in hand
    assert all(scene.outcomes(job)[-1][2] == 0 for job in all_of_them)


# -- jobs that nobody serves


def test_jobs_that_nobody_serves_cost_polls_nothing_and_hide_no_job_that_commits_late(
    scene: Scene, start_pool: StartPool, connect: Connect
) -> None:
    many = 20_000
    scene.connection.execute(
        """insert into pgworker.job_queue (job_id, run_at, execution, priority, failures, queue, task)
           select gen_random_uuid(), now() - interval '1 hour', 1, 5, 0, 'default', 'unserved'
           from generate_series(1, %s)""",
        [many],
    )
    start_pool(workers=1, poll_interval=0.05)
    producer = connect()
    with producer.transaction():
        late = jobs.quick.using(producer).enqueue(str(scene.directory), "late").id
        eventually(lambda: entries_read(scene, scans=400) < 5 * many, "polls that read little")  # ten lanes a poll
        prompt = scene.enqueue(jobs.quick, "prompt")
        scene.wait_for("start", "prompt")  # whose claim takes the floor past what was enqueued before
    scene.wait_for("start", "late")
    scene.wait_for_status("succeeded", prompt, late)


def entries_read(scene: Scene, scans: int) -> int:
    """What all backends together read from the indexes of the queue while they scan them so many times."""
    statement = """
        select coalesce(sum(idx_scan), 0)::bigint, coalesce(sum(idx_tup_read), 0)::bigint from pg_stat_all_indexes
        where relid = 'pgworker.job_queue'::regclass"""
    [(scanned, read)] = scene.connection.execute(statement).fetchall()

    def later() -> list[tuple[int, int]]:
        return [row for row in scene.connection.execute(statement) if row[0] >= scanned + scans]

    [(_, read_by_then)] = eventually(later, "polls")
    return int(read_by_then - read)


def test_while_no_claim_succeeds_what_has_ended_is_recorded_all_the_same(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=1)
    running = scene.enqueue(jobs.hold, "running")
    scene.wait_for("start", "running")
    scene.connection.execute("create function refuse() returns trigger language plpgsql as $$ begin raise 'no'; end $$")
    scene.connection.execute(
        "create trigger refuse before insert on pgworker.job_leases for each row execute function refuse()"
    )
    waits = scene.enqueue(jobs.quick, "waits")
    scene.open_gate("running")
    scene.wait_for_status("succeeded", running)
    assert scene.status(waits) == "pending"
    pool.wait_for_log("no. This is a bug of pgworker")
    scene.connection.execute("drop trigger refuse on pgworker.job_leases")
    scene.wait_for_status("succeeded", waits)
    assert scene.outcomes(running) == [(1, "succeeded", 0)]
