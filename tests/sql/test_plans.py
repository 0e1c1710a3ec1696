"""What the statements of the hot path read, as EXPLAIN counts it, when the planner has been told nothing or the wrong thing.

Every verb is called as it is in production, on a connection that has prepared it while the tables were as its scenario
says; then the tables fill up, and nobody analyzes them. What a call may read is a multiple of its batch, not of the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection, sql
from psycopg.abc import Params

from pgworker.lifecycle.claim import Lanes, find_below_floor, floor_of
from pgworker.lifecycle.release import release_jobs
from pgworker.lifecycle.settle import Next, check_settled
from pgworker.model.state import Outcome
from tests.sql.actors import Connect, Monitor, Worker, ask, enqueue

ROWS = 50_000
BATCH = 100
TIMES_TO_PREPARE = 8  # the driver prepares at the sixth
LANES = Lanes.of(["default"])
FROM_THE_BEGINNING = ([0] * len(LANES), [0] * len(LANES))

_PLACEHOLDER = re.compile(r"%\((\w+)\)s")


@dataclass(frozen=True, slots=True)
class Scan:
    """What one leaf of a plan did, all loops together. `is_kept`: the plan was made for an earlier execution."""

    node: str
    relation: str
    rows: float
    buffers: int
    is_kept: bool


@contextmanager
def explained(connection: Connection[Any]) -> Iterator[list[Scan]]:
    """The scans of every statement that is executed inside, each explained just before, in one transaction."""
    scans: list[Scan] = []

    class Explaining(psycopg.Cursor[Any]):
        def execute(self, query: Any, params: Params | None = None, **options: Any) -> Any:
            if "pgworker." in query and isinstance(params, dict):
                with psycopg.Cursor(connection) as cursor:
                    scans.extend(explain(cursor, query, params))
            return super().execute(query, params, **options)

    ordinary, connection.cursor_factory = connection.cursor_factory, Explaining
    try:
        with connection.transaction():
            yield scans
    finally:
        connection.cursor_factory = ordinary


def explain(cursor: psycopg.Cursor[Any], query: str, params: dict[str, Any]) -> list[Scan]:
    """Run a statement by the plan that this connection keeps for it, if it has prepared it, and undo it."""
    kept = [
        name
        for name, statement in cursor.execute("select name, statement from pg_prepared_statements").fetchall()
        if re.sub(r"\$\d+", "$", statement) == _PLACEHOLDER.sub("$", query)
    ]
    with cursor.connection.transaction(force_rollback=True):
        how = sql.SQL("explain (analyze, buffers, timing off, format json) ")
        if kept:
            arguments = [sql.Literal(params[name]) for name in dict.fromkeys(_PLACEHOLDER.findall(query))]
            execute = sql.SQL("execute {}({})").format(sql.Identifier(kept[-1]), sql.SQL(", ").join(arguments))
            cursor.execute(how + execute)
        else:
            cursor.execute(how.as_string().encode() + query.encode(), params)
        return list(leaves(cursor.fetchall()[0][0][0]["Plan"], bool(kept)))


def leaves(node: dict[str, Any], is_kept: bool) -> Iterator[Scan]:
    for child in node.get("Plans", ()):
        yield from leaves(child, is_kept)
    if "Relation Name" in node and "Scan" in node["Node Type"]:
        loops = node["Actual Loops"]
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        buffers = node["Shared Hit Blocks"] + node["Shared Read Blocks"]
        yield Scan(node["Node Type"], node["Relation Name"], (node["Actual Rows"] + removed) * loops, buffers, is_kept)


def assert_reads_no_more_than(scans: list[Scan], rows: int, buffers: int) -> None:
    assert scans, "nothing was explained"
    told = "\n".join(map(str, scans))
    assert sum(scan.rows for scan in scans) <= rows, told
    assert sum(scan.buffers for scan in scans) <= buffers, told
    print(sum(scan.rows for scan in scans), sum(scan.buffers for scan in scans))


def fill_queue(
    connection: Connection[Any],
    rows: int,
    *,
    queue: str = "default",
    priority: int = 5,
    task: str = "t",
    due_in: str = "0 s",
) -> None:
    """Rows of job_queue alone: what a claim would return from jobs is not looked at here."""
    connection.execute(
        "insert into pgworker.job_queue "
        "select pgworker.uuid7(clock_timestamp()), clock_timestamp() + %s::interval, 1, %s, 0, %s, %s, null "
        "from generate_series(1, %s)",
        [due_in, priority, queue, task, rows],
    )


def quiet(connection: Connection[Any]) -> None:
    """No autovacuum comes to mend the statistics meanwhile."""
    connection.execute("""
        do $$ declare here regclass; begin
            for here in select oid from pg_class where relkind = 'r' and relnamespace = 'pgworker'::regnamespace loop
                execute format('alter table %s set (autovacuum_enabled = off)', here);
            end loop;
        end $$""")


def nothing(connection: Connection[Any]) -> None:
    """never analyzed"""


def empty(connection: Connection[Any]) -> None:
    """analyzed while it was empty"""
    connection.execute("vacuum analyze pgworker.job_queue")


def drained(connection: Connection[Any]) -> None:
    """analyzed after it had run dry"""
    fill_queue(connection, 5000)
    connection.execute("delete from pgworker.job_queue")
    connection.execute("vacuum analyze pgworker.job_queue")


def tiny(connection: Connection[Any]) -> None:
    """analyzed with a few rows of another queue"""
    fill_queue(connection, 50, queue="other")
    connection.execute("vacuum analyze pgworker.job_queue")


def large(connection: Connection[Any]) -> None:
    """analyzed while it was large"""
    fill_queue(connection, ROWS)
    connection.execute("vacuum analyze pgworker.job_queue")


def other_queue(connection: Connection[Any]) -> None:
    """another queue has a backlog"""
    fill_queue(connection, ROWS, queue="other")
    connection.execute("vacuum analyze pgworker.job_queue")


def scheduled(connection: Connection[Any]) -> None:
    """what is scheduled stands before it, at a higher priority"""
    fill_queue(connection, 2 * ROWS, priority=9, due_in="1 day")
    connection.execute("vacuum analyze pgworker.job_queue")


Scenario = Callable[[Connection[Any]], None]
scenarios = pytest.mark.parametrize(
    "scenario", [nothing, empty, drained, tiny, large, other_queue, scheduled], ids=lambda told: told.__doc__
)


@scenarios
def test_a_claim_reads_what_it_takes_however_the_queue_was_when_it_was_planned(
    connect: Connect, scenario: Scenario
) -> None:
    admin, worker = connect(), Worker(connect())
    quiet(admin)
    scenario(admin)
    for _ in range(TIMES_TO_PREPARE):
        worker.claim(BATCH, tasks=["nobody's"])
    fill_queue(admin, ROWS)
    counts = "select generic_plans > 0, custom_plans from pg_prepared_statements where statement like '%%skip locked%%'"
    assert ask(worker.connection, counts) == [(True, 0)]  # to plan each time anew would cost more than the claim
    with explained(worker.connection) as scans:
        assert len(worker.claim(BATCH).rows) == BATCH
    assert {scan.is_kept for scan in scans} == {True}
    assert_reads_no_more_than(scans, rows=4 * BATCH, buffers=16 * BATCH)


@scenarios
def test_a_claim_that_is_never_prepared_reads_what_it_takes_too(connect: Connect, scenario: Scenario) -> None:
    admin, worker = connect(), Worker(connect())
    worker.connection.prepare_threshold = None
    quiet(admin)
    scenario(admin)
    fill_queue(admin, ROWS)
    with explained(worker.connection) as scans:
        assert len(worker.claim(BATCH).rows) == BATCH
    assert_reads_no_more_than(scans, rows=4 * BATCH, buffers=16 * BATCH)
