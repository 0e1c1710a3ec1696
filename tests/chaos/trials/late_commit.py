"""Jobs that become visible behind the claim floor, while others flow past: they are not left there.

Three ways: a producer's transaction that was open for long; a claimer whose transaction is ended by the server when the
others have gone on beyond its jobs; and a worker that is killed with what it had claimed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection

from tests.chaos.trials.figures import in_time, invariants, none_of
from tests.chaos.trials.ground import PATIENCE, database, meanwhile, pause, running_pool, scalar
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process import jobs
from tests.process.pool import Pool, eventually

PROMISED = 2.0
"""Seconds from the commit to the start of the last job."""
_JOBS = 20

_LAST_START = """
    select extract(epoch from max(started_at) - %s)::float8, count(*) from pgworker.job_executions
    where job_id = any(%s) and outcome = 'succeeded'
"""


def run(bench: Bench) -> Sequence[Figure]:
    files = str(bench.directory)
    with (
        database(bench) as (dsn, connection),
        running_pool(dsn, bench.directory / "pool.log", workers=2) as pool,
        meanwhile(lambda is_over: _flow(is_over, dsn, files)),
    ):
        producer = _producer(bench, dsn, connection, files)
        claimer = _claimer(dsn, connection, files)
        killed = _killed(pool, connection, bench.directory)
        lost = scalar(connection, "select count(*) from pgworker.job_status where status = 'LOST'")
        figures = [
            _late(bench, "last start after the commit of a producer", producer),
            _late(bench, "... after the end of a claimer's transaction", claimer),
            _late(bench, "... after a worker was killed", killed),
            none_of("jobs that are lost", lost),
            invariants(connection),
        ]
        pool.send(signal.SIGTERM)
        return figures


def _late(bench: Bench, name: str, seconds: float) -> Figure:
    return in_time(bench, 30, name, PROMISED, seconds)


def _flow(is_over: Event, dsn: str, files: str) -> None:
    """Others: a hundred jobs a second, of every priority that the late ones have."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not is_over.wait(0.1):
            requests = [jobs.quick.options(priority=4 + n % 3).job(files, "flow") for n in range(10)]
            jobs.app.enqueue_many(requests, connection)


def _producer(bench: Bench, dsn: str, connection: Connection[Any], files: str) -> float:
    with psycopg.connect(dsn) as producer:
        requests = [jobs.quick.options(priority=4 + n % 3).job(files, "late") for n in range(_JOBS)]
        ids = [job.id for job in jobs.app.enqueue_many(requests, producer)]
        pause(bench.size)
        passed = "select exists (select from pgworker.job_executions where job_id > %s)"
        eventually(lambda: scalar(connection, passed, max(ids)), "others flow past", PATIENCE)
        producer.commit()
    return _wait_for(connection, ids, _now(connection))


def _claimer(dsn: str, connection: Connection[Any], files: str) -> float:
    """Its rows are locked as a claim locks them; the server ends it when the others have claimed beyond."""
    soon = _now(connection) + timedelta(seconds=0.5)
    requests = [jobs.quick.options(run_at=soon).job(files, "claimed") for _ in range(_JOBS)]
    ids = [job.id for job in jobs.app.enqueue_many(requests, connection)]
    with psycopg.connect(dsn) as claimer:
        claimer.execute("select from pgworker.job_queue where job_id = any(%s) for update", [ids])
        beyond = "select count(*) from pgworker.job_executions as e join pgworker.jobs on id = job_id where run_at > %s"
        eventually(lambda: scalar(connection, beyond, soon + timedelta(seconds=0.5)) > 0, "others go on", PATIENCE)
        ended = _now(connection)
        connection.execute("select pg_terminate_backend(%s)", [claimer.info.backend_pid])
        seconds = _wait_for(connection, ids, ended)
        claimer.close()
    return seconds


def _killed(pool: Pool, connection: Connection[Any], files: Path) -> float:
    job = jobs.hold.using(connection).enqueue(str(files), "held").id
    ledger = files / "ledger"
    eventually(lambda: " held 1 " in ledger.read_text(errors="replace"), "it runs", PATIENCE)
    [line] = [line for line in ledger.read_text().splitlines() if line.startswith("start held 1 ")]
    killed = _now(connection)
    os.kill(int(line.split()[-1]), signal.SIGKILL)
    (files / "held").touch()  # the next execution ends at once
    seconds = _wait_for(connection, [job], killed)
    assert len(pool.workers) <= 2
    return seconds


def _now(connection: Connection[Any]) -> datetime:
    moment: datetime = scalar(connection, "select clock_timestamp()")
    return moment


def _wait_for(connection: Connection[Any], ids: Sequence[UUID], since: datetime) -> float:
    """Seconds from then to the start of the last of them."""

    def asked() -> tuple[float, int]:
        seconds, ended = connection.execute(_LAST_START, [since, list(ids)]).fetchall()[0]
        return seconds, ended

    eventually(lambda: asked()[1] == len(ids), "all have succeeded", PATIENCE)
    return asked()[0]


TRIAL = Trial(
    name="late_commit",
    promise="what becomes visible behind the claim floor is picked up soon, and nothing is left there",
    unit="seconds of an open transaction",
    full=60,
    short=1,
    run=run,
)
