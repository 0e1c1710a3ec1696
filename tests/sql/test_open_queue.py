"""`app.queue()`: claim, and say how it ended, without a pool."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection

from pgworker import App, ConfigurationError, DatabaseUnavailable, Discard, InvalidFilter, InvalidJob, Snooze
from pgworker.lifecycle.cancel import cancel_job
from pgworker.model.state import CancelAnswer, Outcome
from tests.sql.actors import Connect, Monitor, Worker, ask, ended, enqueue, leases, now, statuses, waiting
from tests.sql.invariants import STORED, offences


class Broken(Exception):
    """What a block raises in here."""


@pytest.fixture
def db(connect: Connect) -> Connection[Any]:
    return connect()


@pytest.fixture
def app(dsn: str, db: Connection[Any]) -> Iterator[App]:
    opened = App(dsn)
    opened.task(name="t", discard_on=(KeyError,))(lambda: None)
    yield opened
    opened.close()
    assert offences(db, STORED) == {}


def test_what_is_claimed_in_order_succeeds_and_is_recorded_with_the_next_claim(app: App, db: Connection[Any]) -> None:
    ids = [handle.id for handle in app.enqueue_many(app.tasks["t"].job() for _ in range(3))]
    with app.queue() as queue:
        one, two = queue.claim(2)
        assert [one.job().id, two.job().id] == ids[:2]
        queue.succeed(one)
        assert statuses(db, ids) == ["running", "running", "pending"]
        [three] = queue.claim(5)
        assert statuses(db, ids) == ["succeeded", "running", "running"]
        queue.succeed(three)
        queue.succeed(two)
        assert queue.claim(0) == []
        assert statuses(db, ids) == ["succeeded"] * 3
        assert leases(db) == {}


def test_it_stores_jobs_too_and_takes_them_out(app: App, db: Connection[Any]) -> None:
    with app.queue() as queue:
        one, two, three = queue.enqueue([app.tasks["t"].job() for _ in range(3)])
        [running] = queue.claim(1)
        assert (queue.delete(two), queue.delete(two), queue.delete(UUID(int=7))) == (True, False, False)
        assert queue.delete(one) is False
        assert queue.purge("default") == 1
        queue.succeed(running)
    assert statuses(db, [one, two, three]) == ["succeeded", "cancelled", "cancelled"]
    assert ask(db, "select cancelled from pgworker.job_leases") == []


def test_delete_does_not_ask_a_job_that_runs_to_stop(app: App, db: Connection[Any]) -> None:
    [job] = enqueue(db)
    with app.queue() as queue:
        queue.claim(1)
        assert not queue.delete(job)
        assert ask(db, "select cardinality(cancelled) from pgworker.job_leases") == [0]


@pytest.mark.parametrize(
    ("error", "outcome", "status"),
    [
        (ValueError("no"), "failed", "failed"),
        (KeyError("no such order"), "failed", "dead_letter"),
        (Discard("never"), "failed", "dead_letter"),
        (Snooze(60), "snoozed", "scheduled"),
    ],
    ids=repr,
)
def test_a_failure_is_what_the_rules_of_the_task_make_of_it(
    error: BaseException, outcome: str, status: str, app: App, db: Connection[Any]
) -> None:
    [job] = enqueue(db)
    with app.queue() as queue:
        [claimed] = queue.claim(1)
        queue.fail(claimed, error)
        assert queue.claim(1) == []
    assert [run[1] for run in ended(db, job)] == [outcome]
    assert statuses(db, [job]) == [status]


def test_a_snooze_until_a_moment_is_over_at_that_moment_of_the_databases_clock(app: App, db: Connection[Any]) -> None:
    """To the microsecond, so no other clock had a say; one that has passed is over at once."""
    until = now(db) + timedelta(hours=1)
    later, passed = enqueue(db, 2)
    far_east = timezone(timedelta(hours=23, minutes=59, microseconds=1))  # where PostgreSQL knows of nothing
    with app.queue() as queue:
        one, two = queue.claim(2)
        queue.fail(one, Snooze(until.astimezone(far_east)))
        queue.fail(two, Snooze(until - timedelta(hours=2)))
    assert ask(db, "select run_at from pgworker.job_queue where job_id = %s", later) == [until]
    assert statuses(db, [later, passed]) == ["scheduled", "pending"]
    assert ask(db, "select run_at < %s from pgworker.job_queue where job_id = %s", now(db), passed) == [True]


def test_a_rule_that_is_broken_itself_is_an_ordinary_failure(
    dsn: str, db: Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def rule(job: object, error: BaseException) -> bool:
        raise Broken

    app = App(dsn)
    app.task(name="t", should_retry=rule)(lambda: None)
    [job] = enqueue(db)
    with app.queue() as queue:
        [claimed] = queue.claim(1)
        queue.fail(claimed, ValueError("no"))
    assert ended(db, job) == [(1, "failed", 1)]
    assert statuses(db, [job]) == ["failed"]
    assert "should_retry" in caplog.text


@pytest.mark.parametrize("how", ["the end", "an error"])
def test_at_the_end_what_has_ended_is_recorded_and_all_else_goes_back_uncharged(
    how: str, app: App, db: Connection[Any]
) -> None:
    gap, done, tail, alone = ids = enqueue(db, 4)
    try:
        with app.queue() as queue:
            claimed = {job.row.job_id: job for job in queue.claim(3)}
            queue.claim(1)
            queue.succeed(claimed[done])
            if how == "an error":
                raise Broken
    except Broken:
        assert how == "an error"
    assert statuses(db, ids) == ["pending", "succeeded", "pending", "pending"]
    assert ended(db, gap) == [(1, "released", 0)]
    assert waiting(db) == [(gap, 2, 0), (tail, 1, 0), (alone, 1, 0)]
    assert leases(db) == {}


def test_two_at_once_share_the_jobs(app: App, db: Connection[Any]) -> None:
    ids = enqueue(db, 4)
    with app.queue() as one, app.queue() as two:
        first, second = one.claim(2), two.claim(5)
        assert [job.row.job_id for job in [*first, *second]] == ids
        for queue, jobs in ((one, first), (two, second)):
            for job in jobs:
                queue.succeed(job)
    assert statuses(db, ids) == ["succeeded"] * 4


def test_nothing_is_recorded_after_the_lease_and_somebody_else_has_the_job(
    app: App, db: Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    [job] = enqueue(db)
    with app.queue(lease_ttl=1) as queue:
        [claimed] = queue.claim(1)
        db.execute("update pgworker.job_leases set expires_at = clock_timestamp()")
        [reclaimed] = Monitor(db).reclaim_all(by_expiry=True, assumed_running=1)
        assert reclaimed.lease_id == claimed.lease.lease_id
        worker = Worker(db)
        held = worker.claim()
        queue.succeed(claimed)
        assert queue.claim(0) == []
        assert "is gone: 1 of 1 results were not recorded" in caplog.text
        assert worker.settle(held.settlement(outcome=Outcome.SUCCEEDED))
        [other] = enqueue(db)
        [claimed] = queue.claim(1)
        queue.succeed(claimed)
    assert ended(db, job) == [(1, "crashed", 1), (2, "succeeded", 1)]
    assert ended(db, other) == [(1, "succeeded", 0)]


def test_a_job_that_was_cancelled_meanwhile_is_not_retried(app: App, db: Connection[Any]) -> None:
    [job] = enqueue(db)
    with app.queue() as queue:
        [claimed] = queue.claim(1)
        assert cancel_job(db, job) is CancelAnswer.REQUESTED
        queue.fail(claimed, ValueError("no"))
    assert statuses(db, [job]) == ["cancelled"]


def test_a_job_is_found_that_is_due_before_those_that_were_claimed(app: App, db: Connection[Any]) -> None:
    """Its transaction was open for long: claims of a pool would find it a second later, at its next sweep."""
    enqueue(db)
    with app.queue() as queue:
        assert len(queue.claim(1)) == 1
        [late] = enqueue(db)
        db.execute("update pgworker.job_queue set run_at = run_at - interval '1 minute'")
        assert [job.row.job_id for job in queue.claim(1)] == [late]


def test_no_more_than_four_claims_have_jobs_that_go_on_and_a_fifth_takes_nothing(app: App, db: Connection[Any]) -> None:
    enqueue(db, 5)
    with app.queue() as queue:
        held = [queue.claim(1)[0] for _ in range(4)]
        with pytest.raises(ValueError, match="jobs of 4 claims have not ended yet"):
            queue.claim(1)
        assert len(waiting(db)) == 1
        queue.succeed(held[0])
        assert len(queue.claim(1)) == 1


def test_four_claims_that_an_outage_put_in_doubt_end_by_the_next_claim(app: App, db: Connection[Any]) -> None:
    enqueue(db, 5)
    with app.queue() as queue:
        held = [queue.claim(1)[0] for _ in range(4)]
        db.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgworker queue'")
        for job in held:
            queue.succeed(job)
        with pytest.raises(DatabaseUnavailable):
            queue.claim(1)
        assert len(queue.claim(1)) == 1
    assert [outcome for (outcome,) in db.execute("select outcome from pgworker.job_executions")] == ["succeeded"] * 4


def test_a_job_ends_once_and_where_it_was_claimed(app: App, db: Connection[Any]) -> None:
    """Ended twice it would count as two of its lease, which would end with others still in it."""
    ids = enqueue(db, 2)
    with app.queue() as queue, app.queue() as other:
        one, two = queue.claim(2)
        queue.succeed(one)
        queue.claim(0)
        for ending in (queue, other):
            with pytest.raises(ValueError, match="has ended here already, or was claimed elsewhere"):
                ending.fail(one, ValueError("no"))
        queue.claim(0)
        assert statuses(db, ids) == ["succeeded", "running"]
        queue.succeed(two)
    assert statuses(db, ids) == ["succeeded"] * 2


@pytest.mark.parametrize("n", [-1, 1001, True, 1.0, "1", None])
def test_what_is_no_number_of_jobs_is_refused(n: Any, app: App) -> None:
    with app.queue() as queue, pytest.raises(ValueError, match="a number of jobs from 0 to 1000"):
        queue.claim(n)


def test_it_gives_jobs_of_the_queues_and_tasks_that_are_its_own(app: App, db: Connection[Any]) -> None:
    [low], [high] = enqueue(db, queue="low", priority=9), enqueue(db, queue="high", priority=0)
    enqueue(db, task="unheard-of")
    with app.queue("high", "low") as queue:
        assert [job.row.job_id for job in queue.claim(5)] == [high, low]
    with app.queue() as queue:
        assert queue.claim(5) == []


def test_bad_arguments_are_refused_in_a_sentence(app: App, dsn: str) -> None:
    with pytest.raises(InvalidJob, match="'my queue' can't name a queue"), app.queue("my queue"):
        pass
    with pytest.raises(ConfigurationError, match=r"a lease of 0\.5 s is over"), app.queue(lease_ttl=0.5):
        pass
    with pytest.raises(ConfigurationError, match="lease_ttl must be a number of seconds"):
        app.queue(lease_ttl="a minute")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="the app has no tasks"), App(dsn).queue():
        pass
    with app.queue(lease_ttl=timedelta(minutes=5)) as queue, pytest.raises(InvalidFilter):
        queue.purge("my queue")


def test_after_its_connection_is_lost_it_says_so_and_goes_on_with_what_has_ended(app: App, db: Connection[Any]) -> None:
    ids = enqueue(db, 2)
    with app.queue() as queue:
        [one] = queue.claim(1)
        queue.succeed(one)
        terminate = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where application_name = %s"
        assert ask(db, terminate, "pgworker queue") == [1]
        with pytest.raises(DatabaseUnavailable):
            queue.claim(1)
        [two] = queue.claim(1)
        queue.succeed(two)
    assert statuses(db, ids) == ["succeeded"] * 2
    assert ended(db, ids[0]) == [(1, "succeeded", 0)]


def test_an_error_of_the_block_is_not_hidden_by_one_of_the_database(
    dsn: str, db: Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    app = App(dsn)
    app.task(name="t")(lambda: None)
    enqueue(db)
    with pytest.raises(Broken):
        _break_everything(app, db)
    assert "a queue could not give its jobs back" in caplog.text


def _break_everything(app: App, db: Connection[Any]) -> None:
    with app.queue() as queue:
        queue.claim(1)
        db.execute("drop schema pgworker cascade")
        raise Broken


def test_a_queue_that_is_named_twice_gives_each_job_once(app: App, db: Connection[Any]) -> None:
    enqueue(db)
    with app.queue("default", "default") as queue:
        assert len(queue.claim(2)) == 1


def test_every_way_to_enqueue_has_a_line_for_each_job_for_who_debugs(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    task = app.tasks["t"].options(org_id="acme")
    with app.queue() as queue, caplog.at_level(logging.DEBUG, "pgworker.app.producer"):
        ids = queue.enqueue([task.job(), task.job()])
        handles = [task.enqueue(), *app.enqueue_many([task.job(), task.job()]), *task.enqueue_many([{}, {}])]
        queue.purge("default")
    ids += [handle.id for handle in handles]
    about = {"event": "job_enqueued", "task": "t", "queue": "default", "org": "acme"}
    assert [getattr(record, "fields") for record in caplog.records] == [about | {"job": job_id} for job_id in ids]  # noqa: B009
