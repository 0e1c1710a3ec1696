"""What deploy/README.md says of pools between a migration and their restart: they work on, and begin nothing new."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from pgworker.errors import EXIT_CONFIGURATION
from tests.acceptance.test_cli import run
from tests.process import pool
from tests.process.jobs import quick
from tests.process.pool import eventually
from tests.sql.actors import ask

Connect = Callable[[], psycopg.Connection[Any]]

NEWER = "insert into pgworker.schema_migrations (version, name, checksum) values (999, '0999_later', '')"


def test_a_pool_works_on_under_a_newer_schema_but_whoever_starts_is_refused(
    dsn: str, connect: Connect, tmp_path: Path
) -> None:
    connection = connect()

    def runs(name: str) -> bool:
        job = quick.using(connection).enqueue(str(tmp_path), name)
        statement = "select pgworker.job_status(%s)"
        return eventually(lambda: ask(connection, statement, job.id) == ["succeeded"], started.log)

    with pool.start(dsn, tmp_path / "pool.log") as started:
        named = "select count(distinct application_name) from pg_stat_activity where datname = current_database()"
        ours = f"{named} and application_name ~ '^pgworker (monitor|worker [01])$'"
        eventually(lambda: ask(connection, ours) == [3], started.log)
        assert runs("before")
        connection.execute(NEWER)
        assert runs("behind the migration")
        asked = run("status", "--dsn", dsn)
        assert (asked.returncode, "Upgrade pgworker" in asked.stderr) == (EXIT_CONFIGURATION, True)
        os.kill(started.workers[0], signal.SIGKILL)
        started.wait_for_log("event=schema_newer")
        assert runs("in a worker that was replaced")
    with pool.start(dsn, tmp_path / "again.log") as refused:
        assert refused.process.wait(pool.DEADLINE) == EXIT_CONFIGURATION
        assert "Upgrade pgworker" in refused.log()
