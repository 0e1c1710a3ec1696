"""What the statements of the hot path read, as EXPLAIN counts it, when the planner knows nothing or the wrong thing.

Every verb is called as it is in production, on a connection that has prepared it while the tables were as its scenario
says; then the tables fill up, and nobody analyzes them. A call may read a multiple of its batch, not of the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from unittest.mock import patch

import psycopg
import pytest
from psycopg import Connection, sql
from psycopg.abc import Params
from psycopg.pq import TransactionStatus

from pgworker.db.connect import connect as connect_patiently
from pgworker.db.plan import by_index
from pgworker.inspection.queues import Count, find_unserved
from pgworker.inspection.results import find_results
from pgworker.lifecycle.cancel import cancel_waiting
from pgworker.lifecycle.claim import Lanes, find_below_floor, find_dry_lanes, floor_of
from pgworker.lifecycle.progress import forget_progress, save_progress
from pgworker.lifecycle.release import release_jobs
from pgworker.lifecycle.settle import Next, find_unsettled
from pgworker.lifecycle.transaction import one_trip, set_up_session
from pgworker.linux.floors import FloorsSeen
from pgworker.model.progress import check_progress
from pgworker.model.selection import JobFilter
from pgworker.model.state import Outcome, Status
from tests.sql.actors import Connect, Monitor, Worker, ask, enqueue

ROWS = 30_000
BATCH = 100
TIMES_TO_PREPARE = 8  # the driver prepares at the sixth
LANES = Lanes.of(["default"])
FROM_THE_BEGINNING = FloorsSeen([0] * len(LANES), [0] * len(LANES))

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
    """The scans of every statement that is executed inside in a transaction, each explained just before."""
    scans: list[Scan] = []
    execute, is_explaining = psycopg.Cursor.execute, False

    def explaining(cursor: psycopg.Cursor[Any], query: Any, params: Params | None = None, **options: Any) -> Any:
        nonlocal is_explaining
        is_inside = connection.info.transaction_status == TransactionStatus.INTRANS and isinstance(params, dict)
        if is_inside and cursor.connection is connection and not is_explaining:
            is_explaining = True
            scans.extend(explain(connection, query, cast("dict[str, Any]", params)))
            is_explaining = False
        return execute(cursor, query, params, **options)

    with patch.object(psycopg.Cursor, "execute", explaining):  # of cursors of any class
        yield scans


def explain(connection: Connection[Any], query: str, params: dict[str, Any]) -> list[Scan]:
    """Run a statement by the plan that this connection keeps for it, if it has prepared it, and undo it."""
    kept = [
        name
        for name, statement in ask(connection, "select name, statement from pg_prepared_statements")
        if re.sub(r"\$\d+", "$", statement) == _PLACEHOLDER.sub("$", query)
    ]
    how = sql.SQL("explain (analyze, buffers, timing off, format json) ")
    with psycopg.Cursor(connection) as cursor:
        connection.pgconn.exec_(
            b"savepoint before"
        )  # behind the driver's back: it forgets what it prepared at a rollback
        if kept:
            arguments = [sql.Literal(params[name]) for name in dict.fromkeys(_PLACEHOLDER.findall(query))]
            execute = sql.SQL("execute {}({})").format(sql.Identifier(kept[-1]), sql.SQL(", ").join(arguments))
            cursor.execute(how + execute)
        else:
            cursor.execute(how.as_string().encode() + query.encode(), params)
        connection.pgconn.exec_(b"rollback to before")
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


def plain(connection: Connection[Any]) -> None:
    """The costs that PostgreSQL comes with, for connections made from now on, and no autovacuum to mend statistics."""
    connection.execute("""
        do $$ declare here regclass; begin
            execute format('alter database %I set random_page_cost = 4', current_database());
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
    admin = connect()
    plain(admin)
    scenario(admin)
    worker = Worker(connect())
    for _ in range(TIMES_TO_PREPARE):
        worker.claim(BATCH, tasks=["nobody's"])
    fill_queue(admin, ROWS)
    counts = "select generic_plans > 0, custom_plans from pg_prepared_statements where statement like '%%skip locked%%'"
    assert ask(worker.connection, counts) == [(True, 0)]  # to plan each time anew would cost more than the claim
    with explained(worker.connection) as scans, worker.connection.transaction():
        assert len(worker.claim(BATCH).rows) == BATCH
    assert {scan.is_kept for scan in scans} == {True}
    assert_reads_no_more_than(scans, rows=4 * BATCH, buffers=10 * BATCH)


@pytest.mark.parametrize("scenario", [drained, scheduled], ids=lambda told: told.__doc__)
def test_a_claim_that_is_never_prepared_reads_what_it_takes_too(connect: Connect, scenario: Scenario) -> None:
    admin = connect()
    plain(admin)
    scenario(admin)
    worker = Worker(connect())
    worker.connection.prepare_threshold = None
    fill_queue(admin, ROWS)
    with explained(worker.connection) as scans, worker.connection.transaction():
        assert len(worker.claim(BATCH).rows) == BATCH
    assert_reads_no_more_than(scans, rows=4 * BATCH, buffers=10 * BATCH)


@scenarios
def test_a_look_below_the_floors_reads_no_more_than_a_row_of_each_lane_however_it_was_planned(
    connect: Connect, scenario: Scenario
) -> None:
    admin = connect()
    plain(admin)
    scenario(admin)
    sweeper = connect()
    floors = floors_now(admin, seconds=3600)
    for _ in range(TIMES_TO_PREPARE):
        with by_index(sweeper):
            find_below_floor(sweeper.cursor(), tasks=["nobody's"], lanes=LANES, floors=floors, reach=None)
    fill_queue(admin, ROWS)
    with explained(sweeper) as scans, sweeper.transaction(), by_index(sweeper):
        assert len(find_below_floor(sweeper.cursor(), tasks=["t"], lanes=LANES, floors=floors, reach=None)) == 1
    assert {scan.is_kept for scan in scans} == {True}
    assert_reads_no_more_than(scans, rows=1, buffers=5 * len(LANES))


@scenarios
def test_a_look_for_dry_lanes_stops_at_the_first_row_that_is_ours_however_it_was_planned(
    connect: Connect, scenario: Scenario
) -> None:
    admin = connect()
    plain(admin)
    scenario(admin)
    sweeper = connect()
    for _ in range(TIMES_TO_PREPARE):
        with by_index(sweeper):
            find_dry_lanes(sweeper.cursor(), tasks=["nobody's"], lanes=LANES, floors=FROM_THE_BEGINNING, margin=0)
    fill_queue(admin, ROWS)
    with explained(sweeper) as scans, sweeper.transaction(), by_index(sweeper):
        dry = find_dry_lanes(sweeper.cursor(), tasks=["t"], lanes=LANES, floors=FROM_THE_BEGINNING, margin=0)
    assert len(dry) == len(LANES) - 1
    assert {scan.is_kept for scan in scans} == {True}
    assert_reads_no_more_than(scans, rows=1, buffers=10 * len(LANES))


@scenarios
def test_a_batch_of_a_purge_reads_what_it_purges_however_long_the_queue_has_become(
    connect: Connect, scenario: Scenario
) -> None:
    admin = connect()
    plain(admin)
    scenario(admin)
    user = connect()
    admin.execute("delete from pgworker.job_queue where queue = 'default'")
    fill_queue(admin, 20 * BATCH)
    fill_queue(admin, ROWS, queue="else")
    batches = cancel_waiting(user, JobFilter(queue="default"), "purged", batch=BATCH)
    assert [next(batches) for _ in range(10)] == [BATCH] * 10
    with explained(user) as scans:
        assert next(batches) == BATCH
    assert_reads_no_more_than(scans, rows=4 * BATCH, buffers=10 * BATCH)
    assert sum(batches) == 9 * BATCH


@scenarios
def test_a_look_for_what_nobody_serves_reads_the_head_of_each_lane_however_long_the_queue_has_become(
    connect: Connect, scenario: Scenario
) -> None:
    admin, monitor = connect(), connect()
    plain(admin)
    scenario(admin)
    for _ in range(TIMES_TO_PREPARE):
        find_unserved(monitor)
    fill_queue(admin, ROWS)
    fill_queue(admin, ROWS, priority=1)
    with explained(monitor) as scans:
        found = {one.queue: one.jobs for one in find_unserved(monitor)}
    assert found["default"] == Count(2000, is_more=True)
    queues = len(found)
    assert_reads_no_more_than(scans, rows=2 * 1000 * queues + queues, buffers=1000 * queues)


def floors_now(connection: Connection[Any], seconds: float = 0) -> FloorsSeen:
    """All floors at the clock, or so many seconds ahead of it."""
    at = "clock_timestamp() + %s * interval '1 second'"
    [(run_at, job_id)] = ask(connection, f"select {at}, pgworker.uuid7_first({at})", seconds, seconds)
    time, half = floor_of(run_at, job_id)
    return FloorsSeen([time] * len(LANES), [half] * len(LANES))


# -- what lies in front


def test_rows_of_tasks_that_nobody_serves_are_read_once_and_then_lie_below_the_floor(connect: Connect) -> None:
    admin, worker = connect(), Worker(connect())
    fill_queue(admin, ROWS, task="nobody's")
    fill_queue(admin, 2 * BATCH)
    with explained(worker.connection) as scans, worker.connection.transaction():
        [*_, last] = worker.claim(BATCH).rows
    assert sum(scan.rows for scan in scans) > ROWS
    floors = floors_now(admin)
    lane = LANES.index(last.queue, last.priority)
    assert lane is not None
    floors[0][lane], floors[1][lane] = floor_of(last.run_at, last.job_id)
    with explained(worker.connection) as scans, worker.connection.transaction():
        assert len(worker.claim(BATCH, floors=floors).rows) == BATCH
    assert_reads_no_more_than(scans, rows=4 * BATCH, buffers=10 * BATCH)


def test_dead_entries_that_an_old_transaction_keeps_cost_a_claim_above_them_and_a_look_not_far_below_it_nothing(
    connect: Connect,
) -> None:
    admin, worker, pinning = connect(), Worker(connect()), connect()
    fill_queue(admin, ROWS, due_in="-1 hour")
    with pinning.transaction():
        ask(pinning, "select pg_current_xact_id()")
        admin.execute("delete from pgworker.job_queue")
        fill_queue(admin, 2 * BATCH)
        admin.execute("vacuum pgworker.job_queue")
        with explained(worker.connection) as scans, worker.connection.transaction():
            assert len(worker.claim(BATCH).rows) == BATCH
        assert sum(scan.buffers for scan in scans) > ROWS / 100  # the price without a floor
        floors = floors_now(admin, seconds=-60)
        with explained(worker.connection) as scans, worker.connection.transaction():
            assert len(worker.claim(BATCH, floors=floors).rows) == BATCH
        assert_reads_no_more_than(scans, rows=4 * BATCH, buffers=10 * BATCH)
        with explained(worker.connection) as scans, worker.connection.transaction(), by_index(worker.connection):
            find_below_floor(worker.connection.cursor(), tasks=["t"], lanes=LANES, floors=floors, reach=60)
        assert_reads_no_more_than(scans, rows=1, buffers=5 * len(LANES))


# -- the jobs themselves, and their history


def whole_life(worker: Worker, monitor: Monitor, jobs: int) -> list[Scan]:
    """Every way that a batch can go: claimed, settled in each direction, released, reclaimed; what was read for it."""
    enqueue(monitor.connection, jobs)
    half = jobs // 2
    with explained(worker.connection) as held, worker.connection.transaction():
        lease = worker.claim(jobs)
        failed = lease.settlement(1, half, outcome=Outcome.FAILED, then=Next.REQUEUE)
        assert worker.settle(failed)
        assert find_unsettled(worker.connection.cursor(), failed) == []
        [back] = release_jobs(worker.connection, lease.lease_id, half + 1).lanes
        assert back.jobs == half
        lost = worker.claim(jobs)
        assert worker.settle(lost.settlement(1, half, outcome=Outcome.FAILED, then=Next.REQUEUE))
    worker.die()
    with explained(monitor.connection) as reclaimed:
        found = {lease.lease_id: lease for lease in monitor.reclaimable()}
        assert monitor.reclaim(found[lost.lease_id], [Outcome.SUCCEEDED] * half + [Outcome.CRASHED] * half)
    with explained(worker.connection) as buried, worker.connection.transaction():
        assert worker.settle(worker.claim(jobs).settlement(outcome=Outcome.FAILED, then=Next.BURY))
    return held + reclaimed + buried


HISTORY = """
    with old as (
        select pgworker.enqueue_jobs(
            array_fill('t'::text, n), array_fill('{}'::jsonb, n), array_fill('old'::text, n),
            array_fill(5::smallint, n), array_fill(null::timestamptz, n), array_fill(25::smallint, n),
            array_fill(null::bigint, n), array_fill(null::text, n), array_fill(null::jsonb, n),
            array_fill(null::uuid, n)) as ids
        from (values (array[%s])) as asked(n))
    insert into pgworker.job_executions (job_id, finished_at, execution, outcome, failures)
    select unnest(ids), clock_timestamp(), 1, 'succeeded', 0 from old
"""


@pytest.mark.parametrize("analyzed", ["never", "empty", "tiny"])
def test_all_that_can_happen_to_a_batch_reads_its_own_jobs_and_executions_only_whatever_is_stored_beside_them(
    connect: Connect, analyzed: str
) -> None:
    """Partitions are made days ahead: a nightly ANALYZE finds them empty, and the plans of that night stay."""
    admin = connect()
    plain(admin)
    worker, monitor = Worker(connect()), Monitor(connect())
    worker.connection.prepare_threshold = monitor.connection.prepare_threshold = 0
    if analyzed == "tiny":
        whole_life(worker, monitor, 10)
    if analyzed != "never":
        admin.execute("vacuum analyze")
    for _ in range(TIMES_TO_PREPARE):
        whole_life(worker, monitor, 10)
    admin.execute(HISTORY, [ROWS])
    scans = whole_life(worker, monitor, BATCH)
    assert_reads_no_more_than(scans, rows=20 * BATCH, buffers=60 * BATCH)


def progress_of(scans: list[Scan]) -> tuple[float, int]:
    """Rows and buffers that were read of what jobs had said."""
    seen = [scan for scan in scans if scan.relation == "job_progress"]
    return sum(scan.rows for scan in seen), sum(scan.buffers for scan in seen)


def test_jobs_that_say_nothing_read_nothing_of_what_others_said_and_a_retry_its_own_row_only(connect: Connect) -> None:
    admin, worker = connect(), Worker(connect())
    plain(admin)
    worker.connection.prepare_threshold = 0
    for _ in range(TIMES_TO_PREPARE):
        worker.settle(worker.claim(BATCH).settlement(1, 0, ends=True))
    admin.execute(
        "insert into pgworker.job_progress select gen_random_uuid(), 1, 0, '', null, now() from generate_series(1, %s)",
        [ROWS],
    )
    enqueue(admin, BATCH)
    with explained(worker.connection) as scans, worker.connection.transaction():
        held = worker.claim(BATCH)
        worker.settle(held.settlement(1, BATCH // 2))
        worker.settle(held.settlement(BATCH // 2 + 1, outcome=Outcome.FAILED, then=Next.REQUEUE))
    assert scans
    assert progress_of(scans) == (0, 0)
    with explained(worker.connection) as scans, worker.connection.transaction():
        again = worker.claim(BATCH)
        with by_index(worker.connection):
            save_progress(worker.connection, again.lease_id, {1: check_progress(again.ids[0], 0.5, "", None)})
            forget_progress(worker.connection, again.ids)
    rows, buffers = progress_of(scans)
    assert rows == 1
    assert buffers <= 10 * BATCH
    assert_reads_no_more_than(scans, rows=10 * BATCH, buffers=40 * BATCH)


@pytest.mark.parametrize("analyzed", ["never", "empty", "full"])
def test_who_waits_for_results_reads_an_index_entry_or_two_of_each_job_in_the_partition_of_its_day(
    connect: Connect, analyzed: str
) -> None:
    admin = connect()
    plain(admin)
    if analyzed == "empty":
        admin.execute("vacuum analyze")
    worker = Worker(connect())
    admin.execute(HISTORY, [ROWS])
    waiting, done, dead, gone = (enqueue(admin, BATCH) for _ in range(4))
    worker.settle(worker.claim(BATCH).settlement(outcome=Outcome.FAILED, then=Next.REQUEUE))
    admin.execute(FINISH, [done])
    admin.execute(BURY, [dead])
    admin.execute("delete from pgworker.job_queue where job_id = any(%s)", [gone])
    admin.execute("delete from pgworker.jobs where id = any(%s)", [gone])
    if analyzed == "full":
        admin.execute("vacuum analyze")
    asked = [*waiting, *done, *dead, *gone]
    with explained(worker.connection) as scans, worker.connection.transaction():
        found = {result.job_id: result.status for result in find_results(worker.connection, asked)}
    ended = dict.fromkeys(done, Status.SUCCEEDED) | dict.fromkeys(dead, Status.DEAD_LETTER)
    assert found == ended | dict.fromkeys(gone)
    assert_reads_no_more_than(scans, rows=3 * len(asked), buffers=12 * len(asked))
    [day] = ask(admin, "select to_char(clock_timestamp() at time zone 'UTC', 'YYYYMMDD')")
    read = {scan.relation for scan in scans if scan.buffers}
    assert read == {f"jobs_{day}", f"job_executions_{day}", "dead_letter_jobs"}
    assert {scan.node for scan in scans if scan.buffers} <= {"Index Scan", "Index Only Scan"}


FINISH = """
    with gone as (delete from pgworker.job_queue where job_id = any(%s) returning job_id)
    insert into pgworker.job_executions (job_id, finished_at, execution, outcome, failures)
    select job_id, clock_timestamp(), 1, 'succeeded', 0 from gone
"""
BURY = """
    with gone as (delete from pgworker.job_queue where job_id = any(%s) returning *)
    insert into pgworker.dead_letter_jobs
        (job_id, died_at, created_at, run_at, execution, priority, max_attempts, failures, outcome,
         queue, task, payload)
    select job_id, run_at, run_at, run_at, 1, priority, 1, 1, 'failed', queue, task, '{}' from gone
"""


SETTINGS = ("enable_seqscan", "enable_bitmapscan", "enable_sort", "plan_cache_mode", "jit")


def settings(connection: Connection[Any], *more: str) -> list[str]:
    return [ask(connection, "select current_setting(%s)", name)[0] for name in (*SETTINGS, *more)]


def test_a_trip_is_planned_like_what_goes_by_index_and_leaves_nothing_behind(connect: Connect) -> None:
    with connect_patiently(connect().info.dsn, application_name="patient", patience=2.0) as db:
        before = settings(db, "statement_timeout")
        with db.transaction(), by_index(db):
            by_itself = settings(db)
        with one_trip(db):
            meanwhile = settings(db, "statement_timeout")
        assert settings(db, "statement_timeout") == before
        set_up_session(db)
        with one_trip(db):
            assert settings(db, "statement_timeout") == meanwhile
    assert before[:-1] != by_itself
    assert meanwhile == [*by_itself, "1600ms"]


def test_a_trip_without_patience_keeps_the_limit_of_its_session(connect: Connect) -> None:
    db = connect()
    db.execute("set statement_timeout = '7s'")
    with one_trip(db):
        assert settings(db, "statement_timeout")[-1:] == ["7s"]


@pytest.mark.parametrize(("is_durable", "waits"), [(True, "local"), (False, "off")])
def test_only_a_claim_that_need_not_last_does_not_wait_for_the_disk(
    connect: Connect, is_durable: bool, waits: str
) -> None:
    worker = Worker(connect())
    worker.connection.execute("set synchronous_commit = 'local'")
    enqueue(worker.connection, 1)
    with one_trip(worker.connection):
        worker.claim(is_durable=is_durable)
        found = settings(worker.connection, "synchronous_commit")
    assert found[-1] == waits
    assert ask(worker.connection, "show synchronous_commit") == ["local"]
