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
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection

import pgworker
from pgworker.errors import EXIT_CONFIGURATION
from tests.chaos.trials.apps.later import later
from tests.chaos.trials.figures import invariants, none_of, told
from tests.chaos.trials.ground import PATIENCE, database, meanwhile, running_pool, scalar, wait_until_quiet
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process import jobs
from tests.process.pool import ROOT, eventually

MIGRATION = """
alter table pgworker.jobs add column later_column integer;
alter table pgworker.job_queue add column later_column integer;
create table pgworker.later_things (id uuid primary key, job_id uuid not null);
create index job_executions_later on pgworker.job_executions (worker_id) where outcome = 'crashed';
"""


def run(bench: Bench) -> Sequence[Figure]:
    files = bench.directory
    with database(bench) as (dsn, connection):
        connection.execute("create table effect (job_id uuid, execution integer)")
        enqueued: list[UUID] = []
        newer = _next_version(files / "next")
        with running_pool(dsn, files / "old.log", workers=2) as old, ExitStack() as stack:
            with meanwhile(lambda is_over: _produce(is_over, dsn, files, enqueued)):
                eventually(lambda: len(enqueued) > bench.size // 4, "jobs flow", PATIENCE)
                migrated = _migrate(newer, dsn)
                os.kill(killed := min(old.workers), signal.SIGKILL)
                eventually(lambda: len({*old.workers} - {killed}) == 2, "the older pool replaces its worker", PATIENCE)
                passed = _ended(connection)
                eventually(
                    lambda: _ended(connection) > passed, "the older pool goes on under the newer schema", PATIENCE
                )
                refused = _refused(dsn, files)
                unknown = [later.using(connection).enqueue(str(files), f"later{n}").id for n in range(10)]
                after = len(enqueued)
                eventually(lambda: len(enqueued) > after + 20, "jobs go on flowing", PATIENCE)
                early = scalar(
                    connection, "select count(*) from pgworker.job_executions where job_id = any(%s)", unknown
                )
                settings: dict[str, Any] = {"cwd": newer, "app": "tests.chaos.trials.apps.later:app", "workers": 2}
                new = stack.enter_context(running_pool(dsn, files / "new.log", **settings))
                eventually(lambda: _succeeded(connection, unknown) == len(unknown), "unknown tasks run", PATIENCE)
                old.send(signal.SIGTERM)
                left = old.wait(within=60)
                eventually(lambda: len(enqueued) >= bench.size, "all are enqueued", PATIENCE)
            wait_until_quiet(connection)
            new.send(signal.SIGTERM)
            new.wait(within=60)
        return [
            told("jobs enqueued all the while", f"{len(enqueued):,}"),
            _code("of the migration", migrated, 0),
            _code("of the older pool, drained", left, 0),
            _code("of an older pool that starts later", refused, EXIT_CONFIGURATION),
            none_of("jobs of unknown tasks that an older worker touched", early),
            none_of("jobs that did not succeed once", _not_once(connection, [*enqueued, *unknown])),
            none_of("effects that did not happen once", _wrong_effects(connection, enqueued)),
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
        timeout=PATIENCE,
        check=False,
    )
    assert "_later" in done.stdout + done.stderr or done.returncode, done
    return done.returncode


def _refused(dsn: str, files: Path) -> int:
    """The exit code of a pool of this version that starts on the schema of the next."""
    with running_pool(dsn, files / "refused.log", ready=False) as late:
        code = late.process.wait(PATIENCE)
        assert "Upgrade pgworker" in late.log(), late.log()
        return code


def _produce(is_over: Event, dsn: str, files: Path, enqueued: list[UUID]) -> None:
    """One after the other, a third of them with an effect of their own; what was acknowledged."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not is_over.wait(0.005):
            task: Any = jobs.effect if len(enqueued) % 3 == 0 else jobs.quick
            enqueued.append(task.using(connection).enqueue(str(files), "job").id)


def _ended(connection: Connection[Any]) -> int:
    return int(scalar(connection, "select count(*) from pgworker.job_executions"))


def _succeeded(connection: Connection[Any], ids: Sequence[UUID]) -> int:
    asked = "select count(*) from pgworker.job_executions where outcome = 'succeeded' and job_id = any(%s)"
    return int(scalar(connection, asked, list(ids)))


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
