"""Whoever waits for an answer of the database waits for so long and no longer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from pgworker.app.queue import PostgresQueue
from pgworker.db.connect import connect as connect_to
from pgworker.db.connect import connect_async, connect_to_schema, explain
from pgworker.db.patience import Patience, Silence
from pgworker.errors import DatabaseUnavailable
from pgworker.lifecycle.claim import Lanes
from pgworker.linux.board import Board
from tests.chaos.proxy import Proxy

NAME = "somebody"


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


def test_silence_in_a_pipeline_or_transaction_is_waited_for_once(proxy: Proxy, blank_dsn: str) -> None:
    connection = connect_to(proxy.dsn(blank_dsn), application_name=NAME, patience=1.0)
    proxy.blackhole()
    began = time.monotonic()
    with pytest.raises(Silence), connection.pipeline(), connection.transaction():
        connection.execute("select 1").fetchone()
    assert time.monotonic() - began >= 1.0
    assert connection.closed


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
        assert not connection.closed
        connection.rollback()
        assert queue.claim(1) == []


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


@pytest.mark.parametrize(("ttl", "most"), [(60, 20), (12, 4), (6, 3)])
def test_who_renews_leases_waits_for_no_answer_for_longer_than_they_can(ttl: float, most: float) -> None:
    patience = Patience(ttl, longest=ttl / 3)
    for _ in range(20):
        patience.after(Silence("no answer"))
    assert patience.seconds == most


def test_who_has_short_leases_waits_less_long() -> None:
    assert [Patience(ttl, longest=ttl).seconds for ttl in (600, 60, 20, 12, 6)] == [10, 10, 5, 3, 3]
