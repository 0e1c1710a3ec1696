"""What went wrong lately, and what came in: told exactly, at a cost that doesn't grow with the history."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import Connection

from pgworker.inspection.arrivals import count_arrivals
from pgworker.inspection.failures import count_failures, list_failures, list_given_up
from pgworker.inspection.queues import Count
from pgworker.lifecycle.settle import Next
from pgworker.model.state import Outcome
from tests.sql.actors import Connect, Worker, enqueue
from tests.sql.test_plans import assert_reads_no_more_than, explained

HISTORY = """
insert into pgworker.job_executions (job_id, execution, outcome, failures, finished_at, error)
select pgworker.uuid7(clock_timestamp()), 1, %s::pgworker.execution_outcome, 0,
       clock_timestamp() - number * interval '1 second',
       jsonb_build_object('type', 'E', 'message', number::text)
from generate_series(%s::integer, %s::integer) as number
"""


@pytest.fixture
def db(connect: Connect) -> Connection[Any]:
    return connect()


def test_the_latest_failures_come_first_whenever_their_jobs_were_enqueued(db: Connection[Any]) -> None:
    for outcome, number in [("failed", 30), ("crashed", 10), ("timed_out", 20), ("succeeded", 1), ("lost", 2)]:
        db.execute(HISTORY, [outcome, number, number])
    found = list_failures(db, limit=10)
    assert [(failure.outcome, failure.message) for failure in found] == [
        ("crashed", "10"),
        ("timed_out", "20"),
        ("failed", "30"),
    ]
    assert found[2].why == "E: 30"
    assert found[0].task == "", "nobody knows a job of it"
    assert len(list_failures(db, limit=2)) == 2
    assert count_failures(db, seconds=15, cap=10) == Count(1)
    assert count_failures(db, seconds=60, cap=10) == Count(3)
    assert count_failures(db, seconds=60, cap=2) == Count(2, is_more=True)


def test_a_failure_has_the_task_of_its_job_and_a_dead_letter_its_error(db: Connection[Any]) -> None:
    worker = Worker(db)
    [job] = enqueue(db, 1)
    error = '{"type": "E", "message": "m"}'
    assert worker.settle(worker.claim().settlement(outcome=Outcome.FAILED, then=Next.BURY, error=error))
    [failure], [letter] = list_failures(db, limit=5), list_given_up(db, limit=5)
    told = (job, "t", "default", "failed", "E: m")
    assert (failure.job_id, failure.task, failure.queue, failure.outcome, failure.why) == told
    assert (letter.job_id, letter.task, letter.queue, letter.outcome, letter.why) == told


def test_failures_are_read_by_their_index_however_long_the_history(db: Connection[Any]) -> None:
    db.execute("analyze pgworker.job_executions")
    db.execute(HISTORY, ["succeeded", 1, 30_000])
    db.execute(HISTORY, ["failed", 1, 500])
    with explained(db) as scans:
        assert len(list_failures(db, limit=20)) == 20
        assert count_failures(db, seconds=60, cap=1000).number in (58, 59, 60)
    assert_reads_no_more_than(scans, 200, 400)


def test_arrivals_are_counted_by_queue_and_of_very_many_the_latest_only(db: Connection[Any]) -> None:
    assert count_arrivals(db, seconds=10, cap=100) == {}
    enqueue(db, 30)
    enqueue(db, 10, queue="mail")
    assert count_arrivals(db, seconds=10, cap=100) == {"default": 3.0, "mail": 1.0}
    with explained(db) as scans:
        capped = count_arrivals(db, seconds=10, cap=10)
    assert set(capped) == {"mail"}, "the latest ten are all of it"
    assert capped["mail"] > 1, "over the time in which these came"
    assert_reads_no_more_than(scans, 20, 100)
