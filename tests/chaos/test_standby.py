"""Who is led to a standby is told so, and goes on once it is promoted; what a primary waits for is not guessed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgworker import App, DatabaseUnavailable, OutcomeUnknown
from tests.chaos.pooler import Pooler
from tests.chaos.servers import PostgresServer
from tests.process import jobs
from tests.process.pool import ROOT, eventually, start
from tests.sql.actors import ask

_ADVICE = r"read-only transaction. Connect to the primary: name all hosts in the DSN, with target_session_attrs=read-w"
_COMMIT_WAITS = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"


@pytest.fixture
def led_to_standby() -> Iterator[tuple[PostgresServer, str]]:
    """A standby of a server with pgworker's schema, and the DSN that leads there."""
    with PostgresServer() as primary:
        dsn = primary.make_database()
        with primary.add_standby() as standby:
            standby.wait_caught_up(primary)
            yield standby, make_conninfo(dsn, port=standby.port)


def test_an_enqueue_on_a_standby_is_refused_with_advice_and_succeeds_once_it_is_promoted(
    led_to_standby: tuple[PostgresServer, str],
) -> None:
    standby, dsn = led_to_standby
    command = [sys.executable, "-m", "pgworker", "enqueue", "mail", "{}", "--dsn", dsn]
    with closing(App(dsn)) as app:
        task = app.task(name="mail")(mail)
        with pytest.raises(DatabaseUnavailable, match=_ADVICE) as raised:
            task.enqueue("a")
        assert not isinstance(raised.value, OutcomeUnknown)
        with pytest.raises(DatabaseUnavailable, match=_ADVICE), app.queue() as queue:
            queue.claim(1)
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert told.returncode == DatabaseUnavailable.exit_code
        assert re.search(_ADVICE, told.stderr)
        standby.promote()
        task.enqueue("a")
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)


def test_a_pool_on_a_standby_says_so_and_works_once_it_is_promoted(
    led_to_standby: tuple[PostgresServer, str], tmp_path: Path
) -> None:
    standby, dsn = led_to_standby
    with start(dsn, tmp_path / "pool.log", workers=2) as pool:
        pool.wait_for_log(_ADVICE)
        eventually(lambda: pool.log().count("event=database_away") >= 4, "it says so again")
        assert "event=database_back" not in pool.log()
        standby.promote()
        pool.wait_for_log("event=database_back")
        with psycopg.connect(dsn, autocommit=True) as connection:
            job = jobs.quick.using(connection).enqueue(str(tmp_path), "after").id
            eventually(lambda: ask(connection, "select pgworker.job_status(%s)", job) == ["succeeded"], "its end")
        assert pool.log().count("event=database_back") == 1


def test_an_enqueue_whose_commit_waits_for_its_standby_is_not_undone_and_nobody_says_so() -> None:
    with ExitStack() as undo:
        server = undo.enter_context(PostgresServer())
        dsn = server.make_database()
        standby = undo.enter_context(server.add_standby(synchronous=True))
        app = undo.enter_context(closing(App(dsn)))
        app._connections.waits.for_answer = 2.0
        task = app.task(name="mail")(mail)
        task.enqueue("before")
        standby.stop()
        with ThreadPoolExecutor(1) as another, server.connect() as operator:
            enqueued = another.submit(task.enqueue, "late")
            eventually(lambda: ask(operator, _COMMIT_WAITS) == [1], "a commit that waits")
            with pytest.raises(OutcomeUnknown):
                enqueued.result()
        standby.start()
        with psycopg.connect(dsn, autocommit=True) as connection:
            waiting = "select count(*) from pgworker.job_queue"
            eventually(lambda: ask(connection, waiting) == [2], "the job that nobody heard of")


def test_behind_a_pooler_a_standby_that_lagged_loses_no_job_of_a_lease_that_ends_there(directory: Path) -> None:
    """The client's connection stays as it is; what was settled before is not there any more."""
    with ExitStack() as undo:
        server = undo.enter_context(PostgresServer())
        dsn = server.make_database()
        standby = undo.enter_context(server.add_standby())
        pooler = undo.enter_context(Pooler(dsn, directory))
        app = undo.enter_context(closing(App(pooler.dsn)))
        task = app.task(name="mail")(mail)
        queue = undo.enter_context(app.queue())
        with psycopg.connect(dsn, autocommit=True) as connection:
            ids = [task.using(connection).enqueue(to).id for to in "abc"]
            first, second, third = queue.claim(3)
            connection.execute("create table behind_the_claim ()")  # which alone is not flushed at once
        standby.wait_caught_up(server)
        standby.stop()
        queue.succeed(first)
        queue.succeed(second)
        queue.claim(0)
        server.stop()
        standby.start()
        standby.promote()
        promoted = make_conninfo(dsn, port=standby.port)
        pooler.lead_to(promoted)
        queue.succeed(third)
        queue.claim(0)
        with psycopg.connect(promoted, autocommit=True) as connection:
            statuses = "select array_agg(pgworker.job_status(id) order by id) from unnest(%s::uuid[]) as id"
            assert ask(connection, statuses, ids) == [["pending", "pending", "succeeded"]]
            assert ask(connection, "select count(*) from pgworker.job_leases") == [0]


def mail(to: str) -> None: ...
