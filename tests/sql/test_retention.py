"""Retention: what is dropped, what is kept, and where it is afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection, sql

from pgworker.errors import ConfigurationError, JobNotFound
from pgworker.inspection.jobs import list_jobs, show_job
from pgworker.inspection.sample import count_default_jobs
from pgworker.lifecycle.cancel import cancel_job
from pgworker.lifecycle.dead_letters import discard_dead_letters, requeue_dead_letters
from pgworker.lifecycle.partitions import make_partitions
from pgworker.lifecycle.prune import PruneAction, PrunedPartition, prune
from pgworker.lifecycle.release import release_jobs
from pgworker.lifecycle.settle import Next
from pgworker.model.state import CancelAnswer, Outcome, Status
from tests.sql.actors import Connect, Held, Worker, ask, ended, enqueue, statuses, waiting
from tests.sql.history import DAY, RETENTION, age, day_of, enqueue_ago, finish_ago, partitions, places
from tests.sql.invariants import STORED, offences


@pytest.fixture
def db(connect: Connect) -> Connection[Any]:
    return connect()


@pytest.fixture
def worker(connect: Connect) -> Worker:
    return Worker(connect())


def fail(worker: Worker, held: Held, then: Next, delay: float = 0.0) -> None:
    assert worker.settle(held.settlement(outcome=Outcome.FAILED, then=then, delay=delay, error='{"type": "E"}'))


def dropped(connection: Connection[Any], older_than: object = RETENTION) -> list[str]:
    pruned = prune(connection, older_than)
    assert {partition.action for partition in pruned} <= {PruneAction.DROPPED}
    return [partition.name for partition in pruned]


def before(connection: Connection[Any], days: int) -> str:
    """The name of the partition before the days that a retention of so many days keeps."""
    return f"jobs_before_{day_of(connection, days):%Y%m%d}"


# -- what is dropped


def test_a_day_whose_jobs_have_all_ended_is_dropped_with_everything_about_them(db: Connection[Any]) -> None:
    ids = enqueue_ago(db, 9, 3)
    finish_ago(db, ids, 8)
    day = day_of(db, 9)
    pruned = prune(db, timedelta(days=7))
    assert [(p.name, p.day, p.jobs, p.executions, p.kept, p.action, p.why) for p in pruned] == [
        (f"jobs_{day:%Y%m%d}", day, 3, 3, 0, PruneAction.DROPPED, None)
    ]
    assert pruned[0].bytes > 0
    assert ask(db, f"select to_regclass('pgworker.jobs_{day:%Y%m%d}')") == [None]
    assert ask(db, f"select to_regclass('pgworker.job_executions_{day:%Y%m%d}')") == [None]
    assert statuses(db, ids) == [None] * 3
    with pytest.raises(JobNotFound, match="dropped by retention"):
        show_job(db, ids[0])
    with pytest.raises(JobNotFound, match="dropped by retention"):
        cancel_job(db, ids[0])
    assert ask(db, "select count(*) from pgworker.jobs") == [0]
    assert ask(db, "select count(*) from pgworker.job_executions") == [0]


def test_a_day_is_dropped_when_all_of_it_is_older_than_the_retention_and_not_before(db: Connection[Any]) -> None:
    old, younger = enqueue_ago(db, 8), enqueue_ago(db, 7)
    finish_ago(db, old + younger, 5)
    assert dropped(db) == [f"jobs_{day_of(db, 8):%Y%m%d}"]
    assert statuses(db, old + younger) == [None, "succeeded"]
    assert dropped(db) == []
    assert places(db, younger) == {f"jobs_{day_of(db, 7):%Y%m%d}", f"job_executions_{day_of(db, 7):%Y%m%d}"}


def test_days_that_nobody_dropped_for_long_go_all_together(db: Connection[Any]) -> None:
    for days in (30, 20, 9):
        finish_ago(db, enqueue_ago(db, days), days - 1)
    assert dropped(db) == [f"jobs_{day_of(db, days):%Y%m%d}" for days in (30, 20, 9)]
    assert partitions(db) == sorted(
        ["jobs_default", before(db, 7), *(f"jobs_{day_of(db, ago):%Y%m%d}" for ago in (1, 0, -1, -2))]
    )


def test_a_dry_run_says_what_would_be_dropped_and_changes_nothing(db: Connection[Any]) -> None:
    finish_ago(db, enqueue_ago(db, 9, 2), 8)
    enqueue_ago(db, 8, 3)
    there = partitions(db)
    said = prune(db, RETENTION, dry_run=True)
    assert [(p.jobs, p.executions, p.kept, p.action) for p in said] == [
        (2, 2, 0, PruneAction.WOULD_DROP),
        (3, 0, 3, PruneAction.WOULD_DROP),
    ]
    assert partitions(db) == there
    assert ask(db, "select count(*) from pg_trigger where tgname = 'note_write'") == [0]
    done = prune(db, RETENTION)
    assert [partition.name for partition in done] == [partition.name for partition in said]


@pytest.mark.parametrize("wrong", [3600, 0, timedelta(hours=23), -1, float("nan"), "7d", True, None])
def test_less_than_a_day_is_refused_and_so_is_what_is_no_duration(db: Connection[Any], wrong: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^older_than must be"):
        prune(db, wrong)


# -- what is kept


def leftovers(db: Connection[Any], worker: Worker) -> dict[UUID, str]:
    """Jobs of an expired day in every state that there is, and what that state is."""
    found: dict[UUID, str] = {}

    def one(status: str) -> Held:
        [job] = enqueue_ago(db, 9, max_attempts=2)
        found[job] = status
        held = worker.claim(1)
        assert held.ids == [job]
        return held

    fail(worker, one("failed"), Next.REQUEUE, delay=3600)
    fail(worker, one("dead_letter"), Next.BURY)
    assert worker.settle(one("succeeded").settlement(result='{"r": 1}'))
    held = one("running")
    assert cancel_job(db, held.ids[0]) is CancelAnswer.REQUESTED
    one("running")
    held = one("pending")
    release_jobs(db, held.lease_id, 1)
    db.execute("update pgworker.job_queue set run_at = run_at + interval '100 days' where failures = 0")
    found[held.ids[0]] = "scheduled"
    [job] = enqueue_ago(db, 9)
    assert cancel_job(db, job) is CancelAnswer.CANCELLED
    found[job] = "cancelled"
    snoozed = one("scheduled")
    worker.settle(snoozed.settlement(outcome=Outcome.SNOOZED, then=Next.REQUEUE, delay=3600))
    [job] = enqueue_ago(db, 9)
    found[job] = "pending"
    return found


def test_whatever_waits_or_runs_or_has_just_ended_is_kept_with_its_history(db: Connection[Any], worker: Worker) -> None:
    left = leftovers(db, worker)
    finished = enqueue_ago(db, 9, 5)
    db.execute("delete from pgworker.job_queue where job_id = any(%s)", [finished])
    jobs = ask(db, "select * from pgworker.jobs where id = any(%s) order by id", list(left))
    executions = ask(db, "select * from pgworker.job_executions order by job_id, execution")
    assert len(executions) == 5
    assert statuses(db, list(left)) == list(left.values())
    [said] = prune(db, RETENTION)
    assert (said.jobs, said.executions, said.kept) == (len(left) + 5, 5, len(left))
    assert statuses(db, list(left)) == list(left.values())
    assert ask(db, "select * from pgworker.jobs order by id") == jobs
    assert ask(db, "select * from pgworker.job_executions order by job_id, execution") == executions
    assert places(db, list(left)) == {before(db, 7), before(db, 7).replace("jobs", "job_executions")}
    assert offences(db, STORED) == {}
    assert list_jobs(db, statuses=[Status.LOST]) == []
    assert show_job(db, next(iter(left))).executions[0].failures == 1


def test_what_was_kept_goes_on_as_if_nothing_had_been_dropped(db: Connection[Any], worker: Worker) -> None:
    ids = enqueue_ago(db, 9, 3)
    fail(worker, worker.claim(3), Next.REQUEUE)
    held = worker.claim(1)
    assert dropped(db)
    assert worker.settle(held.settlement())
    others = worker.claim()
    assert [(row.payload, row.execution, row.failures, row.max_attempts) for row in others.rows] == [
        ("{}", 2, 1, 25)
    ] * 2
    fail(worker, others, Next.REQUEUE)
    last = worker.claim()
    assert [row.execution for row in last.rows] == [3, 3]
    assert worker.settle(last.settlement())
    assert statuses(db, ids) == ["succeeded"] * 3
    history = {job: [number for number, *_ in ended(db, job)] for job in ids}
    assert sorted(history.values()) == [[1, 2], [1, 2, 3], [1, 2, 3]]
    assert offences(db, STORED) == {}


def test_what_was_kept_goes_a_day_after_its_end(db: Connection[Any], worker: Worker) -> None:
    ended_long_ago, just_ended, waits = enqueue_ago(db, 9), enqueue_ago(db, 9), enqueue_ago(db, 9)
    assert len(dropped(db)) == 1
    for job in (*ended_long_ago, *just_ended):
        held = worker.claim(1)
        assert held.ids == [job]
        assert worker.settle(held.settlement())
    age(db, ended_long_ago, 2)
    assert dropped(db) == []
    earlier = before(db, 7)
    [said] = prune(db, 6 * DAY)  # the next day
    assert (said.name, said.day, said.jobs, said.executions, said.kept) == (earlier, None, 3, 2, 2)
    assert statuses(db, ended_long_ago + just_ended + waits) == [None, "succeeded", "pending"]
    assert earlier not in partitions(db)
    assert offences(db, STORED) == {}


def test_however_many_days_have_jobs_that_wait_there_is_one_partition_before_all_days(db: Connection[Any]) -> None:
    ids = [job for days in range(16, 8, -1) for job in enqueue_ago(db, days, 2)]
    kept = sorted(name for name in partitions(db) if name >= f"jobs_{day_of(db, 1):%Y%m%d}")
    for days in (14, 12, 8):
        assert dropped(db, days * DAY)
        assert [name for name in partitions(db) if "before" in name] == [before(db, days)]
        assert [name for name in partitions(db, "job_executions") if "before" in name] == [
            before(db, days).replace("jobs", "job_executions")
        ]
        assert statuses(db, ids) == ["pending"] * len(ids)
    assert partitions(db) == sorted([*kept, before(db, 8)])
    assert dropped(db, 12 * DAY) == [], "who keeps more finds nothing to do"
    checks = (
        "select pg_get_constraintdef(oid) from pg_constraint where conrelid = %s::regclass and contype in ('c', 'p')"
    )
    like_parent = set(ask(db, checks, "pgworker.jobs"))
    assert like_parent < set(ask(db, checks, f"pgworker.{before(db, 8)}"))


# -- dead letters


def test_a_dead_letter_outlives_its_job_for_everybody_who_asks(db: Connection[Any], worker: Worker) -> None:
    [job] = enqueue_ago(db, 9)
    fail(worker, worker.claim(), Next.BURY)
    age(db, [job], 8)
    assert dropped(db)
    assert ask(db, "select count(*) from pgworker.jobs") == [0]
    assert statuses(db, [job]) == ["dead_letter"]
    assert ask(db, "select status, failures, last_outcome::text, error from pgworker.job_status") == [
        ("dead_letter", 1, "failed", {"type": "E"})
    ]
    assert [found.id for found in list_jobs(db, statuses=[Status.DEAD_LETTER])] == [job]
    assert show_job(db, job).job.status == "dead_letter"
    assert offences(db, STORED) == {}


def test_a_dead_letter_is_requeued_into_the_partition_before_all_days(db: Connection[Any], worker: Worker) -> None:
    [job] = enqueue_ago(db, 9)
    fail(worker, worker.claim(), Next.BURY)
    age(db, [job], 8)
    assert dropped(db)
    assert requeue_dead_letters(db, [job, uuid4()]) == [job]
    assert places(db, [job]) == {before(db, 7)}
    assert (statuses(db, [job]), waiting(db)) == (["pending"], [(job, 2, 0)])
    held = worker.claim()
    assert [row.payload for row in held.rows] == ["{}"]
    assert worker.settle(held.settlement())
    assert ended(db, job) == [(2, "succeeded", 0)]
    assert count_default_jobs(db) == 0
    assert offences(db, STORED) == {}
    age(db, [job], 2)
    assert dropped(db, 6 * DAY)
    assert statuses(db, [job]) == [None]


def test_of_a_dead_letter_that_is_discarded_after_its_job_was_dropped_nothing_is_left(
    db: Connection[Any], worker: Worker
) -> None:
    gone, kept = *enqueue_ago(db, 9), *enqueue(db)
    fail(worker, worker.claim(), Next.BURY)
    age(db, [gone], 8)
    assert dropped(db)
    assert discard_dead_letters(db, [gone, kept, uuid4()]) == [gone, kept]
    assert statuses(db, [gone, kept]) == [None, "cancelled"]
    assert ended(db, gone) == []
    assert offences(db, STORED) == {}


# -- the default partition


def drop_days(db: Connection[Any], *days_ago: int) -> None:
    """Nobody has made these."""
    for days in days_ago:
        for parent in ("jobs", "job_executions"):
            name = sql.Identifier("pgworker", f"{parent}_{day_of(db, days):%Y%m%d}")
            db.execute(sql.SQL("drop table {}").format(name))


def test_jobs_whose_day_had_no_partition_move_there_when_it_is_made(db: Connection[Any], worker: Worker) -> None:
    drop_days(db, -1, 0)
    ids = enqueue(db, 5)
    fail(worker, worker.claim(2), Next.REQUEUE, delay=3600)
    assert places(db, ids) == {"jobs_default", "job_executions_default"}
    assert count_default_jobs(db) == 5
    seen = statuses(db, ids)
    assert make_partitions(db) == [day_of(db, 0), day_of(db, -1)]
    today = f"{day_of(db, 0):%Y%m%d}"
    assert places(db, ids) == {f"jobs_{today}", f"job_executions_{today}"}
    assert (count_default_jobs(db), statuses(db, ids)) == (0, seen)
    assert make_partitions(db) == []
    assert offences(db, STORED) == {}


def test_of_a_day_that_somebody_dropped_half_the_other_half_is_made(db: Connection[Any]) -> None:
    db.execute(f"drop table pgworker.jobs_{day_of(db, 0):%Y%m%d}".encode())
    ids = enqueue(db, 2)
    assert make_partitions(db) == [day_of(db, 0)]
    assert places(db, ids) == {f"jobs_{day_of(db, 0):%Y%m%d}"}


def test_too_many_of_them_stay_where_they_are_and_keep_no_other_day_from_being_made(db: Connection[Any]) -> None:
    drop_days(db, 0, -1)
    enqueue(db, 10_001)
    with pytest.raises(psycopg.errors.ProgramLimitExceeded, match=r"more than 10000 rows of .* are in the def"):
        make_partitions(db)
    assert f"jobs_{day_of(db, 0):%Y%m%d}" not in partitions(db)
    assert f"jobs_{day_of(db, -1):%Y%m%d}" in partitions(db)
    assert count_default_jobs(db) == 10_001
    enqueue(db, 2)
    assert count_default_jobs(db) == 10_001, "counting stops there"


def test_expired_jobs_of_the_default_partition_go_the_way_of_all_others(db: Connection[Any], worker: Worker) -> None:
    finished, waits = enqueue_ago(db, 9, 3, partition=False), enqueue_ago(db, 9, 2, partition=False)
    held = worker.claim(3)
    assert held.ids == finished
    assert worker.settle(held.settlement())
    age(db, finished, 8)
    fail(worker, worker.claim(), Next.REQUEUE)
    assert count_default_jobs(db) == 5
    today = enqueue(db)
    [said] = prune(db, RETENTION)
    assert (said.name, said.day, said.jobs, said.executions, said.kept, said.bytes) == (
        "jobs_default",
        None,
        5,
        5,
        2,
        0,
    )
    assert count_default_jobs(db) == 0
    assert statuses(db, finished + waits + today) == [None] * 3 + ["failed"] * 2 + ["pending"]
    assert places(db, waits) == {before(db, 7), before(db, 7).replace("jobs", "job_executions")}
    assert offences(db, STORED) == {}
    assert ask(db, "select count(*) from pg_trigger where tgname = 'note_write'") == [0]


# -- who may, and how


@pytest.fixture
def clerk(dsn: str, db: Connection[Any]) -> Iterator[Connection[Any]]:
    """Somebody who may call what a monitor calls, and no more."""
    role = sql.Identifier(f"clerk_{db.info.dbname}")
    calls = (
        "create_partition(date)",
        "count_default_jobs()",
        *(f"{verb}_expired_partitions(interval)" for verb in ("list", "watch", "drop")),
    )
    db.execute(sql.SQL("create role {} login").format(role))
    try:
        db.execute(sql.SQL("grant usage on schema pgworker to {}").format(role))
        for call in calls:
            db.execute(sql.SQL("grant execute on function pgworker.{} to {}").format(sql.SQL(call), role))
        with psycopg.connect(dsn, autocommit=True, user=f"clerk_{db.info.dbname}") as connection:
            yield connection
    finally:
        db.execute(sql.SQL("drop owned by {}").format(role))
        db.execute(sql.SQL("drop role {}").format(role))


def test_it_needs_no_right_but_to_call_it(db: Connection[Any], clerk: Connection[Any]) -> None:
    drop_days(db, -2)
    waits = enqueue_ago(db, 9)
    clerk.execute("create temporary table pg_class (relname text)")
    clerk.execute("set search_path = pg_temp, pgworker, public")
    assert make_partitions(clerk) == [day_of(db, -2)]
    assert count_default_jobs(clerk) == 0
    assert [partition.kept for partition in prune(clerk, RETENTION)] == [1]
    assert statuses(db, waits) == ["pending"]
    for forbidden in (
        "drop table pgworker.jobs_default",
        "alter table pgworker.jobs detach partition pgworker.jobs_default",
        "select from pgworker.partition_writes",
        "select pgworker.swap_expired_partitions(current_date, gen_random_uuid(), 'a', 'b')",
        "select pgworker.jobs_to_keep(gen_random_uuid())",
        "select pgworker.lock_for_ddl('jobs', 'job_executions')",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            clerk.execute(forbidden.encode())


@pytest.mark.parametrize("age", ["23 hours 59 minutes", "0", "-7 days", None])
@pytest.mark.parametrize("verb", ["list", "watch", "drop"])
def test_whoever_calls_it_nothing_younger_than_a_day_goes(db: Connection[Any], verb: str, age: str | None) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="jobs are kept for at least 1 day"):
        db.execute(f"select pgworker.{verb}_expired_partitions(%s::interval)".encode(), [age])


def test_where_repeatable_read_is_the_default_it_works_all_the_same_and_by_hand_it_is_refused(
    db: Connection[Any],
) -> None:
    enqueue_ago(db, 9)
    db.execute("set default_transaction_isolation = 'repeatable read'")
    with pytest.raises(psycopg.errors.InvalidTransactionState, match="READ COMMITTED only"):
        db.execute("select pgworker.drop_expired_partitions('7 days')")
    assert dropped(db)


def test_without_a_watch_nothing_is_dropped(db: Connection[Any]) -> None:
    enqueue_ago(db, 9)
    there = partitions(db)
    assert ask(db, "select pgworker.drop_expired_partitions('7 days')") == [False]
    db.execute("select pgworker.watch_expired_partitions('8 days')")
    enqueue_ago(db, 8)
    assert ask(db, "select pgworker.drop_expired_partitions('7 days')") == [False], "midnight passed between the two"
    assert set(partitions(db)) - set(there) == {f"jobs_{day_of(db, 8):%Y%m%d}"}
    assert dropped(db)


def test_a_partition_of_somebody_elses_is_left_alone(db: Connection[Any]) -> None:
    db.execute(
        "create table pgworker.jobs_mine partition of pgworker.jobs for values "
        "from ('01000000-0000-0000-0000-000000000000') to ('01000000-0001-0000-0000-000000000000')"
    )
    finish_ago(db, enqueue_ago(db, 9), 8)
    with pytest.raises(psycopg.errors.InvalidObjectDefinition, match="would overlap partition"):
        prune(db, RETENTION)
    assert "jobs_mine" in partitions(db)
    db.execute("drop table pgworker.jobs_mine")
    assert dropped(db)


def test_the_result_names_each_partition_once_and_the_first_day_first(db: Connection[Any]) -> None:
    for days in (8, 12, 10):
        enqueue_ago(db, days)
    said = prune(db, RETENTION)
    assert [partition.day for partition in said] == [day_of(db, days) for days in (12, 10, 8)]
    assert all(isinstance(partition, PrunedPartition) for partition in said)
