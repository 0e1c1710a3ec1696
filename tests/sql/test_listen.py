from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgworker.db.connect import is_outage
from pgworker.db.listen import Listener
from tests.sql.actors import enqueue

Connect = Callable[[], psycopg.Connection[Any]]


@pytest.fixture
def listener(dsn: str) -> Iterator[Listener]:
    opened = Listener(dsn)
    yield opened
    opened.close()


def wait_for(listener: Listener, wanted: int) -> list[str]:
    """Payloads as a selector loop gets them: only once the socket is readable."""
    payloads = listener.read()
    deadline = time.monotonic() + 10
    while len(payloads) < wanted and time.monotonic() < deadline:
        if select.select([listener], [], [], 1)[0]:
            payloads += listener.read()
    return payloads


def sleeps(connection: psycopg.Connection[Any], queue: str) -> bool:
    row = connection.execute("select pgworker.somebody_sleeps(%s)", (queue,)).fetchone()
    return bool(row and row[0])


def test_the_socket_becomes_readable_and_read_gives_every_payload_once(listener: Listener, connect: Connect) -> None:
    assert listener.read() == []
    other = connect()
    for payload in ("one", "zwölf", ""):
        other.execute("select pg_notify('pgworker', %s)", (payload,))
    assert wait_for(listener, 3) == ["one", "zwölf", ""]
    assert listener.read() == []


def test_what_arrives_with_the_reply_to_a_sleep_lock_is_not_lost(listener: Listener, connect: Connect) -> None:
    connect().execute("notify pgworker, 'early'")
    assert select.select([listener], [], [], 10)[0]
    assert listener.sleep_lock("mail")
    assert not select.select([listener], [], [], 0)[0]
    assert listener.read() == ["early"]


def test_enqueuers_see_a_sleep_lock_until_it_is_released_however_often_it_was_taken(
    listener: Listener, connect: Connect
) -> None:
    other = connect()
    assert listener.sleep_lock("mail")
    assert listener.sleep_lock("mail")
    assert sleeps(other, "mail")
    assert not sleeps(other, "other")
    assert listener.sleep_unlock("mail")
    assert not sleeps(other, "mail")
    assert not listener.sleep_unlock("mail")


def test_a_sleep_lock_does_not_wait_for_an_enqueuer_that_asks_for_it(listener: Listener, connect: Connect) -> None:
    other = connect()
    other.execute("select pg_advisory_lock(1885828977, hashtext('mail'))")
    assert not listener.sleep_lock("mail")
    other.execute("select pg_advisory_unlock_all()")
    assert listener.sleep_lock("mail")


def test_an_enqueue_notifies_only_while_somebody_sleeps_on_its_queue(listener: Listener, connect: Connect) -> None:
    other = connect()
    assert listener.sleep_lock("mail")
    for jobs in (1, 2):
        for queue in ("other", "mail"):
            enqueue(other, jobs, queue=queue)
    other.execute("notify pgworker, 'end'")
    assert [payload.partition(",")[0] for payload in wait_for(listener, 3)] == ["mail=1", "mail=2", "end"]


def test_each_enqueue_of_a_transaction_is_told_of_though_postgresql_folds_what_is_said_twice(
    listener: Listener, connect: Connect
) -> None:
    other = connect()
    assert listener.sleep_lock("mail")
    with other.transaction():
        for _ in range(2):
            enqueue(other, 1, queue="mail")
            enqueue(other, 3, queue="mail")
            other.execute("select pgworker.enqueue('t', queue => 'mail')")
            other.execute("select pgworker.enqueue_many('t', array['{}', '{}']::jsonb[], queue => 'mail')")
    told = [payload.partition(",")[0] for payload in wait_for(listener, 6)]
    assert len(told) > 4, "as two bytes may be the same, one or two of eight may be missing"
    assert {*told} == {"mail=1", "mail=2", "mail=3"}


def test_closing_ends_the_sleep_locks(dsn: str, connect: Connect) -> None:
    listener = Listener(dsn)
    listener.sleep_lock("mail")
    listener.close()
    other = connect()
    deadline = time.monotonic() + 10
    while sleeps(other, "mail"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lost_connection_wakes_the_selector_and_is_told_as_an_outage(listener: Listener, connect: Connect) -> None:
    connect().execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgworker listener'"
    )
    with pytest.raises(psycopg.OperationalError) as lost:
        read_on(listener)
    assert is_outage(lost.value)


def read_on(listener: Listener) -> None:
    while select.select([listener], [], [], 10)[0]:
        listener.read()
