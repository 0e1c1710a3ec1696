"""The proxy does to connections what it says, and nothing when it says nothing."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from psycopg import Connection, Cursor

from tests.chaos.proxy import Proxy
from tests.process.pool import eventually

Open = Callable[..., Connection[Any]]


@pytest.fixture
def proxy(blank_dsn: str) -> Iterator[Proxy]:
    with Proxy.before(blank_dsn) as started:
        yield started


@pytest.fixture
def through(proxy: Proxy, blank_dsn: str) -> Iterator[Open]:
    """Opens connections through the proxy, of a name."""
    with ExitStack() as connections:

        def connect(name: str = "someone", **options: Any) -> Connection[Any]:
            dsn = proxy.dsn(blank_dsn)
            return connections.enter_context(
                psycopg.connect(dsn, application_name=name, **{"autocommit": True, **options})
            )

        yield connect


@pytest.fixture
def direct(blank_dsn: str) -> Iterator[Connection[Any]]:
    with psycopg.connect(blank_dsn, autocommit=True) as connection:
        connection.execute("create table seen (what text)")
        yield connection


def seen(connection: Connection[Any]) -> list[str]:
    return [what for (what,) in connection.execute("select what from seen order by what")]


def insert(connection: Connection[Any], what: str) -> None:
    connection.execute("insert into seen values (%s)", [what])


def insert_together(connection: Connection[Any], *whats: str) -> None:
    with connection.pipeline():
        for what in whats:
            insert(connection, what)


def insert_in_two_rounds(connection: Connection[Any], firsts: list[Cursor[Any]]) -> None:
    with connection.pipeline() as pipeline:
        firsts.append(connection.execute("insert into seen values ('first') returning what"))
        pipeline.sync()
        connection.execute("insert into seen values ('second')")


def test_everything_passes_unharmed(proxy: Proxy, through: Open, direct: Connection[Any]) -> None:
    connection = through(prepare_threshold=0)
    for number in range(20):
        insert(connection, f"{number:02}")
    with connection.cursor().copy("copy seen from stdin") as copy:
        copy.write_row(["x" * 3_000_000])
    with connection.pipeline():
        long = connection.execute("select what from seen where length(what) > 100")
        connection.execute("select repeat('y', 5000000)")
    with pytest.raises(psycopg.errors.DivisionByZero):
        connection.execute("select 1/0")
    assert long.fetchone() == ("x" * 3_000_000,)
    assert len(seen(direct)) == 21
    assert proxy.names() == ["someone"]
    assert proxy.counts == {"accepted": 1}


def test_encryption_is_refused(proxy: Proxy, blank_dsn: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="SSL"):
        psycopg.connect(proxy.dsn(blank_dsn), sslmode="require")


def test_a_query_is_cancelled_through_it(through: Open) -> None:
    connection = through()
    timer = threading.Timer(0.3, connection.cancel_safe)  # `cancel` would hold the GIL, which the proxy needs

    timer.start()
    with pytest.raises(psycopg.errors.QueryCanceled):
        connection.execute("select pg_sleep(60)")
    timer.join()


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_only_the_named_connections_are_cut(how: Any, proxy: Proxy, through: Open, direct: Connection[Any]) -> None:
    worker, monitor = through("worker 0"), through("monitor")
    assert proxy.cut("worker *", how=how) == 1
    with pytest.raises(psycopg.OperationalError):
        worker.execute("select 1")
    monitor.execute("select 1")
    backends = "select application_name from pg_stat_activity where application_name in ('worker 0', 'monitor')"
    eventually(lambda: direct.execute(backends).fetchall() == [("monitor",)], "the server has heard of it")


def test_a_reset_is_a_reset_and_a_fin_is_an_end(proxy: Proxy) -> None:
    for how in ("rst", "fin"):
        with socket.create_connection(("127.0.0.1", proxy.port)) as wire:
            eventually(lambda: proxy.names() == [""], "accepted")
            proxy.cut(how=how)
            if how == "fin":
                assert wire.recv(1) == b""
            else:
                with pytest.raises(ConnectionResetError):
                    wire.recv(1)
        eventually(lambda: not proxy.names(), "gone")


def test_whoever_is_refused_gets_in_once_it_is_healed(proxy: Proxy, through: Open) -> None:
    there = through()
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError):
        through()
    there.execute("select 1")
    proxy.heal()
    through().execute("select 1")
    assert proxy.counts["refused"] >= 1


def test_in_a_black_hole_nobody_hears_of_anything(proxy: Proxy, through: Open, direct: Connection[Any]) -> None:
    lost, idle, other = through("lost"), through("idle"), through("other")
    pid = lost.info.backend_pid
    proxy.blackhole("[li]*")
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(_error_of(lambda: insert(lost, "never"))))
    asking.start()
    insert(other, "heard")
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        through("late", connect_timeout=2)
    eventually(lambda: proxy.counts["swallowed"] > 0, "swallowed")
    assert not answers
    with socket.socket(fileno=os.dup(lost.pgconn.socket)) as wire:
        wire.shutdown(socket.SHUT_RDWR)  # as if its process had died
    asking.join(10)
    assert isinstance(answers[0], psycopg.OperationalError)
    alive = f"select count(*) from pg_stat_activity where pid = {pid}"
    assert direct.execute(alive).fetchone() == (1,)  # the server has not heard of that
    proxy.heal()
    eventually(lambda: direct.execute(alive).fetchone() == (0,), "now it has")
    insert(idle, "lost nothing")
    assert seen(direct) == ["heard", "lost nothing"]


def test_round_trips_take_longer_and_streams_do_not(proxy: Proxy, through: Open) -> None:
    connection = through()
    proxy.delay(0.4)
    began = time.monotonic()
    connection.execute("select 1")
    assert time.monotonic() - began >= 0.4
    with connection.pipeline():
        for _ in range(50):
            connection.execute("select 1")
    assert time.monotonic() - began < 0.4 * 50
    proxy.heal()


def test_no_more_bytes_pass_than_allowed(proxy: Proxy, through: Open) -> None:
    connection = through()
    proxy.throttle(10_000)
    began = time.monotonic()
    connection.execute("select repeat('x', 5000)")
    assert time.monotonic() - began >= 0.4
    proxy.heal()
    assert connection.execute("select length(repeat('x', 5000000))").fetchone() == (5_000_000,)


def test_a_commit_whose_reply_is_dropped_has_happened(proxy: Proxy, through: Open, direct: Connection[Any]) -> None:
    connection = through()
    proxy.drop_reply("^commit$")
    with pytest.raises(psycopg.OperationalError), connection.transaction():
        insert(connection, "done")
    assert seen(direct) == ["done"]
    assert proxy.counts["reply"] == 1
    (dropped,) = proxy.dropped
    assert (dropped.texts, dropped.has_failed) == (("COMMIT",), False)
    with through().transaction():
        pass  # once is enough


def test_a_request_that_is_dropped_never_happened(proxy: Proxy, through: Open, direct: Connection[Any]) -> None:
    proxy.drop_request("^commit$", times=2)
    for _ in range(2):
        connection = through()
        with pytest.raises(psycopg.OperationalError), connection.transaction():
            insert(connection, "never")
    insert(through(), "done")
    assert seen(direct) == ["done"]
    assert proxy.counts["request"] == 2


def test_a_prepared_statement_in_a_pipeline_is_known_by_its_text(
    proxy: Proxy, through: Open, direct: Connection[Any]
) -> None:
    connection = through(prepare_threshold=0)
    with connection.pipeline():
        insert(connection, "1")
    proxy.drop_reply("insert into seen")
    with pytest.raises(psycopg.OperationalError):
        insert_together(connection, "2", "3")
    assert seen(direct) == ["1", "2", "3"]
    assert [dropped.texts for dropped in proxy.dropped] == [("insert into seen values ($1)",) * 2]


def test_what_was_answered_before_is_delivered(proxy: Proxy, through: Open, direct: Connection[Any]) -> None:
    connection = through()
    proxy.drop_reply("'second'")
    firsts: list[Cursor[Any]] = []
    with pytest.raises(psycopg.OperationalError):
        insert_in_two_rounds(connection, firsts)
    assert firsts[0].fetchone() == ("first",)
    assert seen(direct) == ["first", "second"]


def test_a_pipeline_is_answered_until_it_commits(proxy: Proxy, through: Open, direct: Connection[Any]) -> None:
    connection = through()
    proxy.drop_reply("insert into seen")
    with pytest.raises(psycopg.OperationalError), connection.pipeline():
        assert connection.execute("insert into seen values ('here') returning what").fetchone() == ("here",)
    assert seen(direct) == ["here"]


def test_a_dropped_reply_may_have_been_an_error(proxy: Proxy, through: Open, direct: Connection[Any]) -> None:
    connection = through()
    proxy.drop_reply("1/0")
    with pytest.raises(psycopg.OperationalError):
        connection.execute("insert into seen values (1/0)")
    assert seen(direct) == []
    assert [dropped.has_failed for dropped in proxy.dropped] == [True]


def test_only_the_commit_of_the_transaction_that_is_meant_is_dropped(
    proxy: Proxy, through: Open, direct: Connection[Any]
) -> None:
    worker, other = through("worker"), through("other")
    proxy.drop_reply("^commit$", only="worker", during="insert into seen")
    for connection in (worker, other):
        with connection.transaction():
            connection.execute("select 1")
    with other.transaction():
        insert(other, "other")
    with pytest.raises(psycopg.OperationalError), worker.transaction():
        insert(worker, "worker")
    assert seen(direct) == ["other", "worker"]
    assert [dropped.application_name for dropped in proxy.dropped] == ["worker"]


def test_new_connections_go_where_the_target_is_by_now(proxy: Proxy, through: Open, blank_dsn: str) -> None:
    there = through()
    right, proxy.target = proxy.target, ("/nowhere", 1)
    with pytest.raises(psycopg.OperationalError):
        through()
    there.execute("select 1")
    proxy.target = right
    through().execute("select 1")
    assert proxy.counts["unreachable"] >= 1


def _error_of(call: Callable[[], None]) -> BaseException | None:
    try:
        call()
    except psycopg.Error as error:
        return error
    return None
