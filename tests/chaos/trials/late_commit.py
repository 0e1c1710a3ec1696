"""Jobs that become visible behind the claim floor, while others flow past: they are not left there.

Three ways: a producer's transaction that was open for long; a claimer whose transaction is ended by the server when the
others have gone on beyond its jobs; and a worker that is killed with what it had claimed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection

from tests.chaos.trials import common
from tests.chaos.trials.common import count, database, invariants, timed, wait_until
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process import jobs
from tests.process.pool import Pool

PROMISED = 2.0
"""Seconds from the commit to the start of the last job."""
_PATIENCE = 60.0
_JOBS = 20

_LAST_START = """
    select extract(epoch from max(started_at) - %s)::float8, count(*) from pgworker.job_executions
    where job_id = any(%s) and outcome = 'succeeded'
"""


def run(bench: Bench) -> Sequence[Figure]:
    files = str(bench.directory)
    with (
        database(bench) as (dsn, connection),
        common.pool(dsn, bench.directory / "pool.log", workers=2) as pool,
        _flow(dsn, files),
    ):
        producer = _producer(bench, dsn, connection, files)
        claimer = _claimer(dsn, connection, files)
        killed = _killed(pool, connection, bench.directory)
        lost = count(connection, "select count(*) from pgworker.job_status where status = 'LOST'")
        figures = [
            _late(bench, "last start after the commit of a producer", producer),
            _late(bench, "... after the end of a claimer's transaction", claimer),
            _late(bench, "... after a worker was killed", killed),
            Figure("jobs that are lost", "0", str(lost), lost == 0),
            invariants(connection),
        ]
        pool.send(signal.SIGTERM)
        return figures


def _late(bench: Bench, name: str, seconds: float) -> Figure:
    return Figure(name, f"< {PROMISED:g} s", f"{seconds:.2f} s", timed(bench, 30, seconds < PROMISED))


@contextmanager
def _flow(dsn: str, files: str) -> Iterator[None]:
    """Others: a hundred jobs a second, of every priority that the late ones have."""
    is_over = Event()

    def enqueue() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not is_over.wait(0.1):
                requests = [jobs.quick.options(priority=4 + n % 3).job(files, "flow") for n in range(10)]
                jobs.app.enqueue_many(requests, connection)

    thread = Thread(target=enqueue, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _producer(bench: Bench, dsn: str, connection: Connection[Any], files: str) -> float:
    with psycopg.connect(dsn) as producer:
        requests = [jobs.quick.options(priority=4 + n % 3).job(files, "late") for n in range(_JOBS)]
        ids = [job.id for job in jobs.app.enqueue_many(requests, producer)]
        Event().wait(bench.size)
        passed = count(connection, "select count(*) from pgworker.job_executions where job_id > %s", max(ids))
        assert passed or bench.size < 1, "nothing has flowed past"
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
        wait_until(lambda: count(connection, beyond, soon + timedelta(seconds=0.5)) > 0, _PATIENCE, "others go on")
        ended = _now(connection)
        connection.execute("select pg_terminate_backend(%s)", [claimer.info.backend_pid])
        seconds = _wait_for(connection, ids, ended)
        claimer.close()
    return seconds


def _killed(pool: Pool, connection: Connection[Any], files: Path) -> float:
    job = jobs.hold.using(connection).enqueue(str(files), "held").id
    ledger = files / "ledger"
    wait_until(lambda: " held 1 " in ledger.read_text(errors="replace"), _PATIENCE, "it runs")
    [line] = [line for line in ledger.read_text().splitlines() if line.startswith("start held 1 ")]
    killed = _now(connection)
    os.kill(int(line.split()[-1]), signal.SIGKILL)
    (files / "held").touch()  # the next execution ends at once
    seconds = _wait_for(connection, [job], killed)
    assert len(pool.workers) <= 2
    return seconds


def _now(connection: Connection[Any]) -> datetime:
    moment: datetime = count(connection, "select clock_timestamp()")
    return moment


def _wait_for(connection: Connection[Any], ids: Sequence[UUID], since: datetime) -> float:
    """Seconds from then to the start of the last of them."""

    def asked() -> tuple[float, int]:
        seconds, ended = connection.execute(_LAST_START, [since, list(ids)]).fetchall()[0]
        return seconds, ended

    wait_until(lambda: asked()[1] == len(ids), _PATIENCE, "all have succeeded")
    return asked()[0]


TRIAL = Trial(
    name="late_commit",
    promise="what becomes visible behind the claim floor is picked up soon, and nothing is left there",
    unit="seconds of an open transaction",
    full=60,
    short=2,
    run=run,
)
