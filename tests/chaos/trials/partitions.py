"""Partitions that are missing, or in somebody's way: claims go on, and what has expired is dropped afterwards.

In each round a day expires while a report reads everything through an open cursor; and an operator detaches, attaches
and truncates by hand meanwhile, giving up after 50 ms as pgworker's own functions do.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import psycopg
from psycopg import Connection

from pgworker.lifecycle.prune import PruneAction, prune
from tests.chaos.trials.figures import invariants, none_of, percentile, timed
from tests.chaos.trials.ground import PATIENCE, database, meanwhile, running_pool, scalar
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process import jobs
from tests.process.pool import eventually, free_port
from tests.sql.actors import Worker, enqueue
from tests.sql.history import DAY, age, day_of, enqueue_ago, partitions

_YOUNGEST = 10  # days ago; each round has the day after that of the one before
_ENOUGH = 50  # rounds from which on the longest claim is judged
_SLOWEST = 0.1
_ATTACH = """
    create table pgworker.jobs_trial partition of pgworker.jobs
    for values from ('00000000-0000-7000-8000-000000000000') to ('00000000-0000-7000-8000-000000000001')
"""
_REPORT = "declare report cursor for select * from pgworker.jobs join pgworker.job_executions on id = job_id"


def run(bench: Bench) -> Sequence[Figure]:
    with database(bench) as (dsn, connection):
        missing = _missing(bench, dsn, connection)
        busy = [_round(connection, dsn, bench, bench.size + _YOUNGEST - number) for number in range(bench.size)]
        kept = f"jobs_{day_of(connection, _YOUNGEST):%Y%m%d}"
        left = [name for name in partitions(connection) if name.startswith("jobs_2") and name <= kept]
        well = invariants(connection)
    claims = [seconds for one in busy for seconds in one.claims]
    longest, late = max(claims), percentile(claims, 99.9)
    return [
        *missing,
        Figure("rounds with a reader in the way, and claims in them", "", f"{len(busy)}, {len(claims):,}", None),
        none_of("rounds whose drop did not wait for the reader", [one for one in busy if not one.was_busy]),
        none_of("rounds after which the day was not dropped", [one for one in busy if not one.is_dropped]),
        none_of("claims that failed", [error for one in busy for error in one.errors]),
        Figure(
            "longest claim beside all that",
            f"≤ {_SLOWEST * 1000:.0f} ms",
            f"{longest * 1000:.0f} ms (p99.9 {late * 1000:.0f} ms)",
            timed(bench, _ENOUGH, longest <= _SLOWEST),
        ),
        none_of("expired days that are still there", left),
        well,
    ]


def _missing(bench: Bench, dsn: str, connection: Connection[Any]) -> list[Figure]:
    """A day without partitions: its jobs run all the same, and move where they belong once a pool makes it."""
    today = f"{day_of(connection, 0):%Y%m%d}"
    for parent in ("jobs", "job_executions"):
        connection.execute(f"drop table pgworker.{parent}_{today}".encode())
    enqueue_ago(connection, 3, partition=False)
    ids = [jobs.quick.using(connection).enqueue(str(bench.directory), "early").id for _ in range(20)]
    in_default = "select count(*) from pgworker.jobs_default where id = any(%s)"
    before = scalar(connection, in_default, ids)
    port = free_port()
    with running_pool(dsn, bench.directory / "pool.log", workers=1, metrics_listen=f"127.0.0.1:{port}") as pool:
        ended = "select count(*) from pgworker.job_executions where job_id = any(%s) and outcome = 'succeeded'"
        eventually(lambda: scalar(connection, ended, ids) == len(ids), "all have run", PATIENCE)
        eventually(lambda: scalar(connection, in_default, ids) == 0, "all have moved", PATIENCE)
        pool.wait_for_log("event=default_partition_used")
        eventually(lambda: "\npgworker_default_partition_jobs 1.0\n" in _page(port), "the alarm", PATIENCE)
    connection.execute("delete from pgworker.job_queue")  # the stray one
    connection.execute("delete from pgworker.jobs_default")
    return [
        Figure("jobs of a day without partitions, all of them run and moved", "20", str(before), before == len(ids)),
        Figure("a job that stays in the default partition is an alarm", "yes", "log and gauge", True),
    ]


def _page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


@dataclass(slots=True)
class Round:
    """What came of one expired day."""

    was_busy: bool = False
    is_dropped: bool = False
    claims: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def _round(connection: Connection[Any], dsn: str, bench: Bench, days: int) -> Round:
    one = Round()
    ids = enqueue_ago(connection, days, 20)
    worker = Worker(connection)
    held = worker.claim(len(ids))
    assert worker.settle(held.settlement())
    age(connection, ids, 8)
    expired = (days - 1) * DAY
    with meanwhile(lambda is_over: _claims(is_over, dsn, one)):
        with _report(dsn):
            one.was_busy = {partition.action for partition in prune(connection, expired)} == {PruneAction.BUSY}
            _by_hand(connection, bench, days)
        ends = time.monotonic() + PATIENCE
        while (found := prune(connection, expired)) and time.monotonic() < ends:
            one.is_dropped |= {partition.action for partition in found} == {PruneAction.DROPPED}
    return one


def _by_hand(connection: Connection[Any], bench: Bench, days: int) -> None:
    """In any order; each gives up, since the reader stays."""
    day = f"{day_of(connection, days):%Y%m%d}"
    statements = [
        f"truncate pgworker.job_executions_{day}",
        f"alter table pgworker.jobs detach partition pgworker.jobs_{day}",
        f"alter table pgworker.job_executions detach partition pgworker.job_executions_{day}",
        _ATTACH,
    ]
    bench.dice.shuffle(statements)
    for statement in statements:
        with suppress(psycopg.errors.LockNotAvailable), connection.transaction():
            connection.execute("set local lock_timeout = '50ms'")
            connection.execute(statement.encode())
            raise AssertionError(f"the reader was not in the way of: {statement}")


@contextmanager
def _report(dsn: str) -> Iterator[None]:
    with psycopg.connect(dsn) as reader:
        reader.execute(_REPORT)
        reader.execute("fetch 1 from report")
        yield


def _claims(is_over: Event, dsn: str, one: Round) -> None:
    """Enqueue, claim, settle, on and on; how long each claim takes."""
    try:
        with psycopg.connect(dsn, autocommit=True) as connection:
            worker = Worker(connection)
            while not is_over.is_set():
                enqueue(connection, 5)
                began = time.perf_counter()
                held = worker.claim(5)
                one.claims.append(time.perf_counter() - began)
                if not held.rows or not worker.settle(held.settlement()):
                    one.errors.append("a settle was refused, or a claim found nothing")
    except Exception as error:  # noqa: BLE001  told as a figure
        one.errors.append(str(error))


TRIAL = Trial(
    name="partitions",
    promise="a missing partition or one that a reader holds never makes a claim wait, and retention goes on after it",
    unit="rounds",
    full=200,
    short=2,
    run=run,
)
