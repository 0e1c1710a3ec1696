"""Transactions that end before their time, and trips in sessions of all kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.pq import TransactionStatus

from pgworker.db.connect import connect
from pgworker.db.patience import PatientConnection
from pgworker.lifecycle.transaction import execute_alone, one_trip, read_committed, set_up_session
from tests.chaos.pooler import Pooler

Connect = Callable[[], Connection[Any]]


def interrupt(connection: Connection[Any]) -> None:
    with read_committed(connection):
        connection.pgconn.send_query(
            b"select pg_sleep(600)"
        )  # so the driver leaves it when it is hit between two waits
        raise KeyboardInterrupt


def test_ctrl_c_in_the_middle_of_an_answer_stays_ctrl_c_and_the_connection_is_given_up(connect: Connect) -> None:
    connection = connect()
    with pytest.raises(KeyboardInterrupt):
        interrupt(connection)
    assert connection.closed


class Interrupted(Mapping[str, Any]):
    """Parameters that somebody waits for in vain."""

    def __getitem__(self, key: str) -> Any:
        raise KeyboardInterrupt

    def __iter__(self) -> Iterator[str]:
        raise KeyboardInterrupt

    def __len__(self) -> int:
        return 1


def test_ctrl_c_between_two_statements_of_one_trip_leaves_the_connection_as_it_was(connect: Connect) -> None:
    connection = connect()
    with pytest.raises(KeyboardInterrupt):
        execute_alone(connection, "select %(name)s", Interrupted())
    assert connection.info.transaction_status is TransactionStatus.IDLE
    assert execute_alone(connection, "select 1", {}) == [(1,)]


SESSIONS = ("its own", "a pooler's", "not set up")


@pytest.fixture(params=SESSIONS)
def trips(request: pytest.FixtureRequest, dsn: str) -> Iterator[PatientConnection[Any]]:
    """A connection that waits 2 s for each answer, of which the role would be serializable."""
    with ExitStack() as undo:
        with psycopg.connect(dsn, autocommit=True) as db:
            db.execute(f"alter database {db.info.dbname} set default_transaction_isolation = 'serializable'".encode())
            db.execute("create table public.seen (word text unique deferrable initially deferred)")
        if request.param == "a pooler's":
            dsn = undo.enter_context(Pooler(dsn, request.getfixturevalue("directory"), pool_size=1)).dsn
        connection = undo.enter_context(connect(dsn, application_name="trips", prepare_threshold=None, patience=2.0))
        if request.param != "not set up":
            set_up_session(connection)
        yield connection


@pytest.fixture
def observer(trips: PatientConnection[Any], dsn: str) -> Iterator[Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def seen(observer: Connection[Any]) -> list[str]:
    return [word for (word,) in observer.execute("select word from public.seen order by word")]


def test_a_trip_is_at_read_committed_with_the_limit_of_its_patience(trips: PatientConnection[Any]) -> None:
    with one_trip(trips):
        told = trips.execute("select current_setting('transaction_isolation'), current_setting('statement_timeout')")
    assert told.fetchone() == ("read committed", "1600ms")


def test_a_trip_may_have_a_limit_of_its_own(trips: PatientConnection[Any]) -> None:
    for _ in range(2):
        with one_trip(trips, limit_ms=50):
            told = trips.execute("show statement_timeout")
        assert told.fetchone() == ("50ms",)
        with one_trip(trips):
            told = trips.execute("show statement_timeout")
        assert told.fetchone() == ("1600ms",)


def test_a_trip_says_when_its_server_was_started(trips: PatientConnection[Any], observer: Connection[Any]) -> None:
    with one_trip(trips) as trip:
        trips.execute("select 1")
    assert observer.execute("select pg_postmaster_start_time()").fetchone() == (trip.server(),)


def test_all_of_a_trip_is_there_when_it_is_over(trips: PatientConnection[Any], observer: Connection[Any]) -> None:
    with one_trip(trips):
        trips.execute("insert into public.seen values ('a')")
        trips.execute("insert into public.seen values ('b')")
    assert seen(observer) == ["a", "b"]


@pytest.mark.parametrize(
    "end",
    [KeyboardInterrupt, MemoryError, "select 1 / 0", "select '\0'"],
    ids=["Ctrl-C", "a bug", "refused", "unsendable"],
)
def test_nothing_of_a_trip_that_ends_before_its_time_is_there(
    trips: PatientConnection[Any], observer: Connection[Any], end: type[BaseException] | str
) -> None:
    def cut_short() -> None:
        with one_trip(trips):
            trips.execute("insert into public.seen values ('a')")
            trips.execute("insert into public.seen values ('b')")
            if not isinstance(end, str):
                raise end
            trips.execute("insert into public.seen values (%s)", ["a\0b"]) if "\0" in end else trips.execute(
                end.encode()
            )
            trips.execute("insert into public.seen values ('c')")

    with pytest.raises(psycopg.Error if isinstance(end, str) else end):
        cut_short()
    assert trips.info.transaction_status is TransactionStatus.IDLE
    assert seen(observer) == []
    with one_trip(trips):
        trips.execute("insert into public.seen values ('d')")
    assert seen(observer) == ["d"]


def test_a_commit_that_fails_is_an_error_and_leaves_no_connection_in_the_middle_of_it(
    trips: PatientConnection[Any], observer: Connection[Any]
) -> None:
    def twice() -> None:
        with one_trip(trips):
            trips.execute("insert into public.seen values ('a')")
            trips.execute("insert into public.seen values ('a')")

    with pytest.raises(psycopg.Error, match=r"duplicate key value|^the server said more than it was asked"):
        twice()
    assert trips.closed or trips.info.transaction_status is TransactionStatus.IDLE
    assert seen(observer) == []


@pytest.mark.parametrize("second", [KeyboardInterrupt, MemoryError], ids=["Ctrl-C", "no memory"])
def test_what_comes_between_an_error_and_its_rollback_commits_nothing(
    trips: PatientConnection[Any], observer: Connection[Any], second: type[BaseException]
) -> None:
    class Interrupting(psycopg.Cursor[Any]):
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            if query == "rollback":
                raise second
            return super().execute(query, *args, **kwargs)

    def cut_short() -> None:
        with one_trip(trips):
            trips.execute("insert into public.seen values ('a')")
            trips.cursor_factory = Interrupting
            raise KeyboardInterrupt

    with pytest.raises(second):
        cut_short()
    assert trips.closed
    assert seen(observer) == []


@pytest.mark.parametrize("trips", ["its own", "not set up"], indirect=True)
def test_the_driver_does_not_take_for_prepared_what_came_behind_an_error(trips: PatientConnection[Any]) -> None:
    trips.prepare_threshold = 1

    def go(first: str) -> psycopg.Cursor[Any]:
        with one_trip(trips):
            trips.execute("select %s::text::jsonb", [first])
            return trips.execute("select %s::text", ["behind"])

    assert go("1").fetchone() == ("behind",)
    for _ in range(3):
        with pytest.raises(psycopg.DataError):
            go("{")
        assert go("2").fetchone() == ("behind",)


@pytest.mark.parametrize("trips", ["a pooler's"], indirect=True)
def test_nobody_else_gets_the_session_of_a_pooler_as_it_was_set_up(trips: PatientConnection[Any]) -> None:
    assert trips.limits_each
    with connect(trips.info.dsn, application_name="trips", prepare_threshold=None) as stranger:
        for name, value in (("enable_seqscan", "on"), ("plan_cache_mode", "auto"), ("statement_timeout", "0")):
            assert stranger.execute(f"show {name}".encode()).fetchone() == (value,)
