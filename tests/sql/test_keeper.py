"""The keeper of `jobs run`: what it owes a lease comes before what it owes whoever looks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from pgworker import App
from pgworker.app.queue.postgres import PostgresQueue
from pgworker.lifecycle.claim import Lanes
from pgworker.linux.board import Board
from pgworker.linux.row import BoardRow
from pgworker.model.progress import check_progress
from pgworker.worker.execution import ProgressUpdates
from pgworker.worker.keeper import LeaseKeeper
from tests.process.pool import eventually
from tests.sql.actors import ask, enqueue

app = App()


@app.task(name="t")
def task() -> None: ...


def test_a_lock_on_the_heartbeats_does_not_keep_a_lease_from_being_renewed(
    dsn: str, connect: Callable[[], psycopg.Connection[Any]]
) -> None:
    connection, other = connect(), connect()
    enqueue(connection)
    queue, row = queue_of_one(connection)
    keeper = LeaseKeeper(dsn, row, {})
    keeper.begin()
    [claimed] = queue.claim(1)
    expires = "select expires_at from pgworker.job_leases"
    before = ask(connection, expires)
    with other.transaction():
        other.execute("lock table pgworker.worker_heartbeats in access exclusive mode")
        keeper.keep(claimed)
        eventually(lambda: ask(connection, expires) > before, "the lease is renewed")
    keeper.end("it has ended")


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_checkpoint_that_an_outage_has_kept_from_being_stored_is_stored_after_it_or_with_the_end(
    has_ended: bool, dsn: str, connect: Callable[[], psycopg.Connection[Any]]
) -> None:
    connection, other = connect(), connect()
    enqueue(connection)
    queue, row = queue_of_one(connection)
    progress: ProgressUpdates = {}
    keeper = LeaseKeeper(dsn, row, progress)
    keeper.begin()
    [claimed] = queue.claim(1)
    progress[claimed.lease.lease_id, claimed.position] = claimed, check_progress(claimed.row.job_id, 0.5, "", {"at": 7})
    cut = """select pg_terminate_backend(pid) from pg_stat_activity
             where application_name = 'pgworker jobs run keeper' and wait_event_type = 'Lock'"""
    with other.transaction():
        other.execute("lock table pgworker.job_progress in access exclusive mode")
        keeper.keep(claimed)
        eventually(lambda: ask(connection, cut), "it waits to store the checkpoint, and loses its connection")
        eventually(lambda: not ask(connection, cut), "it has heard of that")
        if has_ended:
            keeper.let_go()
    if has_ended:
        queue.fail(claimed, ValueError("of the handler"))
        queue.claim(0)
    eventually(lambda: ask(connection, "select checkpoint from pgworker.job_progress") == [{"at": 7}], "it is stored")
    keeper.end("it has ended")


def test_a_checkpoint_that_the_server_refuses_costs_neither_the_lease_nor_a_line_with_what_it_says(
    dsn: str, connect: Callable[[], psycopg.Connection[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect()
    enqueue(connection)
    queue, row = queue_of_one(connection)
    progress: ProgressUpdates = {}
    keeper = LeaseKeeper(dsn, row, progress)
    keeper.begin()
    [claimed] = queue.claim(1)
    connection.execute("alter table pgworker.job_progress add check (not checkpoint ? 'secret')")
    said = check_progress(claimed.row.job_id, 0.5, "", {"secret": "Sesame"})
    progress[claimed.lease.lease_id, claimed.position] = claimed, said
    keeper.keep(claimed)
    eventually(lambda: "would not store" in caplog.text, "it is refused")
    before = ask(connection, "select expires_at from pgworker.job_leases")
    eventually(lambda: ask(connection, "select expires_at from pgworker.job_leases") > before, "it is renewed still")
    keeper.end("it has ended")
    assert "Sesame" not in caplog.text


def queue_of_one(connection: psycopg.Connection[Any]) -> tuple[PostgresQueue, BoardRow]:
    lanes = Lanes.of(["default"])
    board = Board(1, len(lanes))
    [row] = board.rows
    row.reset(uuid4(), time.monotonic_ns())
    queue = PostgresQueue(lambda: connection, row=row, floors=board.floors, lanes=lanes, tasks=app.tasks, lease_ttl=60)
    return queue, row
