"""A look at a database that others go on changing: one moment, and never for long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from pgworker.inspection.jobs import list_jobs
from pgworker.inspection.queues import count_queues
from pgworker.inspection.snapshot import look_no_longer_than, snapshot
from tests.sql.actors import ask, enqueue

Connect = Callable[[], Connection[Any]]

LIMITS = """\
select current_setting('statement_timeout'), current_setting('idle_in_transaction_session_timeout'),
       current_setting('transaction_isolation'), current_setting('transaction_read_only'), current_setting('jit')"""


def test_looks_inside_a_look_see_the_same_moment(connect: Connect) -> None:
    ours, others = connect(), connect()
    with snapshot(ours):
        assert list_jobs(ours) == []
        enqueue(others, 3)
        assert (list_jobs(ours), count_queues(ours)) == ([], [])
    assert len(list_jobs(ours)) == 3


def test_a_look_is_bounded_and_leaves_the_connection_as_it_was(connect: Connect) -> None:
    connection = connect()
    before = connection.execute(LIMITS).fetchall()
    with snapshot(connection):
        assert connection.execute(LIMITS).fetchall() == [("1min", "10s", "repeatable read", "on", "off")]
        look_no_longer_than(connection, 2)
        assert ask(connection, "show statement_timeout") == ["2s"]
    assert connection.execute(LIMITS).fetchall() == before


def test_a_limit_that_somebody_has_set_stays_shorter_or_longer(dsn: str, connect: Connect) -> None:
    blocker = connect()
    hurried, patient = (
        psycopg.connect(make_conninfo(dsn, options=f"-c statement_timeout={limit}"), autocommit=True)
        for limit in ("50ms", "10min")
    )
    with hurried, patient, blocker.transaction():
        with snapshot(patient):
            assert ask(patient, "show statement_timeout") == ["10min"]
        blocker.execute("lock table pgworker.job_queue in access exclusive mode")
        with pytest.raises(psycopg.errors.QueryCanceled):
            list_jobs(hurried)
