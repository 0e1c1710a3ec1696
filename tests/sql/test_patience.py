"""Whoever waits for an answer of the database waits for so long and no longer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from pgworker import App, OutcomeUnknown, WaitTimeout
from pgworker.app.queue.postgres import PostgresQueue
from pgworker.config.settings import PoolSettings
from pgworker.db.connect import connect as connect_to
from pgworker.db.connect import connect_async, connect_to_schema, explain
from pgworker.db.patience import Patience, Silence
from pgworker.errors import DatabaseUnavailable
from pgworker.lifecycle.claim import Lanes
from pgworker.linux.board import Board
from pgworker.worker.link import Link
from tests.chaos.pooler import Pooler
from tests.chaos.proxy import Proxy
from tests.process.pool import eventually

NAME = "somebody"
LOCK = "lock table pgworker.jobs, pgworker.job_queue, pgworker.job_leases, pgworker.queues in access exclusive mode"
WAITING = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"

ASKED: dict[str, Callable[[App], object]] = {
    "enqueue": lambda app: app.tasks["mail"].enqueue("late"),
    "enqueue several thousand": lambda app: app.enqueue_many([app.tasks["mail"].job("late")] * 2500),
    "enqueue several thousand of a task": lambda app: app.tasks["mail"].enqueue_many([{"to": "late"}] * 2500),
    "cancel a job": lambda app: app.job(str(uuid4())).cancel(),
    "cancel many": lambda app: app.cancel(task="mail"),
    "purge": lambda app: app.purge("default"),
    "status": lambda app: app.job(str(uuid4())).status(),
    "progress": lambda app: app.job(str(uuid4())).progress(),
    "pause": lambda app: app.pause("default"),
    "resume": lambda app: app.resume("default"),
}
"""What an App does on its own connections."""


@pytest.fixture
def proxy(blank_dsn: str) -> Iterator[Proxy]:
    with Proxy.before(blank_dsn) as started:
        yield started


def test_silence_ends_the_wait_and_the_connection(proxy: Proxy, blank_dsn: str) -> None:
    connection = connect_to(proxy.dsn(blank_dsn), application_name=NAME, patience=0.5)
    proxy.blackhole()
    with pytest.raises(Silence, match=r"no answer within 0\.5 s") as raised:
        connection.execute("select 1")
    assert connection.closed
    assert isinstance(explain(raised.value, blank_dsn), DatabaseUnavailable)


def test_silence_in_a_pipeline_or_transaction_is_waited_for_once(
    proxy: Proxy, blank_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect_to(proxy.dsn(blank_dsn), application_name=NAME, patience=1.0)
    proxy.blackhole()
    with pytest.raises(Silence), connection.pipeline(), connection.transaction():
        connection.execute("select 1").fetchone()
    assert connection.closed
    ends = [message for message in caplog.messages if message.startswith("error ignored")]
    assert ends, "psycopg tells how pipeline and transaction ended"
    assert not [end for end in ends if "no answer" in end]


def test_silence_on_an_event_loop_ends_the_wait_and_the_connection(proxy: Proxy, blank_dsn: str) -> None:
    async def ask() -> None:
        connection = await connect_async(proxy.dsn(blank_dsn), application_name=NAME, patience=0.5)
        proxy.blackhole()
        with pytest.raises(Silence):
            await connection.execute("select 1")
        assert connection.closed

    asyncio.run(ask())


def test_a_large_answer_on_a_slow_line_is_waited_for(proxy: Proxy, blank_dsn: str) -> None:
    with connect_to(proxy.dsn(blank_dsn), application_name=NAME, patience=1.0) as connection:
        proxy.throttle(20_000)
        began = time.monotonic()
        assert connection.execute("select repeat('x', 60000)").fetchone() == ("x" * 60_000,)
        assert time.monotonic() - began > 2.0


def test_a_byte_a_second_is_no_answer(proxy: Proxy, blank_dsn: str) -> None:
    connection = connect_to(proxy.dsn(blank_dsn), application_name=NAME, patience=1.5)
    proxy.throttle(1)
    with pytest.raises(Silence):
        connection.execute("select 1")


def test_without_a_limit_an_answer_is_waited_for(blank_dsn: str) -> None:
    with connect_to(blank_dsn, application_name=NAME) as connection:
        connection.patience = 0.2
        with pytest.raises(Silence):
            connection.execute("select pg_sleep(1)")
    with connect_to(blank_dsn, application_name=NAME) as connection:
        assert connection.execute("select pg_sleep(0.5), 1").fetchone() == ("", 1)


def test_a_trip_that_a_lock_holds_up_is_given_up_by_the_server_and_leaves_no_claim_behind(
    dsn: str, connect: Callable[[], psycopg.Connection[Any]]
) -> None:
    board = Board(1, 1)
    [row] = board.rows
    row.reset(uuid4(), time.monotonic_ns())
    other = connect()
    with connect_to_schema(dsn, application_name=NAME, prepare_threshold=None, patience=1.0) as connection:
        lanes = Lanes.of(["default"])
        queue = PostgresQueue(lambda: connection, row=row, floors=board.floors, lanes=lanes, tasks={}, lease_ttl=60)
        with other.transaction():
            other.execute("lock table pgworker.job_queue in access exclusive mode")
            with pytest.raises(psycopg.errors.QueryCanceled):
                queue.claim(1)
        assert not queue.has_lost_claims
        assert connection.info.transaction_status is TransactionStatus.IDLE
        assert queue.claim(1) == []


@pytest.fixture(params=["PostgreSQL", "a pooler"])
def app(request: pytest.FixtureRequest, dsn: str) -> Iterator[App]:
    """One that waits 5 s for each answer, of PostgreSQL itself and through PgBouncer with one connection for all."""
    with ExitStack() as undo:
        if request.param == "a pooler":
            pooler = Pooler(dsn, request.getfixturevalue("directory"), pool_size=1)
            dsn = undo.enter_context(pooler).dsn
        opened = undo.enter_context(closing(App(dsn)))
        opened._connections.waits.for_answer = 5.0
        opened.task(name="mail")(mail)
        yield opened


def mail(to: str) -> None: ...


def look(connection: psycopg.Connection[Any], statement: str) -> Any:
    row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("asked", ASKED)
def test_what_an_app_gives_up_behind_a_lock_is_not_done_later(
    app: App, asked: str, connect: Callable[[], psycopg.Connection[Any]]
) -> None:
    other = connect()
    app.tasks["mail"].enqueue("before")
    with other.transaction():
        other.execute(LOCK)
        with pytest.raises(DatabaseUnavailable, match="It was undone") as raised:
            ASKED[asked](app)
        assert not isinstance(raised.value, OutcomeUnknown)
        assert look(connect(), WAITING) == 0
    assert look(other, "select count(*) from pgworker.job_queue") == 1
    assert look(other, "select count(*) from pgworker.queues where paused") == 0
    app.tasks["mail"].enqueue("after")


def test_a_wait_asks_again_when_a_lock_was_in_the_way(app: App, connect: Callable[[], psycopg.Connection[Any]]) -> None:
    other = connect()
    job = app.tasks["mail"].enqueue("a")
    with other.transaction():
        other.execute(LOCK)
        with pytest.raises(WaitTimeout, match="It was undone"):
            job.wait(timeout=8.0)
    job.cancel()
    assert look(other, WAITING) == 0


@pytest.mark.parametrize("app", ["a pooler"], indirect=True)
def test_nobody_else_gets_the_limits_of_an_app_through_a_pooler(app: App) -> None:
    for ask in ("enqueue", "enqueue several thousand", "cancel many", "purge", "pause", "resume"):
        ASKED[ask](app)
    with connect_to(app.dsn, application_name=NAME, prepare_threshold=None) as stranger:
        assert look(stranger, "show statement_timeout") == "0"


def test_the_server_keeps_the_statements_of_an_app_unless_a_pooler_is_in_between(
    app: App, request: pytest.FixtureRequest
) -> None:
    for _ in range(20):
        ASKED["enqueue"](app)
    with app._connections.connection() as connection:
        kept = look(connection, "select count(*) from pg_prepared_statements where statement ~ 'enqueue'")
    assert kept == (0 if "[a pooler]" in request.node.name else 1)


def test_a_role_that_waits_less_long_goes_on_to(app: App, connect: Callable[[], psycopg.Connection[Any]]) -> None:
    other = connect()
    database = look(other, "select current_database()")
    other.execute(f"alter database {database} set statement_timeout = '123ms'".encode())
    with other.transaction():
        other.execute(LOCK)
        with app._connections.statement() as connection:
            assert look(connection, "show statement_timeout") == "123ms"


def test_an_enqueue_without_an_answer_is_of_unknown_outcome_and_may_be_done_yet(
    proxy: Proxy, dsn: str, connect: Callable[[], psycopg.Connection[Any]]
) -> None:
    other = connect()
    app = App(proxy.dsn(dsn))
    task = app.task(name="mail")(mail)
    with ThreadPoolExecutor(1) as another:
        with other.transaction():
            other.execute(LOCK)
            enqueued = another.submit(task.enqueue, "late")
            eventually(lambda: look(connect(), WAITING) == 1, "an enqueue behind the lock")
            proxy.cut()
            with pytest.raises(OutcomeUnknown, match="may have been done, or be done yet"):
                enqueued.result()
        eventually(lambda: look(other, "select count(*) from pgworker.job_queue") == 1, "the job that nobody heard of")
    app.close()


def test_patience_doubles_until_something_is_answered() -> None:
    patience = Patience(lease_ttl=60, longest=60)
    assert patience.seconds == 10
    patience.after(psycopg.OperationalError("refused"))
    assert patience.seconds == 10
    patience.after(Silence("no answer"))
    patience.after(psycopg.errors.QueryCanceled("statement timeout"))
    assert patience.seconds == 40
    for _ in range(20):
        patience.after(Silence("no answer"))
    assert patience.seconds == 60


def test_a_connection_that_was_given_more_time_has_no_more_than_others_once_it_has_answered(blank_dsn: str) -> None:
    patience = Patience(lease_ttl=60, longest=60)
    patience.after(Silence("no answer"))
    with connect_to(blank_dsn, application_name=NAME, patience=patience.seconds) as connection:
        assert connection.patience == 20
        patience.answered(connection)
        assert (patience.seconds, connection.patience) == (10, 10)


def test_the_server_gives_a_clerk_that_has_been_answered_no_more_time_than_he_waits(dsn: str) -> None:
    [row] = Board(1, 1).rows
    row.reset(uuid4(), time.monotonic_ns())
    link = Link(dsn, NAME, PoolSettings(workers=1), row, tasks={}, hooks=[])
    link.fail(Silence("no answer"))
    link.open()
    assert look(link.connection(), "show statement_timeout") == "16s"
    link.has_answered()
    link.open()
    assert look(link.connection(), "show statement_timeout") == "8s"
    link.close()


def test_who_can_connect_but_is_refused_what_he_asks_for_comes_back_ever_less_often(dsn: str) -> None:
    [row] = Board(1, 1).rows
    row.reset(uuid4(), time.monotonic_ns())
    link = Link(dsn, NAME, PoolSettings(workers=1), row, tasks={}, hooks=[])
    refused = psycopg.errors.InsufficientPrivilege("permission denied for table job_queue")

    def fail() -> float:
        link.open()
        return link.fail(refused)

    pauses = [fail() for _ in range(7)]
    assert pauses[0] <= 0.2
    assert 1 <= pauses[-1] <= 2
    link.open()
    link.has_answered()
    assert fail() <= 0.2
    link.close()


@pytest.mark.parametrize(("ttl", "most"), [(60, 20), (12, 4), (6, 3)])
def test_who_renews_leases_waits_for_no_answer_for_longer_than_they_can(ttl: float, most: float) -> None:
    patience = Patience(ttl, longest=ttl / 3)
    for _ in range(20):
        patience.after(Silence("no answer"))
    assert patience.seconds == most


def test_who_has_short_leases_waits_less_long() -> None:
    assert [Patience(ttl, longest=ttl).seconds for ttl in (600, 60, 20, 12, 6)] == [10, 10, 5, 3, 3]
