"""Where jobs go: the caller's transaction, or the App's own connections through restarts, forks and outages."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections import UserDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.abc import Buffer, Loader
from psycopg.conninfo import make_conninfo
from psycopg.types.string import ByteaBinaryLoader

import pgworker
from pgworker import (
    App,
    ConfigurationError,
    DatabaseUnavailable,
    InvalidJob,
    InvalidPayload,
    JobHandle,
    JobRequest,
    SchemaError,
    Task,
)
from pgworker.app import producer
from pgworker.app.task import Enqueuer
from pgworker.db import embedded
from pgworker.db.migrate import migrate

Connect = Callable[[], psycopg.Connection[Any]]

MANY = 17_500  # jobs of more statements than go in one trip


@pytest.fixture
def app(dsn: str) -> Iterator[App]:
    opened = App(dsn)
    opened.task(name="mail")(mail)
    yield opened
    opened.close()


class Viewed(ByteaBinaryLoader):
    def load(self, data: Buffer) -> Any:
        return memoryview(super().load(data))


class Spelt(ByteaBinaryLoader):
    def load(self, data: Buffer) -> Any:
        return bytes(data).hex()


def mail(to: str, weight: float = 1.0) -> float:
    return weight


@pytest.fixture
def task(app: App) -> Task[..., Any]:
    return app.tasks["mail"]


def stored(connection: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    """Ids and receivers of the jobs that another connection sees."""
    query = "select id, payload ->> 'to' from pgworker.jobs join pgworker.job_queue on job_id = id order by id"
    return connection.execute(query).fetchall()


def producers(connection: psycopg.Connection[Any]) -> int:
    """How many connections of Apps the database has."""
    row = connection.execute(
        "select count(*) from pg_stat_activity where application_name = %s and datname = current_database()",
        ["pgworker producer"],
    ).fetchone()
    assert row
    return int(row[0])


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_enqueue_is_committed_when_it_returns_the_id(task: Task[..., Any], connect: Connect) -> None:
    job = task.enqueue("a@b")
    assert stored(connect()) == [(job.id, "a@b")]


def test_every_option_is_stored_as_it_was_written(task: Task[..., Any], connect: Connect) -> None:
    other = connect()
    row = other.execute("select pgworker.uuid7(clock_timestamp())").fetchone()
    assert row
    at = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=1)
    chosen = task.options(
        id=row[0], queue="fast", priority=9, max_attempts=3, org_id="acme", headers={"trace": "1"}, run_at=at
    )
    assert chosen.options(timeout=timedelta(seconds=1.5)).enqueue(to="a").id == row[0]
    columns = "task, payload, queue, priority, max_attempts, org_id, headers, run_at, timeout_ms"
    assert other.execute(f"select {columns} from pgworker.jobs").fetchone() == (
        *("mail", {"to": "a"}, "fast", 9, 3, "acme", {"trace": "1"}, at, 1500),
    )


def test_a_job_with_a_delay_is_stored_for_so_long_after_its_enqueue(
    task: Task[..., Any], dsn: str, connect: Connect
) -> None:
    later = task.options(delay=timedelta(hours=1))

    async def enqueue() -> UUID:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            return (await later.using(connection).enqueue_async("b")).id

    ids = [later.enqueue("a").id, asyncio.run(enqueue())]
    rows = connect().execute("select id, run_at > created_at + interval '59 minutes' from pgworker.jobs order by id")
    assert rows.fetchall() == [(job_id, True) for job_id in ids]


def test_using_a_connection_or_cursor_enqueues_in_its_transaction(
    task: Task[..., Any], dsn: str, connect: Connect
) -> None:
    other = connect()
    with psycopg.connect(dsn) as connection:
        task.using(connection).enqueue("rolled back")
        connection.rollback()
        task.using(connection.cursor()).options(priority=1).enqueue("committed")
        assert stored(other) == []
    assert [to for _, to in stored(other)] == ["committed"]
    assert producers(other) == 0


def test_an_async_connection_or_cursor_is_used_the_same_way_and_none_at_all_too(
    task: Task[..., Any], dsn: str, connect: Connect
) -> None:
    async def enqueue() -> list[UUID]:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await task.using(connection).enqueue_async("rolled back")
            await connection.rollback()
            return [
                (await task.using(connection).enqueue_async("a")).id,
                (await task.using(connection.cursor()).enqueue_async("b")).id,
                (await task.enqueue_async("c")).id,
            ]

    ids = asyncio.run(enqueue())
    assert sorted(stored(connect())) == sorted(zip(ids, "abc", strict=True))


def test_a_connection_of_the_wrong_kind_is_a_type_error_that_names_the_right_call(
    task: Task[..., Any], app: App, dsn: str, connect: Connect
) -> None:
    async def cross() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            with pytest.raises(TypeError, match="enqueue_async"):
                task.using(connection).enqueue("a")
            with pytest.raises(TypeError, match="enqueue_async"):
                app.enqueue_many([task.job("a")], connection)
            with pytest.raises(TypeError, match=r"use `\.enqueue\(\)`"):
                await task.using(connect()).enqueue_async("a")
            with pytest.raises(TypeError, match=r"or `\.enqueue_many\(\)`"):
                await app.enqueue_many_async([task.job("a")], connect())

    asyncio.run(cross())
    assert stored(connect()) == []


@pytest.mark.parametrize("own", [True, False])
def test_many_jobs_are_stored_in_order_a_thousand_per_statement_and_all_or_none(
    own: bool, app: App, task: Task[..., Any], connect: Connect
) -> None:
    connection = None if own else connect()
    handles = app.enqueue_many((task.job(str(i)) for i in range(MANY)), connection)
    assert dict(stored(connect())) == {job.id: str(i) for i, job in enumerate(handles)}
    with pytest.raises(InvalidJob, match="PostgreSQL refused the job"):
        app.enqueue_many([*(task.job("x") for _ in range(MANY)), JobRequest("not a name", "{}")], connection)
    assert len(stored(connect())) == MANY
    assert app.enqueue_many([], connection) == []


# -- many jobs of one task


def numbered(jobs: int) -> Iterator[dict[str, Any]]:
    return ({"to": str(number)} for number in range(jobs))


def spoiled(jobs: int) -> Iterator[dict[str, Any]]:
    """The last one can't be stored."""
    return ({"to": str(number) if number < jobs - 1 else object()} for number in range(jobs))


@pytest.mark.parametrize("own", [True, False])
def test_many_jobs_of_a_task_are_stored_in_order_and_all_or_none(
    own: bool, task: Task[..., Any], connect: Connect
) -> None:
    door = task if own else task.using(connect())
    handles = door.enqueue_many(numbered(MANY))
    assert stored(connect()) == [(job.id, str(i)) for i, job in enumerate(handles)]
    for jobs in (2, 1500, MANY):
        with pytest.raises(InvalidPayload, match=rf"argument 'to' can't be stored.*number {jobs - 1}, counted from 0"):
            door.enqueue_many(spoiled(jobs))
    assert len(stored(connect())) == MANY
    assert door.enqueue_many([]) == []
    door.enqueue_many([{"to": "last"}])
    assert stored(connect())[-1][1] == "last"


@pytest.mark.parametrize("own", [True, False])
def test_many_jobs_of_a_task_are_stored_asynchronously_all_or_none(
    own: bool, task: Task[..., Any], dsn: str, connect: Connect
) -> None:
    async def enqueue() -> list[JobHandle[Any]]:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as opened:
            door = task if own else task.using(opened)
            with pytest.raises(InvalidPayload, match="number 3999"):
                await door.enqueue_many_async(spoiled(4000))
            assert await door.enqueue_many_async([]) == []
            return await door.enqueue_many_async(numbered(MANY))

    handles = asyncio.run(enqueue())
    assert stored(connect()) == [(job.id, str(i)) for i, job in enumerate(handles)]


def test_a_callers_transaction_is_as_it_was_when_one_of_many_jobs_cannot_be_stored(
    task: Task[..., Any], dsn: str, connect: Connect
) -> None:
    async def fail(connection: psycopg.AsyncConnection[Any]) -> None:
        async with connection:
            await task.using(connection).enqueue_async("async, before")
            with pytest.raises(InvalidPayload):
                await task.using(connection).enqueue_many_async(spoiled(5000))

    async def enqueue() -> None:
        await fail(await psycopg.AsyncConnection.connect(dsn))

    with psycopg.connect(dsn) as connection:
        task.using(connection).enqueue("before")
        with pytest.raises(InvalidPayload):
            task.using(connection).enqueue_many(spoiled(5000))
        task.using(connection).enqueue_many(numbered(2500))
        connection.execute("savepoint here")
        task.using(connection).enqueue_many(numbered(2500))
        connection.execute("rollback to here")
        assert stored(connect()) == []
    asyncio.run(enqueue())
    assert [to for _, to in stored(connect())] == ["before", *(str(i) for i in range(2500)), "async, before"]


class Interrupted(BaseException):
    """Ctrl-C, a time limit: what no code of ours catches."""


def test_nothing_is_left_of_many_jobs_in_a_callers_transaction_whatever_ends_their_enqueue(
    task: Task[..., Any], dsn: str, connect: Connect
) -> None:
    """More than one trip has gone by then."""
    with psycopg.connect(dsn) as connection:
        for _ in range(2):  # as what begins the transaction, and later in it
            with pytest.raises(Interrupted):
                task._sender.producer.enqueue_alike(task.job("a"), interrupted(task), connection)
            assert connection.info.transaction_status is psycopg.pq.TransactionStatus.INTRANS
            task.using(connection).enqueue("beside")
    assert [to for _, to in stored(connect())] == ["beside"] * 2


def interrupted(task: Task[..., Any]) -> Iterator[str]:
    yield from (task.job(**named).payload for named in numbered(MANY))
    raise Interrupted


def test_what_makes_the_arguments_of_many_jobs_runs_outside_of_their_transaction(
    task: Task[..., Any], connect: Connect
) -> None:
    connection = connect()

    def slow() -> Iterator[dict[str, Any]]:
        for named in numbered(5000):
            assert connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
            yield named

    assert len(task.using(connection).enqueue_many(slow())) == 5000


def test_many_jobs_of_a_task_have_its_options_the_org_and_the_delay_in_common(
    app: App, task: Task[..., Any], connect: Connect
) -> None:
    chosen = task.options(queue="fast", priority=9, max_attempts=3, headers={"trace": "1"}, delay=3600, timeout=1.5)
    with app.org("acme"):
        assert len({str(job) for job in chosen.enqueue_many([{"to": "a"}, {"to": "b", "weight": 2.5}])}) == 2
    columns = (
        "payload, queue, priority, max_attempts, org_id, headers, timeout_ms, run_at > now() + interval '59 minutes'"
    )
    assert connect().execute(f"select {columns} from pgworker.jobs order by id").fetchall() == [
        (payload, "fast", 9, 3, "acme", {"trace": "1"}, 1500, True)
        for payload in ({"to": "a"}, {"to": "b", "weight": 2.5})
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        (
            [{"to": "a"}, ("b",)],
            TypeError,
            r"a mapping of names to values, not tuple \(arguments number 1, counted from 0\)",
        ),
        (
            [{"to": "a"}, {"too": "b"}],
            TypeError,
            r"unexpected keyword argument 'too'; did you mean 'to'\? \(arguments number 1",
        ),
        ([{"to": "a"}, {}], TypeError, r"missing a required argument: 'to' \(arguments number 1"),
        ([{"to": 7}], InvalidPayload, r"'to' would not decode as str .*\(arguments number 0"),
        ([{7: "a"}], TypeError, r"\(arguments number 0"),
    ],
)
def test_arguments_of_many_jobs_that_do_not_fit_are_named_by_their_place(
    arguments: Any, error: type[Exception], complaint: str, task: Task[..., Any], connect: Connect
) -> None:
    with pytest.raises(error, match=complaint):
        task.enqueue_many(arguments)
    with pytest.raises(InvalidJob, match="the option id is that of one job"):
        task.options(id=task.enqueue("a").id).enqueue_many([])
    assert [to for _, to in stored(connect())] == ["a"]


def test_arguments_of_many_jobs_may_be_any_mappings_and_one_that_changes(
    task: Task[..., Any], connect: Connect
) -> None:
    task.enqueue_many([MappingProxyType({"to": "a"}), UserDict(to="b")])
    one: dict[str, str] = {}

    def reused() -> Iterator[dict[str, str]]:
        for to in "cde":
            one["to"] = to
            yield one

    task.enqueue_many(reused())
    assert [to for _, to in stored(connect())] == ["a", "b", "c", "d", "e"]


def test_none_of_many_jobs_are_enqueued_without_asking_the_database(
    app: App, task: Task[..., Any], connect: Connect
) -> None:
    with connect() as connection:
        pass
    assert connection.closed
    assert task.using(connection).enqueue_many([]) == app.enqueue_many([], connection) == []


@pytest.mark.parametrize("loader", [Viewed, Spelt])
def test_a_connection_with_loaders_of_its_own_is_used_as_any_other(
    loader: type[Loader], task: Task[..., Any], connect: Connect
) -> None:
    connection = connect()
    connection.adapters.register_loader("bytea", loader)
    handles = [task.using(connection).enqueue("a"), *task.using(connection).enqueue_many([{"to": "b"}])]
    assert [(handle.id, to) for handle, to in zip(handles, "ab", strict=True)] == stored(connect())


# -- what is refused, or not quite what it seems


class Urgency(int, Enum):
    HIGH = 9


def test_a_priority_that_has_a_name_is_stored_as_its_number_alone_and_among_many(app: App, connect: Connect) -> None:
    db, request = connect(), JobRequest("t", "{}", priority=Urgency.HIGH)
    app.enqueue_many([request], db)
    app.enqueue_many([request, request], db)
    assert db.execute("select array_agg(priority::integer) from pgworker.jobs").fetchone() == ([9, 9, 9],)


def test_many_jobs_on_an_async_connection_are_stored_in_order_and_his_to_commit(
    app: App, task: Task[..., Any], dsn: str, connect: Connect
) -> None:
    async def enqueue() -> list[UUID]:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await app.enqueue_many_async((task.job(str(i)) for i in range(MANY)), connection)
            await connection.rollback()
            jobs = await app.enqueue_many_async((task.job(str(i)) for i in range(MANY)), connection)
            return [job.id for job in jobs]

    ids = asyncio.run(enqueue())
    assert dict(stored(connect())) == {job_id: str(i) for i, job_id in enumerate(ids)}


def test_many_jobs_in_the_callers_transaction_are_his_to_commit(
    app: App, task: Task[..., Any], dsn: str, connect: Connect
) -> None:
    with psycopg.connect(dsn) as connection:
        app.enqueue_many([task.job(str(i)) for i in range(2500)], connection)
        assert stored(connect()) == []
        connection.rollback()
        app.enqueue_many([task.job("kept")], connection.cursor())
    assert [to for _, to in stored(connect())] == ["kept"]


@pytest.mark.parametrize("own", [True, False])
def test_many_jobs_are_stored_asynchronously_all_or_none(
    own: bool, app: App, task: Task[..., Any], dsn: str, connect: Connect
) -> None:
    async def enqueue() -> list[JobHandle[Any]]:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as opened:
            connection = None if own else opened
            bad = [*(task.job("x") for _ in range(1500)), JobRequest("not a name", "{}")]
            with pytest.raises(InvalidJob, match="PostgreSQL refused the job"):
                await app.enqueue_many_async(bad, connection)
            assert await app.enqueue_many_async([], connection) == []
            return await app.enqueue_many_async((task.job(str(i)) for i in range(1500)), connection)

    handles = asyncio.run(enqueue())
    assert dict(stored(connect())) == {job.id: str(i) for i, job in enumerate(handles)}


def test_a_statement_has_a_thousand_jobs_or_sixteen_megabytes_or_a_single_larger_job(task: Task[..., Any]) -> None:
    small, large, huge = task.job("x"), task.job("x" * (1 << 19)), JobRequest("mail", "x" * (20 << 20))
    sizes = [len(chunk) for chunk in producer.groups_of([*[small] * 2000, *[large] * 40, huge, small])]
    assert sizes == [1000, 1000, 31, 9, 1, 1]


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (JobRequest("mail", "[]"), "a JSON object and take at most 8 MiB"),
        (JobRequest("mail", "{"), "invalid input syntax for type json"),
        (JobRequest("mail", "{}", priority=70_000), "smallint out of range"),
        (JobRequest("mail", "{}", id=UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f")), "within a day"),
    ],
)
def test_a_request_made_by_hand_that_postgresql_refuses_is_an_invalid_job(
    request_: JobRequest, complaint: str, app: App, connect: Connect
) -> None:
    for connection in (None, connect()):
        with pytest.raises(InvalidJob, match=complaint):
            app.enqueue_many([request_], connection)
    assert stored(connect()) == []


def test_the_same_id_is_stored_once(task: Task[..., Any], connect: Connect) -> None:
    job = task.enqueue("a")
    for again in (task.options(id=job.id), task.using(connect()).options(id=job.id)):
        with pytest.raises(InvalidJob, match="one with its id exists already"):
            again.enqueue("b")


def test_other_errors_of_the_callers_connection_stay_psycopgs(task: Task[..., Any], connect: Connect) -> None:
    connection = connect()
    connection.execute("begin read only")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        task.using(connection).enqueue("a")


def test_an_error_of_the_callers_own_in_his_pipeline_stays_psycopgs_and_ours_is_told_from_it(
    task: Task[..., Any], connect: Connect
) -> None:
    connection = connect()
    connection.execute("create temp table ages (age integer check (age > 0))")

    def grow_and_enqueue(age: int, door: Enqueuer[..., Any]) -> None:
        with connection.pipeline():
            connection.execute("insert into ages values (%s)", [age])
            door.enqueue("a")

    with pytest.raises(psycopg.errors.CheckViolation):
        grow_and_enqueue(-1, task.using(connection))
    taken = task.using(connection).enqueue("b")
    with pytest.raises(InvalidJob, match="exists already"):
        grow_and_enqueue(1, task.using(connection).options(id=taken.id))


def test_a_database_without_the_schema_is_told_how_to_get_it(blank_dsn: str) -> None:
    app = App(blank_dsn)
    task = app.task(name="mail")(mail)
    with pytest.raises(SchemaError, match="pgworker migrate"):
        task.enqueue("a")
    with psycopg.connect(blank_dsn) as connection, pytest.raises(SchemaError, match="pgworker migrate"):
        task.using(connection).enqueue("a")
    app.close()


def test_the_dsn_is_looked_for_when_it_is_first_needed(
    dsn: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGWORKER_DSN", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    app = App()
    task = app.task(name="mail")(mail)
    with pytest.raises(ConfigurationError, match=r"PGWORKER_DSN.*`embedded:DIR`"):
        task.enqueue("a")
    monkeypatch.setenv("PGWORKER_DSN", dsn)
    task.enqueue("a")
    app.close()
    assert [to for _, to in stored(connect())] == ["a"]


def test_floats_of_any_size_survive_jsonb(task: Task[..., Any], connect: Connect) -> None:
    connection = connect()
    for weight in (1e300, 5e-324, 0.1, 1e22, -0.0, 1.7976931348623157e308):
        job = task.using(connection).enqueue("a", weight=weight)
        row = connection.execute("select payload::text from pgworker.jobs where id = %s", [job.id]).fetchone()
        assert row
        read = task.invoke(row[0], None, lambda: pytest.fail("nobody asked for the job"))
        assert (read, type(read)) == (weight, float)


def enqueue_at_once(task: Task[..., Any]) -> bool:
    """In eight threads, which takes all connections that an App may open."""
    with ThreadPoolExecutor(8) as executor:
        return all(executor.map(task.enqueue, ["a"] * 80))


def test_all_threads_share_four_connections_that_close_ends(app: App, task: Task[..., Any], connect: Connect) -> None:
    other = connect()
    blocker = connect()
    blocker.execute("begin; lock table pgworker.jobs in exclusive mode")
    with ThreadPoolExecutor(8) as executor:
        waiting = [executor.submit(task.enqueue, "a") for _ in range(8)]
        wait_until(lambda: producers(other) == 4)
        blocker.execute("rollback")
        assert len({job.result() for job in waiting}) == 8
    assert producers(other) == 4
    app.close()
    wait_until(lambda: producers(other) == 0)
    task.enqueue("a")
    assert producers(other) == 1


def test_connections_that_another_thread_closes_a_moment_before_are_no_outage(
    app: App, task: Task[..., Any], connect: Connect
) -> None:
    with ThreadPoolExecutor(4) as executor:
        enqueuing = [executor.submit(lambda: [task.enqueue("a") for _ in range(100)]) for _ in range(4)]
        while not all(each.done() for each in enqueuing):
            app.close()
    assert sum(len(each.result()) for each in enqueuing) == len(stored(connect())) == 400


def test_an_enqueue_that_finds_all_connections_busy_gives_up_and_says_so(
    app: App, task: Task[..., Any], connect: Connect
) -> None:
    app._connections.waits.for_connection = 1.0
    other = connect()
    blocker = connect()
    blocker.execute("begin; lock table pgworker.jobs in exclusive mode")
    with ThreadPoolExecutor(4) as executor:
        waiting = [executor.submit(task.enqueue, "a") for _ in range(4)]
        wait_until(lambda: producers(other) == 4)
        with pytest.raises(DatabaseUnavailable, match="4 connections were all busy"):
            task.enqueue("b")
        blocker.execute("rollback")
        assert len({job.result() for job in waiting}) == 4


def test_a_restart_of_postgresql_is_no_error_of_the_next_enqueue(task: Task[..., Any], connect: Connect) -> None:
    other = connect()
    wait_until(lambda: enqueue_at_once(task) and producers(other) == 4)
    other.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgworker producer'")
    wait_until(lambda: producers(other) == 0)
    task.enqueue("after")
    assert stored(other)[-1][1] == "after"


def test_a_role_that_does_not_exist_is_a_mistake_to_mend_not_an_outage(dsn: str) -> None:
    app = App(make_conninfo(dsn, user="nobody_here", password="s3cret"))
    with pytest.raises(ConfigurationError, match='role "nobody_here" does not exist') as caught:
        app.enqueue_many([JobRequest("mail", "{}")])
    assert "s3cret" not in str(caught.value)
    app.close()


def test_why_no_connection_comes_is_raised_alone_or_with_what_the_caller_was_handling(dsn: str) -> None:
    app = App(make_conninfo(dsn, user="nobody_here"))
    with pytest.raises(ConfigurationError) as caught:
        app.enqueue_many([JobRequest("mail", "{}")])
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    own = ValueError("the caller's own")
    try:
        raise own
    except ValueError:
        with pytest.raises(ConfigurationError) as caught:
            app.enqueue_many([JobRequest("mail", "{}")])
    assert (caught.value.__cause__, caught.value.__context__) == (None, own)
    app.close()


def test_an_enqueue_waits_for_a_starting_postgresql_and_gives_up_silently_on_one_that_is_gone(
    binaries: Path | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="pgworker-tests-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        options = {"fsync": "off", "shared_buffers": "16MB"}
        app = App(f"embedded:{directory}")
        task = app.task(name="mail")(mail)
        with embedded.start(directory, options=options, binaries=binaries) as server:
            migrate(server.dsn)
            enqueue_at_once(task)
        with ThreadPoolExecutor(1) as executor:
            waiting = executor.submit(task.enqueue, "a")
            wait_until(lambda: app._connections._pools.get()._failure)
            assert not waiting.done()
            with embedded.start(directory, options=options, binaries=binaries):
                waiting.result()
        app._connections.waits.for_connection = 1.0
        with pytest.raises(DatabaseUnavailable, match=f"No server is running in {directory}"):
            task.enqueue("b")
        pool = app._connections._pools.get()._connections
        wait_until(lambda: pool.get_stats()["pool_size"] == 0)  # nothing goes on in the background
        app.close()
    assert caplog.messages == []


def test_the_warnings_of_other_pools_are_still_logged(task: Task[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    task.enqueue("a")
    logging.getLogger("psycopg.pool").warning("error connecting in %r: %s", "somebody's", "refused")
    logging.getLogger("psycopg.pool").warning("error connecting in %r: %s", "pgworker producer", "refused")
    assert caplog.messages == ['error connecting in "somebody\'s": refused']


def run_program(text: str, dsn: str) -> str:
    """What the program prints. Its errors and warnings, those at its exit too, are failures."""
    done = subprocess.run(
        # Python 3.12 warns of forks beside threads: that those are safe here is what is being shown.
        [sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", "-c", text, dsn],
        env={"PYTHONPATH": str(Path(pgworker.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


PROGRAM = """
import os, sys
from pgworker import App
app = App(sys.argv[1])
@app.task(name="mail")
def mail(to: str): ...
"""


def test_a_program_that_ends_without_closing_its_app_ends_in_silence_and_leaves_no_thread(
    dsn: str, connect: Connect
) -> None:
    last_word = "import atexit, threading\natexit.register(lambda: print(threading.active_count()))\n"
    assert run_program(last_word + PROGRAM + "mail.enqueue('a')", dsn) == "1\n"  # no thread of the pool is left
    assert len(stored(connect())) == 1


def test_a_forked_child_has_connections_of_its_own_and_leaves_its_parents_alone(dsn: str, connect: Connect) -> None:
    program = """
def backend():
    with app._connections.connection() as connection:
        return connection.info.backend_pid

before = backend()
child = os.fork()
if child == 0:
    mail.enqueue("child")
    print(backend(), flush=True)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
mail.enqueue("parent")
print(before, backend(), flush=True)
"""
    child, parent, after = map(int, run_program(PROGRAM + program, dsn).split())
    assert parent == after != child
    assert [to for _, to in stored(connect())] == ["child", "parent"]


def test_a_child_forked_while_other_threads_enqueue_does_not_hang(dsn: str, connect: Connect) -> None:
    program = """
import threading
stop = threading.Event()
def work():
    while not stop.is_set():
        mail.enqueue("parent")
threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
for _ in range(20):
    with app._connections._pools._lock():
        if (child := os.fork()) == 0:
            mail.enqueue("child")
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
[thread.join() for thread in threads]
"""
    run_program(PROGRAM + program, dsn)
    assert [to for _, to in stored(connect())].count("child") == 20


def test_an_app_that_is_dropped_closes_its_connections(dsn: str, connect: Connect) -> None:
    other = connect()
    app = App(dsn)
    app.task(name="mail")(mail).enqueue("a")
    threads = threading.active_count()
    assert producers(other) == 1
    del app
    gc.collect()
    wait_until(lambda: producers(other) == 0)
    assert threading.active_count() < threads
