"""Jobs in the transactions of SQLAlchemy and Django: theirs to commit, to roll back, and to undo to a savepoint."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from pgworker import App, JobNotFound, Status, Task
from tests.sql.actors import Connect, ask
from tests.sql.test_enqueue_api import run_program


@pytest.fixture
def app(dsn: str) -> Iterator[App]:
    opened = App(dsn)

    @opened.task(name="mail")
    def mail(to: str) -> None: ...

    yield opened
    opened.close()


@pytest.fixture
def task(app: App) -> Task[..., Any]:
    return app.tasks["mail"]


def url_of(dsn: str) -> URL:
    words = conninfo_to_dict(dsn)
    query = {"host": str(words["host"])}
    return URL.create("postgresql+psycopg", username=str(words["user"]), database=str(words["dbname"]), query=query)


@pytest.fixture
def engine(dsn: str) -> Iterator[Engine]:
    made = create_engine(url_of(dsn))
    yield made
    made.dispose()


@asynccontextmanager
async def async_engine(dsn: str) -> AsyncIterator[AsyncEngine]:
    made = create_async_engine(url_of(dsn))
    try:
        yield made
    finally:
        await made.dispose()


@pytest.fixture
def stored(connect: Connect) -> Callable[[], list[str]]:
    """To whom the jobs are that another connection sees, in their order."""
    other = connect()
    other.execute("create table orders (id integer)")
    return lambda: ask(
        other, "select payload ->> 'to' from pgworker.jobs join pgworker.job_queue on job_id = id order by id"
    )


Stored = Callable[[], list[str]]


# -- SQLAlchemy


def test_a_session_commits_and_rolls_back_jobs_with_its_own_rows(
    engine: Engine, task: Task[..., Any], stored: Stored
) -> None:
    with Session(engine) as session:
        job = task.using(session).enqueue("committed")
        session.execute(text("insert into orders values (1)"))
        with pytest.raises(JobNotFound):
            job.status()
        session.commit()
        assert job.status() is Status.PENDING
        session.execute(text("insert into orders values (2)"))
        task.using(session).enqueue("rolled back")
        session.rollback()
        assert session.execute(text("select id from orders")).all() == [(1,)]
    with suppress(ZeroDivisionError), Session(engine) as session, session.begin():
        task.using(session).enqueue("lost with the error")
        raise ZeroDivisionError
    assert stored() == ["committed"]


def test_one_that_is_used_again_enqueues_in_the_transaction_it_is_in_then(
    engine: Engine, task: Task[..., Any], stored: Stored
) -> None:
    with Session(engine) as session:
        mail = task.using(session)
        mail.enqueue("first")
        session.commit()
        mail.enqueue("second")
        session.rollback()
        mail.options(priority=9).enqueue("third")
        session.commit()
    assert stored() == ["first", "third"]


def test_a_savepoint_of_a_session_undoes_its_jobs_alone(engine: Engine, task: Task[..., Any], stored: Stored) -> None:
    with Session(engine) as session, session.begin():
        task.using(session).enqueue("before")
        with session.begin_nested() as savepoint:
            task.using(session).enqueue("undone")
            savepoint.rollback()
        with session.begin_nested():
            task.using(session).enqueue("kept")
    assert stored() == ["before", "kept"]


def test_a_scoped_session_is_the_session_of_its_thread(engine: Engine, task: Task[..., Any], stored: Stored) -> None:
    session = scoped_session(sessionmaker(engine))
    mail = task.using(session)
    mail.enqueue("rolled back")
    session.rollback()
    mail.enqueue("committed")
    session.commit()
    session.remove()
    assert stored() == ["committed"]


def test_a_connection_commits_a_job_even_if_nothing_else_began_its_transaction(
    engine: Engine, task: Task[..., Any], stored: Stored
) -> None:
    with engine.connect() as connection:
        task.using(connection).enqueue("committed")
        assert stored() == []
        connection.commit()
        task.using(connection).enqueue("rolled back")
        connection.rollback()
        task.using(connection).enqueue("left open")
    with engine.begin() as connection:
        task.using(connection).enqueue("begun")
        with connection.begin_nested() as savepoint:
            task.using(connection).enqueue("undone")
            savepoint.rollback()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        task.using(connection).enqueue("at once")
        assert stored() == ["committed", "begun", "at once"]


def test_a_bulk_goes_where_a_single_job_goes(engine: Engine, app: App, task: Task[..., Any], stored: Stored) -> None:
    with Session(engine) as session:
        app.enqueue_many([task.job(str(number)) for number in range(1500)], session)
        session.rollback()
        app.enqueue_many([task.job(str(number)) for number in range(1500)], session)
        session.commit()
    assert sorted(map(int, stored())) == list(range(1500))


def test_asynchronous_sessions_and_connections_commit_and_roll_back_jobs(
    dsn: str, app: App, task: Task[..., Any], stored: Stored
) -> None:
    async def enqueue() -> None:
        async with async_engine(dsn) as engine:
            async with AsyncSession(engine) as session:
                await task.using(session).enqueue_async("session")
                await session.execute(text("insert into orders values (1)"))
                await session.commit()
                await task.using(session).enqueue_async("rolled back")
                await session.rollback()
                async with session.begin():
                    async with session.begin_nested() as savepoint:
                        await task.using(session).enqueue_async("undone")
                        await savepoint.rollback()
                    await app.enqueue_many_async([task.job("many")], session)
            scoped = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
            await task.using(scoped).enqueue_async("scoped")
            await scoped.commit()
            await scoped.remove()
            async with engine.connect() as connection:
                await task.using(connection).enqueue_async("connection")
                await connection.commit()
                await task.using(connection).enqueue_async("left open")
            async with engine.begin() as connection:
                await task.using(connection).enqueue_async("begun")

    asyncio.run(enqueue())
    assert stored() == ["session", "many", "scoped", "connection", "begun"]


def test_synchronous_and_asynchronous_are_not_mixed_up(
    engine: Engine, dsn: str, app: App, task: Task[..., Any], stored: Stored
) -> None:
    async def mix() -> None:
        async with async_engine(dsn) as asynchronous:
            async with AsyncSession(asynchronous) as session, asynchronous.connect() as connection:
                for target in (session, connection):
                    with pytest.raises(TypeError, match="is asynchronous: use `await …"):
                        task.using(target).enqueue("x")
                with pytest.raises(TypeError, match="is asynchronous"):
                    await session.run_sync(lambda inner: task.using(inner).enqueue("x"))
            with Session(engine) as inner, pytest.raises(TypeError, match=r"is synchronous: use `\.enqueue\(\)`"):
                await task.using(inner).enqueue_async("x")

    asyncio.run(mix())
    assert stored() == []


def test_another_driver_is_a_type_error_that_says_which_to_use(app: App, task: Task[..., Any]) -> None:
    advice = r"psycopg 3, not sqlite3\.Connection: make the engine of SQLAlchemy with postgresql\+psycopg://"
    engine = create_engine("sqlite://")
    with Session(engine) as session:
        with pytest.raises(TypeError, match=advice):
            task.using(session).enqueue("x")
        with pytest.raises(TypeError, match=advice):
            app.enqueue_many([task.job("x")], session.connection())
    engine.dispose()
    with sqlite3.connect(":memory:") as connection, pytest.raises(TypeError, match=r"not sqlite3\.Cursor"):
        task.using(connection.cursor())
    connection.close()
    for target in ("postgresql://", None, object(), engine):
        with pytest.raises(
            TypeError, match=r"a connection or cursor of psycopg 3, a session or connection of SQLAlchemy"
        ):
            task.using(target)  # type: ignore[arg-type]


def test_an_error_of_the_job_leaves_the_session_as_any_error_of_a_statement_does(
    engine: Engine, task: Task[..., Any], stored: Stored
) -> None:
    with Session(engine) as session:
        session.execute(text("set transaction read only"))
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            task.using(session).enqueue("x")
        session.rollback()
        task.using(session).enqueue("y")
        session.commit()
    assert stored() == ["y"]


# -- Django: one set of settings per process, so each program is one of its own

DJANGO = """
import sys
import django
from django.conf import settings
from django.db import connection, transaction
from psycopg.conninfo import conninfo_to_dict
from pgworker import App

words = conninfo_to_dict(sys.argv[1])
ours = {"NAME": words["dbname"], "USER": words["user"], "HOST": words["host"]}
settings.configure(DATABASES={
    "default": {"ENGINE": "django.db.backends.postgresql", **ours},
    "other": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
})
django.setup()
app = App(sys.argv[1])

@app.task(name="mail")
def mail(to: str): ...
"""


def test_djangos_connection_commits_and_rolls_back_jobs_with_its_own_rows(dsn: str, stored: Stored) -> None:
    program = """
with transaction.atomic():
    job = mail.using(connection).enqueue("committed")
    with connection.cursor() as cursor:
        cursor.execute("insert into orders values (1)")
        assert app.enqueue_many([mail.job("many")], connection)
    try:
        print(job.status())
    except LookupError:
        print("not yet")
print(job.status().value)
try:
    with transaction.atomic():
        mail.using(connection).enqueue("rolled back")
        raise KeyError
except KeyError:
    pass
with transaction.atomic():
    mail.using(connection).enqueue("before")
    try:
        with transaction.atomic():
            mail.using(connection).enqueue("undone")
            raise KeyError
    except KeyError:
        pass
mail.using(connection).enqueue("at once")
connection.close()
with transaction.atomic():
    mail.using(connection).enqueue("connected anew")
"""
    assert run_program(DJANGO + program, dsn) == "not yet\npending\n"
    assert stored() == ["committed", "many", "before", "at once", "connected anew"]


def test_djangos_other_databases_are_told_apart(dsn: str, stored: Stored) -> None:
    program = """
from django.db import connections
mail.using(connections["default"]).enqueue("default")
try:
    mail.using(connections["other"]).enqueue("other")
except TypeError as error:
    print(error)
"""
    assert "or install psycopg 3 for Django's PostgreSQL" in run_program(DJANGO + program, dsn)
    assert stored() == ["default"]


def test_neither_is_imported_for_those_who_use_neither(dsn: str) -> None:
    program = """
import sys
import psycopg
from pgworker import App
app = App(sys.argv[1])
@app.task(name="mail")
def mail(to: str): ...
with psycopg.connect(sys.argv[1]) as connection:
    mail.using(connection).enqueue("a")
try:
    mail.using(object())
except TypeError:
    print(*[name for name in ("sqlalchemy", "django") if name in sys.modules], "none")
"""
    assert run_program(program, dsn) == "none\n"
