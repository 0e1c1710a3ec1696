"""Jobs of days gone by: enqueued with ids of those days, in partitions of those days."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any
from uuid import UUID

from psycopg import Connection

from tests.sql.actors import Worker, ask

DAY = 86_400.0
RETENTION = 7 * DAY

_ENQUEUE = """
    with job as (
        insert into pgworker.jobs (id, created_at, run_at, priority, max_attempts, queue, task, payload)
        select pgworker.uuid7(at), at, at, 5, %s, 'default', %s, %s
        from (select clock_timestamp() - %s * interval '1 day' as at from generate_series(1, %s)) as moment
        returning *
    ), waiting as (
        insert into pgworker.job_queue (job_id, run_at, execution, priority, failures, queue, task)
        select id, run_at, 1, priority, 0, queue, task from job
    )
    select id from job order by id
"""


def day_of(connection: Connection[Any], days_ago: int) -> date:
    """By UTC."""
    day: date = ask(connection, "select (clock_timestamp() at time zone 'UTC')::date - %s::integer", days_ago)[0]
    return day


def enqueue_ago(
    connection: Connection[Any],
    days: int,
    jobs: int = 1,
    *,
    max_attempts: int = 25,
    task: str = "t",
    payload: str = "{}",
    partition: bool = True,
) -> list[UUID]:
    """As if it had been so many days ago, and the jobs had waited since; not `partition`: nobody had made that day."""
    if partition:
        ask(connection, "select pgworker.create_partition(%s)", day_of(connection, days))
    return ask(connection, _ENQUEUE, max_attempts, task, payload, days, jobs)


def finish_ago(connection: Connection[Any], ids: Sequence[UUID], days: int) -> None:
    """Run these to their end, as if that had been so many days ago. Nothing else may be due."""
    held = Worker(connection).claim(len(ids))
    assert set(held.ids) == set(ids)
    assert Worker(connection).settle(held.settlement())
    age(connection, ids, days)


def age(connection: Connection[Any], ids: Sequence[UUID], days: int) -> None:
    """Whatever became of these so far, was so many days ago."""
    connection.execute(
        "update pgworker.job_executions set finished_at = finished_at - %(days)s * interval '1 day', "
        "started_at = started_at - %(days)s * interval '1 day' where job_id = any(%(ids)s)",
        {"days": days, "ids": list(ids)},
    )


def partitions(connection: Connection[Any], parent: str = "jobs") -> list[str]:
    """The names of the partitions, without their schema."""
    return ask(
        connection,
        "select relname::text from pg_inherits join pg_class on pg_class.oid = inhrelid "
        "where inhparent = %s::regclass order by 1",
        f"pgworker.{parent}",
    )


def places(connection: Connection[Any], ids: Sequence[UUID]) -> set[str]:
    """The partitions in which these jobs lie, and their executions."""
    found = ask(
        connection,
        "select tableoid::regclass::text from pgworker.jobs where id = any(%s) "
        "union select tableoid::regclass::text from pgworker.job_executions where job_id = any(%s)",
        list(ids),
        list(ids),
    )
    return {name.removeprefix("pgworker.") for name in found}
