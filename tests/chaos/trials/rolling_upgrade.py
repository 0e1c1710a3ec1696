"""A rolling deploy: the next version migrates while pools of this one work, and takes over; nothing is lost.

The next version is a copy of this package with a migration more: what the pools of this one meet is what those of the
version before meet when this one migrates.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection

import pgworker
from pgworker.errors import EXIT_CONFIGURATION
from tests.chaos.trials import common
from tests.chaos.trials.common import count, database, invariants, none, wait_until
from tests.chaos.trials.later_app import later
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process import jobs
from tests.process.pool import ROOT, start

MIGRATION = """
alter table pgworker.jobs add column later_column integer;
alter table pgworker.job_queue add column later_column integer;
create table pgworker.later_things (id uuid primary key, job_id uuid not null);
create index job_executions_later on pgworker.job_executions (worker_id) where outcome = 'crashed';
"""
_PATIENCE = 120.0


def run(bench: Bench) -> Sequence[Figure]:
    files = bench.directory
    with database(bench) as (dsn, connection):
        connection.execute("create table effect (job_id uuid, execution integer)")
        newer = _next_version(files / "next")
        with common.pool(dsn, files / "old.log", workers=2) as old, _producer(dsn, files, bench.size) as enqueued:
            wait_until(lambda: len(enqueued) > bench.size // 4, _PATIENCE, "jobs flow")
            migrated = _migrate(newer, dsn)
            passed = _ended(connection)
            wait_until(lambda: _ended(connection) > passed, _PATIENCE, "the older pool goes on under the newer schema")
            refused = _refused(dsn, files)
            unknown = [later.using(connection).enqueue(str(files), f"later{n}").id for n in range(10)]
            after = len(enqueued)
            wait_until(lambda: len(enqueued) > min(bench.size - 1, after + 20), _PATIENCE, "jobs go on flowing")
            early = count(connection, "select count(*) from pgworker.job_executions where job_id = any(%s)", unknown)
            settings: dict[str, Any] = {"cwd": newer, "app": "tests.chaos.trials.later_app:app", "workers": 2}
            with common.pool(dsn, files / "new.log", **settings) as new:
                wait_until(lambda: _succeeded(connection, unknown) == len(unknown), _PATIENCE, "unknown tasks run")
                old.send(signal.SIGTERM)
                left = old.wait(within=60)
                wait_until(lambda: len(enqueued) == bench.size, _PATIENCE, "all are enqueued")
                wait_until(lambda: _left(connection) == 0, _PATIENCE, "all have ended")
                new.send(signal.SIGTERM)
                new.wait(within=60)
        return [
            Figure("jobs enqueued all the while", "", f"{len(enqueued):,}", None),
            _code("of the migration", migrated, 0),
            _code("of the older pool, drained", left, 0),
            _code("of an older pool that starts later", refused, EXIT_CONFIGURATION),
            Figure("jobs of unknown tasks that an older worker touched", "0", str(early), early == 0),
            none("jobs that did not succeed once", _not_once(connection, [*enqueued, *unknown])),
            none("effects that did not happen once", _wrong_effects(connection, enqueued)),
            invariants(connection),
        ]


def _code(name: str, found: int, promised: int) -> Figure:
    return Figure(f"exit code {name}", str(promised), str(found), found == promised)


def _next_version(directory: Path) -> Path:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(pgworker.__file__).parent, directory / "pgworker", ignore=ignore)
    migrations = directory / "pgworker" / "sql" / "migrations"
    last = max(int(path.name[:4]) for path in migrations.glob("*.sql"))
    (migrations / f"{last + 1:04}_later.sql").write_text(MIGRATION)
    return directory


def _migrate(newer: Path, dsn: str) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "pgworker", "migrate", "--dsn", dsn],
        cwd=newer,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    assert "0_later" in done.stdout + done.stderr or done.returncode, done
    return done.returncode


def _refused(dsn: str, files: Path) -> int:
    """The exit code of a pool of this version that starts on the schema of the next."""
    with common.quiet(), start(dsn, files / "refused.log") as late:
        code = late.process.wait(_PATIENCE)
        assert "Upgrade pgworker" in late.log(), late.log()
        return code


@contextmanager
def _producer(dsn: str, files: Path, jobs_wanted: int) -> Iterator[list[UUID]]:
    """One after the other, a third of them with an effect of their own; what was acknowledged."""
    enqueued: list[UUID] = []
    is_over = Event()

    def enqueue() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            while len(enqueued) < jobs_wanted and not is_over.wait(0.005):
                task: Any = jobs.effect if len(enqueued) % 3 == 0 else jobs.quick
                enqueued.append(task.using(connection).enqueue(str(files), "job").id)

    thread = Thread(target=enqueue, daemon=True)
    thread.start()
    try:
        yield enqueued
    finally:
        is_over.set()
        thread.join()


def _ended(connection: Connection[Any]) -> int:
    return int(count(connection, "select count(*) from pgworker.job_executions"))


def _succeeded(connection: Connection[Any], ids: Sequence[UUID]) -> int:
    asked = "select count(*) from pgworker.job_executions where outcome = 'succeeded' and job_id = any(%s)"
    return int(count(connection, asked, list(ids)))


def _left(connection: Connection[Any]) -> int:
    return int(count(connection, common.LEFT))


def _not_once(connection: Connection[Any], ids: Sequence[UUID]) -> list[tuple[Any, ...]]:
    return connection.execute(
        "select id, array_agg(outcome::text) from unnest(%s) as id left join pgworker.job_executions on job_id = id"
        " group by id having count(*) filter (where outcome = 'succeeded') <> 1",
        [list(ids)],
    ).fetchall()


def _wrong_effects(connection: Connection[Any], enqueued: Sequence[UUID]) -> list[UUID]:
    happened = Counter(row[0] for row in connection.execute("select job_id from effect"))
    return [job for number, job in enumerate(enqueued) if happened[job] != (number % 3 == 0)]


TRIAL = Trial(
    name="rolling_upgrade",
    promise="a migration while older workers run loses nothing; unknown tasks wait, and older pools refuse loudly",
    unit="jobs",
    full=20_000,
    short=200,
    run=run,
)
